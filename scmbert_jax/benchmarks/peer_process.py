"""A program to compare with, in a process of its own: a Python that has what ours does not need."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scmbert_jax.errors import ConfigError

# They are no part of a wheel: who compares has a checkout of the repository.
PEERS = Path(__file__).resolve().parents[2] / "peers"


def peer_program(name: str) -> Path:
    """A file of the repository's folder `peers`. Raises `ConfigError` where the package was installed without it."""
    if not (PEERS / name).is_file():
        raise ConfigError(
            f"{PEERS / name}: not there. The programs that measure other projects are in the repository alone, not in "
            "an installed scmbert_jax: run this command from a checkout (pip install -e CHECKOUT), or without another "
            "Python, which measures ours alone."
        )
    return PEERS / name


class PeerProcess:
    """Starts `PYTHON SCRIPT ARGUMENTS`, which says one line of JSON when it is ready and one for each line it is sent.

    Args:
      python: the interpreter; `option`: the option of the command line that named it, for messages.
      script: of the folder `peers`.
      packages: what it must have, as pip names them.

    Attributes:
      hello: its first answer.

    Raises:
      ConfigError: it is not there (`peer_program`), cannot be run, or says what is wrong in a field `error`.
    """

    def __init__(self, python: Path, script: str, arguments: Sequence[str], option: str, packages: str):
        self._option, self._packages = option, packages
        command = [str(python), str(peer_program(script)), *arguments]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise ConfigError(f"{option} {python}: cannot be run ({error.strerror}).") from error
        self.hello = self._answer()

    def ask(self, what: str) -> dict[str, Any]:
        """Its answer to one line; with `peak_bytes`, of the process where it does not say (as of a GPU).

        Raises `ConfigError` as above.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        answer.setdefault("peak_bytes", resident_peak(self._process.pid))
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line.startswith("{") else {"error": f"it ended with code {self._process.wait()}"}
        if "error" in answer:
            self.close()
            raise ConfigError(
                f"{self._option}: {answer['error']}. It must be a Python with {self._packages}: "
                f"python -m venv peer && peer/bin/pip install {self._packages}"
            )
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def resident_peak(pid: int) -> int | None:
    """The most memory, in bytes, that a process has had; None: it has ended, or this is not Linux.

    `ru_maxrss` would begin with the memory of the process that started it.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def bind_to_cpus(threads: int) -> None:
    """Binds this process, and those it starts from now on, to as many CPUs; call it before JAX has started any thread.

    Raises `ConfigError` where there are fewer.
    """
    free = sorted(os.sched_getaffinity(0))
    if threads > len(free):
        raise ConfigError(f"--threads {threads}: this process may use {len(free)} CPU(s).")
    os.sched_setaffinity(0, free[:threads])
