"""A run that starts from a model's weights: what is found there, what is fresh, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import shaken
from test_continuation import changed
from test_loop import SyntheticData, final_state

from data_pipelines.batches.trained_cells import TrainedCells
from data_pipelines.cells.cell_identity import NOT_MEASURED
from data_pipelines.features.feature_space import FeatureSpace, ModalityFeatures
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.parallel.mesh import make_mesh
from scmbert_jax.random_keys import init_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.init_from import SourceModel, check_fits, described, state_from
from scmbert_jax.training.loop import pretrain
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.warm_start import WarmStart, _rows, warm_start


def features(modality: str, space: str, ids: list[str]) -> ModalityFeatures:
    nothing = [""] * len(ids)
    return ModalityFeatures.sorted(
        modality, space, ids, ids, nothing, [-1] * len(ids), [-1] * len(ids), [()] * len(ids)
    )


@pytest.fixture(scope="module")
def config(tiny_config):
    silent = replace(tiny_config.modalities.atac, num_tokens=0)
    return changed(
        tiny_config,
        modalities={"atac": silent},
        model={"linear_path": False},
        train={"num_steps": 2, "checkpoint_every": 1},
    )


@pytest.fixture(scope="module")
def layout():
    from data_pipelines.synthetic.cells import synthetic_layout

    return synthetic_layout(40, 12, 0, {"technical_batch": 3})


@pytest.fixture(scope="module")
def source_of(config, layout):
    """rows of the run's features in the model -> a model whose every number differs from a fresh one."""
    definition = ModelDefinition(config, layout)
    params = shaken(jax.jit(definition.init)(jax.random.key(3, impl="threefry2x32")))

    def make(rows: np.ndarray, identity: str = "a") -> SourceModel:
        def read(placed):
            return jax.tree.map(lambda own, where: jax.device_put(own, where.sharding), params, placed)

        return SourceModel("MODEL", identity, 7, definition, rows, {"technical_batch": np.array([2, -1, 0])}, read)

    return make, params, definition


def start(source, config, layout, devices=1):
    model = ModelDefinition(config, layout)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return model, jax.device_get(state_from(source, model, make_optimizer(config, model), mesh))


def embedding(definition, params, batch: CellBatch) -> np.ndarray:
    @jax.jit
    def embed(params, constants, batch):
        model = definition.merge(params, constants)
        return model.cell_embedding(model.feature_table(), batch)

    return np.asarray(embed(params, definition.constants, batch))


@pytest.mark.slow
def test_features_in_another_order_give_the_embedding_of_the_model(source_of, config, layout, tiny_batch):
    make, params, definition = source_of
    order = np.concatenate([np.random.default_rng(0).permutation(40), 40 + np.random.default_rng(1).permutation(12)])
    # A protein keeps its gene, whatever row that has now.
    place = np.argsort(order)
    rows, genes = layout.links["protein"]
    linked = (place[rows].astype(np.int32), place[genes].astype(np.int32))
    here = replace(layout, links={"protein": linked})
    model, state = start(make(order), config, here, devices=8)
    data = SyntheticData(config, layout)
    _, there = next(iter(data.batches(0, 1)))
    moved = {
        name: own._replace(feature_ids=place[own.feature_ids].astype(np.int32))
        for name, own in there.modalities.items()
    }
    expected = embedding(definition, params, there)
    np.testing.assert_allclose(
        embedding(model, state.params, there._replace(modalities=moved)), expected, rtol=1e-4, atol=1e-5
    )
    assert np.abs(expected - embedding(model, state.params, there)).max() > 1e-2  # the order does matter
    assert state.step == 0


def test_new_features_start_from_their_links_or_fresh(source_of, config, layout):
    make, params, _ = source_of
    rows = np.arange(52)
    rows[5] = rows[45] = -1  # a gene; a protein whose gene the model knows
    assert layout.links["protein"][1][5] != 5
    model, state = start(make(rows), config, layout)
    fresh = jax.jit(model.init)(init_key(config.seed))
    learned, known = state.params["table"]["learned"], params["table"]["learned"]
    np.testing.assert_array_equal(learned[45], 0.0)
    np.testing.assert_array_equal(learned[5], fresh["table"]["learned"][5])
    np.testing.assert_array_equal(np.delete(learned[:52], [5, 45], 0), np.delete(known[:52], [5, 45], 0))
    told = described(make(rows), model)["features"]
    assert (told["rna"]["from_model"], told["rna"]["from_links"]) == (39, 0)
    assert (told["protein"]["from_model"], told["protein"]["from_links"]) == (11, 1)


def test_another_width_is_refused_by_its_field(config):
    wider = changed(config, model={"embed_dim": 32})
    with pytest.raises(ConfigError, match=r"model\.embed_dim: 16 there, 32 here"):
        check_fits(config, wider, "MODEL")


def test_another_species_is_refused(config):
    human = FeatureSpace({"rna": features("rna", "gene:human", ["ENSG1", "ENSG2"])})
    mouse = FeatureSpace({"rna": features("rna", "gene:mouse", ["ENSMUSG1"])})
    with pytest.raises(ConfigError, match="a model of human, and the corpus is of mouse"):
        _rows(Path("MODEL"), mouse, human, config)
    more = FeatureSpace({"rna": features("rna", "gene:human", ["ENSG0", "ENSG2", "ENSG1"])})
    assert _rows(Path("MODEL"), more, human, config).tolist() == [-1, 0, 1]


def test_a_model_without_a_feature_of_the_run_and_a_folder_without_a_model_are_refused(config, tmp_path):
    some = FeatureSpace({"rna": features("rna", "gene:human", ["ENSG1", "ENSG2"])})
    others = FeatureSpace({"rna": features("rna", "gene:human", ["ENSG3"])})
    with pytest.raises(ConfigError, match=r"none of the 1 features .*rna"):
        _rows(Path("MODEL"), others, some, config)
    with pytest.raises(CheckpointError, match="neither a model folder nor a run folder"):
        warm_start(tmp_path, config, some, {})
    with pytest.raises(CheckpointError, match="there is no such folder"):
        warm_start(tmp_path / "none", config, some, {})


def test_held_out_cells_that_the_model_has_trained_on_are_told(source_of):
    def cells(modality: str, *keys: int) -> TrainedCells:
        there = np.array(keys, np.uint64)
        return TrainedCells({modality: there}, there, np.zeros(len(keys), bool))

    held_out = cells("rna", 1, 2, NOT_MEASURED, 4)
    beginning = WarmStart(source_of[0](np.arange(52)), cells("rna", 2, NOT_MEASURED, 4, 7))
    (told,) = beginning.knows(held_out)
    assert "has trained on 2 of the 4 held-out cells" in told
    assert replace(beginning, cells=cells("protein", 1, 2)).knows(held_out) == []
    assert "unknown whether" in replace(beginning, cells=None).knows(held_out)[0]


@pytest.mark.slow
def test_a_run_records_its_beginning_and_keeps_to_it(source_of, config, layout, tmp_path):
    make, params, _ = source_of
    source, folder = make(np.arange(52)), tmp_path / "run"
    still = changed(config, optimizer={"peak_learning_rate": 1e-12})

    def run(init_from):
        options = {"init_from": init_from, "devices": jax.devices()[:1], "show_progress": False}
        return pretrain(still, SyntheticData(still, layout), folder, **options)

    run(source)
    recorded = json.loads((folder / "provenance.json").read_text())["init_from"]
    assert (recorded["model"], recorded["step"], recorded["features"]["rna"]["from_model"]) == ("MODEL", 7, 40)
    trained = final_state(still, layout, folder, 2).params
    np.testing.assert_allclose(trained["table"]["learned"][:52], params["table"]["learned"][:52], atol=1e-6)
    run(source)
    run(None)
    with pytest.raises(ConfigError, match=r"MODEL \(step 7\); --init-from MODEL "):
        run(make(np.arange(52), identity="b"))
    (folder / "checkpoints").rename(folder / "gone")
    with pytest.raises(ConfigError, match=r"has no checkpoint yet\. Give --init-from MODEL again"):
        run(None)
