"""What all tokenisers of DNA share: special tokens and their ids, and a contract."""

from typing import NamedTuple, Protocol

import numpy as np

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL))


class Tokens(NamedTuple):
    """N token sequences.

    Attributes:
      ids: int32 [N, T]; `PAD` behind the end.
      lengths: int32 [N], real tokens.
      starts: int32 [N, T], 0-based place in the sequence of each token's first base; 0 for padding.
      widths: int32 [N, T], bases of each token: it covers [start, start + width); 0 for padding.
    """

    ids: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    widths: np.ndarray


class Tokeniser(Protocol):
    """Sequences of codes to tokens. `vocabulary`: str [V], the letters of each id; the first are `SPECIAL`."""

    @property
    def vocabulary(self) -> tuple[str, ...]: ...

    def tokens(self, codes: np.ndarray, lengths: np.ndarray | None = None) -> Tokens:
        """Of codes uint8 [N, L] (`bases`), of which `lengths` (None: all) are real."""
        ...
