"""Intervals and their windows: what is read is what is written, and what cannot be used is counted or refused."""

import gzip

import numpy as np
import pytest

from data_pipelines.genome.bases import decode
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.interval_table import intervals_of, read_intervals
from data_pipelines.genome.windows import cut_windows
from scmbert_jax.errors import InputError

SEQUENCE = "".join(np.random.default_rng(0).choice(list("ACGT"), 1000))


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text(f">chr1\n{SEQUENCE}\n>chr2\n{'ACGT' * 10}{'N' * 60}\n")
    return Fasta(path)


def bed(tmp_path, *lines, name="a.bed"):
    path = tmp_path / name
    text = "".join(f"{line}\n" for line in lines).replace(" ", "\t")
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_every_kind_of_file_gives_its_columns(tmp_path, fasta):
    three = read_intervals(bed(tmp_path, "#a comment", "chr1 10 20", "chr2 0 5"), fasta)
    assert list(three) == [Interval("chr1", 10, 20), Interval("chr2", 0, 5)]
    six = read_intervals(bed(tmp_path, "track", "chr1 10 20 one 5.5 -", "chr1 30 40 . . +", name="b.bed.gz"), fasta)
    assert list(six) == [Interval("chr1", 10, 20, "-", "one"), Interval("chr1", 30, 40, "+")]
    peaks = read_intervals(bed(tmp_path, "chr1 10 20 p 0 . 1.5 2.5 -1 7", "chr1 50 60 q 0 . 1 2 3 -1"), fasta)
    assert peaks.summit.tolist() == [17, -1]  # from an offset to a position
    csv = tmp_path / "a.csv"
    csv.write_text("id,region,start,end,strand\n0,chr1,10,20,\n1,chr2,5,7,+\n")
    table = read_intervals(csv, fasta)
    assert list(table) == [Interval("chr1", 10, 20, ".", "0"), Interval("chr2", 5, 7, "+", "1")]
    assert table.ids.tolist() == ["chr1:10-20", "chr2:5-7"]


GOOD = tuple(f"chr1 {10 * i} {10 * i + 5}" for i in range(9))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("chr3 10 20", "1 on sequences that .*genome.fa has not, e.g. chr3:10-20"),
        ("chr1 990 1001", "1 beyond the end of their chromosome"),
        ("chr1 30 20", "1 that end at or before their start, e.g. chr1:30-20"),
        ("chr1 -5 20", "1 that begin before 0"),
        ("chr1 5 6 a 0 +", "as many columns in every line"),
        ("chr1 five 6", "start is not a whole number"),
        ("chr1 84 95", "2 of 10 intervals share a base with another"),
        ("chr1 5 6", "1 of 10 intervals begin before the one ahead"),
    ],
)
def test_a_bad_interval_is_refused_or_where_allowed_counted(line, words, tmp_path, fasta):
    path = bed(tmp_path, *GOOD, line)
    strict = {"most_overlapping": 0.1, "most_unsorted": 0.05}
    with pytest.raises(InputError, match=words):
        read_intervals(path, fasta, **strict)
    if "that " in words or "beyond" in words:
        assert sum(read_intervals(path, fasta, most_left_out=0.1).left_out.values()) == 1
    assert len(read_intervals(bed(tmp_path, *GOOD), fasta, **strict)) == 9


def test_names_with_and_without_chr_are_told_apart_and_joined_when_asked(tmp_path, fasta):
    path = bed(tmp_path, "1 10 20", "2 0 5")
    with pytest.raises(InputError, match="give ucsc_names=True to both"):
        read_intervals(path, fasta)
    assert read_intervals(path, fasta, ucsc_names=True).ids.tolist() == ["chr1:10-20", "chr2:0-5"]


def test_a_file_of_another_assembly_is_refused(tmp_path):
    path = tmp_path / "mouse.fa"
    path.write_text(f">chrM\n{'A' * 16_299}\n")
    with pytest.raises(InputError, match="its name says hg19"):
        read_intervals(bed(tmp_path, "chrM 1 2", name="peaks.hg19.bed"), Fasta(path, "mm10"))


def test_filters_that_leave_nothing_are_refused(tmp_path, fasta):
    with pytest.raises(InputError, match=r"3 of 3 rows cannot be used .*: nothing is left"):
        read_intervals(bed(tmp_path, "chr9 1 2", "chr9 3 4", "chr9 5 6"), fasta, most_left_out=1.0)
    table = intervals_of([Interval("chr2", 50, 60)])
    with pytest.raises(InputError, match=r"1 with too many N, e.g. chr2:50-60"):
        cut_windows(fasta, table, most_unknown=0.5, most_left_out=1.0)


def test_windows_lie_around_the_centre_or_the_summit(tmp_path, fasta):
    table = read_intervals(bed(tmp_path, "chr1 100 110 p 0 - 1 1 1 2", "chr1 200 211 q 0 + 1 1 1 9"), fasta)
    centre = cut_windows(fasta, table, 4)
    assert [decode(row) for row in centre.codes] == [SEQUENCE[103:107], SEQUENCE[203:207]]
    summit = cut_windows(fasta, table, 5, around="summit")
    assert [decode(row) for row in summit.codes] == [SEQUENCE[100:105], SEQUENCE[207:212]]
    turned = cut_windows(fasta, table, 4, use_strand=True)
    assert decode(turned.codes[0]) == SEQUENCE[103:107][::-1].translate(str.maketrans("ACGT", "TGCA"))
    np.testing.assert_array_equal(turned.codes[1], centre.codes[1])
    whole = cut_windows(fasta, table)
    assert whole.lengths.tolist() == [10, 11]
    assert decode(whole.codes[0]) == f"{SEQUENCE[100:110]}N"
    assert whole.one_hot("NCL").shape == (2, 4, 11)
    assert not whole.one_hot()[0, 10].any()


def test_windows_beyond_a_chromosome_are_left_out_or_filled(fasta):
    table = intervals_of([Interval("chr1", 0, 2), *(Interval("chr1", at, at + 2) for at in range(300, 499))])
    dropped = cut_windows(fasta, table, 10)
    assert dropped.left_out == {"whose window reaches beyond their chromosome": 1}
    assert dropped.rows[0] == 1
    padded = cut_windows(fasta, table, 10, edges="pad")
    assert decode(padded.codes[0]) == f"NNNN{SEQUENCE[:6]}"
    assert padded.start[0] == -4
    with pytest.raises(InputError, match=r"at most 0.1% may be left out"):
        cut_windows(fasta, table, 10, most_left_out=0.001)


def test_the_regions_of_the_shared_data_have_the_sequence_of_their_genome(shared_data):
    genome = Fasta(shared_data / "dna" / "hg38_chr2_1-2333275.fa.gz")
    table = read_intervals(shared_data / "regions" / "train_promoter.csv.gz")
    rows = (table.chromosome == "chr2") & (table.end < genome.lengths["chr2"])
    windows = cut_windows(genome, table.take(rows), 200)
    assert len(windows) == rows.sum() > 10
    gc = np.isin(windows.codes, (1, 2)).mean()
    assert gc > 0.5  # promoters; chr2 as a whole has .40


def test_a_summit_outside_its_interval_is_counted_and_refused_where_too_many(tmp_path):
    (tmp_path / "a.csv").write_text("chrom,start,end,summit\nchr1,100,200,150\nchr1,300,400,50\nchr1,500,600,-1\n")
    good = "chr1\t100\t200\tp\t0\t.\t1\t1\t1\t"
    (tmp_path / "a.narrowPeak").write_text(f"{good}50\n{good}100\n{good}-1\n")
    for name in ("a.csv", "a.narrowPeak"):
        with pytest.raises(InputError, match=r"1 of 3 rows cannot be used .*with a summit outside"):
            read_intervals(tmp_path / name)
        assert read_intervals(tmp_path / name, most_left_out=0.5).summit.tolist() == [150, -1]


def test_a_letter_for_several_bases_is_an_n_of_a_short_window_and_edges_may_be_padded(tmp_path):
    (tmp_path / "r.fa").write_text(">chr1\n" + "ACGTR" + "ACGTA" * 3 + "\n")
    genome, table = Fasta(tmp_path / "r.fa"), intervals_of([Interval("chr1", 0, 6)])
    assert decode(cut_windows(genome, table).codes[0]) == "ACGTNA"
    with pytest.raises(InputError, match=r'Take edges="pad"'):
        cut_windows(genome, table, 10)
    assert decode(cut_windows(genome, table, 10, edges="pad").codes[0]) == "NNACGTNACG"


def test_columns_of_the_same_name_are_refused(tmp_path):
    (tmp_path / "peaks.csv").write_text("chrom,start,end,START\nchr1,5,9,6\n")
    with pytest.raises(InputError, match="column 'start' is there twice"):
        read_intervals(tmp_path / "peaks.csv")


def test_counts_stay_with_the_rows_that_are_taken(tmp_path):
    (tmp_path / "peaks.bed").write_text("chr1\t1\t9\nchr1\t5\t3\nchr1\t5\t12\n")
    table = read_intervals(tmp_path / "peaks.bed", most_left_out=0.5).take(np.array([1]))
    assert (len(table), table.overlapping, sum(table.left_out.values())) == (1, 2, 1)
