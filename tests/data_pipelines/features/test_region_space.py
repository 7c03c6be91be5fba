"""Region spaces: windows tile an assembly, a catalogue is read as it is; peaks go where they overlap most."""

import gzip
import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batches.model_counts import model_counts, overlap_with_model
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features.feature_mapping import map_regions
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.features.genome_assembly import CHROMOSOME_LENGTHS
from data_pipelines.features.region_space import RegionSpace, region_space
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.reading_options import ReadingOptions
from scmbert_jax.errors import InputError

CATALOGUE = [("chr2", 500, 700), ("chr1", 1000, 1500), ("chr1", 100, 300), ("chr1", 300, 400), ("chrX", 50, 60)]


def bed(path, rows=CATALOGUE, head=""):
    text = head + "".join("\t".join(map(str, row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


# ---- a space


@pytest.mark.parametrize("assembly", ["hg38", "mm10"])
@pytest.mark.parametrize("size", [5000, 100_000])
def test_windows_tile_every_chromosome_but_the_mitochondrial_one(assembly, size):
    space = region_space(f"windows:{size}", assembly)
    lengths = {name: length for name, length in CHROMOSOME_LENGTHS[assembly].items() if name != "chrM"}
    assert len(space) == sum(-(-length // size) for length in lengths.values())
    assert int((space.end - space.start).sum()) == sum(lengths.values())
    assert space.at("chr1", np.array([0, size - 1, size])).tolist() == [0, 0, 1]
    assert space.at("chrM", np.array([5])).tolist() == [-1]
    assert space.ids[0] == f"chr1:0-{size}"


def test_a_catalogue_is_read_in_any_order_with_or_without_a_header(tmp_path):
    rows = [(*row, "name", 0, "+") for row in CATALOGUE]
    spec = bed(tmp_path / "x.bed.gz", rows, head="# made by hand\ntrack name=x\n")
    space = region_space(spec, "hg38")
    assert space.ids.tolist() == ["chr1:100-300", "chr1:300-400", "chr1:1000-1500", "chr2:500-700", "chrX:50-60"]
    assert (space.source, len(space.sha256)) == ("x.bed.gz", 64)
    assert space.at("chr1", np.array([99, 100, 299, 300, 400, 1499, 1500])).tolist() == [-1, 0, 0, 1, -1, 2, -1]
    assert space.at("chr9", np.array([100])).tolist() == [-1]


def test_chromosomes_without_chr_are_the_same(tmp_path):
    plain = [(chrom.removeprefix("chr"), *rest) for chrom, *rest in CATALOGUE]
    one, other = (region_space(bed(tmp_path / n, r), "hg38") for n, r in (("a.bed", CATALOGUE), ("b.bed", plain)))
    assert one.ids.tolist() == other.ids.tolist()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_an_interval_goes_to_the_region_it_shares_most_with(data):
    edges = sorted(data.draw(st.sets(st.integers(0, 60), min_size=2, max_size=12)))
    pairs = list(itertools.pairwise(edges))
    kept = [pair for pair in pairs if data.draw(st.booleans())] or pairs[:1]
    chrom = np.array([data.draw(st.sampled_from(["chr1", "chr2"])) for _ in kept])
    space = RegionSpace("hg38", "test", None, chrom, *np.array(kept, np.int64).T)
    starts = np.array(data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=8)), np.int64)
    ends = starts + np.array([data.draw(st.integers(1, 40)) for _ in starts], np.int64)
    where = np.array([data.draw(st.sampled_from(["chr1", "chr2", "chr3"])) for _ in starts])
    found = space.largest_overlap(where, starts, ends)
    for name, start, end, place in zip(where, starts, ends, found.tolist(), strict=True):
        shared = np.where(space.chrom == name, np.minimum(space.end, end) - np.maximum(space.start, start), 0)
        best = int(np.argmax(shared))
        assert place == (best if shared[best] > 0 else -1)
        for position in (start, end - 1):
            inside = np.flatnonzero((space.chrom == name) & (space.start <= position) & (position < space.end))
            assert space.at(str(name), np.array([position])).tolist() == (inside.tolist() or [-1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("chr1", 100, 300), ("chr1", 200, 400)], r"line 2: overlaps the region of line 1 .*bedtools merge"),
        ([("chr1", 100, 300), ("chr1", 100, 300)], r"line 2: overlaps the region of line 1"),
        ([("chr1", 100, 300), ("chr1", 500, 400)], r"line 2: ends at 400, not after its start 500"),
        ([("chr1", -1, 300)], r"line 1: starts at -1; positions are 0-based"),
        ([("chr1", 1, 300), ("chr1", "x", 400)], r"line 2: start is not a whole number in 'chr1\\tx\\t400'"),
        ([("chr1", 1, 300), ("chr1", 400)], r"line 2: .* has 2 columns; expected chrom, start, end, separated by tabs"),
        ([("chr1", 1, 300), ("",)], r"line 2: an empty line"),
        ([("chr30", 1, 300)], r"line 1: chr30:1-300: hg38 has no chromosome of this name .*liftOver"),
        ([("chr21", 1, 99_000_000)], r"line 1: .*ends beyond its chromosome in hg38"),
        ([], "no interval in it"),
    ],
)
def test_what_is_wrong_with_a_catalogue_is_named_by_line(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        region_space(bed(tmp_path / "x.bed", rows), "hg38")


@pytest.mark.parametrize(
    ("name", "head"), [("ccre_hg19.bed", ""), ("GRCh37-ccre.bed", ""), ("x.bed", "track name=x db=hg19\n")]
)
def test_a_catalogue_that_says_another_assembly_is_refused_with_what_to_do(tmp_path, name, head):
    with pytest.raises(InputError, match=r"says hg19, .*hg38.*liftOver or CrossMap"):
        region_space(bed(tmp_path / name, head=head), "hg38")
    assert len(region_space(bed(tmp_path / name, head=head), "hg19")) == 5


@pytest.mark.parametrize("spec", ["windows", "windows:x", "windows:10", "nowhere.bed"])
def test_a_spec_that_is_no_space_is_refused(spec):
    with pytest.raises(InputError, match=f"regions {spec}: "):
        region_space(spec, "hg38")


def test_a_truncated_catalogue_is_refused(tmp_path):
    rows = [("chr1", 10 * i, 10 * i + int(1 + i * i % 9)) for i in range(5000)]
    path = tmp_path / "x.bed.gz"
    bed(path, rows)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="truncated or damaged after line"):
        region_space(str(path), "hg38")


def test_a_catalogue_that_has_changed_is_read_again(tmp_path):
    assert len(region_space(bed(tmp_path / "x.bed"), "hg38")) == 5
    assert len(region_space(bed(tmp_path / "x.bed", CATALOGUE[:2]), "hg38")) == 2


# ---- peaks on a catalogue

PEAKS = ["chr1:100-300", "chr1:290-330", "chr1:250-305", "chr1:1000-1100", "chr1:9000-9100"]


def peaks(path, names=PEAKS, **columns):
    values = np.arange(1, 4 * len(names) + 1, dtype=np.float32).reshape(4, -1)
    var = pd.DataFrame(columns, index=names)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(4)])
    ad.AnnData(sp.csr_matrix(values), obs=obs, var=var).write_h5ad(path)
    return values


def test_peaks_go_to_the_catalogue_and_every_report_says_that_it_loses(tmp_path):
    values = peaks(tmp_path / "atac.h5ad")
    options = ("--regions", bed(tmp_path / "cat.bed"), "--assembly", "hg38")
    text = scmbert_ok("doctor", tmp_path / "atac.h5ad", *options)
    assert "LOSSY: 3 peaks mapped by overlap, 1 left out" in text
    assert "Counting the fragments on these regions does not" in text
    assert '"lossy": true' in scmbert_ok("doctor", tmp_path / "atac.h5ad", *options, "--json")
    text = scmbert_ok("corpus", "build", tmp_path / "corpus", tmp_path / "atac.h5ad", *options)
    assert "cat.bed (5 regions); LOSSY: 3 peaks mapped by overlap, 1 left out" in text
    with open_corpus(tmp_path / "corpus") as corpus:
        features = corpus.feature_space.modalities["atac"]
        assert sorted(features.ids.tolist()) == sorted(f"{c}:{s}-{e}" for c, s, e in CATALOGUE)
        measured = dict(zip(features.ids.tolist(), corpus.measured(0, "atac").tolist(), strict=True))
        # No peak lies on chr2 and chrX: there nothing was measured, which is no zero.
        assert [name for name, is_measured in measured.items() if not is_measured] == ["chr2:500-700", "chrX:50-60"]
        facts = corpus.datasets[0]["modalities"]["atac"]["regions"]
        assert (facts["source"], facts["by_overlap"], facts["in_no_region"], facts["lossy"]) == ("cat.bed", 3, 1, True)
        assert len(facts["sha256"]) == 64
        block = corpus.read_block(0).modalities["atac"]
        total = np.zeros(len(features), int)
        np.add.at(total, block.feature_ids, block.counts)
    by_id = dict(zip(features.ids.tolist(), total.tolist(), strict=True))
    sums = values.sum(axis=0).astype(int)
    assert by_id["chr1:100-300"] == sums[0] + sums[2]
    assert by_id["chr1:300-400"] == sums[1]
    assert by_id["chr1:1000-1500"] == sums[3]


def test_a_file_counted_on_the_catalogue_itself_loses_nothing(tmp_path):
    peaks(tmp_path / "atac.h5ad", [f"{c}_{s}_{e}" for c, s, e in CATALOGUE])
    reading = ReadingOptions(assembly="hg38", regions=bed(tmp_path / "cat.bed"))
    report = check_dataset(open_dataset(tmp_path / "atac.h5ad", reading=reading))
    assert report.usable, report.problems
    assert report.modalities["atac"].regions["lossy"] is False
    assert not any("overlap" in warning for warning in report.warnings)


def test_peaks_of_another_assembly_or_mostly_elsewhere_are_refused(tmp_path):
    peaks(tmp_path / "a.h5ad", genome="GRCh37")
    options = ("--regions", bed(tmp_path / "cat.bed"), "--assembly", "hg38")
    ran = scmbert("doctor", tmp_path / "a.h5ad", *options)
    assert ran.code == 2
    assert "not lifted over" in ran.out
    assert "liftOver or CrossMap and the chain file from hg19 to hg38" in ran.out
    peaks(tmp_path / "b.h5ad", [f"chr5:{1000 * i}-{1000 * i + 9}" for i in range(4)])
    ran = scmbert("doctor", tmp_path / "b.h5ad", *options)
    assert ran.code == 2
    assert "only 0% of the names are or overlap regions of" in ran.out
    assert "cannot be used" in scmbert("corpus", "build", tmp_path / "c", tmp_path / "b.h5ad", *options).err
    ran = scmbert("doctor", tmp_path / "b.h5ad", *options[:2])
    assert "the assembly of the regions must be stated" in ran.out


def test_a_model_of_the_catalogue_reads_other_peaks_when_they_are_mapped(tmp_path):
    """By the options behind the name, which every verb takes: `scmbert embed MODEL 'atac.h5ad?regions=cat.bed'`."""
    values = peaks(tmp_path / "atac.h5ad")
    catalogue = bed(tmp_path / "cat.bed")
    reading = ReadingOptions(assembly="hg38", regions=catalogue)
    space = FeatureSpace(check_dataset(open_dataset(tmp_path / "atac.h5ad", reading=reading)).features)
    dataset = open_dataset(f"{tmp_path / 'atac.h5ad'}?regions={catalogue}&assembly=hg38")
    report = check_dataset(dataset)
    overlaps = overlap_with_model(report, space, ["atac"])
    assert int(overlaps["atac"].measured.sum()) == 3
    (chunk,) = model_counts(dataset, report, overlaps)
    counts = dict(zip(space.modalities["atac"].ids.tolist(), chunk.counts["atac"].toarray().T.tolist(), strict=True))
    assert counts["chr1:100-300"] == (values[:, 0] + values[:, 2]).tolist()
    assert counts["chr2:500-700"] == [0, 0, 0, 0]
    elsewhere = check_dataset(open_dataset(f"{tmp_path / 'atac.h5ad'}?regions=windows:5000000&assembly=hg38"))
    with pytest.raises(InputError, match=r"FILE\?regions=catalogue\.bed"):
        overlap_with_model(elsewhere, FeatureSpace({"atac": named(["chr9:7-8"])}), ["atac"])


def named(ids):
    return map_regions(np.array(ids), "hg38").features


def test_one_corpus_has_one_set_of_regions(tmp_path):
    for name in ("a", "b"):
        peaks(tmp_path / f"{name}.h5ad")
    catalogue = bed(tmp_path / "cat.bed")
    files = (tmp_path / "a.h5ad", f"{tmp_path / 'b.h5ad'}?regions={catalogue}")
    ran = scmbert("corpus", "build", tmp_path / "corpus", *files, "--assembly", "hg38")
    assert ran.code == 2
    assert "a corpus has one set of regions" in ran.err


def test_regions_for_files_without_any_are_refused():
    ran = scmbert("doctor", "example:pbmc_mosaic", "--regions", "windows:5000")
    assert ran.code == 2
    assert "has regions; leave the option out" in ran.err


@pytest.mark.slow
def test_real_peaks_go_to_windows(shared_data):
    """SNARE-seq, mouse cortex: 25,734 peaks of some 300 bp, all of which lie in some 5-kb window."""
    reading = ReadingOptions(assembly="mm10", regions="windows:5000")
    dataset = open_dataset(shared_data / "snareseq_cortex" / "atac.h5ad", reading=reading)
    report = check_dataset(dataset)
    assert report.usable, report.problems
    part = report.modalities["atac"]
    assert part.mapping.num_mapped == 25_734
    assert part.regions["in_no_region"] == 0
    assert part.mapped_count_fraction == 1.0
    assert len(report.features["atac"]) == len(region_space("windows:5000", "mm10"))
    assert 15_000 < part.mapping.measured.sum() < 25_734
