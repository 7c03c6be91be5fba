"""Our train step beside the same model in PyTorch: the same parameters, cells and loss; how fast is each?

PyTorch runs in a process of its own (peers/torch_peer.py). Before anything is timed the two say the loss of one batch
with the same masked positions, so that what is compared is the same. On CPUs they are timed alternately, so that a
noisy machine is noisy for both; on a GPU the peer takes all its rounds first, and its memory is free before ours takes
any.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from scmbert_jax.batch import CellBatch
from scmbert_jax.benchmarks.peer_process import PeerProcess
from scmbert_jax.benchmarks.timed_step import TimedStep, peak_bytes, synthetic_cells_of
from scmbert_jax.config import (
    DataConfig,
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    TrainConfig,
)
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.masked_modeling.objective import MaskedModeling, MaskedPositions, choose_masked
from scmbert_jax.random_keys import init_key, row_keys, step_key
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.text_table import markdown_table

PeerEncoder = Literal["ours", "bert"]


@dataclass(frozen=True)
class TorchCost:
    """One size against one peer.

    Attributes:
      size: its name; `peer`: `PyTorch` or `Hugging Face BERT`, with ", compiled" for torch.compile.
      parameters, peer_parameters: numbers in all.
      loss, peer_loss: of one batch, same masked positions; BERT's own encoder gives another.
      seconds, peer_seconds: of a step, medians over the rounds.
      speed: peer's time over ours, median of the ratios within each round; above 1, ours is faster.
      peak_bytes, peer_peak_bytes: of the process, or of the GPU.
    """

    size: str
    peer: str
    parameters: int
    peer_parameters: int
    loss: float
    peer_loss: float
    seconds: float
    peer_seconds: float
    speed: float
    peak_bytes: int
    peer_peak_bytes: int


def costs_table(rows: tuple[TorchCost, ...]) -> str:
    """As markdown."""
    head = ["size", "peer", "parameters", "loss", "ours (ms)", "peer (ms)", "speed", "ours (GiB)", "peer (GiB)"]
    lines = [
        [
            row.size,
            row.peer,
            f"{row.parameters:,} / {row.peer_parameters:,}",
            f"{row.loss:.5f} / {row.peer_loss:.5f}",
            f"{1000 * row.seconds:.1f}",
            f"{1000 * row.peer_seconds:.1f}",
            f"{row.speed:.2f}x",
            f"{row.peak_bytes / 2**30:.1f}",
            f"{row.peer_peak_bytes / 2**30:.1f}",
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def encoder_config(model: ModelConfig, num_tokens: int, batch_size: int) -> ExperimentConfig:
    """Masked modelling of RNA counts by `model`, as the peers do it: no linear path, which they do not have."""
    return ExperimentConfig(
        modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=num_tokens)),
        data=DataConfig(global_batch_size=batch_size, num_streams=1),
        model=replace(model, linear_path=False),
        objectives=ObjectivesConfig(masked_modeling=MaskedModelingConfig()),
        train=TrainConfig(num_steps=10_000),
    )


class TorchPeer:
    """The peer of a configuration in its process, with our parameters and one of our batches.

    Args:
      start: what both start from.
      python: an interpreter with torch (and transformers for `bert`).
      encoder: `ours`: the same model; `bert`: Hugging Face's between our embedding and heads.
      compiled: with torch.compile.

    Raises:
      ConfigError: it cannot be run.
    """

    def __init__(self, start: "Start", python: Path, encoder: PeerEncoder, compiled: bool, threads: int, device: str):
        config, rna, masked = start.config, start.batch.modalities["rna"], start.masked
        width = config.modalities.rna.num_tokens
        setup = {
            **{name: getattr(config.model, name) for name in ("embed_dim", "num_heads", "head_dim", "num_layers")},
            "mlp_dim": config.model.mlp_dim,
            "length": width,
            "target_sum": config.modalities.rna.target_sum,
            "mask_fraction": config.objectives.masked_modeling.mask_fraction,
            "full_rows": bool((rna.lengths == width).all()),
            "encoder": encoder,
            "compile": compiled,
            "threads": threads,
            "device": device,
            "dtype": config.model.compute_dtype,
        }
        with tempfile.TemporaryDirectory(prefix="scmbert_peer_") as folder:
            (Path(folder) / "setup.json").write_text(json.dumps(setup))
            np.savez(Path(folder) / "params.npz", **traverse_util.flatten_dict(start.params, sep="."))
            np.savez(
                Path(folder) / "batch.npz",
                feature_ids=rna.feature_ids,
                counts=rna.counts,
                library_size=np.broadcast_to(rna.library_size[:, None], rna.counts.shape),
                lengths=rna.lengths,
                positions=np.asarray(masked.positions),
                chosen=np.asarray(masked.chosen),
            )
            packages = "torch numpy transformers" if encoder == "bert" else "torch numpy"
            self._process = PeerProcess(python, "torch_peer.py", [folder], "--peer-python", packages)
        self.name = ("Hugging Face BERT" if encoder == "bert" else "PyTorch") + (", compiled" if compiled else "")
        self.torch, self.parameters = self._process.hello["torch"], self._process.hello["parameters"]
        self.loss = float(self._process.ask("loss")["loss"])
        self.peak_bytes = 0

    def take(self, number: int) -> float:
        """Takes so many steps; their seconds together."""
        answer = self._process.ask(f"step {number}")
        self.peak_bytes = answer["peak_bytes"]
        return float(answer["seconds"])

    def close(self) -> None:
        self._process.close()


class Start(NamedTuple):
    """What both start from: the first batch and parameters (numpy), its masked positions, and its loss by ours."""

    config: ExperimentConfig
    batch: CellBatch
    params: dict[str, Any]
    masked: MaskedPositions
    loss: float


def start_of(config: ExperimentConfig, layout: FeatureLayout, padding: float) -> Start:
    """Computed on the CPU, whatever else there is, so that it takes no memory of a GPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        model = ModelDefinition(replace(config, model=replace(config.model, attention="xla_chunked")), layout)
        params = jax.jit(model.init)(init_key(config.seed))
        batch = synthetic_cells_of(config, layout, padding, 0)
        key = step_key(config.seed, jnp.asarray(0))
        own = config.objectives.masked_modeling
        masked = choose_masked(pack_tokens(batch), own, row_keys(key, jnp.asarray(batch.row)))
        objective = MaskedModeling(config)

        def loss(params: Any, batch: CellBatch) -> jax.Array:
            merged = model.merge(params, model.constants)
            sums = objective.loss(merged, merged.feature_table(), batch, key)
            return sums.total / sums.weight

        return Start(config, batch, jax.device_get(params), masked, float(jax.jit(loss)(params, batch)))


def against_torch(
    size: str,
    config: ExperimentConfig,
    layout: FeatureLayout,
    python: Path,
    *,
    encoder: PeerEncoder = "ours",
    compiled: bool = False,
    rounds: int = 7,
    steps_per_round: int = 5,
    threads: int = 2,
    padding: float = 0.0,
    say: Callable[[str], None] = lambda message: None,
) -> TorchCost:
    """Times both, each after one round to warm up.

    Args:
      size: its name in the table.
      config: from `encoder_config`.
      padding: see `TimedStep`.

    Raises:
      ConfigError: `python` cannot be run or lacks a package.
    """
    on_gpu = jax.default_backend() == "gpu"
    say(f"{size}: starting the peer")
    start = start_of(config, layout, padding)
    peer = TorchPeer(start, python, encoder, compiled, threads, "cuda" if on_gpu else "cpu")
    what = f"{size}, {peer.name}"
    try:
        mine: list[float] = []
        theirs: list[float] = []
        if on_gpu:
            theirs = [peer.take(steps_per_round) for _ in range(rounds + 1)]
            peer.close()
        say(f"{what}: compiling ours")
        ours = TimedStep(config, layout, padding)
        for number in range(rounds + 1):
            say(f"{what}: round {number} of {rounds}")
            mine.append(ours.take(steps_per_round))
            if not on_gpu:
                theirs.append(peer.take(steps_per_round))
    finally:
        peer.close()
    seconds, peer_seconds = np.array(mine[1:]) / steps_per_round, np.array(theirs[1:]) / steps_per_round
    return TorchCost(
        size=size,
        peer=f"{peer.name} {peer.torch}",
        parameters=sum(x.size for x in jax.tree.leaves(start.params)),
        peer_parameters=peer.parameters,
        loss=start.loss,
        peer_loss=peer.loss,
        seconds=float(np.median(seconds)),
        peer_seconds=float(np.median(peer_seconds)),
        speed=float(np.median(peer_seconds / seconds)),
        peak_bytes=peak_bytes(jax.devices()[0]),
        peer_peak_bytes=peer.peak_bytes,
    )
