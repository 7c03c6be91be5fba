"""Which chromosomes train, choose and test: part of a corpus of sequences, fixed before anything is learned.

By chromosome, since neighbouring windows share bases and regulation. What is learned before the model (a vocabulary,
statistics) is of the training part, too.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from scmbert_jax.errors import ConfigError

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class SealedChromosomes:
    """Attributes:
      validation, test: names as the genome has them. DeepSEA and many after it test on chr8 and chr9.
      train: names; empty: all others.

    Raises ConfigError: a chromosome in two parts, or a part without any.
    """

    validation: tuple[str, ...] = ("chr7",)
    test: tuple[str, ...] = ("chr8", "chr9")
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [*self.train, *self.validation, *self.test]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"chromosome {twice[0]} is in two of the parts train, validation and test; it trains or not"
            )
        if not self.validation or not self.test:
            raise ConfigError("a part without chromosomes: give at least one for validation and one for test")

    def part_of(self, chromosome: str) -> Part | None:
        """None: of none, where the training chromosomes are listed."""
        if chromosome in self.validation:
            return "validation"
        if chromosome in self.test:
            return "test"
        return "train" if not self.train or chromosome in self.train else None

    def rows(self, chromosome: np.ndarray, part: Part) -> np.ndarray:
        """int64 [m] ascending: rows of a part; `chromosome`: str [n]. Raises ConfigError for another part."""
        if part not in get_args(Part):
            raise ConfigError(f"part {part!r}: expected one of {', '.join(get_args(Part))}")
        names, inverse = np.unique(chromosome, return_inverse=True)
        own = np.array([self.part_of(str(name)) == part for name in names], bool)
        return np.flatnonzero(own[inverse]) if len(names) else np.zeros(0, np.int64)


USUAL_PARTS = SealedChromosomes()
