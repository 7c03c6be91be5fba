"""Overlapping k-mers: token i of a sequence covers its bases [i, i + k), 0-based. k = 1 is a token per base.

One base is the default: with longer ones a change of one base changes k tokens, and scores of variants fall as k grows.
k = 3 to 6 are GeneBERT's and DNABERT's, a vocabulary of 4^k + 5.

Masking must not leak. A base is covered by k tokens, so it is hidden only where all k are: spans of bases are drawn,
and every token with a hidden base is masked. (Of tokens masked here and there, each base stands in a neighbour, too.)
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from data_pipelines.genome.bases import UNKNOWN
from data_pipelines.genome.tokens import PAD, SPECIAL, UNK, Tokens
from scmbert_jax.errors import InputError

_LONGEST = 6


@dataclass(frozen=True)
class KmerTokeniser:
    """Attributes:
      k: bases of a token, 1 to 6.

    Raises InputError: another k.
    """

    k: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.k <= _LONGEST:
            raise InputError(f"k-mers of {self.k} bases: expected 1 to {_LONGEST}")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The letters of each id: 5 special tokens, then the k-mers in the order of A, C, G, T."""
        return (*SPECIAL, *("".join(letters) for letters in product("ACGT", repeat=self.k)))

    def tokens(self, codes: np.ndarray, lengths: np.ndarray | None = None) -> Tokens:
        """Tokens of codes uint8 [N, L] (`bases`), T = L - k + 1; those with an N are `[UNK]`.

        Args:
          lengths: int [N], bases that are real; None: all L. Of a sequence shorter than k there are no tokens.
        """
        number, length = codes.shape
        sizes = np.full(number, length) if lengths is None else np.asarray(lengths)
        total = max(length - self.k + 1, 0)
        ids = np.zeros((number, total), np.int32)
        unknown = np.zeros((number, total), bool)
        for place in range(self.k):
            bases = codes[:, place : place + total]
            ids = ids * 4 + np.where(bases == UNKNOWN, 0, bases)
            unknown |= bases == UNKNOWN
        ids = np.where(unknown, UNK, ids + len(SPECIAL))
        own = np.maximum(sizes - self.k + 1, 0).astype(np.int32)
        real = np.arange(total)[None] < own[:, None]
        starts = np.where(real, np.arange(total)[None], 0).astype(np.int32)
        widths = np.where(real, self.k, 0).astype(np.int32)
        return Tokens(np.where(real, ids, PAD).astype(np.int32), own, starts, widths)


def hidden_bases(uniform: Any, rate: float, span: int) -> Any:
    """Which bases are hidden: spans of so many, that may overlap, which together hide a base with probability `rate`.

    Args:
      uniform: [N, L + span - 1], independent numbers in [0, 1), of NumPy or JAX: pure, so that who draws them decides
        what a mask is a function of.
      rate: of the bases.
      span: bases, 1 or more.

    Returns:
      bool [N, L].

    Raises InputError: a rate outside [0, 1), a span below 1.
    """
    if not (0 <= rate < 1 and span >= 1):
        raise InputError(
            f"masking {rate} of the bases in spans of {span}: expected 0 <= rate < 1 and a span of 1 or more"
        )
    begins = uniform < 1 - (1 - rate) ** (1 / span)
    length = uniform.shape[1] - span + 1
    hidden = begins[:, :length]
    for shift in range(1, span):
        hidden = hidden | begins[:, shift : shift + length]
    return hidden


def masked_kmers(hidden: Any, k: int) -> Any:
    """bool [N, L - k + 1]: the overlapping k-mers that cover a hidden base, all of which a mask has to hide.

    Args:
      hidden: bool [N, L], of NumPy or JAX.
    """
    total = max(hidden.shape[1] - k + 1, 0)
    masked = hidden[:, :total]
    for shift in range(1, k):
        masked = masked | hidden[:, shift : shift + total]
    return masked
