"""What is kept of a step whose loss is not finite, to find out why.

The state before it is gone: it was donated to the step, whose numbers are read while the next one runs. But a run is a
pure function of its configuration and data, so the newest checkpoint leads to the same step again. What that does not
tell at once is written down here: the numbers of the step, and the batch itself, for which no corpus is needed.

    nonfinite/step-812.process-0.json    numbers, objective, checkpoint to start from, what is odd in the batch
    nonfinite/step-812.process-0.npz     rows of the batch that process 0 read, field -> array
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from scmbert_jax.batch import CellBatch, GenomeBatch
from scmbert_jax.errors import TrainingError


def keep_nonfinite_step(
    run_dir: Path,
    step: int,
    objective: str,
    metrics: dict[str, float],
    batch: CellBatch | GenomeBatch,
    last_checkpoint: int | None,
) -> Path:
    """Writes the record of a step; every process for its own rows. Returns the folder.

    Args:
      step: steps done when it had ended; its batch is that of step - 1.
      metrics: as the step returned them.
      batch: this process's rows (numpy).
      last_checkpoint: its step, or None.

    Raises `TrainingError` when it cannot be written.
    """
    folder = run_dir / "nonfinite"
    arrays = batch_arrays(batch)
    record: dict[str, Any] = {
        "step": step,
        "batch_of_step": step - 1,
        "objective": objective,
        "last_checkpoint": last_checkpoint,
        "metrics": {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()},
        "not_finite_in_the_batch": [name for name, array in arrays.items() if not np.isfinite(array).all()],
        "largest_in_the_batch": {name: float(np.max(array, initial=0)) for name, array in arrays.items()},
        **{name: arrays[name].tolist() for name in ("cell_index", "region") if name in arrays},
    }
    try:
        folder.mkdir(exist_ok=True)
        name = f"step-{step}.process-{jax.process_index()}"
        np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
        (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}).") from error
    if jax.process_count() > 1:
        with jax.transfer_guard("allow"):
            sync_global_devices("step is recorded")  # the first to leave ends the others
    return folder


def batch_arrays(batch: CellBatch | GenomeBatch) -> dict[str, np.ndarray]:
    """The fields of a batch by name, such as `rna.counts`."""
    if isinstance(batch, GenomeBatch):
        return {name: np.asarray(array) for name, array in batch._asdict().items() if array is not None}
    arrays = {
        f"{modality}.{field}": np.asarray(array)
        for modality, tokens in batch.modalities.items()
        for field, array in zip(tokens._fields, tokens, strict=True)
    }
    arrays |= {
        f"{modality}.profile.{field}": np.asarray(array)
        for modality, profile in (batch.profiles or {}).items()
        for field, array in zip(profile._fields, profile, strict=True)
    }
    arrays |= {f"covariates.{name}": np.asarray(codes) for name, codes in batch.covariates.items()}
    return {**arrays, "cell_index": np.asarray(batch.cell_index), "row": np.asarray(batch.row)}
