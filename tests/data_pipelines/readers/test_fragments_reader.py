"""Fragments: counted per cell and region as a loop would count them; what is wrong with a file is named by line."""

import gzip
import json
import pickle
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pysam
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features import interval_file
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers import fragments_reader
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.reading_options import ReadingOptions
from scmbert_jax.errors import InputError

CATALOGUE = [("chr1", 100, 200), ("chr1", 200, 260), ("chr1", 900, 1000), ("chr2", 0, 50)]
BARCODES = [f"AACG{i}-1" for i in range(6)]
FRAGMENTS = [
    ("chr1", 90, 150, BARCODES[0], 3),  # one end in the first region
    ("chr1", 110, 190, BARCODES[0], 1),  # both ends in the first
    ("chr1", 150, 250, BARCODES[1], 2),  # one end in the first, one in the second
    ("chr1", 800, 1100, BARCODES[1], 1),  # spans the third, cut outside of it
    ("chr1", 850, 900, BARCODES[2], 1),  # its last base is the one before the third
    ("chr1", 999, 1001, BARCODES[2], 1),  # starts at the last base of the third
    ("chr1", 1000, 1200, BARCODES[2], 1),  # starts behind it
    ("chr2", 10, 51, BARCODES[0], 9),  # its last base is the one behind the fourth
    ("chrM", 10, 60, BARCODES[3], 1),
    ("KI270728.1", 10, 60, BARCODES[3], 1),  # a scaffold, where no region lies
]
EXPECTED = {
    "fragments": [[2, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
    "cut-sites": [[3, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
}


def lines(rows) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def write(path, rows=FRAGMENTS, head="# id=x\n"):
    text = head + lines(rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def catalogue(tmp_path) -> str:
    (tmp_path / "cat.bed").write_text(lines(CATALOGUE))
    return str(tmp_path / "cat.bed")


@pytest.fixture
def barcodes(tmp_path) -> str:
    (tmp_path / "barcodes.tsv").write_text(lines([[barcode] for barcode in BARCODES[:4]]))
    return str(tmp_path / "barcodes.tsv")


def read_all(dataset, rows=4096) -> np.ndarray:
    return sp.vstack([part for _, part in dataset.matrices[0].chunks(rows)]).toarray()


# ---- counting


@pytest.mark.parametrize("change", [lambda row: row[:4], lambda row: (*row, "+"), lambda row: (*row, "+", "x")])
def test_columns_that_are_not_counted_are_left_out_with_a_word(tmp_path, catalogue, barcodes, change):
    reading = ReadingOptions(assembly="hg38", regions=catalogue, barcodes=barcodes)
    path = write(tmp_path / "x.tsv.gz", [change(row) for row in FRAGMENTS])
    dataset = open_dataset(path, reading=reading)
    assert np.array_equal(read_all(dataset), EXPECTED["fragments"])
    more = max(0, len(change(FRAGMENTS[0])) - 5)
    assert [note for note in dataset.notes if "more column" in note] == [
        f"{path}: {more} more column(s) than chrom, start, end, barcode, count, such as the strand; not read"
    ] * bool(more)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"chr1\t5\t90\tA-1\t" + bytes(3 << 20), r"line 1: [\d,]+ bytes without an end of line"),
        (b"#" * (3 << 20), "line 1: lines that begin with # go on"),
        (b"chr1\t5\t90\t" + b"A" * 5000 + b"\t1\n", "line 1: a barcode of 5,000 characters"),
        (b"chr1\t5\t90\t\xe4-1\t1\n", "line 1: .* is not UTF-8"),
        (b"chr1\t5\t90\tA-1" + b"\t1" * 5000 + b"\n", "line 1: 5,004 columns"),
    ],
)
def test_what_no_fragments_file_has_is_refused_before_memory_is_full(tmp_path, catalogue, text, said):
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(text))
    with pytest.raises(InputError, match=said):
        open_dataset(tmp_path / "x.tsv.gz", reading=ReadingOptions(assembly="hg38", regions=catalogue, min_fragments=1))


@pytest.mark.parametrize("unit", ["fragments", "cut-sites"])
@pytest.mark.parametrize("kind", ["tsv", "tsv.gz", "bgzip", "bgzip, tbi", "bgzip, csi"])
def test_fragments_are_counted_per_cell_and_region(tmp_path, catalogue, barcodes, unit, kind):
    path = write(tmp_path / ("x.tsv.gz" if kind == "tsv.gz" else "x.tsv"))
    if kind.startswith("bgzip"):
        pysam.tabix_compress(str(path), str(tmp_path / "y.tsv.gz"))
        path = tmp_path / "y.tsv.gz"
        if "," in kind:
            pysam.tabix_index(str(path), preset="bed", csi=kind.endswith("csi"), keep_original=True)
    reading = ReadingOptions(assembly="hg38", regions=catalogue, barcodes=barcodes, fragment_counts=unit)
    dataset = open_dataset(path, reading=reading)
    assert dataset.cell_ids.tolist() == BARCODES[:4]
    assert dataset.matrices[0].feature_names.tolist() == [f"{c}:{s}-{e}" for c, s, e in CATALOGUE]
    for rows in (1, 3, 4096):
        assert read_all(dataset, rows).tolist() == EXPECTED[unit]
    counted = dataset.matrices[0].derivation["fragments"]
    assert (counted["fragments"], counted["fragments_of_cells"]) == (10, 10)
    assert counted["fragments_of_cells_in_regions"] == 5


def by_a_loop(rows, unit) -> dict[tuple[str, int], int]:
    counts: dict[tuple[str, int], int] = {}
    for chrom, start, end, barcode, _ in rows:
        cuts = [
            next((i for i, (c, s, e) in enumerate(CATALOGUE) if c == chrom and s <= cut < e), None)
            for cut in (start, end - 1)
        ]
        for region in set(cuts) - {None}:
            times = 1 if unit == "fragments" else cuts.count(region)
            counts[barcode, region] = counts.get((barcode, region), 0) + times
    return counts


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["chr1", "chr2"]), st.integers(0, 1100), st.integers(1, 300), st.integers(0, 4)),
        min_size=1,
        max_size=60,
    ),
    unit=st.sampled_from(["fragments", "cut-sites"]),
    block=st.sampled_from([40, 200, 1 << 20]),
    slab=st.sampled_from([1, 7, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_any_file_in_any_blocks_is_counted_as_a_loop_would(tmp_path_factory, rows, unit, block, slab):
    folder = tmp_path_factory.mktemp("f")
    (folder / "cat.bed").write_text(lines(CATALOGUE))
    fragments = sorted((chrom, start, start + size, BARCODES[cell], 1) for chrom, start, size, cell in rows)
    path = write(folder / "x.tsv.gz", fragments)
    reading = ReadingOptions("hg38", str(folder / "cat.bed"), min_fragments=2, fragment_counts=unit)
    of_barcode = {b: sum(row[3] == b for row in fragments) for b in BARCODES}
    cells = [barcode for barcode in dict.fromkeys(row[3] for row in fragments) if of_barcode[barcode] >= 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interval_file, "BLOCK_BYTES", block)
        patch.setattr(fragments_reader, "_SLAB_VALUES", slab)
        if not cells:
            with pytest.raises(InputError, match=r"no barcode has 2 fragments \(the most is 1\)"):
                open_dataset(path, reading=reading)
            return
        dataset = open_dataset(path, reading=reading)
    expected = by_a_loop(fragments, unit)
    assert dataset.cell_ids.tolist() == cells
    assert read_all(dataset).tolist() == [[expected.get((b, r), 0) for r in range(4)] for b in cells]


def test_windows_need_no_catalogue_and_the_header_names_the_assembly(tmp_path):
    path = write(tmp_path / "x.tsv.gz", head="# reference_path=/refdata-cellranger-arc-GRCh38-2020-A\n")
    dataset = open_dataset(path, reading=ReadingOptions(regions="windows:100000", min_fragments=3))
    assert dataset.cell_ids.tolist() == [BARCODES[0], BARCODES[2]]
    report = check_dataset(dataset)
    assert report.usable, report.problems
    assert report.assembly == "hg38"
    assert report.modalities["atac"].regions["lossy"] is False
    counts = pd.DataFrame(read_all(dataset), columns=dataset.matrices[0].feature_names)
    assert counts.loc[:, counts.any()].to_dict("list") == {"chr1:0-100000": [2, 3], "chr2:0-100000": [1, 0]}


def test_another_process_counts_the_same_again(tmp_path, catalogue):
    reading = ReadingOptions(assembly="hg38", regions=catalogue, min_fragments=3, fragment_counts="cut-sites")
    dataset = open_dataset(write(tmp_path / "x.tsv.gz"), reading=reading)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.cell_ids.tolist() == [BARCODES[0], BARCODES[2]]
    assert read_all(again).tolist() == read_all(dataset).tolist() == [[3, 0, 0, 1], [0, 0, 1, 0]]
    assert [(first, part.shape) for first, part in again.matrices[0].stored.chunks(5, 1, 2)] == [(1, (1, 4))]


def test_memory_is_bounded_by_the_block_not_by_the_file(tmp_path, monkeypatch, catalogue):
    """200,000 fragments of 50 cells, 7 MB of text: a block of 64 kB and a slab of 4,096 values need less than 3 MB."""
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 1_000_000, 200_000))
    table = pd.DataFrame(
        {0: "chr1", 1: starts, 2: starts + 100, 3: [f"AACGTTAGC{i:04d}-1" for i in rng.integers(0, 50, 200_000)], 4: 1}
    )
    path = tmp_path / "x.tsv"
    table.to_csv(path, sep="\t", header=False, index=False)
    monkeypatch.setattr(interval_file, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(fragments_reader, "_SLAB_VALUES", 1 << 12)
    bed = tmp_path / "many.bed"
    bed.write_text(lines(("chr1", first, first + 500) for first in range(0, 1_000_000, 500)))
    reading = ReadingOptions("hg38", str(bed), min_fragments=1, fragment_counts="cut-sites")
    open_dataset(path, reading=reading)  # opens the catalogue, which stays
    tracemalloc.start()
    dataset = open_dataset(path, reading=reading)
    total = sum(int(part.sum()) for _, part in dataset.matrices[0].chunks(10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 400_000 - np.count_nonzero(starts + 99 >= 1_000_000)
    assert path.stat().st_size > 7_000_000
    assert peak < 3_000_000


# ---- which barcodes are cells


def test_without_a_word_on_cells_regions_or_assembly_nothing_is_counted(tmp_path, catalogue, barcodes):
    path = write(tmp_path / "x.tsv.gz")
    for reading, message in (
        (ReadingOptions(assembly="hg38", regions=catalogue), "Say which are cells: --barcodes FILE"),
        (ReadingOptions(assembly="hg38", barcodes=barcodes), "state --regions catalogue.bed"),
        (ReadingOptions(regions=catalogue, barcodes=barcodes), "the assembly must be stated"),
        (ReadingOptions(assembly="hg99", regions=catalogue, barcodes=barcodes), "'hg99' is not known"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(path, reading=reading)


def test_listed_cells_without_fragments_are_reported(tmp_path, catalogue):
    path = write(tmp_path / "x.tsv.gz")
    write_list = tmp_path / "list.tsv.gz"
    write_list.write_bytes(gzip.compress(lines([[BARCODES[5]], [BARCODES[2]], [BARCODES[0]]]).encode()))
    reading = ReadingOptions(assembly="hg38", regions=catalogue, barcodes=str(write_list))
    dataset = open_dataset(path, reading=reading)
    assert dataset.cell_ids.tolist() == [BARCODES[2], BARCODES[0]]
    assert read_all(dataset).tolist() == [EXPECTED["fragments"][2], EXPECTED["fragments"][0]]
    assert "1 of 3 cells (listed in list.tsv.gz) have no fragment" in dataset.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no barcode in it"),
        ("a\nb\na\n", r"line 3: 'a' stands in line 1 already"),
        ("a\n\nb\n", "line 2: no barcode"),
        ("AACG0\nAACG1\n", r"none of the 2 cells .*called like 'AACG0', those of the file like 'AACG0-1'"),
    ],
)
def test_a_list_that_is_none_or_of_other_cells_is_refused(tmp_path, catalogue, text, message):
    (tmp_path / "list.tsv").write_text(text)
    reading = ReadingOptions(assembly="hg38", regions=catalogue, barcodes=str(tmp_path / "list.tsv"))
    with pytest.raises(InputError, match=message):
        open_dataset(write(tmp_path / "x.tsv.gz"), reading=reading)


def rna(path, barcodes=BARCODES[:4], names=None):
    table = load_gene_table("human")
    genes = table.ids[np.flatnonzero(table.reference & (table.tss > 0))[:30]]
    values = np.random.default_rng(0).poisson(2.0, (len(barcodes), 30)).astype(np.float32) + 1
    obs = pd.DataFrame({"donor": "d"}, index=barcodes)
    ad.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
    return path


@pytest.mark.parametrize("order", ["rna first", "fragments first"])
def test_joined_to_rna_its_cells_are_the_cells(tmp_path, catalogue, order):
    parts = [rna(tmp_path / "rna.h5ad"), write(tmp_path / "fragments.tsv.gz")]
    spec = "+".join(map(str, parts if order == "rna first" else parts[::-1]))
    options = ("--regions", catalogue, "--assembly", "hg38", "--min-genes", "1")
    text = scmbert_ok("doctor", spec, *options)
    assert "fragments of cells (cells of rna.h5ad) on cat.bed: 10 in the file, 10 of cells, 5 of those in" in text
    # The fragments of the last cell lie in no region: an assay without counts is "not measured".
    assert "3 measured in rna+atac" in text
    text = scmbert_ok("corpus", "build", tmp_path / "corpus", spec, *options)
    assert "fragments of cells (cells of rna.h5ad) on cat.bed" in text
    with open_corpus(tmp_path / "corpus") as corpus:
        assert corpus.manifest["cells_by_modalities"]
        (entry,) = corpus.datasets
        assert entry["combinations"] == {"rna": 1, "rna+atac": 3}
        assert len(entry["files"]) == 2
        assert entry["modalities"]["atac"]["derivation"]["fragments"]["counted"] == "fragments"
        assert len(corpus.feature_space.modalities["atac"]) == 4
        assert corpus.measured(0, "atac").all()


def test_joined_to_rna_of_other_cells_it_is_refused(tmp_path, catalogue):
    spec = f"{rna(tmp_path / 'rna.h5ad', ['x1', 'x2'])}+{write(tmp_path / 'f.tsv.gz')}"
    with pytest.raises(InputError, match=r"none of the 2 cells .cells of rna\.h5ad. occurs in it"):
        open_dataset(spec, reading=ReadingOptions(assembly="hg38", regions=catalogue))


def test_two_files_have_each_their_own_list(tmp_path, catalogue):
    specs = []
    for name, cells in (("a", BARCODES[:2]), ("b", BARCODES[2:3])):
        path = write(tmp_path / f"{name}.tsv.gz", head=f"# {name}\n")
        (tmp_path / f"{name}.txt").write_text(lines([[cell] for cell in cells]))
        specs.append(f"{path}?barcodes={tmp_path / name}.txt")
    out = scmbert_ok("doctor", *specs, "--regions", catalogue, "--assembly", "hg38", "--json")
    assert [report["cells"] for report in json.loads(out)] == [2, 1]
    ran = scmbert("doctor", rna(tmp_path / "rna.h5ad"), "--min-fragments", "5")
    assert ran.code == 2
    assert "min_fragments 5: none of" in ran.err


# ---- what may be wrong with a file

GOOD = ("chr1", 5, 90, BARCODES[0], 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [GOOD, ("chr1", 90, 150, "A-1")],
            r"line 3: .* has 4 columns; expected chrom, start, end, barcode, count, sep",
        ),
        ([GOOD, (*GOOD, "+")], r"line 3: .* has 6 columns"),
        ([GOOD, ("",), GOOD], "line 3: an empty line"),
        ([GOOD, ("chr1", 90, 150, "", 1)], "line 3: no barcode; expected chrom"),
        ([GOOD, ("chr1", "9e1", 150, "A-1", 1)], "line 3: start is not a whole number"),
        ([GOOD, ("chr1", -3, 150, "A-1", 1)], "line 3: starts at -3; positions are 0-based, not negative"),
        ([GOOD, ("chr1", 90, 80, "A-1", 1)], "line 3: ends at 80, not after its start 90"),
        ([GOOD, ("chr1", 90, 90, "A-1", 1)], "line 3: ends at 90, not after its start 90"),
        ([GOOD, ("chr1", 90, 95, "A-1", 0)], "line 3: a count of 0"),
        ([GOOD, ("chr1", 4, 95, "A-1", 1)], r"line 3: chr1:4 comes after chr1:5; .* sort -k1,1 -k2,2n"),
        ([GOOD, ("chr2", 4, 95, "A-1", 1), GOOD], r"line 4: chr1:5 comes after chr2:4; a fragments file is sorted"),
        ([GOOD, ("chr77", 4, 95, "A-1", 1)], "line 3: hg38 has no chromosome 'chr77'"),
        ([GOOD, ("GRCh38_chr1", 4, 95, "A-1", 1)], "line 3: hg38 has no chromosome 'GRCh38_chr1'"),
        ([GOOD, ("chr21", 4, 50_000_000, "A-1", 1)], r"line 3: ends at 50,000,000, beyond chr21 of hg38"),
        ([], "no interval in it"),
    ],
)
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_what_is_wrong_is_named_by_line(tmp_path, catalogue, monkeypatch, rows, message, block):
    monkeypatch.setattr(interval_file, "BLOCK_BYTES", block)
    reading = ReadingOptions(assembly="hg38", regions=catalogue, min_fragments=1)
    path = write(tmp_path / "x.tsv.gz", rows)
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(path, reading=reading)
    assert str(path) in str(caught.value)


def test_chromosomes_without_chr_are_those_of_the_catalogue(tmp_path, catalogue, barcodes):
    plain = [(chrom.removeprefix("chr"), *rest) for chrom, *rest in FRAGMENTS]
    reading = ReadingOptions(assembly="hg38", regions=catalogue, barcodes=barcodes)
    dataset = open_dataset(write(tmp_path / "x.tsv.gz", plain), reading=reading)
    assert read_all(dataset).tolist() == EXPECTED["fragments"]


def test_the_header_contradicts_the_assembly(tmp_path, catalogue):
    path = write(tmp_path / "x.tsv.gz", head="# reference_path=/ref/hg19-1.2.0\n")
    reading = ReadingOptions(assembly="hg38", regions=catalogue, min_fragments=1)
    with pytest.raises(InputError, match=r"its header says .*hg19.*liftOver or CrossMap"):
        open_dataset(path, reading=reading)


@pytest.mark.parametrize("keep", [0.3, 0.9, "all but the last block"])
@pytest.mark.parametrize("kind", ["gzip", "bgzip"])
def test_a_truncated_file_is_never_counted_in_part(tmp_path, catalogue, kind, keep):
    rng = np.random.default_rng(0)
    rows = [("chr1", i, i + 50 + int(rng.integers(100)), f"A{rng.integers(9)}-1", 1) for i in range(9000)]
    whole = write(tmp_path / "w.tsv", rows)
    path = tmp_path / "x.tsv.gz"
    if kind == "bgzip":
        pysam.tabix_compress(str(whole), str(path))
    else:
        path.write_bytes(gzip.compress(whole.read_bytes()))
    data = path.read_bytes()
    # Without its last block, which is empty, a bgzip file still is a sound gzip file.
    size = len(data) - (28 if kind == "bgzip" else 8) if keep == "all but the last block" else int(len(data) * keep)
    path.write_bytes(data[:size])
    with pytest.raises(InputError, match=f"{path}: truncated"):
        open_dataset(path, reading=ReadingOptions(assembly="hg38", regions=catalogue, min_fragments=1))


def test_another_text_is_no_fragments_file(tmp_path, catalogue, barcodes):
    ran = scmbert("doctor", barcodes, "--regions", catalogue, "--assembly", "hg38", "--min-fragments", "1")
    assert ran.code == 2
    assert "line 1: 'AACG0-1' has 1 column; expected chrom, start, end, barcode, count" in ran.err


# ---- real peaks, as if they had been counted from fragments


def test_fragments_of_real_peaks_give_back_their_matrix(shared_data, tmp_path):
    """SNARE-seq, mouse cortex: one fragment inside the peak for every count of the first 40 cells."""
    adata = ad.read_h5ad(shared_data / "snareseq_cortex" / "atac.h5ad")[:40]
    counts = sp.csr_matrix(adata.X).tocoo()
    places = [name.replace("-", "_").replace(":", "_").split("_") for name in adata.var_names]
    rows = [
        (places[column][0], int(places[column][1]), int(places[column][2]), adata.obs_names[cell], 1)
        for cell, column, count in zip(counts.row, counts.col, counts.data, strict=True)
        for _ in range(int(count))
    ]
    merged = pd.DataFrame([(c, int(s), int(e)) for c, s, e in places]).drop_duplicates()
    merged.to_csv(tmp_path / "peaks.bed", sep="\t", header=False, index=False)
    path = write(tmp_path / "fragments.tsv.gz", sorted(rows))
    (tmp_path / "cells.txt").write_text("\n".join(adata.obs_names) + "\n")
    reading = ReadingOptions("mm10", str(tmp_path / "peaks.bed"), barcodes=str(tmp_path / "cells.txt"))
    dataset = open_dataset(path, reading=reading)
    column_of = {name: i for i, name in enumerate(dataset.matrices[0].feature_names.tolist())}
    order = [column_of[f"{c}:{s}-{e}"] for c, s, e in places]
    assert dataset.cell_ids.tolist() == adata.obs_names.tolist()
    assert np.array_equal(read_all(dataset)[:, order], sp.csr_matrix(adata.X).toarray())
