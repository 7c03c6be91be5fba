"""Pairs that do not match are refused, by number and by example; nothing is joined on a guess."""

import itertools

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from conftest import scmbert

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.cells import mudata_of
from scmbert_jax.errors import InputError

ANTIBODIES = ["CD3", "CD4", "CD8", "CD19", "CD14"]
NUM_CELLS = 40


def genes_of(organism: str) -> list[str]:
    table = load_gene_table(organism)
    named = table.reference & (table.symbols != "") & np.isin(table.biotype, ["protein_coding", ""])
    return list(dict.fromkeys(table.symbols[named].tolist()))[:60]


def cells(features: list[str], ids: list[str] | None = None, **obs) -> anndata.AnnData:
    """Counts that are fit to train on, for `ids` (default cell0-1 ...)."""
    ids = [f"cell{row}-1" for row in range(NUM_CELLS)] if ids is None else ids
    counts = np.random.default_rng(0).poisson(2.0, (len(ids), len(features))).astype(np.float32) + 1
    return anndata.AnnData(
        scipy.sparse.csr_matrix(counts), obs=pd.DataFrame(obs, index=ids), var=pd.DataFrame(index=features)
    )


@pytest.fixture
def together(tmp_path):
    """Writes RNA and protein (or others) and names them as one data set."""

    calls = itertools.count()

    def write(*parts: anndata.AnnData) -> str:
        folder = tmp_path / f"files{next(calls)}"
        folder.mkdir()
        paths = [folder / f"{name}.h5ad" for name in ("first", "second")]
        for part, path in zip(parts, paths, strict=True):
            part.write_h5ad(path)
        return "+".join(map(str, paths))

    return write


# --- cell ids --------------------------------------------------------------------------------------------------------


def test_an_ending_that_only_one_file_has_is_suggested(together):
    bare = [f"cell{row}" for row in range(NUM_CELLS)]
    with pytest.raises(InputError) as caught:
        open_dataset(together(cells(genes_of("human")), cells(ANTIBODIES, bare)))
    for words in ("no cell id occurs", "cell0-1, cell1-1", "cell0, cell1", 'Without the ending "-1" 40 ids'):
        assert words in str(caught.value)


def test_files_with_hardly_a_cell_in_common_are_refused_with_the_number_and_examples(together):
    few = ["cell0-1", "cell1-1", *(f"other{row}" for row in range(NUM_CELLS - 2))]
    with pytest.raises(InputError) as caught:
        open_dataset(together(cells(genes_of("human")), cells(ANTIBODIES, few)))
    assert "only 2 of 40 cell ids occur in all of the files" in str(caught.value)
    assert "ending" not in str(caught.value), "it would not help"
    enough = ["cell0-1", "cell1-1", "cell2-1", "cell3-1", *(f"other{row}" for row in range(NUM_CELLS - 4))]
    assert len(open_dataset(together(cells(genes_of("human")), cells(ANTIBODIES, enough))).cell_ids) == 76


def test_a_barcode_that_repeats_in_one_modality_is_refused_where_it_stands(together):
    ids = [f"cell{row}-1" for row in range(NUM_CELLS)]
    spec = together(cells(genes_of("human"), ids), cells(ANTIBODIES, [ids[0], *ids[:-1]]))
    (problem,) = check_dataset(open_dataset(spec), min_genes=1).problems
    assert "second.h5ad, X: 1 cell ids occur more than once: 'cell0-1'" in problem


# --- where the cells come from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "columns"), [("donor", ("donor", "patient_id")), ("technical_batch", ("batch",) * 2)]
)
def test_the_same_barcode_of_another_donor_or_batch_is_no_pair(together, field, columns):
    first, second = ["a"] * NUM_CELLS, ["a"] * (NUM_CELLS - 3) + ["b"] * 3
    spec = together(
        cells(genes_of("human"), **{columns[0]: first}),
        cells(ANTIBODIES, **{columns[1]: second}),
    )
    (problem,) = check_dataset(open_dataset(spec), min_genes=1).problems
    assert f"3 of 40 cells that share an id with {spec.split('+')[0]}, X have another {field}" in problem
    assert f"'cell37-1' has 'b' (obs['{columns[1]}']) here and 'a' (obs['{columns[0]}']) there" in problem
    left_out = check_dataset(open_dataset(spec), min_genes=1, obs_fields={field: None})
    assert left_out.usable
    assert field not in left_out.obs_fields


def test_equal_numbers_in_another_spelling_and_unknown_values_are_no_contradiction(together):
    numbers = np.arange(NUM_CELLS) % 3
    texts = [None if row == 0 else str(number) for row, number in enumerate(numbers)]
    spec = together(
        cells(genes_of("human"), donor=numbers.astype(float)),
        cells(ANTIBODIES, donor=pd.Categorical(texts)),
    )
    assert check_dataset(open_dataset(spec), min_genes=1).usable


def test_the_modalities_of_one_mudata_are_compared_as_well():
    parts = {
        "rna": cells(genes_of("human"), donor=["a"] * NUM_CELLS),
        "protein": cells(ANTIBODIES, donor=["b"] * NUM_CELLS),
    }
    report = check_dataset(open_dataset(mudata_of(parts)), min_genes=1)
    assert "40 of 40 cells" in report.problems[0]


def test_pairs_that_a_program_made_of_two_batches_are_declared_and_not_refused():
    parts = {
        "rna": cells(genes_of("human"), batch=["p1"] * NUM_CELLS),
        "protein": cells(ANTIBODIES, batch=["p2"] * NUM_CELLS),
    }
    data = mudata_of(parts)
    assert not check_dataset(open_dataset(data), min_genes=1).usable
    data.uns["scmbert_pseudo_pairs"] = {"method": "sinkhorn"}
    report = check_dataset(open_dataset(data), min_genes=1)
    assert report.usable
    assert any("made by a program and not by an assay" in warning for warning in report.warnings)


def test_on_the_command_line_such_files_stop_the_build_and_the_field_can_be_left_out(together, tmp_path):
    spec = together(cells(genes_of("human"), batch=["gex"] * NUM_CELLS), cells(ANTIBODIES, batch=["adt"] * NUM_CELLS))
    build = ("corpus", "build", tmp_path / "corpus", spec, "--min-genes", "1")
    refused = scmbert(*build)
    assert refused.code != 0
    assert "another technical_batch" in refused.err
    assert not (tmp_path / "corpus").exists()
    assert scmbert(*build, "--obs-field", "technical_batch=").code == 0


# --- panels, species, assemblies -------------------------------------------------------------------------------------


def test_antibodies_without_a_gene_are_counted_with_the_fraction_that_is_known(together):
    panel = [*ANTIBODIES, "qqq-1", "qqq-2"]
    report = check_dataset(open_dataset(together(cells(genes_of("human")), cells(panel))), min_genes=1)
    (warning,) = [text for text in report.warnings if "antibodies" in text]
    assert report.usable
    assert "2 of 7 antibodies have no coding gene" in warning
    assert "qqq-1, qqq-2 (71.4% of the names are known)" in warning


def test_a_panel_that_is_mostly_unknown_is_refused_with_its_fraction(together):
    panel = cells(["CD3", *(f"qqq-{number}" for number in range(9))])
    panel.var["feature_types"] = "Antibody Capture"
    report = check_dataset(open_dataset(together(cells(genes_of("human")), panel)), min_genes=1)
    assert "only 10% of the names are known antibodies" in report.problems[0]


def test_the_linked_fraction_of_a_panel_stands_in_the_corpus(together, tmp_path):
    spec = together(cells(genes_of("human")), cells([*ANTIBODIES, "qqq-1"]))
    corpus = build_corpus(tmp_path / "corpus", [spec], min_genes=1)
    part = corpus.datasets[0]["modalities"]["protein"]
    assert (part["features"], part["linked"]) == (6, 5)


def test_files_of_two_species_are_no_data_set_and_no_corpus(together, tmp_path):
    regions = cells([f"chr1:{1000 * row}-{1000 * row + 500}" for row in range(1, 31)])
    regions.uns["genome"] = "mm10"
    spec = together(cells(genes_of("human")), regions)
    problems = " ".join(check_dataset(open_dataset(spec), min_genes=1, organism="human").problems)
    assert "assembly mm10 is mouse, but the organism is human" in problems
    human, mouse = cells(genes_of("human")), cells(genes_of("mouse"), [f"mouse{row}" for row in range(NUM_CELLS)])
    with pytest.raises(InputError, match=r"gene:human and of gene:mouse cannot share one feature space"):
        build_corpus(tmp_path / "corpus", [human, mouse], min_genes=1)


def test_regions_of_two_builds_of_one_genome_are_no_corpus(tmp_path):
    names = [f"chr1:{1000 * row}-{1000 * row + 500}" for row in range(1, 31)]
    old, new = cells(names), cells(names, [f"new{row}" for row in range(NUM_CELLS)])
    old.uns["genome"], new.uns["genome"] = "GRCh37", "GRCh38"
    with pytest.raises(InputError, match=r"region:hg19 and of region:hg38"):
        build_corpus(tmp_path / "corpus", [old, new], min_genes=1)
