"""What a model of DNA knows of its corpus before it reads a batch: the names and the scale of its matrices' columns.

Scales are of training regions only, and take any matrix to the same size: hits, scores, binding, reads.
"""

from dataclasses import dataclass, field

import numpy as np

NO_NUMBERS = np.zeros(0, np.float32)


@dataclass(frozen=True)
class GenomeLayout:
    """T regulators and G cell types; either may be none.

    Attributes:
      assembly: "hg38", ...; "" where the corpus does not say.
      regulators, cell_types: names of the columns, in their order.
      regulator_mean, regulator_scale: float32 [T]; the model reads (value - mean) / scale.
      occurs_above: float32 [T]; a regulator occurs in a region whose value is above it.
      accessibility_mean, accessibility_scale: float32 [G], of log1p(value), likewise.
    """

    assembly: str = ""
    regulators: tuple[str, ...] = ()
    cell_types: tuple[str, ...] = ()
    regulator_mean: np.ndarray = field(default_factory=lambda: NO_NUMBERS)
    regulator_scale: np.ndarray = field(default_factory=lambda: NO_NUMBERS)
    occurs_above: np.ndarray = field(default_factory=lambda: NO_NUMBERS)
    accessibility_mean: np.ndarray = field(default_factory=lambda: NO_NUMBERS)
    accessibility_scale: np.ndarray = field(default_factory=lambda: NO_NUMBERS)

    @property
    def num_columns(self) -> int:
        """C, of what the region encoder reads: regulators; and accessibility in one cell type, and whether it is
        shown."""
        return len(self.regulators) + (2 if self.cell_types else 0)
