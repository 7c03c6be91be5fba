"""Reads labelled sequences: tables of sequences and labels, or regions of a genome with labels or a matrix.

table      .csv, .tsv (plain or gzip), .parquet: a column of sequences, of labels, perhaps of parts and chromosomes;
           .data as UCI has its splice junctions: class, name, sequence, no header
regions    BED, narrowPeak or a table, and a FASTA file; labels from a column of the table, or from a matrix of
           regions by cell types, joined by the regions' ids ("chr1:100-200", 0-based half-open)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data_pipelines.features.genome_assembly import ucsc_name
from data_pipelines.files.parquet_file import read_parquet_frame
from data_pipelines.genome.bases import MOST_FOREIGN, UNKNOWN, encode
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.header_table import is_table, read_header_table, whole_numbers
from data_pipelines.genome.interval_table import COLUMNS as INTERVAL_COLUMNS
from data_pipelines.genome.interval_table import IntervalTable, read_intervals
from data_pipelines.genome.left_out import MOST_LEFT_OUT, LeftOut, added_up, counted_in_words
from data_pipelines.genome.region_matrix import RegionMatrix, read_region_matrix
from data_pipelines.genome.sealed_chromosomes import SealedChromosomes
from data_pipelines.genome.windows import Windows, cut_windows
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.regulation.labelled import Kind, LabelledSequences, Task

Array = np.ndarray

COLUMNS = {
    "sequence": ("sequence", "seq", "dna"),
    "label": ("label", "labels", "class", "target", "y", "value"),
    "split": ("split", "part", "fold", "set"),
    "chromosome": ("chromosome", "chrom", "chr"),
    "key": ("id", "name", "key", "region"),
}
_MOST_CLASSES = 30  # of a label whose values are whole numbers
_PARTS = {"train": "train", "training": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev"} | {
    "test": "test"
}
Parts = dict[str, LabelledSequences]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
      sequence, labels, split: columns of a table; "" and (): found by their usual names (`COLUMNS`).
      task: "auto" says it by the labels: text or few whole numbers are classes (two: binary), several columns of 0 and
        1 labels, other numbers values.
      most_left_out: fraction of the rows that may be unusable.
      most_foreign: of a sequence's letters, the fraction that may stand for several bases; they are N.
      ucsc_names: chromosomes are called as UCSC calls them.
      assembly: of the FASTA file.
      width: bases of a window; None: the interval as it is. around: its middle, or the summit.
      chromosomes: which of them train, choose and test; None: no split by chromosome.
    """

    sequence: str = ""
    labels: tuple[str, ...] = ()
    split: str = ""
    task: Kind | Literal["auto"] = "auto"
    most_left_out: float = MOST_LEFT_OUT
    most_foreign: float = MOST_FOREIGN
    ucsc_names: bool = False
    assembly: str | None = None
    width: int | None = None
    around: Literal["centre", "summit"] = "centre"
    chromosomes: SealedChromosomes | None = None


@dataclass(frozen=True)
class Sequences:
    """N sequences: codes uint8 [N, L], lengths int32 [N], keys str [N]; left_out: reason -> rows that were not taken;
    rows int64 [N], of the file; table: its columns as text."""

    codes: Array
    lengths: Array
    keys: Array
    rows: Array
    left_out: dict[str, int]
    table: pd.DataFrame | None = None


def read_table(path: str | Path, reading: Reading) -> Sequences:
    """Sequences of a table. Raises InputError: no such column; more unusable rows than `most_left_out`; none left."""
    frame = _frame(path)
    column = _column(path, frame, reading.sequence, "sequence")
    texts = frame[column].str.strip().tolist()
    left_out = LeftOut(str(path), len(texts))
    labels = np.array([f"line {row + 2:,}" for row in range(len(texts))], dtype=str)
    codes: list[Array | None] = [_encoded(text, reading.most_foreign) for text in texts]
    kept = left_out.drop(np.ones(len(texts), bool), np.array([not text for text in texts], bool), "empty", labels)
    bad = np.array([own is None for own in codes], bool)
    kept = left_out.drop(kept, bad, "with letters that are no bases", labels)
    left_out.refuse(reading.most_left_out, _remedy_of_letters(texts, kept, column))
    rows = np.flatnonzero(kept)
    found = [own for row in rows.tolist() if (own := codes[row]) is not None]
    lengths = np.array([len(own) for own in found], np.int32)
    filled = np.full((len(found), int(lengths.max())), UNKNOWN, np.uint8)
    for place, own in enumerate(found):
        filled[place, : len(own)] = own
    key = next((name for name in COLUMNS["key"] if name in frame), None)
    keys = np.array(rows, dtype=str) if key is None else frame[key].to_numpy(str)[rows]
    return Sequences(filled, lengths, keys, rows, left_out.counts, frame)


def read_labelled_table(
    path: str | Path, reading: Reading, task: Task | None = None, say: Say = lambda line: None
) -> Parts:
    """Part -> its sequences; "train" alone where the table has no column of parts.

    Args:
      task: what the labels must be; the table is then one part, whatever else it says.
      say: told how many rows were left out, and why.
    """
    found = read_table(path, reading)
    _tell(say, path, found.left_out)
    assert found.table is not None
    frame = found.table.iloc[found.rows]
    columns = _label_columns(path, frame, reading)
    targets, own_task = targets_of(
        [frame[name].to_numpy(str) for name in columns], columns, reading.task, str(path), task
    )
    chromosome = next((name for name in COLUMNS["chromosome"] if name in frame), None)
    data = LabelledSequences(
        found.codes,
        found.lengths,
        targets,
        own_task,
        found.keys,
        None if chromosome is None else frame[chromosome].to_numpy(str),
        str(path),
    )
    return {"train": data} if task is not None else _in_parts(data, frame, reading)


def read_labelled_regions(
    path: str | Path,
    fasta: Fasta,
    reading: Reading,
    matrix: str | Path | None = None,
    task: Task | None = None,
    say: Say = lambda line: None,
) -> Parts:
    """Part -> sequences of regions, labelled by a column of their table, or by a matrix of regions by cell types.

    Regions that the matrix lacks (`reading.most_left_out` of them at most) are not measured: their labels are nan.
    `say` is told how many there are, and how many regions were left out, and why.

    Raises InputError: what `read_intervals`, `cut_windows` and `RegionMatrix.joined` refuse; no labels.
    """
    table, windows = read_windows(path, fasta, reading)
    _tell(say, path, added_up(table.left_out, windows.left_out))
    ids, frame = table.ids[windows.rows], pd.DataFrame(index=range(len(windows.rows)))
    if is_table(path):
        whole = _frame(path)
        frame = whole.iloc[_rows_of(path, table, reading.ucsc_names)[windows.rows]]
    if matrix is not None:
        targets, own_task = _of_matrix(read_region_matrix(matrix), ids, reading, task, say)
    elif is_table(path):
        columns = _label_columns(path, frame, reading)
        values = [frame[name].to_numpy(str) for name in columns]
        targets, own_task = targets_of(values, columns, reading.task, str(path), task)
    else:
        raise InputError(
            f"{path}: intervals have no labels; give a table of intervals with a column of labels, or --matrix"
        )
    chromosome = table.chromosome[windows.rows]
    data = LabelledSequences(windows.codes, windows.lengths, targets, own_task, ids, chromosome, str(path))
    return {"train": data} if task is not None else _in_parts(data, frame, reading)


def read_windows(path: str | Path, fasta: Fasta, reading: Reading) -> tuple[IntervalTable, Windows]:
    """Intervals and their sequences, of `reading.width`."""
    table = read_intervals(path, fasta, ucsc_names=reading.ucsc_names, most_left_out=reading.most_left_out)
    windows = cut_windows(
        fasta, table, reading.width, around=reading.around, use_strand=True, most_left_out=reading.most_left_out
    )
    return table, windows


def targets_of(
    columns: Sequence[Array], names: Sequence[str], kind: Kind | Literal["auto"], where: str, task: Task | None = None
) -> tuple[Array, Task]:
    """(float32 [N, T], the task) of columns of text, str [N] each.

    Args:
      names: of the columns.
      task: what they must be: that of the training part.
    """
    numbers = [
        pd.to_numeric(pd.Series(own).replace({"": "nan", "NA": "nan"}), errors="coerce").to_numpy() for own in columns
    ]
    is_number = [bool((np.isfinite(own) | _empty(text)).all()) for own, text in zip(numbers, columns, strict=True)]
    kind = task.kind if task is not None else _kind(numbers, is_number) if kind == "auto" else kind
    if kind in ("labels", "values"):
        if not all(is_number):
            name = names[is_number.index(False)]
            raise InputError(f"{where}, column {name}: holds text; labels of the kind {kind} are numbers")
        found = Task(kind, tuple(names)) if task is None else task
        if task is not None and tuple(names) != task.names:
            raise InputError(f"{where}: columns {', '.join(names[:5])}; expected {', '.join(task.names[:5])}")
        return np.stack(numbers, 1).astype(np.float32), found
    if len(columns) > 1:
        raise InputError(f"{where}: {len(columns)} columns of labels; a task of the kind {kind} has one")
    text = np.char.strip(np.asarray(columns[0], dtype=str))
    if (missing := _empty(text)).any():
        row = int(np.argmax(missing))
        raise InputError(
            f"{where}, column {names[0]}: row {row + 1:,} has no label ({str(text[row])!r}); remove such rows"
        )
    classes = sorted(set(text.tolist()), key=_by_number) if task is None else list(task.names)
    if unknown := sorted(set(text.tolist()) - set(classes)):
        raise InputError(f"{where}, column {names[0]}: label {unknown[0]!r}, which the training part has not")
    if task is None and len(classes) < 2:
        raise InputError(f"{where}, column {names[0]}: all labels are {classes[0]!r}; expected at least two classes")
    found = task or Task("binary" if len(classes) == 2 else "classes", tuple(classes))
    place = {name: number for number, name in enumerate(classes)}
    return np.array([[place[one]] for one in text.tolist()], np.float32), found


def _kind(numbers: list[Array], is_number: list[bool]) -> Kind:
    if len(numbers) > 1:
        zero_or_one = all(is_number) and all(np.isin(own[np.isfinite(own)], (0, 1)).all() for own in numbers)
        return "labels" if zero_or_one else "values"
    if not is_number[0]:
        return "classes"
    known = numbers[0][np.isfinite(numbers[0])]
    few = len(np.unique(known)) <= _MOST_CLASSES and (known % 1 == 0).all()
    return "classes" if few else "values"


def _empty(text: Array) -> Array:
    return np.isin(np.char.lower(np.char.strip(np.asarray(text, dtype=str))), ("", "na", "nan"))


def _by_number(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _frame(path: str | Path) -> pd.DataFrame:
    """All columns as text, names in small letters."""
    if str(path).lower().endswith(".parquet"):
        try:
            raw = read_parquet_frame(Path(path))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); expected a table with a column of sequences"
            ) from error
        raw = raw.astype(object).where(raw.notna(), "").astype(str)
        return raw.rename(columns=lambda name: str(name).strip().lower())
    if str(path).lower().endswith((".data", ".data.gz")):
        return _uci_frame(path)
    if not is_table(path):
        raise InputError(f"{path}: expected a table: .csv, .tsv (plain or .gz) or .parquet; regions need --fasta")
    return read_header_table(path, {}, ())[0]


def _uci_frame(path: str | Path) -> pd.DataFrame:
    columns = ["label", "name", "sequence", "more"]
    try:
        raw = pd.read_csv(path, names=columns, dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected lines of class, name, sequence") from error
    raw = raw.fillna("").apply(lambda column: column.str.strip())
    if (bad := ((raw.sequence == "") | (raw.more != "")).to_numpy()).any():
        raise InputError(f"{path}, row {int(np.argmax(bad)) + 1:,}: expected class, name, sequence")
    return raw[columns[:3]]


def _column(path: str | Path, frame: pd.DataFrame, given: str, role: str) -> str:
    names = (given.strip().lower(),) if given else COLUMNS[role]
    found = next((name for name in names if name in frame), None)
    if found is None:
        raise InputError(
            f"{path}: columns {', '.join(frame.columns[:8])}; expected {' or '.join(names)} (--{role}-column names it)"
        )
    return found


def _label_columns(path: str | Path, frame: pd.DataFrame, reading: Reading) -> list[str]:
    if not reading.labels:
        return [_column(path, frame, "", "label")]
    return [_column(path, frame, name, "label") for name in reading.labels]


def _encoded(text: str, most_foreign: float) -> Array | None:
    try:
        return encode(text, most_foreign) if text else np.zeros(0, np.uint8)
    except InputError:
        return None


def _remedy_of_letters(texts: list[str], kept: Array, column: str) -> str:
    if kept.all():
        return ""
    row = int(np.argmin(kept))
    return f"Sequences are letters ACGTN; column {column} has {texts[row][:30]!r}. Mend the file, or choose a column."


def _in_parts(data: LabelledSequences, frame: pd.DataFrame, reading: Reading) -> Parts:
    """By the column of parts of their table, or by chromosome. Chromosomes that were asked for come first."""
    split = reading.split.strip().lower()
    if split and split not in frame:
        raise InputError(
            f"{data.where}: no column {split!r} (--split-column); there are {', '.join(frame.columns[:8])}"
        )
    if split and reading.chromosomes is not None:
        raise ConfigError(f"{data.where}: parts by column {split!r} and by chromosome; give one of the two")
    if reading.chromosomes is None:
        split = split or next((name for name in COLUMNS["split"] if name in frame), "")
    if split:
        return _by_names(data, frame[split].to_numpy(str), split)
    return _by_chromosome(data, reading)


def _by_names(data: LabelledSequences, names: Array, column: str) -> Parts:
    known = [_PARTS.get(name.strip().lower()) for name in names.tolist()]
    if None in known:
        row = known.index(None)
        raise InputError(f"{data.where}, column {column}: {str(names[row])!r}; expected {', '.join(_PARTS)}")
    parts = np.array(known)
    found = {part: data.take(parts == part) for part in ("train", "dev", "test") if (parts == part).any()}
    if "train" not in found:
        raise InputError(f"{data.where}, column {column}: no row is of train; nothing to fit to is left")
    return found


def _by_chromosome(data: LabelledSequences, reading: Reading) -> Parts:
    if reading.chromosomes is None:
        return {"train": data}
    if data.chromosome is None:
        raise ConfigError(f"{data.where}: parts by chromosome need a column of chromosomes; there is none")
    found = {}
    for part, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        rows = reading.chromosomes.rows(data.chromosome, part)  # type: ignore[arg-type]
        if not len(rows):
            there = ", ".join(np.unique(data.chromosome).tolist()[:8])
            raise InputError(f"{data.where}: no sequence is on a chromosome of {name}; there are {there}")
        found[name] = data.take(rows)
    return found


def _of_matrix(matrix: RegionMatrix, ids: Array, reading: Reading, task: Task | None, say: Say) -> tuple[Array, Task]:
    columns = list(reading.labels) or None
    values, known = matrix.joined(ids, columns, reading.most_left_out)
    if not known.all():
        say(f"{matrix.where}: {int((~known).sum()):,} regions are not in it: their labels are not measured")
    names = tuple(columns or matrix.columns.tolist())
    dense = np.where(known[:, None], values.toarray(), np.nan).astype(np.float32)
    kind: Kind = "labels" if np.isin(dense[known], (0, 1)).all() else "values"
    kind = kind if reading.task == "auto" else reading.task
    if kind not in ("labels", "values"):
        raise ConfigError(f"{matrix.where}: a matrix gives labels or values, not {kind}")
    found = Task(kind, names)
    if task is not None and found != task:
        raise InputError(f"{matrix.where}: {kind} of {', '.join(names[:5])}; expected {', '.join(task.names[:5])}")
    return dense, found


def _tell(say: Say, path: str | Path, left_out: Mapping[str, int]) -> None:
    for line in counted_in_words(left_out):
        say(f"{path}: {line}")


def _rows_of(path: str | Path, table: IntervalTable, ucsc_names: bool) -> Array:
    """int64 [n]: the row of the file of each interval, found by its place in the genome."""
    raw, names = read_header_table(path, INTERVAL_COLUMNS, ("chromosome", "start", "end"))
    chromosomes = raw[names["chromosome"]].str.strip().tolist()
    if ucsc_names:
        chromosomes = [ucsc_name(name) for name in chromosomes]
    start, end = (whole_numbers(path, raw[names[side]]).tolist() for side in ("start", "end"))
    places: dict[tuple[str, int, int], int] = {}
    for row, key in enumerate(zip(chromosomes, start, end, strict=True)):
        if key in places:
            raise InputError(f"{path}, line {row + 2:,}: {key[0]}:{key[1]}-{key[2]} is there twice; remove one")
        places[key] = row
    keys = zip(table.chromosome.tolist(), table.start.tolist(), table.end.tolist(), strict=True)
    return np.array([places[key] for key in keys], np.int64)
