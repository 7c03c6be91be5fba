"""A count is the same number whatever dtype it is stored in, and sums of counts are not made in that dtype."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from stored_counts import GENE_IDS

from data_pipelines.batches.collate import TokenSampling, collate_counts
from data_pipelines.batches.model_counts import model_counts, overlap_with_model
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.corpus_overlap import open_known_cells
from data_pipelines.cells.cell_metadata import KEY_COLUMNS
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.stored_matrix import MatrixInMemory
from data_pipelines.readers.whole_counts import MAX_COUNT, by_feature, is_whole, whole, widened
from scmbert_jax.errors import InputError
from scmbert_jax.tasks.modality_cells import read_modalities

SMALL = {"min_genes": 1, "block_size": 16}
RNG = np.random.default_rng(0)
NAMES = ["".join(letters) + "-1" for letters in RNG.choice(list("ACGT"), (30, 16))]
COUNTS = RNG.poisson(3.0, (30, 40)) * RNG.integers(1, 12, (30, 40))  # 0 .. 127
STORED = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "int8", "uint8", "int16", "uint16")},
    **{name: np.dtype(name) for name in ("uint32", "int64", "uint64", ">f4", ">i2")},
    "expm1(log1p) float32": None,
    "expm1(log1p) float64": None,
}


def values_of(name: str) -> np.ndarray:
    if STORED[name] is not None:
        return np.minimum(COUNTS, 120).astype(STORED[name])
    return np.expm1(np.log1p(np.minimum(COUNTS, 120).astype(name.split()[1])))


def described(matrix) -> anndata.AnnData:
    return anndata.AnnData(matrix, pd.DataFrame(index=NAMES), pd.DataFrame(index=GENE_IDS))


def written(path, name: str, kind: str):
    """An .h5ad with X in the dtype; those that neither SciPy nor AnnData write are put in by HDF5."""
    values = values_of(name)
    storage = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind]
    described(storage(values.astype(np.float64))).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        place = file["X"] if kind == "dense" else file["X/data"]
        found, attributes, where = place[:].astype(values.dtype), dict(place.attrs), place.name
        del file[where]
        file.create_dataset(where, data=found).attrs.update(attributes)
    return path


@pytest.fixture(scope="module")
def as_int32(tmp_path_factory):
    return build_corpus(
        tmp_path_factory.mktemp("int32") / "corpus", [described(sp.csr_matrix(np.minimum(COUNTS, 120)))], **SMALL
    )


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_every_stored_dtype_gives_the_same_cells(as_int32, tmp_path, name, kind):
    known = open_known_cells(written(tmp_path / "cells.h5ad", name, kind))
    there = as_int32.obs().set_index("cell_id")[KEY_COLUMNS["rna"]]
    assert known.sets[0].keys["rna"].tolist() == there[NAMES].tolist()


@pytest.mark.parametrize("name", ["float16", "uint8", ">f4", "expm1(log1p) float32"])
def test_corpora_and_copies_are_the_same_from_every_stored_dtype(as_int32, tmp_path, name):
    file = written(tmp_path / "cells.h5ad", name, "csr")
    corpus = build_corpus(tmp_path / "corpus", [file], **SMALL)
    assert corpus.manifest["content_sha256"] == as_int32.manifest["content_sha256"]
    with pytest.raises(InputError, match="every cell is in corpus"):
        build_corpus(tmp_path / "disjoint", [file], **SMALL, disjoint_from=[as_int32.path])
    with pytest.raises(InputError, match="every cell of cells is in the other files already"):
        build_corpus(tmp_path / "twice", [described(sp.csr_matrix(np.minimum(COUNTS, 120))), file], **SMALL)


@pytest.mark.parametrize("dtype", ["float16", "uint8", "int8"])
def test_an_array_in_memory_is_read_in_any_dtype(dtype):
    report = check_dataset(open_dataset(described(np.minimum(COUNTS, 120).astype(dtype))), min_genes=1)
    assert report.usable
    assert report.modalities["rna"].storage == dtype
    np.testing.assert_array_equal(report.modalities["rna"].total_counts, np.minimum(COUNTS, 120).sum(axis=1))


def test_what_stands_twice_is_not_summed_in_its_stored_dtype():
    """200 + 100 is 44 in uint8."""
    twice = sp.csr_matrix((np.array([200, 100], np.uint8), [0, 0], [0, 2]), shape=(1, 40))
    for stored in (twice, twice.tocsc(), twice.tocoo()):
        ((_, read),) = MatrixInMemory(stored, "here").chunks(8)
        assert read.data.tolist() == [300], stored.format
    batch = collate_counts({"rna": twice}, {"rna": TokenSampling(8)}, {"rna": (0, 40)}, {"rna": np.ones(40, bool)})
    assert batch.modalities["rna"].counts[0].tolist() == [300] + [0] * 7


def test_columns_of_one_feature_are_not_summed_in_32_bits():
    most = sp.csr_matrix(np.array([[MAX_COUNT, 1, 5]], np.int32))
    assert by_feature(most, np.array([0, -1, 1]), 2, "here").toarray().tolist() == [[MAX_COUNT, 5]]
    with pytest.raises(InputError, match=r"here: a count of 2,147,483,648; the most"):
        by_feature(most, np.array([0, 0, 1]), 2, "here")
    symbols = described(sp.csr_matrix(np.full((30, 40), MAX_COUNT)))
    symbols.var_names = [*GENE_IDS[:39], f"{GENE_IDS[0]}.7"]  # another version of the first
    dataset = open_dataset(symbols)
    report = check_dataset(dataset, min_genes=1)
    with pytest.raises(InputError, match=r"a count of 4,294,967,294; the most"):
        list(model_counts(dataset, report, overlap_with_model(report, FeatureSpace(report.features), ["rna"])))
    with pytest.raises(InputError, match=r"a count of 4,294,967,294; the most"):
        read_modalities(dataset)


@pytest.mark.parametrize(("dtype", "count"), [("float16", 2048), ("float32", 2**24)])
def test_a_count_that_its_dtype_may_have_rounded_is_refused(dtype, count):
    for value, fine in ((count - 1, True), (count, False)):
        values = COUNTS.astype(dtype)
        values[3, 2] = value
        report = check_dataset(open_dataset(described(values)), min_genes=1)
        assert report.usable == fine
        if not fine:
            (problem,) = report.problems
            assert f"1 counts of {count:,} or more, first {count:.6g} in cell" in problem
            assert f"{dtype} holds whole numbers only below" in problem
            assert "write the counts again, from their source, as int32" in problem


def test_what_is_no_number_is_refused_by_its_dtype():
    with pytest.raises(InputError, match="here: values of dtype complex128"):
        widened(np.zeros(2, complex), "here")


def test_large_fractions_are_not_whole_and_casts_do_not_truncate():
    """One millionth of 400,000 would make every number whole."""
    assert is_whole(np.array([2.9999998, 400_000.4, 400_000.2, 7.0])).tolist() == [True, False, True, True]
    assert whole(sp.csr_matrix([[2.9999998, 7.0000001]])).data.tolist() == [3, 7]
