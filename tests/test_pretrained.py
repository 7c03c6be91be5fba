"""The untrained twin of a model. Model folders: test_command_line, test_bad_input."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from scmbert_jax.models.scmbert import ModelDefinition
from scmbert_jax.pretrained import PretrainedModel


@pytest.fixture(scope="module")
def model(mixed_config, known_layout) -> PretrainedModel:
    """A model of all three objectives at the very start of its training: all it knows is its corpus's statistics."""
    definition = ModelDefinition(replace(mixed_config, model=replace(mixed_config.model, num_layers=1)), known_layout)
    params = jax.jit(definition.init)(jax.random.key(5, impl="threefry2x32"))
    info = {"step": 7, "covariates": {}, "provenance": {}}
    return PretrainedModel(definition.config, None, definition, params, info)


@pytest.fixture(scope="module")
def twin(model) -> PretrainedModel:
    return model.untrained(seed=5)


def linear_numbers(params) -> dict[str, np.ndarray]:
    """What a linear path starts from that is a result of cells."""
    path = params["linear"]
    between = {f"from {name}": own["linear"]["starts"] for name, own in path["between"].items()}
    between |= {f"memory {name}": own["neighbours"]["values"] for name, own in path["between"].items()}
    aligned = {f"aligned {name}": own["starts"] for name, own in params["alignment_head"]["linear"].items()}
    return {"loadings": path["loadings"], "offset": path["offset"], **between, **aligned}


def test_an_untrained_twin_knows_no_cell_of_the_corpus(model, twin):
    """Or the control would be a PCA, a ridge regression and a CCA."""
    assert all(np.abs(own).max() > 0 for own in linear_numbers(model.params).values())
    assert all(np.abs(own).max() == 0 for own in linear_numbers(twin.params).values())
    assert twin.info["step"] == 0
    assert model.info["step"] == 7


def test_an_untrained_twin_is_otherwise_a_model_of_its_seed(model, twin):
    other = model.untrained(seed=6)
    chex.assert_trees_all_equal_shapes(twin.params, model.params)
    # The model was made with the twin's seed.
    np.testing.assert_array_equal(twin.params["table"]["learned"], model.params["table"]["learned"])
    assert np.abs(twin.params["table"]["learned"] - other.params["table"]["learned"]).max() > 0.1
    # So that programs compiled for the model serve its twin.
    assert twin.definition is model.definition
