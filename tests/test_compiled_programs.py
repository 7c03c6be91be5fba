"""Compiled programs are kept between commands, where the user says; a folder that cannot be made stops nothing."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY, TINY, xla_flags

from scmbert_jax.compiled_programs import keep_compiled_programs


def test_programs_are_kept_below_the_users_cache_folder_or_where_the_user_says(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = keep_compiled_programs(environment)
    assert folder is not None
    assert folder.parent == tmp_path / "scmbert" / "compiled"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert folder == keep_compiled_programs({"XDG_CACHE_HOME": str(tmp_path)})  # the same machine finds them again
    theirs = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "elsewhere"}
    assert str(keep_compiled_programs(theirs)) == "elsewhere"
    assert theirs["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"


def test_none_are_kept_when_the_user_says_so(tmp_path):
    off = {"XDG_CACHE_HOME": str(tmp_path), "SCMBERT_COMPILATION_CACHE": "off"}
    assert keep_compiled_programs(off) is None
    assert "JAX_COMPILATION_CACHE_DIR" not in off
    assert keep_compiled_programs({"JAX_COMPILATION_CACHE_DIR": ""}) is None


def pretrain(corpus, run_dir, cache) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    del environment["SCMBERT_COMPILATION_CACHE"]
    environment |= {"XDG_CACHE_HOME": str(cache), "XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(
        [sys.executable, "-m", "scmbert_jax.cli", *TINY, "--corpus", corpus, "--run-dir", run_dir, "--steps", "1"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_is_started_again_finds_its_programs(pbmc_corpus, tmp_path):
    pretrain(pbmc_corpus, tmp_path / "first", tmp_path / "cache")
    kept = {path.name for path in (tmp_path / "cache").rglob("*-cache")}
    assert any("train_step" in name for name in kept)
    pretrain(pbmc_corpus, tmp_path / "second", tmp_path / "cache")
    assert {path.name for path in (tmp_path / "cache").rglob("*-cache")} == kept


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_made_stops_nothing(pbmc_corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    pretrain(pbmc_corpus, tmp_path / "run", tmp_path / "file")
