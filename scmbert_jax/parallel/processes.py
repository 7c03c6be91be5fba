"""Of how many processes a run is made, and how long they wait for each other; knows nothing of JAX until it joins."""

from dataclasses import dataclass

from scmbert_jax.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """The processes of a run: this one alone, unless told otherwise. All run the same but for `process_index`.

    Raises `ConfigError` for numbers that do not fit.
    """

    multihost: bool = False
    """One of several processes with this same command, started by Cloud TPU, GKE, Slurm or Open MPI."""
    coordinator: str | None = None
    """Without --multihost: HOST:PORT of process 0, for a run of several processes."""
    num_processes: int = 1
    """Processes of the run, started with the same command but for --process-index; all see the same CORPUS and
    RUN_DIR."""
    process_index: int = 0
    """Which of them this is, from 0."""
    join_timeout: int = 300
    """Of several processes: seconds to wait for all to start."""
    host_timeout: int = 100
    """Of several processes: seconds without a heartbeat after which one counts as dead, and all others end."""
    stall_timeout: float = 1800
    """Of several processes: seconds without a finished step after which the process ends (exit code 7)."""

    def __post_init__(self) -> None:
        if self.join_timeout < 1 or self.host_timeout < 1 or self.stall_timeout <= 0:
            raise ConfigError("--join-timeout, --host-timeout and --stall-timeout are seconds, above 0.")
        if self.multihost and (self.coordinator is not None or self.num_processes > 1):
            raise ConfigError("--multihost finds the others itself: leave out --coordinator and --num-processes.")
        if self.num_processes < 1 or (self.num_processes == 1 and self.coordinator is not None):
            raise ConfigError(f"--num-processes {self.num_processes}: with --coordinator it must be 2 or more.")

    def join(self) -> None:
        """Connects this process to the others, once; call it before anything else uses JAX.

        Raises `ConfigError` or `HostError` as `parallel.multihost.join` does.
        """
        import jax

        from scmbert_jax.parallel.multihost import join, join_cluster

        if jax.distributed.is_initialized():
            return
        timeouts = {"host_timeout": self.host_timeout, "join_timeout": self.join_timeout}
        if self.multihost:
            join_cluster(**timeouts)
        elif self.num_processes > 1:
            join(self.coordinator, self.num_processes, self.process_index, **timeouts)


ALONE = Processes()
