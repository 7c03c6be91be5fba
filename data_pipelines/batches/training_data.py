"""A mixture as the training loop takes it: batches by step, and what identifies the data of a run."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.mixture_information import information_of_mixture
from data_pipelines.batches.read_ahead import ReadAhead
from data_pipelines.batches.trained_cells import TRAINED_CELLS, TrainedCells, save_trained_cells, trained_cells
from data_pipelines.batches.whole_cells import drawn_cells, first_cells
from data_pipelines.genome.region_embeddings import save_region_vectors
from data_pipelines.networks.model_network import ModelNetworks, save_network
from data_pipelines.statistics.feature_statistics import (
    as_arrays,
    feature_statistics,
    from_arrays,
    load_statistics,
    save_statistics,
)
from scmbert_jax.batch import CellBatch
from scmbert_jax.feature_layout import FeatureLayout, FeatureStatistics

# Counts of the cells that statistics are made of: some thousand cells of a whole transcriptome, some ten thousand of a
# few hundred genes. Cells are in memory in parts of as many.
MAX_COUNTS = 8_000_000
# Cells that a linear path starts from.
MAX_CELLS = 100_000
_STATISTICS_FILE = "feature_statistics.npz"


class MixtureData:
    """One process's view of the data of a run.

    Attributes:
      layout: `FeatureLayout` of the mixture, with the sizes of the covariates that the reader carries.
      fingerprint, feature_space_hash: hex digests that a run remembers.
      description: what is drawn how often; a run remembers that, too (`Mixture.describe`).
      covariates: covariate -> its categories, in the order of their codes.
      information: what the modalities that are read tell beside counts (`supervision.information_of`).
    """

    def __init__(
        self,
        reader: BatchReader,
        read_ahead: ReadAhead,
        target_sums: Mapping[str, float],
        started_run: Path | None = None,
        made_once: Callable[[Callable[[], Mapping[str, np.ndarray]]], Mapping[str, np.ndarray]] = lambda make: make(),
        *,
        linear_path: bool = True,
        start_rows: np.ndarray | None = None,
        region_vectors: np.ndarray | None = None,
        networks: ModelNetworks | None = None,
        with_earlier: Callable[[TrainedCells | None], TrainedCells | None] = lambda own: own,
    ):
        """`target_sums`: modality -> the library size that its values are scaled to.

        `started_run`: a run folder; where it is that of a run on the same data, its statistics are read, not made
        again: they take longer than all else before the first batch. `made_once`: of several processes, gives all of
        them the arrays that one of them makes. `linear_path`: whether the model has one; components are made for no
        other. `start_rows`, `region_vectors`: as in `FeatureLayout`. `networks`: those of the run. `with_earlier`:
        given the cells of the run, adds those that the model it starts from has seen (None: not known). Statistics are
        made when `layout` is first asked for, which raises `InputError` when those of a run cannot be read.
        """
        joined = reader.mixture.joined
        self._reader, self._read_ahead = reader, read_ahead
        self.covariates = {name: joined.vocabularies[name] for name in reader.covariates}
        self._target_sums, self._linear_path, self._with_earlier = target_sums, linear_path, with_earlier
        self._started_run, self._made_once, self._start_rows = started_run, made_once, start_rows
        self._networks, self._region_vectors = networks, region_vectors
        self.fingerprint = reader.mixture.fingerprint
        self.feature_space_hash = joined.feature_space.content_hash
        self.description = reader.mixture.describe()

    @cached_property
    def layout(self) -> FeatureLayout:
        space = self._reader.mixture.joined.feature_space
        layout = space.layout({name: len(values) for name, values in self.covariates.items()})
        arrays = self._made_once(lambda: as_arrays(self._make_statistics(layout)))
        statistics = from_arrays(arrays, self._linear_path)
        layout = replace(
            layout, statistics=statistics, start_rows=self._start_rows, region_vectors=self._region_vectors
        )
        return layout if self._networks is None else self._networks.added_to(layout)

    def _make_statistics(self, layout: FeatureLayout) -> FeatureStatistics:
        if self._started_run is not None and _is_of_the_same_data(self._started_run, self.fingerprint):
            path = self._started_run / _STATISTICS_FILE
            regions = "atac" in self._reader.mixture.joined.feature_space.modalities
            return load_statistics(path, layout.num_features, linear_path=self._linear_path, regions=regions)
        whole = self._reader.of_all_processes()
        return feature_statistics(
            _first_batches(whole),
            layout,
            self._target_sums,
            first_cells(whole, MAX_COUNTS),
            more_cells=lambda: islice(drawn_cells(whole, MAX_COUNTS, MAX_CELLS), 1, None),
            linear_path=self._linear_path,
        )

    @cached_property
    def information(self) -> dict[str, Any]:
        networks = {} if self._networks is None else {"networks": self._networks.information}
        return information_of_mixture(self._reader.mixture, self._reader.sampling) | networks

    def batches(self, start_step: int, stop_step: int) -> Iterator[tuple[int, CellBatch]]:
        """(step, this process's rows of its batch), a pure function of (seed, step)."""
        return self._read_ahead.batches(self._reader, start_step, stop_step)

    def save_features(self, folder: Path) -> None:
        """Writes feature_space.parquet, feature_statistics.npz, network.npz of a run with networks,
        region_embeddings.npz of one with those and, where the cells can be told, trained_cells.npz."""
        space = self._reader.mixture.joined.feature_space
        space.save(folder / "feature_space.parquet")
        if self._region_vectors is not None:
            save_region_vectors(folder, space, self._region_vectors)
        assert self.layout.statistics is not None
        save_statistics(self.layout.statistics, folder / _STATISTICS_FILE)
        if self.layout.network is not None:
            save_network(self.layout, folder)
        cells = self._with_earlier(trained_cells(self._reader.mixture, list(self._reader.sampling)))
        if cells is not None:
            save_trained_cells(cells, folder / TRAINED_CELLS)


def _first_batches(reader: BatchReader) -> Iterator[CellBatch]:
    return (reader.batch_at(step) for step in range(4 * reader.steps_per_epoch))


def _is_of_the_same_data(run_dir: Path, fingerprint: str) -> bool:
    """False also where no run has started, or its folder cannot be understood: whoever opens it as a run's says so."""
    if not (run_dir / "config.json").is_file():  # written last
        return False
    try:
        return json.loads((run_dir / "provenance.json").read_text())["corpus_fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return False
