"""Principal components and the linear maps between them, held to explicit decompositions and known maps."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from data_pipelines.statistics.linear_maps import Scores, alignment_maps, memory_of_pairs, translation_maps
from data_pipelines.statistics.principal_components import (
    Components,
    MeasuredValues,
    PrincipalComponents,
    principal_components,
)
from scmbert_jax.feature_layout import NUM_COMPONENTS, NUM_FOLDS, fold_of
from scmbert_jax.modalities import MODALITIES

RNA, PROTEIN, ATAC = (MODALITIES.index(name) for name in ("rna", "protein", "atac"))


def values(num_cells=200, num_features=90, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.log1p(rng.poisson(np.exp(rng.normal(size=(num_cells, 3)) @ rng.normal(size=(3, num_features)))))


def components(data, panels=None, panel_of=None) -> Components:
    """Of cells in memory; everything was measured where there are no panels."""
    if panels is None:
        panels, panel_of = np.ones((1, data.shape[1]), bool), np.zeros(len(data), int)
    return principal_components(sp.csr_matrix(data), panels, panel_of)


def components_of_parts(data, panels, panel_of, sizes) -> Components:
    found = PrincipalComponents(data.shape[1])
    parts = np.split(np.arange(len(data)), np.cumsum(sizes))
    for take in (found.widen, found.project):
        for rows in parts:
            take(MeasuredValues(sp.csr_matrix(data[rows]), panels, panel_of[rows]))
    return found.components()


def assert_scores_of(loadings, scores, centred) -> None:
    """They are, but for the rounding of the loadings to 4 digits."""
    assert (np.abs(scores - centred @ loadings) <= 5.1e-5 * np.abs(centred).sum(1, keepdims=True)).all()


def test_scores_are_those_of_a_pca_and_one_per_number_in_size():
    data = values()
    loadings, scores, mean, _ = components(data)
    np.testing.assert_allclose(mean, data.mean(0))
    assert loadings.shape == (90, NUM_COMPONENTS)
    assert loadings.dtype == np.float32
    assert_scores_of(loadings, scores, data - data.mean(0))
    left, singular, _ = np.linalg.svd(data - data.mean(0), full_matrices=False)
    wanted = left[:, :NUM_COMPONENTS] * singular[:NUM_COMPONENTS]
    wanted *= np.sqrt(len(data) / (singular[:NUM_COMPONENTS] ** 2).sum()) * np.sqrt(NUM_COMPONENTS)
    wanted *= np.sign((scores * wanted).sum(0))
    np.testing.assert_allclose(scores[:, :40], wanted[:, :40], atol=0.05)  # loadings have 4 digits
    assert (scores**2).sum(1).mean() == pytest.approx(NUM_COMPONENTS, rel=0.01)
    assert np.abs(scores.mean(0)).max() < 0.01


def test_components_there_are_not_are_zero_and_everything_is_finite():
    for shape in ((5, 30), (30, 5), (1, 8), (8, 1)):
        loadings, scores, *_ = components(values()[: shape[0], : shape[1]])
        assert np.isfinite(loadings).all()
        assert np.isfinite(scores).all()
        number = max(min(shape) - 1, 0)
        assert np.abs(loadings[:, number:]).max(initial=0) == 0
        assert np.abs(scores[:, number:]).max(initial=0) == 0
    assert np.abs(components(np.zeros((20, 10))).loadings).max() == 0


def test_the_order_of_the_cells_changes_nothing():
    """Processes read the same cells, but might add them up in another order."""
    data = values()
    order = np.random.default_rng(1).permutation(len(data))
    one, other = components(data).loadings, components(data[order]).loadings
    np.testing.assert_allclose(one, other, atol=2.1e-4)  # of numbers rounded to 4 digits


def test_a_feature_that_was_not_measured_has_its_mean():
    """Two panels: the decomposition is that of the matrix in which what is missing is filled with means."""
    data = values()
    panels, panel_of = np.ones((2, 90), bool), np.arange(200) % 2
    panels[1, 60:] = False
    measured = panels[panel_of]
    mean = (data * measured).sum(0) / measured.sum(0)
    loadings, scores, *_ = components(data * measured, panels, panel_of)
    filled = np.where(measured, data, mean)
    assert_scores_of(loadings, scores, filled - mean)
    whole = components(filled).loadings
    np.testing.assert_allclose(loadings[:, :10], whole[:, :10], atol=2.1e-4)


@pytest.mark.slow
def test_components_of_more_cells_than_are_in_memory_are_those_of_all_of_them():
    """600 cells in three parts, the first of which is of another kind: held to the decomposition of all."""
    data = np.concatenate([values(150, 300, seed=3), values(450, 300)])
    data[:150, 7] += 5
    everything, panel_of = np.ones((1, 300), bool), np.zeros(600, int)
    loadings, scores, mean, _ = components_of_parts(data, everything, panel_of, (150, 200))
    np.testing.assert_allclose(mean, data.mean(0))
    centred = data - mean
    assert_scores_of(loadings, scores, centred)
    assert (scores**2).sum(1).mean() == pytest.approx(NUM_COMPONENTS, rel=1e-3)
    exact = np.linalg.svd(centred, full_matrices=False)
    basis = np.linalg.qr(loadings.astype(float))[0]
    explained = ((centred @ basis) ** 2).sum() / (exact.S[:NUM_COMPONENTS] ** 2).sum()
    assert 0.99 < explained < 1 + 1e-9
    assert np.linalg.norm(exact.Vh[:6] @ basis, axis=1).min() > 0.999
    of_first = np.linalg.qr(components(data[:150]).loadings.astype(float))[0]
    assert ((centred @ of_first) ** 2).sum() < 0.97 * ((centred @ basis) ** 2).sum()


@pytest.mark.slow
def test_parts_of_other_panels_have_means_where_nothing_was_measured():
    """A feature that the first part lacks has its components from the second."""
    data = values(400)
    panels, panel_of = np.ones((2, 90), bool), np.arange(400) // 200
    panels[0, 80:], panels[1, :5] = False, False
    measured = panels[panel_of]
    parts = components_of_parts(data * measured, panels, panel_of, (200,))
    whole = components(data * measured, panels, panel_of)
    np.testing.assert_allclose(parts.mean, (data * measured).sum(0) / measured.sum(0))
    np.testing.assert_array_equal(parts.measured_in, measured.sum(0))
    np.testing.assert_allclose(parts.loadings[:, :3], whole.loadings[:, :3], atol=0.01)
    assert np.abs(whole.loadings[80:, :3]).max() > 0.1, "more than what may differ"


# --- maps between modalities -----------------------------------------------------------------------------------------


def paired_scores(num_cells=600, noise=0.1) -> tuple[dict[str, Scores], np.ndarray]:
    """Scores of RNA and protein of the same cells: protein is RNA times a known map, and noise."""
    rng = np.random.default_rng(2)
    rna = rng.normal(size=(num_cells, NUM_COMPONENTS))
    true = np.zeros((NUM_COMPONENTS, NUM_COMPONENTS))
    true[:3, :3] = rng.normal(size=(3, 3))
    protein = rna @ true + noise * rng.normal(size=rna.shape)
    cells = np.arange(num_cells)
    folds = fold_of(cells)
    return {
        "rna": Scores(cells, rna - rna.mean(0), folds),
        "protein": Scores(cells, protein - protein.mean(0), folds),
    }, true


def test_a_linear_map_between_modalities_is_found_again():
    scores, true = paired_scores()
    maps = translation_maps(scores)
    assert maps.shape[0] == 1 + NUM_FOLDS
    for own in maps:
        np.testing.assert_allclose(own[RNA, PROTEIN], true, atol=0.05)  # noise of 0.1 over the root of 600 cells
        for source, target in ((RNA, ATAC), (ATAC, RNA), (RNA, RNA)):
            assert np.abs(own[source, target]).max() == 0


@pytest.mark.slow
def test_the_map_of_a_fold_has_not_seen_its_cells():
    scores, _ = paired_scores()
    protein = scores["protein"]
    in_second = protein.folds == 2
    assert 0.1 < in_second.mean() < 0.3
    other = {**scores, "protein": protein._replace(values=protein.values * np.where(in_second, -3.0, 1.0)[:, None])}
    before, after = translation_maps(scores)[:, RNA, PROTEIN], translation_maps(other)[:, RNA, PROTEIN]
    change = np.abs(after - before).max(axis=(1, 2))
    assert change[2] < 0.02  # means over all pairs move a little
    assert min(change[[0, 1, 3, 4, 5]]) > 0.2


def test_folds_are_alike_on_host_and_device_and_of_one_size():
    cells = np.arange(10_000, dtype=np.int32) * 5
    folds = fold_of(cells)
    np.testing.assert_array_equal(folds, fold_of(jnp.asarray(cells)))
    assert np.abs(np.bincount(folds, minlength=1 + NUM_FOLDS)[1:] - 2000).max() < 200


def test_the_memory_holds_the_paired_cells_and_neighbours_get_the_fraction_that_they_earn():
    scores, _ = paired_scores()
    memory = memory_of_pairs(scores, translation_maps(scores))
    assert memory.scores.shape == (600, len(MODALITIES), NUM_COMPONENTS)
    np.testing.assert_allclose(memory.scores[:, PROTEIN], scores["protein"].values, atol=1e-4)
    assert memory.measured[:, [RNA, PROTEIN]].all()
    assert not memory.measured[:, ATAC].any()
    # Protein is a linear map of RNA: the regression says it all.
    assert memory.fractions[RNA, PROTEIN] < 0.1
    # Two modalities that bend: protein is large where RNA is far from zero, on whichever side.
    bent = np.zeros_like(scores["rna"].values)
    rna = scores["rna"].values * np.where(np.arange(NUM_COMPONENTS) < 2, 5.0, 0.1)
    bent[:, 0] = np.abs(rna[:, 0])
    types = {
        "rna": scores["rna"]._replace(values=rna),
        "protein": scores["protein"]._replace(values=bent - bent.mean(0)),
    }
    assert memory_of_pairs(types, translation_maps(types)).fractions[RNA, PROTEIN] > 0.8


def test_a_memory_of_no_pairs_is_empty():
    scores, _ = paired_scores()
    apart = {"rna": scores["rna"], "protein": scores["protein"]._replace(cells=scores["protein"].cells + 10_000)}
    memory = memory_of_pairs(apart, translation_maps(apart))
    assert len(memory.scores) == len(memory.folds) == 0
    assert np.abs(memory.fractions).max() == 0


def test_axes_of_alignment_are_those_on_which_the_modalities_correlate():
    scores, _ = paired_scores()
    maps = alignment_maps(scores)
    rna, protein = scores["rna"].values @ maps[RNA], scores["protein"].values @ maps[PROTEIN]
    correlations = [np.corrcoef(rna[:, axis], protein[:, axis])[0, 1] for axis in range(3)]
    assert min(correlations) > 0.9
    # Axes that do not correlate do not count: they are multiplied by their correlation.
    sizes = rna.std(0)
    assert sizes[:3].min() > 2 * sizes[20:].max()
    assert np.abs(maps[ATAC]).max() == 0
    # A cell is nearest to itself.
    unit = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in (rna, protein)]
    assert ((unit[0] @ unit[1].T).argmax(1) == np.arange(len(rna))).mean() > 0.5


@pytest.mark.parametrize("make", [translation_maps, alignment_maps])
def test_without_pairs_there_are_no_maps(make):
    """No cell of two modalities, or too few to say more than what these few are."""
    scores, _ = paired_scores()
    rna, protein = scores["rna"], scores["protein"]
    apart = {"rna": rna, "protein": protein._replace(cells=protein.cells + 10_000)}
    few = {name: Scores(*(array[: NUM_COMPONENTS - 1] for array in own[:3])) for name, own in scores.items()}
    for unpaired in (apart, few, {"rna": rna}):
        assert np.abs(make(unpaired)).max() == 0


@pytest.mark.parametrize("make", [translation_maps, alignment_maps])
def test_cells_are_paired_by_what_they_are_and_not_by_their_place(make):
    scores, _ = paired_scores()
    protein = scores["protein"]
    kept = np.arange(len(protein.cells)) % 3 > 0
    some = {"rna": scores["rna"], "protein": Scores(*(array[kept] for array in protein[:3]))}
    both = {name: Scores(*(array[kept] for array in own[:3])) for name, own in scores.items()}
    found, wanted = make(some), make(both)
    if make is translation_maps:
        np.testing.assert_allclose(found[:, RNA, PROTEIN], wanted[:, RNA, PROTEIN], atol=1e-4)
    else:
        assert np.abs(found[RNA]).max() > 0.1
        assert np.abs(found[PROTEIN]).max() > 0.1
