"""What a training step of a graph network costs, and how it grows with the edges: time and memory, each aggregation.

A step: messages both ways over all edges but those that it predicts, a decoder of pairs, the gradient, Adam. The
network is drawn, with degrees as uneven as those of regulators. All programs are timed alternately, so that a noisy
machine is noisy for all of them; a time is the median over the rounds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from scmbert_jax.models.link_decoders import EDGE, LINK_DECODERS
from scmbert_jax.models.parameters import weight
from scmbert_jax.models.regulatory_graph import AGGREGATIONS, GraphEdges, RegulatoryGraph, graph_edges, without
from scmbert_jax.random_keys import init_key
from scmbert_jax.text_table import markdown_table

_KINDS, _LAYERS = 2, 2
_UNEVEN = 0.6  # the n-th regulator has 1 / n**0.6 as many targets as the first


@dataclass(frozen=True)
class GraphCost:
    """One aggregation over one number of edges.

    Attributes:
      neighbours: that a node hears in a layer, at most; 0: all.
      ms_per_step: median. time_ratio: beside the fewest edges of the same aggregation, median of the ratios of rounds.
      peak_bytes: arguments, outputs and temporaries of the compiled step, as XLA reports them; None where it does not.
    """

    aggregation: str
    neighbours: int
    edges: int
    ms_per_step: float
    time_ratio: float
    peak_bytes: int | None


@dataclass(frozen=True)
class GraphCosts:
    """All of one call; `settings` says what was measured on what."""

    rows: tuple[GraphCost, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "settings": self.settings}

    def text(self) -> str:
        head = ["aggregation", "neighbours", "edges", "ms per step", "beside the fewest edges", "memory (MiB)"]
        lines = [
            [
                row.aggregation,
                str(row.neighbours or "all"),
                f"{row.edges:,}",
                f"{row.ms_per_step:.0f}",
                f"{row.time_ratio:.2f}x",
                "?" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            ]
            for row in self.rows
        ]
        return markdown_table(head, lines)


def measure_graph(
    num_nodes: int = 60_000,
    numbers_of_edges: Sequence[int] = (250_000, 500_000, 1_000_000, 2_000_000),
    aggregations: Sequence[str] = tuple(AGGREGATIONS),
    neighbours: Sequence[int] = (0, 8),
    embed_dim: int = 64,
    batch_size: int = 1024,
    rounds: int = 5,
    say: Callable[[str], None] = lambda message: None,
) -> GraphCosts:
    """Times the jitted step, optimizer included.

    Args:
      neighbours: that a node hears at most; 0: all.
      batch_size: edges that a step predicts, beside as many pairs that are none.
      rounds: after one step to warm up.
    """
    steps: dict[tuple[str, int, int], Callable[[], float]] = {}
    memory: dict[tuple[str, int, int], int | None] = {}
    for number in sorted(numbers_of_edges):
        edges = _drawn_edges(num_nodes, number)
        for aggregation in aggregations:
            for heard in neighbours:
                say(f"compiling {aggregation}, {heard or 'all'} neighbours, {number:,} edges")
                key = aggregation, heard, number
                steps[key], memory[key] = _compiled_step(edges, num_nodes, aggregation, heard, embed_dim, batch_size)
    times: dict[tuple[str, int, int], list[float]] = {key: [] for key in steps}
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for key, step in steps.items():
            times[key].append(step())
    fewest = min(numbers_of_edges)
    rows = []
    for aggregation in aggregations:
        for heard in neighbours:
            reference = np.array(times[aggregation, heard, fewest])
            for number in sorted(numbers_of_edges):
                key = aggregation, heard, number
                measured = np.array(times[key])
                ratio = float(np.median(measured / reference))
                rows.append(GraphCost(*key, 1000 * float(np.median(measured)), ratio, memory[key]))
    settings = {
        "nodes": num_nodes,
        "kinds of edges": _KINDS,
        "layers": _LAYERS,
        "embed_dim": embed_dim,
        "edges predicted in a step": batch_size,
        "rounds": rounds,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    return GraphCosts(tuple(rows), settings)


class _Network(nnx.Module):
    def __init__(self, num_nodes: int, dim: int, aggregation: str, neighbours: int, rngs: nnx.Rngs):
        self.rows = weight(rngs, (num_nodes, dim), dim, (None, None), "embedding")
        self.graph = RegulatoryGraph(dim, _KINDS, _LAYERS, rngs, aggregation, num_neighbours=neighbours)
        self.decoder = LINK_DECODERS["bilinear"](dim, rngs)


def _drawn_edges(num_nodes: int, number: int) -> GraphEdges:
    rng = np.random.default_rng(0)
    share = np.arange(1, num_nodes + 1) ** -_UNEVEN
    codes = np.zeros(0, np.int64)
    while len(codes) < number:
        sources = rng.choice(num_nodes, number, p=share / share.sum())
        codes = np.unique(np.concatenate([codes, sources * num_nodes + rng.integers(0, num_nodes, number)]))
    source, target = np.divmod(rng.permutation(codes)[:number], num_nodes)
    return graph_edges(source, target, rng.integers(0, _KINDS, number), np.ones(number))


def _compiled_step(
    edges: GraphEdges, num_nodes: int, aggregation: str, neighbours: int, dim: int, batch_size: int
) -> tuple[Callable[[], float], int | None]:
    """(a function that takes a step and gives its seconds, bytes of the compiled step)."""
    definition, params = nnx.split(_Network(num_nodes, dim, aggregation, neighbours, nnx.Rngs(params=init_key(0))))
    optimizer = optax.adam(1e-3)

    def step(params: Any, moments: Any, edges: GraphEdges, key: jax.Array) -> tuple[Any, Any]:
        of_edges, of_others, of_graph = jax.random.split(key, 3)
        place = jax.random.randint(of_edges, (batch_size,), 0, len(edges.source))
        others = jax.random.randint(of_others, (2, batch_size), 0, num_nodes)
        source = jnp.concatenate([edges.source[place], others[0]])
        target = jnp.concatenate([edges.target[place], others[1]])
        is_edge = (jnp.arange(2 * batch_size) < batch_size).astype(jnp.float32)

        def loss(params: Any) -> jax.Array:
            network = nnx.merge(definition, params)
            rows = network.graph(network.rows[...], without(edges, place), of_graph)
            logits = network.decoder(rows[source], rows[target])[..., EDGE]
            return optax.sigmoid_binary_cross_entropy(logits, is_edge).mean()

        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    held = [(params, optimizer.init(params))]
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*held[0], edges, init_key(1)).compile()
    analysis = compiled.memory_analysis()
    used = None
    if analysis is not None:
        # The state is donated: what is both argument and output is there once.
        used = int(
            analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            + analysis.temp_size_in_bytes
            - analysis.alias_size_in_bytes
        )

    def take() -> float:
        start = time.perf_counter()
        held[0] = jax.block_until_ready(compiled(*held[0], edges, init_key(1)))
        return time.perf_counter() - start

    take()
    return take, used
