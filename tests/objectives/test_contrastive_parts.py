"""The contrastive loss of a whole batch, however it is worked off: on one device, on eight, in parts."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shaken, without

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import ContrastiveAlignmentConfig, ExperimentConfig, MeshConfig, ObjectivesConfig
from scmbert_jax.objectives.contrastive_alignment.objective import ContrastiveAlignment
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh, replicated, sharding
from scmbert_jax.random_keys import step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.train_step import sum_of_gradients


@pytest.fixture(scope="module")
def config(tiny_config) -> ExperimentConfig:
    """RNA and protein, contrastive alignment alone, one layer, part of the tokens."""
    modalities = replace(tiny_config.modalities, atac=replace(tiny_config.modalities.atac, num_tokens=0))
    objectives = ObjectivesConfig(
        replace(tiny_config.objectives.masked_modeling, weight=0.0),
        contrastive_alignment=ContrastiveAlignmentConfig(
            weight=1.0, projection_dim=8, source_fraction=0.75, link_weight=0.2
        ),
    )
    return replace(
        tiny_config, modalities=modalities, objectives=objectives, model=replace(tiny_config.model, num_layers=1)
    )


@pytest.fixture(scope="module")
def params(config, known_layout):
    return shaken(jax.jit(ModelDefinition(config, known_layout).init)(jax.random.key(0)))


@pytest.fixture
def batch(tiny_batch) -> CellBatch:
    """A mosaic in which a cell stands twice, with near and far cells in other rows: nothing is the same by chance."""
    whole = tiny_batch()
    modalities = {name: tokens for name, tokens in whole.modalities.items() if name != "atac"}
    cell_index = whole.cell_index.copy()
    cell_index[13] = cell_index[2]
    return without(whole._replace(modalities=modalities, cell_index=cell_index), "protein", slice(5, 8))


def in_parts(config: ExperimentConfig, number: int) -> ExperimentConfig:
    return replace(config, train=replace(config.train, num_microbatches=number))


def compute(config, layout, params, batch, mesh_config=None):
    """(LossSum, gradients) on a mesh of all eight devices, or (None) on one."""
    model, objective = ModelDefinition(config, layout), ContrastiveAlignment(config)
    mesh = make_mesh(mesh_config) if mesh_config else make_mesh(MeshConfig(), jax.devices()[:1])

    @jax.jit
    def sums(params, constants, batch):
        number = config.train.num_microbatches
        return sum_of_gradients(model, objective, number, params, constants, batch, step_key(0, 7))

    with jax.set_mesh(mesh):
        where = jax.tree.map(
            lambda leaf, axes: sharding(mesh, axes, leaf.shape, "parameter"),
            params,
            model.logical_axes,
            is_leaf=lambda x: isinstance(x, jax.Array),
        )
        placed = jax.device_put(params, where), jax.device_put(model.constants, replicated(mesh))
        found, gradients = sums(*placed, batch_to_devices(batch, mesh))
        return jax.device_get(found), jax.device_get(gradients)


@pytest.fixture(scope="module")
def single(config, known_layout, params):
    """batch -> sums and gradients in one piece on one device."""
    return lambda batch: compute(config, known_layout, params, batch)


def assert_same(found, wanted):
    """Sums and gradients of the same cells. Float32 sums in another order; gradients are of size 1 and more."""
    assert found[0].weight == wanted[0].weight
    chex.assert_trees_all_close(found[0], wanted[0], rtol=2e-5, atol=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted[1]))
    assert largest > 0.1
    chex.assert_trees_all_close(found[1], wanted[1], rtol=2e-3, atol=1e-5 * largest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh_config", "number"),
    [(MeshConfig(fsdp=8), 1), (MeshConfig(replica=2, fsdp=4), 1), (MeshConfig(replica=2, fsdp=4), 2)],
    ids=["fsdp8", "replica2_fsdp4", "replica2_fsdp4_in_two_parts"],
)
def test_eight_devices_see_each_others_cells(config, known_layout, params, batch, single, mesh_config, number):
    """Negatives are those of the whole batch, not of a device: loss and gradients of one device."""
    assert_same(compute(in_parts(config, number), known_layout, params, batch, mesh_config), single(batch))


@pytest.mark.slow
def test_parts_whose_states_are_not_kept_give_the_loss_and_gradient_of_the_whole(
    config, known_layout, params, batch, single
):
    found = compute(in_parts(config, 4), known_layout, params, batch)
    assert_same(found, single(batch))
    # Not so if each part were a batch of its own: fewer negatives, another loss.
    name = "rna_protein_info_nce"
    alone = [single(jax.tree.map(lambda x, i=i: x[i::4], batch))[0].metrics[name][0] for i in range(4)]
    assert sum(alone) < 0.9 * float(found[0].metrics[name][0])


@pytest.mark.slow
def test_parts_take_less_memory(config, known_layout, params, tiny_batch):
    """Memory of what the backward pass needs, of 256 cells; the compiler's own numbers."""
    batch = tiny_batch(batch_size=256)
    batch = batch._replace(modalities={name: own for name, own in batch.modalities.items() if name != "atac"})
    model = ModelDefinition(config, known_layout)

    def bytes_needed(number):
        own = in_parts(config, number)
        objective = ContrastiveAlignment(own)
        step = jax.jit(lambda p, b: sum_of_gradients(model, objective, number, p, model.constants, b, step_key(0, 7)))
        return step.lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(8) < 0.4 * bytes_needed(1)


@pytest.mark.slow
def test_training_brings_the_modalities_of_a_cell_together(config, known_layout, batch):
    """On one small batch: the own partner becomes the nearest."""
    model, objective = ModelDefinition(config, known_layout), ContrastiveAlignment(config)

    @jax.jit
    def step(params):
        found, gradients = sum_of_gradients(model, objective, 1, params, model.constants, batch, step_key(0, 7))
        return jax.tree.map(lambda p, g: p - 3e-3 * g, params, gradients), found

    params = jax.jit(model.init)(jax.random.key(0))
    losses = []
    for _ in range(60):
        params, found = step(params)
        losses.append(float(found.total / found.weight))
    assert losses[-1] < 0.5 * losses[0]
    assert jnp.isfinite(params["alignment_head"]["log_temperature"])
