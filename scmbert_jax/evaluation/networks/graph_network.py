"""A graph network that learns edges: messages over prior networks and training edges, trained to tell edges from pairs.

It has three rows: with the graph; without it, each gene by its own features; and over a graph whose edges were shuffled
with all degrees kept. What the first has beyond the last is what the wiring taught; the rest is degree.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data_pipelines.networks.shuffled_edges import shuffled_targets
from scmbert_jax.evaluation.networks.baselines import Given, NetworkMethod
from scmbert_jax.evaluation.networks.pairs import NetworkSplit, Pairs
from scmbert_jax.evaluation.networks.scores import auprc
from scmbert_jax.models.link_decoders import EDGE, LINK_DECODERS
from scmbert_jax.models.parameters import filled, weight
from scmbert_jax.models.regulatory_graph import GraphEdges, RegulatoryGraph, graph_edges, without
from scmbert_jax.random_keys import init_key

Array = np.ndarray
Arm = Literal["graph", "no graph", "shuffled graph"]

_DIM, _LAYERS = 64, 2
_STEPS, _EDGES_A_STEP, _VALIDATE_EVERY = 300, 256, 25
_LEARNING_RATE, _WEIGHT_DECAY = 3e-3, 1e-2
_COMPONENTS = 32  # of the genes' expression
_PRIOR, _LABELLED = 0, 1  # kinds of edges


class _Graph(NamedTuple):
    """Attributes:
    features: float32 [N, K] of the nodes, the G genes of the pairs first.
    edges: prior edges, then those of the training pairs.
    labelled: int64 [E'], the places of the latter; of_regulators int64 [R], of `features`.
    """

    features: Array
    edges: GraphEdges
    labelled: Array
    of_regulators: Array


class _Network(nnx.Module):
    def __init__(self, num_nodes: int, num_features: int, rngs: nnx.Rngs):
        self.into = weight(rngs, (num_features, _DIM), num_features, (None, None))
        # From zero: a gene of no training pair stays what its features and its neighbours say.
        self.own = filled(0.0, (num_nodes, _DIM), (None, None), "embedding")
        self.graph = RegulatoryGraph(_DIM, 2, _LAYERS, rngs)
        self.decoder = LINK_DECODERS["mlp"](_DIM, rngs)

    def rows(self, features: jax.Array, edges: GraphEdges) -> jax.Array:
        return self.graph(features @ self.into[...] + self.own[...], edges)


def learned_graph(pairs: Pairs, split: NetworkSplit, given: Given, seed: int, arm: Arm = "graph") -> Array:
    """Scores float [R, G] of the step that does best on the pairs that choose (AUPRC)."""
    graph = _graph_of(pairs, split, given, arm, seed)
    definition, params = nnx.split(
        _Network(len(graph.features), graph.features.shape[1], nnx.Rngs(params=init_key(seed)))
    )
    optimizer = optax.adamw(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS), weight_decay=_WEIGHT_DECAY)
    state = optimizer.init(params)
    features, regulators = jnp.asarray(graph.features), jnp.asarray(graph.of_regulators)
    edges_at, others_at = (np.argwhere(split.train & own) for own in (pairs.is_edge, ~pairs.is_edge))
    rng = np.random.default_rng(seed)
    best, best_scores = -1.0, np.zeros(pairs.is_edge.shape)
    for step in range(1, _STEPS + 1):
        positive = rng.integers(0, len(edges_at), _EDGES_A_STEP)
        chosen = np.concatenate([edges_at[positive], others_at[rng.integers(0, len(others_at), _EDGES_A_STEP)]])
        params, state = _step(
            definition,
            optimizer,
            params,
            state,
            features,
            without(graph.edges, jnp.asarray(graph.labelled[positive], jnp.int32)),
            regulators[chosen[:, 0]],
            jnp.asarray(chosen[:, 1]),
        )
        if step % _VALIDATE_EVERY == 0:
            scores = np.asarray(_all_scores(definition, params, features, graph.edges, regulators, len(pairs.genes)))
            found = auprc(scores[split.validation], pairs.is_edge[split.validation])
            if found > best:
                best, best_scores = found, scores.astype(np.float64)
    return best_scores


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    definition: Any,
    optimizer: optax.GradientTransformation,
    params: Any,
    state: Any,
    features: jax.Array,
    edges: GraphEdges,
    source: jax.Array,
    target: jax.Array,
) -> tuple[Any, Any]:
    """The first half of the pairs are edges, the others none."""

    def loss(params: Any) -> jax.Array:
        network = nnx.merge(definition, params)
        rows = network.rows(features, edges)
        logits = network.decoder(rows[source], rows[target])[..., EDGE]
        is_edge = jnp.arange(len(logits)) < len(logits) // 2
        return optax.sigmoid_binary_cross_entropy(logits, is_edge.astype(jnp.float32)).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


@partial(jax.jit, static_argnums=(0, 5))
def _all_scores(
    definition: Any, params: Any, features: jax.Array, edges: GraphEdges, regulators: jax.Array, num_genes: int
) -> jax.Array:
    network = nnx.merge(definition, params)
    rows = network.rows(features, edges)
    genes = rows[:num_genes]

    def of_regulator(own: jax.Array) -> jax.Array:
        return network.decoder(jnp.broadcast_to(own, genes.shape), genes)[..., EDGE]

    return jax.lax.map(of_regulator, rows[regulators])


def _graph_of(pairs: Pairs, split: NetworkSplit, given: Given, arm: Arm, seed: int) -> _Graph:
    of_regulators = pairs.gene_of_regulators
    number = len(pairs.genes)
    parts: list[Array] = []
    source = target = np.zeros(0, np.int64)
    if given.prior is not None:
        # Genes of the prior that are in no pair come after those of the pairs.
        gene_of, known = np.full(given.prior.edges.shape[0], -1), given.prior.genes.tocoo()
        gene_of[known.col] = known.row
        others = gene_of < 0
        gene_of[others] = number + np.arange(others.sum())
        number += int(others.sum())
        prior = given.prior.edges.tocoo()
        source, target = gene_of[prior.row], gene_of[prior.col]
        parts += [np.log1p(np.bincount(own, minlength=number)) for own in (source, target)]
    if given.expression is not None:
        left, size, _ = np.linalg.svd(given.centred.T, full_matrices=False)
        own = (left * size)[:, :_COMPONENTS]
        scaled = own / max(float(own.std()), 1e-12)
        parts += list(np.pad(scaled, ((0, number - len(own)), (0, 0))).T)
        parts.append(np.pad(given.expression.mean(0), (0, number - len(own))))
    parts.append(np.pad(pairs.is_listed.astype(np.float64), (0, number - len(pairs.genes))))
    columns = np.stack([np.ones(number), *parts], axis=1).astype(np.float32)
    rows, columns_of = np.nonzero(pairs.is_edge & split.train)
    first = len(source)
    source, target = np.concatenate([source, of_regulators[rows]]), np.concatenate([target, columns_of])
    kind = np.repeat([_PRIOR, _LABELLED], [first, len(rows)])
    if arm == "shuffled graph":
        target = shuffled_targets(source, target, kind, seed)
    weights = np.full(len(source), float(arm != "no graph"))
    padded = first + int(pairs.is_edge.sum())  # the same in all splits, so that one program serves them all
    edges = graph_edges(source, target, kind, weights, padded)
    return _Graph(columns, edges, first + np.arange(len(rows)), of_regulators)


GRAPH_NETWORKS = [
    NetworkMethod("graph network", "prior or cells", learned_graph, learns=True),
    *(
        NetworkMethod(f"graph network, {arm}", "prior or cells", partial(learned_graph, arm=arm), learns=True)
        for arm in ("no graph", "shuffled graph")
    ),
]
