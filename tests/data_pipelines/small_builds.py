"""Builds of a few hundred cells that consist of many tasks, as those of millions do."""

from pathlib import Path

from data_pipelines.build import external_shuffle
from data_pipelines.build import tasks as source_tasks
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.corpus.corpus import Corpus

OPTIONS = {"min_genes": 5, "block_size": 16, "shard_bytes": 3000}

# For programs that tests start: `python -c DIVIDED + "..."`.
DIVIDED = """
from data_pipelines.build import external_shuffle
from data_pipelines.build import tasks as source_tasks
source_tasks.MIN_TASK_ROWS, external_shuffle.BUCKET_ENTRIES = 40, 2000
"""


def divide(monkeypatch, *, task_rows: int = 40, chunk_rows: int = 16, bucket: int = 2000, gather: int = 500) -> None:
    """Tasks of so many rows, chunks of so many, buckets and segments of about so many entries."""
    monkeypatch.setattr(source_tasks, "MIN_TASK_ROWS", task_rows)
    monkeypatch.setattr(source_tasks, "CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(external_shuffle, "BUCKET_ENTRIES", bucket)
    monkeypatch.setattr(external_shuffle, "GATHER_ENTRIES", gather)


def build(out: Path, source: Path, **options) -> Corpus:
    return build_corpus(out, [source], **{**OPTIONS, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
