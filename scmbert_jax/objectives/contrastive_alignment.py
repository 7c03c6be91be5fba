"""Symmetric InfoNCE between the modalities of a cell (as CLIP), with what single cells need besides.

Each modality is encoded alone; a cell's own partner must be nearer than those of other cells. Those others are, where
technical batches are known, of the cell's own batch (as MatchCLOT): across batches the batch effect
would be the answer. Negatives are global: the code sees the whole batch, and XLA gathers what a mesh has spread. The
same cell twice in a batch is no negative of itself.

The loss compares cells with each other, so microbatches would change it. Instead, cells are encoded in
`train.num_microbatches` parts whose activations are not kept but computed again in the backward pass (gradient
caching): the memory of a part, the loss and the gradient of the whole.
"""

from itertools import combinations

import jax
import jax.numpy as jnp

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.scmbert import ScMbert
from scmbert_jax.models.token_sequence import pack_tokens, subsample_tokens
from scmbert_jax.objectives.base import LossSum, row_keys

# Links compared with each other in a step; all of them where there are fewer.
MAX_LINKS = 512


class ContrastiveAlignment:
    """The objective; see `Objective` for the contract. Anchors are rows that were measured in both modalities."""

    needs_whole_batch = True

    def __init__(self, config: ExperimentConfig):
        self.config = config.objectives.contrastive_alignment
        self.modalities = tuple(config.modalities.in_use())
        self.num_parts = config.train.num_microbatches

    def loss(self, model: ScMbert, feature_table: jax.Array, batch: CellBatch, key: jax.Array) -> LossSum:
        keys = row_keys(key, batch.row)
        has = {name: batch.modalities[name].lengths > 0 for name in self.modalities}
        embedded = {name: self._embed(model, feature_table, batch, keys, name) for name in self.modalities}
        comparable = self._comparable(batch)
        temperature = model.alignment_head.temperature()
        total, weight = jnp.zeros(()), jnp.zeros(())
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        for first, second in combinations(self.modalities, 2):
            anchors = (has[first] & has[second]).astype(jnp.float32)
            logits = embedded[first] @ embedded[second].T / temperature  # [B, B]
            there, right = _info_nce(logits, comparable & has[second])
            back, _ = _info_nce(logits.T, comparable & has[first])
            number = anchors.sum()
            mean_loss = 0.5 * ((there * anchors).sum() + (back * anchors).sum())
            total, weight = total + mean_loss, weight + number
            metrics[f"{first}_{second}_info_nce"] = (mean_loss, number)
            metrics[f"{first}_{second}_top1"] = ((right * anchors).sum(), number)
        metrics["temperature"] = (temperature, jnp.ones(()))
        if self.config.link_weight > 0:
            for name, links in model.table.links.items():
                loss, number = _link_loss(feature_table, links[...], jax.random.fold_in(key, 1), temperature)
                total, weight = total + self.config.link_weight * loss, weight + self.config.link_weight * number
                metrics[f"{name}_links_info_nce"] = (loss, number)
        return LossSum(total, weight, metrics)

    def _embed(self, model: ScMbert, table: jax.Array, batch: CellBatch, keys: jax.Array, name: str) -> jax.Array:
        """float32 [B, P] of length 1, from modality `name` alone."""

        def of_part(part: tuple[CellBatch, jax.Array]) -> jax.Array:
            cells, part_keys = part
            tokens = subsample_tokens(pack_tokens(cells, (name,)), self.config.source_fraction, part_keys)
            return model.aligned(table, tokens, cells.covariates)

        if self.num_parts == 1:
            return of_part((batch, keys))

        # Strided, as microbatches are: every device keeps its own rows.
        def strided(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(x.shape[0] // self.num_parts, self.num_parts, *x.shape[1:]), 0, 1)

        parts = jax.lax.map(jax.checkpoint(of_part), jax.tree.map(strided, (batch, keys)))  # [n, B / n, P]
        return jnp.swapaxes(parts, 0, 1).reshape(-1, parts.shape[-1])

    def _comparable(self, batch: CellBatch) -> jax.Array:
        """bool [B, B]: which cells a cell is told apart from, and itself."""
        number = batch.cell_index.shape[0]
        itself = jnp.eye(number, dtype=bool)
        comparable = batch.cell_index[:, None] != batch.cell_index[None, :]
        if self.config.negatives != "all":
            technical_batch = batch.covariates.get("technical_batch")
            if technical_batch is not None:
                comparable &= technical_batch[:, None] == technical_batch[None, :]
            elif self.config.negatives == "technical_batch":
                raise ConfigError(
                    "objectives.contrastive_alignment.negatives is 'technical_batch', but the corpus has no "
                    "technical_batch. Build it with --obs-field technical_batch=COLUMN, or set negatives to all."
                )
        return comparable | itself


def _info_nce(logits: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax at the diagonal of logits [B, B] over `candidates`, and whether it is the largest; float32 [B] each.

    Rows whose own partner is no candidate get 0.
    """
    diagonal = jnp.diagonal(candidates)
    masked = jnp.where(candidates, logits, -jnp.inf)
    # A row without any candidate must not make NaN, not even one that is masked later (its gradient would be NaN).
    masked = jnp.where(diagonal[:, None], masked, 0.0)
    own = jnp.diagonal(masked)
    loss = jax.nn.logsumexp(masked, axis=1) - own
    return jnp.where(diagonal, loss, 0.0), (diagonal & (own >= masked.max(axis=1))).astype(jnp.float32)


def _link_loss(
    table: jax.Array, links: jax.Array, key: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE between feature rows and their linked genes' rows: (sum, number of links). links int32 [2, E]."""
    if links.shape[1] > MAX_LINKS:
        links = links[:, jax.random.permutation(key, links.shape[1])[:MAX_LINKS]]
    rows, genes = links
    unit = table * jax.lax.rsqrt(jnp.sum(table * table, axis=1, keepdims=True) + 1e-12)
    logits = unit[rows] @ unit[genes].T / temperature
    # A feature's other genes are no negatives of it, nor is its own gene where it stands twice.
    same = (rows[:, None] == rows[None, :]) | (genes[:, None] == genes[None, :])
    loss, _ = _info_nce(logits, ~same | jnp.eye(len(rows), dtype=bool))
    return loss.sum(), jnp.asarray(float(links.shape[1]))
