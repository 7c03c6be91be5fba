"""A training step of the sequence encoder beside a BERT of the same size in PyTorch: how many bases in a second?

Masked modelling of bases: a token per base, 15% of them hidden, cross-entropy of the hidden ones, AdamW; random
sequences, float32. PyTorch runs in a process of its own (peers/sequence_peer.py), with our parameters: before anything
is timed, the two say the loss of one batch with the same hidden bases. They are timed alternately on the same CPUs, so
that a noisy machine is noisy for both.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, traverse_util

from scmbert_jax.benchmarks.peer_process import PeerProcess, bind_to_cpus
from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import SequenceConfig
from scmbert_jax.models.dna.sequence_encoder import SequenceEncoder
from scmbert_jax.models.layers import linear
from scmbert_jax.models.parameters import filled, weight
from scmbert_jax.text_table import markdown_table

PeerEncoder = Literal["ours", "bert"]

_HIDDEN = 0.15  # of the bases, as in BERT


@dataclass(frozen=True)
class SequenceCost:
    """Of one length of sequences.

    Attributes:
      bases: of a sequence; each is a token.
      batch_size: sequences of a step.
      parameters, peer_parameters: numbers in all. The peer's, here and below, are None where none was run.
      loss, peer_loss: of one batch with the same parameters and hidden bases; Hugging Face's encoder is another one.
      seconds, peer_seconds: of a step, medians over the rounds.
      bases_per_second, peer_bases_per_second: of the median step.
      speed: peer's time over ours, median of the ratios within each round; above 1, ours is faster.
    """

    bases: int
    batch_size: int
    parameters: int
    loss: float
    seconds: float
    bases_per_second: float
    peer_parameters: int | None = None
    peer_loss: float | None = None
    peer_seconds: float | None = None
    peer_bases_per_second: float | None = None
    speed: float | None = None


@dataclass(frozen=True)
class SequenceCosts:
    """All lengths; `settings`: what was measured."""

    rows: tuple[SequenceCost, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "settings": self.settings}

    def text(self) -> str:
        def shown(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        lines = [
            [
                f"{row.bases:,}",
                f"{row.parameters:,} / {shown(row.peer_parameters, ',')}",
                f"{row.loss:.5f} / {shown(row.peer_loss, '.5f')}",
                f"{1000 * row.seconds:.1f}",
                f"{row.bases_per_second:,.0f}",
                shown(row.peer_bases_per_second, ",.0f"),
                shown(row.speed, ".2f") + "x" * (row.speed is not None),
            ]
            for row in self.rows
        ]
        head = [
            "bases",
            "parameters",
            "loss",
            "ours (ms)",
            "ours (bases/s)",
            f"{self.settings['peer']} (bases/s)",
            "speed",
        ]
        return markdown_table(head, lines)


def size_of(embed_dim: int, num_layers: int) -> ModelConfig:
    """BERT's proportions: heads of 64, four times as wide within."""
    return ModelConfig(
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=embed_dim // 64,
        head_dim=64,
        mlp_dim=4 * embed_dim,
        linear_path=False,
    )


SIZE = size_of(256, 4)


class MaskedBases(nnx.Module):
    """The encoder and a linear layer that says which base was hidden."""

    def __init__(self, model: ModelConfig, sequence: SequenceConfig, rngs: nnx.Rngs):
        self.sequence = SequenceEncoder(model, sequence, rngs)
        self.head = weight(rngs, (model.embed_dim, 4), model.embed_dim, ("embed", None))
        self.head_bias = filled(0.0, (4,), (None,), "bias")

    def __call__(self, codes: jax.Array, positions: jax.Array) -> jax.Array:
        """Mean cross-entropy, float32, of codes [B, L] at positions [B, M], which are hidden."""
        hidden = jax.vmap(lambda own: jnp.zeros(codes.shape[1], bool).at[own].set(True))(positions)
        lengths = jnp.full(len(codes), codes.shape[1], jnp.int32)
        states = self.sequence(jax.nn.one_hot(codes, 4), lengths, hidden).states
        at_hidden = jnp.take_along_axis(states, positions[..., None], axis=1)
        logits = linear(at_hidden, self.head[...]) + self.head_bias[...][None, None]
        truth = jnp.take_along_axis(codes.astype(jnp.int32), positions, axis=1)
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), truth).mean()


class _Ours:
    """Our side: parameters, one batch, and steps that are timed together."""

    def __init__(self, model: ModelConfig, bases: int, batch_size: int):
        sequence = SequenceConfig(most_bases=bases, stem_layers=0)
        with nnx.use_eager_sharding(False):
            module = MaskedBases(model, sequence, nnx.Rngs(params=0))
        parts: Any = nnx.split(module, nnx.Param, ...)
        graph, params, rest = parts
        self.params = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
        rng, number = np.random.default_rng(0), max(1, round(_HIDDEN * bases))
        self.codes = rng.integers(0, 4, (batch_size, bases)).astype(np.uint8)
        self.positions = np.stack([rng.permutation(bases)[:number] for _ in range(batch_size)]).astype(np.int32)
        tree = jax.tree.structure(params)

        def loss(params: Any, codes: jax.Array, positions: jax.Array) -> jax.Array:
            own = nnx.merge(graph, jax.tree.unflatten(tree, jax.tree.leaves(params)), rest)
            return own(codes, positions)

        optimizer = optax.adamw(1e-3, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.01, mask=_matrices)

        @partial(jax.jit, donate_argnums=0)
        def step(state: _State, codes: jax.Array) -> _State:
            key, own = jax.random.split(state.key)
            positions = jax.random.uniform(own, codes.shape).argsort(axis=1)[:, :number]
            updates, opt_state = optimizer.update(
                jax.grad(loss)(state.params, codes, positions), state.opt_state, state.params
            )
            return _State(optax.apply_updates(state.params, updates), opt_state, key)

        self.loss = float(jax.jit(loss)(self.params, self.codes, self.positions))
        started = jax.tree.map(jnp.asarray, self.params)
        self._step, self._state = step, _State(started, optimizer.init(started), jax.random.key(0))

    def take(self, number: int) -> float:
        """Takes so many steps; their seconds together."""
        start = time.perf_counter()
        for _ in range(number):
            self._state = self._step(self._state, self.codes)
        jax.block_until_ready(self._state.params)
        return time.perf_counter() - start


class _State(NamedTuple):
    params: Any
    opt_state: Any
    key: jax.Array


def _matrices(params: Any) -> Any:
    """True for what weight decay pulls to zero, as in the peer."""
    return jax.tree.map(lambda own: own.ndim >= 2, params)


def _peer(ours: _Ours, model: ModelConfig, python: Path, encoder: PeerEncoder, threads: int) -> PeerProcess:
    """PyTorch with our parameters and our batch. Raises ConfigError where it cannot be run."""
    names = ("embed_dim", "num_heads", "head_dim", "num_layers", "mlp_dim")
    setup = {name: getattr(model, name) for name in names} | {
        "length": ours.codes.shape[1],
        "full_rows": True,
        "encoder": encoder,
        "threads": threads,
    }
    with tempfile.TemporaryDirectory(prefix="scmbert_peer_") as folder:
        (Path(folder) / "setup.json").write_text(json.dumps(setup))
        params = {**ours.params["sequence"], **{name: ours.params[name] for name in ("head", "head_bias")}}
        np.savez(Path(folder) / "params.npz", **traverse_util.flatten_dict(params, sep="."))
        np.savez(Path(folder) / "batch.npz", codes=ours.codes, positions=ours.positions)
        packages = "torch numpy transformers" if encoder == "bert" else "torch numpy"
        return PeerProcess(python, "sequence_peer.py", [folder], "--torch-python", packages)


def measure_sequences(
    lengths: Sequence[int] = (128, 512),
    model: ModelConfig = SIZE,
    torch_python: Path | None = None,
    encoder: PeerEncoder = "bert",
    *,
    batch_size: int = 16,
    rounds: int = 5,
    steps_per_round: int = 3,
    threads: int = 2,
    say: Callable[[str], None] = lambda message: None,
) -> SequenceCosts:
    """Times our step and PyTorch's, alternately.

    Args:
      lengths: bases of a sequence, one after the other.
      model: of the encoder.
      torch_python: an interpreter that has torch (and transformers for `bert`); None: ours alone.
      encoder: of PyTorch. bert: Hugging Face's; ours: ours, written in PyTorch.
      rounds: each after one round to warm up.
      threads: of each; this process and the other are bound to as many CPUs (call it before JAX has started any).

    Raises:
      ConfigError: `torch_python` cannot be run or lacks a package; there are fewer CPUs than `threads`.
    """
    bind_to_cpus(threads)
    rows, name = [], "PyTorch"
    for bases in lengths:
        say(f"{bases:,} bases: compiling")
        ours = _Ours(model, bases, batch_size)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
        peer = None if torch_python is None else _peer(ours, model, torch_python, encoder, threads)
        mine: list[float] = []
        theirs: list[float] = []
        try:
            for number in range(rounds + 1):
                say(f"{bases:,} bases: round {number} of {rounds}")
                mine.append(ours.take(steps_per_round) / steps_per_round)
                if peer is not None:
                    theirs.append(float(peer.ask(f"step {steps_per_round}")["seconds"]) / steps_per_round)
            seconds, per_step = float(np.median(mine[1:])), batch_size * bases
            row = SequenceCost(bases, batch_size, numbers, ours.loss, seconds, per_step / seconds)
            if peer is not None:
                name = ("BERT" if encoder == "bert" else "ours") + f" in PyTorch {peer.hello['torch']}"
                slow = float(np.median(theirs[1:]))
                row = replace(
                    row,
                    peer_parameters=peer.hello["parameters"],
                    peer_loss=float(peer.hello["loss"]),
                    peer_seconds=slow,
                    peer_bases_per_second=per_step / slow,
                    speed=float(np.median(np.array(theirs[1:]) / np.array(mine[1:]))),
                )
        finally:
            if peer is not None:
                peer.close()
        rows.append(row)
    sizes = {key: getattr(model, key) for key in ("embed_dim", "num_layers", "num_heads", "head_dim", "mlp_dim")}
    settings = {"peer": name, **sizes, "batch_size": batch_size, "rounds": rounds, "steps_per_round": steps_per_round}
    return SequenceCosts(tuple(rows), settings | {"threads": threads, "backend": jax.default_backend()})
