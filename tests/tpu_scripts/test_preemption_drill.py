"""The preemption drill: on a real run here, with a stand-in for kubectl elsewhere, and on run folders that lie."""

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY, xla_flags
from fake_tools import SCRIPTS, FakeTools

STEPS = 60
RUN = (sys.executable, "-m", "scmbert_jax.cli", *TINY, "--steps", str(STEPS), "--train.log-every", "2")
RUN = (*RUN, "--train.checkpoint-every", "20", "--data.global-batch-size", "32")


@pytest.fixture(scope="module")
def drill():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("preemption_drill", SCRIPTS / "preemption_drill.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def rows(*steps: int, loss: float = 1.0, seconds: float = 0.5) -> list[dict]:
    return [{"step": step, "loss": loss / step, "loss_weight": 10.0, "step_seconds": seconds} for step in steps]


# --- a real run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """Where programs are kept, so that they are compiled once for all runs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.nightly
@pytest.mark.parametrize(("signal", "exit_code"), [("KILL", -9), ("TERM", 75)])
def test_a_run_here_is_killed_and_continues(
    drill, pbmc_corpus, compiled, tmp_path, capfd, monkeypatch, signal, exit_code
):
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(compiled)))
    run_dir = tmp_path / "run"
    command = (*RUN, "--corpus", pbmc_corpus, "--run-dir", run_dir)
    code = drill.main(["local", "--run-dir", str(run_dir), "--signal", signal, "--", *map(str, command)])
    printed = capfd.readouterr()
    assert code == 0, printed
    assert f"ended with exit code {exit_code}\n" in printed.err
    assert "continued: no step lost, none twice" in printed.out
    assert f"now at step {STEPS}" in printed.out
    assert drill.progress_of(run_dir).starts == 2


def test_a_run_that_ends_by_itself_is_no_drill(drill, tmp_path, capsys):
    code = drill.main(["local", "--run-dir", str(tmp_path), "--", sys.executable, "-c", "pass"])
    assert code == 3
    assert "the run ended before checkpoint" in capsys.readouterr().err


# --- what must hold ---------------------------------------------------------------------------------------------------


def before_and_after(drill):
    """Killed at step 14, continued from checkpoint 10."""
    before = drill.Progress(rows(2, 4, 6, 8, 10, 12, 14), [5, 10], starts=1)
    after = drill.Progress(rows(2, 4, 6, 8, 10) + rows(12, 14, 16, 18, 20, seconds=0.7), [10, 20], starts=2)
    return before, after


def test_a_run_that_continued_has_no_failures(drill):
    assert drill.failures(*before_and_after(drill), log_every=2) == []


@pytest.mark.parametrize(
    ("lie", "failure"),
    [
        (lambda after: replace(after, starts=1), "the run was not started again"),
        (lambda after: replace(after, rows=after.rows[:6] + after.rows[5:]), "steps logged twice: [12]"),
        (lambda after: replace(after, rows=after.rows[:5] + after.rows[6:]), "steps missing: [12]"),
        (lambda after: replace(after, rows=after.rows[::-1]), "steps are not in order"),
        (lambda after: replace(after, rows=rows(*range(2, 22, 2), seconds=0.7)), "the run went back behind it"),
        (lambda after: replace(after, rows=after.rows[:5] + rows(12, 14, 16, loss=1.1)), "step 12 had loss"),
        (lambda after: replace(after, rows=after.rows[:7]), "no step after 14"),
        (lambda after: replace(after, rows=after.rows[:6]), "step 14 was lost"),
    ],
)
def test_each_thing_that_must_hold_is_looked_at(drill, lie, failure):
    before, after = before_and_after(drill)
    assert failure in " ".join(drill.failures(before, lie(after), log_every=2))


def test_another_number_of_masked_values_is_another_batch(drill):
    before, after = before_and_after(drill)
    after.rows[5]["loss_weight"] = 11.0
    assert len(drill.failures(before, after, log_every=2)) == 1


# --- on clusters ------------------------------------------------------------------------------------------------------


def write_run(run_dir: Path, progress) -> None:
    """A run folder that shows `progress`."""
    shutil.rmtree(run_dir, ignore_errors=True)
    for checkpoint in progress.checkpoints:
        (run_dir / "checkpoints" / str(checkpoint)).mkdir(parents=True)
    (run_dir / "tensorboard").mkdir()
    for start in range(progress.starts):
        (run_dir / "tensorboard" / f"events.{start}").touch()
    (run_dir / "config.json").write_text(json.dumps({"train": {"num_steps": 100, "log_every": 2}}))
    (run_dir / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in progress.rows) + '{"step": 22, "lo'
    )


def test_what_a_run_folder_shows_is_read_also_while_it_is_written(drill, tmp_path):
    before, _ = before_and_after(drill)
    assert drill.progress_of(tmp_path) == drill.Progress([], [], 0)
    write_run(tmp_path / "run", before)
    assert drill.progress_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("arguments", "tool", "call"),
    [
        (
            ("gke", "--name", "run1"),
            "kubectl",
            "delete pod --wait=false --grace-period=1 --selector=jobset.sigs.k8s.io/",
        ),
        (("gke", "--name", "run1", "--signal", "TERM"), "kubectl", "delete pod --wait=false --grace-period=120"),
        (("slurm", "--name", "4711"), "scancel", "--signal=KILL 4711.0"),
        (
            ("queued-resource", "--name", "pod", "--zone", "z", "--restart", "start-again", "--restart-delay", "0"),
            "gcloud",
            "compute tpus tpu-vm ssh pod --zone=z --worker=1 --command=pkill -KILL -x scmbert",
        ),
    ],
)
def test_a_worker_is_taken_away_and_the_run_is_watched(drill, tmp_path, capsys, monkeypatch, arguments, tool, call):
    tools = FakeTools(tmp_path / "tools")
    before, after = before_and_after(drill)
    write_run(tmp_path / "after", after)
    write_run(tmp_path / "run", before)
    swap = f'mv "{tmp_path}/run" "{tmp_path}/before" && mv "{tmp_path}/after" "{tmp_path}/run"\n'
    tools.answer(tool, "" if "--restart" in arguments else swap)
    tools.answer("start-again", swap)
    monkeypatch.setenv("PATH", str(tmp_path / "tools" / "bin"), prepend=":")
    code = drill.main([*arguments, "--run-dir", str(tmp_path / "run"), "--patience", "20"])
    assert code == 0, capsys.readouterr()
    assert call in " ".join(tools.calls()[0])
    assert "KILL at step 14, newest checkpoint 10; now at step 20" in capsys.readouterr().out.replace("TERM", "KILL")


def test_a_worker_that_cannot_be_taken_away_is_told_of(drill, tmp_path, capsys, monkeypatch):
    tools = FakeTools(tmp_path / "tools")
    tools.answer("kubectl", "exit 5\n")
    monkeypatch.setenv("PATH", str(tmp_path / "tools" / "bin"), prepend=":")
    write_run(tmp_path / "run", before_and_after(drill)[0])
    assert drill.main(["gke", "--name", "run1", "--run-dir", str(tmp_path / "run")]) == 3
    assert "exit code 5 of: kubectl" in capsys.readouterr().err


def test_a_run_that_does_not_come_back_is_told_of(drill, tmp_path, capsys, monkeypatch):
    tools = FakeTools(tmp_path / "tools")
    tools.answer("scancel")
    monkeypatch.setenv("PATH", str(tmp_path / "tools" / "bin"), prepend=":")
    write_run(tmp_path / "run", before_and_after(drill)[0])
    assert drill.main(["slurm", "--name", "1", "--run-dir", str(tmp_path / "run"), "--patience", "0.3"]) == 3
    assert "no second start within 0 s (--patience)" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("gke", "--name", "a"), ("local", "--", "scmbert", "pretrain", "a b")])
def test_a_dry_run_prints_the_commands_and_runs_none(drill, tmp_path, capsys, arguments):
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own = (*arguments[:place], "--run-dir", str(tmp_path / "run"), "--dry-run")
    assert drill.main([*own, *arguments[place:]]) == 0
    printed = capsys.readouterr().out
    assert ("delete pod" in printed) or printed.count("scmbert pretrain 'a b'") == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gke", "--run-dir", "r"), "gke needs --name"),
        (("queued-resource", "--run-dir", "r", "--name", "pod"), "needs --zone"),
        (("local", "--run-dir", "r"), "local needs a command after --"),
        (("slurm", "--run-dir", "r", "--name", "1", "--", "scmbert"), "only local takes one"),
        (("local", "--", "scmbert"), "--run-dir"),
    ],
)
def test_what_is_missing_is_told(drill, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        drill.main(list(arguments))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
