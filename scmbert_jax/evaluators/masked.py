"""`masked`: what masked values of the held-out cells cost, in bits per token, beside what they cost without a model.

MODALITY/bits                    predicted from each token's state (of masked_modeling)
MODALITY/bits_cls                from `[CLS]` alone
MODALITY/bits_profile            by the decoder of whole_profile
MODALITY/bits_linear_path_alone  without the transformer
MODALITY/bits_marginal, bits_rate, bits_pca
                                 each feature alone, times the cell's rate, PCA with a ridge: fitted on training cells
                                 when first asked for, and then the same at every step (MASKED_BASELINES)
MODALITY/level/LEVEL/...         the same of the tokens of one expression level

`scmbert evaluate pretraining` says the same of a trained model, with intervals.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from scmbert_jax.evaluation.pretraining.masked_cells import METRIC_NAMES, all_bits, fit_baselines
from scmbert_jax.evaluation.pretraining.masked_values import ScoredTokens, by_modality, model_methods, score_tokens
from scmbert_jax.evaluators.held_out_losses import fixed_key
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs


class _Masked:
    def __init__(self, inputs: EvaluatorInputs):
        model = inputs.model
        if not model_methods(model.config):
            raise CannotEvaluate("nothing that this run trains says how likely a masked value is")
        self._inputs = inputs
        self._beside: dict[str, dict[str, np.ndarray]] | None = None

        def scores(params: Any, constants: Any, batch: Any) -> ScoredTokens:
            return score_tokens(model, params, constants, batch, fixed_key(model.config.seed))

        self._scores = inputs.over_cells(scores)

    def __call__(self, step: int, params: Any, constants: Any) -> Mapping[str, float]:
        config, layout, data = self._inputs.config, self._inputs.model.layout, self._inputs.data
        scored = by_modality(self._scores(params, constants), config, layout)
        if self._beside is None:  # tokens and masks are the same at every step
            # What follows is each process's own: the mesh of the run would have them wait for each other.
            with jax.set_mesh(Mesh(np.array(jax.local_devices()[:1]), ("alone",))):
                baselines = fit_baselines(config, layout, data.training_cells, config.seed)
                self._beside = baselines.nll({name: own for name, (own, _) in scored.items()}, data.num_cells)
        found: dict[str, float] = {}
        for own in all_bits(config, scored, self._beside, np.arange(data.num_cells)):
            for method in own.bits:
                found[f"{own.modality}/{METRIC_NAMES[method]}"] = own.mean(method)
                for level in own.used_levels:
                    name = f"{own.modality}/level/{own.levels[level]}/{METRIC_NAMES[method]}"
                    found[name] = own.mean(method, level)
        return found


def make(inputs: EvaluatorInputs) -> _Masked:
    return _Masked(inputs)
