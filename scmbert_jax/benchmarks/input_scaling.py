"""How speed, memory and mixing of our input pipeline depend on what can be chosen, one thing at a time.

Every row is a process of its own (loader_process.py), the rows of a table measured alternately. Mixing is that of the
data sets, which came one after the other into the build: their number in a batch, and the entropy of their fractions in
it, beside the same of a perfect shuffle of all cells (mean over the batches of an epoch).
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.corpus.corpus import Corpus, open_corpus
from scmbert_jax.batch import CellBatch
from scmbert_jax.benchmarks.input_speed import BLOCK_CELLS, OUR_DEFAULTS, in_rounds, make_stores
from scmbert_jax.errors import CorpusError
from scmbert_jax.text_table import markdown_table

LENGTHS = (256, 512, 1024, 2048, 4096)
WINDOWS = (1, 2, 4, 8, 16)
STREAMS = (1, 2, 4, 8, 16)
PROCESSES = (1, 2, 4, 8)
_NUM_TOKENS = 2048  # where it is not what changes
_STEPS_OF_LARGE = 256  # of a round, however large the corpus is


@dataclass(frozen=True)
class ScalingRow:
    """One setting.

    Attributes:
      changed: what is another than in the other rows, such as "L 256".
      cells_per_cpu_second, cells_per_second, peak_rss_mib: as in `input_speed.LoaderSpeed`.
    """

    changed: str
    cells_per_cpu_second: float
    cells_per_second: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Mixing:
    """How well one setting mixes; means over the batches of an epoch.

    Attributes:
      changed: as in `ScalingRow`.
      datasets, datasets_shuffled: data sets in a batch, and in one of a perfect shuffle.
      entropy, entropy_shuffled: of their fractions, in bits.
      blocks, blocks_shuffled: blocks that the cells of a batch come from.
    """

    changed: str
    datasets: float
    datasets_shuffled: float
    entropy: float
    entropy_shuffled: float
    blocks: float
    blocks_shuffled: float


@dataclass(frozen=True)
class InputScaling:
    """All tables of one call.

    Attributes:
      rows: speed and memory.
      mixing: of the settings that it depends on; (): not measured.
      batch_hashes: number of processes -> sha256 of the first batches, put together from what the processes made; {}:
        not measured.
      settings: what is the same in all rows.
    """

    rows: tuple[ScalingRow, ...]
    mixing: tuple[Mixing, ...]
    batch_hashes: dict[int, str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        text = markdown_table(
            ["", "cells per CPU-second", "cells/s (wall)", "peak memory (MiB)"],
            [
                [
                    row.changed,
                    *(f"{x:,.0f}" for x in (row.cells_per_cpu_second, row.cells_per_second, row.peak_rss_mib)),
                ]
                for row in self.rows
            ],
        )
        if self.mixing:
            mixing = markdown_table(
                ["", "data sets in a batch", "entropy (bits)", "blocks in a batch"],
                [
                    [
                        row.changed,
                        f"{row.datasets:.2f} of {row.datasets_shuffled:.2f}",
                        f"{row.entropy:.3f} of {row.entropy_shuffled:.3f}",
                        f"{row.blocks:.1f} of {row.blocks_shuffled:.1f}",
                    ]
                    for row in self.mixing
                ],
            )
            text += f"\n\nOf what a perfect shuffle gives:\n\n{mixing}"
        if self.batch_hashes:
            hashes = ", ".join(f"{number}: {digest[:16]}" for number, digest in self.batch_hashes.items())
            text += f"\n\nBatches by number of processes: {hashes}"
        return text


def measure_scaling(
    folder: Path, num_cells: int, rounds: int, say: Callable[[str], None] = lambda message: None
) -> InputScaling:
    """Makes the stores in `folder` (see `input_speed.make_stores`) and measures all tables on the zstd corpus."""
    files, corpora = make_stores(folder, num_cells, say)
    corpus = corpora["zstd"]
    base = {**OUR_DEFAULTS, "corpus": str(corpus), "num_tokens": _NUM_TOKENS}
    settings: dict[str, dict[str, Any]] = {}
    for divisor in (8, 2):
        part = _part_of(folder, files, divisor, say)
        settings[f"{num_cells // divisor:,} cells"] = {**base, "corpus": str(part)}
    settings[f"{num_cells:,} cells"] = base
    settings |= {f"L {length}": {**base, "num_tokens": length} for length in LENGTHS}
    settings |= {f"K {blocks} blocks": {**base, "window_blocks": blocks} for blocks in WINDOWS}
    settings |= {f"V {streams} streams": {**base, "num_streams": streams} for streams in STREAMS}
    settings["page cache dropped before every step"] = {**base, "cold": True}
    rows = _measured(settings, rounds, say)
    with open_corpus(corpus) as opened:
        say("mixing")
        mixing = tuple(
            mixing_of(opened, f"K {blocks} blocks, V {streams} streams", streams, blocks)
            for streams, blocks in ((1, 1), (1, 8), (4, 1), (4, 8), (8, 8))
        )
        hashes = {number: hash_of_batches(opened, number) for number in PROCESSES}
    same = {name: value for name, value in base.items() if name not in ("loader", "corpus")}
    return InputScaling(rows, mixing, hashes, {**same, "cells": num_cells, "rounds": rounds})


def measure_corpora(
    corpora: Sequence[Path], rounds: int, cold: bool, say: Callable[[str], None] = lambda message: None
) -> InputScaling:
    """Speed and memory of reading corpora that are there, of RNA and of whatever size.

    Args:
      corpora: their folders.
      rounds: each figure is the median over so many rounds of 256 batches of 1,024 cells, each from where the one
        before ended.
      cold: their shards are dropped from the page cache before every batch.

    Raises:
      CorpusError: one that cannot be read, or has no RNA.
    """
    base = {**OUR_DEFAULTS, "num_tokens": _NUM_TOKENS, "steps": _STEPS_OF_LARGE, "cold": cold}
    settings = {}
    for path in corpora:
        with open_corpus(path) as corpus:
            if "rna" not in corpus.modalities:
                raise CorpusError(f"{path}: has {', '.join(corpus.modalities)} and no RNA, which is what is read here.")
            settings[f"{corpus.num_cells:,} cells ({path})"] = {**base, "corpus": str(path)}
    rows = _measured(settings, rounds, say)
    same = {name: value for name, value in base.items() if name != "loader"}
    return InputScaling(rows, (), {}, {**same, "rounds": rounds})


def _measured(settings: dict[str, dict[str, Any]], rounds: int, say: Callable[[str], None]) -> tuple[ScalingRow, ...]:
    """One row for each, medians over the rounds."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, setting in settings.items():  # one process at a time: twenty would share the caches of the processor
        found |= in_rounds({name: setting}, {name: sys.executable}, rounds, say)[0]
    return tuple(
        ScalingRow(
            name,
            float(np.median([r["cells"] / r["cpu_s"] for r in results])),
            float(np.median([r["cells"] / r["wall_s"] for r in results])),
            max(r["peak_rss_mib"] for r in results),
        )
        for name, results in found.items()
    )


def _part_of(folder: Path, files: list[Path], divisor: int, say: Callable[[str], None]) -> Path:
    """A corpus of one in `divisor` of the files."""
    from data_pipelines.build.build_corpus import build_corpus

    path = folder / f"corpus_of_{len(files) // divisor}"
    if not path.is_dir():
        say(f"building {path.name}")
        build_corpus(path, files[: len(files) // divisor], block_size=BLOCK_CELLS, min_genes=1)
    return path


def _reader(
    corpus: Corpus, streams: int, blocks: int, batch_size: int, tokens: int = 1, index: int = 0, count: int = 1
) -> BatchReader:
    return BatchReader(
        corpus,
        {"rna": TokenSampling(tokens)},
        seed=0,
        global_batch_size=batch_size,
        num_streams=streams,
        window_blocks=blocks,
        covariates=("dataset",),
        process_index=index,
        process_count=count,
    )


def mixing_of(corpus: Corpus, changed: str, streams: int, blocks: int, batch_size: int = BLOCK_CELLS) -> Mixing:
    """Of the first epoch, with `streams` and windows of `blocks`."""
    reader = _reader(corpus, streams, blocks, batch_size)
    starts = np.cumsum(corpus.block_sizes) - corpus.block_sizes
    batches = [reader.batch_at(step) for step in range(reader.steps_per_epoch)]
    datasets = np.stack([batch.covariates["dataset"] for batch in batches])  # [steps, B]
    block = np.searchsorted(starts, np.stack([batch.cell_index for batch in batches]), side="right") - 1
    shuffle = np.random.default_rng(0).permutation(datasets.size)
    shuffled = [values.reshape(-1)[shuffle].reshape(values.shape) for values in (datasets, block)]
    return Mixing(
        changed,
        _distinct(datasets),
        _distinct(shuffled[0]),
        _entropy(datasets),
        _entropy(shuffled[0]),
        _distinct(block),
        _distinct(shuffled[1]),
    )


def _distinct(values: np.ndarray) -> float:
    return float(np.mean([len(np.unique(row)) for row in values]))


def _entropy(values: np.ndarray) -> float:
    """Bits, mean over the rows."""
    fractions = [np.unique(row, return_counts=True)[1] / len(row) for row in values]
    return float(np.mean([-(fraction * np.log2(fraction)).sum() for fraction in fractions]))


def hash_of_batches(corpus: Corpus, processes: int, batch_size: int = BLOCK_CELLS, steps: int = 4) -> str:
    """sha256 of the first global batches, put together from the rows that each of so many processes makes."""
    readers = [
        _reader(corpus, max(PROCESSES), 2, batch_size, tokens=512, index=index, count=processes)
        for index in range(processes)
    ]
    digest = hashlib.sha256()
    for step in range(steps):
        parts = [_arrays(reader.batch_at(step)) for reader in readers]
        for arrays in zip(*parts, strict=True):
            digest.update(np.ascontiguousarray(np.concatenate(arrays)).tobytes())
    return digest.hexdigest()


def _arrays(batch: CellBatch) -> list[np.ndarray]:
    tokens = [array for of_modality in batch.modalities.values() for array in of_modality]
    return [*tokens, *batch.covariates.values(), batch.cell_index, batch.row]
