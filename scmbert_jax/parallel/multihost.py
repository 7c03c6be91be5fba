"""Runs of several processes: how they find each other, agree on what they run and when to stop, and how they fail."""

import contextlib
import io
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather, reached_preemption_sync_point
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scmbert_jax.errors import ConfigError, HostError, UserError, as_user_error

# JAX ends a process by itself when it cannot connect, with a stack trace of C++; we speak this much earlier.
_BEFORE_JAX_ABORTS = 30  # seconds


def join(
    coordinator: str | None, num_processes: int, process_index: int, *, host_timeout: int = 100, join_timeout: int = 300
) -> None:
    """Connects this process to the others; call it before anything else uses JAX.

    Args:
      coordinator: HOST:PORT of process 0, reachable from all.
      num_processes: how many there are.
      process_index: which this is, 0 <= index < num_processes.
      host_timeout: seconds without a heartbeat after which JAX takes a process for dead and ends all others.
      join_timeout: seconds to wait for the others to join.

    Raises `ConfigError` when the numbers do not fit, `HostError` when the others cannot be reached. When they do not
    come within `join_timeout`, the process ends with the exit code of `HostError`.
    """
    if coordinator is None:
        raise ConfigError(f"--num-processes {num_processes} needs --coordinator HOST:PORT (the address of process 0).")
    if not 0 <= process_index < num_processes:
        raise ConfigError(f"--process-index {process_index}: expected 0 to {num_processes - 1}.")
    who = f"process {process_index} of {num_processes} at {coordinator}"
    _initialize(
        who,
        host_timeout,
        join_timeout,
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_index,
        cluster_detection_method="deactivate",  # inside a Slurm job, say, JAX would take one GPU only
    )


def join_cluster(*, host_timeout: int = 100, join_timeout: int = 300) -> None:
    """As `join`, with addresses and numbers as JAX finds them: Cloud TPU, GKE, Slurm, Open MPI.

    Raises `ConfigError` where it finds none of these, `HostError` when the others cannot be reached.
    """
    try:
        _initialize("this process", host_timeout, join_timeout)
    except ValueError as error:
        raise ConfigError(
            f"--multihost: no cluster was found ({error}) JAX knows Cloud TPU VMs, GKE with TPUs, tasks of srun and "
            "mpirun. Start the command by one of these, or say --coordinator HOST:PORT --num-processes N "
            "--process-index I. A process alone needs none of them."
        ) from error


def _initialize(who: str, host_timeout: int, join_timeout: int, **place: Any) -> None:
    def give_up() -> None:
        _leave(
            f"{who} has waited {join_timeout} s for the others (--join-timeout). Did all start, with the same "
            "numbers, and does the network let them reach process 0?",
            HostError.exit_code,
        )

    waiting = threading.Timer(join_timeout, give_up)
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=join_timeout + _BEFORE_JAX_ABORTS,
            heartbeat_timeout_seconds=host_timeout,
        )
    except RuntimeError as error:
        raise HostError(f"{who} cannot join the others: {error}") from error
    finally:
        waiting.cancel()


def check_joined() -> None:
    """Raises `ConfigError` where JAX sees several hosts (a TPU slice) that have not joined."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ConfigError(
            f"this host is one of {jax.process_count()} that share the accelerators: give --multihost, on all of them."
        )


def check_agreement(stated: Mapping[str, Any]) -> None:
    """Called by all processes with what each believes (name -> JSON value); a process alone agrees with itself.

    Raises `ConfigError` in all of them, naming what differs, unless they believe the same: trained on, each would
    apply its own to its part of the cells, and the parameters would be nobody's.
    """
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(json.dumps(stated).encode(), np.uint8)
    sizes = process_allgather(np.int32(len(mine)))
    texts = process_allgather(np.pad(mine, (0, int(sizes.max()) - len(mine))))
    all_of_them = [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]
    differing = []
    for name in stated:
        values = [of_process.get(name) for of_process in all_of_them]
        other = next((index for index, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            differing.append(f"{name}: {values[0]!r} on process 0, {values[other]!r} on process {other}")
    if differing:
        if jax.process_index() == 0:
            time.sleep(1)  # when it ends, JAX aborts the others, before they have said this
        raise ConfigError(
            f"the {len(all_of_them)} processes of this run do not run the same ({'; '.join(differing)}). Start all of "
            "them with the same command but for --process-index, on the same corpus and run folder."
        )


def from_process_zero(make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name as process 0 makes them, in all processes, which wait for it. Called by all of them."""
    if jax.process_count() == 1:
        return dict(make())
    content = io.BytesIO()
    if jax.process_index() == 0:
        arrays: dict[str, Any] = dict(make())
        np.savez(content, **arrays)
    size = int(broadcast_one_to_all(np.int32(content.tell())))
    sent = np.frombuffer(content.getvalue().ljust(size, b"\0"), np.uint8)
    with np.load(io.BytesIO(np.asarray(broadcast_one_to_all(sent)).tobytes())) as received:
        return dict(received)


def on_any_process(flag: bool) -> bool:
    """Whether it is true in any of the processes. Called by all of them."""
    return flag if jax.process_count() == 1 else bool(process_allgather(np.int32(flag)).max())


@contextmanager
def failing_at_once() -> Iterator[None]:
    """An error in one of several processes ends that process at once, with its message and exit code.

    Left to itself, Python would wait at its exit for the others to finish, which wait for this one. An error nobody
    foresaw (the network's when another process died, for one) is shown whole and ends with the code of `HostError`.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized() or isinstance(error, SystemExit):
            raise
        who = socket.gethostname()  # JAX may not be asked for the index: it could wait for the others to tell
        told = error if isinstance(error, UserError) else as_user_error(error)
        if told is not None:
            _leave(f"{who}: {told}", told.exit_code)
        if isinstance(error, KeyboardInterrupt):
            _leave(f"{who}: interrupted", 130)
        traceback.print_exc()
        _leave(
            f"{who} stops at an error, {type(error).__name__}: has another process died? Start all of them again: the "
            "same command continues from the newest checkpoint.",
            HostError.exit_code,
        )


def _leave(message: str, exit_code: int) -> NoReturn:
    """Ends the process without Python's exit, which would wait for the other processes."""
    with contextlib.suppress(OSError):
        print(f"scmbert: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(exit_code)


class StopAgreement:
    """Makes all processes stop after the same step, although a signal reaches them at different ones, or only one.

    Every process hands in what it knows at every step; the maximum is computed by the devices behind the step and
    read one step later, so that nobody waits for it. A process alone needs no agreement and stops at once.

    JAX's own preemption notice counts as a request, too: from `jax.distributed.initialize` until the loop handles
    signals itself, SIGTERM goes to JAX, which would otherwise swallow it.
    """

    def __init__(self, mesh: Mesh):
        self._alone = jax.process_count() == 1
        if self._alone:
            return
        self._one_per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._waiting: jax.Array | None = None
        self._noticed = False

    def __call__(self, requested: bool, step: int) -> bool:
        """Whether all stop now; `requested`: whether this process was asked to. Called once a step, by everyone."""
        if self._alone:
            return requested
        # JAX answers with True at one step only, the same for all.
        if jax.config.jax_enable_preemption_service and reached_preemption_sync_point(step):  # type: ignore[attr-defined]
            self._noticed = True
        requested = requested or self._noticed
        previous = self._waiting
        flags = np.full(jax.local_device_count(), requested, np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            self._waiting = self._any(jax.make_array_from_process_local_data(self._one_per_device, flags))
        return previous is not None and bool(jax.device_get(previous))
