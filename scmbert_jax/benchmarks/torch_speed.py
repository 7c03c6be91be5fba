"""Our train step beside the same model in PyTorch: the same parameters, cells and loss; how fast is each?

PyTorch runs in a process of its own (`torch_peer.py`). Before anything is timed the two say the loss of one batch with
the same masked positions, so that what is compared is the same. On CPUs they take turns, so that a noisy machine is
noisy for both; on a GPU the peer runs first and gives its memory back.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import traverse_util

from scmbert_jax.batch import FeatureLayout
from scmbert_jax.benchmarks.peer_process import PeerProcess
from scmbert_jax.benchmarks.timed_step import TimedStep
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
from scmbert_jax.evaluation.probe_table import markdown_table
from scmbert_jax.models.token_sequence import pack_tokens
from scmbert_jax.objectives.base import row_keys
from scmbert_jax.objectives.masked_modeling import choose_masked
from scmbert_jax.training.train_step import step_key

PeerEncoder = Literal["ours", "bert"]


@dataclass(frozen=True)
class TorchCost:
    """One size against one peer.

    Attributes:
      size: its name; `peer`: `PyTorch` or `Hugging Face BERT`, with ", compiled" for torch.compile.
      parameters, peer_parameters: numbers in all.
      loss, peer_loss: of one batch, same masked positions; BERT's own encoder gives another.
      seconds, peer_seconds: of a step, medians over the turns.
      speed: peer's time over ours, median of the ratios within each turn; above 1, ours is faster.
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
      ours: the compiled step, none of whose steps was taken yet.
      python: an interpreter with torch (and transformers for `bert`).
      encoder: `ours`: the same model; `bert`: Hugging Face's between our embedding and heads.
      compiled: with torch.compile.

    Raises:
      ConfigError: it cannot be run; an attention or likelihood that the peer has not.
    """

    def __init__(
        self, ours: TimedStep, python: Path, encoder: PeerEncoder, compiled: bool, threads: int, device: str
    ):
        config = ours.config
        width = config.modalities.rna.num_tokens
        key = step_key(config.seed, jax.numpy.asarray(0))
        batch = ours.batches[0]
        tokens = pack_tokens(batch)
        masked = choose_masked(tokens, config.objectives.masked_modeling, row_keys(key, jax.numpy.asarray(batch.row)))
        rna = batch.modalities["rna"]
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
        params = traverse_util.flatten_dict(jax.device_get(ours.state.params), sep=".")
        with tempfile.TemporaryDirectory(prefix="scmbert_peer_") as folder:
            (Path(folder) / "setup.json").write_text(json.dumps(setup))
            np.savez(Path(folder) / "params.npz", **params)
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


def first_loss(ours: TimedStep) -> float:
    """The loss of the first step, taken on the batch that the peer has."""
    batch = ours.batches[0]
    sums = _loss_sum(ours)(ours.state.params, ours.constants, batch)
    return float(sums.total / sums.weight)


def _loss_sum(ours: TimedStep) -> Callable[..., Any]:
    from scmbert_jax.objectives.mixture import objectives_of

    objective = objectives_of(ours.config)[ours.objective]

    def loss(params: Any, constants: Any, batch: Any) -> Any:
        merged = ours.model.merge(params, constants)
        return objective.loss(merged, merged.feature_table(), batch, step_key(ours.config.seed, jax.numpy.asarray(0)))

    return jax.jit(loss)


def against_torch(
    size: str,
    config: ExperimentConfig,
    layout: FeatureLayout,
    python: Path,
    *,
    encoder: PeerEncoder = "ours",
    compiled: bool = False,
    turns: int = 7,
    steps_per_turn: int = 5,
    threads: int = 2,
    padding: float = 0.0,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[TorchCost, dict[str, str]]:
    """Times both by turns. Returns (figures, versions).

    Raises:
      ConfigError: `python` cannot be run or lacks a package.
    """
    say(f"{size}: compiling ours")
    ours = TimedStep(config, layout, padding)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    loss = first_loss(ours)
    number = sum(x.size for x in jax.tree.leaves(ours.state.params))
    say(f"{size}: starting the peer")
    peer = TorchPeer(ours, python, encoder, compiled, threads, device)
    try:
        mine, theirs = [], []
        for turn in range(turns + 1):  # the first is to warm up
            say(f"{size}, {peer.name}: turn {turn} of {turns}")
            mine.append(ours.take(steps_per_turn) / steps_per_turn)
            theirs.append(peer.take(steps_per_turn) / steps_per_turn)
    finally:
        peer.close()
    seconds, peer_seconds = np.array(mine[1:]), np.array(theirs[1:])
    cost = TorchCost(
        size=size,
        peer=peer.name,
        parameters=number,
        peer_parameters=peer.parameters,
        loss=loss,
        peer_loss=peer.loss,
        seconds=float(np.median(seconds)),
        peer_seconds=float(np.median(peer_seconds)),
        speed=float(np.median(peer_seconds / seconds)),
        peak_bytes=ours.speed(seconds.tolist(), turns * steps_per_turn).peak_bytes,
        peer_peak_bytes=peer.peak_bytes,
    )
    return cost, {"torch": peer.torch, "jax": jax.__version__}


def cost_to_dict(cost: TorchCost) -> dict[str, Any]:
    return asdict(cost)
