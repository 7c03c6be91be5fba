"""The packaged gene tables, the names in them, and the builder from a GTF."""

import gzip
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from data_pipelines.features.antibodies import antibody_table
from data_pipelines.features.gene_tables import (
    PRIMARY_CHROMOSOME,
    build_table_from_gtf,
    load_gene_table,
    main,
    organism_of_ids,
    read_gene_table,
)
from data_pipelines.features.genome_assembly import CHROMOSOME_LENGTHS
from scmbert_jax.errors import InputError


def gene_of(symbol: str, organism: str = "human") -> list[str]:
    table = load_gene_table(organism)
    return [str(table.ids[row]) for row in table.rows_of_symbol.get(symbol, ())]


@pytest.mark.parametrize("organism", ["human", "mouse"])
def test_the_packaged_tables_are_compact_sorted_and_unique(organism):
    packaged = resources.files("data_pipelines") / "tables" / f"{organism}_genes.parquet"
    assert len(packaged.read_bytes()) < 1_500_000
    table = load_gene_table(organism)
    assert np.all(table.ids[:-1] < table.ids[1:])
    assert table.organism == organism == organism_of_ids(table.ids.tolist())


@pytest.mark.parametrize("organism", ["human", "mouse"])
def test_every_position_lies_on_its_chromosome(organism):
    table = load_gene_table(organism)
    lengths = CHROMOSOME_LENGTHS[table.assembly]
    placed = table.chrom != ""
    assert placed.sum() > 20_000
    assert all(PRIMARY_CHROMOSOME.match(chrom) for chrom in np.unique(table.chrom[placed]))
    limit = np.array([lengths[chrom] for chrom in table.chrom[placed]])
    assert np.all((table.start[placed] >= 0) & (table.start[placed] < table.end[placed]))
    assert np.all(table.end[placed] <= limit)
    assert np.all((table.start <= table.tss) & (table.tss < np.maximum(table.end, 0)) | ~placed)


def test_positions_are_zero_based_and_the_tss_follows_the_strand():
    table = load_gene_table("human")
    row = table.row_of_id["ENSG00000000003"]  # TSPAN6, Ensembl X:100627108-100639991, minus strand
    assert (table.chrom[row], table.start[row], table.end[row], table.tss[row]) == (
        "chrX",
        100627107,
        100639991,
        100639990,
    )
    mouse = load_gene_table("mouse")
    row = mouse.row_of_id["ENSMUSG00000057666"]  # Gapdh, mm10 chr6:125161338-125166467, minus strand
    assert abs(mouse.tss[row] - 125166467) <= 1


def test_a_symbol_of_many_haplotypes_means_the_reference_gene():
    assert gene_of("RPS9") == ["ENSG00000170889"]
    assert gene_of("HLA-A") == ["ENSG00000206503"]
    assert gene_of("CD3E") == ["ENSG00000198851"]
    assert gene_of("Cd3e", "mouse") == ["ENSMUSG00000032093"]


def test_an_older_symbol_leads_to_the_same_gene():
    assert gene_of("CCDC132") == gene_of("VPS50") == ["ENSG00000004766"]


def test_a_retired_id_knows_its_successor():
    table = load_gene_table("human")
    assert table.replaced_by[table.row_of_id["ENSG00000006075"]] == gene_of("CCL3")[0] == "ENSG00000277632"


def test_no_id_is_replaced_by_one_that_is_itself_replaced():
    table = load_gene_table("human")
    for successor in np.unique(table.replaced_by[table.replaced_by != ""]):
        assert table.replaced_by[table.row_of_id[str(successor)]] == ""


def test_a_symbol_of_several_genes_stays_ambiguous():
    assert len(gene_of("TBCE")) == 2


def test_every_gene_of_the_antibody_table_exists():
    missing = {s for symbols in antibody_table().values() for s in symbols if not gene_of(s)}
    assert not missing


@pytest.mark.slow
def test_the_packaged_tables_are_what_the_builder_makes_of_the_raw_ones(shared_data, tmp_path):
    reference = shared_data / "citeseq_pbmc1k" / "1K_pbmc_citeseq.h5"
    main(["from-tables", str(shared_data / "genes"), str(tmp_path), "--reference", str(reference)])
    for name in ("human_genes.parquet", "mouse_genes.parquet"):
        with resources.as_file(resources.files("data_pipelines") / "tables" / name) as packaged:
            pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / name), pd.read_parquet(packaged))


GTF = """#!genome-build test
1\tensembl\tgene\t101\t200\t.\t-\t.\tgene_id "ENSG00000000001.4"; gene_name "AAA"; gene_biotype "protein_coding";
1\tensembl\ttranscript\t101\t200\t.\t-\t.\tgene_id "ENSG00000000001.4"; transcript_id "T";
chrM\tHAVANA\tgene\t5\t9\t.\t+\t.\tgene_id "ENSG00000000002"; gene_name "MT-A"; gene_type "Mt_rRNA";
chrY\tHAVANA\tgene\t5\t9\t.\t+\t.\tgene_id "ENSG00000000003.1_PAR_Y"; gene_name "PAR"; gene_type "x";
KI270728.1\tensembl\tgene\t11\t20\t.\t+\t.\tgene_id "ENSG00000000004"; gene_name "AAA"; gene_biotype "x";
"""


@pytest.mark.parametrize("suffix", [".gtf", ".gtf.gz"])
def test_a_gtf_becomes_a_table(tmp_path, suffix):
    path = tmp_path / f"genes{suffix}"
    path.write_bytes(gzip.compress(GTF.encode()) if suffix.endswith("gz") else GTF.encode())
    main(["from-gtf", str(path), str(tmp_path / "genes.parquet")])
    table = read_gene_table(tmp_path / "genes.parquet")
    assert table.ids.tolist() == ["ENSG00000000001", "ENSG00000000002", "ENSG00000000004"]
    assert table.chrom.tolist() == ["chr1", "chrM", "chrKI270728.1"]
    assert table.start.tolist() == [100, 4, 10]
    assert table.tss.tolist() == [199, 4, 10]
    assert table.biotype.tolist() == ["protein_coding", "Mt_rRNA", "x"]
    assert table.assembly == "hg38"
    # the copy on a scaffold is the gene of the primary chromosome
    assert table.replaced_by.tolist() == ["", "", "ENSG00000000001"]


def test_a_file_that_is_no_gtf_is_refused_with_its_line(tmp_path):
    path = tmp_path / "x.gtf"
    path.write_text("hello\n")
    with pytest.raises(InputError, match="line 1: 1 tab-separated fields"):
        build_table_from_gtf(path)
    path.write_text("# only a comment\n")
    with pytest.raises(InputError, match="no line whose third field"):
        build_table_from_gtf(path)


def test_an_organism_without_a_table_is_refused():
    with pytest.raises(InputError, match="human and mouse"):
        load_gene_table("zebrafish")
