"""Held-out cells shown whole, and what is scored of them: probe, translation, matching, on answers that are known."""

from dataclasses import replace
from itertools import permutations

import jax
import numpy as np
import pytest
from conftest import shaken

from scmbert_jax.config import ContrastiveAlignmentConfig, CrossModalTranslationConfig, ObjectivesConfig
from scmbert_jax.evaluation.data.value_scale import ValueScale
from scmbert_jax.evaluators import matching, probe, translation, whole_cells
from scmbert_jax.evaluators.inputs import CannotEvaluate, EvaluatorInputs
from scmbert_jax.models.linear_path import scores_of_counts
from scmbert_jax.parallel.mesh import replicated


def with_objectives(inputs, **objectives):
    return inputs(1, replace(inputs().config, objectives=ObjectivesConfig(**objectives)))


@pytest.fixture
def given(monkeypatch):
    """Evaluators called with arrays for parameters: what models give of the cells, each time that they are asked."""
    monkeypatch.setattr(
        EvaluatorInputs, "over_whole_cells", lambda self, function: {"": lambda params, _: params.pop(0)}
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_every_held_out_cell_is_shown_whole_in_its_place_on_any_mesh(held_out_inputs, devices):
    inputs = held_out_inputs(devices)

    def shown(model, table, batch):
        sums = {name: tokens.counts.sum(axis=1) for name, tokens in batch.modalities.items()}
        return {
            "row": batch.row,
            "sums": sums,
            "scores": batch.scores,
            "width": batch.row * 0 + batch.most_tokens,
        }

    with jax.set_mesh(inputs.mesh):
        constants = jax.device_put(inputs.model.constants, replicated(inputs.mesh))
        params = jax.device_put(jax.jit(inputs.model.init)(jax.random.key(0)), replicated(inputs.mesh))
        found = inputs.over_whole_cells(shown)[""](params, constants)
    np.testing.assert_array_equal(found["row"], np.arange(90))
    assert len(np.unique(found["width"])) > 1  # so they were not in this order
    layout = inputs.model.layout
    for name, own in inputs.data.whole_cells.modalities.items():
        rows = slice(*layout.slices[name])
        loadings = inputs.model.constants["linear"]["loadings"][rows]
        scores = scores_of_counts(loadings, layout.statistics, name, rows, own.counts, own.panels[0])
        for values, of_measured in (
            (found["sums"][name], own.counts.sum(axis=1).A1),
            (found["scores"][name], scores),
        ):
            expected = np.zeros_like(values)
            expected[own.cells] = of_measured
            np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_probe_reads_cell_types_where_they_are_and_not_where_they_are_not(held_out_inputs, given):
    inputs = held_out_inputs()
    labels = inputs.data.labels("cell_type")
    _, codes = np.unique(labels.astype(str), return_inverse=True)
    rng = np.random.default_rng(0)
    clear = np.eye(codes.max() + 1, dtype=np.float32)[codes]
    noise = rng.normal(size=clear.shape).astype(np.float32)
    evaluator = probe.make(inputs)
    told, blind = (evaluator(step, [vectors], None) for step, vectors in enumerate((clear, noise)))
    # Types of which no cell is in the fitted half cannot be told: nothing else is missed.
    assert told["accuracy"] > 0.9
    assert blind["accuracy"] < 0.5
    assert blind["macro_f1"] < told["macro_f1"]
    assert told["pca_accuracy"] == blind["pca_accuracy"] > blind["accuracy"]
    assert 20 < told["cells"] < 60


def test_a_probe_without_labels_is_not_asked(held_out_inputs, monkeypatch):
    inputs = held_out_inputs()
    monkeypatch.setattr(type(inputs.data), "labels", lambda data, field: None)
    with pytest.raises(CannotEvaluate, match="no cell type is known"):
        probe.make(inputs)
    monkeypatch.setattr(type(inputs.data), "labels", lambda data, field: np.array(["B"] * 90, object))
    with pytest.raises(CannotEvaluate, match="of two cell types there"):
        probe.make(inputs)


def test_a_translation_that_is_the_truth_has_no_error_and_the_mean_has_its_own(held_out_inputs, given, monkeypatch):
    monkeypatch.setattr(translation, "_MOST_FEATURES", 10**6)
    inputs = with_objectives(held_out_inputs, cross_modal_translation=CrossModalTranslationConfig(weight=1.0))
    counts, layout = inputs.data.whole_cells.modalities, inputs.model.layout
    scales = {
        "rna": ValueScale("rna", inputs.model.translation_likelihood("rna").median_library),
        "protein": ValueScale("protein"),
    }
    truth, mean = {}, {}
    for name, scale in scales.items():
        values = np.zeros((90, counts[name].counts.shape[1]), np.float32)
        values[counts[name].cells] = scale.values(counts[name].counts).toarray()
        truth[name] = values
        of_layout = {"rna": layout.statistics.log1p_mean, "protein": layout.statistics.clr_mean}[name]
        mean[name] = np.tile(of_layout[slice(*layout.slices[name])], (90, 1))
    directions = list(permutations(scales, 2))
    for answers in (truth, mean):
        found = translation.make(inputs)(0, [answers[target] for _, target in directions], None)
        for source, target in directions:
            name = f"{source}_to_{target}"
            expected = found[f"{name}/rmse_of_mean"] if answers is mean else 0.0
            assert found[f"{name}/rmse"] == pytest.approx(expected, abs=1e-5)
            both = np.intersect1d(counts[source].cells, counts[target].cells)
            assert found[f"{name}/cells"] == len(both) > 10
            errors = (mean[target] - truth[target])[both]
            assert found[f"{name}/rmse_of_mean"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.2)


def test_partners_that_are_the_nearest_score_0_and_the_farthest_1(held_out_inputs, given):
    inputs = with_objectives(held_out_inputs, contrastive_alignment=ContrastiveAlignmentConfig(weight=1.0))
    angles = np.linspace(0, np.pi, 90, endpoint=False)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for protein, expected in ((vectors, 0.0), (-vectors, 1.0)):
        found = matching.make(inputs)(0, [{"rna": vectors, "protein": protein}], None)
        assert found["rna+protein/foscttm"] == expected
        assert 10 < found["rna+protein/cells"] < 90


def test_a_run_that_does_not_translate_or_align_is_not_asked(held_out_inputs):
    for evaluator, objective in ((translation, "cross_modal_translation"), (matching, "contrastive_alignment")):
        with pytest.raises(CannotEvaluate, match=f"does not train {objective}"):
            evaluator.make(held_out_inputs())


@pytest.fixture
def of_a_model(held_out_inputs, monkeypatch):
    """Translation, probe and matching of an untrained model whose weights were shaken."""
    monkeypatch.setattr(whole_cells, "row_width", lambda length: 768)  # one program each
    objectives = ObjectivesConfig(
        cross_modal_translation=CrossModalTranslationConfig(weight=1.0, directions=("rna>protein",)),
        contrastive_alignment=ContrastiveAlignmentConfig(weight=1.0, projection_dim=8, negatives="all"),
    )
    usual = held_out_inputs().config

    def found(linear_path: bool, shake: float):
        model = replace(usual.model, linear_path=linear_path, num_layers=1)
        inputs = held_out_inputs(1, replace(usual, objectives=objectives, model=model))
        with jax.set_mesh(inputs.mesh):
            params = jax.device_put(
                shaken(jax.jit(inputs.model.init)(jax.random.key(0)), shake), replicated(inputs.mesh)
            )
            constants = jax.device_put(inputs.model.constants, replicated(inputs.mesh))
            return {
                evaluator.__name__.split(".")[-1]: evaluator.make(inputs)(0, params, constants)
                for evaluator in (translation, probe, matching)
            }

    return found


@pytest.mark.slow
def test_an_untrained_model_without_linear_path_translates_no_better_than_the_mean(of_a_model):
    """And the others run with a model, too."""
    found = of_a_model(linear_path=False, shake=0.0)
    own = found["translation"]
    assert own["rna_to_protein/rmse"] == pytest.approx(own["rna_to_protein/rmse_of_mean"], rel=0.05)
    assert found["matching"]["rna+protein/foscttm"] > 0.3
    assert 0 < found["probe"]["macro_f1"] < 1
    assert not any("linear_path_alone" in metric for own in found.values() for metric in own)


@pytest.mark.slow
def test_the_linear_path_alone_stands_beside_every_score_of_a_model_that_has_one(of_a_model):
    found = of_a_model(linear_path=True, shake=0.3)
    for name, metric in (
        ("translation", "rna_to_protein/rmse"),
        ("probe", "macro_f1"),
        ("probe", "accuracy"),
        ("matching", "rna+protein/foscttm"),
    ):
        assert np.isfinite(found[name][f"{metric}_linear_path_alone"])
    own = found["translation"]
    assert own["rna_to_protein/rmse_linear_path_alone"] != own["rna_to_protein/rmse"]
    assert found["matching"]["rna+protein/foscttm_linear_path_alone"] != found["matching"]["rna+protein/foscttm"]
