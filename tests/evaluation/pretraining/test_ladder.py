"""Loss against compute, from rows of runs."""

import json
from pathlib import Path

import pytest
from conftest import scmbert

from scmbert_jax.config import DataConfig, ExperimentConfig, ModalitiesConfig, ModalityConfig, ModelConfig, to_dict
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.pretraining.ladder import ladder_figure, read_curve
from scmbert_jax.models.flops import counts_of_full_cells
from scmbert_jax.objectives.mixture import mixture_flops

METRIC, BESIDE = "validation/masked/bits", "validation/masked/marginal_bits"


def make_run(folder: Path, width: int, seed: int = 0, drop: float = 0.1) -> ExperimentConfig:
    """40 steps of 2 s, evaluated at 20 and 40; killed at 30 and continued from 20."""
    folder.mkdir()
    config = ExperimentConfig(
        seed=seed,
        modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=16)),
        data=DataConfig(global_batch_size=8),
        model=ModelConfig(embed_dim=width, num_layers=2, num_heads=1, head_dim=width, mlp_dim=4 * width),
    )
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    rows = [{"step": 10, "loss": 1.0}, {"step": 20, METRIC: 2.0, BESIDE: 2.1}, {"step": 40, METRIC: 2.0 - drop}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger = [{"time": 0.0, "start": 0}]
    ledger += [
        {"time": 1.0, "from_step": first, "to_step": first + 10, "seconds": {"step": 20.0, "eval": 7.0, "compile": 9.0}}
        for first in (0, 10, 20)
    ]
    ledger += [{"time": 2.0, "start": 20}]
    ledger += [{"time": 3.0, "from_step": 20, "to_step": 40, "seconds": {"step": 50.0, "save": 3.0}}]
    (folder / "goodput.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    return config


def test_points_have_the_operations_and_seconds_of_the_steps_until_them(tmp_path):
    config = make_run(tmp_path / "run", 8)
    curve = read_curve(tmp_path / "run", METRIC, [BESIDE])
    one_step = mixture_flops(config, counts_of_full_cells(config, 8))
    assert curve.steps.tolist() == [20, 40]
    assert curve.flops == pytest.approx([20 * one_step, 40 * one_step])
    assert curve.seconds == pytest.approx([40, 90])  # the ten steps that a kill took are not in it
    assert curve.values.tolist() == [2.0, 1.9]
    assert curve.beside == {BESIDE: 2.1}


def test_seeds_of_a_rung_share_a_colour_and_the_verb_draws_and_prints(tmp_path):
    for name, width, seed in (("small", 8, 0), ("small_1", 8, 1), ("large", 16, 0)):
        make_run(tmp_path / name, width, seed, drop=width / 50)
    runs = [tmp_path / name for name in ("small", "small_1", "large")]
    lines = ladder_figure([read_curve(run, METRIC) for run in runs], METRIC).axes[0].lines
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()

    figure = tmp_path / "ladder.png"
    ran = scmbert("evaluate", "ladder", *runs, "-o", figure, "--metric", METRIC, "--beside", BESIDE)
    assert ran.code == 0, ran.err
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "| large" in ran.out
    assert "1.6800" in ran.out  # 2.0, less 16/50
    assert "2.1000" in ran.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metric", "validation/loss/loss"), "no row has 'validation/loss/loss'; there are validation/masked/bits"),
        (("-o", "ladder.txt"), "ends in .png, .svg or .pdf"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, options, message):
    make_run(tmp_path / "run", 8)
    if "-o" not in options:
        options = ("-o", str(tmp_path / "ladder.png"), *options)
    ran = scmbert("evaluate", "ladder", tmp_path / "run", *options)
    assert ran.code == ConfigError.exit_code
    assert message in ran.err
