"""Building a corpus: nothing lost, nothing invented, well mixed, and either whole or not there."""

import anndata
import numpy as np
import pandas as pd
import pytest

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.external_shuffle import cell_hashes
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.manifest import MANIFEST
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.synthetic.cells import SyntheticCells
from scmbert_jax.errors import CorpusError, InputError

SMALL = {"min_genes": 5, "block_size": 16}


@pytest.fixture(scope="module")
def cells(mosaic_cells) -> SyntheticCells:
    return mosaic_cells


def all_blocks(corpus) -> list:
    return [corpus.read_block(index) for index in range(corpus.num_blocks)]


def dense_counts(corpus, modality: str) -> np.ndarray:
    """int64 [num_cells, features], and nowhere a cell written twice."""
    dense = np.zeros((corpus.num_cells, len(corpus.feature_space.modalities[modality])), np.int64)
    for block in all_blocks(corpus):
        if modality not in block.modalities:
            continue
        columns = block.modalities[modality]
        starts = np.concatenate([[0], np.cumsum(columns.lengths)])
        for cell, row in enumerate(block.cell_index):
            entries = slice(starts[cell], starts[cell + 1])
            assert not dense[row].any()
            dense[row, columns.feature_ids[entries]] = columns.counts[entries]
    return dense


def test_every_count_of_a_mosaic_arrives_and_no_other(cells, mosaic_file, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [mosaic_file], **SMALL)
    obs = corpus.obs()
    source_row = pd.Index(cells.cell_ids).get_indexer(obs["cell_id"])
    assert sorted(source_row) == list(range(300))
    for name in corpus.modalities:
        order = np.argsort(cells.feature_ids[name])
        np.testing.assert_array_equal(
            dense_counts(corpus, name), cells.counts[name].toarray()[source_row][:, order], err_msg=name
        )
        measured = np.concatenate(
            [
                block.modalities[name].measured if name in block.modalities else np.zeros(block.num_cells, bool)
                for block in all_blocks(corpus)
            ]
        )
        np.testing.assert_array_equal(measured, cells.measured[name][source_row])
    np.testing.assert_array_equal(obs["cell_type"], cells.cell_type[source_row])
    codes = np.concatenate([block.obs_codes["cell_type"] for block in all_blocks(corpus)])
    np.testing.assert_array_equal(np.array(corpus.vocabularies["cell_type"])[codes], obs["cell_type"])
    assert verify_corpus(corpus.path).ok


def test_blocks_are_balanced_and_cells_are_in_hash_order(mosaic_file, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [mosaic_file], **SMALL, seed=3)
    sizes = [block.num_cells for block in all_blocks(corpus)]
    assert len(sizes) == -(-300 // 16)
    assert max(sizes) - min(sizes) <= 1
    hashes = cell_hashes(3, 0, corpus.obs()["cell_id"].to_numpy())
    assert np.all(np.diff(hashes.astype(object)) > 0)


@pytest.mark.parametrize("change", [{"shard_bytes": 3000}, {"codec": "none"}])
def test_the_batches_do_not_depend_on_how_it_is_stored(mosaic_file, tmp_path, change):
    plain = build_corpus(tmp_path / "plain", [mosaic_file], **SMALL)
    other = build_corpus(tmp_path / "other", [mosaic_file], **SMALL, **change)
    assert other.fingerprint == plain.fingerprint
    if "shard_bytes" in change:
        assert len(other.manifest["shards"]) > 3
        assert verify_corpus(other.path).ok


def test_another_seed_is_another_corpus(mosaic_file, tmp_path):
    first, second = (build_corpus(tmp_path / str(seed), [mosaic_file], **SMALL, seed=seed) for seed in (0, 1))
    assert first.fingerprint != second.fingerprint
    assert first.obs()["cell_id"].tolist() != second.obs()["cell_id"].tolist()
    assert sorted(first.obs()["cell_id"]) == sorted(second.obs()["cell_id"])


def test_data_sets_share_one_feature_space_and_remember_what_each_measured(cells, tmp_path):
    data = cells.to_mudata().mod["rna"]
    first, second = data[:, :80].copy(), data[:100, 40:].copy()
    second.obs_names = ["other_" + name for name in second.obs_names]
    second.obs["technical_batch"] = "batch0"
    corpus = build_corpus(tmp_path / "corpus", [first, second], **SMALL)
    ids = corpus.feature_space.modalities["rna"].ids
    assert len(ids) == 120
    assert set(ids[corpus.measured(0, "rna")]) == set(first.var_names)
    assert set(ids[corpus.measured(1, "rna")]) == set(second.var_names)
    obs = corpus.obs()
    assert set(obs["dataset"]) == {"adata", "adata_2"}
    assert {"adata/batch0", "adata_2/batch0"} <= set(corpus.vocabularies["technical_batch"]), "not the same batch"
    blocks_with_both = sum(len(set(block.obs_codes["dataset"])) == 2 for block in all_blocks(corpus))
    assert blocks_with_both == corpus.num_blocks


def test_columns_of_one_gene_are_summed(cells, tmp_path):
    data = cells.to_mudata().mod["rna"]
    from data_pipelines.features.gene_tables import load_gene_table

    table = load_gene_table("human")
    gene = data.var_names[0]
    twin = anndata.AnnData(data.X[:, [0]].copy(), obs=data.obs, var=pd.DataFrame(index=[gene + ".7"]))
    both = anndata.concat([data, twin], axis=1, merge="first")
    corpus = build_corpus(tmp_path / "corpus", [both], **SMALL)
    assert gene in table.row_of_id
    row = corpus.feature_space.modalities["rna"].index_of([gene])[0]
    assert len(corpus.feature_space.modalities["rna"]) == 120
    assert dense_counts(corpus, "rna")[:, row].sum() == 2 * data.X[:, 0].sum()


def test_cells_that_are_dropped_are_counted_and_explained(cells, tmp_path):
    data = cells.to_mudata().mod["rna"].copy()
    counts = data.X.tolil()
    counts[3] = 0
    counts[4] = 0
    counts[4, :3] = 1
    data.X = counts.tocsr()
    corpus = build_corpus(tmp_path / "corpus", [data], **SMALL)
    entry = corpus.datasets[0]
    assert entry["cells_read"] == data.n_obs
    assert entry["cells"] == corpus.num_cells == data.n_obs - 2
    assert entry["modalities"]["rna"]["cells_dropped"] == {"without counts": 1, "with fewer than 5 genes": 1}
    assert not {data.obs_names[3], data.obs_names[4]} & set(corpus.obs()["cell_id"])


def test_the_manifest_names_files_but_no_folder_of_this_machine(mosaic_file, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [mosaic_file], **SMALL)
    text = (corpus.path / MANIFEST).read_text()
    assert "mosaic.h5mu" in text
    assert str(mosaic_file.parent) not in text
    assert str(tmp_path) not in text


REAL_FILES = {
    "pbmc_facs": (["pbmc_facs/zheng_pbmc_facs.h5ad"], {}),
    "snareseq": (["snareseq_cortex/rna.h5ad", "snareseq_cortex/atac.h5ad"], {"min_genes": 50, "assembly": "mm10"}),
    "citeseq": (["citeseq_pbmc1k/1K_pbmc_citeseq.h5"], {}),
}


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_become_a_sound_corpus_smaller_than_they_are(shared_data, tmp_path, name):
    files, options = REAL_FILES[name]
    corpus = build_corpus(tmp_path / "corpus", ["+".join(str(shared_data / file) for file in files)], **options)
    report = verify_corpus(corpus.path)
    assert report.problems == ()
    assert report.num_cells == corpus.datasets[0]["cells"] > 0.9 * corpus.datasets[0]["cells_read"]
    size = sum(path.stat().st_size for path in corpus.path.iterdir())
    assert size < sum((shared_data / file).stat().st_size for file in files)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_files_of_the_same_cells_are_refused_with_the_way_to_pair_them(cells, tmp_path):
    data = cells.to_mudata()
    for name in ("rna", "atac"):
        data.mod[name].write_h5ad(tmp_path / f"{name}.h5ad")
    with pytest.raises(InputError, match=r"share .* cell ids.*rna\.h5ad\+.*atac\.h5ad"):
        build_corpus(tmp_path / "corpus", [tmp_path / "rna.h5ad", tmp_path / "atac.h5ad"], **SMALL)
    assert not (tmp_path / "corpus").exists()


def test_the_same_file_twice_is_refused(mosaic_file, tmp_path):
    with pytest.raises(InputError, match="same file"):
        build_corpus(tmp_path / "corpus", [mosaic_file, mosaic_file], **SMALL)


def test_a_data_set_that_cannot_be_used_leaves_nothing_behind(cells, tmp_path):
    data = cells.to_mudata().mod["rna"].copy()
    data.X = data.X.log1p()
    with pytest.raises(InputError, match="log-normalised"):
        build_corpus(tmp_path / "corpus", [data], **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_corpus_is_replaced_only_when_asked(mosaic_file, tmp_path):
    out = tmp_path / "corpus"
    first = build_corpus(out, [mosaic_file], **SMALL)
    with pytest.raises(CorpusError, match="--overwrite"):
        build_corpus(out, [mosaic_file], **SMALL, seed=1)
    assert open_corpus(out).fingerprint == first.fingerprint
    second = build_corpus(out, [mosaic_file], **SMALL, seed=1, overwrite=True)
    assert open_corpus(out).fingerprint == second.fingerprint != first.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_overwrite_never_replaces_what_is_no_corpus(mosaic_file, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("all of it")
    with pytest.raises(CorpusError, match="is not a corpus"):
        build_corpus(tmp_path / "thesis", [mosaic_file], **SMALL, overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "all of it"


def test_a_second_build_of_the_same_corpus_waits_for_nobody_but_says_so(mosaic_file, tmp_path):
    def build_again(stage: str, done: int, total: int) -> None:
        if stage == "writing" and done == 1:
            with pytest.raises(CorpusError, match="another process is building"):
                build_corpus(tmp_path / "corpus", [mosaic_file], **SMALL)

    build_corpus(tmp_path / "corpus", [mosaic_file], **SMALL, progress=build_again)
    assert verify_corpus(tmp_path / "corpus").ok


def test_a_place_that_is_no_folder_is_an_error_with_the_path(mosaic_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match=r"file/corpus.building: cannot be written \(Not a directory\)"):
        build_corpus(tmp_path / "file" / "corpus", [mosaic_file], **SMALL)


def test_a_build_killed_while_replacing_brings_the_old_corpus_back(mosaic_file, tmp_path):
    out = tmp_path / "corpus"
    first = build_corpus(out, [mosaic_file], **SMALL)
    out.rename(tmp_path / "corpus.replaced")  # the moment between the two renames
    with pytest.raises(CorpusError, match="--overwrite"):
        build_corpus(out, [mosaic_file], **SMALL)
    assert open_corpus(out).fingerprint == first.fingerprint
