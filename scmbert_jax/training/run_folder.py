"""The folder of a run: what it was started with, its metrics, a lock against a second run on it.

config.json               the whole resolved configuration, of the newest start
provenance.json           versions, git commit, hardware, corpora and how cells are drawn from them, their fingerprint,
                          feature-space hash, information, command; the fields that changed since (continuation.py)
feature_space.parquet     the features of the model's table; of DNA, genome_layout.npz in place of this and the next
feature_statistics.npz    what each of them is like by itself: where the model starts
region_embeddings.npz     the embeddings of its regions (`model.region_embeddings`)
network.npz               the edges of its networks (`model.networks`), and what was drawn of them
trained_cells.npz         keys of the cells that are drawn: whether a cell is among them
metrics.jsonl             rows of means over the steps since the row before (metrics.py), of fields that changed, and of
                          evaluations (validation.py)
best.json                 the step and the value of the best evaluation of which there is a checkpoint
tensorboard/              the same as TensorBoard events
trackers/                 what was sent to W&B and MLflow, and files of theirs (trackers.py)
checkpoints/              Orbax
goodput.jsonl             where the time went, over all starts (goodput.py)
set_aside/                checkpoints that --restore-step moved out of the way
profile/                  a trace of some steps (step_profile.py)
nonfinite/                the batch and the numbers of a step whose loss was not finite
"""

import errno
import fcntl
import importlib.metadata
import json
import mmap
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from scmbert_jax.config import to_dict
from scmbert_jax.dna_config import DnaExperiment, Experiment, load_any_config
from scmbert_jax.errors import CheckpointError, ConfigError, RunInProgress, TrainingError
from scmbert_jax.outputs import check_run_folder
from scmbert_jax.plain_text import without_secrets
from scmbert_jax.training.continuation import changes, changes_in_words, row_of_changes
from scmbert_jax.training.run_information import run_information
from scmbert_jax.version import VERSION

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "tensorflow", "anndata")


class DataIdentity(Protocol):
    """What a run remembers of its data, to refuse other data when it continues."""

    fingerprint: str
    feature_space_hash: str
    description: dict[str, Any]  # the corpora, which of their cells are drawn, how often, and in which order_version
    covariates: dict[str, list[str]]  # covariate name -> its categories, in the order of their codes

    @property
    def information(self) -> dict[str, Any]:
        """What the data tell beside counts; see `run_information`."""
        ...

    def save_features(self, folder: Path) -> None:
        """Writes feature_space.parquet and feature_statistics.npz."""
        ...


def software_versions() -> dict[str, str]:
    """Installed versions of this package, Python and the libraries that decide a run's numbers."""
    versions = {"scmbert_jax": VERSION, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str:
    """Commit of the source this package runs from, `-dirty` when changed since; `unknown` outside a checkout."""
    source = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return commit.stdout.strip() if commit.returncode == 0 else "unknown"


class RunFolder:
    """Opens or creates a run folder and holds its lock until `close`.

    Raises `ConfigError` when the folder belongs to another configuration, `CheckpointError` when it belongs to other
    data or cannot be written, `RunInProgress` when another process trains in it.
    """

    def __init__(
        self,
        path: Path,
        config: Experiment,
        data: DataIdentity,
        is_coordinator: bool = True,
        init_from: Mapping[str, Any] | None = None,
    ):
        """`init_from`: what provenance.json says of the model that the run starts from (init_from.py)."""
        self.path = path
        self.is_coordinator = is_coordinator
        self._init_from = init_from
        self._config = self._there = config  # now, and of the newest start before
        self.checkpoints = path / "checkpoints"
        self.goodput = path / "goodput.jsonl"
        self.metrics_path = path / "metrics.jsonl"
        self._lock: TextIO | None = None
        self._metrics: TextIO | None = None
        check_run_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if is_coordinator:
                self._lock = locked(path / "lock")
                self._start_or_continue(config, data)
                self._metrics = self.metrics_path.open("a", encoding="utf-8")
                if self.checkpoints.exists() and not os.access(self.checkpoints, os.W_OK, effective_ids=True):
                    # Known now, not at the first checkpoint.
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.checkpoints))
        except OSError as error:
            self.close()
            where = "" if error.filename in (None, str(path)) else f"{error.filename}: "
            raise CheckpointError(f"{path}: the run folder cannot be written ({where}{error.strerror}).") from error
        except BaseException:
            self.close()
            raise

    def _start_or_continue(self, config: Experiment, data: DataIdentity) -> None:
        path = self.path
        if (path / "config.json").exists():
            self._check_same_run(config, data)
            return
        data.save_features(path)
        provenance = {
            "corpus_fingerprint": data.fingerprint,
            "feature_space_hash": data.feature_space_hash,
            "data": data.description,
            "covariates": data.covariates,
            "information": run_information(data.information, data.covariates),
            "versions": software_versions(),
            "git_commit": git_commit(),
            "hardware": {"machine": platform.machine(), "system": platform.system(), "cpu_count": os.cpu_count()},
            "command": _command(),
        }
        if self._init_from is not None:
            provenance["init_from"] = self._init_from
        write_whole(path / "provenance.json", json.dumps(provenance, indent=2) + "\n")
        # Last, and whole: a folder without it was never started.
        write_whole(path / "config.json", json.dumps(to_dict(config), indent=2) + "\n")

    def _check_same_run(self, config: Experiment, data: DataIdentity) -> None:
        self._there = load_any_config(self.path / "config.json")
        if type(self._there) is not type(config):
            there, now = (_kind(own) for own in (self._there, config))
            raise ConfigError(
                f"{self.path}: this run folder is of a run on {there}, the experiment is one on {now}. Use another run "
                "folder."
            )
        changes(self.path, self._there, config)
        provenance = read_provenance(self.path)
        self._check_same_beginning(provenance.get("init_from"))
        recorded, order = provenance.get("data"), data.description["order_version"]
        if recorded is not None and recorded["order_version"] != order:
            raise CheckpointError(
                f"{self.path}: this run draws its cells in an order of version {recorded['order_version']}, this "
                f"program in one of version {order}: continue with the program that started it, or use another folder."
            )
        for field, found, what in (
            ("feature_space_hash", data.feature_space_hash, "feature space"),
            ("corpus_fingerprint", data.fingerprint, "corpus, or draws other cells of it or with other weights"),
        ):
            if provenance[field] != found:
                before, now = (_in_words(stated) for stated in (recorded, data.description))
                raise CheckpointError(
                    f"{self.path}: this run folder was started on another {what} ({field} {provenance[field][:12]}... "
                    f"there, {found[:12]}... now). It was started with {before}; now it is given {now}. Give what it "
                    "was started with, or use another run folder."
                )

    def _check_same_beginning(self, there: Mapping[str, Any] | None) -> None:
        """Raises `ConfigError` where the run, started from `there`, would continue from another model's weights."""
        now = self._init_from
        before = "random weights" if there is None else f"{there['model']} (step {there['step']})"
        if now is not None and (there is None or there["identity"] != now["identity"]):
            raise ConfigError(
                f"{self.path}: this run was started from {before}; --init-from {now['model']} (step {now['step']}) is "
                "another beginning. Leave the option out to continue the run, or use another run folder."
            )
        has_checkpoint = any(path.name.isdecimal() for path in self.checkpoints.glob("*"))
        if now is None and there is not None and not has_checkpoint:
            raise ConfigError(
                f"{self.path}: this run was started from {before} and has no checkpoint yet. Give --init-from "
                f"{there['model']} again, or use another run folder."
            )

    def continue_from(self, step: int) -> None:
        """Removes rows of steps that a restored checkpoint has not seen, so that no step stands twice, and records the
        fields that changed since the start before: here, in provenance.json and on standard error.

        Raises `CheckpointError` when the folder cannot be written.
        """
        if self._metrics is None:
            return
        try:
            # What is removed still tells how the steps that are kept are continued.
            kept = [row["changed"] for row in self._drop_rows_after(step) if "changed" in row]
            for changed in kept:
                self.write_metrics({"step": step, "changed": changed})
            self._record_changes(step)
        except OSError as error:
            raise CheckpointError(f"{self.path}: the run folder cannot be written ({error.strerror}).") from error

    def _record_changes(self, step: int) -> None:
        changed = changes(self.path, self._there, self._config)
        if not changed:
            return
        for line in changes_in_words(changed, self._there, self._config, step):
            print(f"scmbert: {line}", file=sys.stderr, flush=True)
        row = row_of_changes(changed, step)
        self.write_metrics(row)
        provenance = read_provenance(self.path)
        provenance.setdefault("continued", []).append({**row, "command": _command()})
        write_whole(self.path / "provenance.json", json.dumps(provenance, indent=2) + "\n")
        # Last: until it is written, the next start finds the same changes.
        write_whole(self.path / "config.json", json.dumps(to_dict(self._config), indent=2) + "\n")

    def _drop_rows_after(self, step: int) -> list[dict[str, Any]]:
        """Cuts the file behind its last row of `step` or before; gives the rows that were cut off.

        Only those are read: a run of a million steps has a hundred thousand rows and continues from its last ones.
        """
        dropped, damaged = list[dict[str, Any]](), 0
        end = self.metrics_path.stat().st_size
        if not end:
            return []
        with self.metrics_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            while end > 0:
                start = content.rfind(b"\n", 0, end - 1) + 1
                line = content[start:end]
                row = _row(line)
                if row is None:
                    damaged += 1
                elif row.get("step", 0) <= step and line.endswith(b"\n"):
                    break
                else:
                    dropped.append(row)
                end = start
        if damaged:
            print(
                f"scmbert: {self.metrics_path}: {damaged} damaged line(s), as a crash leaves them, are left out",
                file=sys.stderr,
            )
        os.truncate(self.metrics_path, end)
        return dropped[::-1]

    def metrics_rows(self) -> list[dict[str, Any]]:
        """The rows so far; none where another process writes them."""
        return [] if self._metrics is None else read_metrics(self.metrics_path)

    def write_metrics(self, row: dict[str, Any]) -> None:
        """Appends one row; it is on disk when this returns."""
        if self._metrics is not None:
            try:
                self._metrics.write(json.dumps(row) + "\n")
                self._metrics.flush()
            except OSError as error:
                raise TrainingError(f"{self.metrics_path}: cannot be written ({error.strerror}).") from error

    def close(self) -> None:
        for file in (self._metrics, self._lock):
            if file is not None:
                file.close()


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """provenance.json of a run. Raises `CheckpointError` when it is missing, damaged or incomplete."""
    path = run_dir / "provenance.json"
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
        missing = {"corpus_fingerprint", "feature_space_hash", "covariates"} - set(provenance)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it, or start a new run folder.") from error
    if missing:
        raise CheckpointError(f"{path}: without {', '.join(sorted(missing))}; restore it, or start a new run folder.")
    return provenance


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl or a goodput.jsonl; lines that a kill or a crash cut off are left out."""
    lines = path.read_bytes().splitlines()
    return [row for row in map(_row, lines) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """None: no row, but what is left of one."""
    try:
        row = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step", 0), int) else None


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *map(without_secrets, sys.argv[1:])])


def _in_words(description: dict[str, Any] | None) -> str:
    """The corpora, and the options that were given."""
    if description is None:
        return "what an earlier version did not record"
    options = [f"{name} {json.dumps(value)}" for name, value in description["options"].items()]
    corpora = ", ".join(corpus["path"] for corpus in description["corpora"])
    return f"{corpora} ({', '.join(options) or description.get('drawn', 'all cells, by size')})"


def _kind(config: Experiment) -> str:
    return "DNA" if isinstance(config, DnaExperiment) else "cells"


def locked(path: Path) -> TextIO:
    """The file, locked until it is closed or the process ends, with the holder's name in it.

    Raises `RunInProgress` when another process holds it, `CheckpointError` when its file system knows no locks, OSError
    otherwise.
    """
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise RunInProgress(
                f"{path.parent}: another process trains in this run folder ({holder}); wait for it, stop it or choose "
                "another folder."
            ) from error
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise CheckpointError(
                f"{path}: this file system knows no file locks ({error.strerror}), so two runs could spoil each other "
                "here. Mount it with locks (Lustre: -o flock; NFS: with its lock service), or choose another folder."
            ) from error
        raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def write_whole(path: Path, text: str) -> None:
    """Writes beside and renames, so that a killed process leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
