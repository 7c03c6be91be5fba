"""A run that is judged while it trains: what is due when, failures, the best checkpoint, patience, deaths."""

from collections import Counter
from dataclasses import replace

import jax
import pytest
from test_loop import SyntheticData

from scmbert_jax.config import ModalityConfig, TrainConfig, ValidationConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.training.goodput import read_goodput
from scmbert_jax.training.loop import Outcome, pretrain
from scmbert_jax.training.run_folder import read_metrics
from scmbert_jax.training.validation import Validation, read_best, stopped_early


class Killed(BaseException):
    """Stands for a process that is gone while it evaluates."""


@pytest.fixture
def judged(tiny_config, tiny_layout, tmp_path):
    """(evaluators, fields of `ValidationConfig`) -> how a run of 6 steps ends; the steps that it drew; its rows of
    evaluations as (step, what it says without the identity of the cells)."""
    rna = replace(tiny_config.modalities, protein=ModalityConfig(0), atac=ModalityConfig(0))
    small = replace(tiny_config.model, num_layers=1)
    train = TrainConfig(num_steps=6, log_every=1, checkpoint_every=100, keep_checkpoints=1)
    steps, folder = [], tmp_path / "run"

    def run(evaluators, identity="8 of made", **fields):
        validation = ValidationConfig(evaluators=tuple(evaluators), **fields)
        config = replace(tiny_config, modalities=rna, model=small, train=train, validation=validation)
        functions = {entry.partition(":")[0]: function for entry, function in evaluators.items()}
        data = SyntheticData(config, tiny_layout, steps.append)
        judge = Validation(identity, lambda model, mesh: functions)
        return pretrain(config, data, folder, validation=judge, devices=jax.devices()[:1], show_progress=False)

    def rows():
        found = [row for row in read_metrics(folder / "metrics.jsonl") if "validation/cells" in row]
        return [(row["step"], {k: v for k, v in row.items() if k not in ("step", "validation/cells")}) for row in found]

    run.steps, run.rows, run.folder = steps, rows, folder
    return run


@pytest.mark.slow
def test_a_run_killed_while_it_evaluates_trains_no_step_again_and_writes_no_row_twice(judged):
    calls, alive = Counter(), []

    def first(step, params, constants):
        calls["first", step] += 1
        return {"value": step}

    def second(step, params, constants):
        calls["second", step] += 1
        if step == 4 and not alive:
            alive.append(True)
            raise Killed
        return {"value": step}

    for again in (False, True):
        if again:
            assert judged({"first": first, "second": second}, every=2) == Outcome(6)
        else:
            with pytest.raises(Killed):
                judged({"first": first, "second": second}, every=2)
    assert judged.steps == list(range(6))
    expected = [(step, {f"validation/{name}/value": step}) for step in (2, 4, 6) for name in ("first", "second")]
    assert judged.rows() == expected
    # What was due at the step it continued from was done: the evaluator that had not come to its end, and no other.
    assert calls == Counter(dict.fromkeys(calls, 1)) + Counter({("second", 4): 1})
    assert len(calls) == 6
    assert read_goodput(judged.folder).seconds["eval"] > 0
    assert judged({"first": first, "second": second}, every=2) == Outcome(6)  # a finished run stays as it is
    assert judged.rows() == expected
    # Of other cells nothing is known yet.
    assert judged({"first": first, "second": second}, identity="9 of made", every=2) == Outcome(6)
    assert judged.rows() == expected + expected[-2:]
    assert judged.steps == list(range(6))


@pytest.mark.slow
def test_an_evaluator_that_fails_is_told_and_the_run_goes_on(judged, capsys):
    def broken(step, params, constants):
        raise ValueError("no such cell")

    outcome = judged({"broken": broken, "whole:3": lambda step, params, constants: {"a": float("nan")}}, every=4)
    assert outcome == Outcome(6, failed_evaluations=2)
    error = {"validation/broken/error": "ValueError: no such cell"}
    nothing = {"validation/whole/a": None}
    assert judged.rows() == [(3, nothing), (4, error), (6, error), (6, nothing)]
    assert (
        "step 4: the evaluator broken failed (ValueError: no such cell); training continues" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_patience_ends_the_run_once(judged, tiny_config):
    values = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 0.5}
    evaluators = {"loss": lambda step, params, constants: {"loss": values[step]}}
    fields = {"every": 1, "best": "loss/loss", "patience": 2}
    assert judged(evaluators, **fields) == Outcome(4, stopped_early=True)
    assert read_best(judged.folder) == (2, "loss/loss", 1.0)
    assert sorted(path.name for path in (judged.folder / "checkpoints").iterdir()) == ["2", "4"]
    assert (
        stopped_early(judged.folder, replace(tiny_config, validation=ValidationConfig(evaluators=("loss",), **fields)))
        == 4
    )
    assert judged(evaluators, **fields) == Outcome(4, stopped_early=True)
    assert judged.steps == list(range(4))
    with pytest.raises(ConfigError, match=r"validation\.best is 'loss/nll', but the evaluator loss gives loss"):
        judged(evaluators, every=1, best="loss/nll")
