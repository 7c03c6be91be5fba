"""kill -9 at random moments, also during a save, and on another number of processes and devices each time: the run
always continues, from its newest checkpoint, repeats no batch that it kept and skips none.

SCMBERT_KILLS: how often (20 for the drill; a few by default). SCMBERT_SEED: of the moments.
"""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from killed_run import batch_of, row_digests, train
from test_two_processes import free_port

from scmbert_jax.training.goodput import read_goodput
from scmbert_jax.training.run_folder import read_metrics

KILLS = int(os.environ.get("SCMBERT_KILLS", "3"))
SEED = int(os.environ.get("SCMBERT_SEED", "0"))
# (processes, devices of each): two processes most of the time, and every other kind now and then.
HOSTS = ((2, 1), (2, 2), (2, 1), (1, 1), (2, 1), (2, 4), (2, 1), (1, 4))


def newest_checkpoint(run_dir: Path) -> int:
    folder = run_dir / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    return max(steps, default=0)


def is_saving(run_dir: Path) -> bool:
    """Whether a checkpoint is half written at this moment."""
    folder = run_dir / "checkpoints"
    return folder.exists() and any(not path.name.isdigit() for path in folder.iterdir())


def steps_given(log: Path) -> list[dict]:
    """Batches that a process was given; a line that a kill cut off was not trained on."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Run:
    """A run whose processes are started and killed again and again."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.logs: list[list[Path]] = []
        # Imports what takes seconds once, and forks from there.
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["killed_run", "scmbert_jax.training.loop"])

    def start(self, count: int, devices: int) -> list[multiprocessing.Process]:
        life, port = len(self.logs), free_port()
        self.logs.append([self.run_dir.parent / f"life{life}.process{index}.jsonl" for index in range(count)])
        started = []
        for index, log in enumerate(self.logs[-1]):
            arguments = (self.run_dir, log, port, index, count, devices)
            process = self._processes.Process(target=train, args=arguments)
            process.start()
            started.append(process)
        return started


def kill(processes: list, victims: list) -> None:
    """SIGKILL to `victims`; those that remain end by themselves soon, or are killed by whoever started them."""
    for process in victims:
        process.kill()
    for process in processes:
        process.join(3)
        process.kill()
        process.join()


@pytest.mark.nightly
def test_a_run_that_is_killed_again_and_again_repeats_and_skips_no_batch(tmp_path):
    moments = random.Random(SEED)
    run_dir = tmp_path / "run"
    run, starts, during_saves, all_steps = Run(run_dir), [], 0, 0
    for life in range(KILLS):
        count, devices = HOSTS[life % len(HOSTS)]
        before = newest_checkpoint(run_dir)
        processes = run.start(count, devices)
        until = time.monotonic() + 120
        # Every run comes a little further, so that the test ends; where it dies then is left to chance.
        while newest_checkpoint(run_dir) <= before or len(steps_given(run.logs[-1][0])) < 2:
            assert all(process.is_alive() for process in processes), [process.exitcode for process in processes]
            assert time.monotonic() < until, "no checkpoint"
            time.sleep(0.005)
        if life % 2:
            time.sleep(moments.uniform(0, 0.6))
        else:
            while not is_saving(run_dir) and all(process.is_alive() for process in processes):
                time.sleep(0.0005)
            time.sleep(moments.uniform(0, 0.02))
        victims = moments.choice([processes, processes, processes[:1], processes[-1:]])
        during_saves += is_saving(run_dir)
        kill(processes, victims)
        starts.append(before)
        all_steps = max(all_steps, *(line["step"] + 1 for log in run.logs[-1] for line in steps_given(log)))

    starts.append(newest_checkpoint(run_dir))
    final = run.start(2, 1)
    while newest_checkpoint(run_dir) <= all_steps:
        assert all(process.is_alive() for process in final), [process.exitcode for process in final]
        time.sleep(0.01)
    final[1].terminate()
    for process in final:
        process.join(60)
    assert [process.exitcode for process in final] == [0, 0]
    last = newest_checkpoint(run_dir)

    expected = {step: row_digests(batch_of(step)) for step in range(last + 2)}
    for life, (start, logs) in enumerate(zip(starts, run.logs, strict=True)):
        given = [steps_given(log) for log in logs]
        for lines in given:  # from the newest checkpoint on, step after step, and the rows of this process
            assert [line["step"] for line in lines] == list(range(start, start + len(lines))), life
            assert lines
        for together in zip(*given, strict=False):
            rows = {int(row): digest for line in together for row, digest in line["rows"].items()}
            assert rows == expected[together[0]["step"]], life
    assert all(start > 0 for start in starts[1:]), starts
    assert starts == sorted(starts)
    assert [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")] == list(range(1, last + 1))
    found = read_goodput(run_dir)
    assert found.starts == KILLS + 1
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=0.01)
    print(f"\n{KILLS} kills, {during_saves} of them during a save; starts from steps {starts}, then {last}")
    print(found.text())
