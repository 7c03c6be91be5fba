"""A process that knows a corpus and a step, and nothing else: says when it has the batch, and ends.

    python -m scmbert_jax.benchmarks.first_batch CORPUS STEP

All that a run needs to continue is its step (8 bytes), so this is what a restart waits for before its first batch.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.corpus.corpus import open_corpus
from scmbert_jax.config import DataConfig

TOKENS = 1024  # of a cell


def open_reader(corpus: Path) -> BatchReader:
    """Of RNA, with the defaults of an experiment."""
    return BatchReader(open_corpus(corpus), {"rna": TokenSampling(TOKENS)}, seed=0, **asdict(DataConfig()))


if __name__ == "__main__":
    open_reader(Path(sys.argv[1])).batch_at(int(sys.argv[2]))
    print(json.dumps({"time": time.time()}))
