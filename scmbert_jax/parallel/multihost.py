"""Runs of several processes: how they find each other, and how they agree to stop."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scmbert_jax.errors import ConfigError


def join(coordinator: str | None, num_processes: int, process_index: int) -> None:
    """Connects this process to the others; call it before anything else uses JAX.

    Args:
      coordinator: HOST:PORT of process 0, reachable from all.
      num_processes: how many there are.
      process_index: which this is, 0 <= index < num_processes.

    Raises `ConfigError` when the numbers do not fit or the others cannot be reached.
    """
    if coordinator is None:
        raise ConfigError(f"--num-processes {num_processes} needs --coordinator HOST:PORT (the address of process 0).")
    if not 0 <= process_index < num_processes:
        raise ConfigError(f"--process-index {process_index}: expected 0 to {num_processes - 1}.")
    try:
        jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_index)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"process {process_index} cannot join at {coordinator}: {error}") from error


class StopAgreement:
    """Makes all processes stop after the same step, although a signal reaches them at different ones, or only one.

    Every process hands in what it knows at every step; the maximum is computed by the devices behind the step and
    read one step later, so that nobody waits for it. A process alone needs no agreement and stops at once.
    """

    def __init__(self, mesh: Mesh):
        self._alone = jax.process_count() == 1
        if self._alone:
            return
        self._one_per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._waiting: jax.Array | None = None

    def __call__(self, requested: bool) -> bool:
        """Whether all stop now; `requested`: whether this process was asked to. Called once a step, by everyone."""
        if self._alone:
            return requested
        previous = self._waiting
        flags = np.full(jax.local_device_count(), requested, np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            self._waiting = self._any(jax.make_array_from_process_local_data(self._one_per_device, flags))
        return previous is not None and bool(jax.device_get(previous))
