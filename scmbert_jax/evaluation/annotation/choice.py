"""What is scored, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AnnotationChoice:
    """What is scored, and how.

    Attributes:
      splits: of `splits.SPLITS`.
      per_type: labelled cells of each type; None: all. Not for split "type".
      only, skip: names of methods.
      num_seeds: partitions into folds, or draws of labelled cells; the spread gives the interval.
      num_resamples: of the bootstrap over test cells.
      allow_identical_cells: go on where identical cells are on both sides of a split.
      workers: processes. kept: folder of predictions made before; None: nothing is kept.
    """

    splits: Sequence[str] = ("cell",)
    per_type: Sequence[int | None] = (None,)
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    num_seeds: int = 5
    num_resamples: int = 1000
    allow_identical_cells: bool = False
    workers: int = 1
    kept: Path | None = None

    def wants(self, method: str) -> bool:
        """Whether a method of this name is to be scored."""
        return method not in self.skip and (not self.only or method in self.only)
