"""Rows of a file that cannot be used: counted by reason, shown by an example, and refused where they are too many."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from scmbert_jax.errors import InputError

# A few regions at the ends of chromosomes are usual; more is a mistake of the whole file.
MOST_LEFT_OUT = 0.01


@dataclass
class LeftOut:
    """What was left out of a file.

    Attributes:
      where: the file, or what an error calls it.
      total: rows that were looked at.
      counts: reason -> rows.
      examples: reason -> the first of them.
    """

    where: str
    total: int
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, number: int, example: str) -> None:
        if number:
            self.counts[reason] = self.counts.get(reason, 0) + number
            self.examples.setdefault(reason, example)

    def drop(self, kept: np.ndarray, bad: np.ndarray, reason: str, labels: np.ndarray) -> np.ndarray:
        """bool [rows]: `kept` without the bad ones, which are counted once each; `labels`: str [rows], what a row is
        called."""
        found = kept & bad
        if found.any():
            self.add(reason, int(found.sum()), str(labels[int(np.argmax(found))]))
        return kept & ~bad

    def refuse(self, most: float, remedy: str = "") -> None:
        """Raises InputError where more than the fraction `most` of the rows was left out, or all of them.

        `remedy`: what to do, for the whole message.
        """
        number = sum(self.counts.values())
        if number > most * self.total or number >= self.total:
            found = "; ".join(f"{n:,} {reason}, e.g. {self.examples[reason]}" for reason, n in self.counts.items())
            if not self.total:
                raise InputError(f"{self.where}: it has no rows; mend the file, or the filter that chose them")
            nothing = number >= self.total
            left = "nothing is left" if nothing else f"at most {most:.1%} may be left out"
            usual = "Mend the file."
            if not nothing:
                usual = "Mend the file, or raise most_left_out (--most-left-out) if that many are expected."
            raise InputError(
                f"{self.where}: {number:,} of {self.total:,} rows cannot be used ({found}): {left}. {remedy or usual}"
            )


def added_up(*counts: Mapping[str, int]) -> dict[str, int]:
    """Reason -> rows, of several steps that left rows out."""
    total: Counter[str] = Counter()
    for own in counts:
        total.update(own)
    return dict(total)


def counted_in_words(counts: Mapping[str, int]) -> list[str]:
    """A line for each reason."""
    return [f"left out: {number:,} {reason}" for reason, number in counts.items() if number]
