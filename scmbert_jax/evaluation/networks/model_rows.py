"""What a trained model says of a pair: how alike its rows of the two genes are, and its link decoder if it has one.

A model that was trained on a network has heard along its edges, in every row. So no pair tests, for any method, that a
model has seen: no edge of its network that trained it or chose among its checkpoints, no reverse of such an edge, and,
where its training held a part of the pairs out, none but those of that part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.networks.parts import parts_of_pairs
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.networks.baselines import NetworkMethod
from scmbert_jax.evaluation.networks.pairs import Pairs
from scmbert_jax.feature_layout import EDGE_KINDS
from scmbert_jax.models.link_decoders import EDGE
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import feature_table

Array = np.ndarray

_TEST = 2


@dataclass(frozen=True)
class ModelRows:
    """Attributes:
    methods: cosine of gene rows and, where the model has one, its link decoder.
    seen: bool [R, G], pairs that may not test.
    note: a sentence on what the model knows of the pairs.
    """

    methods: list[NetworkMethod]
    seen: Array
    note: str


def model_rows(models: Mapping[str, PretrainedModel], pairs: Pairs, organism: str) -> list[ModelRows]:
    """Of each model, by the name of its folder. Raises InputError for one of another species."""
    return [_rows_of(name, model, pairs, organism) for name, model in models.items()]


def _rows_of(name: str, model: PretrainedModel, pairs: Pairs, organism: str) -> ModelRows:
    space = model.feature_space
    genes = space.modalities.get("rna")
    if genes is None or genes.organism != organism:
        raise InputError(
            f"{name}: a model of {genes.organism if genes is not None else 'no'} genes, and the network is of "
            f"{organism}; give one of the same species, or --organism"
        )
    first, _ = space.slices["rna"]
    place = {gene: number for number, gene in enumerate(genes.ids.tolist())}
    rows = np.array([place.get(gene, -1) for gene in pairs.genes.tolist()])
    regulators = rows[pairs.gene_of_regulators]
    known = (regulators >= 0)[:, None] & (rows >= 0)[None]
    if not known.any():
        raise InputError(
            f"{name}: none of the {len(pairs.genes):,} genes of the pairs is a gene of the model; the pairs have "
            f"{', '.join(pairs.genes[:3].tolist())}, the model {', '.join(genes.ids[:3].tolist())}"
        )
    table = feature_table(model.definition, model.params, model.constants)
    scores = {f"cosine of gene rows: {name}": _cosine(np.asarray(table)[first:][: len(genes.ids)], regulators, rows)}
    if model.config.objectives.link_prediction.weight > 0:
        at = jnp.asarray(np.maximum(regulators, 0) + first), jnp.asarray(np.maximum(rows, 0) + first)
        logits = _link_logits(model.definition, model.params, model.constants, table, *at)
        scores[f"link decoder: {name}"] = np.asarray(logits, np.float64)
    methods = []
    for row, own in scores.items():
        # Of genes that the model does not know it says nothing: the middle of what it says.
        filled = np.where(known, own, np.median(own[known]))
        methods.append(NetworkMethod(row, "", lambda *_, filled=filled: filled))
    seen, said = _seen(model, pairs, regulators + first, rows + first, known)
    knows = f"{name}: knows {int((rows >= 0).sum()):,} of {len(rows):,} genes; pairs of others have its middle score"
    return ModelRows(methods, seen, f"{knows}{said}.")


def _cosine(table: Array, regulators: Array, genes: Array) -> Array:
    """float64 [R, G] of rows less their mean, so that what all genes share does not count."""
    centred = table.astype(np.float64) - table.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return unit[regulators] @ unit[genes].T


@partial(jax.jit, static_argnums=0)
def _link_logits(
    definition: ModelDefinition, params: Any, constants: Any, table: jax.Array, regulators: jax.Array, genes: jax.Array
) -> jax.Array:
    return definition.merge(params, constants).link_head.of_all_pairs(table[regulators], table[genes])[..., EDGE]


def _seen(model: PretrainedModel, pairs: Pairs, regulators: Array, genes: Array, known: Array) -> tuple[Array, str]:
    """(bool [R, G], what to say of it); `regulators` int [R] and `genes` int [G]: rows of the feature table."""
    network = model.definition.layout.network
    if network is None:
        return np.zeros(pairs.is_edge.shape, bool), ""
    used = (network.kind == EDGE_KINDS.index("regulates")) & (network.part != _TEST)
    source, target = network.source[used].astype(np.int64), network.target[used].astype(np.int64)
    codes = np.concatenate([source << 32 | target, target << 32 | source])  # and the reverses
    seen = known & np.isin(regulators.astype(np.int64)[:, None] << 32 | genes[None], codes)
    split, seed = model.config.model.network_split, model.config.seed
    edges_seen = int((seen & pairs.is_edge).sum())
    if split != "none":
        seen |= parts_of_pairs(pairs.regulators, pairs.genes, split, seed) != _TEST
    left = f"; it was trained on {edges_seen:,} of the {int(pairs.is_edge.sum()):,} edges, or their reverses"
    return seen, f"{left}, and no method is tested on the {int(seen.sum()):,} pairs that it has seen (split {split})"
