"""Experiments are of the size of their name, and lie well on the hardware they are for."""

import jax
import pytest

from data_pipelines.synthetic import synthetic_layout
from experiments import experiment_names, load_experiment
from scmbert_jax.models.scmbert import ModelDefinition

MILLION = 1e6
SIZES = {"small_10m": 10 * MILLION, "base_110m": 110 * MILLION, "large_350m": 350 * MILLION, "xl_1b": 1000 * MILLION}


@pytest.mark.parametrize(("name", "parameters"), SIZES.items())
def test_a_size_is_that_of_its_name(name, parameters):
    """Parameters but for those with a row per feature, within five in a hundred."""
    config = load_experiment(name)
    model = ModelDefinition(config, synthetic_layout(300, 20, 100))
    sizes = [leaf.size for leaf in jax.tree.leaves(model.abstract_params)]
    axes = jax.tree.leaves(model.logical_axes, is_leaf=lambda x: isinstance(x, tuple))
    number = sum(size for size, own in zip(sizes, axes, strict=True) if "features" not in own)
    assert number == pytest.approx(parameters, rel=0.05)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_lies_well_on_matrix_units_and_meshes(name):
    config = load_experiment(name)
    model, tokens = config.model, sum(own.num_tokens for own in config.modalities.in_use().values())
    assert model.head_dim in (64, 128)
    assert model.num_heads * model.head_dim == model.embed_dim
    assert model.embed_dim % 256 == 0  # of 128, and of any FSDP size up to 256
    assert model.mlp_dim == 4 * model.embed_dim
    assert model.num_heads % 2 == 0  # tensor 2
    assert tokens + 1 in (2048, 4096)  # with [CLS], what kernels of attention work on
    assert model.compute_dtype == "bfloat16"
    assert config.data.global_batch_size % 256 == 0


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_builds_and_says_its_command(name):
    load_experiment(name)
    from pathlib import Path

    text = (Path(__file__).resolve().parent.parent / "experiments" / f"{name}.py").read_text()
    assert f"scmbert pretrain {name}" in text
