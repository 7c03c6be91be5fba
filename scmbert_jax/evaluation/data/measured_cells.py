"""The cells of a file with everything that was measured in them, and the split of a translation into train and test.

All columns of the file stay, also those whose names map to no known feature: the yardstick must not depend on what our
feature space happens to know. A model is scored on such a column as the training mean (see `translation_model`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from data_pipelines.checks.input_check import check_dataset, require_usable
from data_pipelines.checks.input_report import InputReport, ModalityReport
from data_pipelines.checks.shared_counts import CellSet, cells_of_dataset
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.whole_counts import whole
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.data.value_scale import ValueScale, median_library_size
from scmbert_jax.tasks.modality_cells import full_batch_names

Array = np.ndarray


@dataclass(frozen=True)
class FeatureColumns:
    """The columns of one modality of a file.

    Attributes:
      names: str [F], as the file has them.
      ids: str [F], stable ids (Ensembl gene, normalised antibody, "chr1:100-200"); "" where the name is unknown.
      chrom: str [F], "" where unknown.
      genes: tuple [F] of tuples of Ensembl gene ids: a gene itself, the coding genes of a protein, the genes near a
        region; empty where none is known.
    """

    names: Array
    ids: Array
    chrom: Array
    genes: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class MeasuredCells:
    """All cells of a data set.

    Attributes:
      path: where they came from; name: of the data set, as corpora name it.
      cell_ids, cell_types, technical_batches: str [n]; "" where unknown.
      counts: modality -> int32 CSR [n, F]; rows of cells that were not measured are empty.
      measured: modality -> bool [n].
      features: modality -> its columns.
      organism, assembly: as the input check settled them; None where unknown.
      identity: the cells by the keys by which they are known again.
      donors: str [n], "" where unknown; empty where nobody asked.
    """

    path: str
    name: str
    cell_ids: Array
    cell_types: Array
    technical_batches: Array
    counts: dict[str, sp.csr_matrix]
    measured: dict[str, Array]
    features: dict[str, FeatureColumns]
    organism: str | None = None
    assembly: str | None = None
    identity: CellSet | None = None
    donors: Array = field(default_factory=lambda: np.zeros(0, str))

    @cached_property
    def scales(self) -> dict[str, ValueScale]:
        """modality -> scale. The target sum of RNA is the median library size of all its cells in the data set: a unit
        for everybody, not something that is fitted."""
        return {
            name: ValueScale(name, median_library_size(counts[self.measured[name]]) if name == "rna" else None)
            for name, counts in self.counts.items()
        }

    def directions(self) -> list[tuple[str, str]]:
        """Ordered pairs (source, target) of modalities that some cells have both of."""
        names = list(self.counts)
        return [(a, b) for a in names for b in names if a != b and self.paired(a, b).any()]

    def paired(self, *modalities: str) -> Array:
        """bool [n]: cells that were measured in all of `modalities`."""
        return np.all([self.measured[name] for name in modalities], axis=0)


def read_measured_cells(
    data: str | Dataset,
    *,
    organism: str | None = None,
    assembly: str | None = None,
    obs_fields: Mapping[str, str | None] | None = None,
) -> MeasuredCells:
    """Reads everything into memory as sparse counts.

    Args:
      data: whatever `open_dataset` takes, or an open data set.
      organism, assembly, obs_fields: as in `check_dataset`.

    Raises:
      InputError: the file cannot be used; the message says where and why.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    report = check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0, obs_fields=obs_fields)
    require_usable(report)
    counts, measured, features = {}, {}, {}
    for matrix in dataset.matrices:
        part = report.modalities[matrix.modality]
        rows = dataset.rows_of(matrix)[part.keep]
        values = sp.vstack([whole(chunk).astype(np.int32) for _, chunk in matrix.chunks()], format="csr")[part.keep]
        spread = sp.csr_matrix(
            (np.ones(len(rows), np.int32), (rows, np.arange(len(rows)))), (len(dataset.cell_ids), len(rows))
        )
        counts[matrix.modality] = sp.csr_matrix(spread @ values)
        counts[matrix.modality].sort_indices()
        measured[matrix.modality] = np.isin(np.arange(len(dataset.cell_ids)), rows)
        features[matrix.modality] = _columns(matrix, part)
    return MeasuredCells(
        dataset.path,
        dataset.name,
        dataset.cell_ids.astype(str),
        _labels(dataset, report, "cell_type"),
        _labels(dataset, report, "technical_batch"),
        counts,
        measured,
        features,
        report.organism,
        report.assembly,
        cells_of_dataset(dataset.name, dataset, report),
        _labels(dataset, report, "donor"),
    )


def _columns(matrix: CountsMatrix, part: ModalityReport) -> FeatureColumns:
    names, number = matrix.feature_names.astype(str), len(matrix.feature_names)
    if part.mapping is None:
        return FeatureColumns(names, np.full(number, ""), np.full(number, ""), ((),) * number)
    known, place = part.mapping.features, part.column_to_feature
    ids = np.where(place >= 0, known.ids[place], "")
    linked = [known.links[row] if row >= 0 else () for row in place.tolist()]
    if matrix.modality == "rna":
        linked = [(str(gene),) if gene else () for gene in ids]
    return FeatureColumns(names, ids, np.where(place >= 0, known.chrom[place], ""), tuple(linked))


def _labels(dataset: Dataset, report: InputReport, field: str) -> Array:
    column = report.obs_fields.get(field)
    if column is None:
        return np.full(len(dataset.cell_ids), "")
    values = dataset.obs[column].astype(object)
    return values.where(values.notna(), "").to_numpy(str)


def batches_named(cells: MeasuredCells, names: Sequence[str], option: str) -> Array:
    """bool [n]: cells of the named technical batches; "p3" also means "p3_0" where no other batch begins so.

    Raises `ConfigError` for a name that no batch or several batches answer to.
    """
    chosen = full_batch_names(names, cells.technical_batches.tolist(), option, cells.path)
    return np.isin(cells.technical_batches, chosen)


def types_named(cells: MeasuredCells, names: Sequence[str], option: str) -> Array:
    """bool [n]: cells of the named cell types. Raises `ConfigError` for a type that no cell has."""
    existing = sorted(set(cells.cell_types.tolist()) - {""})
    unknown = [name for name in names if name not in existing]
    if unknown:
        raise ConfigError(
            f"{option} {', '.join(unknown)}: no cell of {cells.path} is of that type; there are "
            f"{', '.join(existing) or 'no cell types at all'}."
        )
    return np.isin(cells.cell_types, names)


def require_cells(rows: Array, what: str, cells: MeasuredCells, at_least: int = 10) -> None:
    """Raises `InputError` when too few cells are left to train or to test on."""
    if int(rows.sum()) < at_least:
        raise InputError(
            f"{cells.path}: {int(rows.sum())} {what}; at least {at_least} are needed. Choose other batches or types."
        )
