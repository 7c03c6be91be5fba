"""What every method differs by: how cells become vectors. And what is known of a cell before it is one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipelines.batches.model_counts import Overlap, model_counts
from data_pipelines.checks.input_report import InputReport
from data_pipelines.checks.shared_counts import cells_of_dataset
from data_pipelines.readers.dataset import Dataset
from scmbert_jax.annotation.pca import MappedCells, Pca
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.tasks.embed import embedding_function
from scmbert_jax.tasks.model_cells import ModelCells, open_model_cells

Array = np.ndarray
Progress = Callable[[int, int], None]


class OpenCells(Protocol):
    """`ModelCells` and `MappedCells`: what both have."""

    @property
    def dataset(self) -> Dataset: ...
    @property
    def report(self) -> InputReport: ...
    @property
    def overlaps(self) -> dict[str, Overlap]: ...
    @property
    def coverage(self) -> dict[str, float]: ...


class Reading(NamedTuple):
    """How cells are opened and embedded; fields as of `embed_dataset`."""

    organism: str | None = None
    assembly: str | None = None
    allow_low_coverage: bool = False
    num_tokens: int | None = None
    batch_size: int = 64
    progress: Progress | None = None


@dataclass(frozen=True)
class ModelRepresentation:
    """The cell embedding of a model, frozen or fine-tuned."""

    model: PretrainedModel

    def open(self, cells: Any, reading: Reading) -> ModelCells:
        """Raises `InputError`, as `open_model_cells`."""
        model = replace(self.model, allow_low_coverage=self.model.allow_low_coverage or reading.allow_low_coverage)
        return open_model_cells(model, cells, None, reading.organism, reading.assembly)

    def vectors(self, cells: OpenCells, reading: Reading) -> Array:
        """float32 [n, D]; 0 for cells without a count of the model's features."""
        assert isinstance(cells, ModelCells)
        embed = embedding_function(self.model, "cell")
        number = len(cells.dataset.cell_ids)
        found = np.zeros((number, self.model.config.model.cell_dim), np.float32)
        for rows, batch, done in cells.batches(reading.num_tokens, reading.batch_size, 0):
            found[rows] = embed(batch)[: len(rows)]
            if reading.progress is not None:
                reading.progress(done, number)
        if reading.progress is not None:
            reading.progress(number, number)
        cells.warn_of_what_was_not_shown()
        return found


@dataclass(frozen=True)
class PcaRepresentation:
    """Principal components of the labelled cells."""

    pca: Pca

    def open(self, cells: Any, reading: Reading) -> MappedCells:
        """Raises `InputError`, as `open_model_cells`."""
        return self.pca.open(cells, reading.organism, reading.assembly, reading.allow_low_coverage)

    def vectors(self, cells: OpenCells, reading: Reading) -> Array:
        """float32 [n, D]; 0 for cells without a count of its features."""
        assert isinstance(cells, MappedCells)
        return self.pca.vectors(cells)


Representation = ModelRepresentation | PcaRepresentation


class CellFacts(NamedTuple):
    """Attributes:
    expressed: int64 [n], features of the representation with a count, over all modalities.
    measured: str [n], the modalities that a cell has: "rna", "rna+protein"; "" for none.
    copies: int64 [n], equal for cells of the same barcode and counts.
    """

    expressed: Array
    measured: Array
    copies: Array


def cell_facts(cells: OpenCells) -> CellFacts:
    """Reads the counts once."""
    number = len(cells.dataset.cell_ids)
    expressed, code = np.zeros(number, np.int64), np.zeros(number, np.int64)
    names = list(cells.overlaps)
    for chunk in model_counts(cells.dataset, cells.report, cells.overlaps):
        for place, name in enumerate(names):
            rows = slice(chunk.first, chunk.first + len(chunk.measured[name]))
            expressed[rows] += chunk.counts[name].getnnz(1)
            code[rows] |= chunk.measured[name].astype(np.int64) << place
    patterns = ["+".join(n for place, n in enumerate(names) if value >> place & 1) for value in range(1 << len(names))]
    keys = cells_of_dataset(cells.dataset.name, cells.dataset, cells.report).keys
    stacked = np.stack([keys[name] for name in sorted(keys)], axis=1)
    return CellFacts(expressed, np.array(patterns)[code], np.unique(stacked, axis=0, return_inverse=True)[1].ravel())
