"""The table of evaluators, and what a run hands to its loop."""

import sys
from collections.abc import Callable

from jax.sharding import Mesh

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.validation_data import ValidationData
from data_pipelines.sampling.mixture import Mixture
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluators import lift, links, loss, masked, matching, probe, translation
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.validation import Evaluator, Validation

EVALUATORS: dict[str, Callable[[EvaluatorInputs], Evaluator]] = {
    "loss": loss.make,
    "lift": lift.make,
    "masked": masked.make,
    "probe": probe.make,
    "translation": translation.make,
    "matching": matching.make,
    "links": links.make,
}


def validation_of(config: ExperimentConfig, training: BatchReader, mixture: Mixture | None) -> Validation | None:
    """What a run is judged by; None where no cell is held out.

    Args:
      training: the reader of the run.
      mixture: the held-out cells (`held_out_mixture`).

    Raises:
      ConfigError: an evaluator that there is not, evaluations without held-out cells.
    """
    asked = config.validation.schedules()
    for name in asked:
        if name not in EVALUATORS:
            raise ConfigError(f"validation.evaluators names {name!r}; there are {', '.join(EVALUATORS)}.")
    if mixture is None:
        if any(asked.values()) or config.validation.best:
            raise ConfigError(
                "validation asks for evaluations, but no cell is held out: give --held-out cell=0.05 (or donor=0.2, "
                "dataset=NAME), --validation CORPUS, or leave them out: --validation.every 0 --validation.best ''."
            )
        return None
    data = ValidationData(mixture, training, config.validation.cells)

    def make(model: ModelDefinition, mesh: Mesh) -> dict[str, Evaluator]:
        inputs, made = EvaluatorInputs(model, mesh, data), {}
        for name in asked:
            try:
                made[name] = EVALUATORS[name](inputs)
            except CannotEvaluate as reason:
                if config.validation.best.startswith(f"{name}/"):
                    raise ConfigError(f"validation.best is {config.validation.best!r}, but {reason}") from reason
                if training.process_index == 0:
                    print(f"{name} is not evaluated: {reason}", file=sys.stderr, flush=True)
        return made

    return Validation(data.identity, make)
