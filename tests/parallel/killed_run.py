"""One process of a run of one or more, as a function that another process starts and may kill at any moment.

It trains on synthetic batches and writes down every batch that it is given before it trains on it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import DataConfig, ExperimentConfig, ModalitiesConfig, ModalityConfig, ModelConfig, TrainConfig

BATCH_SIZE = 8
CONFIG = ExperimentConfig(
    modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=8), protein=ModalityConfig(num_tokens=4)),
    data=DataConfig(global_batch_size=BATCH_SIZE, num_streams=8, window_blocks=1),
    model=ModelConfig(embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=16),
    train=TrainConfig(num_steps=10**6, log_every=1, checkpoint_every=4, keep_checkpoints=2, keep_every=40),
)


def layout():
    from data_pipelines.synthetic.cells import synthetic_layout

    return synthetic_layout(32, 8)


def batch_of(step: int) -> CellBatch:
    """All rows of a step's batch."""
    from data_pipelines.synthetic.cells import synthetic_batch

    return synthetic_batch(layout(), BATCH_SIZE, {"rna": 8, "protein": 4}, CONFIG.seed, step)


def row_digests(batch: CellBatch) -> dict[int, str]:
    """Row of the global batch -> digest of everything that the model is given of it."""
    import jax
    import numpy as np

    return {
        int(row): hashlib.blake2b(
            b"".join(np.ascontiguousarray(array[place]).tobytes() for array in jax.tree.leaves(batch)), digest_size=8
        ).hexdigest()
        for place, row in enumerate(batch.row)
    }


class RecordedData:
    """This process's rows; each batch is in the log, on disk, before it is trained on."""

    def __init__(self, log: Path, index: int, count: int):
        self.layout = layout()
        self.fingerprint, self.feature_space_hash = "f" * 64, "a" * 64
        self.description = {"corpora": [{"path": "made"}], "options": {}, "order_version": 1}
        self.covariates: dict[str, list[str]] = {}
        self.information: dict[str, object] = {}
        self._log, self._index, self._count = log, index, count

    def batches(self, start_step: int, stop_step: int) -> Iterator[tuple[int, CellBatch]]:
        import jax

        rows = BATCH_SIZE // self._count
        mine = slice(self._index * rows, (self._index + 1) * rows)
        with self._log.open("a") as log:
            for step in range(start_step, stop_step):
                batch = jax.tree.map(lambda array: array[mine], batch_of(step))
                log.write(json.dumps({"step": step, "rows": row_digests(batch)}) + "\n")
                log.flush()
                yield step, batch

    def save_features(self, folder: Path) -> None:
        (folder / "feature_space.parquet").write_bytes(b"features")


def train(run_dir: Path, log: Path, port: int, index: int, count: int, devices: int) -> None:
    """Process `index` of `count`, with `devices` CPU devices each; until it is stopped or killed."""
    flags = os.environ["XLA_FLAGS"].split()
    kept = [flag for flag in flags if "device_count" not in flag]
    os.environ["XLA_FLAGS"] = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
    import jax

    from scmbert_jax.parallel.multihost import failing_at_once, join
    from scmbert_jax.training.loop import pretrain

    if count > 1:
        join(f"127.0.0.1:{port}", count, index, host_timeout=20, join_timeout=60)
    with failing_at_once():
        pretrain(CONFIG, RecordedData(log, index, count), run_dir, show_progress=False)
        assert jax.process_count() == count
