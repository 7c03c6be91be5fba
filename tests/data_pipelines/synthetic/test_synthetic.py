"""Synthetic data: what it promises of itself, and that it needs no more than it says."""

import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.checks.input_check import check_dataset
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.synthetic.cells import synthetic_batch, synthetic_cells, synthetic_layout

LAYOUT = synthetic_layout(500, 20, 900, {"technical_batch": 3})
TOKENS = {"rna": 64, "protein": 20, "atac": 48}


def test_a_batch_keeps_the_contract_of_cell_batch():
    batch = synthetic_batch(LAYOUT, 32, TOKENS, seed=0, mosaic=True)
    for name, tokens in batch.modalities.items():
        first, stop = LAYOUT.slices[name]
        assert tokens.feature_ids.shape == tokens.counts.shape == (32, TOKENS[name])
        for row in range(32):
            real = tokens.lengths[row]
            assert not tokens.feature_ids[row, real:].any()
            assert not tokens.counts[row, real:].any()
            ids = tokens.feature_ids[row, :real]
            assert np.all(np.diff(ids) > 0)
            assert np.all((first <= ids) & (ids < stop))
            assert bool(tokens.measured[row]) == (real > 0)
            assert tokens.library_size[row] >= tokens.counts[row].sum() * (1 - 1e-6)
    assert np.all(np.any([tokens.measured for tokens in batch.modalities.values()], axis=0))
    assert set(batch.covariates["technical_batch"]) <= {0, 1, 2}


def test_a_batch_is_a_function_of_its_arguments():
    first, again = (synthetic_batch(LAYOUT, 8, TOKENS, seed=3, step=5) for _ in range(2))
    other = synthetic_batch(LAYOUT, 8, TOKENS, seed=3, step=6)
    np.testing.assert_array_equal(first.modalities["rna"].counts, again.modalities["rna"].counts)
    assert not np.array_equal(first.modalities["rna"].feature_ids, other.modalities["rna"].feature_ids)


def test_links_join_rows_of_two_modalities():
    for name, (rows, genes) in LAYOUT.links.items():
        first, stop = LAYOUT.slices[name]
        assert rows.dtype == genes.dtype == np.int32
        assert np.all((first <= rows) & (rows < stop))
        assert np.all(genes < LAYOUT.slices["rna"][1])
    assert len(LAYOUT.links["protein"][0]) == 20
    assert len(LAYOUT.links["atac"][0]) > 900  # some regions have two genes


def test_tokens_of_a_modality_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="atac"):
        synthetic_batch(synthetic_layout(10), 2, {"rna": 4, "atac": 4}, seed=0)


def test_importing_it_needs_no_heavy_library():
    heavy = ["tensorflow", "jax", "anndata", "mudata", "numba", "h5py", "google_crc32c", "zstandard"]
    code = f"""
import sys
for name in {heavy}: sys.modules[name] = None
from data_pipelines.synthetic.cells import synthetic_batch, synthetic_layout
synthetic_batch(synthetic_layout(50, 5), 4, {{"rna": 8, "protein": 5}}, 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_cells_follow_their_true_profiles():
    cells = synthetic_cells(600, 200, 30, 0, num_cell_types=3, num_batches=3, seed=1, mosaic=False)
    for name, counts in cells.counts.items():
        for number in range(3):
            mine = cells.cell_type == f"type{number}"
            mean = np.asarray(counts[mine].sum(0)).ravel().astype(float)
            found = np.corrcoef(np.log1p(mean), np.log1p(mean.sum() * cells.profiles[name][number]))[0, 1]
            assert found > 0.95, (name, number)


def test_a_protein_follows_its_gene():
    cells = synthetic_cells(400, 100, 40, 0, num_cell_types=6, num_batches=3, seed=2)
    gene = np.log(cells.profiles["rna"][:, cells.linked_gene["protein"]])
    protein = np.log(cells.profiles["protein"])
    centred = [values - values.mean(0) for values in (gene, protein)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.9


def test_a_mosaic_has_cells_of_one_modality_and_paired_ones():
    cells = synthetic_cells(300, 60, 10, 80, num_batches=5, seed=0)
    patterns = {tuple(bool(cells.measured[name][cell]) for name in cells.counts) for cell in range(300)}
    assert patterns == {(True, False, False), (False, True, False), (False, False, True), (True, True, True)}
    for name, counts in cells.counts.items():
        assert not counts[~cells.measured[name]].nnz
    with pytest.raises(ValueError, match="more than 3 batches"):
        synthetic_cells(300, 60, 10, 80, num_batches=3)


def test_the_input_check_accepts_synthetic_cells_with_their_packaged_names():
    cells = synthetic_cells(120, 400, 25, 60, num_batches=5, seed=0)
    report = check_dataset(open_dataset(cells.to_mudata()), min_genes=20)
    assert report.problems == []
    assert {name: len(features) for name, features in report.features.items()} == {
        "rna": 400,
        "protein": 25,
        "atac": 60,
    }
    assert report.obs_fields["cell_type"] == "cell_type"
    coding = {gene for linked in report.features["protein"].links for gene in linked}
    assert coding
    assert coding <= set(report.features["rna"].ids), "the coding gene of every antibody is among the genes"
