"""Where the sequences of a FASTA file lie: as a .fai file says it, or out of the file itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.genome.random_text import RandomText, pieces
from scmbert_jax.errors import InputError

INDEX_AGAIN = "make it again (samtools faidx), or remove it: it is not needed"


class Record(NamedTuple):
    """Where a sequence lies in the (unpacked) file: the columns of a .fai file."""

    length: int  # bases
    offset: int  # of its first base, bytes
    line_bases: int
    line_width: int  # bytes, with what ends the line


def stored_index(path: Path, size: int) -> Iterator[tuple[str, Record]]:
    """The name and record of each sequence in a .fai file.

    Args:
      size: bytes of the (unpacked) FASTA file.

    Raises InputError: damaged, or of a larger file.
    """
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split("\t")
        if len(words) < 5 or not all(word.isdigit() for word in words[1:5]):
            raise InputError(f"{path}, line {number:,}: {line[:60]!r} is no line of a .fai file; {INDEX_AGAIN}")
        record = Record(*(int(word) for word in words[1:5]))
        if record.offset + record.length > size or not 0 < record.line_bases <= record.line_width:
            raise InputError(f"{path}, line {number:,}: of another file than the FASTA beside it; {INDEX_AGAIN}")
        yield words[0], record


def made_index(text: RandomText, name: str) -> Iterator[tuple[str, Record]]:
    """The same out of the text. `name`: of the file, for errors. Raises InputError for what is no FASTA."""
    records = _Records(name)
    rest, at = b"", 0
    for piece in pieces(text):
        letters = rest + piece
        end = letters.rfind(b"\n") + 1
        yield from records.ended_in(letters[:end], at)
        rest, at = letters[end:], at + end
    if rest:
        yield from records.ended_in(rest + b"\n", at)
    yield from records.begun()


class _Records:
    """Takes a file piece after piece, each of whole lines."""

    def __init__(self, file: str):
        self._file, self._name = file, ""
        self._length, self._offset, self._bases, self._width, self._ended = 0, 0, 0, 0, False

    def ended_in(self, text: bytes, at: int) -> Iterator[tuple[str, Record]]:
        """The records that end in a piece, which begins at byte `at` of the file."""
        letters = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(letters == ord("\n"))
        if not len(ends):
            return
        starts = np.concatenate([[0], ends[:-1] + 1])
        bases = ends - starts - ((ends > starts) & (letters[ends - 1] == ord("\r")))  # of each line
        heads = np.flatnonzero(letters[starts] == ord(">")).tolist()
        self._add(bases, starts + at, ends + at, 0, heads[0] if heads else len(ends))
        for head, stop in zip(heads, [*heads[1:], len(ends)], strict=True):
            yield from self.begun()
            words = text[starts[head] + 1 : ends[head]].split()
            if not words:
                raise InputError(f"{self._file}, byte {at + int(starts[head]):,}: no name of a sequence behind >")
            self._name = words[0].decode(errors="replace")
            self._length, self._offset, self._bases, self._width, self._ended = 0, 0, 0, 0, False
            self._add(bases, starts + at, ends + at, head + 1, stop)

    def begun(self) -> Iterator[tuple[str, Record]]:
        """The record whose lines came last, if there is one."""
        if self._name:
            yield self._name, Record(self._length, self._offset, max(self._bases, 1), max(self._width, 1))

    def _add(self, bases: np.ndarray, starts: np.ndarray, ends: np.ndarray, first: int, stop: int) -> None:
        """Lines [first, stop) of a piece belong to the record that was begun."""
        lines = bases[first:stop]
        if not lines.any():
            self._ended = self._ended or len(lines) > 0
            return
        if not self._name:
            raise InputError(f"{self._file}: does not begin with > and the name of a sequence; expected FASTA")
        if not self._bases:
            self._bases, self._offset = int(lines[0]), int(starts[first])
            self._width = int(ends[first] - starts[first]) + 1
        last = int(np.flatnonzero(lines)[-1])  # empty ones at the end of a record do no harm
        if self._ended or (lines[:last] != self._bases).any() or lines[last] > self._bases:
            raise InputError(
                f"{self._file}, {self._name}: lines of unequal length; all lines of a sequence but the last have as "
                "many bases. Write it again, e.g. with seqkit seq -w 60"
            )
        self._ended = bool(lines[-1] != self._bases)
        self._length += int(lines.sum())
