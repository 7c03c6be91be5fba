"""Compiling in a process of its own: with the settings that a compiler for absent hardware needs, its memory measured,
and nothing of it left behind when it crashes.
"""

import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from scmbert_jax.compiled_programs import flags_to_compile_quickly
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import ConfigError, UserError
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.planning.compiled_step import CompiledExperiment, compile_experiment
from scmbert_jax.planning.topologies import Topology, check_compiler


class Compilation(NamedTuple):
    """What came of it, how long the process ran (seconds, from its start), the processor's time in it (seconds, of all
    cores), and the most memory it took (bytes)."""

    experiment: CompiledExperiment
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def environment(topology: Topology) -> dict[str, str]:
    """What the process gets besides this one's own environment."""
    settings = {
        "JAX_PLATFORMS": "cpu",  # no accelerator of this machine is touched
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # or the time to compile would be that of reading a file
        "TPU_SKIP_MDS_QUERY": "1",  # there is no cloud machine to ask about itself
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock guards a TPU, and there is none
        "TPU_STDERR_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if topology.platform == "cpu":
        # The program is never run: memory and collectives are settled before machine code is optimised.
        settings["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={topology.num_chips} {flags_to_compile_quickly()}"
        )
    return settings


def compile_apart(config: ExperimentConfig, layout: FeatureLayout, topology: Topology) -> Compilation:
    """`compile_experiment` in another process. Raises what it raises, and `ConfigError` when the process dies."""
    check_compiler(topology)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="scmbert_plan_") as folder:
        request, answer = Path(folder) / "request", Path(folder) / "answer"
        request.write_bytes(pickle.dumps((config, layout, topology)))
        # Of this very package, wherever it was imported from.
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        ran = subprocess.run(
            [sys.executable, "-m", __spec__.name, str(request), str(answer)],
            env={**os.environ, **environment(topology), "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if not answer.is_file():
            last = "\n".join(ran.stderr.strip().splitlines()[-5:])
            raise ConfigError(
                f"the compiler for {topology.name} died (exit code {ran.returncode}; a negative one is a signal: -9 "
                f"mostly means too little memory). Its last words:\n{last}"
            )
        # Our own process wrote it a moment ago.
        result, cpu_seconds, peak_bytes = pickle.loads(answer.read_bytes())
    if isinstance(result, UserError):
        raise result
    return Compilation(result, time.perf_counter() - started, cpu_seconds, peak_bytes)


def main(request: Path, answer: Path) -> None:
    """The other process."""
    config, layout, topology = pickle.loads(request.read_bytes())
    try:
        result: CompiledExperiment | UserError = compile_experiment(config, layout, topology)
    except UserError as error:
        result = type(error)(*error.args)  # without the compiler's own exception, which may not be picklable
    used = resource.getrusage(resource.RUSAGE_SELF)
    written = answer.with_suffix(".part")
    written.write_bytes(pickle.dumps((result, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)))
    written.replace(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
