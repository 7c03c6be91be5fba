"""Cells that were never paired: what links, transport and CCA find, and what they must not look at."""

from dataclasses import replace

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok

from data_pipelines.features.feature_space import ModalityFeatures
from data_pipelines.readers.example_reader import example_path
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.metrics import foscttm
from scmbert_jax.tasks import linked_features, modality_cells, optimal_transport
from scmbert_jax.tasks.pseudo_pairs import (
    PseudoPairSettings,
    canonical_axes,
    held_out_link_correlation,
    match_unpaired,
)
from scmbert_jax.tasks.write_pseudo_pairs import KEY, pseudo_paired_mudata


@pytest.fixture(scope="module")
def pbmc():
    return modality_cells.read_modalities("example:pbmc_mosaic")


def batch(cells, *names):
    return modality_cells.in_batches(cells, names)


@pytest.fixture(scope="module")
def matched(pbmc):
    """p3, its pairs forgotten."""
    return match_unpaired(batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3"))


# --- what it finds ---------------------------------------------------------------------------------------------------


def test_without_any_pair_cells_come_closer_than_by_links_alone(pbmc, matched):
    """The facts' links-only floor on p3 is .126; transport and CCA on all features stand clearly below."""
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3")
    score = foscttm(matched.space.embed_first(rna), matched.space.embed_second(protein), distance="cosine")
    assert score < 0.08  # measured: .0615


def test_what_was_learned_without_pairs_holds_in_a_batch_never_seen(pbmc, matched):
    rna, protein = batch(pbmc["rna"], "p4"), batch(pbmc["protein"], "p4")
    score = foscttm(matched.space.embed_first(rna), matched.space.embed_second(protein), distance="cosine")
    assert score < 0.11  # measured: .0904; links only: .134


def test_pseudo_pairs_join_cells_of_one_type_though_no_label_was_read(pbmc, matched):
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3")
    agree = rna.cell_types[matched.first_rows] == protein.cell_types[matched.second_rows]
    assert agree.mean() > 0.85  # chance: .21


def test_no_cell_stands_in_two_pairs(matched):
    assert len(np.unique(matched.first_rows)) == len(np.unique(matched.second_rows)) == 400


@pytest.mark.slow
def test_links_left_out_of_the_matching_are_predicted_and_broken_links_are_not(pbmc):
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3")
    settings = PseudoPairSettings(rounds=1)
    assert held_out_link_correlation(rna, protein, settings=settings) > 0.3
    shuffled = np.random.default_rng(0).permutation(len(protein.features))
    links = tuple(protein.features.links[i] for i in shuffled)
    broken = replace(protein, features=replace(protein.features, links=links))
    assert held_out_link_correlation(rna, broken, settings=settings) < 0.2


# --- what it must not look at ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_neither_barcodes_nor_the_order_of_cells_tell_it_the_pairs(pbmc, matched):
    """Protein cells in another order and under other names: the same profiles are paired."""
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3")
    order = np.random.default_rng(1).permutation(len(protein))
    renamed = replace(protein.take(order), cell_ids=np.array([f"cell{i}" for i in range(len(order))]))
    again = match_unpaired(rna, renamed)
    before = dict(zip(matched.first_rows.tolist(), matched.second_rows.tolist(), strict=True))
    after = dict(zip(again.first_rows.tolist(), order[again.second_rows].tolist(), strict=True))
    # Float sums in another order may flip a pair of nearly equal probability.
    assert np.mean([before[cell] == after[cell] for cell in before]) > 0.97


def test_labels_are_not_read(pbmc, matched):
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3")
    blank = np.full(len(rna), "")
    again = match_unpaired(replace(rna, cell_types=blank), replace(protein, cell_types=blank))
    np.testing.assert_array_equal(again.second_rows, matched.second_rows)


def test_cells_are_paired_within_their_technical_batch(pbmc):
    rna, protein = batch(pbmc["rna"], "p3", "p4"), batch(pbmc["protein"], "p3", "p4")
    pairs = match_unpaired(rna, protein, settings=PseudoPairSettings(rounds=0))
    assert (rna.technical_batches[pairs.first_rows] == protein.technical_batches[pairs.second_rows]).all()


def test_batches_with_one_modality_each_are_paired_with_each_other(pbmc):
    pairs = match_unpaired(
        batch(pbmc["rna"], "p1"), batch(pbmc["protein"], "p2"), settings=PseudoPairSettings(rounds=0)
    )
    assert len(pairs.first_rows) == 400


def test_a_large_batch_is_cut_into_blocks(pbmc):
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3").take(np.arange(390))
    pairs = match_unpaired(rna, protein, settings=PseudoPairSettings(rounds=0, largest_block=150))
    assert pairs.num_blocks == 3
    assert len(pairs.first_rows) == len(np.unique(pairs.second_rows)) == 390


# --- the parts -------------------------------------------------------------------------------------------------------


def test_a_plan_has_the_marginals_it_was_asked_for():
    cost = np.random.default_rng(2).random((40, 60)).astype(np.float32)
    coupling, converged = optimal_transport.plan(cost, 0.05)
    assert converged
    np.testing.assert_allclose(coupling.sum(1), 1 / 40, atol=2e-4)  # ott stops at a marginal error of 1e-3 in all
    np.testing.assert_allclose(coupling.sum(0), 1 / 60, atol=2e-4)


def test_a_transport_that_memory_cannot_hold_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr(optimal_transport, "LARGEST_COST", 10)
    with pytest.raises(InputError, match="take method cosine"):
        optimal_transport.transport_of_vectors(np.ones((4, 2)), np.ones((3, 2)), 0.1)


def test_canonical_axes_of_true_pairs_find_what_two_views_share():
    rng = np.random.default_rng(4)
    shared, noise = rng.normal(size=(500, 2)), rng.normal(size=(2, 500, 4))
    a, b = (np.concatenate([shared, part], 1) @ rng.normal(size=(6, 6)) for part in noise)
    a, b = a - a.mean(0), b - b.mean(0)
    left, right, correlations = canonical_axes(a, b, a.T @ b / 500, 6, 1e-6)
    assert (correlations[:2] > 0.99).all()
    assert (correlations[2:] < 0.3).all()
    assert np.corrcoef((a @ left)[:, 0], (b @ right)[:, 0])[0, 1] > 0.99


def test_smoothing_tells_signal_from_noise():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(300, 5))
    values = np.stack([scores[:, 0], rng.normal(size=300)], 1)
    fitted, quality = linked_features.smoothed(values, scores)
    assert quality[0] == pytest.approx(1.0)
    assert quality[1] < 0.05
    np.testing.assert_allclose(fitted[:, 0], values[:, 0] - values[:, 0].mean(), atol=1e-9)


def regions_and_genes(num_cells=60):
    """Two genes with regions near them, counts chosen by hand where a test needs them."""
    rng = np.random.default_rng(6)
    genes = [f"ENSG{i:011d}" for i in range(8)]

    def features(modality, space, ids, links):
        blank = [""] * len(ids)
        return ModalityFeatures.sorted(modality, space, ids, ids, blank, [-1] * len(ids), [-1] * len(ids), links)

    def cells(features):
        counts = sp.csr_matrix(rng.poisson(1.0, size=(num_cells, len(features))).astype(np.int32))
        text = np.full(num_cells, "x")
        return modality_cells.ModalityCells("made", features, counts, np.arange(num_cells).astype(str), *[text] * 3)

    rna = cells(features("rna", "gene:human", genes, [()] * 8))
    regions = [f"chr1:{i}-{i + 1}" for i in range(10, 26)]
    atac = cells(features("atac", "region:hg38", regions, [(genes[i // 2],) for i in range(16)]))
    return rna, atac


def test_gene_activity_counts_open_regions_of_the_gene_per_open_region_of_the_cell():
    rna, atac = regions_and_genes()
    links = linked_features.find_links(rna, atac)
    assert len(links) == 8
    opened = atac.counts.toarray() > 0
    expected = np.log1p((opened[:, 0].astype(float) + opened[:, 1]) / opened.sum(1) * np.median(opened.sum(1)))
    np.testing.assert_allclose(linked_features.linked_values(atac, links.second)[:, 0], expected)


def test_one_antibody_is_one_link_whatever_else_binds_its_gene(pbmc):
    links = linked_features.find_links(pbmc["rna"], pbmc["protein"])
    assert len(links) == 70
    assert {"cd26.1", "cd26.2"} <= set(links.names)
    # Every protein side is the antibody alone; the RNA side of CD8 is the mean of CD8A and CD8B.
    np.testing.assert_array_equal(np.diff(links.second.tocsc().indptr), 1)
    cd8 = int(np.flatnonzero(links.names == "cd8")[0])
    np.testing.assert_allclose(links.first.tocsc()[:, cd8].data, 0.5)


# --- the written file ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_written_file_declares_its_pairs_and_keeps_every_cell_and_count(pbmc, tmp_path):
    out = tmp_path / "pseudo.h5mu"
    said = scmbert_ok(
        *("pseudo-pairs", "example:pbmc_mosaic", "--only", "p1", "p2", "p3", "-o", out, "--keep-fraction", "0.5"),
        *("--rounds", "1"),
    )
    assert "400 pseudo-pairs of 800 rna and 800 protein cells" in said
    written = mudata.read_h5mu(out)
    assert written.uns[KEY]["pairs"] == 400
    assert written.uns[KEY]["measured_pairs_used"] == 0
    assert not any("type" in column for column in written.obs.columns)
    dataset = open_dataset(str(out))
    assert dataset.pseudo_pairs["links"] == 70
    assert len(dataset.cell_ids) == 400 + 400 + 400
    rna = written["rna"]
    totals = dict(zip(pbmc["rna"].cell_ids, np.asarray(pbmc["rna"].counts.sum(1)).ravel(), strict=True))
    cells = written.obs.loc[rna.obs_names, "rna_cell"]
    np.testing.assert_array_equal(np.asarray(rna.X.sum(1)).ravel(), [totals[cell] for cell in cells])


def test_most_probable_pairs_are_kept_first(pbmc, matched):
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3")
    kept = pseudo_paired_mudata(rna, protein, matched, keep_fraction=0.25).obs["pseudo_pair_probability"].dropna()
    assert len(kept) == 100
    assert kept.min() >= np.sort(matched.probabilities)[-100]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_missing_modality_is_named():
    ran = scmbert("pseudo-pairs", example_path("pbmc_mosaic"), "--modalities", "rna", "atac", "-o", "/tmp/x.h5mu")
    assert ran.code == 2
    assert "no atac was measured" in ran.err


def test_another_species_has_no_links(pbmc):
    mouse = replace(pbmc["protein"], features=replace(pbmc["protein"].features, space="protein:mouse"))
    with pytest.raises(InputError, match="different organisms"):
        match_unpaired(pbmc["rna"], mouse)


def test_too_few_links_are_refused(pbmc):
    protein = pbmc["protein"]
    unlinked = replace(protein.features, links=((),) * len(protein.features))
    with pytest.raises(InputError, match="0 links between rna and protein"):
        match_unpaired(pbmc["rna"], replace(protein, features=unlinked))


def test_a_batch_nobody_has_is_named_with_those_that_exist(pbmc):
    with pytest.raises(ConfigError, match=r"technical batch p9: .* has p1_0, p2_0, p3_0, p4_0"):
        batch(pbmc["rna"], "p9")


def test_pairs_that_are_not_one_cell_are_refused(pbmc):
    rna, protein = batch(pbmc["rna"], "p3"), batch(pbmc["protein"], "p3")
    assert len(modality_cells.shared_cells(rna, protein)[0]) == 400
    other_donor = replace(protein, donors=np.full(len(protein), "d2"))
    with pytest.raises(InputError, match="400 barcodes have one donor in rna and another in protein"):
        modality_cells.shared_cells(replace(rna, donors=np.full(len(rna), "d1")), other_donor)
    twice = replace(protein, cell_ids=np.concatenate([protein.cell_ids[:1], protein.cell_ids[:-1]]))
    with pytest.raises(InputError, match="1 barcodes occur twice in protein"):
        modality_cells.shared_cells(rna, twice)
