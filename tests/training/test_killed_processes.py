"""Real processes that are killed: what they leave continues to the very numbers of a run that nobody disturbed."""

import json
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY

from scmbert_jax.errors import INTERRUPTED, CheckpointError
from scmbert_jax.pretrained import export_model
from scmbert_jax.training.run_folder import read_metrics

TIMINGS = ("cells_per_second", "step_seconds", "data_wait_fraction")
STEPS = 24
# Large batches, so that a step takes long enough for a signal to arrive between two checkpoints.
RUN = (*TINY, "--steps", STEPS, "--train.checkpoint-every", "6", "--train.log-every", "1")
RUN = (*RUN, "--data.global-batch-size", "128")

pytestmark = pytest.mark.slow


def rows(run_dir: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]


def assert_same_runs(one: Path, other: Path, tmp_path: Path):
    assert [row["step"] for row in rows(one)] == list(range(1, STEPS + 1))
    assert rows(one) == rows(other)
    first, second = (export_model(run, tmp_path / f"model-{place}").params for place, run in enumerate((one, other)))
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(left, right)


def send_after_step(process: subprocess.Popen, run_dir: Path, step: int, number: int) -> None:
    """Sends a signal once the checkpoint of `step` is complete and rows of later steps are written."""
    until = time.monotonic() + 240
    while not (run_dir / "checkpoints" / str(step)).is_dir() or rows(run_dir)[-1]["step"] < step + 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no checkpoint appeared"
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate(timeout=120)


@pytest.fixture(scope="module")
def undisturbed(pbmc_corpus, run_scmbert, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    ran = run_scmbert(*RUN, "--corpus", pbmc_corpus, "--run-dir", run_dir)
    assert ran.code == 0, ran.err
    return run_dir


def test_a_run_killed_on_the_spot_continues_bit_for_bit(undisturbed, pbmc_corpus, start_scmbert, run_scmbert, tmp_path):
    command = (*RUN, "--corpus", pbmc_corpus, "--run-dir", tmp_path / "run")
    process = start_scmbert(*command)
    send_after_step(process, tmp_path / "run", 12, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoints" / str(STEPS)).exists()
    assert rows(tmp_path / "run")[-1]["step"] > 12  # what the next run has to do again, and to write only once
    ran = run_scmbert(*command)
    assert ran.code == 0, ran.err
    assert_same_runs(tmp_path / "run", undisturbed, tmp_path)


def test_a_run_asked_to_stop_saves_says_so_by_its_exit_code_and_continues_bit_for_bit(
    undisturbed, pbmc_corpus, start_scmbert, run_scmbert, tmp_path
):
    command = (*RUN, "--corpus", pbmc_corpus, "--run-dir", tmp_path / "run")
    process = start_scmbert(*command)
    send_after_step(process, tmp_path / "run", 6, signal.SIGTERM)
    assert process.returncode == INTERRUPTED
    with pytest.raises(CheckpointError, match=rf"step \d+ of {STEPS}.*--unfinished"):
        export_model(tmp_path / "run", tmp_path / "half")
    assert "(unfinished)" in export_model(tmp_path / "run", tmp_path / "half", unfinished=True).steps_in_words()
    reached = [row["step"] for row in rows(tmp_path / "run")][-1]
    assert 6 <= reached < STEPS
    assert (tmp_path / "run" / "checkpoints" / str(reached)).is_dir()
    ran = run_scmbert(*command)
    assert ran.code == 0, ran.err
    assert_same_runs(tmp_path / "run", undisturbed, tmp_path)


def test_a_run_is_not_continued_on_another_corpus(undisturbed, run_scmbert, tmp_path):
    """Beside the others since it needs a run: the same cells in another order are another corpus."""
    build = ("corpus", "build", tmp_path / "corpus", "example:pbmc_mosaic", "--block-size", "64")
    assert run_scmbert(*build, "--seed", "1").code == 0
    before = (undisturbed / "metrics.jsonl").read_bytes()
    ran = run_scmbert(*RUN, "--corpus", tmp_path / "corpus", "--run-dir", undisturbed)
    assert ran.code == 5
    known = json.loads((undisturbed / "provenance.json").read_text())["corpus_fingerprint"]
    assert "started on another corpus, or draws other cells" in ran.err
    assert f"(corpus_fingerprint {known[:12]}" in ran.err
    assert "Traceback" not in ran.err
    assert (undisturbed / "metrics.jsonl").read_bytes() == before
