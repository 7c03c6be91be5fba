"""A run that continues with another configuration: what may change, what is told of it, what is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from test_loop import SyntheticData, final_state, rows

from scmbert_jax.config import MaskedModelingConfig, ModalityConfig, load_config
from scmbert_jax.errors import ConfigError
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.continuation import changes
from scmbert_jax.training.loop import pretrain
from scmbert_jax.training.optimizer import learning_rate_schedule
from scmbert_jax.training.run_folder import read_metrics


def changed(config, **fields):
    """`config` with fields of its parts: changed(config, train={"num_steps": 8})."""
    return replace(config, **{part: replace(getattr(config, part), **own) for part, own in fields.items()})


@pytest.fixture(scope="module")
def short_config(tiny_config):
    """As small as a model can be: each way to continue is compiled."""
    silent = {name: replace(getattr(tiny_config.modalities, name), num_tokens=0) for name in ("protein", "atac")}
    return changed(tiny_config, modalities=silent, train={"num_steps": 4, "checkpoint_every": 2})


def run(config, layout, folder, devices=1, **options):
    data = SyntheticData(config, layout)
    return pretrain(config, data, folder, show_progress=False, devices=jax.devices()[:devices], **options)


@pytest.fixture(scope="module")
def short(short_config, tiny_layout, tmp_path_factory):
    """A finished run of 4 steps with checkpoints 2 and 4. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run(short_config, tiny_layout, folder)
    return folder


@pytest.fixture
def copied(short, tmp_path) -> Path:
    return shutil.copytree(short, tmp_path / "run")


@pytest.mark.slow
def test_a_run_goes_on_for_more_steps_by_their_schedule_in_another_precision_and_says_so(
    copied, short_config, tiny_layout, capsys
):
    longer = changed(short_config, train={"num_steps": 6}, model={"compute_dtype": "bfloat16"})
    assert run(longer, tiny_layout, copied, profile_steps=(2, 5)).step == 6
    told = capsys.readouterr().err
    assert "scmbert: train.num_steps: 4 until step 4, now 6" in told
    before, after = learning_rate_schedule(short_config), learning_rate_schedule(longer)
    assert f"{float(after(4)):.3g} at step 4, where that of 4 has {float(before(4)):.3g}" in told
    assert f"{float(after(4)):.3g}" != f"{float(before(4)):.3g}"
    found = read_metrics(copied / "metrics.jsonl")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 4, 5, 6]
    assert found[4] == {
        "step": 4,
        "changed": {"model.compute_dtype": ["float32", "bfloat16"], "train.num_steps": [4, 6]},
    }
    rates = [row["learning_rate"] for row in found if "learning_rate" in row]
    np.testing.assert_allclose(rates[:4], [before(step) for step in range(4)], rtol=1e-6)
    np.testing.assert_allclose(rates[4:], [after(step) for step in (4, 5)], rtol=1e-6)
    assert all(leaf.dtype != "bfloat16" for leaf in jax.tree.leaves(final_state(longer, tiny_layout, copied, 6)))
    assert "--profile-steps 2:5: the run continues from step 4; what remains is traced" in told
    (trace,) = (copied / "profile").rglob("*.xplane.pb")
    lines = [line for plane in jax.profiler.ProfileData.from_file(str(trace)).planes for line in plane.lines]
    names = [event.name for line in lines for event in line.events]
    assert len([name for name in names if re.fullmatch(r"\$loop.py:\d+ dispatched", name)]) == 1  # step 4 alone
    assert load_config(copied / "config.json") == longer
    (record,) = json.loads((copied / "provenance.json").read_text())["continued"]
    assert record.items() >= found[4].items()
    # Now done: the same command again finds nothing to change.
    assert run(longer, tiny_layout, copied).step == 6
    assert read_metrics(copied / "metrics.jsonl") == found


@pytest.mark.slow
def test_another_layout_of_the_machine_continues_with_the_same_masks_and_nearly_the_same_loss(
    short, copied, short_config, tiny_layout
):
    """All at once; in float32 only rounding differs."""
    other = changed(
        short_config,
        train={"num_microbatches": 2, "row_widths": (12,)},
        model={"remat": "full", "scan_layers": False, "attention": "xla_chunked"},
        mesh={"fsdp": 1, "replica": 2},
    )
    run(other, tiny_layout, copied, devices=2, restore_step=2)
    before, after = rows(short), rows(copied)
    assert set(after[2]["changed"]) == {
        *("train.num_microbatches", "train.row_widths", "mesh.fsdp", "mesh.replica"),
        *("model.remat", "model.scan_layers", "model.attention"),
    }
    for a, b in zip(before[2:], after[3:], strict=True):
        assert (a["loss_weight"], a["step"]) == (b["loss_weight"], b["step"])
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)
    assert "masked_modeling/padding" in after[4]  # it was another program


def test_layers_one_by_one_or_scanned_have_the_same_parameters(short_config, tiny_layout):
    unrolled = changed(short_config, model={"scan_layers": False, "remat": "dots", "compute_dtype": "bfloat16"})
    first, second = (ModelDefinition(config, tiny_layout).abstract_params for config in (short_config, unrolled))
    assert first == second


def test_a_change_is_still_told_after_going_back_behind_it(copied, short_config, tiny_layout):
    config = changed(short_config, train={"log_every": 2})  # at the end of the run: nothing is trained
    run(config, tiny_layout, copied)
    run(changed(config, train={"num_steps": 2}), tiny_layout, copied, restore_step=2)
    assert [(row["step"], row.get("changed")) for row in read_metrics(copied / "metrics.jsonl")] == [
        (1, None),
        (2, None),
        (2, {"train.log_every": [1, 2]}),
        (2, {"train.num_steps": [4, 2]}),
    ]


def test_fewer_steps_than_were_done_are_refused_with_the_way_back_which_works(copied, short_config, tiny_layout):
    shorter = changed(short_config, train={"num_steps": 2})
    with pytest.raises(ConfigError, match=r"num_steps is 2, .*step 4 .*--restore-step 2"):
        run(shorter, tiny_layout, copied)
    assert load_config(copied / "config.json") == short_config
    assert run(shorter, tiny_layout, copied, restore_step=2).step == 2
    assert load_config(copied / "config.json") == shorter


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("data", "window_blocks", 3),
        ("model", "embed_dim", 32),
        ("model", "linear_path", False),
        ("model", "attention", "favor"),
        ("objectives", "masked_modeling", MaskedModelingConfig(mask_fraction=0.2)),
        ("optimizer", "warmup_steps", 6),
        ("modalities", "rna", ModalityConfig(num_tokens=8)),
    ],
)
def test_what_makes_another_run_is_refused_by_its_field(short_config, part, field, value):
    with pytest.raises(ConfigError, match=rf"{part}\.{field}.*: .* there, .* now.*another run"):
        changes(Path("run"), short_config, changed(short_config, **{part: {field: value}}))


def test_attention_that_computes_the_same_may_change(short_config):
    for backend in ("xla_chunked", "cudnn", "splash"):
        now = changed(short_config, model={"attention": backend})
        assert changes(Path("run"), short_config, now) == {"model.attention": ("xla", backend)}
