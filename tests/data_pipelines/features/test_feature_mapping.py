"""Names of a file -> stable features: ids, symbols, antibodies, regions."""

import numpy as np
import pandas as pd
import pytest

from data_pipelines.features.antibodies import coding_genes, is_isotype_control, normalise_antibody
from data_pipelines.features.feature_mapping import (
    choose_names,
    gene_coverage,
    map_genes,
    map_proteins,
    map_regions,
)
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.features.genome_assembly import assembly_of_genome, parse_regions
from data_pipelines.features.modality_names import modality_of_features
from data_pipelines.features.region_links import MAX_DISTANCE, nearest_genes

CD3E, CD4, MS4A1 = "ENSG00000198851", "ENSG00000010610", "ENSG00000156738"


def names(*values: str) -> np.ndarray:
    return np.array(values, dtype=str)


# ---- genes


def test_versions_and_par_y_are_stripped():
    mapping = map_genes(names(f"{CD3E}.12", CD4, "ENSG00000169084.13_PAR_Y"), "human")
    assert mapping.ids.tolist() == [CD3E, CD4, "ENSG00000169084"]
    assert mapping.coverage == 1.0


def test_ids_symbols_and_aliases_lead_to_one_feature():
    mapping = map_genes(names("CD3E", "VPS50", "CCDC132", "ENSG00000004766"), "human")
    assert mapping.status.tolist() == ["symbol", "symbol", "alias", "id"]
    assert len(mapping.features) == 2
    assert mapping.column_to_feature[1] == mapping.column_to_feature[2] == mapping.column_to_feature[3]
    assert mapping.num_summed == 2
    assert mapping.summed_examples() == ["ENSG00000004766 (VPS50, CCDC132, ENSG00000004766)"]


def test_a_retired_id_and_its_successor_are_summed():
    mapping = map_genes(names("ENSG00000006075", "ENSG00000277632"), "human")
    assert mapping.status.tolist() == ["retired id", "id"]
    assert mapping.column_to_feature.tolist() == [0, 0]


def test_ambiguous_and_unknown_names_are_counted_not_guessed():
    mapping = map_genes(names("TBCE", "NOTAGENE", "CD4", "MS4A1", "CD3E"), "human")
    assert mapping.ids.tolist() == ["", "", CD4, MS4A1, CD3E]
    assert mapping.status_counts == {"symbol": 3, "ambiguous": 1, "unknown": 1}
    assert mapping.examples("ambiguous") == ["TBCE"]
    assert mapping.coverage == pytest.approx(3 / 5)
    assert mapping.column_to_feature.tolist()[:2] == [-1, -1]


def test_spike_ins_are_no_genes_and_do_not_lower_the_coverage():
    mapping = map_genes(names("ERCC-00002", "CD4"), "human")
    assert mapping.status.tolist() == ["spike-in", "symbol"]
    assert mapping.coverage == 1.0
    assert map_genes(names("ERCC1"), "human").status.tolist() == ["symbol"]  # a gene with a similar name


def test_upper_cased_symbols_are_rescued_where_the_rest_fits():
    mapping = map_genes(names("CD4", "MS4A1", "C1ORF43"), "human")
    assert mapping.status.tolist() == ["symbol", "symbol", "other case"]


def test_a_mouse_file_is_not_rescued_into_a_human_one():
    mouse = names("Cd4", "Ms4a1", "Cd3e", "Actb", "Gapdh")
    assert gene_coverage(mouse, "mouse") == 1.0
    assert gene_coverage(mouse, "human") == 0.0
    assert map_genes(mouse, "human").coverage == 0.0


def test_features_carry_the_tables_symbol_and_place_in_canonical_order():
    mapping = map_genes(names("MS4A1", "CD4"), "human")
    assert mapping.features.ids.tolist() == [CD4, MS4A1]
    assert mapping.features.names.tolist() == ["CD4", "MS4A1"]
    assert mapping.features.chrom.tolist() == ["chr12", "chr11"]
    assert mapping.column_to_feature.tolist() == [1, 0]
    assert mapping.space == mapping.features.space == "gene:human"


def test_ensembl_ids_in_var_win_over_symbols_in_the_index():
    var = pd.DataFrame({"gene_ids": [CD4, CD3E], "highly_variable": ["a", "b"]}, index=["CD4", "CD3E"])
    source, chosen = choose_names(var, names("CD4", "CD3E"), lambda n: gene_coverage(n, "human"))
    assert source == "var['gene_ids']"
    assert chosen.tolist() == [CD4, CD3E]


# ---- proteins


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("CD3", "cd3"),
        ("cd3", "cd3"),
        ("Hu.CD3_UCHT1", "cd3"),
        ("HuMs.CD44_IM7", "cd44"),
        ("CD3_TotalSeqB", "cd3"),
        ("CD4-TotalSeqC", "cd4"),
        ("anti-human CD3", "cd3"),
        ("ADT_CD4", "cd4"),
        ("CD45RA_HI100", "cd45ra"),
        ("CD3.1", "cd3.1"),
        ("CD3-2", "cd3.2"),
        ("HLA-DR", "hla.dr"),
        ("CD66a/c/e", "cd66a.c.e"),
        ("CD279 (PD-1)", "cd279"),
        ("TCRα/β", "tcra.b"),
        ("mouse IgG2a", "mouse.igg2a"),
        ("SomeNewThing", "somenewthing"),
    ],
)
def test_an_antibody_has_one_spelling(written, expected):
    assert normalise_antibody(written) == expected
    assert normalise_antibody(expected) == expected


def test_a_complex_links_to_all_its_genes_and_a_replicate_to_the_same():
    assert coding_genes("cd3") == coding_genes("cd3.1") == ("CD3D", "CD3E", "CD3G")
    assert coding_genes("cd31") == ("PECAM1",)
    assert coding_genes("tcr.v.7.2") == ("TRAV1-2",)
    assert coding_genes("siglec.8") == ("SIGLEC8",)
    assert coding_genes("cd11a.cd18") == ("ITGAL", "ITGB2")


@pytest.mark.parametrize("name", ["IgG1_control_TotalSeqC", "igg1", "mouse igg2a", "rat.IgG2b", "Isotype_MOPC.21"])
def test_isotype_controls_are_flagged(name):
    assert is_isotype_control(normalise_antibody(name))


@pytest.mark.parametrize("name", ["IgM", "IgD", "IgE", "CD16", "Ig.Light.Chain.K", "IgG.Fc"])
def test_immunoglobulins_on_cells_are_no_controls(name):
    assert not is_isotype_control(normalise_antibody(name))


def test_every_antibody_is_a_feature_linked_to_its_genes():
    mapping = map_proteins(names("CD4", "cd3.1", "cd3.2", "IgG1_control", "Mystery"), "human")
    assert mapping.features.ids.tolist() == ["cd3.1", "cd3.2", "cd4", "igg1.control", "mystery"]
    assert mapping.features.names.tolist() == ["cd3.1", "cd3.2", "CD4", "IgG1_control", "Mystery"]
    assert mapping.features.links[2] == (CD4,)
    assert CD3E in mapping.features.links[0] == mapping.features.links[1]
    assert mapping.status.tolist() == ["antibody"] * 3 + ["isotype control", "no coding gene known"]
    assert mapping.coverage == 1.0


def test_mouse_antibodies_link_to_mouse_genes():
    mapping = map_proteins(names("CD3e", "CD4"), "mouse")
    assert mapping.features.links == (("ENSMUSG00000032093",), ("ENSMUSG00000023274",))


def test_every_antibody_of_the_mosaic_and_of_the_citeseq_panel_is_known(shared_data):
    import h5py

    with h5py.File(shared_data / "pbmc_mosaic" / "quickstart_pbmc_mosaic.h5mu") as file:
        mosaic = file["mod/adt/var/_index"].asstr()[:]
    with h5py.File(shared_data / "citeseq_pbmc1k" / "1K_pbmc_citeseq.h5") as file:
        panel = file["matrix/features/id"].asstr()[-10:]
    mapping = map_proteins(mosaic.astype(str), "human")
    assert mapping.status_counts == {"antibody": 224}
    assert map_proteins(panel.astype(str), "human").status_counts == {"antibody": 9, "isotype control": 1}


# ---- regions


def test_three_spellings_are_one_region():
    mapping = map_regions(names("chr1:1000-2000", "chr1_1000_2000", "chr1-1000-2000", "1:1000-2000"), "hg38")
    assert set(mapping.ids.tolist()) == {"chr1:1000-2000"}
    assert mapping.num_summed == 3


@pytest.mark.parametrize("name", ["chr1:5-5", "chr1:9-3", "chr1:-4-9", "chr1", "CD4", "chr1:1-2:3", ""])
def test_impossible_regions_are_refused(name):
    assert map_regions(names(name), "hg38").status.tolist() == ["not a region"]


def test_a_coordinate_beyond_the_chromosome_and_a_missing_chromosome_are_told_apart():
    mapping = map_regions(names("chr1:248956400-248956422", "chr1:248956400-248956423", "chr20:1-9"), "hg38")
    assert mapping.status.tolist() == ["region", "beyond the chromosome", "region"]
    assert map_regions(names("chr20:1-9"), "mm10").status.tolist() == ["no such chromosome"]
    assert map_regions(names("GL000194.1:1-9", "chrUn_KI270742v1:1-9"), "hg38").coverage == 1.0


def test_nearest_genes_agree_with_a_search_over_all_genes():
    genes = load_gene_table("human")
    rng = np.random.default_rng(0)
    chrom = np.array(["chr19"] * 200)
    start = rng.integers(0, 58_000_000, 200)
    end = start + rng.integers(1, 2000, 200)
    rows = np.flatnonzero(genes.reference & (genes.chrom == "chr19"))
    for region, linked in enumerate(nearest_genes(chrom, start, end, genes)):
        distance = np.abs(genes.tss[rows] - (start[region] + end[region]) // 2)
        nearest = np.sort(distance[distance <= MAX_DISTANCE])[:3]
        found = [abs(genes.tss[genes.row_of_id[g]] - (start[region] + end[region]) // 2) for g in linked]
        assert found == nearest.tolist()


def test_a_region_at_a_promoter_links_to_its_gene_only_where_positions_are_known():
    genes = load_gene_table("human")
    tss = int(genes.tss[genes.row_of_id[CD4]])
    name = f"chr12:{tss - 50}-{tss + 50}"
    assert map_regions(names(name), "hg38").features.links[0][0] == CD4
    assert map_regions(names(name), "hg19").features.links == ((),)


@pytest.mark.parametrize(
    ("genome", "assembly"),
    [
        ("GRCh38", "hg38"),
        ("GRCh38-2020-A", "hg38"),
        ("mm10", "mm10"),
        ("GRCm39", "mm39"),
        ("GRCh37", "hg19"),
        ("GRCh38+mm10", None),
        ("", None),
        (None, None),
        ("danRer11", None),
    ],
)
def test_genome_names_become_assemblies(genome, assembly):
    assert assembly_of_genome(genome) == assembly


def test_parsed_regions_keep_their_numbers():
    regions = parse_regions(names("MT:3-7", "chr2_10_20", "x"))
    assert regions.chrom.tolist() == ["chrM", "chr2", ""]
    assert regions.start.tolist() == [3, 10, -1]
    assert regions.valid.tolist() == [True, True, False]


# ---- which modality names are


def test_the_modality_is_recognised_from_names_or_not_at_all():
    assert modality_of_features(names("chr1:1-2", "chr1:5-9")) == "atac"
    assert modality_of_features(names(CD4, CD3E)) == "rna"
    assert modality_of_features(names("MS4A1", "GNLY", "CD4", "LYZ")) == "rna"
    assert modality_of_features(names("Ms4a1", "Cd4", "Lyz2")) == "rna"
    assert modality_of_features(names("CD3", "CD4", "CD45RA", "CD8", "HLA-DR")) == "protein"
    assert modality_of_features(names("feature1", "feature2", "CD4", "f", "g", "h")) is None
