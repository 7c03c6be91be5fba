"""Tables of genomic intervals as text (fragments files, BED), read in blocks of lines; plain, gzip or bgzip.

Every line is checked; what is wrong is named by file and line. A block holds about 350,000 lines of a fragments file.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from scmbert_jax.errors import InputError

BLOCK_BYTES = 16 << 20
# The empty block that ends every file of bgzip (SAM specification 4.1.2); without it the end is missing.
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_HEADER = (b"#", b"track", b"browser")
# What real files keep far from: a compressed file of a few MB can hold any number of bytes.
_LONGEST_LINE, _MOST_HEADER_LINES, _MOST_COLUMNS, _LONGEST_NAME = 1 << 20, 100_000, 1000, 256


class Layout(NamedTuple):
    """What a line is made of: tab-separated columns, the first three being chromosome, start and end."""

    columns: tuple[str, ...]  # any that stand behind them are not read
    fewest: int  # of the columns; the others may be missing
    integers: tuple[str, ...]
    is_sorted: bool  # by start within a chromosome, every chromosome in one piece
    is_checked: bool = True  # impossible positions are refused here; else the caller sees to them


FRAGMENTS = Layout(("chrom", "start", "end", "barcode", "count"), 4, ("start", "end", "count"), True)
BED = Layout(("chrom", "start", "end"), 3, ("start", "end"), False)
BED6 = Layout(("chrom", "start", "end", "name", "score", "strand"), 3, ("start", "end"), False, False)
# `summit`: bases from the start to it, 0-based; -1: not called.
NARROW_PEAK = Layout(
    (*BED6.columns, "signal", "p_value", "q_value", "summit"), 10, ("start", "end", "summit"), False, False
)


class IntervalBlock(NamedTuple):
    """Consecutive lines.

    Attributes:
      first_line: number of the first, from 1.
      chrom: str [n], as the file has it.
      start, end: int64 [n], 0-based half-open, 0 <= start < end (unless the layout is not checked).
      barcode: dictionary-encoded [n] (`FRAGMENTS`), else None.
      more_columns: behind those of the layout, which were not read.
      others: the other columns of the layout that are there, by name: str [n], or int64 [n].
    """

    first_line: int
    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    barcode: pa.DictionaryArray | None
    more_columns: int
    others: dict[str, np.ndarray]


def header_lines(path: str | Path) -> list[str]:
    """The lines before the first interval: comments, and the track and browser lines of BED."""
    lines: list[str] = []
    with _open(path) as file:
        try:
            while (line := file.readline(_LONGEST_LINE)).startswith(_HEADER):
                if len(line) == _LONGEST_LINE or len(lines) == _MOST_HEADER_LINES:
                    raise InputError(
                        f"{path}, line {len(lines) + 1:,}: lines that begin with # go on for more than "
                        f"{_MOST_HEADER_LINES:,} lines, or one for {_LONGEST_LINE:,} bytes; the file is damaged"
                    )
                lines.append(line.decode(errors="replace").rstrip("\r\n"))
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, len(lines), error) from error
    return lines


def count_columns(path: str | Path) -> int:
    """Of the first interval."""
    before = len(header_lines(path))
    with _open(path) as file:
        for _ in range(before):
            file.readline()
        return file.readline(_LONGEST_LINE).count(b"\t") + 1


def interval_blocks(path: str | Path, layout: Layout) -> Iterator[IntervalBlock]:
    """The intervals of a file, in its order.

    Raises InputError naming the file and the line when it is truncated, has other columns, impossible positions, no
    interval at all, or is not sorted although it must be.
    """
    order = _Order(path)
    number = 1 + len(header_lines(path))
    first, width = number, None
    for text in _text_blocks(path, layout, number - 1):
        width = width or text[: text.find(b"\n") if b"\n" in text else len(text)].count(b"\t") + 1
        block = _parse(path, layout, text, number, width)
        if layout.is_checked:
            _check(path, block)
        if layout.is_sorted:
            order.check(block)
        yield block
        number += len(block.start)
    if number == first:
        raise InputError(f"{path}: no interval in it; expected lines of {_expected(layout)}")


def _text_blocks(path: str | Path, layout: Layout, num_header: int) -> Iterator[bytes]:
    """Whole lines, about `BLOCK_BYTES` at a time."""
    done, rest = num_header, b""
    with _open(path) as file:
        try:
            for _ in range(num_header):
                file.readline()
            while text := file.read(BLOCK_BYTES):
                end = text.rfind(b"\n") + 1
                if not end and len(text) > _LONGEST_LINE:
                    raise InputError(
                        f"{path}, line {done + 1:,}: {len(rest) + len(text):,} bytes without an end of line; expected "
                        f"lines of {_expected(layout)}"
                    )
                whole, rest = (rest + text[:end], text[end:]) if end else (b"", rest + text)
                if whole:
                    yield whole
                    done += whole.count(b"\n")
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, done, error) from error
    if rest:
        yield rest


def _open(path: str | Path) -> IO[bytes]:
    try:
        with open(path, "rb") as file:
            start = file.read(18)
            if start[:2] != b"\x1f\x8b":
                return open(path, "rb")
            if start[3] & 4 and start[12:14] == b"BC":
                file.seek(-min(len(_BGZF_END), Path(path).stat().st_size), io.SEEK_END)
                if file.read() != _BGZF_END:
                    raise InputError(
                        f"{path}: truncated: the block that ends every bgzip file is missing; copy or download it again"
                    )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file of intervals") from error
    return gzip.open(path, "rb")  # type: ignore[return-value]


def _damaged(path: str | Path, num_lines: int, error: Exception) -> InputError:
    return InputError(f"{path}: truncated or damaged after line {num_lines:,} ({error}); copy or download it again")


def _parse(path: str | Path, layout: Layout, text: bytes, first_line: int, width: int) -> IntervalBlock:
    """`width`: columns of the first line of the file, and so of all."""
    if width > _MOST_COLUMNS:
        raise InputError(f"{path}, line {first_line:,}: {width:,} columns; expected {_expected(layout)}")
    read = layout.columns[: max(width, layout.fewest)]
    names = (*read, *(f"more {i}" for i in range(width - len(read))))
    types = {name: pa.int64() if name in layout.integers else pa.string() for name in read}
    types["chrom"] = pa.dictionary(pa.int32(), pa.string())
    if "barcode" in types:
        types["barcode"] = pa.dictionary(pa.int32(), pa.string())
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(text),
            pyarrow.csv.ReadOptions(column_names=list(names), block_size=max(len(text), 1), use_threads=False),
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(read), null_values=[], strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _first_bad_line(path, layout, text, first_line, len(names), error) from error
    columns = {name: table[name].combine_chunks() for name in read}
    if "count" in columns:
        counts = columns["count"].to_numpy()
        _refuse(path, first_line, counts < 1, "a count of {0}; expected at least 1 read pair", counts)
    for name in ("chrom", "barcode"):
        if name not in columns:
            continue
        names_there = columns[name].dictionary.to_pylist()
        if "" in names_there:
            empty = columns[name].indices.to_numpy() == names_there.index("")
            _refuse(path, first_line, empty, f"no {name}; expected {_expected(layout)}")
        longest = max(range(len(names_there)), key=lambda place: len(names_there[place]))
        if len(names_there[longest]) > _LONGEST_NAME:
            too_long = columns[name].indices.to_numpy() == longest
            found = f"a {name} of {len(names_there[longest]):,} characters; expected at most {_LONGEST_NAME}"
            _refuse(path, first_line, too_long, found)
    chrom = columns["chrom"]
    return IntervalBlock(
        first_line,
        np.array(chrom.dictionary.to_pylist(), dtype=str)[chrom.indices.to_numpy()],
        columns["start"].to_numpy(),
        columns["end"].to_numpy(),
        columns.get("barcode"),
        max(0, width - len(layout.columns)),
        {name: _values(columns[name]) for name in read if name not in ("chrom", "start", "end", "barcode")},
    )


def _values(column: pa.Array) -> np.ndarray:
    return column.to_numpy() if pa.types.is_integer(column.type) else np.array(column.to_pylist(), dtype=str)


def _first_bad_line(
    path: str | Path, layout: Layout, text: bytes, first_line: int, width: int, error: Exception
) -> InputError:
    """Which line the parser stumbled over; it does not say."""
    places = {name: place for place, name in enumerate(layout.columns[:width]) if name in layout.integers}
    for number, line in enumerate(text.split(b"\n"), start=first_line):
        words = line.rstrip(b"\r").split(b"\t")
        shown = repr(line[:60].decode(errors="replace"))
        try:
            line.decode()
        except UnicodeDecodeError as problem:
            return InputError(
                f"{path}, line {number:,}: {shown} is not UTF-8 (byte {problem.start + 1}). Write the file again as "
                "UTF-8, e.g. with iconv -f latin1 -t utf-8"
            )
        if len(words) != width or not all(words[: len(layout.columns)]):
            found = f"{shown} has {len(words)} column{'s' * (len(words) != 1)}" if line else "an empty line"
            return InputError(f"{path}, line {number:,}: {found}; expected {_expected(layout)}")
        for name, place in places.items():
            if not words[place].removeprefix(b"-").isdigit():
                return InputError(f"{path}, line {number:,}: {name} is not a whole number in {shown}")
    return InputError(f"{path}, after line {first_line - 1:,}: cannot be read ({error}); expected {_expected(layout)}")


def _expected(layout: Layout) -> str:
    return f"{', '.join(layout.columns)}, separated by tabs, as many columns in every line"


def _check(path: str | Path, block: IntervalBlock) -> None:
    _refuse(path, block.first_line, block.start < 0, "starts at {0}; positions are 0-based, not negative", block.start)
    message = "ends at {0}, not after its start {1}; intervals are 0-based and half-open, so end > start"
    _refuse(path, block.first_line, block.end <= block.start, message, block.end, block.start)


def _refuse(path: str | Path, first_line: int, bad: np.ndarray, message: str, *shown: np.ndarray) -> None:
    if bad.any():
        place = int(np.argmax(bad))
        found = message.format(*(f"{values[place]:,}" for values in shown))
        raise InputError(f"{path}, line {first_line + place:,}: {found}. Write the file again")


class _Order:
    """Whether the intervals of a file come in order, block after block."""

    def __init__(self, path: str | Path):
        self._path, self._chrom, self._start = path, "", -1
        self._seen: set[str] = set()

    def check(self, block: IntervalBlock) -> None:
        chrom = np.concatenate([[self._chrom], block.chrom])
        start = np.concatenate([[self._start], block.start])
        new = chrom[1:] != chrom[:-1]
        back = ~new & (start[1:] < start[:-1])
        for place in np.flatnonzero(new).tolist():
            if str(block.chrom[place]) in self._seen:
                back[place] = True
                break
            self._seen.add(str(block.chrom[place]))
        if back.any():
            place = int(np.argmax(back))
            raise InputError(
                f"{self._path}, line {block.first_line + place:,}: {block.chrom[place]}:{block.start[place]:,} comes "
                f"after {chrom[place]}:{start[place]:,}; a fragments file is sorted. Sort it: "
                "sort -k1,1 -k2,2n fragments.tsv | bgzip > fragments.tsv.gz"
            )
        self._chrom, self._start = str(block.chrom[-1]), int(block.start[-1])
