"""Active regulators found again from sequence and accessibility; a new cell type predicted from its own activities."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from data_pipelines.genome.bases import decode, one_hot
from data_pipelines.genome.region_matrix import RegionMatrix
from data_pipelines.genome.windows import Windows
from data_pipelines.synthetic.accessibility import planted_accessibility
from scmbert_jax.errors import InputError
from scmbert_jax.regulation.fit import FitOptions, fit_regulatory
from scmbert_jax.regulation.labelled import LabelledSequences, Task
from scmbert_jax.sequences.changes import marginalise
from scmbert_jax.tasks.motif_activity import accessibility_elsewhere, motif_activities
from scmbert_jax.tasks.motif_matrix import motif_matrix


@pytest.fixture(scope="module")
def planted():
    return planted_accessibility(900, seed=5)


@pytest.fixture(scope="module")
def scores(planted):
    """Out of a scan of the sequences: what was planted is not looked at."""
    table, number = planted.regions, len(planted.codes)
    lengths = np.full(number, planted.codes.shape[1], np.int32)
    return motif_matrix(table, Windows(planted.codes, lengths, np.arange(number), table.start, {}), planted.motifs)


@pytest.fixture(scope="module")
def log_odds(planted):
    opened = planted.accessibility.values.toarray()
    values = sp.csr_array(np.log(opened) - np.log1p(-opened))
    return RegionMatrix(planted.regions.ids, planted.accessibility.columns, values, "log odds")


def test_active_regulators_are_found_from_sequence(planted, scores, log_odds):
    found = motif_activities(scores, log_odds)
    assert found.num_regions == 900
    assert found.motifs.tolist() == list(planted.motifs.ids)
    for kind in range(6):
        active = planted.activity[:, kind] > 0
        assert roc_auc_score(active, found.activity[:, kind]) > 0.98
        assert set(np.argsort(-found.activity[:, kind])[:5]) == set(np.flatnonzero(active))
    # Rows in another order are the same regions; rows under other names are none of them.
    rows = np.random.default_rng(0).permutation(900)
    shuffled = RegionMatrix(scores.regions[rows], scores.columns, scores.values[rows], "shuffled")
    np.testing.assert_allclose(motif_activities(shuffled, log_odds).activity, found.activity, rtol=1e-6)
    wrong = RegionMatrix(scores.regions[rows], scores.columns, scores.values, "a matrix under wrong names")
    by_chance = motif_activities(wrong, log_odds).activity
    assert roc_auc_score((planted.activity > 0).ravel(), by_chance.ravel()) < 0.65


def test_a_regulatory_model_that_is_asked_of_each_motif_finds_them_too(planted, log_odds):
    """Fitted to sequences alone, then each motif's best sequence is put into random ones (`marginalise`)."""
    values = log_odds.values.toarray().astype(np.float32)
    lengths, task = np.full(len(values), planted.codes.shape[1], np.int32), Task("values", tuple(log_odds.columns))
    labelled = LabelledSequences(planted.codes, lengths, values, task, chromosome=planted.regions.chromosome)
    options = FitOptions(linear=("motifs",), network=None, motif_network=None)
    model = fit_regulatory(labelled, options, motifs=planted.motifs)
    backgrounds = one_hot(np.random.default_rng(0).integers(0, 4, (8, 200)).astype(np.uint8))
    best = [decode(counts.argmax(axis=1).astype(np.uint8)) for counts in planted.motifs.counts]
    effects = np.stack([marginalise(model.f, motif, backgrounds).effect.mean(axis=0) for motif in best])  # [M, K]
    assert np.corrcoef(effects.ravel(), planted.activity.ravel())[0, 1] > 0.8
    for kind in range(6):
        assert set(np.argsort(-effects[:, kind])[:5]) == set(np.flatnonzero(planted.activity[:, kind] > 0))


def test_a_new_cell_type_is_predicted_better_than_by_the_mean_of_the_others(planted, scores, log_odds):
    dense, ids = log_odds.values.toarray(), planted.regions.ids
    seen = np.isin(planted.regions.chromosome, ["chr1", "chr2", "chr3"])
    for kind in range(6):
        others = np.delete(np.arange(6), kind)
        known = RegionMatrix(ids, log_odds.columns[others], sp.csr_array(dense[:, others]))
        measured = RegionMatrix(ids[seen], log_odds.columns[[kind]], sp.csr_array(dense[seen][:, [kind]]))
        predicted = accessibility_elsewhere(scores, known, measured, ids[~seen]).values.toarray()[:, 0]
        truth, mean = dense[~seen, kind], dense[~seen][:, others].mean(1)
        assert np.corrcoef(predicted, truth)[0, 1] > np.corrcoef(mean, truth)[0, 1] + 0.03


def test_matrices_without_a_region_in_common_are_refused(scores, log_odds):
    elsewhere = RegionMatrix(np.array(["chrX:1-9"]), log_odds.columns, log_odds.values[:1], "peaks.h5ad")
    with pytest.raises(InputError, match=r"peaks.h5ad: 0 of its 1 regions are in .*at least 10 .*chrX:1-9"):
        motif_activities(scores, elsewhere)
