"""The benchmark of the input pipeline runs and says what it measured; how fast anything is, no test asks."""

import json
import sys

import mudata
import numpy as np
import pytest
from conftest import scmbert, scmbert_ok

from data_pipelines.corpus.corpus import open_corpus
from scmbert_jax.benchmarks import input_scaling
from scmbert_jax.benchmarks.input_cells import draw_counts
from scmbert_jax.benchmarks.input_scaling import PROCESSES, hash_of_batches, mixing_of
from scmbert_jax.benchmarks.input_speed import in_rounds
from scmbert_jax.benchmarks.peer_process import peer_program
from scmbert_jax.errors import ConfigError


@pytest.mark.nightly
def test_ours_is_measured_where_the_others_are_not_there_and_the_report_says_so(run_scmbert, tmp_path):
    options = ("--cells", "2300", "--lengths", "64", "--zero-fractions", "0", "--rounds", "1", "--folder", tmp_path)
    ran = run_scmbert("bench", "input", *options, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["ours, zstd, L 64, threads", "ours, none, L 64, threads"]
    assert all(row["cells_per_cpu_second"] > 0 and row["peak_rss_mib"] > 0 for row in rows.values())
    assert all(row["ratio"] is None for row in rows.values())
    assert set(found["not_measured"]) == {"annbatch", "scdataset"}
    sizes = found["bytes_per_cell"]
    assert sizes["ours, zstd"] < sizes["ours, none"] < sizes["h5ad, gzip"]
    other = run_scmbert("bench", "input", "--cells", "2400", *options[2:])
    assert other.code == ConfigError.exit_code
    assert "holds 2300 cells, not 2400" in other.err


def test_a_loader_that_cannot_be_run_is_an_error_that_says_why(tmp_path):
    peers = str(peer_program("loaders.py"))
    settings = {"annbatch": {"loader": "annbatch", "files": [], "store": str(tmp_path), "peers": peers}}
    with pytest.raises(ConfigError, match="no_python cannot be run"):
        in_rounds(settings, {"annbatch": "no_python"}, 1, lambda message: None)
    with pytest.raises(ConfigError, match=r"with annbatch stopped: [\s\S]*No module named 'annbatch'"):
        in_rounds(settings, {"annbatch": sys.executable}, 1, lambda message: None)


def test_sizes_that_cannot_be_are_refused():
    for options, said in (
        (("--rounds", "0"), "--rounds 0: expected 1"),
        (("--cells", "0"), "--cells 0"),
        (("--scaling", "--cells", "4096"), "expected 8192 or more"),
    ):
        ran = scmbert("bench", "input", *options)
        assert ran.code == ConfigError.exit_code
        assert said in ran.err


@pytest.mark.slow
def test_bytes_per_cell_of_a_file_are_those_of_the_same_counts(run_scmbert):
    ran = run_scmbert("bench", "input", "--files", "example:pbmc_mosaic", "--json")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)["rows"]
    assert row["cells"] == 1600
    assert 0 < row["corpus"] < row["raw_corpus"]
    assert row["corpus"] < row["gzip_h5ad"]
    assert row["corpus"] < row["zarr"]


def test_drawn_cells_are_as_deep_and_as_uneven_as_real_ones():
    counts, types = draw_counts(400, seed=3)
    genes = np.diff(counts.indptr)
    assert 1500 < genes.mean() < 1800
    assert 0.60 < (counts.data == 1).mean() < 0.70
    assert len(np.unique(types)) == 12
    again, _ = draw_counts(400, seed=3)
    assert (counts != again).nnz == 0


def test_batches_do_not_depend_on_the_number_of_processes_and_are_mixed(pbmc_corpus):
    with open_corpus(pbmc_corpus) as corpus:
        hashes = {hash_of_batches(corpus, number, batch_size=64) for number in PROCESSES}
        assert len(hashes) == 1
        coarse, fine = (mixing_of(corpus, "", 1, blocks, batch_size=64) for blocks in (1, 8))
    assert coarse.blocks < 4 < fine.blocks <= fine.blocks_shuffled * 1.05
    assert coarse.blocks_shuffled == pytest.approx(fine.blocks_shuffled, rel=0.1)


@pytest.mark.slow
def test_corpora_that_are_there_are_read_as_they_are(pbmc_corpus, monkeypatch):
    monkeypatch.setattr(input_scaling, "_STEPS_OF_LARGE", 2)
    found = json.loads(scmbert_ok("bench", "input", "--corpora", pbmc_corpus, "--cold", "--rounds", "1", "--json"))
    (row,) = found["rows"]
    assert row["changed"] == f"1,600 cells ({pbmc_corpus})"
    assert row["cells_per_second"] > 0
    assert row["peak_rss_mib"] > 50
    assert found["settings"]["cold"]
    ran = scmbert("bench", "input", "--cold")
    assert ran.code == ConfigError.exit_code
    assert "--cold: needs --corpora" in ran.err


def test_a_corpus_without_rna_is_not_read_for_it(mosaic_cells, tmp_path):
    mudata.MuData({"protein": mosaic_cells.to_mudata().mod["protein"]}).write_h5mu(tmp_path / "protein.h5mu")
    scmbert_ok("corpus", "build", tmp_path / "protein", tmp_path / "protein.h5mu", "--organism", "human")
    ran = scmbert("bench", "input", "--corpora", tmp_path / "protein")
    assert ran.code != 0
    assert "has protein and no RNA" in ran.err
