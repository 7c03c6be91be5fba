"""Readers: what was written comes back, in any storage, with memory bounded by the chunk; broken files say so."""

import re
import tracemalloc
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.reading_options import ReadingOptions
from scmbert_jax.errors import InputError

ad = pytest.importorskip("anndata")
md = pytest.importorskip("mudata")

GENES = ["CD4", "MS4A1", "CD3E", "LYZ", "GNLY", "NKG7", "CD8A"]
warnings.filterwarnings("ignore", module="anndata|mudata")


def counts(cells=23, features=7, seed=0, density=0.4) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(2.0, (cells, features)) * (rng.random((cells, features)) < density))


def cells(matrix=None, genes=None, **changes):
    matrix = counts() if matrix is None else matrix
    obs = pd.DataFrame(
        {"celltype": pd.Categorical(["T", "B", "T"] * matrix.shape[0])[: matrix.shape[0]], "depth": 1.5},
        index=[f"cell{i}" for i in range(matrix.shape[0])],
    )
    var = pd.DataFrame(index=genes or GENES[: matrix.shape[1]])
    return ad.AnnData(X=matrix, obs=obs, var=var, **changes)


def read_all(matrix, rows=4096) -> np.ndarray:
    parts = list(matrix.chunks(rows))
    assert [first for first, _ in parts] == list(range(0, matrix.shape[0], rows))
    assert all(part.has_sorted_indices and not np.any(part.data == 0) for _, part in parts)
    return sp.vstack([part for _, part in parts]).toarray()


# ---- storage


@pytest.mark.parametrize("storage", [sp.csr_matrix, sp.csc_matrix, lambda m: m.toarray()], ids=["csr", "csc", "dense"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "float32", "float64"])
@pytest.mark.parametrize("rows", [5, 4096])
def test_every_storage_and_dtype_gives_back_what_was_written(tmp_path, storage, dtype, rows):
    expected = counts()
    cells(storage(expected.astype(dtype))).write_h5ad(tmp_path / "x.h5ad")
    matrix = open_dataset(tmp_path / "x.h5ad").matrices[0]
    assert matrix.shape == (23, 7)
    assert np.array_equal(read_all(matrix, rows), expected.toarray())
    assert np.array_equal(read_all(matrix, rows), expected.toarray())  # a second pass reads the same


@pytest.mark.parametrize("storage", [sp.csr_matrix, sp.csc_matrix, lambda m: m.toarray()], ids=["csr", "csc", "dense"])
def test_an_object_in_memory_is_read_and_left_as_it_is(storage):
    held = storage(counts())
    adata = cells(held)
    before = adata.X.copy()
    matrix = open_dataset(adata).matrices[0]
    assert np.array_equal(read_all(matrix, 6), counts().toarray())
    assert type(adata.X) is type(before)
    assert (abs(adata.X - before)).sum() == 0


def test_stored_zeros_and_unsorted_indices_are_put_right(tmp_path):
    matrix = sp.csr_matrix(([5, 0, 3], [2, 1, 0], [0, 3]), shape=(1, 3))
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        ad.io.write_elem(file, "/", cells(matrix))
        assert file["X/indices"][:].tolist() == [2, 1, 0]
    (_, part), *_ = open_dataset(tmp_path / "x.h5ad").matrices[0].chunks()
    assert part.indices.tolist() == [0, 2]
    assert part.data.tolist() == [3, 5]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
def test_memory_is_bounded_by_the_chunk_not_by_the_file(tmp_path, storage, monkeypatch):
    monkeypatch.setattr("data_pipelines.readers.stored_matrix._SLAB_VALUES", 1 << 14)
    matrix = sp.random(40_000, 100, density=0.5, format="csr", random_state=0, dtype=np.float32)  # 2 M values
    matrix.data = np.ceil(matrix.data * 9)
    path = tmp_path / "big.h5ad"
    stored = {"csr": matrix, "csc": matrix.tocsc(), "dense": matrix.toarray()}[storage]
    genes = [f"ENSG{i:011d}" for i in range(100)]
    ad.AnnData(X=stored, var=pd.DataFrame(index=genes)).write_h5ad(path)
    opened = open_dataset(path).matrices[0]
    total = 0.0
    tracemalloc.start()
    for _, part in opened.chunks(256):
        total += float(part.sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == matrix.sum()
    # The values alone take 16 MB. One chunk has 13k of them (0.1 MB); a few bytes a cell are allowed.
    assert peak < 3_000_000


# ---- which field holds the counts


def test_the_counts_layer_is_preferred_and_the_rest_reported(tmp_path):
    raw = counts()
    adata = cells(sp.csr_matrix(np.log1p(raw.toarray())), layers={"counts": raw})
    adata.write_h5ad(tmp_path / "x.h5ad")
    for dataset in (open_dataset(tmp_path / "x.h5ad"), open_dataset(adata)):
        matrix = dataset.matrices[0]
        assert matrix.field == "layers['counts']"
        assert np.array_equal(read_all(matrix), raw.toarray())
        assert "looks log-normalised" in matrix.considered["X"]


def test_raw_is_read_with_its_own_features(tmp_path):
    raw = counts()
    adata = cells(raw)
    adata.raw = adata
    adata = adata[:, :3].copy()
    adata.X = np.log1p(adata.X.toarray())
    adata.write_h5ad(tmp_path / "x.h5ad")
    for dataset in (open_dataset(tmp_path / "x.h5ad"), open_dataset(adata)):
        matrix = dataset.matrices[0]
        assert matrix.field == "raw.X"
        assert matrix.feature_names.tolist() == GENES
        assert np.array_equal(read_all(matrix), raw.toarray())


def test_a_counts_layer_without_counts_loses_to_x_with_counts():
    raw = counts()
    adata = cells(raw, layers={"counts": sp.csr_matrix(np.log1p(raw.toarray()))})
    assert open_dataset(adata).matrices[0].field == "X"


def log_with_layers(**layers) -> ad.AnnData:
    raw = counts(60, 7)
    genes = ["CD4", "MS4A1", "CD3E", "LYZ", "GNLY", "NKG7", "CD8A"]
    return cells(sp.csr_matrix(np.log1p(raw.toarray())), genes, layers={name: of(raw) for name, of in layers.items()})


def test_counts_in_another_layer_are_offered_by_name_and_the_advice_leads_to_them(tmp_path):
    adata = log_with_layers(**{"raw counts&": lambda raw: raw, "scaled": lambda raw: raw * 0.3})
    path = tmp_path / "x.h5ad"
    adata.write_h5ad(path)
    (problem,) = check_dataset(open_dataset(path), min_genes=1).problems
    told = re.search(r"Maybe layers\['raw counts&'\] holds them: read them with '(.*)'", problem)
    assert told[1] == f"{path}?layer=raw%20counts%26"
    for dataset in (
        open_dataset(told[1]),
        open_dataset(path, reading=ReadingOptions(layer="raw counts&")),
        open_dataset(adata, reading=ReadingOptions(layer="raw counts&")),
    ):
        assert dataset.matrices[0].field == "layers['raw counts&']"
        assert np.array_equal(read_all(dataset.matrices[0]), counts(60, 7).toarray())
    (problem,) = check_dataset(open_dataset(adata), min_genes=1).problems
    assert "adata.layers['counts'] = adata.layers['raw counts&']" in problem
    adata.layers["counts"] = adata.layers["raw counts&"]
    assert check_dataset(open_dataset(adata), min_genes=1).usable


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    adata = log_with_layers(spliced=lambda raw: raw)
    adata.write_h5ad(tmp_path / "x.h5ad")
    for where in (tmp_path / "x.h5ad", adata):
        with pytest.raises(InputError, match=r"no layers\['raw'\]; there is layers\['spliced'\], X$"):
            open_dataset(where, reading=ReadingOptions(layer="raw"))
    assert open_dataset(f"{tmp_path / 'x.h5ad'}?layer=X").matrices[0].field == "X"


def test_a_layer_is_looked_for_in_every_modality_of_a_mudata():
    rna, adt = log_with_layers(raw=lambda raw: raw), cells(counts(60, 3), ["CD3", "CD4", "CD45RA"])
    mdata = md.MuData({"rna": rna, "adt": adt})
    dataset = open_dataset(mdata, reading=ReadingOptions(layer="raw"))
    assert [matrix.field for matrix in dataset.matrices] == ["mod/rna/layers['raw']", "mod/adt/X"]
    with pytest.raises(InputError, match=r"no modality has layers\['none'\]"):
        open_dataset(mdata, reading=ReadingOptions(layer="none"))


@pytest.mark.parametrize("where", ["file", "memory"])
def test_counts_in_obsm_are_mentioned_and_the_advice_leads_to_them(where, tmp_path):
    adata = cells(genes=GENES)
    proteins = pd.DataFrame(counts(23, 5, seed=3).toarray(), adata.obs_names, ["CD3", "CD4", "CD8", "CD19", "CD14"])
    adata.obsm["protein_expression"] = proteins
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(23, 5))
    adata.obsm["spatial"] = np.arange(46).reshape(23, 2)
    adata.write_h5ad(tmp_path / "x.h5ad")
    dataset = open_dataset(tmp_path / "x.h5ad") if where == "file" else open_dataset(adata)
    (note,) = dataset.notes
    assert (
        "obsm['protein_expression'] holds whole numbers, maybe counts, in 5 columns ('CD3', 'CD4', 'CD8' ...)" in note
    )
    code = note.partition("in Python: ")[2].replace("cells.h5mu", str(tmp_path / "cells.h5mu"))
    exec(code, {"adata": adata, "mudata": md, "anndata": ad})
    rna, protein = open_dataset(tmp_path / "cells.h5mu").matrices
    assert (rna.modality, protein.modality) == ("rna", "protein")
    assert np.array_equal(read_all(protein), proteins.to_numpy())


# ---- metadata and modalities


def test_obs_comes_with_categories_and_numbers(tmp_path):
    cells().write_h5ad(tmp_path / "x.h5ad")
    dataset = open_dataset(tmp_path / "x.h5ad")
    assert dataset.obs["celltype"].tolist()[:3] == ["T", "B", "T"]
    assert dataset.obs.index.tolist() == dataset.cell_ids.tolist()
    assert dataset.name == "x"


def mosaic():
    rna, adt = cells(counts(6)), cells(counts(5, 3, seed=1), ["CD3", "CD4", "CD45RA"])
    adt.obs_names = ["cell4", "cell5", "p0", "p1", "p2"]
    mdata = md.MuData({"rna": rna, "adt": adt})
    mdata.obs["donor"] = [f"d{i % 2}" for i in range(mdata.n_obs)]
    return mdata


@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_mosaic_joins_by_cell_id_in_its_own_order(tmp_path, where):
    mdata = mosaic()
    mdata.write_h5mu(tmp_path / "m.h5mu")
    dataset = open_dataset(tmp_path / "m.h5mu") if where == "file" else open_dataset(mdata)
    assert dataset.cell_ids.tolist() == mdata.obs_names.tolist()
    assert dataset.obs["donor"].tolist() == mdata.obs["donor"].tolist()
    assert [matrix.modality for matrix in dataset.matrices] == ["rna", "protein"]
    rna, protein = dataset.matrices
    assert dataset.cell_ids[dataset.rows_of(rna)].tolist() == rna.cell_ids.tolist() == mdata["rna"].obs_names.tolist()
    assert dataset.cell_ids[dataset.rows_of(protein)].tolist() == mdata["adt"].obs_names.tolist()
    assert np.array_equal(read_all(protein), mdata["adt"].X.toarray())
    assert not dataset.obs["celltype"].isna().any()  # from the modalities, since the global obs lacks it


def test_two_files_are_paired_by_cell_id(tmp_path):
    mdata = mosaic()
    mdata["rna"].write_h5ad(tmp_path / "rna.h5ad")
    mdata["adt"].write_h5ad(tmp_path / "adt.h5ad")
    dataset = open_dataset(f"{tmp_path / 'rna.h5ad'}+{tmp_path / 'adt.h5ad'}")
    assert dataset.cell_ids.tolist() == [f"cell{i}" for i in range(6)] + ["p0", "p1", "p2"]
    assert dataset.name == "rna+adt"
    with pytest.raises(InputError, match="both measure rna"):
        open_dataset(f"{tmp_path / 'rna.h5ad'}+{tmp_path / 'rna.h5ad'}")


def test_files_to_be_paired_must_share_cells(tmp_path):
    adt = mosaic()["adt"].copy()
    adt.obs_names = [f"other{i}" for i in range(adt.n_obs)]
    adt.write_h5ad(tmp_path / "adt.h5ad")
    cells().write_h5ad(tmp_path / "rna.h5ad")
    with pytest.raises(InputError, match="no cell id occurs in all of the files"):
        open_dataset(f"{tmp_path / 'rna.h5ad'}+{tmp_path / 'adt.h5ad'}")


def test_disagreeing_metadata_of_paired_files_is_noted(tmp_path):
    rna, adt = mosaic()["rna"].copy(), mosaic()["adt"].copy()
    adt.obs["celltype"] = "NK"
    rna.write_h5ad(tmp_path / "rna.h5ad")
    adt.write_h5ad(tmp_path / "adt.h5ad")
    dataset = open_dataset(f"{tmp_path / 'rna.h5ad'}+{tmp_path / 'adt.h5ad'}")
    assert "differs from what was read before in 2 cells" in dataset.notes[0]


def test_a_plus_in_a_file_name_is_part_of_the_name(tmp_path):
    cells().write_h5ad(tmp_path / "a+b.h5ad")
    assert len(open_dataset(tmp_path / "a+b.h5ad").matrices) == 1


def test_feature_types_split_one_matrix_into_modalities(tmp_path):
    adata = cells(genes=[*GENES[:4], "CD3", "CD4_ab", "CD8"])
    adata.var["feature_types"] = ["Gene Expression"] * 4 + ["Antibody Capture"] * 3
    adata.write_h5ad(tmp_path / "x.h5ad")
    rna, protein = open_dataset(tmp_path / "x.h5ad").matrices
    assert (rna.modality, protein.modality) == ("rna", "protein")
    assert np.array_equal(read_all(protein, 10), counts().toarray()[:, 4:])
    assert protein.feature_names.tolist() == ["CD3", "CD4_ab", "CD8"]


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("airr", lambda: ad.AnnData(X=None, obs=pd.DataFrame({"receptor": "TCR"}, index=["cell0", "cell1"]))),
        ("hto", lambda: cells(counts(6, 3, seed=2), ["HTO1", "HTO2", "HTO3"])),
        ("guide", lambda: cells(counts(6, 3, seed=2), ["CD4", "MS4A1", "CD3E"])),
        ("microscopy", lambda: ad.AnnData(obs=pd.DataFrame(index=["cell0"]))),
    ],
)
def test_a_modality_of_another_assay_is_left_out_with_a_word(name, other, where, tmp_path):
    mdata = md.MuData({"gex": cells(counts(6)), name: other()})
    mdata.write_h5mu(tmp_path / "m.h5mu")
    dataset = open_dataset(tmp_path / "m.h5mu") if where == "file" else open_dataset(mdata)
    assert [matrix.modality for matrix in dataset.matrices] == ["rna"]
    assert np.array_equal(read_all(dataset.matrices[0]), counts(6).toarray())
    assert f"modality {name!r} is not read" in dataset.notes[0]


def test_a_mudata_of_other_assays_only_is_refused():
    with pytest.raises(InputError, match=r"no modality with counts; .*modality 'hto' is not read"):
        open_dataset(md.MuData({"hto": cells(counts(6, 3), ["HTO1", "HTO2", "HTO3"])}))


# ---- 10x


def write_tenx(path, matrix, version=3):
    """The layout of Cell Ranger: features x barcodes, compressed by barcode."""
    num_cells, num_features = matrix.shape
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        for key, value in {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}.items():
            group[key] = value
        group["shape"] = np.array([num_features, num_cells])
        group["barcodes"] = np.array([f"AAAC{i}-1" for i in range(num_cells)], dtype="S")
        ids = np.array([f"ENSG{i:011d}" for i in range(num_features - 2)] + ["CD3", "chr1:1-9"], dtype="S")
        if version == 3:
            features = group.create_group("features")
            kinds = ["Gene Expression"] * (num_features - 2) + ["Antibody Capture", "Peaks"]
            features["id"] = features["name"] = ids
            features["feature_type"] = np.array(kinds, dtype="S")
            features["genome"] = np.array(["GRCh38"] * num_features, dtype="S")
            features["_all_tag_keys"] = np.array([b"genome"])
        else:
            group["genes"] = group["gene_names"] = ids


def test_a_tenx_file_splits_by_feature_type(tmp_path):
    write_tenx(tmp_path / "x.h5", counts())
    rna, protein, atac = open_dataset(tmp_path / "x.h5").matrices
    assert [m.modality for m in (rna, protein, atac)] == ["rna", "protein", "atac"]
    assert rna.genome == "GRCh38"
    assert rna.feature_names[0] == "ENSG00000000000"
    both = np.hstack([read_all(m, 4) for m in (rna, protein, atac)])
    assert np.array_equal(both, counts().toarray())


def test_a_tenx_file_of_cell_ranger_2_is_read(tmp_path):
    write_tenx(tmp_path / "x.h5", counts(), version=2)
    (matrix,) = open_dataset(tmp_path / "x.h5").matrices
    assert (matrix.modality, matrix.genome, matrix.field) == ("rna", "GRCh38", "GRCh38")
    assert np.array_equal(read_all(matrix), counts().toarray())


def test_a_mixture_of_two_genomes_is_refused(tmp_path):
    write_tenx(tmp_path / "x.h5", counts(), version=2)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(InputError, match="GRCh38, mm10"):
        open_dataset(tmp_path / "x.h5")


# ---- files that cannot be read


def refused(path, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        [list(matrix.chunks()) for matrix in open_dataset(path).matrices]
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "none.h5ad", "no such file")
    refused(tmp_path, "a folder")


def test_what_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "x.h5ad").write_text("cell,gene\n1,2\n")
    refused(tmp_path / "x.h5ad", "not an HDF5 file")
    (tmp_path / "empty.h5ad").write_bytes(b"")
    refused(tmp_path / "empty.h5ad", "an empty file")


def test_hdf5_of_another_kind_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["signal"] = np.zeros(3)
    refused(tmp_path / "x.h5", "HDF5 with signal")


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path, fraction):
    cells(counts(300)).write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: int(len(whole) * fraction)])
    refused(tmp_path / "cut.h5ad", "truncated|not an HDF5|damaged")


@pytest.mark.parametrize("shape", [(0, 7), (5, 0)])
def test_an_empty_matrix_is_refused(tmp_path, shape):
    cells(sp.csr_matrix(shape, dtype=np.float32), genes=GENES[: shape[1]]).write_h5ad(tmp_path / "x.h5ad")
    refused(tmp_path / "x.h5ad", "empty matrix")


def test_a_file_without_a_matrix_is_refused(tmp_path):
    adata = cells()
    adata.X = None
    adata.write_h5ad(tmp_path / "x.h5ad")
    refused(tmp_path / "x.h5ad", "no X|empty")


@pytest.mark.parametrize("damage", ["indices", "indptr", "bytes"])
def test_a_matrix_that_contradicts_itself_is_refused(tmp_path, damage):
    cells(counts(300)).write_h5ad(tmp_path / "x.h5ad", compression="gzip")
    with h5py.File(tmp_path / "x.h5ad", "a") as file:
        if damage == "indices":
            file["X/indices"][3] = 99
        elif damage == "indptr":
            file["X/indptr"][3] = 10_000
        else:
            where, size = file["X/data"].id.get_chunk_info(0).byte_offset, file["X/data"].id.get_chunk_info(0).size
    if damage == "bytes":
        content = bytearray((tmp_path / "x.h5ad").read_bytes())
        content[where + size // 2] ^= 0xFF
        content[where + size // 2 + 1] ^= 0xFF
        (tmp_path / "x.h5ad").write_bytes(bytes(content))
    refused(tmp_path / "x.h5ad", "damaged")


def test_things_that_are_no_data_set_are_refused():
    with pytest.raises(InputError, match="a dict is not a data set"):
        open_dataset({"X": 1})
    with pytest.raises(InputError, match="no such example"):
        open_dataset("example:none")


# ---- real files


@pytest.mark.parametrize(
    ("file", "shapes"),
    [
        ("pbmc_facs/zheng_pbmc_facs.h5ad", {"rna": (3874, 16791)}),
        ("snareseq_cortex/rna.h5ad", {"rna": (10309, 1677)}),
        ("snareseq_cortex/atac.h5ad", {"atac": (10309, 25734)}),
        ("citeseq_pbmc1k/1K_pbmc_citeseq.h5", {"rna": (892, 36601), "protein": (892, 10)}),
        ("pbmc_mosaic/quickstart_pbmc_mosaic.h5mu", {"rna": (1200, 500), "protein": (1200, 224)}),
        ("pbmc_ifnb/pbmc_ifnb.h5ad", {"rna": (2000, 9015)}),
        ("pbmc_donor_a/pbmc_donor_a.h5ad", {"rna": (2896, 13939)}),
    ],
)
def test_the_real_files_open_with_their_modalities(shared_data, file, shapes):
    dataset = open_dataset(shared_data / file)
    assert {matrix.modality: matrix.shape for matrix in dataset.matrices} == shapes


def test_the_snareseq_files_pair_cell_by_cell(shared_data):
    folder = shared_data / "snareseq_cortex"
    dataset = open_dataset(f"{folder / 'rna.h5ad'}+{folder / 'atac.h5ad'}")
    assert len(dataset.cell_ids) == 10309
    assert np.array_equal(dataset.rows_of(dataset.matrices[1]), np.arange(10309))
    assert dataset.notes == []


def test_a_full_temporary_folder_is_named_when_a_matrix_must_be_turned_over(tmp_path, monkeypatch):
    cells(counts().tocsc()).write_h5ad(tmp_path / "x.h5ad")

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_pipelines.readers.compressed_copy.ScratchArray.write", full)
    refused(tmp_path / "x.h5ad", "No space left on device.*set TMPDIR")


def test_a_backed_object_is_read_from_its_file(tmp_path):
    cells().write_h5ad(tmp_path / "x.h5ad")
    adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert np.array_equal(read_all(open_dataset(adata).matrices[0], 5), counts().toarray())
    adata.file.close()
