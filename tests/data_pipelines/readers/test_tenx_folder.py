"""10x folders of text: every layout is read with bounded memory; a broken one is refused with file, line and remedy."""

import gzip
import zlib

import numpy as np
import pytest
import scipy.sparse as sp
from stored_counts import (
    ANTIBODIES,
    BARCODES,
    GENE_IDS,
    IDS,
    KINDS,
    PEAKS,
    matrix_market,
    random_counts,
    write_folder,
    write_text,
)

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.readers import matrix_market as matrix_market_module
from data_pipelines.readers import name_lines
from data_pipelines.readers.compressed_copy import ScratchArray
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import InputError


def read_all(dataset, rows=4096) -> np.ndarray:
    return np.hstack([sp.vstack([part for _, part in m.chunks(rows)]).toarray() for m in dataset.matrices])


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        read_all(open_dataset(path))
    for word in words:
        assert str(word) in str(caught.value), (word, str(caught.value))


# ---- layouts


def test_the_folder_of_cell_ranger_2_holds_genes_and_is_called_like_the_genome(tmp_path):
    counts = random_counts()[:, :40]
    lines = [f"{gene}\tSYMBOL" for gene in GENE_IDS]
    folder = write_folder(tmp_path / "mm10", counts, ending="", features="genes.tsv", feature_lines=lines)
    dataset = open_dataset(folder)
    (matrix,) = dataset.matrices
    assert (matrix.modality, matrix.genome, dataset.name) == ("rna", "mm10", "mm10")
    assert matrix.feature_table["name"].tolist() == ["SYMBOL"] * 40
    assert np.array_equal(read_all(dataset), counts.toarray())


def test_the_folder_of_cell_ranger_atac_holds_peaks(tmp_path):
    counts = random_counts()[:, 45:]
    lines = ["# primary_contig=chr1", *(peak.replace(":", "\t").replace("-", "\t") for peak in PEAKS)]
    folder = write_folder(tmp_path / "x", counts, features="peaks.bed", feature_lines=lines)
    (matrix,) = open_dataset(folder).matrices
    assert matrix.modality == "atac"
    assert matrix.feature_names.tolist() == PEAKS


def test_numbered_peaks_of_a_multiome_folder_get_their_places(tmp_path):
    places = ["\t\t"] * 45 + [peak.replace(":", "\t").replace("-", "\t") for peak in PEAKS]
    ids = [*IDS[:45], *(f"peak_{i}" for i in range(len(PEAKS)))]
    lines = [f"{i}\t{i}\t{kind}\t{place}" for i, kind, place in zip(ids, KINDS, places, strict=True)]
    atac = open_dataset(write_folder(tmp_path / "x", feature_lines=lines)).matrices[2]
    assert atac.feature_names.tolist() == PEAKS


def test_features_that_are_no_counts_of_a_modality_are_named_and_left_out(tmp_path):
    kinds = [*KINDS[:43], "CRISPR Guide Capture", "Multiplexing Capture", *KINDS[45:]]
    lines = [f"{i}\t{i}\t{kind}" for i, kind in zip(IDS, kinds, strict=True)]
    folder = write_folder(tmp_path / "x", feature_lines=lines)
    report = check_dataset(open_dataset(folder), assembly="hg38", min_genes=1)
    assert report.usable, report.problems
    assert list(report.modalities) == ["rna", "protein", "atac"]
    assert sum("features are not read" in warning for warning in report.warnings) == 2


def test_features_without_types_are_recognised_by_their_names(tmp_path):
    folder = write_folder(tmp_path / "x", random_counts()[:, 40:45], feature_lines=ANTIBODIES)
    (matrix,) = open_dataset(folder).matrices
    assert matrix.modality == "protein"
    nothing = write_folder(tmp_path / "y", random_counts()[:, :2], feature_lines=["qqq", "zzz"])
    report = check_dataset(open_dataset(nothing))
    assert any("cannot tell the modality" in problem for problem in report.problems)


def test_several_samples_in_a_folder_are_told_apart_by_their_matrix(tmp_path):
    first, second = random_counts(seed=1), random_counts(seed=2)
    write_folder(tmp_path / "geo", first, prefix="GSM1_a_")
    write_folder(tmp_path / "geo", second, prefix="GSM2_b.")
    refused(tmp_path / "geo", tmp_path / "geo", "2 matrices", "GSM1_a_matrix.mtx.gz, GSM2_b.matrix.mtx.gz", "name one")
    dataset = open_dataset(tmp_path / "geo" / "GSM2_b.matrix.mtx.gz")
    assert dataset.name == "GSM2_b"
    assert np.array_equal(read_all(dataset), second.toarray())


def test_cells_by_features_are_read_as_such(tmp_path):
    counts = random_counts()
    folder = write_folder(tmp_path / "x", counts)
    write_text(folder / "matrix.mtx.gz", matrix_market(sp.csr_matrix(counts.T)))
    assert np.array_equal(read_all(open_dataset(folder)), counts.toarray())


def test_real_numbers_that_are_integers_are_counts(tmp_path):
    counts = random_counts()
    folder = write_folder(tmp_path / "x", counts)
    write_text(folder / "matrix.mtx.gz", matrix_market(counts.astype(np.float64), kind="real"))
    assert np.array_equal(read_all(open_dataset(folder)), counts.toarray())


def test_an_entry_that_stands_twice_is_summed(tmp_path):
    folder = write_folder(tmp_path / "x", ending="")
    text = "%%MatrixMarket matrix coordinate integer general\n57 30 3\n2 5 1\n2 5 4\n1 5 2\n"
    write_text(folder / "matrix.mtx", text)
    assert read_all(open_dataset(folder))[4, :3].tolist() == [2, 5, 0]


# ---- memory


@pytest.mark.parametrize("order", ["cells", "features"])
def test_text_is_parsed_in_blocks_once_and_read_by_the_chunk(tmp_path, monkeypatch, order):
    monkeypatch.setattr(matrix_market_module, "_BLOCK_BYTES", 600)
    counts = random_counts()
    folder = write_folder(tmp_path / "x", counts, order=order)
    parsed, read, parse, fetch = [], [], matrix_market_module.pd.read_csv, ScratchArray.read

    def counted_parse(stream, **options):
        parsed.append(len(stream.getvalue()))
        return parse(stream, **options)

    def counted_read(self, start, stop):
        read.append(stop - start)
        return fetch(self, start, stop)

    monkeypatch.setattr(matrix_market_module.pd, "read_csv", counted_parse)
    monkeypatch.setattr(ScratchArray, "read", counted_read)
    dataset = open_dataset(folder)
    assert not parsed  # opening reads names only
    assert np.array_equal(read_all(dataset, rows=2), counts.toarray())  # three modalities, one parse
    text = gzip.decompress((folder / "matrix.mtx.gz").read_bytes())
    assert sum(parsed) == len(text) - len(b"\n".join(text.split(b"\n")[:3])) - 1
    assert max(parsed) <= 600 + 20  # and the rest of a line
    widest = np.sort(np.diff(counts.indptr))[-2:].sum()
    assert max(read) <= max(600 // 12, widest)  # a slab, or two cells


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    folder = write_folder(tmp_path / "x")
    monkeypatch.setattr(ScratchArray, "write", full)
    refused(folder, folder / "matrix.mtx.gz", "No space left", "TMPDIR")


# ---- what cannot be read


def test_a_folder_of_something_else_says_what_was_expected(tmp_path):
    (tmp_path / "x").mkdir()
    refused(tmp_path / "x", tmp_path / "x", "neither matrix.mtx[.gz] nor zarr", "10x .mtx folder")
    write_folder(tmp_path / "x" / "GRCh38")
    refused(tmp_path / "x", f"Did you mean {tmp_path / 'x' / 'GRCh38'}?")


@pytest.mark.parametrize("name", ["features.tsv.gz", "barcodes.tsv.gz"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_folder(tmp_path / "x")
    (folder / name).unlink()
    refused(folder, folder / "matrix.mtx.gz", f"without {name.removesuffix('.gz')}[.gz]", "there is", "copy all three")


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
def test_a_truncated_gz_is_named(tmp_path, name):
    folder = write_folder(tmp_path / "x")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    refused(folder, folder / name, "truncated or damaged", "download it again")


def test_what_is_only_called_gz_is_named(tmp_path):
    folder = write_folder(tmp_path / "x")
    (folder / "matrix.mtx.gz").write_text(matrix_market(random_counts()))
    refused(folder, folder / "matrix.mtx.gz", "damaged")
    (folder / "matrix.mtx.gz").write_bytes(zlib.compress(b"x"))
    refused(folder, folder / "matrix.mtx.gz", "damaged")


@pytest.mark.parametrize("change", ["barcodes", "features"])
def test_names_that_do_not_fit_the_matrix_are_refused(tmp_path, change):
    folder = write_folder(tmp_path / "x", ending="")
    path = folder / f"{change}.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    found = {"barcodes": "57 features and barcodes.tsv 29 cells", "features": "56 features and barcodes.tsv 30 cells"}
    refused(folder, folder / "matrix.mtx", "line 3", "57 x 30", found[change], "do not belong together")
    path.write_text("".join(["id\tname\ttype\n", *lines]))
    refused(folder, "'id name type'", f"heading: delete it from {change}.tsv")


def matrix_with(folder, body, *, kind="integer", entries=None, sizes="57 30"):
    entries = body.count("\n") if entries is None else entries
    head = f"%%MatrixMarket matrix coordinate {kind} general\n%\n{sizes} {entries}\n"
    return write_text(folder / "matrix.mtx", head + body)


@pytest.mark.parametrize(
    ("body", "options", "words"),
    [
        ("1 1 3\n2 1 4\n", {"entries": 3}, ["ends after 2 of the 3 entries", "line 3", "truncated"]),
        ("1 1 3\n2 1 4\n", {"entries": 1}, ["more than the 1 entries", "line 3"]),
        ("1 1 3\n2 1\n", {}, ["line 5: '2 1'", "expected row, column and an integer"]),
        ("1 1 3\n2 1\n", {"kind": "real"}, ["line 5: '2 1'", "expected row, column and a number"]),
        ("1 1 3\n2 1 4 9\n", {}, ["line 5: '2 1 4 9'"]),
        ("1 1 3\n2 1 x\n", {}, ["line 5: '2 1 x'"]),
        ("1 1 3\n2 1 4.5\n", {}, ["line 5: '2 1 4.5'", "an integer"]),
        ("1 1 3\n2 1 99999999999999999999\n", {}, ["line 5: '2 1 99999999999999999999'"]),
        ("1 1 3\n\0\0\0\0", {"entries": 2}, ["line 5", "damaged"]),
        ("1 1 3\n0 1 4\n", {}, ["entry 2 is at row 0, column 1 of a 57 x 30 matrix", "count from 1"]),
        ("1 1 3\n1 31 4\n", {}, ["entry 2 is at row 1, column 31 of a 57 x 30"]),
        ("", {"sizes": "57 30 1"}, ["line 3: '57 30 1 0'", "rows, columns, entries"]),
        ("", {"sizes": "57 x"}, ["line 3: '57 x 0'", "rows, columns, entries"]),
        ("", {"kind": "pattern"}, ["line 1", "coordinate pattern general", "expected 'coordinate integer general'"]),
    ],
)
def test_a_matrix_that_lies_or_is_cut_is_refused_with_its_line(tmp_path, body, options, words):
    folder = write_folder(tmp_path / "x", ending="")
    path = matrix_with(folder, body, **options)
    refused(folder, path, *words)


def test_what_is_no_matrix_market_is_refused(tmp_path):
    folder = write_folder(tmp_path / "x", ending="")
    write_text(folder / "matrix.mtx", "gene,cell,count\n1,1,3\n")
    refused(folder, folder / "matrix.mtx", "line 1: 'gene,cell,count'", "expected '%%MatrixMarket")
    write_text(folder / "matrix.mtx", "")
    refused(folder, folder / "matrix.mtx", "line 1: an empty line")
    write_text(folder / "matrix.mtx", "%%MatrixMarket matrix coordinate integer general\n%\n")
    refused(folder, folder / "matrix.mtx", "the end of the file")


def test_an_endless_line_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix_market_module, "_BLOCK_BYTES", 600)
    folder = write_folder(tmp_path / "x", ending="")
    refused(matrix_with(folder, "1" * 5000), "line 4", "without an end of line")


def test_an_empty_matrix_is_refused(tmp_path):
    folder = write_folder(tmp_path / "x", ending="")
    write_text(folder / "barcodes.tsv", "")
    matrix_with(folder, "", sizes="57 0")
    refused(folder, folder / "matrix.mtx", "empty matrix (57 x 0, 0 barcodes, 57 features)")


@pytest.mark.parametrize(
    ("line", "words"), [("GENE\tGENE", "expected 3 columns separated by tabs"), ("", "line 2: empty")]
)
def test_a_line_of_features_without_its_columns_is_named(tmp_path, line, words):
    folder = write_folder(tmp_path / "x", feature_lines=["A\tA\tGene Expression", line, "B\tB\tGene Expression"])
    refused(folder, folder / "features.tsv.gz", "line 2", words)


@pytest.mark.parametrize(("value", "kind", "words"), [(-4, "integer", "negative"), (2.5, "real", "non-integers")])
def test_values_that_are_no_counts_are_found_by_the_check(tmp_path, value, kind, words):
    folder = write_folder(tmp_path / "x", ending="")
    body = "".join(f"{f + 1} {c + 1} 2\n" for c in range(30) for f in range(56)) + f"57 30 {value}\n"
    matrix_with(folder, body, kind=kind)
    report = check_dataset(open_dataset(folder), assembly="hg38", min_genes=1)
    (problem,) = report.problems
    assert words in problem
    assert f"{folder / 'matrix.mtx'}, matrix[Peaks]" in problem
    assert repr(BARCODES[29]) in problem


def test_what_stands_in_the_file_of_the_user_stays_as_it_is(tmp_path):
    folder = write_folder(tmp_path / "x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    read_all(open_dataset(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- what no real file has


def test_more_names_than_a_matrix_can_have_are_refused_before_they_are_parsed(tmp_path):
    folder = write_folder(tmp_path / "x")
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(b"A\n" * 2_000_000))
    refused(folder, "barcodes.tsv.gz", "2,000,001 lines, where at most")


def test_more_text_than_names_can_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(name_lines, "MOST_BYTES", 1 << 20)
    folder = write_folder(tmp_path / "x")
    (folder / "features.tsv.gz").write_bytes(gzip.compress(b"A" * (2 << 20)))
    refused(folder, "features.tsv.gz", "more than 1 MiB of text")


def test_a_name_that_makes_all_names_too_wide_is_refused_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(name_lines, "_MOST_ARRAY_BYTES", 1 << 20)
    folder = write_folder(tmp_path / "x")
    write_text(folder / "barcodes.tsv.gz", "\n".join([BARCODES[0], "A" * 300_000, *BARCODES[2:]]))
    refused(folder, "barcodes.tsv.gz, line 2: 300,000 characters")


@pytest.mark.parametrize("name", ["barcodes.tsv", "features.tsv"])
def test_names_that_are_not_utf_8_are_refused_by_line(tmp_path, name):
    folder = write_folder(tmp_path / "x", ending="")
    lines = (folder / name).read_bytes().split(b"\n")
    (folder / name).write_bytes(b"\n".join([lines[0], b"K\xf6ln" + lines[1], *lines[2:]]))
    refused(folder, f"{name}, line 2: byte b'\\xf6' is not UTF-8", "iconv")


@pytest.mark.parametrize("sizes", ["57 30 1000000000000", "3000000000 30 5", "9" * 30 + " 1 1"])
def test_sizes_that_a_file_of_its_length_cannot_hold_are_refused_at_once(tmp_path, sizes):
    folder = write_folder(tmp_path / "x")
    write_text(folder / "matrix.mtx.gz", f"%%MatrixMarket matrix coordinate integer general\n{sizes}\n1 1 1\n")
    refused(folder, "matrix.mtx.gz, line 2", "damaged")
