"""Cells per second of annotation by a fine-tuned scBERT, at several numbers of genes, beside performer-pytorch's.

Both take the tokens of a few cells to the logits of their types: embedding, encoder, the head on all genes
(models/gene_head.py), the last layer; float32, random weights, the same sizes, cells and threads, by turns. Beside all
genes as tokens stand the expressed ones alone, with exact attention: what a model that was trained so
(--modalities.rna.zero-fraction 0) computes of a cell. What that does to accuracy is in docs/import.md.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.annotation.scbert_head import WIDTHS
from scmbert_jax.benchmarks.peer_process import PeerProcess, bind_to_cpus
from scmbert_jax.benchmarks.timed_step import synthetic_cells_of
from scmbert_jax.experiment_files import load_experiment
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.text_table import markdown_table

_TYPES = 11  # of Zheng et al. 2017, whom scBERT was tested on


@dataclass(frozen=True)
class AnnotationCost:
    """Of one number of genes; medians over the rounds.

    Attributes:
      tokens: of a cell, without `[CLS]`; fewer than `genes`: its expressed genes alone.
      cells_per_second, peer_cells_per_second: the peer's is of all genes, and None where none was run.
      speed: ours over the peer's of the same round; `over_all_genes`: ours over ours with all genes as tokens.
    """

    genes: int
    tokens: int
    cells_per_second: float
    peer_cells_per_second: float | None
    speed: float | None
    over_all_genes: float


@dataclass(frozen=True)
class AnnotationCosts:
    """All of one run; `settings`: what was measured."""

    rows: tuple[AnnotationCost, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "settings": self.settings}

    def text(self) -> str:
        head = ["genes", "tokens", "ours (cells/s)", "performer-pytorch (cells/s)", "speed", "over all genes"]
        lines = [
            [
                f"{row.genes:,}",
                f"{row.tokens:,}" + ("" if row.tokens == row.genes else " (expressed)"),
                f"{row.cells_per_second:.2f}",
                "-" if row.peer_cells_per_second is None else f"{row.peer_cells_per_second:.2f}",
                "-" if row.speed is None else f"{row.speed:.2f}x",
                f"{row.over_all_genes:.2f}x",
            ]
            for row in self.rows
        ]
        return markdown_table(head, lines)


def measure_annotation(
    genes: tuple[int, ...] = (1024, 2048, 16_906),
    expressed: int = 1000,
    torch_python: Path | None = None,
    *,
    cells: int = 2,
    layers: int = 6,
    rounds: int = 3,
    threads: int = 2,
    say: Callable[[str], None] = lambda message: None,
) -> AnnotationCosts:
    """Times both, alternately, at each number of genes; where it is above `expressed`, ours with so many tokens, too.

    Args:
      torch_python: an interpreter that has torch, numpy and performer-pytorch; None: ours alone.
      cells: of a call. rounds: each after one call to warm up.
      threads: of each; this process and the other are bound to as many CPUs (call it before JAX has started any).

    Raises `ConfigError`: `torch_python` cannot be run or lacks a package; there are fewer CPUs than `threads`.
    """
    bind_to_cpus(threads)
    shape = load_experiment("scbert").model
    peer = None
    if torch_python is not None:
        sizes = {"width": shape.embed_dim, "layers": layers, "heads": shape.num_heads, "head_dim": shape.head_dim}
        sizes |= {"hidden": WIDTHS[0], "vector": WIDTHS[1], "types": _TYPES, "cells": cells, "threads": threads}
        packages = "torch numpy performer-pytorch"
        peer = PeerProcess(torch_python, "annotation_peer.py", [json.dumps(sizes)], "--torch-python", packages)
    try:
        rows = []
        for number in genes:
            say(f"{number:,} genes: compiling")
            tokens = [number, *([expressed] if expressed < number else [])]
            ours = [_annotation(number, most, cells, layers) for most in tokens]
            for function in ours:
                function()
            if peer is not None:
                peer.ask(str(number))
            seconds, theirs = np.zeros((rounds, len(ours))), np.zeros(rounds)
            for turn in range(rounds):
                say(f"{number:,} genes: round {turn + 1} of {rounds}")
                for place, function in enumerate(ours):
                    start = time.perf_counter()
                    function()
                    seconds[turn, place] = time.perf_counter() - start
                if peer is not None:
                    theirs[turn] = peer.ask(str(number))["seconds"]
            for place, most in enumerate(tokens):
                mine = seconds[:, place]
                rows.append(
                    AnnotationCost(
                        genes=number,
                        tokens=most,
                        cells_per_second=cells / float(np.median(mine)),
                        peer_cells_per_second=None if peer is None else cells / float(np.median(theirs)),
                        speed=None if peer is None else float(np.median(theirs / mine)),
                        over_all_genes=float(np.median(seconds[:, 0] / mine)),
                    )
                )
    finally:
        if peer is not None:
            peer.close()
    settings = {"cells": cells, "layers": layers, "rounds": rounds, "threads": threads, "jax": jax.__version__}
    return AnnotationCosts(tuple(rows), settings | ({} if peer is None else {"torch": peer.hello["torch"]}))


def _annotation(genes: int, tokens: int, cells: int, layers: int) -> Callable[[], None]:
    """Annotates `cells` cells, and returns when it is done. Fewer tokens than genes: by exact attention."""
    base = load_experiment("scbert")
    attention = "favor" if tokens == genes else "xla_chunked"
    config = replace(
        base,
        modalities=replace(base.modalities, rna=replace(base.modalities.rna, num_tokens=tokens)),
        data=replace(base.data, global_batch_size=cells, num_streams=1),
        model=replace(base.model, num_layers=layers, gene_head=WIDTHS, attention=attention),
        train=replace(base.train, num_microbatches=1),
    )
    layout = synthetic_layout(genes)
    model = ModelDefinition(config, layout)
    params = jax.jit(model.init)(jax.random.key(0))
    last = jax.random.normal(jax.random.key(1), (WIDTHS[-1], _TYPES))

    def logits(params: Any, constants: Any, last: jax.Array, batch: Any) -> jax.Array:
        merged = model.merge(params, constants)
        return merged.cell_embedding(merged.feature_table(), batch) @ last

    run = jax.jit(logits)
    given = jax.device_put((params, model.constants, last, synthetic_cells_of(config, layout, 0.0, 0)))
    return lambda: jax.block_until_ready(run(*given))
