"""Rows of metrics.jsonl: means over steps, each objective by itself, the same after a restart as without."""

import numpy as np
import pytest

from scmbert_jax.training.goodput import GoodputLedger
from scmbert_jax.training.loop import _StepLog
from scmbert_jax.training.metrics import MetricSums, _LogProgress


def values(loss: float, weight: float, **more: float) -> dict[str, float]:
    return {"loss": loss, "loss_weight": weight, "grad_norm": 2.0 * loss, "learning_rate": loss / 10, **more}


def test_a_row_is_sums_over_sums_of_each_objective():
    sums = MetricSums()
    sums.add("masked_modeling", values(2.0, 30.0, rna_nll=3.0, rna_nll_weight=10.0))
    sums.add("contrastive_alignment", values(0.5, 4.0))
    sums.add("masked_modeling", values(6.0, 10.0, rna_nll=1.0, rna_nll_weight=30.0))
    assert sums.row() == {
        "steps": 3,
        "loss": pytest.approx((2 * 3.0 + 0.5) / 3),  # (2 x 30 + 6 x 10) / 40 = 3 in two steps, .5 in one
        "loss_weight": 44.0,
        "grad_norm": pytest.approx(17 / 3),
        "learning_rate": 0.6,
        "contrastive_alignment/steps": 1,
        "contrastive_alignment/loss": 0.5,
        "contrastive_alignment/loss_weight": 4.0,
        "masked_modeling/steps": 2,
        "masked_modeling/loss": 3.0,
        "masked_modeling/loss_weight": 40.0,
        "masked_modeling/rna_nll": 1.5,
        "masked_modeling/rna_nll_weight": 40.0,
    }


def test_what_nothing_was_measured_of_is_no_zero():
    sums = MetricSums()
    sums.add("contrastive_alignment", values(0.0, 0.0, top1=0.0, top1_weight=0.0))
    row = sums.row()
    assert row["loss"] is None
    assert not any(name.startswith(("contrastive_alignment/loss", "contrastive_alignment/top1")) for name in row)
    sums.add("masked_modeling", values(2.0, 1.0))
    assert sums.row()["loss"] == 2.0


class Saved:
    """Stands for the writer and for the checkpoints: what it is given is kept."""

    def __init__(self):
        self.rows, self.steps = [], []

    def write(self, row):
        self.rows.append({name: row[name] for name in ("step", "steps", "loss", "loss_weight")})

    def save(self, step, state):
        self.steps.append(step)


def test_a_run_that_continues_from_a_checkpoint_writes_the_rows_of_one_that_nobody_disturbed(tiny_config):
    train = type(tiny_config.train)(num_steps=20, log_every=4, checkpoint_every=10)
    config = type(tiny_config)(modalities=tiny_config.modalities, train=train)

    def rows(first: int, stop: int) -> list[dict]:
        saved = Saved()
        log = _StepLog(config, None, saved, saved, GoodputLedger(None))
        for done in range(first + 1, stop + 1):
            step = {name: np.float32(value) for name, value in values(1 / done, 10.0 + done).items()}
            log.dispatched(done, "masked_modeling", step, None)
            if done % 10 == 0:
                log.save(done, None)
        return saved.rows

    whole = rows(0, 20)
    assert [(row["step"], row["steps"]) for row in whole] == [(4, 4), (8, 4), (10, 2), (12, 2), (16, 4), (20, 4)]
    again = [row for row in rows(0, 19) if row["step"] <= 10] + rows(10, 20)
    assert again == whole


def test_a_log_gets_few_lines_and_the_last_of_them(capsys):
    progress = _LogProgress(30, 0)
    for step in (3, 6, 9):
        progress.show("loss 1", step)
    progress.close()
    assert capsys.readouterr().err == "step 3/30  loss 1\nstep 9/30  loss 1\n"
