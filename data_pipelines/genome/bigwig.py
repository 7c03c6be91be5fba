"""Values per base out of bigWig files: conservation, coverage. Needs pyBigWig (`pip install pyBigWig`)."""

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.genome.interval_table import IntervalTable
from data_pipelines.genome.windows import Windows
from scmbert_jax.errors import ConfigError, InputError


def signal_of_windows(path: str | Path, table: IntervalTable, windows: Windows) -> np.ndarray:
    """float32 [N, L]: the values of windows (0-based half-open), in the direction of the forward strand; NaN where the
    file says nothing, beyond a chromosome, and behind the end of a shorter window.

    Args:
      table: the intervals that the windows were cut for.

    Raises:
      ConfigError: pyBigWig is not installed.
      InputError: no bigWig file, or a chromosome that it has not.
    """
    try:
        import pyBigWig
    except ImportError as error:
        raise ConfigError("bigWig files need pyBigWig, which is not installed: pip install pyBigWig") from error
    try:
        file: Any = pyBigWig.open(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read as bigWig ({error}); copy or download it again") from error
    with file:
        lengths = file.chroms()
        found = np.full(windows.codes.shape, np.nan, np.float32)
        places = zip(windows.rows.tolist(), windows.start.tolist(), windows.lengths.tolist(), strict=True)
        for place, (row, start, width) in enumerate(places):
            name = str(table.chromosome[row])
            if name not in lengths:
                some = ", ".join(list(lengths)[:5])
                raise InputError(f"{path}: no chromosome {name}; it has {some} ({len(lengths):,}): is 'chr' missing?")
            first, last = max(0, start), min(start + width, lengths[name])
            if last > first:
                found[place, first - start : last - start] = file.values(name, first, last, numpy=True)
    return found
