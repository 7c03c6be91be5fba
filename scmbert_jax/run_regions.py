"""The embeddings of a run's regions: from the user's table, or, of a run that has started, its own copy of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.genome.region_embeddings import REGION_EMBEDDINGS, read_region_embeddings
from scmbert_jax.config import ExperimentConfig
from scmbert_jax.errors import CheckpointError
from scmbert_jax.feature_layout import digest_of


def run_region_vectors(
    config: ExperimentConfig, space: FeatureSpace, run_dir: Path, tell: Callable[[str], None]
) -> np.ndarray | None:
    """float32 [M, W], those of `model.region_embeddings`, as in `FeatureLayout`; None where there are none.

    A run that has started continues with its own copy, also where the table is gone.

    Raises:
      InputError: a table that cannot be read, or as `RegionEmbeddings.of_space`.
      CheckpointError: the table says something else than when the run was started.
    """
    if not config.model.region_embeddings:
        return None
    table, copy = Path(config.model.region_embeddings), run_dir / REGION_EMBEDDINGS
    started = (run_dir / "config.json").is_file() and copy.is_file()  # the first is written last
    before = read_region_embeddings(copy).of_space(space) if started else None
    if before is not None and not table.exists():
        tell(f"{table}: no such file; the run continues with its own copy")
        return before
    now = read_region_embeddings(table).of_space(space)
    if before is not None and digest_of(before) != digest_of(now):
        raise CheckpointError(
            f"{run_dir}: this run was started with other embeddings of its regions than {table} has now. Give the "
            "table it was started with, or use another run folder."
        )
    known = int(np.isfinite(now).all(axis=1).sum())
    tell(f"{known:,} of {len(now):,} regions have an embedding of {now.shape[1]:,} numbers in {table}")
    return now
