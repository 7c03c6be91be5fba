"""Cells per second from a corpus whose storage answers late, compared with the same corpus in a folder.

The delay is simulated: an fsspec file system over the folder that waits before each answer, so that nothing but the
latency differs. Ways of reading, measured alternately in one process: from the folder; from afar, one read after the
other; from afar with the reads of a step and of the next windows under way together; from a warm cache of blocks.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.read_ahead import thread_batches
from data_pipelines.corpus.corpus import Corpus, open_corpus


class SlowFiles(AsyncFileSystem):
    """Files of this machine, each answer after `seconds`. URL: slow:///folder."""

    protocol = "slow"
    cachable = False
    seconds = 0.0

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        await asyncio.sleep(self.seconds)
        path = self._strip_protocol(path)
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        await asyncio.sleep(self.seconds)
        with open(self._strip_protocol(path), "rb") as file:
            file.seek(start or 0)
            return file.read(None if end is None else end - (start or 0))


def measure_latency(
    corpus: Path, milliseconds: float, batch_size: int, num_tokens: int, num_steps: int, rounds: int
) -> dict[str, float]:
    """Way of reading -> cells per second (the median over `rounds`).

    Args:
      corpus: a folder.
      milliseconds: until each read is answered.
      batch_size, num_tokens: of a batch, tokens of each modality.
      num_steps: timed together.
    """
    fsspec.register_implementation("slow", SlowFiles, clobber=True)
    SlowFiles.seconds = milliseconds / 1000
    url = f"slow://{corpus.resolve()}"
    with tempfile.TemporaryDirectory() as cache:
        ways: dict[str, Callable[[], Corpus]] = {
            "folder": lambda: open_corpus(corpus),
            "afar, one by one": lambda: _one_by_one(open_corpus(url, cache_gigabytes=0)),
            "afar": lambda: open_corpus(url, cache_gigabytes=0),
            "afar, cached": lambda: open_corpus(url, cache_dir=cache),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, opened in ways.items():
                with opened() as source:
                    spent = _seconds(source, batch_size, num_tokens, num_steps)
                if number:  # the first compiles the kernels and fills the cache
                    seconds[name].append(spent)
    return {name: num_steps * batch_size / sorted(spent)[len(spent) // 2] for name, spent in seconds.items()}


def _one_by_one(corpus: Corpus) -> Corpus:
    corpus.files.read_ahead = lambda ranges: None  # type: ignore[method-assign]
    return corpus


def _seconds(corpus: Corpus, batch_size: int, num_tokens: int, num_steps: int) -> float:
    sampling = {name: TokenSampling(num_tokens, 0.25) for name in corpus.modalities}
    reader = BatchReader(corpus, sampling, seed=0, global_batch_size=batch_size, num_streams=4, window_blocks=8)
    began = time.perf_counter()
    for _ in thread_batches(reader, 0, num_steps):
        pass
    return time.perf_counter() - began
