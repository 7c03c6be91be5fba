"""Links of regions to genes: by distance, from a table, or none; what a table names and nobody knows is counted."""

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.features.region_links import NearestGenes, region_links
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.reading_options import ReadingOptions
from scmbert_jax.errors import InputError

HUMAN = load_gene_table("human")
REGIONS = ["chr1:1000-1500", "chr1:5000-5600", "chr2:100-900"]


def genes(count: int) -> list[tuple[str, str]]:
    rows = np.flatnonzero(HUMAN.reference & (HUMAN.biotype == "protein_coding"))[:count]
    return list(zip(HUMAN.ids[rows].tolist(), HUMAN.symbols[rows].tolist(), strict=True))


def table(path, rows, head=("region", "gene"), separator="\t"):
    text = "".join(separator.join(map(str, row)) + "\n" for row in [head, *rows])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def peaks(path, names=REGIONS):
    obs = pd.DataFrame(index=[f"c{i}" for i in range(5)])
    values = sp.csr_matrix(np.ones((5, len(names)), np.float32))
    ad.AnnData(values, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(path)
    return path


def test_a_table_of_peaks_with_weights_is_one_of_links(tmp_path):
    """As tools that link peaks to genes write it, on Windows."""
    (first, _), (_, second) = genes(2)
    rows = [(REGIONS[0], first, 0.9), (REGIONS[0].replace(":", "-"), second, 0.1)]
    text = "".join(",".join(map(str, row)) + "\r\n" for row in [("peak", "gene", "weight"), *rows])
    (tmp_path / "links.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    links = region_links(str(tmp_path / "links.csv"), "hg38")
    assert links.genes_of == {REGIONS[0]: (first, genes(2)[1][0])}


@pytest.mark.parametrize("limit", [2_000, 100_000])
def test_no_gene_beyond_the_distance_is_linked(limit):
    rows = np.flatnonzero(HUMAN.reference & (HUMAN.chrom == "chr7") & (HUMAN.tss > 0))[:50]
    start = HUMAN.tss[rows] - 250
    links = region_links(f"distance:{limit}", "hg38")
    found = links.of(rows.astype(str), np.full(50, "chr7"), start, start + 500, "hg38")
    tss_of = dict(zip(HUMAN.ids.tolist(), HUMAN.tss.tolist(), strict=True))
    distances = [
        abs(tss_of[gene] - (s + 250)) for s, linked in zip(start.tolist(), found, strict=True) for gene in linked
    ]
    assert max(distances) <= limit
    assert all(found)  # its own gene, at least
    assert region_links("distance", "hg38") == NearestGenes()


def test_distance_knows_no_genes_of_other_assemblies_and_says_so(tmp_path):
    reading = ReadingOptions(assembly="hg19")
    report = check_dataset(open_dataset(peaks(tmp_path / "x.h5ad"), reading=reading))
    assert report.usable, report.problems
    assert any("stand without links" in warning for warning in report.warnings)


@pytest.mark.parametrize("kind", ["tsv", "csv", "tsv.gz"])
def test_links_come_from_a_table_of_ids_or_symbols(tmp_path, kind):
    (first, symbol), (second, _) = genes(2)
    rows = [("chr1_1000_1500", symbol, "x"), ("chr1:1000-1500", second, "x"), ("1:5000-5600", f"{first}.3", "x")]
    spec = table(tmp_path / f"l.{kind}", rows, ("region", "gene", "score"), "," if kind == "csv" else "\t")
    options = ("--assembly", "hg38", "--region-links", spec)
    text = scmbert_ok("doctor", peaks(tmp_path / "x.h5ad"), *options)
    assert "linked to genes 2 of 3" in text
    scmbert_ok("corpus", "build", tmp_path / "corpus", tmp_path / "x.h5ad", *options)
    with open_corpus(tmp_path / "corpus") as corpus:
        features = corpus.feature_space.modalities["atac"]
        links = dict(zip(features.ids.tolist(), features.links, strict=True))
        assert links == {REGIONS[0]: (first, second), REGIONS[1]: (first,), REGIONS[2]: ()}
        facts = corpus.datasets[0]["modalities"]["atac"]["regions"]["links"]
        assert (facts["by"], facts["source"], facts["pairs"]) == ("table", f"l.{kind}", 3)


def test_none_links_nothing(tmp_path):
    reading = ReadingOptions(assembly="hg38", region_links="none")
    report = check_dataset(open_dataset(peaks(tmp_path / "x.h5ad"), reading=reading))
    assert report.features["atac"].links == ((), (), ())
    assert report.warnings == []


def test_what_a_table_names_in_vain_is_counted(tmp_path):
    (gene, _), *_ = genes(1)
    rows = [(REGIONS[0], gene), ("chr9:1-50", gene), (REGIONS[1], gene), (REGIONS[1], "NOGENE1")]
    reading = ReadingOptions(assembly="hg38", region_links=table(tmp_path / "l.tsv", rows))
    report = check_dataset(open_dataset(peaks(tmp_path / "x.h5ad"), reading=reading))
    assert report.usable, report.problems
    assert any("1 of the 3 regions that l.tsv links are not among" in warning for warning in report.warnings)
    assert any("1 pairs are left out" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ([("chr1:1-5", "TP53")], ("place", "gene"), "line 1: no column region .there is place, gene"),
        ([("chr1:1-5", "TP53"), ("somewhere", "TP53")], ("region", "gene"), "line 3: 'somewhere' is not a region"),
        ([("chr44:1-5", "TP53")], ("region", "gene"), "line 2: 'chr44:1-5' does not lie in hg38"),
        ([("chr1:1-5", "Xyz"), ("chr1:1-5", "Abc")], ("region", "gene"), "2 of 2 genes are not known as human genes"),
        ([], ("region", "gene"), "0 of 0 genes"),
        ([("chr3:1-5", "TP53")], ("region", "gene"), "none of its 3 regions is in l.tsv"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, rows, head, message):
    reading = ReadingOptions(assembly="hg38", region_links=table(tmp_path / "l.tsv", rows, head))
    report = check_dataset(open_dataset(peaks(tmp_path / "x.h5ad"), reading=reading))
    assert not report.usable
    with pytest.raises(InputError, match=message):
        raise InputError("\n".join(report.problems))


def test_another_spec_is_refused(tmp_path):
    ran = scmbert("doctor", peaks(tmp_path / "x.h5ad"), "--assembly", "hg38", "--region-links", "distance:far")
    assert ran.code == 2
    assert "expected distance, distance:BP, none, or a table" in ran.out


def test_a_real_matrix_of_genes_by_regions_becomes_links(shared_data, tmp_path):
    """SNARE-seq, mouse cortex: GxR.npz links each of its 25,734 regions to one gene."""
    folder = shared_data / "snareseq_cortex"
    matrix = sp.load_npz(folder / "GxR.npz").tocoo()
    symbols = np.array((folder / "genes.txt").read_text().split())
    with gzip.open(folder / "regions.txt.gz", "rt") as file:
        regions = np.array(file.read().split())
    by_genes = matrix.shape == (len(symbols), len(regions))
    gene, region = (matrix.row, matrix.col) if by_genes else (matrix.col, matrix.row)
    pd.DataFrame({"region": regions[region], "gene": symbols[gene]}).to_csv(tmp_path / "l.tsv", sep="\t", index=False)
    reading = ReadingOptions(assembly="mm10", region_links=str(tmp_path / "l.tsv"))
    report = check_dataset(open_dataset(folder / "atac.h5ad", reading=reading))
    assert report.usable, report.problems
    linked = sum(bool(found) for found in report.features["atac"].links)
    assert linked > 0.9 * 25_734
