import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import XLA_DEFAULT, shaken

from scmbert_jax.config import MeshConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling
from scmbert_jax.parallel.mesh import batch_to_devices, check_process_order, make_mesh, replicated
from scmbert_jax.random_keys import step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.optimizer import learning_rate_schedule, make_optimizer
from scmbert_jax.training.train_state import abstract_state, initial_state, param_shardings
from scmbert_jax.training.train_step import make_train_step, sum_of_gradients


def uneven(batch):
    """Half of the cells lose most of their tokens, so that microbatches have very different weights."""

    def shorten(tokens):
        few = np.where(np.arange(16) % 4 == 1, np.minimum(tokens.lengths, 1), tokens.lengths).astype(np.int32)
        real = np.arange(tokens.feature_ids.shape[1])[None] < few[:, None]
        return tokens._replace(
            lengths=few, feature_ids=np.where(real, tokens.feature_ids, 0), counts=np.where(real, tokens.counts, 0)
        )

    return batch._replace(modalities={name: shorten(tokens) for name, tokens in batch.modalities.items()})


def sums(config, layout, batch, num_microbatches):
    model = ModelDefinition(config, layout)
    params = jax.jit(model.init)(jax.random.key(0))
    function = jax.jit(
        lambda p, b: sum_of_gradients(
            model, MaskedModeling(config), num_microbatches, p, model.constants, b, step_key(0, 7)
        )
    )
    return function(params, batch)


@pytest.mark.slow
def test_four_microbatches_of_unequal_masks_equal_one(tiny_config, tiny_layout, tiny_batch):
    batch = uneven(tiny_batch())
    (one, one_gradients), (four, four_gradients) = (sums(tiny_config, tiny_layout, batch, n) for n in (1, 4))
    weights = [
        float(sums(tiny_config, tiny_layout, jax.tree.map(lambda x, i=i: x[i::4], batch), 1)[0].weight) for i in (0, 1)
    ]
    assert weights[0] > 1.5 * weights[1]  # the parts differ, or a mean of means would pass as well
    assert one.weight == four.weight
    np.testing.assert_allclose(one.total, four.total, rtol=1e-5)
    # float32 sums over cells in another order; gradients of a sum over about a hundred tokens
    chex.assert_trees_all_close(one_gradients, four_gradients, rtol=2e-4, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh_config",
    [MeshConfig(fsdp=8), MeshConfig(replica=2, fsdp=4), MeshConfig(fsdp=4, tensor=2)],
    ids=["fsdp8", "replica2_fsdp4", "fsdp4_tensor2"],
)
def test_a_sharded_step_equals_the_step_on_one_device(tiny_config, tiny_layout, tiny_batch, mesh_config):
    def run(mesh):
        model = ModelDefinition(tiny_config, tiny_layout)
        optimizer = make_optimizer(tiny_config, model)
        with jax.set_mesh(mesh):
            state = initial_state(model, optimizer, mesh)
            constants = jax.device_put(model.constants, replicated(mesh))
            step = jax.jit(make_train_step(model, MaskedModeling(tiny_config), optimizer))
            history = []
            for number in range(3):
                state, metrics = step(state, constants, batch_to_devices(tiny_batch(number), mesh))
                history.append(jax.device_get(metrics))
            return history, jax.device_get(state.params), state

    single, single_params, _ = run(make_mesh(MeshConfig(), jax.devices()[:1]))
    many, many_params, state = run(make_mesh(mesh_config))
    for a, b in zip(single, many, strict=True):
        assert a["loss_weight"] == b["loss_weight"]  # the same masks
        chex.assert_trees_all_close(a, b, rtol=1e-4)
    chex.assert_trees_all_close(single_params, many_params, rtol=1e-3, atol=1e-4)  # Adam divides small gradients
    qkv = state.params["encoder"]["blocks"]["qkv"]
    assert qkv.sharding.shard_shape(qkv.shape) != qkv.shape  # it really is split
    moment = state.opt_state[1][0].mu["encoder"]["blocks"]["qkv"]
    assert moment.sharding == qkv.sharding


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh_config",
    [MeshConfig(fsdp=8), MeshConfig(replica=2, fsdp=4), MeshConfig(fsdp=4, tensor=2)],
    ids=["fsdp8", "replica2_fsdp4", "fsdp4_tensor2"],
)
def test_sharded_gradients_are_those_of_one_device(tiny_config, tiny_layout, tiny_batch, mesh_config):
    """With output layers that are not zero, so that every parameter gets one; in two microbatches."""

    def run(mesh):
        model = ModelDefinition(tiny_config, tiny_layout)
        params = shaken(jax.jit(model.init)(jax.random.key(0)))
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, param_shardings(model, mesh))
            constants = jax.device_put(model.constants, replicated(mesh))
            function = jax.jit(
                lambda p, c, b: sum_of_gradients(model, MaskedModeling(tiny_config), 2, p, c, b, step_key(0, 7))
            )
            return jax.device_get(function(placed, constants, batch_to_devices(tiny_batch(3), mesh)))

    sums_of_one, single = run(make_mesh(MeshConfig(), jax.devices()[:1]))
    sums_of_many, many = run(make_mesh(mesh_config))
    np.testing.assert_allclose(sums_of_one.total, sums_of_many.total, rtol=1e-5)
    assert float(np.abs(single["encoder"]["blocks"]["qkv"]).max()) > 1e-3
    assert float(np.abs(single["table"]["learned"]).max()) > 1e-3
    # float32, summed in another order: relative to each parameter's largest gradient
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(single), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * np.abs(one).max() + 1e-6, err_msg=str(path))


@pytest.mark.slow
def test_every_mesh_starts_from_the_same_parameters(tiny_config, tiny_layout):
    model = ModelDefinition(tiny_config, tiny_layout)
    optimizer = make_optimizer(tiny_config, model)
    one = initial_state(model, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    eight = initial_state(model, optimizer, make_mesh(MeshConfig()))
    chex.assert_trees_all_equal(jax.device_get(one.params), jax.device_get(eight.params))


@pytest.mark.slow
def test_training_lowers_the_loss_on_cells_with_structure(tiny_config, tiny_layout, tiny_batch):
    config = dataclasses.replace(
        tiny_config, optimizer=dataclasses.replace(tiny_config.optimizer, peak_learning_rate=5e-3)
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=120))
    model = ModelDefinition(config, tiny_layout)
    optimizer = make_optimizer(config, model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = initial_state(model, optimizer, mesh)
        train_step = make_train_step(model, MaskedModeling(config), optimizer)
        step = jax.jit(train_step, donate_argnums=0, compiler_options=XLA_DEFAULT)
        losses = []
        for number in range(120):
            state, metrics = step(state, model.constants, tiny_batch(number))
            losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_the_learning_rate_warms_up_and_decays_to_its_final_fraction(tiny_config):
    rate = learning_rate_schedule(tiny_config)
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(1e-3)
    assert float(rate(20)) == pytest.approx(1e-4)


def test_a_mesh_that_does_not_fit_the_devices_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"fsdp=3 .*8 device"):
        make_mesh(MeshConfig(fsdp=3))


def test_a_batch_that_does_not_divide_is_refused_with_the_multiple():
    with pytest.raises(ConfigError, match=r"global_batch_size is 12; 8 device.*multiple of 8"):
        check_process_order(make_mesh(MeshConfig()), 12, 1)


def test_a_parameter_that_does_not_divide_is_named(tiny_config, tiny_layout):
    model_config = dataclasses.replace(tiny_config.model, embed_dim=12)
    model = ModelDefinition(dataclasses.replace(tiny_config, model=model_config), tiny_layout)
    with pytest.raises(ConfigError, match=r"parameter .*'embed' of size 12 .*8 devices"):
        abstract_state(model, make_optimizer(tiny_config, model), make_mesh(MeshConfig()))


@pytest.mark.slow
def test_the_step_is_compiled_once(tiny_config, tiny_layout, tiny_batch):
    chex.clear_trace_counter()
    model = ModelDefinition(tiny_config, tiny_layout)
    optimizer = make_optimizer(tiny_config, model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = initial_state(model, optimizer, mesh)
        step = jax.jit(chex.assert_max_traces(make_train_step(model, MaskedModeling(tiny_config), optimizer), 1))
        for number in range(3):
            state, _ = step(state, model.constants, batch_to_devices(tiny_batch(number), mesh))
    assert int(state.step) == 3
    assert jnp.isfinite(state.params["table"]["learned"]).all()
