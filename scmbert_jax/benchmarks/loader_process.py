"""A loader in a process of its own, which gives an epoch of batches whenever it is asked to, and says what that took.

Run by the Python that has the loader (another than ours for those of other projects, so this file imports nothing of
ours but in our own loader):  python loader_process.py '{"loader": "annbatch", ...}'
One line in, one epoch, one line of JSON out, until the input ends. The first line out says that it is ready.
"""

import json
import os
import resource
import runpy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

Epochs = Iterator[int]  # gives the number of cells of each epoch, when it has gone through it


def corpus_batches(settings: dict[str, Any]) -> tuple[Epochs, dict[str, str]]:
    """Ours. Settings: corpus, front_end, num_tokens, zero_fraction, batch_size, num_streams, window_blocks, threads,
    cold (True: the shards are dropped from the page cache before every step), steps (of what counts as an epoch; 0:
    all)."""
    import zstandard

    from data_pipelines.batches.batch_reader import BatchReader
    from data_pipelines.batches.collate import TokenSampling
    from data_pipelines.batches.read_ahead import tf_batches, thread_batches
    from data_pipelines.corpus.corpus import open_corpus

    corpus = open_corpus(settings["corpus"])
    reader = BatchReader(
        corpus,
        {"rna": TokenSampling(settings["num_tokens"], settings["zero_fraction"])},
        seed=0,
        global_batch_size=settings["batch_size"],
        num_streams=settings["num_streams"],
        window_blocks=settings["window_blocks"],
    )
    front_end = {"threads": thread_batches, "tfdata": tf_batches}[settings["front_end"]]
    batches = front_end(reader, 0, 1 << 40, num_threads=settings["threads"])
    shards = [corpus.shard_path(number) for number in range(len(corpus.manifest["shards"]))]

    def epochs() -> Epochs:
        while True:
            cells = 0
            for _ in range(settings["steps"] or reader.steps_per_epoch):
                if settings["cold"]:
                    drop_from_page_cache(shards)
                cells += len(next(batches)[1].row)
            yield cells

    return epochs(), {"zstandard": zstandard.__version__}


def loader(settings: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Epochs, dict[str, str]]]:
    """Ours, or the one of that name in the file `peers` (peers/loaders.py of the repository)."""
    if settings["loader"] == "scmbert_jax":
        return corpus_batches
    return runpy.run_path(settings["peers"])["LOADERS"][settings["loader"]]


def drop_from_page_cache(paths: list) -> None:
    """Asks the kernel to forget what it holds of these files (clean pages only, so after they were synced)."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def main() -> None:
    warnings.filterwarnings("ignore")
    settings = json.loads(sys.argv[1])
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    epochs, versions = loader(settings)(settings)
    next(epochs)  # compiled, and everything open
    versions["python"] = sys.version.split()[0]
    print(json.dumps({"versions": versions}), file=out, flush=True)
    for _ in sys.stdin:
        cpu, wall = _cpu_seconds(), time.perf_counter()
        cells = next(epochs)
        cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
        found = {"cells": cells, "cpu_s": cpu, "wall_s": wall, "peak_rss_mib": _peak_rss_mib()}
        print(json.dumps(found), file=out, flush=True)


def _cpu_seconds() -> float:
    """User and system time of this process, all its threads, and the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime  # os.times counts in hundredths of a second


def _peak_rss_mib() -> float:
    try:
        with open("/proc/self/status") as status:
            (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
        return int(peak) / 1024
    except (OSError, ValueError):  # not Linux. There, this would begin with the memory of the process that started us
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
