"""What a corpus and other data have in common: cells whatever their file calls them, donors, batches, files."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import scmbert, scmbert_ok

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.corpus_overlap import cells_of_corpus, open_known_cells, overlap, overlap_text
from data_pipelines.cells.cell_metadata import KEY_COLUMNS
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.manifest import OBS
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import CorpusError, InputError

SMALL = {"min_genes": 5, "block_size": 16}


@pytest.fixture(scope="module")
def whole():
    """160 cells with RNA and protein, all paired, in four batches; ids with barcodes."""
    data = synthetic_cells(160, 100, 12, 0, num_batches=4, mosaic=False, seed=0).to_mudata()
    barcodes = np.random.default_rng(0).choice(list("ACGT"), (data.n_obs, 16))
    names = ["".join(letters) + "-1" for letters in barcodes]
    for part in data.mod.values():
        part.obs_names = names
        part.obs["donor"] = [f"d{row % 5}" for row in range(data.n_obs)]
    data.obs_names = names
    data.update()
    return data


def named(data, before: str):
    data = data.copy()
    data.obs_names = [f"{before}_{name}" for name in data.obs_names]
    return data


def found(corpus, other) -> dict:
    with open_corpus(corpus.path) as opened:
        return overlap(cells_of_corpus(opened), open_known_cells(other, organism="human"))


def test_cells_of_a_file_are_known_again_in_a_corpus_of_others(whole, tmp_path):
    rna = whole.mod["rna"]
    corpus = build_corpus(tmp_path / "corpus", [rna[:100].copy()], **SMALL)
    kept = set(corpus.obs()["cell_id"])
    other = named(rna[60:, ::-1], "held_out")
    expected = sum(name.removeprefix("held_out_") in kept for name in other.obs_names)
    result = found(corpus, other)
    assert result["cells_in_both"] == expected > 20
    assert result["barcodes_in_both"] >= expected
    assert result["other"]["cells"] == other.n_obs
    assert result["shared"]["donor"] == ["d0", "d1", "d2", "d3", "d4"]
    assert result["shared"]["dataset_id"] is None  # neither has the field, so that nothing is known of it
    nothing = found(corpus, rna[100:].copy())
    assert nothing["cells_in_both"] == 0
    assert nothing["shared"]["technical_batch"]


def test_two_corpora_are_compared_without_their_files(whole, tmp_path):
    rna = whole.mod["rna"]
    first = build_corpus(tmp_path / "first", [rna[:100].copy()], **SMALL)
    second = build_corpus(tmp_path / "second", [named(rna[60:], "x")], **SMALL, seed=5)
    both = set(first.obs()["cell_id"]) & {name.removeprefix("x_") for name in second.obs()["cell_id"]}
    assert found(first, second.path)["cells_in_both"] == len(both) > 20
    assert found(second, first.path)["cells_in_both"] == len(both)


def test_of_other_features_too_and_the_corpus_is_read_for_it(whole, tmp_path):
    """The corpus lacks ten genes of the file, and the file ten of the corpus: keys over all features all differ."""
    rna = whole.mod["rna"]
    corpus = build_corpus(tmp_path / "corpus", [rna[:100, 10:].copy(), named(rna[100:110], "more")], **SMALL)
    other = rna[50:, :90].copy()
    kept = {name.removeprefix("more_") for name in corpus.obs()["cell_id"]}
    mine = set(corpus.obs()[KEY_COLUMNS["rna"]])
    with_counts = [name for name in other.obs_names if name in kept]
    result = found(corpus, other)
    assert result["cells_in_both"] == len(with_counts) > 30
    theirs = open_known_cells(other).sets[0].keys["rna"]
    assert sum(key in mine for key in theirs.tolist()) < 10


def test_a_few_genes_in_both_are_enough_and_chance_is_named_only_where_it_explains(whole, tmp_path):
    """A corpus of 30 of the genes: the cells of the file are found by these. The same barcodes with other counts are
    more than chance gives, and are said to be so."""
    rna = whole.mod["rna"]
    corpus = build_corpus(tmp_path / "corpus", [rna[:100, :30].copy()], min_genes=1, block_size=16)
    kept = set(corpus.obs()["cell_id"])
    result = found(corpus, named(rna[50:], "x"))
    assert result["cells_in_both"] == len(kept & set(rna.obs_names[50:])) > 30
    assert "0 more have a barcode that occurs there, with other counts; chance gives up to 0" in overlap_text(result)
    changed = rna[50:].copy()
    changed.X = changed.X.tocsr() * 2
    result = found(corpus, changed)
    assert result["cells_in_both"] == 0
    assert result["barcodes_in_both"] == len(kept & set(rna.obs_names[50:]))
    text = overlap_text(result)
    assert "chance gives up to 0 and does not explain them. They may be the same cells, counted by another" in text
    assert "leave out what they come from (donors, batches, data sets in both)" in text


def test_a_corpus_is_read_once_for_all_its_data_sets(whole, tmp_path, monkeypatch):
    rna = whole.mod["rna"]
    corpus = build_corpus(tmp_path / "corpus", [rna[:60, :90].copy(), rna[60:120, :80].copy()], **SMALL)
    read, blocks = type(corpus).read_block, []
    monkeypatch.setattr(
        type(corpus), "read_block", lambda self, index, *rest: blocks.append(index) or read(self, index, *rest)
    )
    result = found(corpus, rna[:, 10:].copy())
    assert result["cells_in_both"] == corpus.num_cells
    assert blocks == list(range(corpus.num_blocks))


def test_one_modality_is_enough_to_be_in_both(whole, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [whole[:80].copy()], **SMALL)
    protein = whole.mod["protein"][40:].copy()
    result = found(corpus, protein)
    assert result["cells_in_both"] == len(set(corpus.obs()["cell_id"]) & set(protein.obs_names)) > 20


def test_a_disjoint_corpus_has_none_of_the_cells_and_says_so(whole, tmp_path):
    rna = whole.mod["rna"]
    held_out = build_corpus(tmp_path / "held_out", [named(rna[:40], "test")], **SMALL)
    train = build_corpus(tmp_path / "train", [rna.copy()], **SMALL, disjoint_from=[held_out.path])
    assert found(train, held_out.path)["cells_in_both"] == 0
    assert set(train.obs()["cell_id"]).isdisjoint(name.removeprefix("test_") for name in held_out.obs()["cell_id"])
    everything = build_corpus(tmp_path / "all", [rna.copy()], **SMALL)
    assert everything.num_cells == train.num_cells + held_out.num_cells
    (stated,) = train.manifest["disjoint_from"]
    assert (stated["name"], stated["identity"]) == ("held_out", held_out.fingerprint)
    assert stated["cells_dropped"] == train.datasets[0]["known_cells_dropped"] == held_out.num_cells
    assert stated["shared"]["donor"] == ["d0", "d1", "d2", "d3", "d4"]
    card = (train.path / "DATA_CARD.md").read_text()
    assert f"`held_out` ({held_out.num_cells} cells, `{held_out.fingerprint}`): {held_out.num_cells} cells of" in card
    assert "- donor in both: d0, d1, d2, d3, d4\n" in card
    assert "- dataset_id in both: not known of both\n" in card


def test_a_cell_goes_when_any_of_its_modalities_is_known(whole, tmp_path):
    protein = whole.mod["protein"][:30].copy()
    train = build_corpus(tmp_path / "train", [whole], **SMALL, disjoint_from=[protein], organism="human")
    assert set(train.obs()["cell_id"]).isdisjoint(protein.obs_names)
    assert train.num_cells >= 120


def test_files_of_which_nothing_is_left_are_refused(whole, tmp_path):
    with pytest.raises(InputError, match="every cell is in adata"):
        build_corpus(tmp_path / "c", [whole.mod["rna"][:50].copy()], **SMALL, disjoint_from=[whole.mod["rna"]])


def test_a_corpus_of_an_earlier_version_says_what_it_lacks(whole, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [whole.mod["rna"]], **SMALL)
    obs = pq.read_table(corpus.path / OBS).drop_columns(KEY_COLUMNS["rna"])
    pq.write_table(obs, corpus.path / OBS)
    size, sha256 = (corpus.path / OBS).stat().st_size, hashlib.sha256((corpus.path / OBS).read_bytes()).hexdigest()
    corpus.manifest["files"][OBS] = {"bytes": size, "sha256": sha256}
    del corpus.manifest["manifest_sha256"]
    (corpus.path / "manifest.json").write_text(json.dumps(corpus.manifest))
    with pytest.raises(CorpusError, match=r"no column 'cell_key_rna'.* earlier version: build it again"):
        found(corpus, whole.mod["rna"])
    corpus = build_corpus(tmp_path / "keys", [whole.mod["rna"]], **SMALL)
    del corpus.manifest["cell_keys"], corpus.manifest["manifest_sha256"]
    (corpus.path / "manifest.json").write_text(json.dumps(corpus.manifest))
    with pytest.raises(CorpusError, match=r"cell keys .*build it again"):
        found(corpus, whole.mod["rna"])


def test_on_the_command_line(whole, tmp_path):
    rna = whole.mod["rna"]
    for name, cells in (("train", slice(0, 100)), ("test", slice(80, 160))):
        rna[cells].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    build = ("corpus", "build", tmp_path / "corpus", tmp_path / "train.h5ad", "--min-genes", "1")
    scmbert_ok(*build)
    text = scmbert_ok("corpus", "overlap", tmp_path / "corpus", tmp_path / "test.h5ad")
    document = json.loads(scmbert_ok("corpus", "overlap", tmp_path / "corpus", tmp_path / "test.h5ad", "--json"))
    assert document["cells_in_both"] == 20
    assert text.startswith(
        "20 of the 80 cells of test (25.0%) are in corpus (100 cells): the same barcode and the same"
    )
    assert "  the same files: none\n  donor in both: d0, d1" in text
    same = json.loads(scmbert_ok("corpus", "overlap", tmp_path / "corpus", tmp_path / "train.h5ad", "--json"))
    assert same["shared"]["files"] == ["train.h5ad"]
    out = scmbert_ok(*build, "--overwrite", "--disjoint-from", tmp_path / "test.h5ad")
    assert "without the cells of test: 20 were dropped" in out
    text = scmbert_ok("corpus", "overlap", tmp_path / "corpus", tmp_path / "test.h5ad")
    assert text.startswith("none of the 80 cells of test is in corpus (80 cells)")
    ran = scmbert("corpus", "overlap", tmp_path / "corpus", tmp_path / "nothing.h5ad")
    assert ran.code != 0
    assert "no such file" in ran.err
