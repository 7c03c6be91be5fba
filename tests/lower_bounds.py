"""Prints the lowest versions that setup.py allows, as constraints for pip; `make nightly` installs and tests them."""

import re
import runpy
from pathlib import Path

import setuptools

declared: dict = {}
setuptools.setup = declared.update
runpy.run_path(str(Path(__file__).resolve().parent.parent / "setup.py"))
for requirement in sorted({*declared["install_requires"], *declared["extras_require"]["test"]}):
    bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)[^;]*(;.*)?$", requirement)
    if bound is None:
        raise SystemExit(f"setup.py: {requirement!r} has no lower bound")
    name, version, marker = bound.groups("")
    print(f"{name}=={version}{marker}")
