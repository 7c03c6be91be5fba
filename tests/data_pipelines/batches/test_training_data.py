"""The data of a run that continues: what was measured at its start is read again, not measured again."""

import chex
import pytest

from data_pipelines.batches import training_data
from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.read_ahead import ReadAhead
from data_pipelines.batches.trained_cells import TRAINED_CELLS, load_trained_cells
from data_pipelines.batches.training_data import MixtureData
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.cells.cell_identity import barcode_keys
from data_pipelines.cells.cell_metadata import KEY_COLUMNS
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import CheckpointError, InputError
from scmbert_jax.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("corpus") / str(seed) for seed in (0, 1)]
    for seed, path in enumerate(paths):
        build_corpus(path, [synthetic_cells(120, 60, 0, 0, seed=seed).to_mudata()], min_genes=1, block_size=12)
    return paths


def data_of(corpus_path, started_run) -> MixtureData:
    sampling = {"rna": TokenSampling(20, 0.25)}
    corpus = open_corpus(corpus_path)
    reader = BatchReader(corpus, sampling, seed=0, global_batch_size=12, num_streams=2, window_blocks=2)
    return MixtureData(reader, ReadAhead("threads"), {"rna": 1e4}, started_run=started_run)


@pytest.fixture
def run(corpora, tiny_config, tmp_path):
    data = data_of(corpora[0], tmp_path)
    RunFolder(tmp_path, tiny_config, data).close()
    return tmp_path, data


def test_a_run_that_goes_on_has_the_statistics_it_began_with(corpora, run, monkeypatch):
    folder, first = run

    def again(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(training_data, "feature_statistics", again)
    chex.assert_trees_all_equal(first.layout.statistics, data_of(corpora[0], folder).layout.statistics, strict=True)
    with pytest.raises(AssertionError, match="measured again"):
        _ = data_of(corpora[1], folder).layout  # other cells: whoever opens the folder refuses them


def test_statistics_that_are_damaged_are_named(corpora, run):
    folder, _ = run
    (folder / "feature_statistics.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"feature_statistics\.npz: cannot be read"):
        _ = data_of(corpora[0], folder).layout


def test_a_run_keeps_the_keys_of_its_cells_and_damage_to_them_is_named(corpora, run, monkeypatch):
    folder, _ = run
    kept = load_trained_cells(folder / TRAINED_CELLS)
    obs = open_corpus(corpora[0]).obs()
    assert sorted(kept.keys["rna"].tolist()) == sorted(obs[KEY_COLUMNS["rna"]].tolist())
    assert kept.barcodes.tolist() == barcode_keys(obs["cell_id"].to_numpy()).tolist()
    assert not kept.by_program.any()
    (folder / TRAINED_CELLS).write_bytes((folder / TRAINED_CELLS).read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"trained_cells\.npz: damaged"):
        load_trained_cells(folder / TRAINED_CELLS)


@pytest.mark.parametrize("why", ["too many cells", "keys of an earlier version"])
def test_a_run_that_cannot_tell_its_cells_keeps_none(corpora, tiny_config, tmp_path, monkeypatch, why):
    if why == "too many cells":
        monkeypatch.setattr("data_pipelines.batches.trained_cells.MOST_CELLS", 119)
    else:
        monkeypatch.setattr("data_pipelines.batches.trained_cells.KEY_VERSION", 3)
    RunFolder(tmp_path, tiny_config, data_of(corpora[0], None)).close()
    assert load_trained_cells(tmp_path / TRAINED_CELLS) is None
