"""`link_prediction`: what is asked passes no messages, no mesh shows, and what cannot be is refused."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.synthetic.cells import synthetic_batch, synthetic_layout
from data_pipelines.synthetic.networks import with_synthetic_network
from scmbert_jax.config import (
    DataConfig,
    ExperimentConfig,
    LinkPredictionConfig,
    MaskedModelingConfig,
    MeshConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    TrainConfig,
)
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluators.links import held_out_pairs, link_scores
from scmbert_jax.objectives.link_prediction.objective import LinkPrediction
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh, replicated
from scmbert_jax.random_keys import KeyPurpose, key_for, step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import initial_state
from scmbert_jax.training.train_step import make_train_step, sum_of_gradients

RNA = ModalitiesConfig(rna=ModalityConfig(num_tokens=8))
CONFIG = ExperimentConfig(
    modalities=RNA,
    data=DataConfig(global_batch_size=8, num_streams=2),
    model=ModelConfig(
        embed_dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=8, networks=("a.csv",), graph="learned"
    ),
    objectives=ObjectivesConfig(link_prediction=LinkPredictionConfig(weight=1.0, edges_per_step=16)),
)
LAYOUT = with_synthetic_network(synthetic_layout(60), 200)


LINKS_IN_CONTEXT = replace(CONFIG.objectives.link_prediction, context=True)
IN_CONTEXT = replace(CONFIG, objectives=replace(CONFIG.objectives, link_prediction=LINKS_IN_CONTEXT))
BATCH = synthetic_batch(LAYOUT, 8, {"rna": 8}, 0, 0)


def some_params(model):
    own = model.init(jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), own)


@pytest.fixture(scope="module", params=["without cells", "in context"])
def model(request):
    return ModelDefinition(CONFIG if request.param == "without cells" else IN_CONTEXT, LAYOUT)


@pytest.fixture(scope="module")
def params(model):
    return some_params(model)


STEP = 4  # that knows its cells, in a model that may


def loss_of(model, params, constants, table=None, batch=BATCH):
    """Of `STEP`, with another feature table than the model's own where one is given."""

    def loss(params, constants):
        merged = model.merge(params, constants)
        given = merged.feature_table() if table is None else table
        return LinkPrediction(model.config).loss(merged, given, batch, step_key(0, STEP)).total

    return float(jax.jit(loss)(params, constants))


def test_an_edge_that_is_asked_and_its_reverse_pass_no_messages_in_that_step(model, params):
    """Losses with and without these messages are the same number: nothing of them gets in. Others do."""
    usual = loss_of(model, params, model.constants)
    if model.config == IN_CONTEXT:
        other = synthetic_batch(LAYOUT, 8, {"rna": 8}, 0, 1)
        assert loss_of(model, params, model.constants, batch=other) != usual
    head = model.merge(params, model.constants).link_head
    drawn = head.draw(key_for(step_key(0, STEP), KeyPurpose.EDGES), 16)
    asked = np.unique(np.asarray(drawn.places))
    asked = asked[asked >= 0]
    edges, nodes = model.constants["network"]["edges"], model.constants["network"]["nodes"]
    assert len(asked) > 8
    for source, target in zip(drawn.source[:16].tolist(), drawn.target[:16].tolist(), strict=True):
        assert ((nodes[edges["source"][asked]] == source) & (nodes[edges["target"][asked]] == target)).any()

    def with_weights(places, weight):
        changed = edges["weight"].copy()
        changed[places] = weight
        network = model.constants["network"] | {"edges": edges | {"weight": changed}}
        return loss_of(model, params, model.constants | {"network": network})

    assert with_weights(asked, 0.0) == with_weights(asked, 7.0) == usual
    others = np.setdiff1d(np.arange(len(edges["weight"])), asked)[:5]
    assert with_weights(others, 0.0) != usual


def test_the_table_that_has_heard_along_all_edges_is_not_looked_at(model, params):
    rows = jnp.full((model.abstract_params["table"]["learned"].shape), jnp.nan)
    assert loss_of(model, params, model.constants, rows) == loss_of(model, params, model.constants)


def test_pairs_of_a_step_are_edges_that_train_by_their_confidence_and_pairs_that_are_none(model, params):
    network = LAYOUT.network
    drawn = jax.device_get(model.merge(params, model.constants).link_head.draw(jax.random.key(0), 20_000))
    codes = network.source.astype(int) * 100 + network.target
    asked = drawn.source * 100 + drawn.target
    assert np.isin(asked[:20_000], codes[network.part == 0]).all()
    assert not np.isin(asked[20_000:], codes).any()
    trains = network.part == 0
    seen = np.array([(asked[:20_000] == code).sum() for code in codes[trains]])
    assert np.corrcoef(seen, network.confidence[trains])[0, 1] > 0.95
    signs = dict(zip(codes.tolist(), network.sign.tolist(), strict=True))
    assert drawn.sign[:50].tolist() == [signs[code] for code in asked[:50].tolist()]
    assert not drawn.sign[20_000:].any()


@pytest.mark.parametrize(
    "graph", ["learned", *(pytest.param(own, marks=pytest.mark.slow) for own in ("frozen", "off", "context"))]
)
def test_a_step_is_the_same_on_eight_devices_and_in_microbatches_and_a_frozen_graph_stays(graph):
    in_context = graph == "context"
    graph = "learned" if in_context else graph
    config = IN_CONTEXT if in_context else replace(CONFIG, model=replace(CONFIG.model, graph=graph))
    layout = replace(LAYOUT, messages=None) if graph == "off" else LAYOUT

    def run(devices, microbatches):
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        own = replace(config, train=TrainConfig(num_microbatches=microbatches))
        model = ModelDefinition(own, layout)
        optimizer = make_optimizer(own, model)
        step = jax.jit(make_train_step(model, LinkPrediction(own), optimizer))
        with jax.set_mesh(mesh):
            state = initial_state(model, optimizer, mesh)
            constants = jax.device_put(model.constants, replicated(mesh))
            before = jax.device_get(state.params)
            for number in range(2):
                batch = synthetic_batch(layout, 8, {"rna": 8}, 0, number)
                state, metrics = step(state, constants, batch_to_devices(batch, mesh))
            return before, jax.device_get(state.params), float(metrics["loss"])

    before, after, loss = run(1, 1)
    for devices, microbatches in ((8, 1), (1, 4)):
        _, other, there = run(devices, microbatches)
        assert there == pytest.approx(loss, rel=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), after, other)
    assert np.abs(after["table"]["learned"] - before["table"]["learned"]).max() > 0
    before, after = (own.get("network", {}).get("graph") for own in (before, after))
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), before, after)
    assert any(jax.tree.leaves(moved)) == (graph == "learned")


@pytest.mark.parametrize("further", [{"graph_edge_dropout": 0.5}, {"graph_neighbours": 1}])
def test_training_steps_drop_edges_or_draw_neighbours_and_whoever_uses_the_model_hears_all(further):
    config = replace(CONFIG, model=replace(CONFIG.model, **further))
    model, all_heard = (ModelDefinition(own, LAYOUT) for own in (config, CONFIG))
    params = some_params(model)

    def table(model, key=None):
        return np.asarray(model.merge(params, model.constants).feature_table(key=key))

    first, second = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(table(model), table(all_heard))
    np.testing.assert_array_equal(table(model, first), table(model, first))
    assert (table(model, first) != table(model, second)).any()
    for objective in (LinkPrediction(config), MaskedModeling(config)):
        some, of_all = (
            jax.jit(partial(sum_of_gradients, own, objective, 1))(params, own.constants, BATCH, step_key(0, STEP))[0]
            for own in (model, all_heard)
        )
        assert some.total != of_all.total


def test_held_out_edges_are_judged_among_pairs_of_their_own_part(model, params):
    pairs = held_out_pairs(LAYOUT.network, 1)
    held_out = LAYOUT.network.part == 1
    assert pairs.is_edge.sum() == held_out.sum()
    trained = [LAYOUT.network.source[~held_out], LAYOUT.network.target[~held_out]]
    for source, target in zip(*trained, strict=True):
        place = np.argwhere((pairs.regulators == source)[:, None] & (pairs.genes == target)[None])
        assert not any(pairs.is_pair[tuple(own)] for own in place)
    merged = model.merge(params, model.constants)
    table = merged.feature_table()
    logits = np.asarray(merged.link_head.of_all_pairs(table[pairs.regulators], table[pairs.genes]))
    one = merged.link_head(table[pairs.regulators[2]], table[pairs.genes[3]])
    np.testing.assert_allclose(logits[2, 3], one, rtol=1e-4, atol=1e-6)
    found = link_scores(logits, pairs)
    assert found["edges"] == held_out.sum()
    perfect = link_scores(np.where(pairs.is_edge, 1.0, -1.0)[..., None] * np.ones(2), pairs)
    assert perfect["auroc"] == 1.0
    assert 0 < found["auroc"] < 1


def test_networks_that_nothing_uses_and_uses_without_networks_are_refused():
    for model, links, said in (
        ({"graph": "learned"}, 0.0, r"model\.networks is \(\); expected a network"),
        ({}, 1.0, r"model\.networks is \(\); expected a network for objectives\.link_prediction"),
        ({"networks": ("a.csv",)}, 0.0, r"model\.networks is .*nothing uses it"),
    ):
        with pytest.raises(ConfigError, match=said):
            ExperimentConfig(
                modalities=RNA,
                model=ModelConfig(**model),
                objectives=ObjectivesConfig(MaskedModelingConfig(), link_prediction=LinkPredictionConfig(weight=links)),
            )
    protein = ModalitiesConfig(rna=ModalityConfig(num_tokens=0), protein=ModalityConfig(num_tokens=8))
    with pytest.raises(ConfigError, match=r"link_prediction\.weight .* without modalities\.rna"):
        replace(CONFIG, modalities=protein)
    with pytest.raises(ConfigError, match="the features come without a network"):
        ModelDefinition(CONFIG, synthetic_layout(60))
