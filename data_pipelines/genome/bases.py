"""Bases as numbers: the codes that are stored and sent (a byte each), and one-hot, which models read.

    code      0  1  2  3  4
    base      A  C  G  T  N, and every letter for several bases (R, Y, ...); padding, too

The reverse complement of codes 0..3 is 3 - code, back to front; of one-hot, both axes back to front.
"""

from typing import Literal

import numpy as np

from scmbert_jax.errors import InputError

LETTERS = "ACGTN"
UNKNOWN = 4
Layout = Literal["NLC", "NCL"]  # [N, L, 4], as JAX's convolutions have it; [N, 4, L], as PyTorch's and tangermeme's do

_FOREIGN, _AMBIGUOUS = 6, 5
_CODE = np.full(256, _FOREIGN, np.uint8)
for _letters, _code in (("RYSWKMBDHVryswkmbdhvUu", _AMBIGUOUS), ("Nn", UNKNOWN)):
    _CODE[np.frombuffer(_letters.encode(), np.uint8)] = _code
for _code, _letter in enumerate("ACGT"):
    _CODE[[ord(_letter), ord(_letter.lower())]] = _code
_COMPLEMENT = np.array([3, 2, 1, 0, UNKNOWN], np.uint8)
_LETTER = np.frombuffer(LETTERS.encode(), np.uint8)
_ROWS = np.concatenate([np.eye(4, dtype=np.float32), np.zeros((1, 4), np.float32)])  # [5, 4]
# Beyond this a sequence is none: of hg38, 1 base in 30 million is neither ACGT nor N.
MOST_FOREIGN = 0.01


def encode(text: str | bytes | np.ndarray, most_foreign: float = MOST_FOREIGN, where: str = "a sequence") -> np.ndarray:
    """uint8 [L]: the codes of letters (also small ones, which FASTA uses for repeats).

    Args:
      text: letters, or their bytes (uint8 [L]).
      most_foreign: fraction of the letters that may be other than A, C, G, T and N; they become N.
      where: what an error calls it.

    Raises InputError: more than that, or anything that is no IUPAC letter of a base (a gap, a digit, a space).
    """
    letters = np.frombuffer(text.encode(errors="replace") if isinstance(text, str) else text, np.uint8)
    codes = _CODE[letters]
    foreign = codes > UNKNOWN
    if foreign.any():
        number, first = int(foreign.sum()), int(np.argmax(foreign))
        worst = codes == _FOREIGN
        if worst.any():
            first = int(np.argmax(worst))
            raise InputError(
                f"{where}: letter {first + 1:,} is {chr(letters[first])!r}, which stands for no base ({worst.sum():,} "
                f"of {len(letters):,}); expected A, C, G, T, N or an IUPAC letter. Is it DNA?"
            )
        if number > most_foreign * len(letters):
            raise InputError(
                f"{where}: {number:,} of {len(letters):,} letters are neither A, C, G, T nor N (the first is "
                f"{chr(letters[first])!r}, letter {first + 1:,}), more than {most_foreign:.0%}; is it "
                "DNA? (They would be read as N.)"
            )
        codes[foreign] = UNKNOWN
    return codes


def decode(codes: np.ndarray) -> str:
    """The letters of codes, uint8 [L]."""
    return _LETTER[codes].tobytes().decode()


def one_hot(codes: np.ndarray, layout: Layout = "NLC") -> np.ndarray:
    """float32 [..., L, 4] (`NLC`) or [..., 4, L] (`NCL`), channels A, C, G, T; N and padding are zeros.

    Args:
      codes: uint8 [..., L].
    """
    rows = _ROWS[codes]
    return rows if layout == "NLC" else np.ascontiguousarray(np.swapaxes(rows, -1, -2))


def from_one_hot(values: np.ndarray, layout: Layout = "NLC") -> np.ndarray:
    """uint8 [..., L]: the codes of one-hot values; N where all four are 0."""
    axis = -1 if layout == "NLC" else -2
    return np.where(values.any(axis), values.argmax(axis), UNKNOWN).astype(np.uint8)


def reverse_complement(codes: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """uint8 [..., L]: the other strand, read in its own direction.

    Args:
      codes: uint8 [..., L].
      lengths: int [N] for codes [N, L], bases that are real; padding behind them stays behind them.
    """
    turned = _COMPLEMENT[codes[..., ::-1]]
    if lengths is None:
        return turned
    place = np.arange(codes.shape[1])[None] + (codes.shape[1] - np.asarray(lengths))[:, None]
    padded = np.pad(turned, ((0, 0), (0, codes.shape[1])), constant_values=UNKNOWN)
    return np.take_along_axis(padded, place, axis=1)
