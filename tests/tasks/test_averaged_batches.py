"""Of a model that is told the technical batch with the tokens, an embedding with no batch in it."""

from dataclasses import replace

import jax
import mudata
import numpy as np
import pytest
from conftest import shaken

from scmbert_jax.config import with_fields
from scmbert_jax.errors import ConfigError
from scmbert_jax.pretrained import load_model
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.tasks.embed import embed_dataset, told_the_batch

NUM_BATCHES = 3


@pytest.fixture(scope="module")
def told(pbmc_model):
    """The model of the tests with other numbers in it, told one of three batches with every token."""
    model = load_model(pbmc_model)
    fields = {"model.covariates": ("technical_batch",), "model.covariates_at": "tokens"}
    config = with_fields(model.config, fields)
    layout = replace(model.definition.layout, covariate_sizes={"technical_batch": NUM_BATCHES})
    definition = ModelDefinition(config, layout)
    params = shaken(jax.device_get(definition.init(jax.random.key(0))), 0.3)
    return replace(model, config=config, definition=definition, params=params)


def as_if_of(model, code):
    """The model that takes a cell of unknown batch for one of batch `code`."""
    params = jax.tree.map(np.array, model.params)
    table = params["embedding"]["covariates"]["tables"]["technical_batch"]
    table[0] = table[1 + code]
    return replace(model, params=params)


def test_it_is_the_mean_over_the_batches_that_the_model_knows(told, pbmc_few):
    cells = mudata.read_h5mu(pbmc_few).mod["rna"][:40].copy()
    averaged = embed_dataset(told, cells, average_batches=True).embeddings
    each = [embed_dataset(as_if_of(told, code), cells).embeddings for code in range(NUM_BATCHES)]
    assert np.abs(each[0] - each[1]).max() > 0.01  # or there is nothing to average
    np.testing.assert_allclose(averaged, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)


def test_a_model_that_is_not_told_has_nothing_to_average(pbmc_model, pbmc_few):
    model = load_model(pbmc_model)
    assert not told_the_batch(model)
    with pytest.raises(ConfigError, match="this one is not"):
        embed_dataset(model, pbmc_few, average_batches=True)
