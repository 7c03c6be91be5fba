"""Cells without pairs: what one modality's barcodes say of the other's never reaches the corpus."""

import anndata
import numpy as np
import pandas as pd
import pytest

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.describe import describe_corpus, describe_text
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.cells import mudata_of, synthetic_cells
from scmbert_jax.errors import InputError

SMALL = {"min_genes": 5, "block_size": 16}


@pytest.fixture(scope="module")
def whole():
    return synthetic_cells(200, 100, 12, 30, num_batches=4, seed=0).to_mudata()


def with_other_barcodes(whole, modality: str, seed: int = 0):
    """The same matrices, rows in the same order, with the barcodes of one modality shuffled: every pair is another."""
    parts = {name: part.copy() for name, part in whole.mod.items()}
    shuffled = np.random.default_rng(seed).permutation(parts[modality].obs_names.to_numpy())
    assert not np.array_equal(shuffled, parts[modality].obs_names)
    parts[modality].obs_names = shuffled
    return mudata_of(parts)


def shards_of(corpus) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(corpus.path.glob("shard-*"))}


@pytest.mark.parametrize("form", ["one file", "two files"])
def test_other_barcodes_on_the_same_rows_give_an_unpaired_corpus_byte_for_byte(whole, form, tmp_path):
    def corpus_of(data, name: str, **options):
        (tmp_path / name).mkdir(exist_ok=True)
        if form == "one file":
            specs = tmp_path / name / "cells.h5mu"
            data.write_h5mu(specs)
        else:
            for part in ("rna", "protein"):
                data.mod[part].write_h5ad(tmp_path / name / f"{part}.h5ad")
            specs = f"{tmp_path / name / 'rna.h5ad'}+{tmp_path / name / 'protein.h5ad'}"
        return build_corpus(tmp_path / f"{name}_corpus{options.get('unpaired', '')}", [specs], **SMALL, **options)

    shuffled = with_other_barcodes(whole, "protein")
    first, second = corpus_of(whole, "as_measured", unpaired=True), corpus_of(shuffled, "shuffled", unpaired=True)
    assert second.fingerprint == first.fingerprint
    assert shards_of(second) == shards_of(first)
    if form == "one file":  # so that the proof is one: with pairs, the same change is seen
        plain = whole.copy()
        for data in (plain, shuffled):
            for part in data.mod.values():
                part.obs = part.obs.drop(columns=["cell_type", "technical_batch"])
            data.obs = data.obs[[]]
        assert corpus_of(shuffled, "b").fingerprint != corpus_of(plain, "a").fingerprint


def test_no_cell_of_an_unpaired_corpus_measures_two_modalities(whole, tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [whole], **SMALL, unpaired=True)
    assert corpus.num_cells == sum(part.n_obs for part in whole.mod.values())
    for index in range(corpus.num_blocks):
        block = corpus.read_block(index)
        measured = np.stack([columns.measured for columns in block.modalities.values()])
        np.testing.assert_array_equal(measured.sum(axis=0), 1)
        assert len(block.modalities) > 1, "the modalities are mixed within a block"
    assert corpus.information()["paired_cells"] == 0
    assert corpus.manifest["unpaired"]
    assert "cells were not joined by id" in describe_text(describe_corpus(corpus.path))


def test_an_unpaired_cell_keeps_its_counts_metadata_and_a_name_that_says_its_modality(whole, tmp_path):
    obs = build_corpus(tmp_path / "corpus", [whole], **SMALL, unpaired=True).obs().set_index("cell_id")
    for name, part in whole.mod.items():
        mine = obs.loc[[f"{cell}:{name}" for cell in part.obs_names]]
        assert mine["cell_type"].tolist() == part.obs["cell_type"].tolist()
        assert mine["technical_batch"].tolist() == part.obs["technical_batch"].tolist()


def test_metadata_that_only_the_mudata_has_reach_each_modality_but_a_copy_of_the_others_does_not():
    rows = {"rna": ["a", "b", "c"], "protein": ["b", "c", "d"]}
    parts = {
        name: anndata.AnnData(np.ones((3, 2), np.float32), obs=pd.DataFrame({"score": [1, 2, 3]}, index=ids))
        for name, ids in rows.items()
    }
    parts["rna"].var_names, parts["protein"].var_names = ["CD4", "CD8A"], ["cd4", "cd8a"]
    data = mudata_of(parts)
    data.obs["donor"] = [f"donor_{cell}" for cell in data.obs_names]
    dataset = open_dataset(data, unpaired=True)
    assert dataset.cell_ids.tolist() == ["a:rna", "b:rna", "c:rna", "b:protein", "c:protein", "d:protein"]
    assert dataset.obs["donor"].tolist() == ["donor_a", "donor_b", "donor_c", "donor_b", "donor_c", "donor_d"]
    assert dataset.obs["score"].tolist() == [1, 2, 3, 1, 2, 3]
    data.obs["rna:score"] = 7.0
    assert "rna:score" not in open_dataset(data, unpaired=True).obs


def test_poor_rna_takes_no_protein_profile_with_it_where_cells_are_not_paired(whole, tmp_path):
    data = whole.copy()
    data.mod["rna"].X[0] = 0
    data.mod["rna"].X[0, 0] = 1  # one gene: below min_genes
    corpus = build_corpus(tmp_path / "corpus", [data], **SMALL, unpaired=True)
    kept = set(corpus.obs()["cell_id"])
    poor = data.mod["rna"].obs_names[0]
    assert f"{poor}:rna" not in kept
    assert {f"{cell}:protein" for cell in data.mod["protein"].obs_names} <= kept


def test_files_of_other_cells_are_one_unpaired_data_set_where_pairing_refuses_them(whole, tmp_path):
    whole.mod["rna"].write_h5ad(tmp_path / "rna.h5ad")
    other = whole.mod["protein"].copy()
    other.obs_names = [f"other{row}" for row in range(other.n_obs)]
    other.write_h5ad(tmp_path / "protein.h5ad")
    together = f"{tmp_path / 'rna.h5ad'}+{tmp_path / 'protein.h5ad'}"
    with pytest.raises(InputError, match="no cell id occurs"):
        build_corpus(tmp_path / "paired", [together], **SMALL)
    corpus = build_corpus(tmp_path / "unpaired", [together], **SMALL, unpaired=True)
    assert corpus.num_cells == whole.mod["rna"].n_obs + other.n_obs
    # Two files that share ids are two data sets without question: nothing compares their ids.
    other.obs_names = whole.mod["protein"].obs_names
    other.write_h5ad(tmp_path / "protein.h5ad")
    specs = [tmp_path / "rna.h5ad", tmp_path / "protein.h5ad"]
    assert build_corpus(tmp_path / "two", specs, **SMALL, organism="human", unpaired=True).num_cells == corpus.num_cells


def test_barcodes_that_repeat_within_a_modality_are_refused_unpaired_as_well(whole, tmp_path):
    data = whole.mod["rna"].copy()
    data.obs_names = [data.obs_names[0], *data.obs_names[:-1]]
    with pytest.raises(InputError, match=r"1 cell ids occur more than once: 'cell0\S*:rna'"):
        build_corpus(tmp_path / "corpus", [data], **SMALL, unpaired=True)


def test_the_example_without_pairs_opens_as_a_corpus(tmp_path):
    with build_corpus(tmp_path / "corpus", ["example:pbmc_mosaic"], unpaired=True) as corpus:
        assert corpus.num_cells == 2400
    with open_corpus(tmp_path / "corpus") as corpus:
        assert corpus.manifest["cells_by_modalities"]["pbmc_mosaic/p3_0"] == {"rna": 400, "protein": 400}
