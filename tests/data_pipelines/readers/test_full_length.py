"""Assays that read whole transcripts: refused, or normalised by the length of genes, by choice and on record."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.full_length import LengthNormalised, is_full_length
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.reading_options import ReadingOptions
from data_pipelines.readers.stored_matrix import MatrixInMemory
from scmbert_jax.errors import InputError

_TABLE = load_gene_table("human")
_ROWS = np.flatnonzero(_TABLE.reference & (_TABLE.tss > 0) & (_TABLE.biotype == "protein_coding"))[:20]
GENES, SYMBOLS = _TABLE.ids[_ROWS].tolist(), _TABLE.symbols[_ROWS].tolist()
LENGTHS = np.arange(1, 21) * 400.0
ASSAYS = ["Smart-seq2", "10x 3' v3"] * 5
NORMALISE = ReadingOptions(full_length="length-normalise")


def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(20.0, (10, 20)).astype(np.float32) + 1


def cells(path=None, values=None, genes=GENES, assay=ASSAYS, lengths=LENGTHS):
    values = counts() if values is None else values
    obs = pd.DataFrame({"assay": assay} if assay else {}, index=[f"c{i}" for i in range(len(values))])
    var = pd.DataFrame({} if lengths is None else {"feature_length": lengths}, index=genes)
    adata = ad.AnnData(sp.csr_matrix(values), obs=obs, var=var)
    if path is None:
        return adata
    adata.write_h5ad(path)
    return path


def expected(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    y = values / lengths
    z = y * values.sum(axis=1, keepdims=True) / y.sum(axis=1, keepdims=True)
    return np.where(values > 0, np.maximum(np.rint(z), 1), 0)


def read_all(dataset, rows=4096) -> np.ndarray:
    return sp.vstack([part for _, part in dataset.matrices[0].chunks(rows)]).toarray()


@pytest.mark.parametrize(
    ("assay", "full"),
    [
        ("Smart-seq2", True),
        ("smartseq2", True),
        ("SMART-Seq v4", True),
        ("EFO:0008931", True),
        ("10x 3' v3", False),
        ("SCRB-seq", False),
        ("Drop-seq", False),
        ("", False),
    ],
)
def test_assays_are_known_by_label_or_id(assay, full):
    assert is_full_length(assay) is full


def test_full_length_cells_are_refused_with_every_choice_named(tmp_path):
    ran = scmbert("doctor", cells(tmp_path / "x.h5ad"), "--min-genes", "1")
    assert ran.code == 2
    assert "5 cells of Smart-seq2: such an assay reads whole transcripts" in ran.out
    for choice in ("--full-length length-normalise", "--gene-lengths", "--exclude assay=", "--obs-field assay="):
        assert choice in ran.out
    ran = scmbert("corpus", "build", tmp_path / "corpus", tmp_path / "x.h5ad", "--min-genes", "1")
    assert ran.code == 2
    options = ("--min-genes", "1", "--exclude", "assay=Smart-seq2")
    assert "5 cells" in scmbert_ok("corpus", "build", tmp_path / "corpus", tmp_path / "x.h5ad", *options)
    assert scmbert("doctor", tmp_path / "x.h5ad", "--min-genes", "1", "--obs-field", "assay=").code == 0


@pytest.mark.parametrize("rows", [3, 4096])
def test_only_cells_of_full_length_assays_are_normalised_and_all_stay_integers(rows):
    dataset = open_dataset(cells(), reading=NORMALISE)
    read, values = read_all(dataset, rows), counts()
    full = np.array([assay == "Smart-seq2" for assay in ASSAYS])
    assert np.array_equal(read[~full], values[~full])
    assert np.array_equal(read[full], expected(values[full], LENGTHS))
    assert not np.array_equal(read[full], values[full])
    assert check_dataset(dataset, min_genes=1).usable


def test_the_corpus_says_what_was_done(tmp_path):
    options = ("--min-genes", "1", "--full-length", "length-normalise")
    text = scmbert_ok("corpus", "build", tmp_path / "corpus", cells(tmp_path / "x.h5ad"), *options)
    said = "NORMALISED by length, 5 cells of Smart-seq2: counts / var['feature_length']"
    assert said in text
    assert said in scmbert_ok("doctor", tmp_path / "x.h5ad", *options)
    with open_corpus(tmp_path / "corpus") as corpus:
        done = corpus.datasets[0]["modalities"]["rna"]["derivation"]["length normalisation"]
        assert done == {"assays": {"Smart-seq2": 5}, "cells": 5, "lengths_from": "var['feature_length']"}
        block = corpus.read_block(0).modalities["rna"]
        full = np.array([assay == "Smart-seq2" for assay in ASSAYS])
        total = expected(counts()[full], LENGTHS).sum() + counts()[~full].sum()
        assert int(block.counts.sum()) == int(total)


@given(
    x=st.lists(st.integers(0, 10_000), min_size=2, max_size=12),
    factor=st.floats(1.0, 50.0),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_what_was_seen_stays_seen_totals_stay_and_the_unit_of_length_does_not_matter(x, factor, data):
    lengths = np.array([data.draw(st.integers(100, 20_000)) for _ in x], float)
    values = sp.csr_matrix(np.array([x], np.float32))

    def normalised(lengths):
        stored = LengthNormalised(MatrixInMemory(values, "x"), lengths, np.array([True]), "x")
        return next(stored.chunks(10))[1].toarray()[0]

    result = normalised(lengths)
    assert np.array_equal(result > 0, np.array(x) > 0)
    assert np.array_equal(result, np.rint(result))
    assert abs(result.sum() - sum(x)) <= len(x)  # rounding, and the least count of one
    assert np.abs(normalised(lengths * factor) - result).max(initial=0) <= 1  # at most a tie that rounds the other way


def test_equal_lengths_change_nothing():
    dataset = open_dataset(cells(lengths=np.full(20, 1500.0)), reading=NORMALISE)
    assert np.array_equal(read_all(dataset), counts())


def test_values_that_are_no_counts_do_not_become_counts():
    dataset = open_dataset(cells(values=np.log1p(counts())), reading=NORMALISE)
    report = check_dataset(dataset, min_genes=1)
    assert "non-integers" in report.problems[0]
    assert "looks log-normalised; raw counts of reads are needed" in report.problems[0]


def test_without_lengths_the_choice_is_refused():
    with pytest.raises(InputError, match=r"feature_length .*--gene-lengths FILE"):
        open_dataset(cells(lengths=None), reading=NORMALISE)
    lengths = LENGTHS.copy()
    lengths[3] = np.nan
    with pytest.raises(InputError, match=f"1 of 20 genes have no length .*{GENES[3]}"):
        open_dataset(cells(lengths=lengths), reading=NORMALISE)
    # Without a cell that needs them, no lengths are needed.
    assert open_dataset(cells(lengths=None, assay=["10x 3' v3"] * 10), reading=NORMALISE).matrices


@pytest.mark.parametrize("names", ["ids", "ids with versions", "symbols"])
@pytest.mark.parametrize("separator", ["\t", ","])
def test_lengths_come_from_a_table(tmp_path, names, separator):
    path = tmp_path / ("lengths.csv" if separator == "," else "lengths.tsv")
    genes = {"ids": GENES, "ids with versions": [f"{g}.7" for g in GENES], "symbols": SYMBOLS}[names]
    rows = [
        separator.join(["gene", "length"]),
        *(f"{g}{separator}{int(n)}" for g, n in zip(genes, LENGTHS, strict=True)),
    ]
    path.write_text("\n".join(rows) + "\n")
    adata = cells(lengths=None, genes=SYMBOLS if names == "symbols" else GENES)
    reading = ReadingOptions(full_length="length-normalise", gene_lengths=str(path))
    dataset = open_dataset(adata, reading=reading)
    full = np.array([assay == "Smart-seq2" for assay in ASSAYS])
    assert np.array_equal(read_all(dataset)[full], expected(counts()[full], LENGTHS))
    assert dataset.matrices[0].derivation["length normalisation"]["lengths_from"] == path.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tlength\nA\t5\n", "line 1: no column gene; there is id, length"),
        ("gene\tlength\nA\t5\nB\t0\n", "line 3: length '0'; expected base pairs > 0"),
        ("gene\tlength\nA\tlong\n", "line 2: length 'long'"),
        ("gene\tlength\nA\t5\nA\t6\n", "line 3: A has another length already"),
        ("gene\tlength\nA\t5\n", "20 of 20 genes have no length in lengths.tsv"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_by_line(tmp_path, text, message):
    (tmp_path / "lengths.tsv").write_text(text)
    reading = ReadingOptions(full_length="length-normalise", gene_lengths=str(tmp_path / "lengths.tsv"))
    with pytest.raises(InputError, match=message):
        open_dataset(cells(), reading=reading)


def test_spike_ins_need_no_length_and_stay():
    genes, lengths = [*GENES[:19], "ERCC-00002"], LENGTHS.copy()
    lengths[19] = np.nan
    dataset = open_dataset(cells(genes=genes, lengths=lengths), reading=NORMALISE)
    full = np.array([assay == "Smart-seq2" for assay in ASSAYS])
    read = read_all(dataset)[full]
    assert np.array_equal(read[:, 19], counts()[full][:, 19])
    assert np.array_equal(read[:, :19], expected(counts()[full][:, :19], LENGTHS[:19]))


def test_a_person_may_say_the_assay(tmp_path):
    path = cells(tmp_path / "x.h5ad", assay=None)
    assert open_dataset(path).matrices[0].derivation == {}
    ran = scmbert("doctor", f"{path}?assay=Smart-seq2", "--min-genes", "1")
    assert "10 cells of Smart-seq2" in ran.out
    dataset = open_dataset(f"{path}?assay=Smart-seq2&full_length=length-normalise")
    assert np.array_equal(read_all(dataset), expected(counts(), LENGTHS))
    assert set(dataset.obs["assay"]) == {"Smart-seq2"}
    with pytest.raises(InputError, match=r"obs\['assay'\] says it"):
        open_dataset(f"{cells(tmp_path / 'y.h5ad')}?assay=Smart-seq2")


def test_the_assay_may_stand_in_another_column():
    adata = cells()
    adata.obs = adata.obs.rename(columns={"assay": "chemistry"})
    assert check_dataset(open_dataset(adata), min_genes=1).usable
    fields = {"assay": "chemistry"}
    assert not check_dataset(open_dataset(adata), min_genes=1, obs_fields=fields).usable
    dataset = open_dataset(adata, reading=NORMALISE, obs_fields=fields)
    assert "length normalisation" in dataset.matrices[0].derivation
    assert check_dataset(dataset, min_genes=1, obs_fields=fields).usable
