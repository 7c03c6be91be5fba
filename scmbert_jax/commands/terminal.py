"""What every verb shares: types of arguments, messages, JSON, progress bars."""

import shutil
import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from scmbert_jax.errors import ConfigError
from scmbert_jax.plain_text import printable, say, without_secrets

_SECONDS_BETWEEN_LINES = 30.0

# Arguments that several verbs take, with what their help says where it is the same for all.
CorpusFolder = Annotated[str, tyro.conf.arg(metavar="CORPUS")]  # a folder or a URL
BuiltCorpus = Annotated[str, tyro.conf.arg(metavar="CORPUS", help="Written by scmbert corpus build.")]
RunFolder = Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]
ModelFolder = Annotated[Path, tyro.conf.arg(metavar="MODEL_DIR", help="Written by scmbert export.")]
Organism = Annotated[Literal["human", "mouse"] | None, tyro.conf.arg(help="Default: taken from the gene names.")]
Assembly = Annotated[str | None, tyro.conf.arg(help="Genome build of regions, such as hg38 or mm10.")]
ModelAssembly = Annotated[str | None, tyro.conf.arg(help="Genome build of regions. Default: the model's.")]
Report = Annotated[Path | None, tyro.conf.arg(help="Write report.html here.")]
Json = Annotated[bool, tyro.conf.arg(help="One JSON document on stdout.")]
Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Overwrite = Annotated[bool, tyro.conf.arg(help="Replace the output if it is there; never what is read.")]
CountsFile = Annotated[str, tyro.conf.arg(metavar="FILE")]
ObsFields = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=COLUMN")]
CountsFiles = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE...")]
LowCoverage = Annotated[bool, tyro.conf.arg(help="Continue even if a file measures few of the model's features.")]


def obs_fields_of(given: tuple[str, ...]) -> dict[str, str | None] | None:
    """NAME=COLUMN ... -> standard name -> column of obs; None for `NAME=`; None in all where nothing was given."""
    pairs = [text.partition("=") for text in given]
    if any(not equals for _, equals, _ in pairs):
        raise ConfigError(f"--obs-field {' '.join(given)}: expected NAME=COLUMN, e.g. cell_type=labels.")
    return {name: column or None for name, _, column in pairs} or None


def listed(words: tuple[str, ...]) -> tuple[str, ...]:
    """`a b` and `a,b` alike."""
    return tuple(part.strip() for word in words for part in word.split(",") if part.strip())


def show(text: str) -> None:
    """What was asked for, on standard output; nothing in it that a terminal obeys."""
    print(printable(without_secrets(text)))


def require_positive(**numbers: int | None) -> None:
    """Raises ConfigError for a number below 1, by the name of its option."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {number}: expected 1 or more.")


def print_json(document: Any) -> None:
    import json

    print(json.dumps(document, indent=2, allow_nan=False))


def progress(what: str) -> Callable[[int, int], None] | None:
    """A progress bar for a terminal; None where nobody watches."""
    from scmbert_jax.tasks.progress_bar import progress_of

    return progress_of(sys.stderr.isatty(), what)


def staged_progress() -> Callable[[str, int, int], None]:
    """As `progress`, for work in several stages: one bar each. Where there is no terminal, a line now and then."""
    bars: dict[str, Callable[[int, int], None]] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = progress(stage) or _lines(stage)
        bars[stage](done, total)

    return update


def _lines(what: str) -> Callable[[int, int], None]:
    """A line when the work is done, and before that one every half a minute."""
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            say(f"{what}: {done:,} of {total:,}")
            last = time.monotonic()

    return update


def print_tables(text: str) -> None:
    """Prints text with markdown tables; to a terminal that is too narrow for one, in parts below each other."""
    show(fitted(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text)


def fitted(text: str, width: int) -> str:
    """`text` whose markdown tables are at most `width` characters wide, where one column beside the names can be.

    A wide table becomes several with some of its columns each, all with the columns that name a row: those up to
    "method" or "score", else the first.
    """
    from scmbert_jax.text_table import markdown_rows, markdown_table

    lines: list[str] = []
    for is_table, group in groupby(text.split("\n"), key=lambda line: line.startswith("|")):
        block = list(group)
        rows = markdown_rows("\n".join(block)) if is_table and max(map(len, block)) > width else None
        if rows is None:
            lines += block
            continue
        widths = [3 + max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        names = 1 + next((place for place, name in enumerate(rows[0]) if name in ("method", "score")), 0)
        parts: list[list[int]] = []
        used = 0
        for column in range(names, len(rows[0])):
            used += widths[column]
            if not parts or used > width:
                parts.append(list(range(names)))
                used = 1 + sum(widths[:names]) + widths[column]
            parts[-1].append(column)
        tables = [
            markdown_table([rows[0][i] for i in part], [[row[i] for i in part] for row in rows[1:]]) for part in parts
        ]
        lines += "\n\n".join(tables).split("\n")
    return "\n".join(lines)
