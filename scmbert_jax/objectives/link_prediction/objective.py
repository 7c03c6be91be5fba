"""Telling edges of a network from pairs that are none, by the rows of a regulator and a gene.

The rows are those that all other objectives read, so the network shapes what a gene means to the encoder. But the table
that a step begins with has heard along the very edges that are asked about. So this objective computes one of its own,
in which neither the drawn pairs nor their reverses pass messages (the leak guard), and does not look at the other.

Draws are a function of (seed, step), the same on every device; microbatches would only repeat them. It reads no cell,
but with `context`: then cells are encoded in `train.num_microbatches` parts, by the same guarded table, and what the
encoder makes of each gene is added up over them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.flops import TokenCounts, added, encoded
from scmbert_jax.models.link_decoders import EDGE, SIGN
from scmbert_jax.objectives.base import LossSum, Model, Objective
from scmbert_jax.objectives.link_prediction.head import GeneStates, LinkHead
from scmbert_jax.parallel.table_rows import whole
from scmbert_jax.random_keys import KeyPurpose, key_for

_PRODUCTS = {"bilinear": 2, "translational": 0, "mlp": 5}  # of [D] and [D, D], per pair


class LinkPrediction(Objective):
    """The objective; see `Objective` for the contract. Its loss is per pair, and per edge of known sign."""

    needs_whole_batch = True
    reads_table = False
    shaped_by = ("objectives.link_prediction.decoder", "objectives.link_prediction.context")
    used_by = "Edges between genes: `link_head` of two rows of the feature table (docs/networks.md)."

    def __init__(self, config: ExperimentConfig):
        self.config = config.objectives.link_prediction
        self.num_parts = config.train.num_microbatches

    @staticmethod
    def heads(config: ExperimentConfig, layout: FeatureLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"link_head": LinkHead(config, layout, rngs)}

    @staticmethod
    def flops(config: ExperimentConfig, tokens: TokenCounts) -> dict[str, float]:
        own = config.objectives.link_prediction
        products = 2.0 * config.model.embed_dim**2 * _PRODUCTS[own.decoder]
        parts: list[Mapping[str, float]] = [{"heads": 2 * own.edges_per_step * products}]
        if own.context:
            parts.append(encoded(config, {"rna": tokens.lengths["rna"]}))
        return added(parts)

    def loss(self, model: Model, feature_table: jax.Array, batch: CellBatch, key: jax.Array) -> LossSum:
        drawn = model.link_head.draw(key_for(key, KeyPurpose.EDGES), self.config.edges_per_step)
        heard = key_for(key, KeyPurpose.NEIGHBOURS)
        table = whole(model.feature_table(unseen=drawn.places.reshape(-1), key=heard))
        if self.config.context:
            # In half of the steps, so that rows that know no cell are a trained case.
            known = model.link_head.in_context(table, self._gene_states(model, table, batch))
            table = jnp.where(jax.random.bernoulli(key_for(key, KeyPurpose.CONTEXT)), known, table)
        logits = model.link_head(table[drawn.source], table[drawn.target])
        edge, number = logits[:, EDGE], self.config.edges_per_step
        is_edge = (jnp.arange(2 * number) < number).astype(jnp.float32)
        edge_nll = optax.sigmoid_binary_cross_entropy(edge, is_edge).sum()
        known = (drawn.sign != 0).astype(jnp.float32)
        activates = drawn.sign > 0
        sign_nll = (known * optax.sigmoid_binary_cross_entropy(logits[:, SIGN], activates.astype(jnp.float32))).sum()
        right = (known * ((logits[:, SIGN] > 0) == activates)).sum()
        above = jnp.sign(edge[:number, None] - edge[None, number:])
        pairs, signed = jnp.asarray(2.0 * number), known.sum()
        metrics = {
            "edge_nll": (edge_nll, pairs),
            "edge_auroc": (0.5 * (above + 1.0).sum(), jnp.asarray(float(number) ** 2)),
            "sign_nll": (sign_nll, signed),
            "sign_accuracy": (right, signed),
        }
        weight = self.config.sign_weight
        return LossSum(edge_nll + weight * sign_nll, pairs + weight * signed, metrics)

    def _gene_states(self, model: Model, table: jax.Array, batch: CellBatch) -> GeneStates:
        """Of all cells, a part at a time, whose activations are computed again in the backward pass."""
        if self.num_parts == 1:
            return model.gene_states(table, batch)

        def strided(x: jax.Array) -> jax.Array:  # as microbatches are: every device keeps its own rows
            return jnp.swapaxes(x.reshape(x.shape[0] // self.num_parts, self.num_parts, *x.shape[1:]), 0, 1)

        def add(total: GeneStates, part: CellBatch) -> tuple[GeneStates, None]:
            return jax.tree.map(jnp.add, total, jax.checkpoint(model.gene_states)(table, part)), None

        start = GeneStates(jnp.zeros_like(table), jnp.zeros(len(table)))
        return jax.lax.scan(add, start, jax.tree.map(strided, batch))[0]
