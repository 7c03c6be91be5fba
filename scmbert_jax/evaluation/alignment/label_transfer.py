"""Label transfer across modalities, scored: types known of cells of one modality, carried to cells of another.

Where a data set has technical batches of one modality only (a mosaic), labels go from those of the first modality to
those of the second, and back; else from the first modality of the training pairs to the second of the test pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import scipy.sparse as sp

from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.alignment.baselines import Baseline, Build, cca_space, links_vectors, ridge_space, some_rows
from scmbert_jax.evaluation.alignment.result import AlignmentRow, score_rows
from scmbert_jax.evaluation.data.model_vectors import EmbeddedModels
from scmbert_jax.tasks.label_transfer import METHODS, transfer_labels
from scmbert_jax.tasks.modality_cells import ModalityCells, fit_projection
from scmbert_jax.tasks.pseudo_pairs import match_unpaired

Array = np.ndarray

FEWEST_CELLS = 30


def transfer_rows(
    first: ModalityCells,
    second: ModalityCells,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    trained: Mapping[str, EmbeddedModels],
    num_seeds: int,
    baselines: bool,
    say: Callable[[str], None],
) -> list[AlignmentRow]:
    """Rows of both directions; none where the cells have no types.

    Args:
      train, test: pairs (rows of first, rows of second) of a fold, for data without cells of one modality only.
      trained: row of the table -> its models.
    """
    lone, mosaic, sides = _lone_cells(first, second), is_mosaic(first, second), (first, second)
    rows = []
    for source, target in ((0, 1), (1, 0)):
        if mosaic:
            labelled, asked = sides[source].take(lone[source]), sides[target].take(lone[target])
            bridge = tuple(np.concatenate([train[i], test[i]]) for i in (0, 1))
        else:
            labelled, asked, bridge = sides[source].take(train[source]), sides[target].take(test[target]), train
        asked = asked.take(asked.cell_types != "")
        if not ((labelled.cell_types != "").any() and (asked.cell_types != "").any()):
            continue
        task = Transfer(labelled, asked, sides[source].take(bridge[source]), sides[target].take(bridge[target]))
        rows += task.rows(trained, num_seeds, baselines, say)
    return rows


def is_mosaic(first: ModalityCells, second: ModalityCells) -> bool:
    """Whether each modality has technical batches that the other lacks, with enough cells to carry labels between."""
    return min(part.sum() for part in _lone_cells(first, second)) >= FEWEST_CELLS


def _lone_cells(first: ModalityCells, second: ModalityCells) -> list[Array]:
    """bool [n], [m]: cells of technical batches that have that modality alone."""
    order = ((first, second), (second, first))
    return [~np.isin(side.technical_batches, other.technical_batches) for side, other in order]


class Transfer:
    """Labels of `labelled` for `asked`; `bridge_*`: paired cells, row i of both the same (`bridge`)."""

    def __init__(
        self, labelled: ModalityCells, asked: ModalityCells, bridge_labelled: ModalityCells, bridge_asked: ModalityCells
    ):
        self.labelled, self.asked = labelled, asked
        self.bridge = (bridge_labelled, bridge_asked)
        self._classes, codes = np.unique(
            np.concatenate([labelled.cell_types, asked.cell_types, bridge_asked.cell_types]), return_inverse=True
        )
        self._truth = codes[len(labelled) : len(labelled) + len(asked)]
        batches = [", ".join(np.unique(side.technical_batches)[:4]) for side in (labelled, asked)]
        self.direction = f"labels {labelled.modality} ({batches[0]}) -> {asked.modality} ({batches[1]})"

    def rows(
        self, trained: Mapping[str, EmbeddedModels], num_seeds: int, baselines: bool, say: Callable[[str], None]
    ) -> list[AlignmentRow]:
        rows = []
        for own in TRANSFER_BASELINES if baselines else ():
            if not own.possible(self):
                continue
            say(f"{self.direction}: {own.name}")
            whole, seeds = own.fitted(self, None), [own.fitted(self, seed) for seed in range(num_seeds)]
            rows += score_rows(self.direction, own.name, own.uses, whole, seeds, len(self._truth))
        for method, embedded in trained.items():
            seeds = [
                self.from_vectors(a, self.labelled.cell_types, b)
                for a, b in embedded.vectors(self.labelled, self.asked)
            ]
            rows += score_rows(self.direction, method, embedded.uses(), None, seeds, len(self._truth))
        return rows

    def from_vectors(self, a: Array, labels: Array, b: Array) -> dict[str, float]:
        """Scores of `labels`, of cells with vectors `a`, carried to the cells that are asked, of vectors `b`."""
        found: dict[str, float] = {}
        for method in METHODS:
            predicted = transfer_labels(a, labels, b, method=method).labels
            found |= {f"{kind} ({method})": value for kind, value in self.scores(predicted).items()}
        return found

    def scores(self, predicted: Sequence[str] | Array) -> dict[str, float]:
        codes = np.searchsorted(self._classes, np.asarray(predicted).astype(str))
        return {
            "accuracy": float(metrics.accuracy(self._truth, codes)),
            "macro-F1": float(metrics.macro_f1(self._truth, codes, len(self._classes))),
        }


def of_pairs(build: Build, task: Transfer, seed: int | None) -> dict[str, float]:
    """By a space that `build` makes of the paired cells."""
    chosen = some_rows(np.arange(len(task.bridge[0])), seed, 0)
    space = build(task.bridge[0].take(chosen), task.bridge[1].take(chosen))
    return task.from_vectors(space.embed_first(task.labelled), task.labelled.cell_types, space.embed_second(task.asked))


def of_pseudo_pairs(task: Transfer, seed: int | None) -> dict[str, float]:
    """By pairs that are found through the links."""
    parts = [
        _together(own, bridge.take(some_rows(np.arange(len(bridge)), seed, salt)))
        for salt, (own, bridge) in enumerate(zip((task.labelled, task.asked), task.bridge, strict=True), start=1)
    ]
    space = match_unpaired(*parts).space
    assert space is not None
    return task.from_vectors(space.embed_first(task.labelled), task.labelled.cell_types, space.embed_second(task.asked))


def of_links(task: Transfer, seed: int | None) -> dict[str, float]:
    """By linked features."""
    labelled, asked = some_rows(np.arange(len(task.labelled)), seed, 3), some_rows(np.arange(len(task.asked)), seed, 4)
    a, b = links_vectors(task.labelled, task.asked, labelled, asked)
    return task.from_vectors(a, task.labelled.cell_types, b)


def of_majority(task: Transfer, seed: int | None) -> dict[str, float]:
    """Every cell gets the most frequent label."""
    known = task.labelled.cell_types[task.labelled.cell_types != ""]
    names, counts = np.unique(known[some_rows(np.arange(len(known)), seed, 6)], return_counts=True)
    most = np.full(len(task.asked), names[counts.argmax()])
    return {f"{kind} ({method})": value for method in METHODS for kind, value in task.scores(most).items()}


def of_own_modality(task: Transfer, seed: int | None) -> dict[str, float]:
    """The ceiling: labels of paired cells, compared within the modality that is asked."""
    known = task.bridge[1].take(some_rows(np.arange(len(task.bridge[1])), seed, 5))
    projection = fit_projection(known, 50)
    return task.from_vectors(projection(known.values), known.cell_types, projection(task.asked.values))


def _pairs_have_types(task: Transfer) -> bool:
    return len(np.setdiff1d(task.bridge[1].cell_types, [""])) > 1


# Accuracy and macro-F1 of carried labels, by each way of carrying them.
TRANSFER_BASELINES: list[Baseline[Transfer, dict[str, float]]] = [
    Baseline("CCA", "pairs", partial(of_pairs, cca_space)),
    Baseline("SVD + ridge", "pairs", partial(of_pairs, ridge_space)),
    Baseline("pseudo-pairs", "links, no pairs", of_pseudo_pairs),
    Baseline("links only", "links, no pairs", of_links),
    Baseline("majority", "labels", of_majority),
    Baseline("labels of the other modality (ceiling)", "labels of paired cells", of_own_modality, _pairs_have_types),
]


def _together(first: ModalityCells, second: ModalityCells) -> ModalityCells:
    """The cells of two parts of one modality of one data set as one, each cell once."""
    new = second.take(~np.isin(second.cell_ids, first.cell_ids))
    return replace(
        first,
        counts=sp.vstack([first.counts, new.counts], format="csr"),
        cell_ids=np.concatenate([first.cell_ids, new.cell_ids]),
        technical_batches=np.concatenate([first.technical_batches, new.technical_batches]),
        donors=np.concatenate([first.donors, new.donors]),
        cell_types=np.concatenate([first.cell_types, new.cell_types]),
    )
