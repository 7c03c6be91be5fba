"""Stand-ins for gcloud, kubectl, sbatch and the like: they note what they are called with and answer as told."""

import os
import subprocess
from pathlib import Path

from conftest import REPOSITORY, Ran

SCRIPTS = REPOSITORY / "tpu_scripts"
_TOOL = """#!/usr/bin/env bash
here=$(dirname "$0")
[ -t 0 ] || input=$(timeout 5 cat)
printf '%s\\x1f' "$(basename "$0")" "$@" >> "$here/../calls"
printf '\\x1e' >> "$here/../calls"
"""


def calls_noted_in(folder: Path) -> list[list[str]]:
    """[tool, argument, ...] of every call of a stand-in in `folder`/bin."""
    noted = folder / "calls"
    calls = noted.read_text().split("\x1e")[:-1] if noted.exists() else []
    return [call.split("\x1f")[:-1] for call in calls]


class FakeTools:
    """A folder on PATH with one stand-in per `answer`; scripts are run with it by `script`."""

    def __init__(self, folder: Path):
        self._folder = folder
        (folder / "bin").mkdir(parents=True)

    def answer(self, tool: str, body: str = "") -> None:
        """What `tool` does after noting its arguments: lines of bash, which see "$@", $input and the folder $here."""
        path = self._folder / "bin" / tool
        path.write_text(_TOOL + body)
        path.chmod(0o755)

    def calls(self, *leave_out: str) -> list[list[str]]:
        """[tool, argument, ...] of every call so far, but for those with an argument of `leave_out`."""
        return [call for call in calls_noted_in(self._folder) if not set(call) & set(leave_out)]

    def script(self, name: str, *arguments: str | Path, **environment: str) -> Ran:
        """Runs a script of tpu_scripts/ that finds the stand-ins first."""
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [SCRIPTS / name, *map(str, arguments)],
            env={"HOME": str(self._folder), "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Ran(done.returncode, done.stdout, done.stderr)
