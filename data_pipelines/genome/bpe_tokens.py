"""Byte pair encoding of DNA, trained on the corpus: frequent stretches become one token.

Training (Sennrich et al. 2016) begins with the four bases and joins the most frequent pair of neighbours, again and
again; of pairs that are as frequent, the one whose ids come first, so that the same corpus gives the same vocabulary.
Reading joins pairs in the order in which they were learned. No token goes across an N.

Our own, and not the package `tokenizers`: it is short, and which of two equal pairs comes first is ours to keep.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from data_pipelines.files.atomic_files import growing_file
from data_pipelines.genome.bases import UNKNOWN
from data_pipelines.genome.tokens import PAD, SPECIAL, UNK, Tokens
from scmbert_jax.errors import InputError

_FIRST = len(SPECIAL)  # the ids of A, C, G and T follow; then a new one per join
_FORMAT = "scmbert_jax.bpe.1"


@dataclass(frozen=True)
class BpeTokeniser:
    """Attributes:
      joins: the pairs of ids that are joined, in their order: join j makes the id `len(SPECIAL) + 4 + j`.

    Raises InputError: a join of ids that are not there yet.
    """

    joins: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for number, pair in enumerate(self.joins):
            if len(pair) != 2 or not all(_FIRST <= one < _FIRST + 4 + number for one in pair):
                raise InputError(f"join {number:,} of a BPE vocabulary is of {pair}; expected two earlier tokens")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The letters of each id: 5 special tokens, four bases, then the joined ones."""
        names = [*SPECIAL, *"ACGT"]
        for one, other in self.joins:
            names.append(names[one] + names[other])
        return tuple(names)

    def tokens(self, codes: np.ndarray, lengths: np.ndarray | None = None) -> Tokens:
        """Tokens of codes uint8 [N, L] (`bases`); T is that of the sequence with most. An N is `[UNK]`.

        Args:
          lengths: int [N], bases that are real; None: all L.
        """
        number, length = codes.shape
        sizes = np.full(number, length, np.int64) if lengths is None else np.asarray(lengths, np.int64)
        size = _FIRST + 4 + len(self.joins)
        joins = np.array(self.joins, np.int64).reshape(-1, 2)
        keys = joins[:, 0] * size + joins[:, 1]
        order = np.argsort(keys, kind="stable")
        widths = np.array([0, 1, 0, 0, 0, *(len(name) for name in self.vocabulary[_FIRST:])], np.int32)
        ids, own = _encode(_single(codes), sizes, keys[order], order, size)
        most = int(own.max(initial=0))
        ids = np.where(np.arange(most)[None] < own[:, None], ids[:, :most], PAD).astype(np.int32)
        wide = np.where(ids == PAD, 0, widths[ids]).astype(np.int32)
        starts = (np.cumsum(wide, axis=1) - wide).astype(np.int32)
        return Tokens(ids, own.astype(np.int32), np.where(ids == PAD, 0, starts).astype(np.int32), wide)

    def save(self, path: str | Path) -> None:
        """Writes JSON. Raises CorpusError when the disk refuses."""
        with growing_file(Path(path)) as file:
            file.write(json.dumps({"format": _FORMAT, "joins": self.joins}).encode())


def load_bpe(path: str | Path) -> BpeTokeniser:
    """Reads what `BpeTokeniser.save` wrote. Raises InputError where it is something else."""
    try:
        found = json.loads(Path(path).read_bytes())
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']}")
        return BpeTokeniser(tuple((int(one), int(other)) for one, other in found["joins"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no vocabulary of BPE that can be read ({error}); train it again") from error


def train_bpe(codes: np.ndarray, num_tokens: int, lengths: np.ndarray | None = None) -> BpeTokeniser:
    """Learns a vocabulary.

    Args:
      codes: uint8 [N, L], sequences of the training chromosomes alone.
      num_tokens: of the vocabulary, with 5 special ones and 4 bases. Fewer are learned where no pair occurs twice.
      lengths: int [N], bases that are real; None: all L.

    Raises InputError: fewer than 9 tokens, no bases.
    """
    if num_tokens < _FIRST + 4:
        raise InputError(f"a BPE vocabulary of {num_tokens} tokens: expected {_FIRST + 4} or more")
    sizes = np.full(len(codes), codes.shape[1]) if lengths is None else np.asarray(lengths)
    real = np.arange(codes.shape[1])[None] < sizes[:, None]
    # All sequences in one line, with a gap (UNK) behind each.
    line = np.append(np.where(real, _single(codes), UNK), np.full((len(codes), 1), UNK), axis=1).ravel()
    if not (line >= _FIRST).any():
        raise InputError("a BPE vocabulary of no bases: the sequences are empty, or all N")
    joins: list[tuple[int, int]] = []
    counts = np.zeros((num_tokens, num_tokens), np.int32)
    while _FIRST + 4 + len(joins) < num_tokens:
        new = _FIRST + 4 + len(joins)
        counts[:new, :new] = 0
        _count_pairs(line, counts)
        place = int(np.argmax(counts[_FIRST:new, _FIRST:new]))  # the first of equals
        one, other = (int(at) + _FIRST for at in divmod(place, new - _FIRST))
        if counts[one, other] < 2:
            break
        joins.append((one, other))
        line = line[: _join(line, one, other, new)]
    return BpeTokeniser(tuple(joins))


def _single(codes: np.ndarray) -> np.ndarray:
    """int32: the ids of single bases."""
    return np.where(codes == UNKNOWN, UNK, codes.astype(np.int32) + _FIRST).astype(np.int32)


@numba.njit(nogil=True, cache=True)
def _count_pairs(line, counts):
    """Pairs of neighbours, as often as they can be joined: AAA has one pair AA."""
    previous = -1  # where the last counted pair of two equal tokens began
    for place in range(len(line) - 1):
        one, other = line[place], line[place + 1]
        if one < _FIRST or other < _FIRST:
            continue
        if one == other and previous == place - 1 and place > 0 and line[place - 1] == one:
            previous = -1
            continue
        counts[one, other] += 1
        previous = place if one == other else -1


@numba.njit(nogil=True, cache=True)
def _join(line, one, other, new):
    """Joins pairs from left to right, in place; the new length."""
    read, write = 0, 0
    while read < len(line):
        if read + 1 < len(line) and line[read] == one and line[read + 1] == other:
            line[write] = new
            read += 2
        else:
            line[write] = line[read]
            read += 1
        write += 1
    return write


@numba.njit(nogil=True, cache=True)
def _encode(ids, lengths, keys, joins, size):
    """Joins the pair that was learned first, everywhere, until there is none; (ids, their number in each row).

    keys: ascending, one * size + other; joins: the number of the join of each.
    """
    ids = ids.copy()
    own = lengths.copy()
    for row in range(len(ids)):
        number = own[row]
        while True:
            best = len(keys)
            for place in range(number - 1):
                key = np.int64(ids[row, place]) * size + ids[row, place + 1]
                at = np.searchsorted(keys, key)
                if at < len(keys) and keys[at] == key and joins[at] < best:
                    best = joins[at]
                    pair = key
            if best == len(keys):
                break
            number = _join(ids[row, :number], pair // size, pair % size, _FIRST + 4 + best)
        own[row] = number
    return ids, own
