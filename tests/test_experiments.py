"""Experiments are of the size of their name, and lie well on the hardware they are for."""

import itertools
from pathlib import Path

import jax
import pytest

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.config import differing_fields
from scmbert_jax.errors import ConfigError
from scmbert_jax.experiment_files import (
    EXPERIMENTS,
    experiment_module,
    experiment_names,
    load_any_experiment,
    load_experiment,
)
from scmbert_jax.models.flops import encoder_parameters
from scmbert_jax.scmbert import ModelDefinition

blood = experiment_module("blood")
MILLION = 1e6
SIZES = {"small_10m": 10 * MILLION, "base_110m": 110 * MILLION, "large_350m": 350 * MILLION, "xl_1b": 1000 * MILLION}


@pytest.mark.parametrize(("name", "parameters"), SIZES.items())
def test_a_size_is_that_of_its_name(name, parameters):
    """Parameters but for those with a row per feature, within five in a hundred; a transformer alone."""
    config = load_experiment(name)
    model = ModelDefinition(config, synthetic_layout(300, 20, 100))
    sizes = [leaf.size for leaf in jax.tree.leaves(model.abstract_params)]
    axes = jax.tree.leaves(model.logical_axes, is_leaf=lambda x: isinstance(x, tuple))
    number = sum(size for size, own in zip(sizes, axes, strict=True) if "features" not in own)
    assert number == pytest.approx(parameters, rel=0.05)
    assert not config.model.linear_path


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
    load_any_experiment(name)
    text = (EXPERIMENTS / f"{name}.py").read_text()
    assert f"scmbert pretrain {name}" in text


def test_a_variant_of_an_experiment_stands_behind_its_name():
    assert load_experiment("blood:large") == blood.config("large")
    assert load_experiment("blood") == blood.config()
    with pytest.raises(ConfigError, match=r"blood:huge does not exist\. There are: blood:small, blood:medium"):
        load_experiment("blood:huge")
    with pytest.raises(ConfigError, match=r"genebert:huge does not exist\. There are: genebert:base, genebert:tiny"):
        load_any_experiment("genebert:huge")
    with pytest.raises(ConfigError, match="'genebert:tiny' is one on DNA; this needs one on cells"):
        load_experiment("genebert:tiny")
    with pytest.raises(ConfigError, match="tiny has no variants; leave ':large' out"):
        load_experiment("tiny:large")


def test_rungs_of_the_ladder_differ_in_size_and_by_the_rule_of_the_learning_rate_alone():
    rungs = [load_experiment(f"blood:{name}") for name in blood.RUNGS]
    sizes = [encoder_parameters(rung.model) for rung in rungs]
    assert all(3 * low < high for low, high in itertools.pairwise(sizes))
    rates = {rung.optimizer.peak_learning_rate * rung.model.embed_dim**0.5 for rung in rungs}
    assert max(rates) == pytest.approx(min(rates))
    differing = {name for rung in rungs for name in differing_fields(rungs[0], rung)}
    assert differing <= {
        *(f"model.{name}" for name in ("embed_dim", "num_layers", "num_heads", "mlp_dim")),
        "optimizer.peak_learning_rate",
    }


@pytest.mark.parametrize("zheng_trains", [False, True])
def test_no_donor_of_the_blood_corpora_is_on_both_sides(zheng_trains, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(blood, "_scmbert", lambda *words: commands.append(words) or 0)
    assert blood.build(tmp_path / "blood", Path("data"), zheng_trains) == 0
    built = {Path(words[2]).name: words for words in commands}
    assert [*built] == (["donors", "training"] if zheng_trains else ["donors", "zheng", "training"])
    training = built["training"]
    assert "donor=1256,101,107" in built["donors"]
    assert training[training.index("donor=1256,101,107") - 1] == "--exclude"
    apart = training[training.index("--disjoint-from") + 1 :]
    assert all(str(tmp_path / "blood" / name) in apart for name in built if name != "training")
    assert [any(file in word for word in training) for file in ("zheng_pbmc_facs", "donor_a")] == [zheng_trains] * 2
    assert not any("ifnb" in word or "hashed" in word for words in built.values() for word in words)
