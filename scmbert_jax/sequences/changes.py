"""What a change of a sequence does to f: a motif placed into it, a stretch of it taken away, a variant.

Every effect has the same sign: f of the changed sequence minus f of the sequence as it was.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_pipelines.genome.bases import decode, encode, from_one_hot
from data_pipelines.genome.bases import one_hot as one_hot_of
from scmbert_jax.errors import InputError, ScmbertWarning
from scmbert_jax.sequences.dinucleotide_shuffle import dinucleotide_shuffles
from scmbert_jax.sequences.sequence_function import BATCH_SIZE, SequenceFunction, checked_one_hot, outputs


@dataclass(frozen=True)
class Change:
    """f of N sequences before and after.

    Attributes:
      before: float32 [N] or [N, K].
      after: float32, as `before`; of an ablation [N, S] or [N, S, K], once per replacement.
    """

    before: np.ndarray
    after: np.ndarray

    @property
    def effect(self) -> np.ndarray:
        """float32, as `after`: after minus before."""
        several = self.after.ndim > self.before.ndim
        return self.after - (self.before[:, None] if several else self.before)


def marginalise(
    function: SequenceFunction,
    insert: str | np.ndarray,
    backgrounds: Any,
    start: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Change:
    """Places a sequence into backgrounds: its effect on f, apart from what else stands around it in a genome.

    Args:
      function: f of one-hot [N, L, 4] (`sequence_function`).
      insert: letters ("TGACTCA", N leaves the background as it is), or one-hot [W, 4] (zeros do so).
      backgrounds: one-hot float [N, L, 4]; dinucleotide shuffles of the sequences you work with are a good choice.
      start: 0-based position of its first base; None: in the middle, (L - W) // 2.
      batch_size: sequences at once; bounds the memory.

    Returns:
      A change with `after` [N] or [N, K]; the mean of its effect over N is the marginal effect.

    Raises InputError: it does not fit in, or what `outputs` refuses.
    """
    before = checked_one_hot(backgrounds, "backgrounds")
    piece = one_hot_of(encode(insert, where="insert")) if isinstance(insert, str) else insert
    piece = checked_one_hot(np.asarray(piece)[None], "insert (as [1, W, 4])")[0]
    width, length = len(piece), before.shape[1]
    first = (length - width) // 2 if start is None else start
    if not 0 <= first <= length - width:
        raise InputError(f"{width} bases placed at {first} (0-based) do not lie inside backgrounds of {length} bases")
    after = before.copy()
    known = piece.any(1)
    after[:, first : first + width][:, known] = piece[known]
    return Change(outputs(function, before, batch_size), outputs(function, after, batch_size))


def ablate(
    function: SequenceFunction,
    one_hot: Any,
    start: int | np.ndarray,
    end: int | np.ndarray,
    by: Literal["shuffle", "unknown"] = "shuffle",
    *,
    num_shuffles: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Change:
    """Replaces the bases [start, end) of each sequence, 0-based half-open: what f owes to them.

    Args:
      function: f of one-hot [N, L, 4] (`sequence_function`).
      one_hot: float [N, L, 4].
      start, end: whole numbers, or int [N], one stretch per sequence.
      by: shuffles that keep the stretch's dinucleotides and its first and last base, so that those of the whole
        sequence stay, too; or N, which f may never have seen.
      num_shuffles: S; of N there is one.
      seed: of the shuffles.
      batch_size: sequences at once; bounds the memory.

    Returns:
      A change with `after` [N, S] or [N, S, K].

    Short stretches may have no other order of their dinucleotides; these are warned of (`ScmbertWarning`): take a wider
    stretch, or N.

    Raises InputError: a stretch outside the sequences, or what `outputs` refuses.
    """
    before = checked_one_hot(one_hot)
    number, length, _ = before.shape
    try:
        first, last = (np.broadcast_to(np.asarray(place, np.int64), (number,)) for place in (start, end))
    except ValueError as error:
        raise InputError(f"start {np.shape(start)}, end {np.shape(end)}: expected a number, or [{number}]") from error
    if not ((first >= 0) & (first < last) & (last <= length)).all():
        row = int(np.argmin((first >= 0) & (first < last) & (last <= length)))
        raise InputError(
            f"sequence {row}: stretch [{first[row]}, {last[row]}), 0-based half-open: not inside its {length} bases"
        )
    if by == "unknown":
        away = (np.arange(length) >= first[:, None]) & (np.arange(length) < last[:, None])
        changed = np.where(away[..., None], 0, before)[:, None]
    elif by == "shuffle":
        changed = one_hot_of(_with_shuffled(from_one_hot(before), first, last, num_shuffles, seed))
    else:
        raise InputError(f"by {by!r}: expected shuffle or unknown")
    shape = changed.shape[:2]
    after = outputs(function, changed.reshape(-1, length, 4), batch_size)
    return Change(outputs(function, before, batch_size), after.reshape(*shape, *after.shape[1:]))


def variant_effects(function: SequenceFunction, reference: Any, alternate: Any, batch_size: int = BATCH_SIZE) -> Change:
    """f of the sequences with the alternate allele (`after`) and with the reference allele (`before`).

    Args:
      function: f of one-hot [N, L, 4] (`sequence_function`).
      reference, alternate: one-hot float [N, L, 4], row by row of the same variant
        (`data_pipelines.genome.variant_windows.variant_windows` makes them, and checks the reference bases).
      batch_size: sequences at once; bounds the memory.

    Raises InputError: two shapes, alleles that do not differ, or what `outputs` refuses.
    """
    before, after = checked_one_hot(reference, "reference"), checked_one_hot(alternate, "alternate")
    if before.shape != after.shape:
        raise InputError(f"reference {list(before.shape)}, alternate {list(after.shape)}: expected the same shape")
    same = (before == after).all((1, 2))
    if same.any():
        raise InputError(
            f"{int(same.sum()):,} of {len(same):,} variants change nothing in their window (the first: row "
            f"{int(np.argmax(same))}): is the variant inside it, or N?"
        )
    return Change(outputs(function, before, batch_size), outputs(function, after, batch_size))


def _with_shuffled(codes: np.ndarray, first: np.ndarray, last: np.ndarray, num_shuffles: int, seed: int) -> np.ndarray:
    """uint8 [N, S, L]: codes [N, L] with stretches [first, last) shuffled; those of one width at once."""
    changed = np.repeat(codes[:, None], num_shuffles, axis=1)
    for width in np.unique(last - first).tolist():
        rows = np.flatnonzero(last - first == width)
        places = first[rows, None] + np.arange(width)  # [n, width]
        shuffled = dinucleotide_shuffles(codes[rows[:, None], places], num_shuffles, seed)
        changed[rows[:, None, None], np.arange(num_shuffles)[None, :, None], places[:, None]] = shuffled
    same = (changed == codes[:, None]).all((1, 2))
    if same.any():
        row = int(np.argmax(same))
        warnings.warn(
            f"{int(same.sum()):,} of {len(same):,} stretches came back from {num_shuffles} shuffles as they were, e.g. "
            f"sequence {row}, {decode(codes[row, first[row] : last[row]][:40])}: their dinucleotides have no "
            "(or hardly any) other order, so their effect is 0 by construction. Take a wider stretch, or by='unknown'",
            ScmbertWarning,
            stacklevel=3,
        )
    return changed
