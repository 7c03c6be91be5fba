"""Where compiled programs are kept between commands, so that a run that is started again does not compile again.

JAX keeps them in a folder if told to (`JAX_COMPILATION_CACHE_DIR`); the command line tells it, unless the user did.
The files are keyed by program, versions and device, so the folder can be shared by all runs and deleted at any time.
"""

import os
import platform
import re
import zlib
from collections.abc import MutableMapping
from importlib.metadata import version
from pathlib import Path

FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
OFF_VARIABLE = "SCMBERT_COMPILATION_CACHE"


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """Tells a JAX that is not imported yet where to keep programs; the folder, or None where none is kept.

    `$JAX_COMPILATION_CACHE_DIR` if it is set (empty: nowhere); else nowhere with `SCMBERT_COMPILATION_CACHE=off`; else
    a folder below the user's cache folder. It is made by JAX, which warns, and compiles, where it cannot be written.
    """
    if FOLDER_VARIABLE not in environment:
        if environment.get(OFF_VARIABLE, "").lower() in ("off", "0", "false"):
            return None
        try:
            users = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # a user without a home
            return None
        environment[FOLDER_VARIABLE] = str(users / "scmbert" / "compiled" / _kind_of_cpu())
    # Shorter ones are compiled sooner than they are found.
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    return Path(environment[FOLDER_VARIABLE]) if environment[FOLDER_VARIABLE] else None


def flags_to_compile_quickly() -> str:
    """XLA's, for programs for CPUs that are hardly run: not optimised by LLVM, nor by MLIR where that is a choice."""
    jaxlib = tuple(map(int, re.findall(r"\d+", version("jaxlib"))[:3]))
    emitters = " --xla_cpu_use_fusion_emitters=false" if jaxlib < (0, 11, 1) else ""  # later ones end at its name
    return f"--xla_backend_optimization_level=0{emitters}"


def _kind_of_cpu() -> str:
    """Such as `x86_64-1a2b3c4d`: programs for CPUs may use any instruction of the one that compiled them, and home
    folders are shared between machines."""
    features = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), features)
    except OSError:
        pass
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"
