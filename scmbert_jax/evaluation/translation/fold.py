"""One translation to be made: training pairs, test cells seen in the source modality, and nothing else of them.

The measured target of the test cells is *not* in the fold: no method can look at it by accident. Two things about the
test cells that no honest method may use stand here all the same, under names that say so, because two rows of the table
are about them: their cell types (the oracle) and their depth in the target modality (the trap).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD

from scmbert_jax.evaluation.data.measured_cells import FeatureColumns, MeasuredCells
from scmbert_jax.evaluation.data.splits import Fold, subsample_training_cells
from scmbert_jax.evaluation.data.value_scale import ValueScale
from scmbert_jax.modalities import TABLE
from scmbert_jax.tasks.normalisation import root_idf

Array = np.ndarray

SVD_DIMENSIONS = 50


class TranslationMethod(Protocol):
    """Anything that predicts the target of a fold's test cells."""

    @property
    def name(self) -> str:
        """In the table."""
        ...

    @property
    def uses(self) -> str:
        """What it is told: "pairs", "links, no pairs", "pairs + the test cells' true types", ..."""
        ...

    @property
    def num_trained(self) -> int:
        """Models trained elsewhere that stand behind it, of which the seeds 0 .. num_trained-1 each pick one; 0 for a
        method that is fitted to the fold's training cells."""
        ...

    def predict(self, fold: "TranslationFold", seed: int) -> Array:
        """float32 [n_test, F] in the units of `fold.scale`."""
        ...


@dataclass(frozen=True)
class TranslationFold:
    """Training pairs and test sources; n training cells, m test cells, S source and F target features.

    Attributes:
      source, target: modalities.
      source_scale, scale: units of the source's and of the target's values.
      source_features, target_features: S and F columns.
      train_source, train_target: int32 CSR [n, S], [n, F] counts.
      test_source: int32 CSR [m, S] counts.
      train_values: float32 CSR [n, F], `train_target` in the units of `scale`.
      train_types, train_batches: str [n].
      test_cell_ids, test_batches: str [m].
      organism, assembly: of the features; None where unknown.
      oracle_test_types: str [m]; for the cell-type oracle only.
      trap_test_depth: float64 [m], total target counts of the test cells; for the depth baseline only.
    """

    source: str
    target: str
    source_scale: ValueScale
    scale: ValueScale
    source_features: FeatureColumns
    target_features: FeatureColumns
    train_source: sp.csr_matrix
    train_target: sp.csr_matrix
    test_source: sp.csr_matrix
    train_values: sp.csr_matrix
    train_types: Array
    train_batches: Array
    test_cell_ids: Array
    test_batches: Array
    organism: str | None
    assembly: str | None
    oracle_test_types: Array
    trap_test_depth: Array

    @property
    def num_train(self) -> int:
        return self.train_source.shape[0]

    @property
    def num_test(self) -> int:
        return self.test_source.shape[0]

    @cached_property
    def train_mean(self) -> Array:
        """float32 [F]: mean of the training values."""
        return np.asarray(self.train_values.mean(0), np.float32).ravel()

    @cached_property
    def source_inputs(self) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Normalised sources CSR [n, S], [m, S]: log1p, CLR, or (ATAC) roots x IDF over all of these cells."""
        if self.source == "atac":
            both = root_idf(sp.vstack([self.train_source, self.test_source], format="csr"))
            return both[: self.num_train], both[self.num_train :]
        return self.source_scale.values(self.train_source), self.source_scale.values(self.test_source)

    @cached_property
    def source_scores(self) -> tuple[Array, Array]:
        """float64 [n, 50], [m, 50]: SVD of the sources of training and test cells together (no target is read).

        For ATAC the first component, which is depth, is left out.
        """
        both = sp.vstack(self.source_inputs, format="csr").astype(np.float64)
        drop = TABLE[self.source].depth_components
        components = max(1, min(SVD_DIMENSIONS, min(both.shape) - 1) - drop) + drop
        scores = TruncatedSVD(components, algorithm="arpack", random_state=0).fit_transform(both)[:, drop:]
        return scores[: self.num_train], scores[self.num_train :]

    def subsample(self, fraction: float, seed: int) -> "TranslationFold":
        """The fold with a random `fraction` of the training cells of each type."""
        rows = np.arange(self.num_train)
        whole = Fold("subsample", rows, np.zeros(0, np.int64))
        kept = subsample_training_cells(whole, self.train_types, fraction, np.random.default_rng(seed))
        return replace(
            self,
            train_source=self.train_source[kept],
            train_target=self.train_target[kept],
            train_values=self.train_values[kept],
            train_types=self.train_types[kept],
            train_batches=self.train_batches[kept],
        )


def make_fold(
    cells: MeasuredCells, source: str, target: str, train: Array, test: Array
) -> tuple[TranslationFold, Array]:
    """The fold and, apart from it, the truth float32 [m, F] of the test cells.

    Args:
      train, test: bool [cells], each within the cells that have both modalities, without a cell in common.
    """
    if (train & test).any() or not cells.paired(source, target)[train | test].all():
        raise ValueError("train and test are cells with both modalities, none on both sides")
    scale, source_scale = cells.scales[target], cells.scales[source]
    train_target, test_target = cells.counts[target][train], cells.counts[target][test]
    fold = TranslationFold(
        source=source,
        target=target,
        source_scale=source_scale,
        scale=scale,
        source_features=cells.features[source],
        target_features=cells.features[target],
        train_source=cells.counts[source][train],
        train_target=train_target,
        test_source=cells.counts[source][test],
        train_values=scale.values(train_target),
        train_types=cells.cell_types[train],
        train_batches=cells.technical_batches[train],
        test_cell_ids=cells.cell_ids[test],
        test_batches=cells.technical_batches[test],
        organism=cells.organism,
        assembly=cells.assembly,
        oracle_test_types=cells.cell_types[test],
        trap_test_depth=np.asarray(test_target.sum(1), np.float64).ravel(),
    )
    return fold, scale.values(test_target).toarray()


def link_matrix(source: FeatureColumns, target: FeatureColumns) -> sp.csr_matrix:
    """float32 CSR [S, F]: 1 where a source and a target feature name the same gene."""

    def incidence(columns: FeatureColumns, genes: dict[str, int]) -> sp.csr_matrix:
        places = [(row, genes[gene]) for row, linked in enumerate(columns.genes) for gene in linked if gene in genes]
        rows, names = np.array(places, np.int64).reshape(-1, 2).T
        return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, names)), (len(columns), max(1, len(genes))))

    shared = _genes_of(source) & _genes_of(target)
    genes = {gene: place for place, gene in enumerate(sorted(shared))}
    links = incidence(source, genes) @ incidence(target, genes).T
    return sp.csr_matrix((links > 0).astype(np.float32))


def _genes_of(columns: FeatureColumns) -> set[str]:
    genes: Iterable[str] = (gene for linked in columns.genes for gene in linked)
    return set(genes)
