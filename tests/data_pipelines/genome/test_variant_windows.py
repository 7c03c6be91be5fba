"""Both alleles of a variant in windows of one width, with the first base of the allele at one place."""

import numpy as np
import pytest

from data_pipelines.genome.bases import decode
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.variant import Variant
from data_pipelines.genome.variant_windows import variant_windows
from scmbert_jax.errors import InputError

#            1-based: 1234567890123456
SEQUENCE = "ACGTACGTTTGGCCAA"


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "small.fa"
    path.write_text(f">chr1\n{SEQUENCE[:10]}\n{SEQUENCE[10:]}\n")
    return Fasta(path)


@pytest.mark.parametrize(
    ("variant", "reference", "alternate"),
    [
        ("chr1:9:T>C", "ACGTTTGG", "ACGTCTGG"),
        ("chr1:9:T>TAA", "ACGTTTGG", "ACGTTAAT"),  # an insertion pushes bases out
        ("chr1:9:TTG>T", "ACGTTTGG", "ACGTTGCC"),  # a deletion lets others in
        ("chr1:2:C>G", "NNNACGTA", "NNNAGGTA"),  # 0-based 1: the window begins at -3
        ("chr1:16:A>C", "GCCAANNN", "GCCACNNN"),
    ],
)
def test_windows_have_either_allele_in_the_middle(variant, reference, alternate, fasta):
    found = variant_windows(fasta, [Variant.from_str(variant)], 8)
    assert [decode(codes[0]) for codes in found] == [reference, alternate]


def test_variants_are_rows_in_their_order(fasta):
    variants = [Variant("chr1", 3, "G", "A"), Variant("chr1", 12, "G", "T")]
    reference, alternate = variant_windows(fasta, variants, 5)
    assert reference.shape == alternate.shape == (2, 5)
    np.testing.assert_array_equal((reference != alternate).sum(1), 1)
    assert [decode(row)[2] for row in alternate] == ["A", "T"]


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("chr1:9:G>C", "small.fa has 'T' there, not 'G'; is it of another build"),
        ("chr2:9:T>C", "no such sequence"),
        ("chr1:99:T>C", "outside chr1, which has 16 bases"),
        ("chr1:9:T>TACGTA", "do not fit into a window of 8 bases"),
    ],
)
def test_a_variant_of_another_genome_is_refused(variant, words, fasta):
    with pytest.raises(InputError, match=words):
        variant_windows(fasta, [Variant.from_str(variant)], 8)
    with pytest.raises(InputError, match="has left none"):
        variant_windows(fasta, [], 8)


def test_an_n_of_the_genome_is_the_base_that_the_variant_says(tmp_path):
    (tmp_path / "n.fa").write_text(">chr1\nACGTNRGT\n")
    fasta = Fasta(tmp_path / "n.fa")
    # The window of 4 begins two bases before the allele.
    for variant, expected in (("chr1:5:A>C", ["GTAN", "GTCN"]), ("chr1:6:G>C", ["TNGG", "TNCG"])):
        found = variant_windows(fasta, [Variant.from_str(variant)], 4)
        assert [decode(codes[0]) for codes in found] == expected
