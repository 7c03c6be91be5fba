"""Masked modelling of regions: their regulators and their accessibility, from the other regions and the sequence."""

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.batch import GenomeBatch
from scmbert_jax.dna_config import DnaExperiment
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.models.dna.heads import Head
from scmbert_jax.objectives.base import LossSum, Model
from scmbert_jax.objectives.sequence_region.base import DnaObjective, draw_rows
from scmbert_jax.random_keys import KeyPurpose, row_keys


class MaskedRegions(DnaObjective):
    """Squared errors of what was hidden, in standard deviations of the training regions.

    A region that is hidden counts 1, for the mean over its regulators, and `accessibility_weight`; one whose
    accessibility alone is hidden counts `accessibility_weight`.
    """

    used_by = "`open_dna_model(MODEL_DIR).model().read_regions`: states of regions, in a cell type."

    def __init__(self, config: DnaExperiment):
        self.config = config.objectives.masked_regions

    @staticmethod
    def heads(config: DnaExperiment, layout: GenomeLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        outputs = len(layout.regulators) + (1 if layout.cell_types else 0)
        return {"region_head": Head(config.model.embed_dim, outputs, rngs)}

    def loss(self, model: Model, feature_table: jax.Array, batch: GenomeBatch, key: jax.Array) -> LossSum:
        keys, number = row_keys(key, batch.row), batch.neighbours.shape[1]
        hidden = draw_rows(keys, KeyPurpose.REGIONS, number) < self.config.mask_fraction
        fraction = self.config.accessibility_fraction
        closed = draw_rows(keys, KeyPurpose.ACCESSIBILITY, number) < fraction
        found = model.read_regions(batch, keys, hidden, closed)
        hidden, closed = hidden & found.present, closed & ~hidden & found.present
        states = found.states
        if self.config.with_sequence:
            states = model.fused(model.encode(batch), found).regions
        outputs = model.region_head(states)  # float32 [B, K, T + 1]
        total, weight = jnp.zeros(()), jnp.zeros(())
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        if found.regulators is not None:
            width = found.regulators.shape[-1]
            errors = jnp.square(outputs[..., :width] - found.regulators).mean(-1)
            regulators = jnp.where(hidden, errors, 0.0).sum(), hidden.sum().astype(jnp.float32)
            metrics["regulators"] = regulators
            total, weight = total + regulators[0], weight + regulators[1]
        if found.accessibility is not None:
            asked = hidden | closed
            errors = jnp.square(outputs[..., -1] - found.accessibility)
            accessibility = jnp.where(asked, errors, 0.0).sum(), asked.sum().astype(jnp.float32)
            metrics["accessibility"] = accessibility
            of_all = self.config.accessibility_weight
            total, weight = total + of_all * accessibility[0], weight + of_all * accessibility[1]
        return LossSum(total, weight, metrics)
