"""Message passing against a loop over edges, and edges that must pass nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scmbert_jax.models.regulatory_graph import RegulatoryGraph, graph_edges, without

NODES, DIM, KINDS = 12, 8, 2


@pytest.fixture
def lists():
    rng = np.random.default_rng(0)
    codes = rng.choice(NODES * NODES, 30, replace=False)
    return codes // NODES, codes % NODES, rng.integers(0, KINDS, 30), rng.uniform(0.2, 1, 30)


@pytest.fixture
def rows():
    return jax.random.normal(jax.random.key(1), (NODES, DIM))


def network(aggregation="mean", num_layers=1):
    return RegulatoryGraph(DIM, KINDS, num_layers, nnx.Rngs(params=jax.random.key(0)), aggregation, num_heads=2)


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def by_loop(graph, rows, source, target, kind, weight):
    layer, h = graph.layers[0], np.asarray(rows, np.float64)
    x, matrices = norm(h), np.asarray(layer.of_kinds[...], np.float64)
    both = [*zip(source, target, kind, weight, strict=True), *zip(target, source, kind + KINDS, weight, strict=True)]
    gathered = np.zeros_like(h)
    for node in range(NODES):
        for own in range(2 * KINDS):
            mine = [(x[s] @ matrices[own], w) for s, t, k, w in both if (t, k) == (node, own)]
            if not mine:
                continue
            messages = np.stack([message for message, _ in mine]).reshape(len(mine), 2, DIM // 2)
            share = np.repeat(np.array([w for _, w in mine])[:, None], 2, 1)
            if graph.layers[0].aggregation == "attention":
                asks, answers = (np.asarray(v[...][own], np.float64) for v in (layer.asks, layer.answers))
                me = (x[node] @ matrices[own]).reshape(2, DIM // 2)
                score = (messages * asks).sum(-1) + (me * answers).sum(-1)
                share = share * np.exp(np.where(score > 0, score, 0.2 * score))
            gathered[node] += ((share / share.sum(0))[..., None] * messages).sum(0).reshape(DIM)
    return norm(h + np.asarray(jax.nn.gelu(jnp.asarray(x @ np.asarray(layer.own[...]) + gathered))))


@pytest.mark.parametrize("aggregation", ["mean", "attention"])
@pytest.mark.parametrize("padded_to", [0, 50])
def test_a_layer_is_that_of_a_loop_over_edges(aggregation, padded_to, lists, rows):
    graph = network(aggregation)
    found = graph(rows, graph_edges(*lists, padded_to))
    np.testing.assert_allclose(found, by_loop(graph, rows, *lists), atol=2e-5)


@pytest.mark.parametrize("aggregation", ["mean", "attention"])
def test_an_edge_that_is_predicted_and_its_reverse_pass_nothing(aggregation, rows):
    source, target, kind = np.array([0, 1, 2, 1]), np.array([1, 0, 3, 4]), np.array([0, 0, 1, 0])
    edges = graph_edges(source, target, kind, np.ones(4))
    assert edges.reverse.tolist() == [1, 0, -1, -1]
    hidden = without(edges, jnp.array([0, -1]))
    assert hidden.weight.tolist() == [0, 0, 1, 1]
    assert without(edges, jnp.array([2])).weight.tolist() == [1, 1, 0, 1]
    left = graph_edges(source[2:], target[2:], kind[2:], np.ones(2))
    graph = network(aggregation, 2)
    np.testing.assert_allclose(graph(rows, hidden), graph(rows, left), atol=1e-6)


def test_an_edge_of_another_kind_is_no_reverse_and_twice_of_a_kind_is_refused():
    edges = graph_edges(np.array([0, 1]), np.array([1, 0]), np.array([0, 1]), np.ones(2))
    assert edges.reverse.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="there twice"):
        graph_edges(np.array([0, 0]), np.array([1, 1]), np.array([0, 0]), np.ones(2))


def test_the_order_of_nodes_and_edges_changes_nothing(lists, rows):
    source, target, kind, weight = lists
    order, place = np.random.default_rng(1).permutation(30), np.random.default_rng(2).permutation(NODES)
    graph = network(num_layers=2)
    moved = graph(
        rows[np.argsort(place)], graph_edges(place[source][order], place[target][order], kind[order], weight[order])
    )
    np.testing.assert_allclose(moved[place], graph(rows, graph_edges(*lists)), atol=1e-5)


def test_gradients_are_finite_where_nodes_have_no_neighbours(rows):
    edges = graph_edges(np.array([0]), np.array([1]), np.array([0]), np.ones(1), 4)
    for aggregation in ("mean", "attention"):
        definition, params = nnx.split(network(aggregation))
        gradient = jax.grad(lambda own, d=definition: (nnx.merge(d, own)(rows, edges) ** 3).sum())(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
