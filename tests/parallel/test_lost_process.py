"""A process of several that hangs, dies or never comes is told of, and the others end: nobody waits in silence."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest
from conftest import REPOSITORY, TINY, scmbert, xla_flags
from test_two_processes import DATA, free_port

from scmbert_jax.errors import ConfigError, HostError
from scmbert_jax.parallel.multihost import check_joined
from scmbert_jax.training.run_folder import read_metrics

HOST_TIMEOUT = 10  # seconds
RUN = (*TINY, *DATA, "--steps", "100000", "--train.log-every", "1", "--host-timeout", HOST_TIMEOUT)


# A process that adds with the others until it is stopped, as a run would: `failing_at_once` stands around the loop.
ADDING = """
import sys
from scmbert_jax.parallel.multihost import failing_at_once, join
join(sys.argv[1], 2, int(sys.argv[2]))
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((2,), ("fsdp",))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["fsdp"], []))
total = jax.jit(lambda x: x.sum(), out_shardings=whole)
with failing_at_once():
    while True:
        assert float(total(jax.make_array_from_process_local_data(split, np.ones(1, np.float32)))) == 2.0
        print("added", flush=True)
"""


def stopped(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.nightly
def test_a_process_that_hangs_is_reported_and_the_other_ends_within_the_time_out(
    pbmc_corpus, start_scmbert, monkeypatch, tmp_path
):
    """Two runs of one and the same command find each other by what srun would tell them."""
    for name, value in (("JOB_ID", "4711"), ("STEP_NODELIST", "localhost"), ("NTASKS", "2"), ("LOCALID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(free_port()))
    metrics = tmp_path / "run" / "metrics.jsonl"
    processes = []
    for index in "01":
        monkeypatch.setenv("SLURM_PROCID", index)
        processes.append(start_scmbert(*RUN, "--multihost", "--corpus", pbmc_corpus, "--run-dir", metrics.parent))
    first, second = processes
    try:
        until = time.monotonic() + 480
        while not metrics.exists() or not read_metrics(metrics):
            assert [process.poll() for process in processes] == [None, None], first.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        second.send_signal(signal.SIGSTOP)
        _, err = first.communicate(timeout=HOST_TIMEOUT + 60)
    finally:
        stopped(processes)
    assert first.returncode not in (0, None)
    assert "scmbert: process 0 of 2: no step finished for 5 s" in err  # ours, at half the time-out
    assert "stopped sending heartbeats" in err  # JAX's, which ends the process


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_other_at_once_with_a_message(dies):
    coordinator = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
    processes = [
        subprocess.Popen([sys.executable, "-c", ADDING, coordinator, str(index)], env=environment, **streams)
        for index in (0, 1)
    ]
    try:
        for process in processes:
            while "added" not in process.stdout.readline():  # gloo says something first
                assert process.poll() is None, process.communicate()
        processes[dies].kill()
        _, err = processes[1 - dies].communicate(timeout=60)  # JAX alone: 100 s, and no message of ours
    finally:
        stopped(processes)
    ours = (
        processes[1 - dies].returncode == HostError.exit_code and "has another process died? Start all of them" in err
    )
    # When the coordinator dies, JAX may be the first to notice: it ends the process with a message of its own.
    jax_was_first = dies == 0 and processes[1 - dies].returncode == -signal.SIGABRT and "another task died" in err
    assert ours or jax_was_first, (processes[1 - dies].returncode, err)


@pytest.mark.slow
def test_a_process_whose_others_never_come_ends_with_a_message(run_scmbert, tmp_path):
    place = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-index", "1")
    ran = run_scmbert(*RUN, *place, "--join-timeout", "1", "--corpus", tmp_path, "--run-dir", tmp_path / "run")
    assert ran.code == HostError.exit_code
    assert "process 1 of 2 at 127.0.0.1:" in ran.err
    assert "has waited 1 s for the others (--join-timeout)" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_where_there_is_no_cluster_that_is_said(run_scmbert, tmp_path):
    ran = run_scmbert(*TINY, "--multihost", "--corpus", tmp_path, "--run-dir", tmp_path / "run")
    assert ran.code == ConfigError.exit_code
    assert "--multihost: no cluster was found" in ran.err
    assert "say --coordinator HOST:PORT --num-processes N --process-index I" in ran.err


def test_an_error_of_one_of_several_processes_ends_it_without_waiting_for_the_others():
    """One process that believes to be in a cluster: at Python's own exit it would end by JAX's shutdown."""
    code = f"""
import jax
from scmbert_jax.errors import CorpusError
from scmbert_jax.parallel.multihost import failing_at_once, join
join("127.0.0.1:{free_port()}", 1, 0)
with failing_at_once():
    raise CorpusError("corpus/manifest.json: not there")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert done.stderr.strip().endswith(": corpus/manifest.json: not there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--multihost", "--num-processes", "2"), "leave out --coordinator and --num-processes"),
        (("--coordinator", "here:1"), "--num-processes 1: with --coordinator it must be 2 or more"),
        (("--num-processes", "0"), "--num-processes 0"),
        (("--host-timeout", "0"), "--host-timeout and --stall-timeout are seconds, above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message, tmp_path):
    ran = scmbert(*TINY, "--corpus", tmp_path, "--run-dir", tmp_path / "run", *arguments)
    assert ran.code == 4
    assert message in ran.err
    assert not (tmp_path / "run").exists()


def test_a_host_of_a_slice_that_has_not_joined_is_told_how(monkeypatch):
    check_joined()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"one of 4 that share the accelerators: give --multihost"):
        check_joined()
