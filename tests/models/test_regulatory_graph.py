"""Message passing against a loop over edges, and edges that must pass nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scmbert_jax.config import MeshConfig
from scmbert_jax.models.regulatory_graph import (
    AGGREGATIONS,
    RegulatoryGraph,
    _both_ways,
    _some_neighbours,
    dropped,
    graph_edges,
    without,
)
from scmbert_jax.parallel import edge_sums
from scmbert_jax.parallel.edge_sums import weighted_sums
from scmbert_jax.parallel.mesh import make_mesh, replicated

NODES, DIM, KINDS = 12, 8, 2


@pytest.fixture
def lists():
    rng = np.random.default_rng(0)
    codes = rng.choice(NODES * NODES, 30, replace=False)
    return codes // NODES, codes % NODES, rng.integers(0, KINDS, 30), rng.uniform(0.2, 1, 30)


@pytest.fixture
def rows():
    return jax.random.normal(jax.random.key(1), (NODES, DIM))


def network(aggregation="mean", num_layers=1, **more):
    return RegulatoryGraph(DIM, KINDS, num_layers, nnx.Rngs(params=jax.random.key(0)), aggregation, num_heads=2, **more)


@partial(jax.jit, static_argnums=0)
def _applied(definition, params, rows, edges, key):
    return nnx.merge(definition, params)(rows, edges, key)


def applied(graph, rows, edges, key=None):
    return _applied(*nnx.split(graph), rows, edges, key)


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def by_loop(graph, rows, source, target, kind, weight):
    layer, h = graph.layers[0], np.asarray(rows, np.float64)
    x, matrices = norm(h), np.asarray(layer.of_kinds[...], np.float64)
    kinds = (kind, kind + KINDS) if len(matrices) > 1 else (0 * kind, 0 * kind)
    both = [*zip(source, target, kinds[0], weight, strict=True), *zip(target, source, kinds[1], weight, strict=True)]
    gathered = np.zeros_like(h)
    for node in range(NODES):
        for own in range(len(matrices)):
            mine = [(x[s] @ matrices[own], w) for s, t, k, w in both if (t, k) == (node, own)]
            if not mine:
                continue
            messages = np.stack([message for message, _ in mine]).reshape(len(mine), 2, DIM // 2)
            share = np.repeat(np.array([w for _, w in mine])[:, None], 2, 1)
            if graph.layers[0].by_attention:
                asks, answers = (np.asarray(v[...][own], np.float64) for v in (layer.asks, layer.answers))
                me = (x[node] @ matrices[own]).reshape(2, DIM // 2)
                score = (messages * asks).sum(-1) + (me * answers).sum(-1)
                share = share * np.exp(np.where(score > 0, score, 0.2 * score))
            gathered[node] += ((share / share.sum(0))[..., None] * messages).sum(0).reshape(DIM)
    return norm(h + np.asarray(jax.nn.gelu(jnp.asarray(x @ np.asarray(layer.own[...]) + gathered))))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_layer_is_that_of_a_loop_over_edges(aggregation, lists, rows):
    graph = network(aggregation)
    found = applied(graph, rows, graph_edges(*lists, 50))
    np.testing.assert_allclose(found, by_loop(graph, rows, *lists), atol=2e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_edge_that_is_predicted_and_its_reverse_pass_nothing(aggregation, rows):
    source, target, kind = np.array([0, 1, 2, 1]), np.array([1, 0, 3, 4]), np.array([0, 0, 1, 0])
    edges = graph_edges(source, target, kind, np.ones(4))
    assert edges.reverse.tolist() == [1, 0, -1, -1]
    hidden = without(edges, jnp.array([0, -1]))
    assert hidden.weight.tolist() == [0, 0, 1, 1]
    assert without(edges, jnp.array([2])).weight.tolist() == [1, 1, 0, 1]
    left = graph_edges(source[2:], target[2:], kind[2:], np.ones(2), 4)
    graph = network(aggregation, 2)
    np.testing.assert_allclose(applied(graph, rows, hidden), applied(graph, rows, left), atol=1e-6)


def test_an_edge_of_another_kind_is_no_reverse_and_twice_of_a_kind_is_refused():
    edges = graph_edges(np.array([0, 1]), np.array([1, 0]), np.array([0, 1]), np.ones(2))
    assert edges.reverse.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="there twice"):
        graph_edges(np.array([0, 0]), np.array([1, 1]), np.array([0, 0]), np.ones(2))


def test_the_order_of_nodes_and_edges_changes_nothing(lists, rows):
    source, target, kind, weight = lists
    order, place = np.random.default_rng(1).permutation(30), np.random.default_rng(2).permutation(NODES)
    graph = network(num_layers=2)
    moved = applied(
        graph,
        rows[np.argsort(place)],
        graph_edges(place[source][order], place[target][order], kind[order], weight[order]),
    )
    np.testing.assert_allclose(moved[place], applied(graph, rows, graph_edges(*lists)), atol=1e-5)


def test_gradients_are_finite_where_nodes_have_no_neighbours(rows):
    edges = graph_edges(np.array([0]), np.array([1]), np.array([0]), np.ones(1), 4)
    for aggregation in ("sage", "attention"):
        definition, params = nnx.split(network(aggregation))
        gradient = jax.jit(jax.grad(lambda own, d=definition: (nnx.merge(d, own)(rows, edges) ** 3).sum()))(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# --- training steps: edges that are dropped, neighbours that are drawn ------------------------------------------------


@pytest.fixture
def many():
    """A list of edges with a hub that hears everybody, in both directions."""
    source = np.concatenate([np.arange(1, NODES), np.zeros(NODES - 1, int), [1, 2, 3]])
    target = np.concatenate([np.zeros(NODES - 1, int), np.arange(1, NODES), [4, 4, 4]])
    return source, target, np.arange(len(source)) % KINDS, np.ones(len(source))


def test_an_edge_is_dropped_with_its_reverse_whatever_the_padding(many):
    source, target, kind, weight = many
    edges = graph_edges(source, target, 0 * kind, weight)
    kept = np.asarray(dropped(edges, 0.5, jax.random.key(1)).weight) > 0
    reverse = np.asarray(edges.reverse)
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_array_equal(kept[reverse >= 0], kept[reverse[reverse >= 0]])
    padded = dropped(graph_edges(source, target, 0 * kind, weight, 40), 0.5, jax.random.key(1))
    np.testing.assert_array_equal(np.asarray(padded.weight)[: len(kept)] > 0, kept)


def test_sums_over_drawn_neighbours_are_right_on_average_and_exact_where_all_are_heard(many):
    edges = graph_edges(*many, 40)
    heard = _both_ways(edges, NODES, KINDS)
    is_real = jnp.arange(80) < 2 * len(many[0])
    true = jax.ops.segment_sum(heard.weight[:, None] * jnp.eye(NODES)[heard.source], heard.target, NODES)

    def drawn(key):
        some = _some_neighbours(heard, is_real, NODES, 4, key)
        assert len(some.weight) == 4 * NODES
        return jax.ops.segment_sum(some.weight[:, None] * jnp.eye(NODES)[some.source], some.target, NODES), some.weight

    sums, weights = jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(sums.mean(0), true, atol=0.25)
    assert np.abs(sums[0] - true)[0].max() > 1  # the hub of 22 heard four
    few = np.asarray(true.sum(1)) <= 4
    assert few.sum() == NODES - 2
    np.testing.assert_allclose(sums[:, few], np.broadcast_to(true[few], sums[:, few].shape), atol=1e-6)
    np.testing.assert_allclose(weights.sum(1), true.sum(), rtol=1e-5)  # 5.5 times 4 for the hub, whoever they are


@pytest.mark.parametrize("more", [{"num_neighbours": 3}, {"edge_dropout": 0.5}], ids=["neighbours", "dropout"])
def test_a_step_draws_by_its_key_and_without_one_all_are_heard(more, many, rows):
    edges, graph = graph_edges(*many), network(**more)
    np.testing.assert_array_equal(applied(graph, rows, edges), applied(network(), rows, edges))
    first, same, other = (applied(graph, rows, edges, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("more", [{}, {"num_neighbours": 3}], ids=["all", "drawn"])
def test_a_predicted_edge_that_is_not_hidden_would_show(more, many, rows):
    """The rows at both ends must not depend on whether the edge is there; without the guard they do."""
    source, target, kind, weight = many
    graph, key, place = network(num_layers=2, **more), jax.random.key(0), jnp.array([len(source) - 1])  # 3 -> 4
    edges = graph_edges(source, target, kind, weight)
    gone = edges._replace(weight=edges.weight.at[place].set(0))
    hidden, without_it, leaking = (applied(graph, rows, own, key)[3:5] for own in (without(edges, place), gone, edges))
    np.testing.assert_array_equal(hidden, without_it)
    assert np.abs(leaking - hidden).max() > 1e-2


# --- edges over several devices, and in parts -------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["mean", "attention"])
def test_edges_over_eight_devices_give_the_rows_and_gradients_of_one(aggregation, lists, rows):
    definition, params = nnx.split(network(aggregation, 2, num_neighbours=3, edge_dropout=0.2))
    edges = graph_edges(*lists, 33)  # a number that eight do not divide

    @jax.jit
    def of(params, rows, key):
        def loss(params, rows):
            found = nnx.merge(definition, params)(rows, edges, key)
            return (jnp.sin(found) ** 2).sum(), found

        (_, found), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, rows)
        return found, gradient

    expected = of(params, rows, jax.random.key(5))
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        found = of(*jax.device_put((params, rows, jax.random.key(5)), replicated(mesh)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)  # of up to 5; float32 sums in another order


def test_edges_are_summed_where_they_lie_and_only_sums_move():
    from scmbert_jax.planning.program_text import collectives_of

    number, dim = 4096, 6
    mesh = make_mesh(MeshConfig())
    origin, place = (jax.random.randint(jax.random.key(seed), (number,), 0, 20) for seed in (0, 1))

    def loss(values, share):
        return (weighted_sums(values, share, origin, place, 20) ** 2).sum()

    with jax.set_mesh(mesh):
        arguments = jax.device_put((jnp.ones((20, dim)), jnp.ones((number, 2))), replicated(mesh))
        text = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().as_text()
    moved = [one for one in collectives_of(text, 8) if one.kind == "all-reduce"]
    assert {one.payload for one in moved} == {20 * dim * 4}


def test_sums_in_parts_and_their_gradients_are_those_of_all_edges_at_once(monkeypatch):
    monkeypatch.setattr(edge_sums, "_EDGES_AT_ONCE", 16)
    keys = jax.random.split(jax.random.key(0), 4)
    values, share = jax.random.normal(keys[0], (9, 6)), jax.random.normal(keys[1], (50, 2))
    origin, place = jax.random.randint(keys[2], (50,), 0, 9), jax.random.randint(keys[3], (50,), 0, 5)

    def plain(values, share):
        return jax.ops.segment_sum(values[origin] * jnp.repeat(share, 3, axis=1), place, 5)

    def parts(values, share):
        return weighted_sums(values, share, origin, place, 5)

    np.testing.assert_allclose(parts(values, share), plain(values, share), atol=1e-5)
    found, expected = (jax.grad(lambda *own, f=f: (f(*own) ** 3).sum(), (0, 1))(values, share) for f in (parts, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
