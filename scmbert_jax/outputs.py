"""Where a command may write. One rule for all verbs:

Nothing that is there is replaced without `--overwrite`. Whatever was asked for, an input is never replaced, nor a link,
nor a folder that is not of the kind to be written or that holds more than its kind does.
"""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from scmbert_jax.errors import CheckpointError, ConfigError, CorpusError, InputError, UserError

_MOST_MARK_BYTES = 64 << 20  # of the file that says what a folder is


class FolderKind(NamedTuple):
    """How a folder that this program wrote is told from others.

    Attributes:
      name: for people.
      mark: a JSON file in it.
      fields: that the object in `mark` has.
      parts: a pattern that the name of everything in it matches.
      error: what is raised about it.
    """

    name: str
    mark: str
    fields: frozenset[str]
    parts: re.Pattern[str]
    error: type[UserError]


CORPUS = FolderKind(
    "a corpus",
    "manifest.json",
    frozenset({"format", "format_version", "shards", "fingerprint"}),
    re.compile(
        r"manifest\.json|feature_space\.parquet|measured\.npz|obs\.parquet|dataset_info\.json|features\.json"
        r"|DATA_CARD\.md|shard-\d+\.(tfrecord|offsets)|.*\.growing|\..*\.partial-.*"
    ),
    CorpusError,
)
UNFINISHED_CORPUS = FolderKind(
    "an unfinished build",
    "plan.json",
    frozenset({"versions", "options", "inputs"}),
    re.compile(CORPUS.parts.pattern + r"|plan\.json|work"),
    CorpusError,
)
RUN = FolderKind(
    "a run folder",
    "provenance.json",
    frozenset({"corpus_fingerprint", "feature_space_hash"}),
    re.compile(
        r"config\.json|provenance\.json|feature_space\.parquet|feature_statistics\.npz|metrics\.jsonl|goodput\.jsonl"
        r"|genome_layout\.npz|region_embeddings\.npz|trained_cells\.npz|network\.npz|lock|tensorboard|trackers"
        r"|checkpoints|set_aside|nonfinite|profile|.*\.partial"
    ),
    CheckpointError,
)
MODEL = FolderKind(
    "a model folder",
    "model.json",
    frozenset({"format_version", "step", "provenance"}),
    re.compile(
        r"model\.json|config\.json|feature_space\.parquet|feature_statistics\.npz|trained_cells\.npz|network\.npz"
        r"|genome_layout\.npz|region_embeddings\.npz|weights|MODEL_CARD\.md|digests\.json"
    ),
    CheckpointError,
)
ANNOTATION_SCORES = FolderKind(
    "a folder of annotation scores",
    "suite.json",
    frozenset({"suite", "format_version"}),
    re.compile(r"suite\.json|annotation\.json|annotation\.md|report\.html|fits|\..*\.partial-.*"),
    ConfigError,
)
ANNOTATOR = FolderKind(
    "an annotator",
    "annotator.json",
    frozenset({"format_version", "method", "types"}),
    re.compile(r"annotator\.json|annotator\.npz|labelled_cells\.npz|feature_space\.parquet|model|ANNOTATOR_CARD\.md"),
    CheckpointError,
)
REGULATORY = FolderKind(
    "a regulatory model",
    "regulatory.json",
    frozenset({"format_version", "task", "parts"}),
    re.compile(r"regulatory\.json|regulatory\.npz|REGULATORY_CARD\.md"),
    CheckpointError,
)
ATTRIBUTIONS = FolderKind(
    "a folder of attributions",
    "attributions.json",
    frozenset({"format_version", "model", "method"}),
    re.compile(r"attributions\.json|ohe\.npz|shap\.npz|sequences\.csv"),
    ConfigError,
)
EXPLANATION = FolderKind(
    "an explanation",
    "explanation.json",
    frozenset({"format_version", "annotator", "methods"}),
    re.compile(r"explanation\.json|attributions\.parquet|markers\.csv|deletion\.csv|sanity\.csv|report\.html"),
    ConfigError,
)
_PUBLISHED = (CORPUS, MODEL, RUN, ANNOTATOR, ANNOTATION_SCORES, EXPLANATION, REGULATORY, ATTRIBUTIONS)


def check_output_file(
    path: Path, inputs: Sequence[object] = (), overwrite: bool = False, error: type[UserError] = InputError
) -> None:
    """May a file be written to `path`? To be asked before the work.

    Args:
      inputs: what is read: files, folders, and specs such as `A+B` or `FILE?option=value`.
      overwrite: may a file that is there be replaced?
      error: what to raise.

    Raises:
      error: it may not; the message says why and what to do.
    """
    with _looking_at(path, error):
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise error(f"{path}: cannot be written ({path.parent} is no folder that can be written to).")
        _refuse_links(path, error)
        if path.is_dir():
            raise error(f"{path}: cannot be written (is a folder); choose another place.")
        _refuse_inputs(path, inputs, error)
        if path.exists() and not path.is_file():
            raise error(f"{path}: is no ordinary file; choose another place.")
        if path.exists() and not overwrite:
            raise error(f"{path}: is there already; choose another name, or give --overwrite to replace it.")


def check_output_folder(path: Path, kind: FolderKind, inputs: Sequence[object] = (), overwrite: bool = False) -> None:
    """May a folder of this kind be made at `path`, or replace what is there? To be asked before the work.

    Args:
      inputs: as of `check_output_file`.
      overwrite: may a folder of the same kind be replaced? An empty one may always.

    Raises:
      kind.error: it may not; the message says why and what to do.
    """
    with _looking_at(path, kind.error):
        _refuse_links(path, kind.error)
        _refuse_inputs(path, inputs, kind.error)
        if not path.exists():
            return
        if not path.is_dir():
            raise kind.error(f"{path}: is there and is no folder; choose another name.")
        if not any(path.iterdir()):
            return
        refuse_another_kind(path, kind)
    if not overwrite:
        raise kind.error(f"{path}: is there already; choose another name, remove it, or give --overwrite to replace it")


def refuse_another_kind(path: Path, kind: FolderKind) -> None:
    """Raises `kind.error` where a folder that is not empty is not of this kind, or holds more than its kind does."""
    if not is_of_kind(path, kind):
        found = next((other.name for other in _PUBLISHED if other != kind and is_of_kind(path, other)), "")
        raise kind.error(
            f"{path}: is there and is not {kind.name}{f' but {found}' if found else ''}: nothing but {kind.name} is "
            "written over. Choose another name"
        )
    if foreign := foreign_names(path, kind):
        raise kind.error(
            f"{path}: is {kind.name}, but holds {foreign[0]!r}, which is none of its files and would be lost: move "
            "that elsewhere, or choose another name"
        )


def begin_scores(path: Path, kind: FolderKind, inputs: Sequence[object] = ()) -> None:
    """Makes a folder of scores, or finds one that an earlier command began: its fits are kept, its reports made anew.

    Raises `kind.error` for a link, a file, a folder of another kind, or a place that cannot be written.
    """
    with _looking_at(path, kind.error):
        _refuse_links(path, kind.error)
        _refuse_inputs(path, inputs, kind.error)
        if path.exists() and not path.is_dir():
            raise kind.error(f"{path}: is there and is no folder; choose another name.")
        if path.is_dir() and any(path.iterdir()):
            refuse_another_kind(path, kind)
        path.mkdir(parents=True, exist_ok=True)
        (path / kind.mark).write_text(json.dumps({"suite": kind.name, "format_version": 1}) + "\n")


def check_run_folder(path: Path) -> None:
    """May a run be started or continued in `path`? A run adds to its folder and replaces nothing in it.

    Raises `CheckpointError` for a link, a file, or a folder of another kind. Whether a run folder belongs to this run
    is not asked here.
    """
    with _looking_at(path, CheckpointError):
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path}: the run folder cannot be written (is no folder).")
        if not path.is_dir() or is_of_kind(path, RUN):
            return
        for other in (CORPUS, MODEL, UNFINISHED_CORPUS):
            if (path / other.mark).exists():
                raise CheckpointError(f"{path}: is {other.name}, not a run folder; name another folder for the run.")
        # A start that was killed leaves some of its files; `config.json` and `provenance.json` come last.
        if not (path / "config.json").exists() and (foreign := foreign_names(path, RUN)):
            raise CheckpointError(
                f"{path}: holds {foreign[0]!r} and is no run folder; name another folder, or an empty one."
            )


def is_of_kind(path: Path, kind: FolderKind) -> bool:
    """Whether the folder has the mark of its kind, with its fields in it."""
    mark = path / kind.mark
    try:
        if mark.is_symlink() or not mark.is_file() or mark.stat().st_size > _MOST_MARK_BYTES:
            return False
        document = json.loads(mark.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and kind.fields <= set(document)


def foreign_names(path: Path, kind: FolderKind) -> list[str]:
    """What is in a folder and is no part of its kind, in the order of the alphabet."""
    return sorted(entry.name for entry in path.iterdir() if not kind.parts.fullmatch(entry.name))


@contextmanager
def _looking_at(path: Path, error: type[UserError]) -> Iterator[None]:
    try:
        yield
    except OSError as refused:
        raise error(f"{path}: cannot be written ({refused.strerror or refused}); choose another place.") from refused


def _refuse_links(path: Path, error: type[UserError]) -> None:
    if path.is_symlink():
        raise error(f"{path}: is a link (to {os.readlink(path)}); name the place itself, or remove the link.")


def _refuse_inputs(path: Path, inputs: Iterable[object], error: type[UserError]) -> None:
    place = path.resolve()
    for given in inputs:
        for source in local_paths(given):
            if path.exists() and path.samefile(source):
                raise error(f"{path}: is what is read; give the output another name.")
            if place.is_relative_to(source.resolve()):
                raise error(f"{path}: lies inside {source}, which is read; choose another place.")
            if path.is_dir() and source.resolve().is_relative_to(place):
                raise error(f"{path}: holds {source}, which is read; choose another place.")


def local_paths(spec: object) -> list[Path]:
    """What a spec names on this machine: `A+B`, `soma:PLACE?option=value` and `FILE?option=value` included."""
    if not isinstance(spec, (str, os.PathLike)):
        return []
    text = os.fspath(spec)
    if not isinstance(text, str):
        return []
    bare = text.removeprefix("soma:").partition("?")[0]
    names = [text, bare, *text.split("+"), *(part.partition("?")[0] for part in bare.split("+"))]
    return [Path(name) for name in dict.fromkeys(names) if name and os.path.lexists(name) and os.path.exists(name)]


# --- what grows beside its place -------------------------------------------------------------------------------------


def partial_beside(path: Path) -> Path:
    """A name beside `path` for what will become it. What killed processes of this machine left there is removed."""
    mine = f".{path.stem}.partial-{socket.gethostname()}-"
    for left in path.parent.iterdir():
        number = left.name.removeprefix(mine).removesuffix(path.suffix)
        if left.name.startswith(mine) and number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
    return path.with_name(f"{mine}{os.getpid()}{path.suffix}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def put_folder(partial: Path, path: Path) -> None:
    """Renames a finished folder to its place; what `check_output_folder` allowed to replace goes when it is there.

    Raises OSError."""
    if path.is_dir():
        old = path.with_name(f"{partial.name}.replaced")
        path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(path)
