"""Matrix Market files (.mtx, .mtx.gz): text with one `row column value` a line, as Cell Ranger writes counts.

%%MatrixMarket matrix coordinate integer general
%metadata_json: {...}
36601 892 1764222        <- rows, columns, entries
61 1 1
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.readers.compressed_copy import CompressedCopy, ScratchArray, compress_by_cell
from data_pipelines.readers.stored_matrix import canonical
from scmbert_jax.errors import InputError

# Text parsed at once: about 0.7 million entries, 20 MiB when parsed.
_BLOCK_BYTES = 8 << 20
# An entry takes at least six bytes ("1 1 1" and its end); deflate makes nothing smaller than a 1,032nd.
_FEWEST_BYTES, _MOST_INFLATED = 6, 1032
_NUMBER = {
    "integer": re.compile(rb"[+-]?\d+(\.0*)?"),
    "real": re.compile(rb"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf)", re.IGNORECASE),
}
_DTYPE = {"integer": np.dtype(np.int64), "real": np.dtype(np.float64)}


@dataclass(frozen=True)
class MatrixMarketHeader:
    """What the first lines say.

    Attributes:
      path: the file.
      kind: "integer" or "real", of the values.
      num_rows, num_columns, num_entries: of the size line.
      num_lines: lines before the first entry.
    """

    path: Path
    kind: str
    num_rows: int
    num_columns: int
    num_entries: int
    num_lines: int


def read_header(path: Path) -> MatrixMarketHeader:
    """Raises InputError when it is no Matrix Market file, or of a kind that cannot hold counts."""
    with _opened(path) as stream:
        banner = _line(stream, path)
        words = banner.lower().split()
        if len(words) != 5 or words[:2] != [b"%%matrixmarket", b"matrix"]:
            raise InputError(
                f"{path}, line 1: {_shown(banner)}; expected '%%MatrixMarket matrix coordinate integer general'"
            )
        layout, kind, symmetry = (word.decode("latin-1") for word in words[2:])
        if layout != "coordinate" or kind not in _DTYPE or symmetry != "general":
            raise InputError(
                f"{path}, line 1: a matrix of the kind '{layout} {kind} {symmetry}'; expected 'coordinate integer "
                "general' (or real): write the counts as a sparse matrix with values"
            )
        num_lines, line = 1, b"%"
        while line.startswith(b"%") or (line and not line.strip()):
            line = _line(stream, path)
            num_lines += 1
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        found = _shown(line) if line else "the end of the file"
        raise InputError(f"{path}, line {num_lines}: {found}; expected three numbers: rows, columns, entries")
    if max(map(len, sizes)) > 18:
        raise InputError(f"{path}, line {num_lines}: {_shown(line)}; no matrix is that large: the file is damaged")
    rows, columns, entries = map(int, sizes)
    most_bytes = path.stat().st_size * (_MOST_INFLATED if path.suffix == ".gz" else 1)
    if entries * _FEWEST_BYTES > most_bytes + _FEWEST_BYTES or max(rows, columns) > np.iinfo(np.int32).max:
        raise InputError(
            f"{path}, line {num_lines}: {rows:,} x {columns:,} with {entries:,} entries, which a file of "
            f"{path.stat().st_size:,} bytes cannot hold; it is truncated or damaged: copy or download it again"
        )
    return MatrixMarketHeader(path, kind, rows, columns, entries, num_lines)


class MatrixMarketFile:
    """The entries of a Matrix Market file as cells x features.

    Text cannot be read from the middle, so the first use parses it once, block by block, into temporary files (16
    bytes an entry, gone with this object); entries that are not in the order of cells, as Cell Ranger's are, are then
    put into it (another 16 bytes an entry). Memory: one block of text and a few eight-byte numbers a cell, whatever
    the order. An entry that stands twice is summed, as the format has it.
    """

    def __init__(self, header: MatrixMarketHeader, *, cells_are_columns: bool):
        self._header, self._cells_are_columns = header, cells_are_columns
        shape = (header.num_rows, header.num_columns)
        self.shape = shape[::-1] if cells_are_columns else shape
        self.dtype = _DTYPE[header.kind]
        self._copy: CompressedCopy | None = None

    def chunks(self, rows: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        if self._copy is None:
            try:
                self._copy = self._compress()
            except OSError as error:
                raise InputError(
                    f"{self._header.path}: reading it by cell needs 16 to 32 bytes for each of its "
                    f"{self._header.num_entries:,} entries in the temporary folder ({error}). Make room or set TMPDIR"
                ) from error
        for first in range(0, self.shape[0], rows):
            last = min(first + rows, self.shape[0])
            yield first, canonical(self._copy.rows(first, last, self.shape[1], str(self._header.path)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}  # temporary files stay with the process that made them

    def _compress(self) -> CompressedCopy:
        header, dtype = self._header, _DTYPE[self._header.kind]
        cells, columns, data = ScratchArray(np.int32), ScratchArray(np.int32), ScratchArray(dtype)
        values_of_cell = np.zeros(self.shape[0], np.int64)
        num_entries, last_cell, in_order = 0, 0, True
        for entries, values in self._parsed():
            if num_entries + len(values) > header.num_entries:
                raise InputError(
                    f"{header.path}: more than the {header.num_entries:,} entries that line {header.num_lines} tells "
                    "of; the file was put together from parts or edited: write it again"
                )
            self._check_places(entries, num_entries)
            cells_here, columns_here = (entries - 1).T[:: -1 if self._cells_are_columns else 1]
            in_order = in_order and bool(np.all(np.diff(cells_here, prepend=last_cell) >= 0))
            last_cell = int(cells_here[-1])
            values_of_cell += np.bincount(cells_here, minlength=self.shape[0])
            for scratch, part in ((cells, cells_here), (columns, columns_here), (data, values)):
                scratch.write(num_entries, part)
            num_entries += len(values)
        if num_entries < header.num_entries:
            raise InputError(
                f"{header.path}: ends after {num_entries:,} of the {header.num_entries:,} entries that line "
                f"{header.num_lines} tells of; the file is truncated: copy or download it again"
            )
        if in_order:
            return CompressedCopy(data, columns, np.concatenate([[0], np.cumsum(values_of_cell)]))
        slab_values = _BLOCK_BYTES // 12
        bounds = [(start, min(start + slab_values, num_entries)) for start in range(0, num_entries, slab_values)]
        slabs = ((cells.read(*slab), columns.read(*slab), data.read(*slab)) for slab in bounds)
        return compress_by_cell(values_of_cell, slabs, dtype, slab_values)

    def _check_places(self, entries: np.ndarray, num_before: int) -> None:
        sizes = (self._header.num_rows, self._header.num_columns)
        outside = np.any((entries < 1) | (entries > sizes), axis=1)
        if outside.any():
            place = int(np.argmax(outside))
            row, column = entries[place].tolist()
            raise InputError(
                f"{self._header.path}: entry {num_before + place + 1:,} is at row {row:,}, column {column:,} of a "
                f"{sizes[0]:,} x {sizes[1]:,} matrix (rows and columns count from 1); the file is damaged"
            )

    def _parsed(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(int64 [n, 2] row and column as written, values [n]) of one block of lines each; n > 0."""
        dtype = {"row": np.int64, "column": np.int64, "value": _DTYPE[self._header.kind]}
        for first_line, block in self._blocks():
            try:
                table = pd.read_csv(
                    io.BytesIO(block),
                    sep=r"\s+",
                    header=None,
                    names=[*dtype, "more"],  # a fourth number in a line would otherwise become an index
                    dtype=dtype,
                    engine="c",
                    quoting=3,
                    encoding="latin-1",
                )
            except (ValueError, OverflowError) as error:  # pandas' ParserError is a ValueError
                self._refuse_first_bad_line(first_line, block)
                raise InputError(f"{self._header.path}, after line {first_line}: cannot be read ({error})") from error
            values = table["value"].to_numpy()
            if table["more"].notna().any() or (values.dtype.kind == "f" and np.isnan(values).any()):
                self._refuse_first_bad_line(first_line, block)  # what is left is `nan`, written out
            if len(values):
                yield table[["row", "column"]].to_numpy(), values

    def _refuse_first_bad_line(self, first_line: int, block: bytes) -> None:
        number = _NUMBER[self._header.kind]
        for line, text in enumerate(block.split(b"\n"), start=first_line):
            words = text.split()
            good = len(words) == 3 and words[0].isdigit() and words[1].isdigit() and number.fullmatch(words[2])
            if words and (not good or (self._header.kind == "integer" and len(words[2]) > 18)):
                kind = "an integer" if self._header.kind == "integer" else "a number"
                raise InputError(
                    f"{self._header.path}, line {line:,}: {_shown(text)}; expected row, column and {kind}, as line 1 "
                    "says. The file is damaged or its first line is wrong: write it again"
                )

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, whole lines of at most about `_BLOCK_BYTES`)."""
        path = self._header.path
        with _opened(path) as stream:
            for _ in range(self._header.num_lines):
                _line(stream, path)
            line, rest = self._header.num_lines + 1, b""
            while block := _read(stream, path):
                block = rest + block
                end = block.rfind(b"\n") + 1
                if not end:
                    raise InputError(f"{path}, line {line:,}: {len(block):,} bytes without an end of line; damaged")
                yield line, block[:end]
                line += block.count(b"\n")
                rest = block[end:]
            if rest.strip():
                yield line, rest


def _opened(path: Path) -> BinaryIO:
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error})") from error


def _read(stream: BinaryIO, path: Path) -> bytes:
    try:
        return stream.read(_BLOCK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); copy or download it again") from error


def _line(stream: BinaryIO, path: Path) -> bytes:
    try:
        return stream.readline(1 << 16)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: truncated or damaged ({error}); copy or download it again") from error


def _shown(line: bytes) -> str:
    return repr(line.strip()[:60].decode("latin-1")) if line.strip() else "an empty line"
