"""What a user gets who installs the package: a wheel with all that the commands need, and with no more names than ours.

The wheel is made of the unpacked sdist. In `make test` it is unpacked and run with the packages of the tests; in
`make nightly` both are installed into a new environment, which takes minutes and a network.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import REPOSITORY, xla_flags

import scmbert_jax
from scmbert_jax.errors import ConfigError

# In a folder that is none of ours, by a Python that finds ours elsewhere than in the repository.
RUN = """
import pathlib, sys
import numpy as np
import data_pipelines, scmbert_jax
from scmbert_jax.cli import main

site, repository, model, file, out = map(pathlib.Path, sys.argv[1:])
for package in (scmbert_jax, data_pipelines):
    assert site in pathlib.Path(package.__file__).parents, package.__file__
for command in (["--help"], ["doctor", "example:pbmc_mosaic"], ["pretrain", "blood:small", "--fields"]):
    try:
        assert main(command) == 0, command
    except SystemExit as ended:
        assert ended.code == 0, command
cells = scmbert_jax.load(model).embed(file)
np.save(out, cells)
ours = [name for name, module in sys.modules.items() if name.split(".")[0] in ("scmbert_jax", "data_pipelines")]
inside = [name for name in ours if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{repository}/")]
assert len(ours) > 50 and not inside, inside
print("embedded", cells.shape)
"""


class Built(NamedTuple):
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """The sdist of the repository, and the wheel of what is in the sdist."""
    folder = tmp_path_factory.mktemp("built")
    whole = folder / "repository"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("scmbert_jax", "data_pipelines", "experiments", "peers", "tests"):
        shutil.copytree(REPOSITORY / name, whole / name, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, whole)
    sdist = folder / _build("sdist", whole, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return Built(sdist, folder / _build("wheel", source, folder))


def _build(what: str, source: Path, out: Path) -> str:
    """The name of the file that setuptools builds, as pip has it do."""
    code = f"import sys; from setuptools import build_meta; name = build_meta.build_{what}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(name)", str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def run_command(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it in `folder`, where nothing of the repository is found."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept |= {"XLA_FLAGS": xla_flags(1), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([*map(str, command)], cwd=folder, env={**kept, **environment}, capture_output=True, text=True)


def run_installed(
    python: Path | str, site: Path, model: Path, file: Path, folder: Path, **environment: str
) -> np.ndarray:
    """[cells, embed_dim] of `file`, embedded by the package that lies in `site`; `folder`: where Python runs."""
    folder.mkdir(exist_ok=True)
    out = folder / "embedding.npy"
    done = run_command(python, "-c", RUN, site, REPOSITORY, model, file, out, folder=folder, **environment)
    assert done.returncode == 0, done.stderr
    assert "usage: scmbert VERB" in done.stdout
    assert "embedded (240, " in done.stdout
    return np.load(out)


@pytest.mark.slow
def test_a_wheel_holds_all_that_runs_and_nothing_else(built):
    with zipfile.ZipFile(built.wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (top_level,) = (name for name in archive.namelist() if name.endswith(".dist-info/top_level.txt"))
        assert archive.read(top_level).decode().split() == ["data_pipelines", "scmbert_jax"]
    expected = {
        str(path.relative_to(REPOSITORY))
        for package in ("scmbert_jax", "data_pipelines")
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"scmbert_jax/experiments/{path.name}" for path in (REPOSITORY / "experiments").glob("*.py")}
    assert files == expected
    assert {"scmbert_jax/VERSION", "scmbert_jax/py.typed", "scmbert_jax/experiments/tiny.py"} < files
    assert any(name.endswith("/human_genes.parquet") for name in files)
    assert any(name.endswith("/pbmc_mosaic.h5mu") for name in files)


@pytest.mark.slow
def test_an_unpacked_wheel_embeds_as_the_repository_does(built, pbmc_model, pbmc_few, tmp_path):
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path / "site")
    path = str(tmp_path / "site")
    folders = (tmp_path / "site", pbmc_model, pbmc_few, tmp_path / "elsewhere")
    found = run_installed(sys.executable, *folders, PYTHONPATH=path)
    ours = scmbert_jax.load(pbmc_model).embed(pbmc_few)
    # Of one device and of eight: sums may be in another order.
    np.testing.assert_allclose(found, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
def test_a_new_environment_installs_the_wheel_and_the_sdist_and_runs_them(built, pbmc_model, pbmc_few, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", str(REPOSITORY / "constraints.txt")]
    embedded = []
    for more in ([built.wheel], ["--no-deps", "--force-reinstall", built.sdist]):
        subprocess.run([*install, *more], check=True)
        said = run_command(python.with_name("scmbert"), "--help", folder=tmp_path)
        assert "usage: scmbert VERB" in said.stdout
        embedded.append(run_installed(python, site, pbmc_model, pbmc_few, tmp_path / "elsewhere"))
        # What is no part of an installation says so.
        said = run_command(
            python.with_name("scmbert"), "bench", "favor", "--tokens", "40", "--torch-python", python, folder=tmp_path
        )
        assert said.returncode == ConfigError.exit_code
        assert "run this command from a checkout" in said.stderr
    np.testing.assert_array_equal(*embedded)
