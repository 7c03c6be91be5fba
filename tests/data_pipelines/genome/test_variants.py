"""Variants are those of their file; what does not fit the genome is counted or refused."""

import gzip

import numpy as np
import pandas as pd
import pytest

from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.variant import Variant
from data_pipelines.genome.variant_file import read_variants
from scmbert_jax.errors import InputError

HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=200>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
SEQUENCE = "ACGT" * 50
GOOD = [f"chr1 {4 * i + 1} rs{i} A C" for i in range(20)]  # 1-based: every A


@pytest.fixture
def fasta(tmp_path):
    (tmp_path / "genome.fa").write_text(f">chr1\n{SEQUENCE}\n")
    return Fasta(tmp_path / "genome.fa")


def vcf(tmp_path, *lines, header=HEADER, name="a.vcf"):
    text = header + "".join(f"{line} . PASS .\n" for line in lines).replace(" ", "\t")
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return tmp_path / name


def test_every_allele_of_a_vcf_is_a_variant(tmp_path, fasta):
    lines = ("chr1 2 rs1 C A,g", "chr1 3 . GT G", "chr1 4 . T TAA")
    for name in ("a.vcf", "a.vcf.gz"):
        table = read_variants(vcf(tmp_path, *lines, name=name), fasta)
        assert list(table) == [
            Variant("chr1", 2, "C", "A", "rs1"),
            Variant("chr1", 2, "C", "G", "rs1"),
            Variant("chr1", 3, "GT", "G"),
            Variant("chr1", 4, "T", "TAA"),
        ]
        assert table.line.tolist() == [4, 4, 5, 6]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("chr1 1 . C T", "whose reference bases are not those of the genome"),
        ("chr1 201 . A T", "beyond the end of their chromosome"),
        ("chr2 1 . A T", "on sequences that .* has not"),
        ("chr1 5 . A C", "that repeat one"),
        ("chr1 5 . A <DEL>", "with alleles that are no sequences"),
        ("chr1 5 . A .", "with alleles that are no sequences"),
        ("chr1 5 . A A", "with both alleles the same"),
        ("chr1 0 . A T", "at a position below 1"),
    ],
)
def test_a_bad_variant_is_counted_and_refused_where_too_many(line, reason, tmp_path, fasta):
    path = vcf(tmp_path, *GOOD, line)
    with pytest.raises(InputError, match=rf"1 of 21 rows cannot be used \(1 {reason}.*, e.g. chr"):
        read_variants(path, fasta)
    table = read_variants(path, fasta, most_left_out=0.05)
    assert [*table.left_out.values()] == [1]
    assert len(table) == 20


def test_a_vcf_of_another_build_or_with_other_names_is_refused(tmp_path, fasta):
    with pytest.raises(InputError, match="they are of different builds"):
        read_variants(vcf(tmp_path, *GOOD, header=HEADER.replace("200", "201")), fasta)
    path = vcf(tmp_path, *(line.replace("chr", "") for line in GOOD), header="")
    with pytest.raises(InputError, match="give ucsc_names=True to both"):
        read_variants(path, fasta)
    assert read_variants(path, fasta, ucsc_names=True)[0] == Variant("chr1", 1, "A", "C", "rs0")


def test_what_is_no_vcf_is_refused_by_line(tmp_path):
    for text, words in (
        ("chr1\tx\t.\tA\tC\n", "line 4: "),
        (f"chr1\t{10**30}\t.\tA\tC\n", "line 4: "),
        ("chr1\t\N{SUPERSCRIPT TWO}\t.\tA\tC\n", "line 4: "),
        ("", "no variant in it"),
    ):
        (tmp_path / "a.vcf").write_text(HEADER + text)
        with pytest.raises(InputError, match=words):
            read_variants(tmp_path / "a.vcf")


def test_lines_of_another_assembly_are_not_taken(tmp_path, fasta):
    path = tmp_path / "a.tsv"
    path.write_text("chrom\tpos\tref\talt\trelease\nchr1\t1\tA\tC\tGRCh37\nchr1\t5\tA\tC\tGRCh38\n")
    assert list(read_variants(path, fasta, assembly="hg38")) == [Variant("chr1", 5, "A", "C")]
    for assembly, words in ((None, "several assemblies"), ("mm10", "lift them over"), ("x", "no assembly known")):
        with pytest.raises(InputError, match=words):
            read_variants(path, fasta, assembly=assembly)
    path.write_text("chrom\tpos\tref\talt\trelease\nchr1\t1\tA\tC\t12\nchr1\t5\tA\tC\t13\n")
    assert len(read_variants(path, fasta)) == 2  # releases of something else
    with pytest.raises(InputError, match=r"no column .* says it"):
        read_variants(path, fasta, assembly="hg38")


def test_the_advice_of_a_refusal_helps(tmp_path, fasta):
    path = vcf(tmp_path, *GOOD, GOOD[0])
    with pytest.raises(InputError, match="give keep_repeated=True"):
        read_variants(path, fasta)
    assert len(read_variants(path, fasta, keep_repeated=True)) == 21
    with pytest.raises(InputError, match=r"nothing is left. Mend the file\.$"):
        read_variants(vcf(tmp_path, "chr1 0 . A T"), fasta)
    with pytest.raises(InputError, match="has 'chr1' for what is '1' here"):
        read_variants(vcf(tmp_path, *GOOD, "1 1 . A T"), fasta)


def test_the_mutagenesis_of_the_shared_data_is_read_as_a_table(shared_data):
    path = shared_data / "mpra" / "elements.tsv.gz"
    with pytest.raises(InputError, match=r"several assemblies \(.* of hg38.* of hg19\).*; choose one: assembly='hg38'"):
        read_variants(path, ucsc_names=True, keep_repeated=True)
    table = read_variants(path, ucsc_names=True, keep_repeated=True, assembly="GRCh38")
    assert [*table.left_out] == ["without a position"]
    assert table[0] == Variant("chr2", 60_494_940, "C", "A")
    assert table[1].alternate_bases == ""  # a deletion
    # The reference base of a position is the same in each of its lines of one build; `line` joins other columns.
    build = pd.read_csv(path, sep="\t", usecols=["Release"])["Release"].to_numpy(str)
    assert (build[table.line - 2] == "GRCh38").all()
    assert 44_000 < len(table) < 45_000
    keys = np.char.add(np.char.add(table.chromosome, ":"), table.position.astype(str))
    assert len(np.unique(np.char.add(keys, table.reference_bases))) == len(np.unique(keys))


@pytest.mark.parametrize(
    "said", ["##reference=file:///data/GRCh37.fa", "##contig=<ID=chr1,assembly=b37>", "##assembly=hg19"]
)
def test_a_vcf_whose_header_says_another_build_is_refused(tmp_path, fasta, said):
    fasta.assembly = "hg38"
    own = HEADER.replace("#CHROM", f"{said}\n#CHROM")
    with pytest.raises(InputError, match=r"a\.vcf: its header says hg19, but .*genome\.fa is of hg38"):
        read_variants(vcf(tmp_path, *GOOD, header=own), fasta)
    # What a program says of its own doing is no statement about the genome.
    own = HEADER.replace("#CHROM", "##source=liftover from hg19\n##reference=GRCh38\n#CHROM")
    assert len(read_variants(vcf(tmp_path, *GOOD, header=own), fasta)) == len(GOOD)
