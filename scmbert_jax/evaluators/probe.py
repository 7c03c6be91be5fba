"""`probe`: can cell types of held-out cells be read from their embeddings?

Half of the labelled cells, by a hash of their number, fit a linear probe (`evaluation.probe.linear_probe`); the others
are scored. Beside it stands a PCA of the same cells, scaled by one number and as wide as the embedding.

macro_f1, accuracy                        of the embedding
macro_f1_linear_path_alone, accuracy_...  of the embedding without the transformer, of a model that has a linear path
pca_macro_f1, pca_accuracy                of the PCA (LSI for accessibility) of the modality that most of the cells have
cells                                     that were scored: labelled, with that modality
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from data_pipelines.counter_hash import Purpose, fold_array
from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.baselines import pca_embedding
from scmbert_jax.evaluation.probe.probe import FEWEST_CELLS, linear_probe
from scmbert_jax.evaluation.probe.result import ProbeSettings
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs
from scmbert_jax.scmbert import ScMbert


class _Probe:
    def __init__(self, inputs: EvaluatorInputs, labels: np.ndarray):
        self._inputs, self._width = inputs, inputs.config.model.embed_dim
        self._embed = inputs.over_whole_cells(ScMbert.cell_embedding)
        counts = inputs.data.whole_cells.modalities
        self._modality = max(counts, key=lambda name: len(counts[name].cells))
        known = np.array([label is not None for label in labels])
        measured = counts[self._modality].cells
        self._cells = measured[known[measured] & (counts[self._modality].library_size > 0)]
        _, self._codes = np.unique(labels[self._cells].astype(str), return_inverse=True)
        self._fitted = fold_array(Purpose.HALVES, self._cells) % np.uint64(2) == 0
        technical_batches = inputs.data.labels("technical_batch")
        self._technical_batches = (
            np.zeros(len(self._cells), int) if technical_batches is None else technical_batches[self._cells]
        ).astype(str)
        sizes = np.unique(self._codes[self._fitted], return_counts=True)[1]
        if (sizes >= FEWEST_CELLS).sum() < 2 or self._fitted.all():
            raise CannotEvaluate(
                f"a probe is fitted on half of the held-out cells, and needs {FEWEST_CELLS} of two cell types there"
            )

    def __call__(self, step: int, params: Any, constants: Any) -> Mapping[str, float]:
        found = {"cells": float(np.count_nonzero(~self._fitted)), **self._of_pca}
        for ending, embed in self._embed.items():
            scores = self._score(embed(params, constants)[self._cells])
            found |= {f"{metric}{ending}": value for metric, value in scores.items()}
        return found

    @cached_property
    def _of_pca(self) -> dict[str, float]:
        own = self._inputs.data.whole_cells.modalities[self._modality]
        counts = own.counts[np.searchsorted(own.cells, self._cells)]
        scores = self._score(pca_embedding(counts, self._modality, self._width))
        return {f"pca_{metric}": value for metric, value in scores.items()}

    def _score(self, vectors: np.ndarray) -> dict[str, float]:
        """Of float [cells, d]."""
        fitted, codes = self._fitted, self._codes
        with threadpool_limits(1):  # one thread makes the sums repeatable
            predicted = linear_probe(
                vectors[fitted].astype(np.float64),
                codes[fitted],
                self._technical_batches[fitted],
                vectors[~fitted].astype(np.float64),
                ProbeSettings(),
                np.random.default_rng(self._inputs.config.seed),
            ).codes
        truth = codes[~fitted]
        return {
            "macro_f1": float(metrics.macro_f1(truth, predicted, int(codes.max()) + 1)),
            "accuracy": float(metrics.accuracy(truth, predicted)),
        }


def make(inputs: EvaluatorInputs) -> _Probe:
    labels = inputs.data.labels("cell_type")
    if labels is None:
        raise CannotEvaluate("no cell type is known of the held-out cells")
    return _Probe(inputs, labels)
