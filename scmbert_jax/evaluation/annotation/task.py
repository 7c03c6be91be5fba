"""What a method is given to annotate cells, and what it gives back. The true labels of the test cells are not in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from sklearn.neighbors import NearestNeighbors

from scmbert_jax.evaluation.baselines import NORMALISATIONS, WITH_ROOTS, pca_embedding

Array = np.ndarray

MOST_DIMENSIONS = 50


@dataclass(frozen=True)
class CellValues:
    """All cells of a run, without their labels.

    Attributes:
      counts: modality -> int32 CSR [n, F]; every cell was measured in all of them.
      vectors: name of a model or control -> float32 [n, D], what it makes of the cells, for one seed after the other.
    """

    counts: dict[str, sp.csr_matrix]
    vectors: dict[str, tuple[Array, ...]] = field(default_factory=dict)

    @property
    def num_cells(self) -> int:
        return next(iter(self.counts.values())).shape[0]

    @cached_property
    def _values(self) -> dict[bool, sp.csr_matrix]:
        return {}

    def values(self, roots: bool = False) -> sp.csr_matrix:
        """float32 CSR [n, sum of F]: log1p CP10k or roots (RNA), CLR (protein) and roots x IDF (ATAC) side by side."""
        if roots not in self._values:
            of = WITH_ROOTS if roots else NORMALISATIONS
            parts = [of[name](counts.astype(np.float64)) for name, counts in self.counts.items()]
            self._values[roots] = sp.hstack(parts, format="csr", dtype=np.float32)
        return self._values[roots]

    @cached_property
    def _scores(self) -> dict[tuple[str, bool], Array]:
        return {
            (name, roots): pca_embedding(counts, name, MOST_DIMENSIONS, roots=roots)
            for name, counts in self.counts.items()
            for roots in ((False, True) if "rna" in self.counts else (False,))
        }

    def scores(self, dimensions: int, roots: bool = False) -> Array:
        """float32 [n, d]: the first principal components of all cells. Never divided one by one: that gives noise the
        say of what tells cells apart. Several modalities are scaled to equal variance and joined."""
        parts = [self._scores[name, roots][:, :dimensions] for name in self.counts]
        return parts[0] if len(parts) == 1 else np.concatenate([x / np.sqrt(x.var(0).sum()) for x in parts], axis=1)

    @cached_property
    def _nearest(self) -> dict[tuple[int, int, bool], sp.csr_matrix]:
        return {}

    def nearest(self, dimensions: int, neighbours: int, roots: bool = False) -> sp.csr_matrix:
        """float64 CSR [n, n]: 1 where a cell (column) is among the nearest of another (row), by their components."""
        key = (dimensions, neighbours, roots)
        if key not in self._nearest:
            nearest = NearestNeighbors(n_neighbors=min(neighbours, self.num_cells - 1), algorithm="brute")
            self._nearest[key] = nearest.fit(self.scores(dimensions, roots)).kneighbors_graph()
        return self._nearest[key]

    def prepared(self) -> "CellValues":
        """Itself, with values and scores computed, so that processes it is sent to need not."""
        for roots in (False, True) if "rna" in self.counts else (False,):
            self.values(roots), self.scores(1, roots)
        return self


@dataclass(frozen=True)
class Task:
    """Cells to learn from and cells to predict. Rows are those of `CellValues`.

    Attributes:
      split: "cell", "donor", ...; case: what is pooled into one figure ("all cells", "10 per type", a left-out type).
      seed, fold: of the case.
      train: int64 [n]; codes: int64 [n], their classes, 0 .. num_classes - 1; groups: str [n], "" where none.
      test: int64 [m].
      parts: int64 [n], the part in which a training cell is left out while settings are chosen and probabilities are
        calibrated; None where there are too few cells for that.
    """

    split: str
    case: str
    seed: int
    fold: int
    train: Array
    codes: Array
    groups: Array
    test: Array
    parts: Array | None
    num_classes: int

    @property
    def name(self) -> str:
        return f"{self.split}, {self.case}, seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True)
class Predictions:
    """What one method, or one arm of it, says.

    Attributes:
      probabilities: float32 [m, C] of the test cells; 0 for classes that no training cell has.
      left_out: int64 [v], places in `train`; left_out_probabilities: float32 [v, C], of fits that had not seen them.
      novelty: name of a score -> float32 [m], higher is more novel; the largest probability needs no entry.
      setting: what was chosen.
    """

    probabilities: Array
    left_out: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    left_out_probabilities: Array | None = None
    novelty: Mapping[str, Array] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """One line of a list of methods: a baseline, a model of ours, or a control.

    Attributes:
      name: of its rows.
      role: "baseline", "ours" or "control".
      arms: its rows: "default" and "tuned" of a baseline, "" alone of others.
      parallel: may it run in another process?
    """

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def arms(self) -> tuple[str, ...]: ...
    @property
    def parallel(self) -> bool: ...

    def identity(self) -> dict[str, Any]:
        """JSON-able; what, besides the task, its predictions depend on."""
        ...

    def lacks(self, task: Task) -> str:
        """Why it has no answer to this task, "" where it has one."""
        ...

    def fit_predict(self, cells: CellValues, task: Task) -> dict[str, Predictions]:
        """Arm -> predictions."""
        ...
