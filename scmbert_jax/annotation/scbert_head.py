"""`--method scbert`: a model gets the head that scBERT is fine-tuned with, whose vectors stand for its cells.

The last layer of that head is the linear head that every method has. The others are part of the model
(models/gene_head.py), so the fitted annotator's folder holds a model with them. Published: the 5th of 6 blocks, the
final norm and the head learn at 1e-4; `TrainedPart` trains the same here.
"""

from dataclasses import replace
from functools import lru_cache

import jax

from scmbert_jax.errors import ConfigError
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.random_keys import init_key
from scmbert_jax.scmbert import ModelDefinition

WIDTHS = (512, 128)


def with_gene_head(model: PretrainedModel, seed: int) -> PretrainedModel:
    """The model with a head of random numbers; as it is where it has one.

    Raises `ConfigError` for a model that reads more than RNA, or has a linear path, which the head would not see.
    """
    shape, others = model.config.model, [name for name in model.config.modalities.in_use() if name != "rna"]
    if shape.gene_head:
        return model
    if others or shape.linear_path:
        has = f"it reads {', '.join(others)}, too" if others else "it has a linear path, which that head does not see"
        raise ConfigError(
            "method scbert: for models of RNA alone without a linear path, as the experiment scbert trains; of this "
            f"one, {has}. Give --method probe, last:N, lora:R or full."
        )
    definition = _with_head(model.definition)
    head = jax.jit(lambda key: definition.init(key)["gene_head"])(init_key(seed))
    params = {**model.params, "gene_head": head}
    return replace(model, config=definition.config, definition=definition, params=params)


@lru_cache(maxsize=4)  # one definition, so that what is compiled for a fit serves the next
def _with_head(definition: ModelDefinition) -> ModelDefinition:
    config = definition.config
    return ModelDefinition(replace(config, model=replace(config.model, gene_head=WIDTHS)), definition.layout)
