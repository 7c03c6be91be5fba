"""The encoder with `favor` attention beside performer-pytorch's, at scBERT's sizes: the same numbers? how fast?

performer-pytorch runs in a Python of its own that has torch (peers/performer_peer.py). Both do one forward pass or one
training step (mean square of the output, its gradient, Adam) of one row in float32 on the same CPUs, alternately, so
that a noisy machine is noisy for both. Beside the times stands whether the two attentions agree, given the same
directions.
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from scmbert_jax.benchmarks.peer_process import PeerProcess, bind_to_cpus
from scmbert_jax.config import ModelConfig
from scmbert_jax.models.attention import favor
from scmbert_jax.models.encoder import Encoder
from scmbert_jax.models.token_sequence import TokenSequence
from scmbert_jax.text_table import markdown_table

CALLS = ("forward", "step")
_PARITY_TOKENS = 1000


@dataclass(frozen=True)
class EncoderSizes:
    """Those of scBERT: 16,906 genes and one position more."""

    tokens: int = 16_907
    layers: int = 6
    width: int = 200
    heads: int = 10
    head_dim: int = 64
    mlp: int = 800


@dataclass(frozen=True)
class CallCost:
    """One kind of call.

    Attributes:
      call: `forward` or `step`.
      seconds, peer_seconds: medians; the peer's is None where none was run.
      speed: peer's time over ours, median of the ratios within each round; above 1, ours is faster.
      peak_bytes, peer_peak_bytes: of the process, up to the end of these calls.
    """

    call: str
    seconds: float
    peak_bytes: int
    peer_seconds: float | None = None
    peer_peak_bytes: int | None = None
    speed: float | None = None


@dataclass(frozen=True)
class FavorCosts:
    """All of one call; `agreement`: array -> cosine between ours and the peer's; `settings`: what was measured."""

    rows: tuple[CallCost, ...]
    agreement: dict[str, float]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {"rows": rows, "agreement": self.agreement, "settings": self.settings}

    def text(self) -> str:
        def gib(number: int | None) -> str:
            return "-" if number is None else f"{number / 2**30:.1f}"

        lines = [
            [
                row.call,
                f"{row.seconds:.2f}",
                "-" if row.peer_seconds is None else f"{row.peer_seconds:.2f}",
                "-" if row.speed is None else f"{row.speed:.2f}x",
                gib(row.peak_bytes),
                gib(row.peer_peak_bytes),
            ]
            for row in self.rows
        ]
        head = ["call", "ours (s)", "performer-pytorch (s)", "speed", "ours (GiB)", "performer-pytorch (GiB)"]
        cosines = ", ".join(f"{name} {cosine:.7f}" for name, cosine in self.agreement.items())
        return markdown_table(head, lines) + (
            f"\ncosine of attention with the same directions: {cosines}" if cosines else ""
        )


def _peer(python: Path, sizes: EncoderSizes, threads: int) -> PeerProcess:
    arguments = [json.dumps({**asdict(sizes), "threads": threads})]
    return PeerProcess(python, "performer_peer.py", arguments, "--torch-python", "torch performer-pytorch")


def measure_favor(
    sizes: EncoderSizes = EncoderSizes(),
    torch_python: Path | None = None,
    rounds: int = 3,
    threads: int = 2,
    say: Callable[[str], None] = lambda message: None,
) -> FavorCosts:
    """Times our encoder with `favor` and performer-pytorch's, alternately.

    Args:
      sizes: of both.
      torch_python: an interpreter that has torch and performer-pytorch; None: ours alone.
      rounds: each after one call to warm up.
      threads: of each; this process and the other are bound to as many CPUs (call it before JAX has started any).

    Raises:
      ConfigError: `torch_python` cannot be run or lacks a package; there are fewer CPUs than `threads`.
    """
    bind_to_cpus(threads)
    peer = None if torch_python is None else _peer(torch_python, sizes, threads)
    try:
        agreement = {}
        if peer is not None:
            say("comparing attention with the same directions")
            agreement = _agreement(peer, sizes)
        rows = []
        for call, function in _our_calls(sizes).items():
            say(f"{call}: compiling")
            function()
            if peer is not None:
                peer.ask(call)
            ours, theirs = [], []
            for number in range(rounds):
                say(f"{call}: round {number + 1} of {rounds}")
                start = time.perf_counter()
                function()
                ours.append(time.perf_counter() - start)
                if peer is not None:
                    theirs.append(peer.ask(call))
            row = CallCost(call, float(np.median(ours)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            if theirs:
                seconds = np.array([answer["seconds"] for answer in theirs])
                row = replace(
                    row,
                    peer_seconds=float(np.median(seconds)),
                    peer_peak_bytes=theirs[-1]["peak_bytes"],
                    speed=float(np.median(seconds / np.array(ours))),
                )
            rows.append(row)
    finally:
        if peer is not None:
            peer.close()
    settings = {
        **asdict(sizes),
        "threads": threads,
        "rounds": rounds,
        "jax": jax.__version__,
        **({} if peer is None else {"torch": peer.hello["torch"]}),
    }
    return FavorCosts(tuple(rows), agreement, settings)


def _our_calls(sizes: EncoderSizes) -> dict[str, Callable[[], None]]:
    """`forward` and `step` of our encoder, which return when they are done."""
    config = ModelConfig(
        embed_dim=sizes.width,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        head_dim=sizes.head_dim,
        mlp_dim=sizes.mlp,
        attention="favor",
    )
    parts: Any = nnx.split(Encoder(config, (), nnx.Rngs(0)), nnx.Param, ...)
    graph, params, constants = parts
    graph_constants = jax.tree.structure(constants)
    drawn = favor.redraw(nnx.to_pure_dict(constants), 0, 0)
    tokens = _all_real(sizes.tokens - 1)
    x = jax.random.normal(jax.random.key(0), (1, sizes.tokens, sizes.width))
    optimizer = optax.adam(1e-4)

    def encoded(params: Any, constants: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, jax.tree.unflatten(graph_constants, jax.tree.leaves(constants)))(x, tokens)

    def step(state: Any, constants: Any, x: jax.Array, number: jax.Array) -> Any:
        params, opt_state = state
        constants = favor.redraw(constants, 0, number // config.favor_redraw_every)
        gradients = jax.grad(lambda params: jnp.mean(encoded(params, constants, x) ** 2))(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state

    forward, step = jax.jit(encoded), jax.jit(step, donate_argnums=0)
    held = [(jax.tree.map(jnp.copy, params), optimizer.init(params))]

    def one_step() -> None:
        held[0] = jax.block_until_ready(step(held[0], drawn, x, jnp.asarray(0)))

    return {"forward": lambda: jax.block_until_ready(forward(params, drawn, x)), "step": one_step}


def _all_real(number: int) -> TokenSequence:
    """One row of so many tokens, none of them padding."""
    ones = jnp.ones((1, number))
    zeros = jnp.zeros((1, number), jnp.int32)
    return TokenSequence(
        feature_ids=zeros,
        counts=ones,
        library_size=ones,
        mean_log_count=ones,
        weight=ones,
        modality=zeros,
        valid=ones > 0,
        modality_lengths=jnp.asarray([[number]]),
        widths=(("rna", number),),
    )


def _agreement(peer: PeerProcess, sizes: EncoderSizes) -> dict[str, float]:
    """Cosine between our attention and the peer's with the same directions: of the output and of each gradient."""
    heads, dim = sizes.heads, sizes.head_dim
    names = ("q", "k", "v", "cotangent")
    keys = jax.random.split(jax.random.key(0), len(names))
    arrays = {name: jax.random.normal(key, (heads, _PARITY_TOKENS, dim)) for name, key in zip(names, keys, strict=True)}
    features = favor.default_num_features(dim)
    arrays["directions"] = favor.random_directions(jax.random.key(1), (features, dim))
    lengths = jnp.asarray([_PARITY_TOKENS])

    def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:  # [H, S, D] each
        rows = (jnp.swapaxes(x, 0, 1)[None] for x in (q, k, v))
        return jnp.swapaxes(favor.attend(*rows, lengths, arrays["directions"])[0], 0, 1)

    out, back = jax.vjp(attended, arrays["q"], arrays["k"], arrays["v"])
    ours = dict(zip(("out", "q_bar", "k_bar", "v_bar"), (out, *back(arrays["cotangent"])), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        for name, array in arrays.items():
            (Path(folder) / name).write_bytes(np.asarray(array, np.float32).tobytes())
        shapes = {name: array.shape for name, array in arrays.items()}
        (Path(folder) / "shapes.json").write_text(json.dumps(shapes))
        peer.ask(f"attention {folder}")
        theirs = {name: np.frombuffer((Path(folder) / name).read_bytes(), np.float32) for name in ours}

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    return {name: cosine(np.asarray(ours[name], np.float64).ravel(), theirs[name].astype(np.float64)) for name in ours}
