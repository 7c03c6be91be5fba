"""The suites matching and integration on the built-in mosaic, and their parts where the answer is known."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import scmbert

from data_pipelines.batches.trained_cells import TrainedCells
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation import metrics
from scmbert_jax.evaluation.alignment import baselines as alignment_baselines
from scmbert_jax.evaluation.alignment.integration import score_integration
from scmbert_jax.evaluation.alignment.label_transfer import transfer_rows
from scmbert_jax.evaluation.alignment.matching import evaluate_matching, score_matching, true_partner
from scmbert_jax.evaluation.alignment.matching_fold import matching_folds
from scmbert_jax.evaluation.alignment.result import AlignmentResult, score_rows
from scmbert_jax.evaluation.report.modality_figures import error_per_type, predicted_versus_measured
from scmbert_jax.evaluation.seen_cells import identified_cells
from scmbert_jax.tasks.modality_cells import read_modalities


@pytest.fixture(scope="module")
def pbmc():
    return read_modalities("example:pbmc_mosaic")


@pytest.fixture(scope="module")
def fold(pbmc):
    return next(matching_folds(pbmc, ["p3"], ["p4"]))


# --- folds -----------------------------------------------------------------------------------------------------------


def test_each_batch_of_pairs_is_held_out_in_turn(pbmc):
    assert [f.direction for f in matching_folds(pbmc)] == ["rna-protein: p4_0 -> p3_0", "rna-protein: p3_0 -> p4_0"]


def test_rows_of_a_fold_are_the_same_cells_in_both_modalities_and_none_is_trained_on(fold):
    first, second = fold.tested
    np.testing.assert_array_equal(first.cell_ids, second.cell_ids)
    assert set(first.technical_batches) == {"p4_0"}
    for side, cells in ((0, fold.first), (1, fold.second)):
        assert "p4_0" not in set(cells.technical_batches[fold.unpaired[side]])
        assert "p4_0" not in set(cells.technical_batches[fold.train[side]])


def test_held_out_types_are_in_no_training_pair(pbmc):
    (part,) = matching_folds(pbmc, held_out_types=["Mono"])
    assert set(part.tested[0].cell_types) == {"Mono"}
    assert "Mono" not in set(part.first.cell_types[part.train[0]]) | set(part.first.cell_types[part.unpaired[0]])


def test_impossible_splits_are_refused(pbmc):
    with pytest.raises(ConfigError, match="have cells in common"):
        list(matching_folds(pbmc, ["p3"], ["p3"]))
    with pytest.raises(ConfigError, match="cell type Neuron"):
        list(matching_folds(pbmc, held_out_types=["Neuron"]))
    with pytest.raises(InputError, match="0 test cells have rna and protein"):
        list(matching_folds(pbmc, ["p3"], ["p1"]))
    with pytest.raises(InputError, match="where true pairs are known"):
        list(matching_folds({"rna": pbmc["rna"]}))


# --- baselines: the floors of the shared facts -----------------------------------------------------------------------


def test_cca_on_pairs_is_at_least_the_floor_of_the_facts(fold):
    space = alignment_baselines.cca_space(fold.side(0, fold.train[0]), fold.side(1, fold.train[1]))
    scores = metrics.foscttm(space.embed_first(fold.tested[0]), space.embed_second(fold.tested[1]), distance="cosine")
    assert scores < 0.0931  # the facts' regularised CCA; measured here .074


@pytest.mark.slow
def test_cca_learns_from_the_pairs_and_not_from_anything_else(fold):
    """With shuffled training pairs it knows nothing of the test cells."""
    shuffled = np.random.default_rng(0).permutation(fold.train[1])
    space = alignment_baselines.cca_space(fold.side(0, fold.train[0]), fold.side(1, shuffled))
    scores = metrics.foscttm(space.embed_first(fold.tested[0]), space.embed_second(fold.tested[1]), distance="cosine")
    assert 0.35 < scores < 0.65


def test_links_alone_reproduce_their_floor(fold):
    a, b = alignment_baselines.links_vectors(*fold.tested)
    assert metrics.foscttm(a, b, distance="cosine") == pytest.approx(0.134, abs=0.02)  # facts, 39 links; here 70


def test_knowing_only_the_type_scores_half_the_chance_of_meeting_the_own_type():
    """FOSCTTM is the mean fraction of the own type over two: .117 on p4 in the facts."""
    types = np.repeat(["a", "b", "c"], [200, 100, 100])
    vectors = [alignment_baselines.type_vectors(types, seed) for seed in (0, 1)]
    expected = (0.5**2 + 2 * 0.25**2) / 2
    assert metrics.foscttm(*vectors, distance="cosine") == pytest.approx(expected, abs=0.02)


def test_the_matching_score_is_the_probability_of_the_partner_in_its_batch():
    rng = np.random.default_rng(1)
    cells = rng.normal(size=(40, 6))
    batches = np.repeat(["x", "y"], 20)
    assert true_partner(cells, cells + 0.01 * rng.normal(size=cells.shape), batches, "sinkhorn") > 0.9
    chance = true_partner(cells, np.ones((40, 6)) + 1e-6 * cells, batches, "cosine")
    assert chance == pytest.approx(1 / 20, rel=0.05)
    assert score_matching(cells, cells, batches)["recall@1"] == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("transport_at_full_speed")
def test_labels_cross_without_pairs_above_the_links_alone(pbmc, fold):
    rows = transfer_rows(pbmc["rna"], pbmc["protein"], fold.train, fold.test, {}, 1, True, lambda message: None)
    scores = {
        row.method: row.whole
        for row in rows
        if row.metric == "accuracy (knn)" and row.direction == "labels rna (p1_0) -> protein (p2_0)"
    }
    assert scores["pseudo-pairs"] > 0.88  # the facts' links-only floor
    assert scores["majority"] == pytest.approx(0.325)
    assert scores["labels of the other modality (ceiling)"] > 0.93


# --- integration -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("exact_neighbours")
def test_an_embedding_of_types_alone_beats_one_of_batches_alone():
    rng = np.random.default_rng(2)
    types, batches = rng.choice(["a", "b", "c"], 240), rng.choice(["x", "y"], 240)

    def embedded(names):
        return (names[:, None] == np.unique(names)) * 4.0 + 0.3 * rng.normal(size=(240, len(np.unique(names))))

    by_type = score_integration(embedded(types), types, batches)
    by_batch = score_integration(embedded(batches), types, batches)
    assert by_type["bio"] > by_batch["bio"] + 0.3
    assert by_type["batch"] > by_batch["batch"] + 0.2
    assert by_type["total"] == pytest.approx(0.6 * by_type["bio"] + 0.4 * by_type["batch"])
    with pytest.raises(InputError, match="the cells are of 1 cell type; at least two"):
        score_integration(embedded(types), np.full(240, "a"), batches)
    # One batch: there is nothing to be mixed, and no score says that it was.
    alone = score_integration(embedded(types), types, np.full(240, "x"))
    assert set(alone) == {"NMI", "ARI", "silhouette", "cLISI", "bio"}
    assert alone["bio"] == pytest.approx(np.mean([alone[name] for name in ("NMI", "ARI", "silhouette", "cLISI")]))


@pytest.mark.nightly
def test_neighbours_as_users_search_them_give_the_scores_of_the_exact_ones(request):
    """Compiling the search takes half a minute; other tests take the exact neighbours."""
    rng = np.random.default_rng(4)
    types, batches = rng.choice(["a", "b", "c"], 240), rng.choice(["x", "y"], 240)
    cells = (types[:, None] == np.unique(types)) * 2.0 + rng.normal(size=(240, 3))
    found = score_integration(cells, types, batches)
    request.getfixturevalue("exact_neighbours")
    assert found == pytest.approx(score_integration(cells, types, batches), abs=0.01)


# --- table, figures, verbs -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("exact_neighbours")
def test_scores_of_integration_leave_stdout_to_the_document(capsys):
    """kBET has a word to say of a type that is in one batch only."""
    rng = np.random.default_rng(0)
    types = np.array(["a"] * 90 + ["b"] * 90 + ["rare"] * 4)
    batches = np.where((np.arange(184) % 2 == 0) | (types == "rare"), "x", "y")
    score_integration(rng.normal(size=(184, 5)), types, batches)
    assert capsys.readouterr().out == ""


def test_a_row_holds_the_whole_fit_and_the_interval_over_seeds():
    rows = score_rows("d", "m", "pairs", {"s": 0.5}, [{"s": value} for value in (1.0, 2, 3, 4, 5)], 7)
    (row,) = rows
    assert (row.whole, row.mean, row.num_seeds, row.num_cells) == (0.5, 3.0, 5, 7)
    assert row.half_width == pytest.approx(2.776445 * np.sqrt(2.5) / np.sqrt(5), rel=1e-6)
    (lone,) = score_rows("d", "model", "unknown", None, [{"s": 1.0}], 7)
    document = AlignmentResult("matching", "x", (row, lone), (), {}).to_dict()
    assert document["rows"][1]["whole"] is None
    json.dumps(document, allow_nan=False)


def test_figures_are_inline_and_say_what_they_show():
    rng = np.random.default_rng(3)
    types = rng.choice(["B", "T"], 80)
    svg = error_per_type({"model": rng.random(80)}, types, "FOSCTTM", chance=0.5)
    assert svg.startswith("<svg")
    assert "B (" in svg
    assert "chance" in svg
    measured = rng.normal(size=(80, 2))
    svg = predicted_versus_measured(measured, measured, ["CD4", "CD8"], "CLR", types)
    assert re.search(r"CD4\s+r = 1\.00", svg)
    with pytest.raises(ValueError, match=r"expected \[n, 1\] twice"):
        predicted_versus_measured(measured, measured, ["CD4"], "CLR")


def test_a_model_is_not_scored_on_pairs_it_was_trained_on():
    """Known by the cells themselves: the model says nothing of files or batches."""
    cells = identified_cells(open_dataset("example:pbmc_mosaic"))
    trained = TrainedCells(cells.keys, cells.barcodes, np.zeros(len(cells.barcodes), bool))
    model = SimpleNamespace(info={}, trained_cells=trained, linear_path_alone=lambda: None)
    with pytest.raises(InputError, match=r"model 0, rna-protein.* trained on 400 pairs of the 400 cells"):
        evaluate_matching(models=[model], train_batches=["p3"], test_batches=["p4"])


def test_what_cannot_be_scored_is_refused_before_the_work(tmp_path):
    assert "--num-seeds 0" in scmbert("evaluate", "matching", "--num-seeds", "0").err
    assert "no folder" in scmbert("evaluate", "integration", "--report", tmp_path / "no" / "r.html").err
    ran = scmbert("evaluate", "matching", "--test-batches", "p9")
    assert ran.code == 4
    assert "p9" in ran.err
