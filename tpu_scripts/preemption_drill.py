#!/usr/bin/env python3
"""Kills a part of a run on purpose, and proves from its run folder that it continued without loss.

    preemption_drill.py local --run-dir RUN --signal KILL -- scmbert pretrain tiny --corpus DIR --run-dir RUN --steps 60
    preemption_drill.py gke --run-dir /mnt/runs/1 --name run1
    preemption_drill.py slurm --run-dir /shared/run1 --name 4711
    preemption_drill.py queued-resource --run-dir /mnt/runs/1 --name pod --zone ZONE --restart 'run_on_all_hosts.sh ...'

The run folder must be seen from here. `local` starts the run itself, and lets it finish; the others take one that is
under way. On GKE and Slurm the run starts again by itself, on a queued resource by the command --restart. What must
hold afterwards:

- it was started again, and continued from a checkpoint at least as new as the newest at the moment of the signal;
- what was logged up to that checkpoint stands there unchanged, every step once, none missing;
- steps after it that had to be done again have the same loss and saw the same number of masked values.

Exit code 0: all held; 1: something did not; 2: wrong arguments; 3: the run did not do what it was waited for.
"""

import argparse
import contextlib
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What takes one worker away, by platform, and what of it follows the signal.
PREEMPT = {
    "gke": "kubectl --namespace={namespace} delete pod --wait=false --grace-period={grace} "
    "--selector=jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/job-index=0,"
    "batch.kubernetes.io/job-completion-index={worker}",
    "slurm": "scancel --signal={signal} {name}.0",  # all processes of the job's one step
    # By the name of the process, exactly: by its arguments, the shell that looks for it would be found, too.
    "queued-resource": "gcloud compute tpus tpu-vm ssh {name} --zone={zone} --worker={worker} "
    "--command='pkill -{signal} -x scmbert'",
}
GRACE = {"TERM": 120, "KILL": 1}  # seconds until Kubernetes kills


class DrillError(Exception):
    """The run did not do what the drill waited for."""


@dataclass(frozen=True)
class Progress:
    """What a run folder shows at one moment.

    Attributes:
      rows: of metrics.jsonl that have a loss, without lines that are cut off.
      checkpoints: steps of complete ones, oldest first.
      starts: how often the run was started: each start writes a TensorBoard file of its own.
    """

    rows: list[dict[str, Any]]
    checkpoints: list[int]
    starts: int

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def checkpoint(self) -> int:
        return self.checkpoints[-1] if self.checkpoints else 0


def progress_of(run_dir: Path) -> Progress:
    """Reads a run folder, also one that is not there yet or is being written."""
    rows = []
    metrics, checkpoints, events = run_dir / "metrics.jsonl", run_dir / "checkpoints", run_dir / "tensorboard"
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if "loss" in row:  # others tell of changes and of evaluations, at steps that have a row already
                rows.append(row)
    steps = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.exists() else []
    return Progress(rows, sorted(steps), len(list(events.iterdir())) if events.exists() else 0)


def failures(before: Progress, after: Progress, log_every: int) -> list[str]:
    """What did not hold, in words; empty when the run continued as it should.

    `before`: at the moment of the signal, or at the death of the process; `after`: once it has gone on.
    """
    found = []
    if after.starts <= before.starts:
        found.append("the run was not started again")
    steps = [row["step"] for row in after.rows]
    twice = sorted({step for step in steps if steps.count(step) > 1})
    if twice:
        found.append(f"steps logged twice: {twice}")
    elif steps != sorted(steps):
        found.append("steps are not in order")
    missing = sorted(set(range(log_every, after.step + 1, log_every)) - set(steps))
    if missing:
        found.append(f"steps missing: {missing}")
    kept = [row for row in before.rows if row["step"] <= before.checkpoint]
    if after.rows[: len(kept)] != kept:
        found.append(f"rows up to the checkpoint of step {before.checkpoint} changed: the run went back behind it")
    again = {row["step"]: row for row in after.rows}
    for row in before.rows[len(kept) :]:
        other = again.get(row["step"])
        if other is None:
            found.append(f"step {row['step']} was lost")
        elif other["loss_weight"] != row["loss_weight"] or not same_loss(row["loss"], other["loss"]):
            found.append(f"step {row['step']} had loss {row['loss']} before and {other['loss']} after")
    if after.step <= before.step:
        found.append(f"no step after {before.step}")
    return found


def same_loss(one: float | None, other: float | None) -> bool:
    """None: no step of the row had anything to learn from."""
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=1e-4))


def wait_until(what: str, holds: Callable[[], bool], patience: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Raises `DrillError` when it does not come to hold in time, or the run is not alive any more."""
    until = time.monotonic() + patience
    while not holds():
        if not alive():
            raise DrillError(f"the run ended before {what}")
        if time.monotonic() > until:
            raise DrillError(f"no {what} within {patience:.0f} s (--patience)")
        time.sleep(0.1)


def may_be_killed(run_dir: Path) -> bool:
    """Whether something would be lost, and not everything: there is a checkpoint, and a step after it."""
    now = progress_of(run_dir)
    return 0 < now.checkpoint < now.step


def start(command: list[str]) -> subprocess.Popen:
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    return subprocess.Popen(command)


def ended_with(process: subprocess.Popen, patience: float) -> int:
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        raise DrillError(f"the run did not end within {patience:.0f} s (--patience)") from None


def drill_here(options: argparse.Namespace, command: list[str]) -> tuple[Progress, Progress]:
    """Starts the run, kills it, starts it again and lets it finish: (at its death, at the end)."""
    run_dir, patience = options.run_dir, options.patience
    process = start(command)
    try:
        wait_until("checkpoint", lambda: may_be_killed(run_dir), patience, lambda: process.poll() is None)
        process.send_signal(signal.Signals[f"SIG{options.signal}"])
        print(f"the run ended with exit code {ended_with(process, patience)}", file=sys.stderr, flush=True)
    finally:
        if process.poll() is None:
            process.kill()
    before = progress_of(run_dir)
    again = ended_with(start(command), patience)
    if again != 0:
        raise DrillError(f"started again, the run ended with exit code {again}")
    return before, progress_of(run_dir)


def drill_there(options: argparse.Namespace) -> tuple[Progress, Progress]:
    """Takes a worker of a running run away, and waits for a newer checkpoint: (before, after)."""
    run_dir, patience = options.run_dir, options.patience
    wait_until("checkpoint", lambda: may_be_killed(run_dir), patience)
    before = progress_of(run_dir)
    code = start(shlex.split(preemption(options))).wait()
    if code != 0:
        raise DrillError(f"exit code {code} of: {preemption(options)}")
    if options.restart:
        time.sleep(options.restart_delay)
        start(shlex.split(options.restart))  # continues after the drill, as long as the run
    wait_until("second start", lambda: progress_of(run_dir).starts > before.starts, patience)

    def went_on() -> bool:
        now = progress_of(run_dir)
        return now.checkpoint > before.checkpoint and now.step > before.step

    wait_until("newer checkpoint", went_on, patience)
    return before, progress_of(run_dir)


def preemption(options: argparse.Namespace) -> str:
    return PREEMPT[options.platform].format(**vars(options), grace=GRACE[options.signal])


def plan(options: argparse.Namespace, command: list[str]) -> str:
    """What would be run, line by line."""
    wait = f"# once {options.run_dir} has a checkpoint and a step after it:"
    if options.platform == "local":
        return "\n".join((shlex.join(command), wait, f"kill -{options.signal} PID", shlex.join(command)))
    restart = [f"sleep {options.restart_delay}", options.restart] if options.restart else []
    return "\n".join((wait, preemption(options), *restart, "# until it was started again and has a newer checkpoint"))


def arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the command after `--`. Wrong ones exit with 2."""
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", choices=("local", *PREEMPT))
    parser.add_argument("--run-dir", type=Path, required=True, help="run folder, as it is seen from here")
    parser.add_argument("--name", help="JobSet, Slurm job id, or TPU VM")
    parser.add_argument("--worker", type=int, default=1, help="which host is taken away [1]; 0 is the coordinator")
    parser.add_argument("--signal", choices=("TERM", "KILL"), default="KILL", help="a warning, or none [KILL]")
    parser.add_argument("--namespace", default="default", help="of the JobSet [default]")
    parser.add_argument("--zone", help="of the TPU VM")
    parser.add_argument("--restart", help="queued-resource: the command that starts the run again")
    parser.add_argument(
        "--restart-delay", type=int, default=150, help="seconds before it, for other hosts to end [150]"
    )
    parser.add_argument("--patience", type=float, default=3600, help="seconds to wait for each thing [3600]")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
    options = parser.parse_args(own)
    needed = {"local": (), "gke": ("name",), "slurm": ("name",), "queued-resource": ("name", "zone", "restart")}
    for name in needed[options.platform]:
        if getattr(options, name) is None:
            parser.error(f"{options.platform} needs --{name}")
    if (options.platform == "local") != bool(command):
        parser.error("local needs a command after --, and only local takes one")
    return options, command


def main(words: list[str]) -> int:
    options, command = arguments(words)
    if options.dry_run:
        print(plan(options, command))
        return 0
    try:
        before, after = drill_here(options, command) if options.platform == "local" else drill_there(options)
        train = json.loads((options.run_dir / "config.json").read_text())["train"]
        if before.step >= train["num_steps"]:
            raise DrillError("the run was done before it could be killed: give it more steps")
    except DrillError as error:
        print(f"preemption_drill: {error}", file=sys.stderr)
        return 3
    found = failures(before, after, train["log_every"])
    if options.platform == "local" and options.signal == "TERM" and before.checkpoint < before.step:
        found.append(f"warned at step {before.step}, it saved nothing after step {before.checkpoint}")
    print(f"{options.signal} at step {before.step}, newest checkpoint {before.checkpoint}; now at step {after.step}")
    for failure in found:
        print(f"FAILED: {failure}")
    if not found:
        print("continued: no step lost, none twice, steps done again gave the same loss")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
