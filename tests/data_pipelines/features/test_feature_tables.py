"""What a table of features says, however people write it: types, names, genomes; what is missing says nothing."""

import gzip
import time

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.features.feature_mapping import map_genes, map_proteins, map_regions
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.features.modality_names import modality_of_features
from data_pipelines.readers.open_dataset import open_dataset

ad = pytest.importorskip("anndata")

HUMAN, MOUSE = load_gene_table("human"), load_gene_table("mouse")
# Genes that one organism knows by a symbol of its own.
ROWS = np.flatnonzero(HUMAN.reference & (HUMAN.biotype == "protein_coding"))[:60]
IDS, SYMBOLS = HUMAN.ids[ROWS].tolist(), HUMAN.symbols[ROWS].tolist()
MOUSE_ROWS = [row for row in np.flatnonzero(MOUSE.reference) if MOUSE.symbols[row] not in HUMAN.rows_of_symbol][:60]
MOUSE_IDS, MOUSE_SYMBOLS = MOUSE.ids[MOUSE_ROWS].tolist(), MOUSE.symbols[MOUSE_ROWS].tolist()
ANTIBODIES = ["CD3E", "CD4", "CD8A", "CD14", "CD19", "PTPRC"]  # called like genes


def counts(features=60, cells=40, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(1.0, (cells, features)) + (np.arange(features) == 0)


def cells(var: pd.DataFrame, values=None):
    values = counts(len(var)) if values is None else values
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(values))])
    return ad.AnnData(sp.csr_matrix(values.astype(np.float32)), obs=obs, var=var)


def check(adata, **options):
    return check_dataset(open_dataset(adata), **{"min_genes": 1, **options})


def rna(report):
    assert report.usable, report.problems
    return report.modalities["rna"].mapping


# ---- types


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("feature_types", ("Gene Expression", "Antibody Capture")),
        ("Feature types", ("Gene Expression", "Antibody Capture")),
        ("featureType", ("gene-expression", "ANTIBODY_CAPTURE")),
        ("feature type", ("RNA", "ADT")),
        ("Type", ("Gene Expression", "Antibody Capture")),
        ("anything", ("rna", "Antibody-Derived Tags")),
    ],
)
@pytest.mark.parametrize("categorical", [True, False])
def test_antibodies_are_told_from_genes_however_the_column_is_spelt(column, words, categorical):
    genes = [symbol for symbol in SYMBOLS if symbol not in ANTIBODIES]
    types = [words[0]] * len(genes) + [words[1]] * len(ANTIBODIES)
    var = pd.DataFrame({column: pd.Categorical(types) if categorical else types}, index=[*genes, *ANTIBODIES])
    report = check(cells(var))
    assert list(report.modalities) == ["rna", "protein"]
    assert set(report.modalities["rna"].mapping.names.tolist()) == set(genes)
    assert report.modalities["protein"].mapping.names.tolist() == ANTIBODIES


def test_a_column_of_types_that_is_not_understood_is_named_and_biotypes_are_no_types():
    odd = pd.DataFrame({"feature_types": ["probe", "tag"] * 30}, index=IDS)
    (warning,) = check(cells(odd)).warnings
    assert "var['feature_types'] says 'probe', 'tag', which is not understood: all features are taken as rna" in warning
    biotypes = pd.DataFrame({"feature_type": ["protein_coding", "lncRNA"] * 30}, index=IDS)
    assert not check(cells(biotypes)).warnings
    words = pd.DataFrame({"kind": ["protein", "lncRNA"] * 30}, index=IDS)  # one modality, and no type of features
    assert list(check(cells(words)).modalities) == ["rna"]


def test_a_missing_type_is_no_type():
    one = pd.DataFrame({"feature_types": pd.Categorical(["Gene Expression"] * 57 + [None] * 3)}, index=IDS)
    assert len(rna(check(cells(one))).names) == 60  # by their names of the one kind there is
    one.index = [*IDS[:57], "tag_1", "tag_2", "tag_3"]
    report = check(cells(one))
    assert len(rna(report).names) == 57
    (warning,) = report.warnings
    assert "(var['feature_types'] is missing; best known: 0% as human genes" in warning
    assert "Its 3 features (tag_1, tag_2, tag_3) are not read" in warning
    # of several kinds it may be either
    types = ["Gene Expression"] * 50 + ["Antibody Capture"] * 6 + ["nan", "", "Hashtag", "None"]
    some = pd.DataFrame({"feature_types": types}, index=[*SYMBOLS[:50], *ANTIBODIES, "x1", "x2", "CD3", "x3"])
    report = check(cells(some))
    assert (len(rna(report).names), len(report.modalities["protein"].mapping.names)) == (50, 6)
    assert sum("are not read" in warning for warning in report.warnings) == 2
    some.index = [*SYMBOLS[:50], *ANTIBODIES, *SYMBOLS[50:54]]
    (problem,) = check(cells(some)).problems
    assert "best known: 100% as human genes" in problem
    assert "Say it in var['feature_types'] (Gene Expression, Antibody Capture or Peaks)" in problem
    some["feature_types"] = [*types[:56], *["Gene Expression"] * 4]  # as it says
    assert len(rna(check(cells(some))).names) == 54


def test_several_words_for_one_modality_are_one_matrix():
    types = ["Gene Expression"] * 30 + ["rna"] * 30
    assert len(rna(check(cells(pd.DataFrame({"feature_types": types}, index=IDS)))).names) == 60


# ---- names


@pytest.mark.parametrize(
    ("column", "names"),
    [
        *[
            (column, IDS)
            for column in ("gene_ids", "GeneID", "ensembl", "Ensembl ID", "feature_id", "index", "Accession")
        ],
        *[
            (column, SYMBOLS)
            for column in ("gene_symbols", "Gene Symbol", "hgnc_symbol", "gene_short_name", "features")
        ],
    ],
)
def test_names_in_a_column_beside_a_numbered_index_give_the_same_features(column, names):
    plain = rna(check(cells(pd.DataFrame(index=names))))
    numbered = rna(check(cells(pd.DataFrame({column: names}, index=[str(i) for i in range(60)]))))
    assert numbered.source == f"var[{column!r}]"
    assert numbered.ids.tolist() == plain.ids.tolist()


def test_antibodies_and_regions_may_stand_in_a_column_too():
    names = ["CD3", "CD4", "CD8", "CD14", "CD19"]
    report = check(cells(pd.DataFrame({"Antibody": names}, index=list("01234"))), organism="human")
    assert report.modalities["protein"].mapping.ids.tolist() == ["cd3", "cd4", "cd8", "cd14", "cd19"]
    regions = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(1, 6)]
    report = check(cells(pd.DataFrame({"Peak": regions}, index=list("01234"))), assembly="hg38")
    assert report.modalities["atac"].mapping.ids.tolist() == regions


@pytest.mark.parametrize("missing", [None, np.nan, "", "nan", "None", "NA", " "], ids=repr)
def test_a_missing_id_is_no_id_and_the_symbol_stands_in(missing):
    names = [*SYMBOLS[:56], SYMBOLS[56], "eGFP", "tdTomato", "CAR"]
    mapping = rna(check(cells(pd.DataFrame({"gene_ids": [*IDS[:56], *[missing] * 4]}, index=names))))
    assert mapping.source == "var['gene_ids']"
    assert mapping.ids.tolist() == [*IDS[:57], "", "", ""]
    assert mapping.examples("unknown") == ["eGFP", "tdTomato", "CAR"]


def test_features_without_any_name_are_counted_as_such():
    mapping = rna(check(cells(pd.DataFrame(index=[*SYMBOLS[:57], "", "nan", "NA"]))))
    assert mapping.status_counts == {"symbol": 57, "no name": 3}


def test_what_maps_to_nothing_may_be_repeated():
    report = check(cells(pd.DataFrame(index=[*SYMBOLS[:56], "Y_RNA", "Y_RNA", "7SK", "7SK"])))
    assert rna(report).num_mapped == 56


@pytest.mark.parametrize(
    "write",
    [
        "{id}.7",
        "GRCh38_{id}",
        "GRCh38______{id}.2",
        "hg38-{id}",
        "{symbol}_{id}",
        "GRCh38_{symbol}",
        "HUMAN_{symbol}",
        "GRCh38-2020-A_{symbol}",
    ],
)
def test_a_genome_or_a_version_in_a_name_is_no_part_of_it(write):
    names = [write.format(id=i, symbol=s) for i, s in zip(IDS, SYMBOLS, strict=True)]
    assert rna(check(cells(pd.DataFrame(index=names)))).ids.tolist() == IDS


def test_ids_in_lower_case_are_ids_and_those_of_parts_of_genes_are_not():
    assert rna(check(cells(pd.DataFrame(index=[name.lower() for name in IDS])))).ids.tolist() == IDS
    mapping = rna(check(cells(pd.DataFrame(index=[*IDS[:58], f"{IDS[0]}-I", f"{IDS[1]}_intron"]))))
    assert mapping.status_counts == {"id": 58, "unknown": 2}


def test_dates_of_a_spreadsheet_are_named():
    mapping = rna(check(cells(pd.DataFrame(index=[*SYMBOLS[:57], "1-Mar", "Sep-02", "2021-12-01"]))))
    assert mapping.examples("a date") == ["1-Mar", "Sep-02", "2021-12-01"]


def test_a_gene_in_another_case_is_a_gene_only_where_the_gene_has_no_column():
    mapping = rna(check(cells(pd.DataFrame(index=[*MOUSE_SYMBOLS, MOUSE_SYMBOLS[0].upper() + "_x", "EGFP"]))))
    assert mapping.num_mapped == 60
    app = rna(check(cells(pd.DataFrame(index=[*MOUSE_SYMBOLS, "App", "APP"]))))
    assert app.status[-2:].tolist() == ["symbol", "another species"]
    assert rna(check(cells(pd.DataFrame(index=[*MOUSE_SYMBOLS, "APP"])))).status[-1] == "other case"


# ---- among antibodies


TAGS = ["CTCATTGTAACTCCT", "TGTTCCCGCTCAACT", "GCTGCGCTTTCCATT", "TCTCAGACCTCCGTA"]
HASHTAGS = ["HTO_1", "Hashtag-2-ACCCACCAGTAAGAC", "anti-human Hashtag 3", "SampleTag04_hs", "CMO301"]
NO_ANTIBODIES = [*HASHTAGS, "unmapped", "no_match"]


def write_folder(folder, lines: list[str]):
    """CITE-seq-Count's umi_count: `lines` of features.tsv, counts of as many tags."""
    folder.mkdir(parents=True)
    values = counts(len(lines), 12)
    for name, rows in (("barcodes.tsv.gz", [f"AAAC{i}" for i in range(12)]), ("features.tsv.gz", lines)):
        with gzip.open(folder / name, "wt") as file:
            file.write("\n".join(rows) + "\n")
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(values.T), field="integer")
    return folder


def test_tags_behind_names_and_rows_that_are_no_antibodies_change_no_corpus(tmp_path):
    names = ["CD3", "CD4", "CD8", "IgG1_control"]
    written = {
        "plain": names,
        "v14": [*(f"{name}-{tag}" for name, tag in zip(names, TAGS, strict=True)), "unmapped"],
        "v15": [f"{tag}\t{name}" for name, tag in zip(names, TAGS, strict=True)],
        "typed": [f"{name}-{tag}\t{name}\tAntibody Capture" for name, tag in zip(names, TAGS, strict=True)],
    }
    spaces = {}
    for kind, lines in written.items():
        folder = write_folder(tmp_path / kind / "umi_count", lines)
        with build_corpus(tmp_path / f"{kind}_corpus", [folder], organism="human", min_genes=1, block_size=4) as corpus:
            spaces[kind] = corpus.feature_space.modalities["protein"]
    for space in spaces.values():
        assert space.ids.tolist() == ["cd3", "cd4", "cd8", "igg1.control"]
        assert space.names.tolist() == ["CD3", "CD4", "CD8", "IgG1_control"]
        assert space.links == spaces["plain"].links


def test_hashtags_and_reads_without_a_tag_are_no_proteins():
    antibodies = ["CD3", "CD4", "IgG2a isotype", "LMO2"]
    report = check(cells(pd.DataFrame({"feature_types": "ADT"}, index=[*antibodies, *NO_ANTIBODIES])), organism="human")
    mapping = report.modalities["protein"].mapping
    assert mapping.status_counts["hashtag"] == 5
    assert mapping.status_counts["no tag"] == 2
    assert mapping.features.names.tolist() == ["CD3", "CD4", "IgG2a isotype", "LMO2"]
    assert mapping.coverage == 1.0
    assert any("7 of 11 features are hashtags, or reads without a tag" in warning for warning in report.warnings)


def test_a_matrix_of_hashtags_alone_is_left_out_beside_genes():
    types = ["Gene Expression"] * 60 + ["Antibody Capture"] * 3
    report = check(cells(pd.DataFrame({"feature_types": types}, index=[*IDS, "HTO_1", "HTO_2", "unmapped"])))
    assert report.usable
    assert list(report.modalities) == ["rna"]
    assert any("its 3 features are no antibodies (HTO_1, HTO_2, unmapped" in warning for warning in report.warnings)


# ---- what messages say to do


def test_every_remedy_for_features_leads_to_a_usable_file(tmp_path):
    """Each follows what the message says, and nothing else, to its end."""

    def told(adata, *words: str, **options) -> None:
        (problem,) = check(adata, **options).problems
        assert all(word in problem for word in words), problem

    unknown = [f"thing{i}" for i in range(60)]
    adata = cells(pd.DataFrame(index=unknown))
    told(adata, "Say it in var['feature_types'] (Gene Expression, Antibody Capture or Peaks)")
    adata.var["feature_types"] = "Gene Expression"
    told(adata, "no name in var index is a gene of human or mouse", "give Ensembl ids", "var['gene_ids']")
    adata.var["gene_ids"] = IDS
    assert rna(check(adata)).ids.tolist() == IDS

    adata = cells(pd.DataFrame(index=MOUSE_IDS))
    told(adata, "state --organism mouse", organism="human")
    assert rna(check(adata, organism="mouse")).num_mapped == 60

    adata = cells(pd.DataFrame(index=[*IDS[:20], *unknown[:40]]))
    told(adata, "only 33% of the genes are known", "or lower --min-coverage")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert scmbert("doctor", tmp_path / "cells.h5ad").code == 2
    text = scmbert_ok("doctor", tmp_path / "cells.h5ad", "--min-coverage", "0.3")
    assert "20 of 60 columns map to gene:human" in text

    adata = cells(pd.DataFrame(index=[IDS[1], *IDS[1:]]))
    told(adata, "1 feature ids occur more than once", "or sum the repeated columns")
    summed = sp.csr_matrix(np.column_stack([adata.X[:, :2].sum(axis=1), adata.X[:, 2:].toarray()]))
    assert rna(check(ad.AnnData(summed, obs=adata.obs, var=pd.DataFrame(index=IDS[1:])))).num_mapped == 59

    panel = cells(pd.DataFrame({"feature_types": "ADT"}, index=["x1", "x2", "x3", "CD4"]))
    told(panel, "only 25% of the names are known antibodies", "Rename them after their antigen", organism="human")
    panel.var_names = ["CD3", "CD8", "HLA-DR", "CD4"]
    assert check(panel, organism="human").usable


# ---- hostile names


PIECES = ["_", " ", ".", "-", "total_seq", "(a", "1_", "a.", "a_1", "-ACGT", "anti-", "hto_", "ENSG", "GRCh38_", "1"]


@pytest.mark.parametrize("piece", PIECES)
def test_a_name_of_any_length_takes_no_longer_than_its_length(piece):
    name = "CD3_" + piece * (100_000 // len(piece)) + "$"
    started = time.process_time()
    for names in (np.array([name]), np.array([name[4:]])):
        assert map_genes(names, "human").num_mapped == 0
        assert map_proteins(names, "human").num_mapped == 0
        assert map_regions(names, "hg38").num_mapped == 0
        assert modality_of_features(names) is None
    # Milliseconds; a pattern that takes the square of the length needs minutes.
    assert time.process_time() - started < 5


def test_a_number_of_any_length_is_no_coordinate():
    assert map_regions(np.array([f"chr1:{'1' * 5000}-2", f"chr1:1-{'9' * 19}"]), "hg38").num_mapped == 0


# ---- species


def mixture(human: list[str], mouse: list[str], genome: bool = False):
    """20 human cells and 10 mouse cells, with a few counts of the other species each."""
    var = pd.DataFrame(index=[*human, *mouse])
    if genome:
        var["genome"] = ["GRCh38"] * len(human) + ["mm10"] * len(mouse)
    rng = np.random.default_rng(0)
    rate = np.where(np.arange(30)[:, None] < 20, [[4.0, 0.05]], [[0.05, 4.0]])
    values = rng.poisson(np.repeat(rate, [len(human), len(mouse)], axis=1))
    adata = cells(var, values + (np.arange(var.shape[0]) == 0))
    adata.obs_names = [f"human{i}" for i in range(20)] + [f"mouse{i}" for i in range(10)]
    return adata


@pytest.mark.parametrize(
    ("human", "mouse", "genome"),
    [
        (IDS, MOUSE_IDS[:50], False),
        ([f"GRCh38_{i}" for i in IDS], [f"mm10___{i}" for i in MOUSE_IDS], False),
        (SYMBOLS, MOUSE_SYMBOLS[:40], False),
        (SYMBOLS[:50], SYMBOLS[50:], True),  # as the file says, gene by gene
    ],
    ids=["ids", "prefixes", "symbols", "genome"],
)
def test_a_mixture_of_species_is_refused_and_what_it_says_to_do_helps(tmp_path, human, mouse, genome):
    adata = mixture(human, mouse, genome)
    (problem,) = check(adata).problems
    assert f"a mixture of species: {len(human)} features are of human, {len(mouse)} of another species" in problem
    assert "a mixture of species" in check(adata, organism="human", min_coverage=0.1).problems[0]
    # as the message says: cells with nine in ten of their counts on the features of one species, with these only
    own = np.arange(adata.n_vars) < len(human)
    fraction = np.asarray(adata.X[:, own].sum(axis=1)).ravel() / np.asarray(adata.X.sum(axis=1)).ravel()
    adata[fraction > 0.9, own].write_h5ad(tmp_path / "human.h5ad")
    corpus = build_corpus(tmp_path / "corpus", [tmp_path / "human.h5ad"], min_genes=1, block_size=8)
    assert sorted(corpus.obs()["cell_id"]) == sorted(f"human{i}" for i in range(20))


def test_a_few_features_of_another_species_are_left_out_with_a_word():
    report = check(cells(pd.DataFrame(index=[*SYMBOLS, MOUSE_IDS[0]])))
    assert rna(report).examples("another species") == [MOUSE_IDS[0]]
    assert any("1 features of another species are left out" in warning for warning in report.warnings)


def test_a_genome_of_any_other_name_is_no_other_species():
    var = pd.DataFrame({"genome": ["my_reference_with_eGFP", None] * 30}, index=IDS)
    assert rna(check(cells(var))).num_mapped == 60
    var = pd.DataFrame(
        {"feature_reference": ["NCBITaxon:9606"] * 59 + ["NCBITaxon:2697049"]}, index=[*IDS[:59], "ORF1ab"]
    )
    assert rna(check(cells(var))).num_mapped == 59


def test_regions_of_two_genomes_are_told_apart_one_by_one():
    regions = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(1, 41)]
    half = [f"GRCh38_{region}" for region in regions[:20]]
    assert check(cells(pd.DataFrame(index=half)), assembly="hg38").features["atac"].ids.tolist() == sorted(regions[:20])
    mixed = [*half, *(f"mm10_{region}" for region in regions[20:])]
    assert "a mixture of species" in check(cells(pd.DataFrame(index=mixed)), assembly="hg38").problems[0]
    of_two = pd.DataFrame({"genome": ["hg38"] * 20 + ["hg19"] * 20}, index=regions)
    problem = check(cells(of_two), assembly="hg38").problems[0]
    assert "its genome field says 'hg19+hg38', but the assembly was given as hg38" in problem
