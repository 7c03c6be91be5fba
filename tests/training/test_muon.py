"""Muon trains the layers' matrices, each by itself; AdamW all else; both sharded, both resumable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from scmbert_jax.config import ExperimentConfig, MeshConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh, replicated
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.checkpoint import RunCheckpoints
from scmbert_jax.training.optimizer import decay_mask, make_optimizer, muon_dimensions
from scmbert_jax.training.train_state import abstract_state, initial_state
from scmbert_jax.training.train_step import make_train_step


@pytest.fixture(scope="module")
def muon_config(mixed_config) -> ExperimentConfig:
    return dataclasses.replace(mixed_config, optimizer=dataclasses.replace(mixed_config.optimizer, name="muon"))


def leaves(tree):
    """path -> leaf, where None is a leaf."""
    flat = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    )
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in flat}


@pytest.mark.parametrize("sharing", ["shared", "multiway", "per_modality"])
def test_matrices_of_layers_get_muon_and_all_else_adamw(muon_config, tiny_layout, sharing):
    config = dataclasses.replace(
        muon_config, model=dataclasses.replace(muon_config.model, encoder_sharing=sharing, decoder_layers=2)
    )
    model = ModelDefinition(config, tiny_layout)
    by_muon = {path for path, dimensions in leaves(muon_dimensions(model)).items() if dimensions}
    decayed = {path for path, decays in leaves(decay_mask(model.roles)).items() if decays}
    in_layers = {path for path in decayed if "blocks" in path}
    assert by_muon == in_layers
    encoders = 3 if sharing == "per_modality" else 1
    assert len(by_muon) == 4 * encoders + 5 * 2
    for path in ("table/learned", "embedding/mask", "token_head/dense", "token_head/outputs/rna", "embedding/cls"):
        assert path not in by_muon


@pytest.mark.slow
def test_an_update_of_stacked_layers_is_that_of_each_matrix_alone(muon_config, tiny_layout):
    model = ModelDefinition(muon_config, tiny_layout)
    dimensions = leaves(muon_dimensions(model))
    shapes = leaves(model.abstract_params)
    paths = [path for path in dimensions if path.startswith("encoder/") and dimensions[path]]
    assert len(paths) == 4
    for number, path in enumerate(paths):
        gradient = jax.random.normal(jax.random.key(number), shapes[path].shape)
        stacked = optax.contrib.scale_by_muon(weight_dimension_numbers={"w": dimensions[path]})
        update, _ = stacked.update({"w": gradient}, stacked.init({"w": gradient}))
        alone = optax.contrib.scale_by_muon(weight_dimension_numbers={"w": optax.contrib.MuonDimensionNumbers()})
        # As matrices [in, out]: [layers, ..., in, out], of what lies between in and out, query, key and value apart.
        if path.endswith("qkv"):  # [layers, embed, 3, heads, head_dim]
            flat = jnp.moveaxis(gradient, 2, 1)
            matrices = flat.reshape(-1, flat.shape[2], flat.shape[3] * flat.shape[4])
            back = jnp.moveaxis(update["w"], 2, 1).reshape(matrices.shape)
        elif path.endswith("attention_out"):  # [layers, heads, head_dim, embed]
            matrices = gradient.reshape(gradient.shape[0], -1, gradient.shape[3])
            back = update["w"].reshape(matrices.shape)
        else:  # [layers, experts, in, out]
            matrices = gradient.reshape(-1, *gradient.shape[2:])
            back = update["w"].reshape(matrices.shape)
        assert len(matrices) >= 2
        for matrix, ours in zip(matrices, back, strict=True):
            expected, _ = alone.update({"w": matrix}, alone.init({"w": matrix}))
            np.testing.assert_allclose(ours, expected["w"], atol=1e-5)
            # Made orthogonal: singular values near one, where those of a random matrix span a factor of ten.
            singular = np.linalg.svd(np.asarray(ours), compute_uv=False)
            assert singular.min() > 0.4
            assert singular.max() < 1.4


@pytest.mark.slow
def test_muon_and_adamw_move_their_own_parameters(muon_config, tiny_layout):
    """One step from the same gradient: what AdamW trains moves as with AdamW alone, the layers' matrices do not."""
    model = ModelDefinition(muon_config, tiny_layout)
    params = jax.jit(model.init)(jax.random.key(0))
    gradients = jax.tree.map(lambda x: 0.01 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    of_adamw = dataclasses.replace(muon_config, optimizer=dataclasses.replace(muon_config.optimizer, name="adamw"))

    def second_update(config):  # the first has a learning rate of zero
        optimizer = make_optimizer(config, model)
        state = optimizer.init(params)
        _, state = jax.jit(optimizer.update)(gradients, state, params)
        return leaves(jax.jit(optimizer.update)(gradients, state, params)[0])

    muon, adamw = second_update(muon_config), second_update(of_adamw)
    dimensions = leaves(muon_dimensions(model))
    for path, update in muon.items():
        same = np.allclose(update, adamw[path], rtol=1e-5, atol=1e-9)
        assert same == (dimensions[path] is None), path
        if dimensions[path] is not None:  # of AdamW's size, so that one learning rate serves both
            ratio = float(jnp.sqrt((update**2).mean()) / jnp.sqrt((adamw[path] ** 2).mean()))
            assert 0.1 < ratio < 1.0, path


@pytest.mark.slow
def test_a_sharded_run_of_muon_equals_one_device_and_continues_from_its_checkpoint(
    muon_config, tiny_layout, tiny_batch, tmp_path
):
    model = ModelDefinition(muon_config, tiny_layout)
    optimizer = make_optimizer(muon_config, model)

    def steps(mesh, state, first, stop):
        with jax.set_mesh(mesh):
            constants = jax.device_put(model.constants, replicated(mesh))
            step = jax.jit(make_train_step(model, MaskedModeling(muon_config), optimizer))
            for number in range(first, stop):
                state, metrics = step(state, constants, batch_to_devices(tiny_batch(number), mesh))
        return state, float(metrics["loss"])

    one, many = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    single, loss_of_one = steps(one, initial_state(model, optimizer, one), 0, 3)
    state, _ = steps(many, initial_state(model, optimizer, many), 0, 2)
    momentum = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "muon" in jax.tree_util.keystr(path) and "qkv" in jax.tree_util.keystr(path)
    ]
    assert len(momentum) == 1
    qkv = state.params["encoder"]["blocks"]["qkv"]
    assert momentum[0].sharding.is_equivalent_to(qkv.sharding, qkv.ndim)  # beside its parameter
    assert momentum[0].sharding.shard_shape(qkv.shape) != qkv.shape

    checkpoints = RunCheckpoints(tmp_path, 1)
    checkpoints.save(2, state)
    checkpoints.wait()
    restored = checkpoints.restore(2, abstract_state(model, optimizer, many))
    checkpoints.close()
    resumed, loss_of_many = steps(many, restored, 2, 3)
    assert loss_of_many == pytest.approx(loss_of_one, rel=1e-4)
    for ours, expected in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(single.params), strict=True):
        # AdamW divides small gradients, Newton and Schulz's iteration takes five steps in float32.
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=5e-4)


def test_an_optimizer_that_does_not_exist_or_a_momentum_that_cannot_be_is_refused(muon_config):
    with pytest.raises(ConfigError, match=r"optimizer.muon_momentum is 1.0; expected 0 <= value < 1"):
        dataclasses.replace(muon_config, optimizer=dataclasses.replace(muon_config.optimizer, muon_momentum=1.0))
