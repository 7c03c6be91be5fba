"""`matching`: is a held-out cell's partner in another modality the nearest one in the aligned space?

Of each two modalities, over the held-out cells that measured both:

A+B/foscttm                    the fraction of cells that are nearer than the true partner: 0 best, 0.5 by chance
A+B/foscttm_linear_path_alone  the same without the transformer, of a model that has a linear path
A+B/cells                      how many there are
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import jax
import numpy as np

from scmbert_jax.evaluation.metrics import foscttm
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.token_sequence import CutBatch, pack_tokens
from scmbert_jax.scmbert import ScMbert


def _aligned(model: ScMbert, table: jax.Array, batch: CutBatch) -> dict[str, jax.Array]:
    return {
        name: model.aligned(table, pack_tokens(batch, (name,)), batch.covariates)
        for name in MODALITIES
        if name in batch.modalities
    }


class _Matching:
    def __init__(self, inputs: EvaluatorInputs):
        self._vectors = inputs.over_whole_cells(_aligned)
        measured = {name: own.cells[own.library_size > 0] for name, own in inputs.data.whole_cells.modalities.items()}
        both = {pair: np.intersect1d(measured[pair[0]], measured[pair[1]]) for pair in combinations(measured, 2)}
        self._pairs = {pair: cells for pair, cells in both.items() if len(cells) > 1}
        if not self._pairs:
            raise CannotEvaluate("no two of the held-out cells measured several modalities")

    def __call__(self, step: int, params: Any, constants: Any) -> Mapping[str, float]:
        found = {f"{first}+{second}/cells": float(len(cells)) for (first, second), cells in self._pairs.items()}
        for ending, of_cells in self._vectors.items():
            vectors = of_cells(params, constants)
            for (first, second), cells in self._pairs.items():
                found[f"{first}+{second}/foscttm{ending}"] = foscttm(vectors[first][cells], vectors[second][cells])
        return found


def make(inputs: EvaluatorInputs) -> _Matching:
    if inputs.config.objectives.contrastive_alignment.weight == 0:
        raise CannotEvaluate("the run does not train contrastive_alignment, so its modalities have no common space")
    return _Matching(inputs)
