"""Bases come out of FASTA files as they stand there, from either strand, whatever the file is packed with."""

import gzip
import random

import numpy as np
import pysam
import pytest

from data_pipelines.genome.bases import decode, encode, from_one_hot, one_hot, reverse_complement
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.variant import Variant
from scmbert_jax.errors import InputError

SEQUENCES = {
    name: "".join(random.Random(name).choices("ACGTNacgt", k=length))
    for name, length in (("chr1", 200_003), ("chr2", 60), ("chrM", 61))
}


def written(path, sequences=SEQUENCES, width=60, ending="\n"):
    lines = []
    for name, bases in sequences.items():
        lines += [f">{name} of a test", *(bases[at : at + width] for at in range(0, len(bases), width))]
    path.write_bytes((ending.join(lines) + ending).encode())
    return path


@pytest.fixture
def packed(tmp_path):
    """The same sequences in every kind of file."""
    plain = written(tmp_path / "plain.fa")
    windows = written(tmp_path / "windows.fa", ending="\r\n")
    zipped = tmp_path / "zipped.fa.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    blocks, indexed = tmp_path / "blocks.fa.gz", tmp_path / "indexed.fa"
    pysam.tabix_compress(str(plain), str(blocks))
    written(indexed)
    pysam.faidx(str(indexed))
    return {path.stem: path for path in (plain, windows, zipped, blocks, indexed)}


def test_a_stretch_is_the_same_from_every_kind_of_file_as_from_the_sequence(packed):
    for path in packed.values():
        fasta = Fasta(path)
        assert fasta.lengths == {name: len(bases) for name, bases in SEQUENCES.items()}
        at_block = [(64_150, end) for end in range(64_180, 64_210)]  # bgzip's first block of 65,280 bytes ends here
        for start, end in ((0, 1), (59, 61), (65_000, 66_000), (199_990, 200_003), (7, 7), *at_block):
            assert decode(fasta.codes("chr1", start, end)) == SEQUENCES["chr1"][start:end].upper(), path
        assert decode(fasta.codes("chrM", 0, 61)) == SEQUENCES["chrM"].upper()
        assert decode(fasta.padded_codes("chr2", -2, 63)) == f"NN{SEQUENCES['chr2'].upper()}NNN"
        assert decode(fasta.padded_codes("chr2", 70, 72)) == "NN"


def test_the_index_that_is_made_is_that_of_samtools(packed):
    made, stored = Fasta(packed["plain"]), Fasta(packed["indexed"])
    assert made._records["chr1"] == stored._records["chr1"]
    assert made._records["chrM"] == stored._records["chrM"]


def test_the_reverse_strand_is_read_in_its_own_direction():
    codes = encode("AACGTN")
    assert decode(reverse_complement(codes)) == "NACGTT"
    padded = np.stack([encode("AACNNN"), encode("ACGTAG")])
    assert [decode(row) for row in reverse_complement(padded, np.array([3, 6]))] == ["GTTNNN", "CTACGT"]
    values = one_hot(codes)
    assert values.shape == (6, 4)
    assert not values[5].any()
    np.testing.assert_array_equal(one_hot(reverse_complement(codes)), values[::-1, ::-1])
    for layout in ("NLC", "NCL"):
        np.testing.assert_array_equal(from_one_hot(one_hot(padded, layout), layout), padded)
    assert one_hot(padded, "NCL").shape == (2, 4, 6)


def test_the_strand_of_an_interval_is_the_one_that_is_read(packed):
    fasta = Fasta(packed["plain"])
    forward = fasta.interval_codes(Interval("chr1", 100, 140))
    np.testing.assert_array_equal(fasta.interval_codes(Interval("chr1", 100, 140, "-")), reverse_complement(forward))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (">a\nACGT\nAC\nACGT\n", "lines of unequal length"),
        (">a\nACGT\nACGTA\n", "lines of unequal length"),
        ("ACGT\n", "does not begin with >"),
        (">\nACGT\n", "no name of a sequence"),
        (">a\nACGT\n>a\nAC\n", "two sequences are called a"),
        ("", "cannot be read"),
    ],
)
def test_what_is_no_fasta_is_refused(text, words, tmp_path):
    (tmp_path / "bad.fa").write_text(text)
    with pytest.raises(InputError, match=words):
        Fasta(tmp_path / "bad.fa")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ACGT-ACGT" * 20, "stands for no base"),
        ("MKVLAARDKSW" * 20, "stands for no base"),
        ("ACGTRYACGT" * 20, "neither A, C, G, T nor N"),
    ],
)
def test_letters_that_are_no_bases_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        encode(text)


def test_a_few_letters_for_several_bases_are_read_as_n():
    assert decode(encode("A" * 200 + "R")) == "A" * 200 + "N"


def test_another_build_is_refused_and_named(tmp_path):
    path = written(tmp_path / "a.fa", {"MT": "ACGT" * 4142 + "A"})
    assert Fasta(path, "hg38", ucsc_names=True).lengths == {"chrM": 16_569}
    with pytest.raises(InputError, match=r"of mm10 it would have 16,299 .* It is of hg38"):
        Fasta(path, "mm10")


def test_a_stretch_outside_and_a_sequence_that_is_not_there_are_refused(packed):
    fasta = Fasta(packed["plain"])
    with pytest.raises(InputError, match="outside chr2, which has 60 bases"):
        fasta.codes("chr2", 50, 61)
    with pytest.raises(InputError, match="no such sequence; there are chr1, chr2"):
        fasta.codes("2", 0, 1)


def test_intervals_and_variants_are_read_from_the_text_they_are_shown_as():
    interval = Interval("chr1", 100, 201, "-", "mine")
    assert (interval.width, interval.center()) == (101, 150)
    assert interval.resize(10) == Interval("chr1", 145, 155, "-", "mine")
    assert Interval.from_str(str(interval)) == Interval("chr1", 100, 201, "-")
    assert interval.overlaps(Interval("chr1", 200, 300))
    assert not interval.overlaps(Interval("chr1", 201, 300))
    variant = Variant("chr1", 101, "AC", "G", "rs1")
    assert variant.reference_interval == Interval("chr1", 100, 102, ".", "rs1")  # 1-based to 0-based
    assert Variant.from_str(str(variant)) == Variant("chr1", 101, "AC", "G")
    for wrong in (
        lambda: Interval("chr1", 5, 4),
        lambda: Variant("chr1", 0, "A", "C"),
        lambda: Variant("1", 3, "A", "A"),
    ):
        with pytest.raises(InputError):
            wrong()
