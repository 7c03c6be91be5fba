"""The loop on synthetic batches: resume, signals, refusals. The same on real corpora: tests/test_end_to_end.py."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import synthetic_tokens

from scmbert_jax.errors import CheckpointError, ConfigError, TrainingError
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.masked_modeling.objective import choose_masked
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh
from scmbert_jax.random_keys import row_keys, step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.checkpoint import RunCheckpoints
from scmbert_jax.training.goodput import read_goodput
from scmbert_jax.training.loop import Outcome, _StopOnSignal, pretrain
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.run_folder import read_metrics
from scmbert_jax.training.train_state import abstract_state

TIMINGS = ("cells_per_second", "step_seconds", "data_wait_fraction")


class SyntheticData:
    """Batches without a corpus; `at_step` is called before the batch of a step is given."""

    def __init__(self, config, layout, at_step=lambda step: None):
        self.config, self.layout, self.at_step = config, layout, at_step
        self.fingerprint, self.feature_space_hash = "f" * 64, "a" * 64
        self.description = {"corpora": [{"path": "made"}], "options": {}, "order_version": 1}
        self.covariates = {"technical_batch": ["1", "2", "3"]}
        self.information = {"paired_cells": 16, "links": {"protein": 3}}

    def batches(self, start_step, stop_step):
        for step in range(start_step, stop_step):
            self.at_step(step)
            yield step, synthetic_tokens(self.layout, self.config, step, self.config.data.global_batch_size)

    def save_features(self, folder: Path):
        (folder / "feature_space.parquet").write_bytes(b"features")


def run(config, layout, folder, at_step=lambda step: None, devices=1):
    data = SyntheticData(config, layout, at_step)
    return pretrain(config, data, folder, devices=jax.devices()[:devices], show_progress=False)


def rows(folder):
    return [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def final_state(config, layout, folder, step=20):
    model = ModelDefinition(config, layout)
    abstract = abstract_state(model, make_optimizer(config, model), make_mesh(config.mesh, jax.devices()[:1]))
    checkpoints = RunCheckpoints(folder / "checkpoints", 3)
    try:
        return jax.device_get(checkpoints.restore(step, abstract))
    finally:
        checkpoints.close()


def assert_bit_equal(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


class Killed(Exception):
    """Stands for a process that is gone: nothing after it runs, nothing is saved."""


def kill_at(step):
    def at_step(current):
        if current == step:
            raise Killed

    return at_step


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tiny_layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(tiny_config, tiny_layout, folder).step == 20
    return folder


def test_a_run_folder_holds_what_is_needed_to_repeat_the_run(undisturbed, tiny_config):
    assert {path.name for path in undisturbed.iterdir()} >= {
        "config.json",
        "provenance.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "feature_space.parquet",
    }
    provenance = json.loads((undisturbed / "provenance.json").read_text())
    assert provenance["corpus_fingerprint"] == "f" * 64
    assert provenance["versions"]["jax"] == jax.__version__
    assert provenance["git_commit"]
    assert provenance["information"] == {"paired_cells": 16, "links": {"protein": 3}, "labels": False}
    assert list((undisturbed / "tensorboard").iterdir())
    assert [row["step"] for row in rows(undisturbed)] == list(range(1, 21))


def test_only_the_newest_checkpoints_are_kept(undisturbed):
    assert sorted(int(path.name) for path in (undisturbed / "checkpoints").iterdir()) == [10, 15, 20]


def in_tensorboard(run_dir):
    """(tag, step) -> value, as TensorBoard shows it: a file that starts at a step hides later ones of those before."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = {}
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.session_log.status == SessionLog.START:
                shown = {at: value for at, value in shown.items() if at[1] < event.step}
            shown |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return shown


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit_with_every_row_in_tensorboard(
    undisturbed, tiny_config, tiny_layout, tmp_path
):
    def kill_on_the_spot(step):
        if step == 13:  # what is on disk at this moment is all that is left
            shutil.copytree(tmp_path / "killed", tmp_path / "run")
            raise Killed

    with pytest.raises(Killed):
        run(tiny_config, tiny_layout, tmp_path / "killed", kill_on_the_spot)
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert {step for _, step in in_tensorboard(tmp_path / "run")} == {row["step"] for row in read_metrics(metrics)}
    with metrics.open("r+") as file:  # a crash of the machine tears a line, and what comes after it is whole
        lines = file.read().splitlines(keepends=True)
        file.seek(0)
        file.writelines([*lines[:2], lines[2][:20] + "\n", *lines[2:]])
    assert run(tiny_config, tiny_layout, tmp_path / "run").step == 20
    assert rows(tmp_path / "run") == rows(undisturbed)
    numbers = {
        (name, row["step"]): np.float32(value)
        for row in read_metrics(metrics)
        for name, value in row.items()
        if isinstance(value, float)
    }
    assert in_tensorboard(tmp_path / "run") == numbers
    assert_bit_equal(
        final_state(tiny_config, tiny_layout, tmp_path / "run"), final_state(tiny_config, tiny_layout, undisturbed)
    )


@pytest.mark.slow
def test_sigterm_saves_the_step_it_reached_and_the_run_continues_bit_for_bit(
    undisturbed, tiny_config, tiny_layout, tmp_path
):
    def terminate(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = run(tiny_config, tiny_layout, tmp_path / "run", terminate)
    assert outcome.interrupted
    assert outcome.step == 8
    assert (tmp_path / "run" / "checkpoints" / "8").is_dir()
    assert run(tiny_config, tiny_layout, tmp_path / "run") == Outcome(20)
    assert rows(tmp_path / "run") == rows(undisturbed)
    assert_bit_equal(
        final_state(tiny_config, tiny_layout, tmp_path / "run"), final_state(tiny_config, tiny_layout, undisturbed)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_to_stop_unless_the_caller_ignores_it(number):
    before = signal.signal(number, signal.SIG_DFL)  # a shell that runs the tests in the background ignores SIGINT
    try:
        with _StopOnSignal() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        with _StopOnSignal() as stop:
            os.kill(os.getpid(), number)
            assert not stop.requested
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_a_run_goes_from_one_device_to_two_to_eight_to_four_with_the_same_masks(
    undisturbed, tiny_config, tiny_layout, tmp_path
):
    for devices, dies_at in ((1, 6), (2, 11), (8, 16)):
        with pytest.raises(Killed):
            run(tiny_config, tiny_layout, tmp_path / "run", kill_at(dies_at), devices=devices)
    run(tiny_config, tiny_layout, tmp_path / "run", devices=4)
    for alone, moved in zip(rows(undisturbed), rows(tmp_path / "run"), strict=True):
        weights = {name for name in alone if name.endswith("weight")}
        assert len(weights) > 3
        assert {name: alone[name] for name in weights} == {name: moved[name] for name in weights}
        assert alone["loss"] == pytest.approx(moved["loss"], rel=2e-4)  # float32 sums over devices in another order


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_masks_of_a_batch_are_bit_for_bit_the_same_on_any_number_of_devices(tiny_config, tiny_batch, devices):
    config, batch = tiny_config.objectives.masked_modeling, tiny_batch(3)

    @jax.jit
    def masks(batch):
        return choose_masked(pack_tokens(batch), config, row_keys(step_key(tiny_config.seed, 3), batch.row))

    def on(number):
        mesh = make_mesh(tiny_config.mesh, jax.devices()[:number])
        with jax.set_mesh(mesh):
            placed = batch_to_devices(batch, mesh)
            assert_bit_equal(jax.device_get(placed), batch)
            return jax.device_get(masks(placed))

    assert_bit_equal(on(1), on(devices))


@pytest.mark.slow
def test_going_back_to_an_older_checkpoint_leads_to_the_same_run(undisturbed, tiny_config, tiny_layout, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    first = []

    def at_step(step):
        first.append(step)

    data = SyntheticData(tiny_config, tiny_layout, at_step)
    options = {"devices": jax.devices()[:1], "show_progress": False, "restore_step": 10}
    assert pretrain(tiny_config, data, tmp_path / "run", **options).step == 20
    assert first == list(range(10, 20))
    assert rows(tmp_path / "run") == rows(undisturbed)
    assert_bit_equal(
        final_state(tiny_config, tiny_layout, tmp_path / "run"), final_state(tiny_config, tiny_layout, undisturbed)
    )
    aside = tmp_path / "run" / "set_aside" / "after-step-10"
    assert sorted(path.name for path in aside.iterdir()) == ["15", "20"]


@pytest.mark.slow
def test_the_ledger_of_time_adds_up_over_a_death(tiny_config, tiny_layout, tmp_path):
    before = time.time()
    with pytest.raises(Killed):
        run(tiny_config, tiny_layout, tmp_path / "run", kill_at(13))
    time.sleep(0.5)
    run(tiny_config, tiny_layout, tmp_path / "run")
    passed = time.time() - before
    found = read_goodput(tmp_path / "run")
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=0.01)
    assert found.wall == pytest.approx(passed, rel=0.01, abs=0.5)
    assert (found.starts, found.steps_again) == (2, 2)  # rows of steps 11 and 12; the 13th died before its own
    assert found.idle >= 0.5
    assert all(found.seconds[name] > 0 for name in ("init", "compile", "data_wait", "step", "save", "lost"))


def test_a_finished_run_is_left_as_it_is(undisturbed, tiny_config, tiny_layout):
    files = [undisturbed / name for name in ("metrics.jsonl", "goodput.jsonl")]
    before = [path.read_bytes() for path in files]
    assert run(tiny_config, tiny_layout, undisturbed) == Outcome(20)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_config, tiny_layout, tmp_path, monkeypatch
):
    import conftest

    honest = synthetic_tokens

    def poisoned(layout, config, step, batch_size):
        batch = honest(layout, config, step, batch_size)
        if step == 8:
            tokens = batch.modalities["rna"]
            library = np.full_like(tokens.library_size, np.nan)
            batch.modalities["rna"] = tokens._replace(library_size=library)
        return batch

    monkeypatch.setitem(globals(), "synthetic_tokens", poisoned)
    assert conftest.synthetic_tokens is honest
    with pytest.raises(TrainingError, match=r"step 9: loss nan.* step 5.*run/nonfinite"):
        run(tiny_config, tiny_layout, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["5"]
    kept = tmp_path / "run" / "nonfinite"
    record = json.loads((kept / "step-9.process-0.json").read_text())
    assert (record["batch_of_step"], record["last_checkpoint"], record["objective"]) == (8, 5, "masked_modeling")
    assert record["metrics"]["loss"] == "nan"
    assert record["not_finite_in_the_batch"] == ["rna.library_size"]
    batch = poisoned(tiny_layout, tiny_config, 8, 16)
    with np.load(kept / "step-9.process-0.npz") as arrays:
        np.testing.assert_array_equal(arrays["rna.counts"], batch.modalities["rna"].counts)
        assert arrays["cell_index"].tolist() == record["cell_index"] == batch.cell_index.tolist()


def test_another_configuration_is_refused_with_the_fields(undisturbed, tiny_config, tiny_layout):
    other = dataclasses.replace(tiny_config, optimizer=dataclasses.replace(tiny_config.optimizer, beta2=0.5))
    with pytest.raises(ConfigError, match=r"optimizer.beta2: 0.98 there, 0.5 now"):
        run(other, tiny_layout, undisturbed)


@pytest.mark.parametrize("field", ["fingerprint", "feature_space_hash"])
def test_another_corpus_or_feature_space_is_refused(undisturbed, tiny_config, tiny_layout, field):
    data = SyntheticData(tiny_config, tiny_layout)
    setattr(data, field, "b" * 64)
    with pytest.raises(CheckpointError, match=r"started on another (corpus|feature space)"):
        pretrain(tiny_config, data, undisturbed, devices=jax.devices()[:1], show_progress=False)


def test_another_version_of_the_order_is_refused(undisturbed, tiny_config, tiny_layout):
    data = SyntheticData(tiny_config, tiny_layout)
    data.description["order_version"] = 2
    with pytest.raises(CheckpointError, match=r"in an order of version 1, this program in one of version 2"):
        pretrain(tiny_config, data, undisturbed, devices=jax.devices()[:1], show_progress=False)


def test_a_damaged_checkpoint_stops_the_run_instead_of_starting_anew(undisturbed, tiny_config, tiny_layout, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "20"
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 1000 and "/d/" in str(path)]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoints/20: this checkpoint cannot be read"):
        run(tiny_config, tiny_layout, tmp_path / "run")


@pytest.mark.slow
def test_a_second_run_on_the_same_folder_is_refused(tiny_config, tiny_layout, tmp_path):
    def second(step):
        if step == 1:
            # The first run forbids implicit transfers in this thread; the second is to stand for another process.
            refusal = pytest.raises(CheckpointError, match="another process trains in this run folder")
            with jax.transfer_guard("allow"), refusal:
                run(tiny_config, tiny_layout, tmp_path / "run")
            raise Killed

    with pytest.raises(Killed):
        run(tiny_config, tiny_layout, tmp_path / "run", second)


def test_a_folder_that_cannot_be_made_is_named(tiny_config, tiny_layout, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"file/run: the run folder cannot be written"):
        run(tiny_config, tiny_layout, tmp_path / "file" / "run")


@pytest.mark.slow
def test_a_full_disk_while_saving_is_reported_and_keeps_the_last_good_checkpoint(
    tiny_config, tiny_layout, tmp_path, monkeypatch
):
    honest = RunCheckpoints.save

    def fill_the_disk_at_ten(self, step, state):
        if step == 10:
            # The save runs into a folder that takes no more bytes: what a full disk looks like to Orbax.
            monkeypatch.setattr(
                type(self._checkpointer),
                "save_async",
                lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
            )
        honest(self, step, state)

    monkeypatch.setattr(RunCheckpoints, "save", fill_the_disk_at_ten)
    with pytest.raises(CheckpointError, match=r"step 10 .*No space left.* step 5"):
        run(tiny_config, tiny_layout, tmp_path / "run")
    monkeypatch.undo()
    assert run(tiny_config, tiny_layout, tmp_path / "run").step == 20
