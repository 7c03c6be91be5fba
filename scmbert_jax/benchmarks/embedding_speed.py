"""Cells per second of embedding whole cells with `favor` at scBERT's sizes, beside performer-pytorch's encoder.

Ours is all that embedding a cell takes (tokens to `[CLS]`); the peer's is its encoder alone. Both in bfloat16 on a GPU,
in float32 elsewhere; the peer's figure is taken first, so that each has the whole memory of the device.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.benchmarks.favor_speed import EncoderSizes
from scmbert_jax.benchmarks.peer_process import PeerProcess
from scmbert_jax.benchmarks.timed_step import synthetic_cells_of
from scmbert_jax.config import DataConfig, ExperimentConfig, ModalitiesConfig, ModalityConfig, ModelConfig
from scmbert_jax.models.flops import counts_of_batch, forward_flops
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.text_table import markdown_table


@dataclass(frozen=True)
class EmbeddingCost:
    """Medians.

    Attributes:
      tokens: of a cell, `[CLS]` included; `cells`: of a batch.
      cells_per_second, peer_cells_per_second: the peer's is None where none was run.
      speed: ours over the peer's.
      flops_per_second: of ours (models/flops.py).
    """

    tokens: int
    cells: int
    dtype: str
    cells_per_second: float
    peer_cells_per_second: float | None
    speed: float | None
    flops_per_second: float

    def text(self) -> str:
        head = ["embedding", "dtype", "cells", "ours (cells/s)", "TFLOP/s", "performer-pytorch (cells/s)", "speed"]
        peer, speed = self.peer_cells_per_second, self.speed
        line = [
            f"{self.tokens:,} tokens",
            self.dtype,
            str(self.cells),
            f"{self.cells_per_second:.2f}",
            f"{self.flops_per_second / 1e12:.2f}",
            "-" if peer is None else f"{peer:.2f}",
            "-" if speed is None else f"{speed:.2f}x",
        ]
        return markdown_table(head, [line])


def embedding_against_performer(
    tokens: int, cells: int, peer_python: Path | None, rounds: int, layers: int = 6
) -> EmbeddingCost:
    """Times both on the default device. Raises `ConfigError` when the peer cannot be run."""
    sizes = EncoderSizes(tokens=tokens, layers=layers)
    on_gpu = jax.default_backend() == "gpu"
    dtype = "bfloat16" if on_gpu else "float32"
    theirs = None
    if peer_python is not None:
        setup = {**asdict(sizes), "threads": 2, "cells": cells, "dtype": dtype}
        setup["device"] = "cuda" if on_gpu else "cpu"
        peer = PeerProcess(
            peer_python, "performer_peer.py", [json.dumps(setup)], "--peer-python", "torch performer-pytorch"
        )
        try:
            peer.ask("forward")
            theirs = cells / float(np.median([peer.ask("forward")["seconds"] for _ in range(rounds)]))
        finally:
            peer.close()
    config = ExperimentConfig(
        modalities=ModalitiesConfig(
            rna=ModalityConfig(num_tokens=tokens - 1, value_encoding="bins", likelihood="bins")
        ),
        data=DataConfig(global_batch_size=cells, num_streams=1),
        model=ModelConfig(
            embed_dim=sizes.width,
            num_layers=sizes.layers,
            num_heads=sizes.heads,
            head_dim=sizes.head_dim,
            mlp_dim=sizes.mlp,
            attention="favor",
            linear_path=False,
            compute_dtype=dtype,  # type: ignore[arg-type]
        ),
    )
    layout = synthetic_layout(max(tokens - 1, 2))
    model = ModelDefinition(config, layout)
    params = jax.jit(model.init)(jax.random.key(0))

    def embed(params, constants, batch):
        merged = model.merge(params, constants)
        return merged.cell_embedding(merged.feature_table(), batch)

    run, batch = jax.jit(embed), jax.device_put(synthetic_cells_of(config, layout, 0.0, 0))
    constants = jax.device_put(model.constants)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(params, constants, batch))
        seconds.append(time.perf_counter() - start)
    mine = cells / float(np.median(seconds[1:]))
    flops = sum(forward_flops(config, counts_of_batch(jax.device_get(batch))).values()) / cells
    return EmbeddingCost(tokens, cells, dtype, mine, theirs, None if theirs is None else mine / theirs, mine * flops)
