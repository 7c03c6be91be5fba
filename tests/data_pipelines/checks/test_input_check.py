"""The input check: what is no counts, unknown, doubled or empty is named; what is good passes, figures right."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipelines.checks.input_check import check_dataset, require_usable, usual_min_genes
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.pair_check import refuse_unpaired_files
from scmbert_jax.errors import InputError

ad = pytest.importorskip("anndata")
md = pytest.importorskip("mudata")

HUMAN = load_gene_table("human")
SYMBOLS = HUMAN.symbols[np.flatnonzero(HUMAN.reference & (HUMAN.biotype == "protein_coding"))[:60]].tolist()
REGIONS = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(1, 31)]


def counts(cells=40, features=60, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(1.0, (cells, features)).astype(np.float32) + (np.arange(features) == 0)


def cells(values=None, genes=None, obs=None):
    values = counts() if values is None else values
    index = [f"cell{i}" for i in range(values.shape[0])]
    obs = pd.DataFrame(obs or {}, index=index)
    return ad.AnnData(X=sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=genes or SYMBOLS[: values.shape[1]]))


def check(adata, **options):
    return check_dataset(open_dataset(adata), **{"min_genes": 1, **options})


def problem_of(adata, **options) -> str:
    report = check(adata, **options)
    assert not report.usable
    with pytest.raises(InputError) as caught:
        require_usable(report)
    assert all(problem in str(caught.value) for problem in report.problems)
    (problem,) = report.problems
    return problem


# ---- good data


def test_good_counts_pass_with_the_right_figures():
    values = counts()
    report = check(cells(values, obs={"celltype": ["T", "B"] * 20, "sample": "s1"}))
    require_usable(report)
    rna = report.modalities["rna"]
    assert (report.organism, rna.mapping.coverage, rna.num_kept) == ("human", 1.0, 40)
    assert np.array_equal(rna.total_counts, values.sum(axis=1))
    assert rna.median_library_size == np.median(values.sum(axis=1))
    assert rna.sparsity == pytest.approx(np.mean(values == 0))
    assert rna.max_value == values.max()
    assert report.obs_fields == {"cell_type": "celltype", "technical_batch": "sample"}
    assert report.obs_categories == {"cell_type": 2, "technical_batch": 1}
    assert report.combinations == {"rna": 40}


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float32", "float64"])
def test_counts_are_counts_in_any_storage(dtype):
    assert check(cells(counts().astype(dtype))).usable


def test_integers_within_float_rounding_are_counts():
    assert check(cells(counts() * (1 + 1e-7))).usable


def test_the_result_does_not_depend_on_the_chunk(monkeypatch):
    from data_pipelines.checks import input_check

    adata = cells(counts(100))
    whole = check(adata)
    scan = input_check.scan_counts
    monkeypatch.setattr(input_check, "scan_counts", functools.partial(scan, rows=7))
    assert check(adata).to_dict() == whole.to_dict()


# ---- what is no counts


def test_log_normalised_values_are_refused_with_what_was_seen():
    problem = problem_of(cells(np.log1p(counts())))
    assert "non-integers: 100% of the values" in problem
    assert "looks log-normalised" in problem
    assert "AnnData in memory, X" in problem


def test_scaled_counts_are_refused_as_normalised():
    values = counts()
    assert "looks normalised" in problem_of(cells(values / values.sum(axis=1, keepdims=True) * 1e4))


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-3, "negative")]
)
def test_impossible_values_are_counted_and_placed(value, words):
    values = counts()
    values[7, 5] = values[30, 2] = value
    problem = problem_of(cells(values))
    assert f"2 {words} values" in problem
    assert "'cell7'" in problem
    assert repr(SYMBOLS[5]) in problem


def test_one_fraction_at_the_end_of_a_large_file_is_found(tmp_path):
    values = counts(9000, 20)
    values[8999, 19] = 0.5
    cells(values).write_h5ad(tmp_path / "x.h5ad")
    problem = problem_of(tmp_path / "x.h5ad")
    assert "0.5 in cell 'cell8999'" in problem
    assert str(tmp_path / "x.h5ad") in problem


def test_counts_beyond_int32_are_refused():
    values = counts().astype(np.float64)
    values[3, 3] = 2**31
    assert "over 2^31-1" in problem_of(cells(values))
    values[3, 3] = 2**31 - 1
    assert check(cells(values)).usable


# ---- features


def test_too_few_known_genes_are_refused_with_both_coverages():
    problem = problem_of(cells(genes=[*SYMBOLS[:20], *(f"made_up_{i}" for i in range(40))]))
    assert "only 33% of the genes are known (human 33%, mouse 0%)" in problem
    assert "made_up_0" in problem
    assert "--min-coverage" in problem


def test_a_fraction_of_unknown_genes_is_reported_not_hidden():
    report = check(cells(genes=[*SYMBOLS[:50], *(f"made_up_{i}" for i in range(10))]))
    rna = report.modalities["rna"]
    assert report.usable
    assert rna.mapping.status_counts == {"symbol": 50, "unknown": 10}
    assert np.array_equal(rna.column_to_feature < 0, np.arange(60) >= 50)
    assert rna.mapped_count_fraction == pytest.approx(counts()[:, :50].sum() / counts().sum())
    assert np.array_equal(rna.total_counts, counts()[:, :50].sum(axis=1))


@pytest.mark.parametrize("kind", ["symbols", "ids"])
def test_the_wrong_organism_is_named(kind):
    mouse = load_gene_table("mouse")
    rows = np.flatnonzero(mouse.reference)[:60]
    genes = (mouse.symbols if kind == "symbols" else mouse.ids)[rows].tolist()
    assert check(cells(genes=genes)).organism == "mouse"
    problem = problem_of(cells(genes=genes), organism="human")
    assert "The genes are mouse, not human: state --organism mouse" in problem


def test_an_organism_without_a_table_is_refused():
    assert "organism 'cat': not known; state human or mouse" in problem_of(cells(), organism="cat")


def test_repeated_feature_and_cell_ids_are_refused():
    assert "1 feature ids occur more than once" in problem_of(cells(genes=[SYMBOLS[1], *SYMBOLS[1:60]]))
    adata = cells()
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]
    problem = problem_of(adata)
    assert "1 cell ids occur more than once: 'same'" in problem


def test_repeated_symbols_are_no_problem_where_ids_are_unique():
    adata = cells(genes=[SYMBOLS[1], *SYMBOLS[1:60]])
    adata.var["gene_ids"] = HUMAN.ids[:60]
    report = check(adata)
    assert report.usable
    assert report.modalities["rna"].mapping.source == "var['gene_ids']"


def test_an_unknown_modality_is_refused_with_the_remedy():
    problem = problem_of(cells(genes=[f"thing{i}" for i in range(60)]))
    assert "cannot tell the modality" in problem
    assert "var['feature_types']" in problem
    assert "0% as human genes" in problem


def test_a_mudata_modality_of_another_kind_is_left_out_with_a_word():
    report = check(md.MuData({"rna": cells(), "imaging": cells(genes=[f"pixel{i}" for i in range(60)])}))
    assert report.usable
    assert list(report.modalities) == ["rna"]
    (warning,) = (warning for warning in report.warnings if "'imaging'" in warning)
    assert "60 features (pixel0, pixel1, pixel2) are not read. To have them, say it in var['feature_types']" in warning


def test_genes_in_a_modality_that_nobody_named_are_not_left_out_silently():
    """Half of them known: somebody's counts, which a warning would lose."""
    genes = [name for i in range(30) for name in (f"thing{i}", SYMBOLS[i])]
    adata = cells(genes=[*SYMBOLS[30:60], *genes[:30]])
    adata.var["feature_types"] = ["Gene Expression"] * 30 + ["measured"] * 30
    assert "cannot tell the modality" in problem_of(adata)


# ---- cells


def test_cells_without_counts_are_counted_named_and_dropped():
    values = counts()
    values[[3, 9]] = 0
    report = check(cells(values))
    rna = report.modalities["rna"]
    assert report.usable
    assert rna.dropped == {"without counts": 2}
    assert rna.examples == {"without counts": ["cell3", "cell9"]}
    assert np.flatnonzero(~rna.keep).tolist() == [3, 9]
    assert (report.num_cells, report.num_cells_kept) == (40, 38)


def test_cells_with_few_genes_are_dropped_but_never_most_of_them():
    values = counts()
    values[5, 3:] = 0
    limit = int((counts() > 0).sum(axis=1).min())
    report = check(cells(values), min_genes=limit)
    assert report.modalities["rna"].dropped == {f"with fewer than {limit} genes": 1}
    problem = problem_of(cells(values), min_genes=59)
    assert "40 of 40 cells have fewer than 59 detected genes" in problem
    assert "the file measures 60" in problem
    assert "--min-genes" in problem


@pytest.mark.parametrize(("num_measured", "least"), [(36_601, 200), (20_000, 200), (2000, 20), (500, 5), (60, 1)])
def test_the_usual_least_number_of_genes_follows_what_is_measured(num_measured, least):
    assert usual_min_genes(num_measured) == least


def test_a_cell_of_a_panel_is_kept_by_the_panels_genes_and_a_stated_limit_goes_first():
    report = check(cells(), min_genes=None)
    assert report.usable
    assert (report.min_genes, report.num_cells_kept) == (1, 40)
    assert not check(cells(), min_genes=200).usable


def test_all_cells_without_counts_are_a_problem():
    assert "40 of 40 cells have no counts" in problem_of(cells(counts() * 0))


def test_a_cell_with_poor_rna_leaves_with_its_other_modalities_and_an_empty_assay_leaves_alone():
    rna, adt = counts(), counts(40, 3, seed=1)
    rna[5, 3:] = 0
    adt[7] = 0
    mdata = md.MuData({"rna": cells(rna), "adt": cells(adt, ["CD3", "CD4", "CD8"])})
    report = check(mdata, min_genes=10)
    assert np.flatnonzero(~report.modalities["rna"].keep).tolist() == [5]
    assert np.flatnonzero(~report.modalities["protein"].keep).tolist() == [5, 7]
    assert report.modalities["protein"].dropped == {
        "without counts": 1,
        "whose RNA has fewer than 10 genes": 1,
    }
    assert report.combinations == {"rna": 1, "rna+protein": 38}


# ---- assemblies


def peaks(genome=None):
    adata = cells(counts(40, 30), REGIONS)
    if genome:
        adata.var["genome"] = genome
    return adata


def test_the_assembly_of_regions_must_be_stated_or_stand_in_the_file():
    problem = check(peaks()).problems[0]
    assert "the organism is neither stated nor evident" in problem
    assert "the assembly of the regions must be stated" in check(peaks()).problems[1]
    assert check(peaks(), assembly="hg38").assembly == "hg38"
    report = check(peaks("GRCh38"))
    assert report.usable
    assert (report.assembly, report.organism) == ("hg38", "human")
    assert report.features["atac"].space == "region:hg38"


def test_a_stated_assembly_must_agree_with_the_file_and_with_the_organism():
    assert "its genome field says 'GRCh38'" in check(peaks("GRCh38"), assembly="hg19").problems[0]
    assert "assembly mm10 is mouse, but the organism is human" in problem_of(peaks(), assembly="mm10", organism="human")
    assert "assembly 'mars': not known" in check(peaks(), assembly="mars").problems[0]


def test_regions_that_do_not_fit_the_assembly_are_named():
    adata = peaks()
    adata.var_names = ["chr21:1-9", "chr1:195471900-195472000", *REGIONS[2:]]
    lacking, beyond = check(adata, assembly="mm10").problems
    assert "1 of 30 regions lie on a chromosome that mm10 does not have, e.g. chr21:1-9" in lacking
    assert "end beyond their chromosome in mm10, e.g. chr1:195471900-195472000" in beyond


def test_an_assembly_without_gene_positions_is_said_to_have_no_links():
    report = check(peaks(), assembly="hg19")
    assert report.usable
    assert any("without links to genes" in warning for warning in report.warnings)


# ---- metadata, several files


def test_obs_fields_can_be_chosen_and_left_out():
    adata = cells(obs={"celltype": "T", "leiden": "1", "batch": "b", "sample": "s"})
    report = check(adata, obs_fields={"cell_type": "leiden", "technical_batch": None})
    assert report.obs_fields == {"cell_type": "leiden"}
    assert "'nothing'" in problem_of(adata, obs_fields={"donor": "nothing"})
    assert "not a standard field" in problem_of(adata, obs_fields={"mood": "leiden"})
    assert any("obs['batch'] is taken" in warning for warning in check(adata).warnings)


def test_files_that_look_like_one_data_set_are_not_read_as_two():
    rna, adt = open_dataset(cells()), open_dataset(cells(counts(40, 3), ["CD3", "CD4", "CD8"]))
    with pytest.raises(InputError, match=r"share 40 cell ids.*Write .*\+.* to pair them"):
        refuse_unpaired_files([rna, adt])
    refuse_unpaired_files([rna, rna])  # the same modality twice is another matter
    other = cells(counts(40, 3), ["CD3", "CD4", "CD8"])
    other.obs_names = [f"other{i}" for i in range(40)]
    refuse_unpaired_files([rna, open_dataset(other)])


# ---- the report


def test_the_json_is_one_document_and_the_text_fits_a_screen():
    values = counts()
    values[3, 3] = np.nan
    report = check(cells(values, genes=[*SYMBOLS[:55], *(f"made_up_{i}" for i in range(5))]))
    document = json.loads(report.to_json())
    assert document["usable"] is False
    assert document["modalities"]["rna"]["features"]["status"] == {"symbol": 55, "unknown": 5}
    text = report.to_text()
    assert text.startswith("adata: CANNOT be used: 1 problem")
    assert "made_up_0" in text
    assert len(text.splitlines()) < 40


def test_a_file_that_breaks_halfway_becomes_a_problem_of_the_report(tmp_path):
    import h5py

    cells().write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "a") as file:
        file["X/indices"][-1] = 1000
    # opening looks at some rows only where there is a choice of fields to make
    with pytest.raises(InputError, match="damaged"):
        require_usable(check(tmp_path / "x.h5ad"))


# ---- real files: the measured coverage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "options", "coverage"),
    [
        ("pbmc_facs/zheng_pbmc_facs.h5ad", {}, {"rna": 1.0}),
        ("pbmc_donor_a/pbmc_donor_a.h5ad", {}, {"rna": 0.98}),
        ("pbmc_ifnb/pbmc_ifnb.h5ad", {}, {"rna": 0.99}),
        ("citeseq_pbmc1k/1K_pbmc_citeseq.h5", {}, {"rna": 1.0, "protein": 1.0}),
        ("pbmc_mosaic/quickstart_pbmc_mosaic.h5mu", {"min_genes": 10}, {"rna": 0.99, "protein": 1.0}),
        (
            "snareseq_cortex/rna.h5ad+snareseq_cortex/atac.h5ad",
            {"min_genes": 20, "assembly": "mm10"},
            {"rna": 0.97, "atac": 1.0},
        ),
    ],
)
def test_the_real_files_are_usable_and_well_covered(shared_data, spec, options, coverage):
    paths = "+".join(str(shared_data / part) for part in spec.split("+"))
    report = check_dataset(open_dataset(paths), **options)
    require_usable(report)
    assert list(report.modalities) == list(coverage)
    for name, part in report.modalities.items():
        assert part.mapping.coverage >= coverage[name]


def test_mouse_data_given_as_human_is_recognised(shared_data):
    report = check_dataset(open_dataset(shared_data / "snareseq_cortex" / "rna.h5ad"), organism="human")
    assert "The genes are mouse, not human" in report.problems[0]
