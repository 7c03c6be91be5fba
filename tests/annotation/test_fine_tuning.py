"""Fine-tuning on 90 cells of the built-in example; what it is worth on real cells stands in experiments/README.md."""

from dataclasses import replace

import jax
import mudata
import numpy as np
import pytest
from conftest import shaken
from sklearn.metrics import f1_score

from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.controls import from_scratch, without_gene_identities
from scmbert_jax.annotation.fine_tuning import FineTuningOptions, _Fit, accuracy_and_macro_f1, fine_tune
from scmbert_jax.annotation.fine_tuning_step import nll_of_logits
from scmbert_jax.annotation.label_tree import LabelTree
from scmbert_jax.annotation.linear_head import Imbalance, losses_of_logits
from scmbert_jax.annotation.minibatches import CellOrder, HeldCells
from scmbert_jax.annotation.reference import Reference
from scmbert_jax.annotation.trained_part import TrainedPart
from scmbert_jax.errors import CheckpointError, ConfigError, TrainingError
from scmbert_jax.pretrained import load_model
from scmbert_jax.tasks.embed import embed_dataset
from scmbert_jax.tasks.model_cells import open_model_cells

FEW = FineTuningOptions(method="lora:2", num_steps=6, batch_size=16, validate_every=2, num_tokens=64, patience=9)


@pytest.fixture(scope="module")
def model(pbmc_model):
    return load_model(pbmc_model)


@pytest.fixture(scope="module")
def rna():
    whole = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"]
    return whole[whole.obs["celltype"].isin(["CD4 T", "Mono", "B"])][:90].copy()


@pytest.fixture(scope="module")
def reference(model, rna):
    labels = rna.obs["celltype"].astype(str).to_numpy()
    tree, places = LabelTree.of(labels), np.arange(len(labels))
    cells = open_model_cells(model, rna)
    held_out = places % 3 == 0
    donors = np.full(len(labels), "")
    return Reference(cells, tree, tree.membership(labels), places[~held_out], places[held_out], donors)


def leaves(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in _with_path(tree)}


_with_path = jax.tree_util.tree_leaves_with_path


def equal(one, other):
    return {name for name, value in leaves(one).items() if np.array_equal(value, leaves(other)[name])}


@pytest.mark.parametrize("method", ["full", "last:1", "last:2", "lora:3"])
def test_at_step_0_the_model_is_the_pretrained_one(model, method):
    part = TrainedPart.of(method, model.definition)
    merged = part.merged(model.params, part.start(model.params, seed=0))
    assert equal(model.params, merged) == set(leaves(model.params))


def test_each_method_changes_its_part_and_nothing_else(model):
    changed = {}
    for method in ("full", "last:1", "lora:3"):
        part = TrainedPart.of(method, model.definition)
        moved = shaken(part.start(model.params, seed=0))
        merged = part.merged(model.params, moved)
        changed[method] = set(leaves(model.params)) - equal(model.params, merged)
        for name in ("attention_out", "mlp_in"):
            before, after = (own["encoder"]["blocks"][name] for own in (model.params, merged))
            if method == "last:1":
                np.testing.assert_array_equal(before[:-1], after[:-1])
            if method == "lora:3":
                added = np.asarray(after - before)[0].reshape(-1, before.shape[-1])
                assert np.linalg.matrix_rank(added, tol=1e-4) == 3
    linear = {"linear"} if model.config.model.linear_path else set()
    assert {name.split(".")[0] for name in changed["full"]} == {"table", "embedding", "encoder"} | linear
    assert "encoder.final_norm.scale" in changed["last:1"]
    assert {name.rsplit(".", 1)[1] for name in changed["lora:3"]} == {"qkv", "attention_out", "mlp_in", "mlp_out"}


@pytest.mark.parametrize("method", ["last", "last:0", "last:3", "lora", "lora:-1", "half", "full:1", "last:x"])
def test_a_method_that_cannot_be_is_refused(model, method):
    with pytest.raises(ConfigError, match=rf"method '{method}'"):
        TrainedPart.of(method, model.definition)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("learning_rate", 0.0),
        ("head_learning_rate", -1.0),
        ("warmup", 1.5),
        ("weight_decay", -0.1),
        ("head_start", "x"),
        ("stop_by", "f1"),
        ("num_tokens", 0),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        FineTuningOptions(**{field: value})


def test_the_loss_of_a_coarse_label_is_that_of_the_linear_head():
    rng = np.random.default_rng(0)
    logits, membership = rng.normal(size=(20, 5)).astype(np.float32), rng.random((20, 5)) < 0.4
    membership[:, 0] |= ~membership.any(axis=1)
    np.testing.assert_allclose(nll_of_logits(logits, membership), losses_of_logits(logits, membership)[0], rtol=1e-5)


def test_scores_of_flat_labels_are_scikit_learns_and_a_leaf_of_a_coarse_label_is_right():
    truth, predicted = np.random.default_rng(0).integers(0, 4, (2, 60))
    accuracy, macro = accuracy_and_macro_f1(predicted, np.eye(4, dtype=bool)[truth])
    assert accuracy == (truth == predicted).mean()
    assert macro == pytest.approx(f1_score(truth, predicted, average="macro"))
    coarse = np.array([[True, True, False], [True, False, False], [False, False, True]])
    assert accuracy_and_macro_f1(np.array([1, 0, 2]), coarse) == (1.0, 1.0)
    # The third is called the first leaf, so it counts against the label of that leaf alone: 1, 2/3 and 0.
    assert accuracy_and_macro_f1(np.array([1, 0, 0]), coarse) == (pytest.approx(2 / 3), pytest.approx(5 / 9))


def test_every_cell_comes_once_before_any_comes_again():
    order = CellOrder(number=10, batch_size=4, seed=3)
    shown = np.concatenate([order.at(step) for step in range(5)])
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert shown[:10].tolist() != shown[10:].tolist()
    np.testing.assert_array_equal(order.at(3), shown[12:16])  # of the step alone
    assert CellOrder(10, 4, seed=4).at(0).tolist() != shown[:4].tolist()


def test_cells_are_drawn_in_proportion_to_their_weights():
    order = CellOrder(number=4, batch_size=500, seed=0, weights=np.array([1.0, 0.0, 6.0, 3.0]))
    fractions = np.bincount(np.concatenate([order.at(step) for step in range(20)]), minlength=4) / 10_000
    np.testing.assert_allclose(fractions, [0.1, 0.0, 0.6, 0.3], atol=0.02)  # four standard errors


def test_tokens_are_drawn_anew_at_each_step_and_independently_of_neighbours(reference):
    held = HeldCells.read(reference.cells, np.array([5, 2, 5]))

    def tokens(seed):
        ((places, batch),) = held.batches(np.array([0, 1, 2]), 8, 3, seed, np.arange(3, dtype=np.uint64))
        return batch.modalities["rna"].feature_ids[np.argsort(places)]

    one, other = tokens(1), tokens(2)
    np.testing.assert_array_equal(one, tokens(1))
    assert (one != other).any(axis=1).all()
    assert (one[0] != one[2]).any()  # the same cell twice


@pytest.fixture(scope="module")
def tuned(model, reference):
    return fine_tune(model, reference, FEW)


@pytest.mark.slow
def test_step_0_is_the_linear_probe_of_the_frozen_model(model, reference, rna, tuned):
    fit = _Fit(model, reference, FEW)
    assert fit.begin()[1] == tuned.history[:1]
    embedded = embed_dataset(model, rna).embeddings
    # XLA sums float32 in another order in batches of other sizes.
    np.testing.assert_allclose(
        fit._vectors(model.params, np.arange(60)), embedded[reference.train], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_killed_fit_continues_bit_for_bit(model, reference, tuned, tmp_path):
    class Killed(Exception):
        pass

    def kill_at_step_5(done, total):
        if done == 5:
            raise Killed

    work = tmp_path / "work"
    with pytest.raises(Killed):
        fine_tune(model, reference, FEW, work_folder=work, progress=kill_at_step_5)
    seen = []
    continued = fine_tune(model, reference, FEW, work_folder=work, progress=lambda done, total: seen.append(done))
    assert seen == [5, 6, 6]  # from the checkpoint of step 4
    assert continued.history == tuned.history
    assert equal(continued.params, tuned.params) == set(leaves(tuned.params))
    np.testing.assert_array_equal(continued.head.weight, tuned.head.weight)
    # One that is done gives what it gave.
    again = fine_tune(model, reference, FEW, work_folder=work)
    np.testing.assert_array_equal(again.head.weight, tuned.head.weight)

    with pytest.raises(CheckpointError, match=r"differs \(options.num_steps: 6 there, 7 here\)"):
        fine_tune(model, reference, replace(FEW, num_steps=7), work_folder=work)
    other = replace(reference, train=reference.train[1:])
    with pytest.raises(CheckpointError, match=r"differs \(training cells: .*; counts: "):
        fine_tune(model, other, FEW, work_folder=work)
    with pytest.raises(CheckpointError, match=r"differs \(model: "):
        fine_tune(from_scratch(model, 1), reference, FEW, work_folder=work)


@pytest.mark.slow
def test_the_best_step_on_the_validation_cells_is_kept_and_patience_ends_the_fit(model, reference, tuned):
    ruin = replace(FEW, learning_rate=1e3, head_learning_rate=1e3, patience=1, num_steps=50)
    found = fine_tune(model, reference, ruin)
    assert [row["step"] for row in found.history] == [0, 2]
    assert found.step == 0
    assert equal(found.params, model.params) == set(leaves(model.params))
    zeros = replace(FEW, head_start="zero")
    with pytest.raises(TrainingError, match="the loss is nan before step 2; lower learning_rate"):
        fine_tune(replace(model, params=jax.tree.map(lambda x: x * np.nan, model.params)), reference, zeros)


@pytest.mark.slow
def test_it_learns_from_a_head_of_zeros_without_validation_cells(model, reference):
    options = replace(FEW, head_start="zero", num_steps=40, validate_every=20, head_learning_rate=3e-2, method="lora:2")
    imbalance = Imbalance(balance=1.0, logit_adjustment=1.0, focal=2.0)
    alone = replace(reference, validation=reference.validation[:0])
    found = fine_tune(model, alone, replace(options, imbalance=imbalance))
    assert found.step == 40  # the last, where nothing says which is best
    assert [row["validation_loss"] for row in found.history] == [None] * 3
    assert found.history[2]["loss"] < 0.7 * found.history[1]["loss"]


def test_a_work_folder_of_something_else_is_refused(model, reference, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes.txt.*no work folder"):
        fine_tune(model, reference, FEW, work_folder=tmp_path)


def test_without_gene_identities_each_feature_has_the_row_of_another_of_its_modality(model):
    shuffled, rows = without_gene_identities(model, 0), np.asarray(model.params["table"]["learned"])
    found = np.asarray(shuffled.params["table"]["learned"])
    for first, stop in model.definition.layout.slices.values():
        assert (found[first:stop] != rows[first:stop]).any(axis=1).mean() > 0.9
        np.testing.assert_array_equal(np.sort(found[first:stop], axis=0), np.sort(rows[first:stop], axis=0))
    assert set(leaves(model.params)) - equal(shuffled.params, model.params) == {"table.learned"}
    np.testing.assert_array_equal(without_gene_identities(model, 0).params["table"]["learned"], found)
    assert (np.asarray(without_gene_identities(model, 1).params["table"]["learned"]) != found).any()
