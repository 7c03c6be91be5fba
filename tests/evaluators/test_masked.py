"""Bits of masked values in the metrics of a run: beside baselines that stay, the same on any mesh, in its report."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import shaken

from scmbert_jax.config import MaskedModelingConfig, WholeProfileConfig
from scmbert_jax.evaluation.pretraining import masked_cells, pca_ridge
from scmbert_jax.evaluators import masked
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs
from scmbert_jax.parallel.mesh import replicated


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(masked_cells, "_MOST_DRAWS", 1)
    monkeypatch.setattr(pca_ridge, "COMPONENTS", (8,))
    monkeypatch.setattr(pca_ridge, "STRENGTHS", (100.0,))


def found(inputs: EvaluatorInputs, noise: tuple[float, ...]) -> list[dict[str, float]]:
    """What one evaluator finds of models with so much noise on all parameters."""
    evaluator, model = masked.make(inputs), inputs.model
    with jax.set_mesh(inputs.mesh):
        everywhere = replicated(inputs.mesh)
        constants, start = jax.device_put(model.constants, everywhere), jax.jit(model.init)(jax.random.key(0))
        return [dict(evaluator(0, jax.device_put(shaken(start, size), everywhere), constants)) for size in noise]


@pytest.mark.slow
def test_models_differ_and_baselines_stay_and_no_mesh_changes_either(held_out_inputs):
    first, second = found(held_out_inputs(1), (0.1, 0.0))
    fixed = [name for name in first if name.endswith(("_marginal", "_rate", "_pca"))]
    assert {name.split("/")[0] for name in fixed} == {"rna", "protein"}
    assert {name: first[name] for name in fixed} == {name: second[name] for name in fixed}
    assert len({first["rna/bits"], first["rna/bits_cls"], first["rna/bits_linear_path_alone"], second["rna/bits"]}) == 4
    assert all(np.isfinite(value) for value in first.values())
    # Untrained it knows each feature's tokens, but not that zeros are rarer among those of one cell than of another.
    assert second["rna/bits_marginal"] < second["rna/bits"] < 1.2 * second["rna/bits_marginal"]
    levels = [name for name in first if name.startswith("rna/level/") and name.endswith("/bits")]
    assert "rna/level/0/bits" in levels
    assert len(levels) > 3
    (on_eight,) = found(held_out_inputs(8), (0.1,))
    assert on_eight == pytest.approx(first, rel=1e-4)


def test_a_run_that_says_nothing_of_masked_values_is_not_asked(held_out_inputs):
    config = held_out_inputs(1).config
    only = dataclasses.replace(
        config.objectives, masked_modeling=MaskedModelingConfig(weight=0.0), whole_profile=WholeProfileConfig(1.0)
    )
    bins = dataclasses.replace(config.modalities.rna, likelihood="bins")  # of which a decoder of counts says nothing
    modalities = dataclasses.replace(config.modalities, rna=bins)
    silent = dataclasses.replace(config, objectives=only, modalities=modalities)
    with pytest.raises(CannotEvaluate, match="how likely a masked value is"):
        masked.make(held_out_inputs(1, silent))
