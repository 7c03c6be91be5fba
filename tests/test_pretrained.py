"""The untrained twin of a model; a model folder in which no bit may flip. More of folders: test_bad_input."""

import json
import re
import shutil
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.pretrained import PretrainedModel, export_model, load_model
from scmbert_jax.random_keys import init_key
from scmbert_jax.scmbert import ModelDefinition


@pytest.fixture(scope="module")
def model(mixed_config, known_layout) -> PretrainedModel:
    """A model of all three objectives at the very start of its training: all it knows is its corpus's statistics."""
    definition = ModelDefinition(replace(mixed_config, model=replace(mixed_config.model, num_layers=1)), known_layout)
    params = jax.jit(definition.init)(init_key(5))
    info = {"step": 7, "covariates": {}, "provenance": {}}
    return PretrainedModel(definition.config, None, definition, params, definition.constants, info)


@pytest.fixture(scope="module")
def twin(model) -> PretrainedModel:
    return model.untrained(seed=5)


def linear_numbers(constants) -> dict[str, np.ndarray]:
    """What a linear path starts from that is a result of cells."""
    path = constants["linear"]
    between = {f"from {name}": own["linear"]["starts"] for name, own in path["between"].items()}
    between |= {f"memory {name}": own["neighbours"]["values"] for name, own in path["between"].items()}
    aligned = {f"aligned {name}": own["starts"] for name, own in constants["alignment_head"]["linear"].items()}
    return {"loadings": path["loadings"], "offset": path["offset"], **between, **aligned}


def test_an_untrained_twin_knows_no_cell_of_the_corpus(model, twin):
    """Or the control would be a PCA, a ridge regression and a CCA."""
    assert all(np.abs(own).max() > 0 for own in linear_numbers(model.constants).values())
    assert all(np.abs(own).max() == 0 for own in linear_numbers(twin.constants).values())
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


def test_a_bit_that_flipped_in_any_file_of_a_model_folder_is_noticed(pbmc_model, tmp_path):
    folder = shutil.copytree(pbmc_model, tmp_path / "model")
    rng = np.random.default_rng(0)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        whole = path.read_bytes()
        for _ in range(3):
            place, bit = rng.integers(len(whole)), rng.integers(8)
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=re.escape(str(folder))) as refusal:
                load_model(folder)
            assert (
                path.name in str(refusal.value) or "model.json" in str(path) or "format version" in str(refusal.value)
            )
        path.write_bytes(whole)
    assert load_model(folder).info["step"] == 6


def test_a_model_folder_does_not_tell_where_it_was_made(pbmc_run, tmp_path):
    export_model(pbmc_run, tmp_path / "model")
    made_in = str(pbmc_run.parent).encode()
    for path in (path for path in (tmp_path / "model").rglob("*") if path.is_file()):
        assert not any(words in path.read_bytes() for words in (made_in, bytes(tmp_path))), path
    provenance = load_model(tmp_path / "model").info["provenance"]
    assert "command" in json.loads((pbmc_run / "provenance.json").read_text())
    assert "command" not in provenance
    assert all("/" not in corpus["path"] for corpus in provenance["data"]["corpora"])


def test_a_model_may_be_exported_and_loaded_for_other_hardware(pbmc_run, tmp_path):
    assert export_model(pbmc_run, tmp_path / "model", attention="xla_chunked").config.model.attention == "xla_chunked"
    assert load_model(tmp_path / "model").config.model.attention == "xla_chunked"
    assert load_model(tmp_path / "model", attention="xla").config.model.attention == "xla"
    with pytest.raises(ConfigError, match="attention is 'none'"):
        load_model(tmp_path / "model", attention="none")
