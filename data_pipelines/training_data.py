"""A corpus as the training loop takes it: batches by step, and what identifies the data of a run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from data_pipelines.batch_reader import BatchReader
from data_pipelines.collate import TokenSampling
from data_pipelines.corpus import Corpus
from data_pipelines.feature_statistics import feature_statistics, save_statistics
from data_pipelines.input_pipeline import tf_batches, thread_batches
from scmbert_jax.batch import CellBatch

# How batches are read ahead; both give the same batches bit for bit. `threads` needs no TensorFlow.
FRONT_ENDS: dict[str, Callable[[BatchReader, int, int], Iterator[tuple[int, CellBatch]]]] = {
    "tfdata": tf_batches,
    "threads": thread_batches,
}


class CorpusData:
    """One process's view of the data of a run.

    Attributes:
      layout: `FeatureLayout` of the corpus, with the sizes of the covariates that the reader carries.
      fingerprint, feature_space_hash: hex digests that a run remembers.
      covariates: covariate -> its categories, in the order of their codes.
      information: what the modalities that are read tell beside counts (`supervision.information_of`).
    """

    def __init__(
        self,
        corpus: Corpus,
        reader: BatchReader,
        front_end: str,
        target_sums: Mapping[str, float],
        whole_cells: dict[str, TokenSampling],
    ):
        """`target_sums` and `whole_cells` (how cells are shown when embedding): modality -> what statistics need."""
        self._corpus, self._reader, self._batches = corpus, reader, FRONT_ENDS[front_end]
        self.covariates = {name: corpus.vocabularies[name] for name in reader.covariates}
        layout = corpus.feature_space.layout({name: len(values) for name, values in self.covariates.items()})
        tokens, cells = (_first_batches(reader.of_all_processes(choice)) for choice in (reader.sampling, whole_cells))
        self._statistics = feature_statistics(tokens, layout, target_sums, cells)
        self.layout = replace(layout, statistics=self._statistics)
        self.information = corpus.information(reader.sampling)
        self.fingerprint = corpus.fingerprint
        self.feature_space_hash = corpus.feature_space.content_hash

    def batches(self, start_step: int, stop_step: int) -> Iterator[tuple[int, CellBatch]]:
        """(step, this process's rows of its batch), a pure function of (seed, step)."""
        return self._batches(self._reader, start_step, stop_step)

    def save_features(self, folder: Path) -> None:
        """Writes feature_space.parquet and feature_statistics.npz."""
        self._corpus.feature_space.save(folder / "feature_space.parquet")
        save_statistics(self._statistics, folder / "feature_statistics.npz")


def _first_batches(reader: BatchReader) -> Iterator[CellBatch]:
    # Four epochs: of a corpus of few blocks, an epoch leaves some out.
    return (reader.batch_at(step) for step in range(4 * reader.steps_per_epoch))
