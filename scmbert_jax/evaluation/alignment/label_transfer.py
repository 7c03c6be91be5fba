"""Label transfer across modalities, scored: types known of cells of one modality, carried to cells of another.

Where a data set has technical batches of one modality only (a mosaic), labels go from those of the first modality to
those of the second, and back; else from the first modality of the training pairs to the second of the test pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.alignment.baselines import cca_space, links_vectors, ridge_space
from scmbert_jax.evaluation.alignment.result import AlignmentRow, score_rows
from scmbert_jax.evaluation.data.model_vectors import EmbeddedModels
from scmbert_jax.tasks.label_transfer import METHODS, transfer_labels
from scmbert_jax.tasks.modality_cells import ModalityCells, fit_projection
from scmbert_jax.tasks.pseudo_pairs import match_unpaired

Array = np.ndarray

FEWEST_CELLS = 30
TRAIN_FRACTION = 0.8


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
        task = _Transfer(labelled, asked, sides[source].take(bridge[source]), sides[target].take(bridge[target]))
        rows += task.rows(trained, num_seeds, baselines, say)
    return rows


def is_mosaic(first: ModalityCells, second: ModalityCells) -> bool:
    """Whether each modality has technical batches that the other lacks, with enough cells to carry labels between."""
    return min(part.sum() for part in _lone_cells(first, second)) >= FEWEST_CELLS


def _lone_cells(first: ModalityCells, second: ModalityCells) -> list[Array]:
    """bool [n], [m]: cells of technical batches that have that modality alone."""
    order = ((first, second), (second, first))
    return [~np.isin(side.technical_batches, other.technical_batches) for side, other in order]


class _Transfer:
    """Labels of `labelled` for `asked`; `bridge_*`: paired cells, row i of both the same."""

    def __init__(
        self, labelled: ModalityCells, asked: ModalityCells, bridge_labelled: ModalityCells, bridge_asked: ModalityCells
    ):
        self._labelled, self._asked = labelled, asked
        self._bridge = (bridge_labelled, bridge_asked)
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
        for method, uses, scores in self._methods() if baselines else ():
            say(f"{self.direction}: {method}")
            whole = scores(None)
            rows += score_rows(
                self.direction, method, uses, whole, [scores(s) for s in range(num_seeds)], len(self._truth)
            )
        for method, embedded in trained.items():
            seeds = [
                self._from_vectors(a, self._labelled.cell_types, b)
                for a, b in embedded.vectors(self._labelled, self._asked)
            ]
            rows += score_rows(self.direction, method, embedded.uses(), None, seeds, len(self._truth))
        return rows

    def _methods(self) -> list[tuple[str, str, Callable[[int | None], dict[str, float]]]]:
        labels = self._labelled.cell_types

        def rows_of(number: int, seed: int | None, salt: int) -> Array:
            if seed is None:
                return np.arange(number)
            rng = np.random.default_rng([seed, salt])
            return np.sort(rng.choice(number, max(2, round(TRAIN_FRACTION * number)), replace=False))

        def bridged(build: Callable) -> Callable[[int | None], dict[str, float]]:
            def scores(seed: int | None) -> dict[str, float]:
                chosen = rows_of(len(self._bridge[0]), seed, 0)
                space = build(self._bridge[0].take(chosen), self._bridge[1].take(chosen))
                return self._from_vectors(space.embed_first(self._labelled), labels, space.embed_second(self._asked))

            return scores

        def pseudo(seed: int | None) -> dict[str, float]:
            parts = []
            for salt, (own, bridge) in enumerate(
                ((self._labelled, self._bridge[0]), (self._asked, self._bridge[1])), start=1
            ):
                parts.append(_together(own, bridge.take(rows_of(len(bridge), seed, salt))))
            space = match_unpaired(*parts).space
            assert space is not None
            return self._from_vectors(space.embed_first(self._labelled), labels, space.embed_second(self._asked))

        def links(seed: int | None) -> dict[str, float]:
            number = len(self._labelled), len(self._asked)
            a, b = links_vectors(self._labelled, self._asked, rows_of(number[0], seed, 3), rows_of(number[1], seed, 4))
            return self._from_vectors(a, labels, b)

        def ceiling(seed: int | None) -> dict[str, float]:
            known = self._bridge[1].take(rows_of(len(self._bridge[1]), seed, 5))
            projection = fit_projection(known, 50)
            return self._from_vectors(projection(known.values), known.cell_types, projection(self._asked.values))

        def majority(seed: int | None) -> dict[str, float]:
            known = labels[labels != ""]
            names, counts = np.unique(known[rows_of(len(known), seed, 6)], return_counts=True)
            most = np.full(len(self._truth), names[counts.argmax()])
            return {f"{kind} ({method})": v for method in METHODS for kind, v in self._scores(most).items()}

        methods = [
            ("CCA", "pairs", bridged(cca_space)),
            ("SVD + ridge", "pairs", bridged(ridge_space)),
            ("pseudo-pairs", "links, no pairs", pseudo),
            ("links only", "links, no pairs", links),
            ("majority", "labels", majority),
        ]
        if len(np.setdiff1d(self._bridge[1].cell_types, [""])) > 1:
            methods.append(("labels of the other modality (ceiling)", "labels of paired cells", ceiling))
        return methods

    def _from_vectors(self, a: Array, labels: Array, b: Array) -> dict[str, float]:
        found: dict[str, float] = {}
        for method in METHODS:
            predicted = transfer_labels(a, labels, b, method=method).labels
            found |= {f"{kind} ({method})": value for kind, value in self._scores(predicted).items()}
        return found

    def _scores(self, predicted: Sequence[str] | Array) -> dict[str, float]:
        codes = np.searchsorted(self._classes, np.asarray(predicted).astype(str))
        return {
            "accuracy": float(metrics.accuracy(self._truth, codes)),
            "macro-F1": float(metrics.macro_f1(self._truth, codes, len(self._classes))),
        }


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
