"""The cells of each modality of a data set, each modality by itself: counts, names, labels, and scores of a PCA or LSI.

Nothing here joins modalities: which rows are the same cell is only known to who compares `cell_ids`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

from data_pipelines.cells.cell_metadata import recognise_obs_fields
from data_pipelines.checks.input_check import check_dataset, require_usable
from data_pipelines.features.feature_space import ModalityFeatures
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.readers.whole_counts import by_feature
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.modalities import TABLE
from scmbert_jax.tasks.normalisation import centred_log_ratio, log1p_of_depth, root_idf

Array = np.ndarray

_NORMALISATIONS = {"rna": log1p_of_depth, "protein": centred_log_ratio, "atac": root_idf}


@dataclass(frozen=True)
class ModalityCells:
    """Cells as one modality sees them.

    Attributes:
      path: the file they came from, for messages.
      features: F features of known identity, with the genes they are linked to.
      counts: int32 CSR [n, F]; columns of the file that name one feature are summed, unknown ones left out.
      cell_ids: str [n].
      technical_batches, donors, cell_types: str [n], "" where unknown.
      all_batches: technical batches of the whole data set, also those that did not measure this modality.
    """

    path: str
    features: ModalityFeatures
    counts: sp.csr_matrix
    cell_ids: Array
    technical_batches: Array
    donors: Array
    cell_types: Array
    all_batches: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cell_ids)

    @property
    def modality(self) -> str:
        return self.features.modality

    @cached_property
    def values(self) -> sp.csr_matrix:
        """float64 CSR [n, F]: log1p of depth-free counts (RNA), CLR (protein) or roots x IDF (ATAC) of these cells."""
        return _NORMALISATIONS[self.modality](self.counts.astype(np.float64))

    def take(self, rows: Array) -> "ModalityCells":
        """Some of the cells; `rows` int or bool."""
        return replace(
            self,
            counts=self.counts[rows],
            cell_ids=self.cell_ids[rows],
            technical_batches=self.technical_batches[rows],
            donors=self.donors[rows],
            cell_types=self.cell_types[rows],
        )


@dataclass(frozen=True)
class Projection:
    """Linear map from normalised values to scores: scores = (values - mean) @ components.T.

    Attributes:
      mean: float64 [F]; zero for ATAC, whose values are not centred.
      components: float64 [d, F].
    """

    mean: Array
    components: Array

    def __call__(self, values: sp.csr_matrix) -> Array:
        """float64 [n, d]."""
        return np.asarray(values @ self.components.T) - self.mean @ self.components.T


def fit_projection(cells: ModalityCells, dimensions: int, seed: int = 0) -> Projection:
    """PCA (RNA, protein) or LSI (ATAC, its first component left out: it is depth) of `cells.values`.

    Raises `InputError` where there are too few cells or features.
    """
    drop = TABLE[cells.modality].depth_components
    wanted = min(dimensions + drop, min(cells.values.shape) - 1)
    if wanted <= drop:
        raise InputError(
            f"{cells.path}: {len(cells)} {cells.modality} cells x {cells.values.shape[1]} features are too few for a "
            "matching; give more cells."
        )
    values = cells.values
    if drop:
        mean = np.zeros(values.shape[1])
        _, _, components = randomized_svd(values, wanted, n_iter=4, random_state=seed)
        return Projection(mean, components[drop:])
    mean = np.asarray(values.mean(0)).ravel()
    if values.shape[1] <= 4000:  # the covariance is small: exact, and faster than iterating
        covariance = (values.T @ values).toarray() - len(cells) * np.outer(mean, mean)
        return Projection(mean, np.linalg.eigh(covariance)[1][:, ::-1][:, :wanted].T.copy())
    _, _, components = randomized_svd(values, wanted, n_iter=4, random_state=seed)
    return Projection(mean, components)


def centred_by(values: Array, groups: Array) -> Array:
    """float [n, d] minus the mean of each group (str [n])."""
    centred = np.array(values, np.float64)
    for group in np.unique(groups):
        rows = groups == group
        centred[rows] -= centred[rows].mean(0)
    return centred


def read_modalities(
    data: Any,
    *,
    organism: str | None = None,
    assembly: str | None = None,
    obs_fields: Mapping[str, str | None] | None = None,
) -> dict[str, ModalityCells]:
    """Reads every modality of a data set into memory as sparse counts.

    Args:
      data: whatever `open_dataset` takes, or an open data set.
      organism, assembly, obs_fields: as in `check_dataset`.

    Raises:
      InputError: the file cannot be used (no counts, unknown features, duplicate cell ids ...); the message says why.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    report = check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0, obs_fields=obs_fields)
    require_usable(report)
    labels = {
        field: _labels(dataset, report.obs_fields.get(field)) for field in ("technical_batch", "donor", "cell_type")
    }
    found = {}
    for matrix in dataset.matrices:
        part = report.modalities.get(matrix.modality)
        if part is None or part.mapping is None:
            continue
        rows = dataset.rows_of(matrix)[part.keep]
        num_features = len(part.mapping.features)
        chunks = [
            by_feature(chunk, part.column_to_feature, num_features, matrix.where).astype(np.int32)
            for _, chunk in matrix.chunks()
        ]
        counts = sp.vstack(chunks, format="csr")[part.keep]
        found[matrix.modality] = ModalityCells(
            path=dataset.path,
            features=part.mapping.features,
            counts=counts,
            cell_ids=matrix.cell_ids[part.keep].astype(str),
            technical_batches=labels["technical_batch"][rows],
            donors=labels["donor"][rows],
            cell_types=labels["cell_type"][rows],
            all_batches=tuple(np.unique(labels["technical_batch"]).tolist()),
        )
    return found


def require_modality(cells: dict[str, ModalityCells], name: str) -> ModalityCells:
    """Raises `InputError` when the data has no such modality."""
    if name not in cells:
        path = next(iter(cells.values())).path if cells else "the data"
        raise InputError(f"{path}: no {name} was measured; it has {', '.join(cells) or 'nothing'}.")
    return cells[name]


def in_batches(cells: ModalityCells, names: Sequence[str]) -> ModalityCells:
    """The cells of some technical batches; "p3" also means "p3_0" where no other batch begins so. No name: all cells.

    Raises `ConfigError` for a name that no batch, or several, answer to; a batch without this modality gives no cell.
    """
    return cells.take(batch_rows(cells, names)) if names else cells


def batch_rows(cells: ModalityCells, names: Sequence[str]) -> Array:
    """bool [n]: cells of the named technical batches; as `in_batches`."""
    return np.isin(cells.technical_batches, full_batch_names(names, cells.all_batches, "technical batch", cells.path))


def full_batch_names(names: Sequence[str], existing: Iterable[str], option: str, path: str) -> list[str]:
    """Technical batches that `names` mean: themselves, or "p3_0" for "p3" where no other batch begins so.

    Raises `ConfigError`, naming `option` and `path`, for a name that no batch, or several, answer to.
    """
    known = sorted(set(existing) - {""})
    chosen = []
    for name in names:
        found = [name] if name in known else [batch for batch in known if batch.startswith(f"{name}_")]
        if len(found) != 1:
            several = f"; it could be any of {', '.join(found)}" if found else ""
            raise ConfigError(f"{option} {name}: {path} has {', '.join(known) or 'no technical batches'}{several}.")
        chosen += found
    return chosen


def shared_cells(first: ModalityCells, second: ModalityCells) -> tuple[Array, Array]:
    """Rows int64 [m], [m] of the cells that both measured, by cell id: the measured pairs.

    Raises:
      InputError: a barcode twice in one modality, or with different technical batches or donors in the two: such
        barcodes are not one cell.
    """
    for cells in (first, second):
        ids, number = np.unique(cells.cell_ids, return_counts=True)
        if (number > 1).any():
            raise InputError(
                f"{cells.path}: {int((number > 1).sum())} barcodes occur twice in {cells.modality} (such as "
                f"{ids[number > 1][0]}): a pair must be one cell. Make the barcodes unique, with their batch as prefix."
            )
    _, left, right = np.intersect1d(first.cell_ids, second.cell_ids, return_indices=True)
    order = np.argsort(left)
    left, right = left[order], right[order]
    for field, column in (("technical batch", "technical_batches"), ("donor", "donors")):
        a, b = getattr(first, column)[left], getattr(second, column)[right]
        wrong = (a != b) & (a != "") & (b != "")
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{first.path}: {int(wrong.sum())} barcodes have one {field} in {first.modality} and another in "
                f"{second.modality} (such as {first.cell_ids[left[row]]}: {a[row]} and {b[row]}); they are not "
                "the same cells. Add the batch to the barcodes, or correct the metadata."
            )
    return left, right


def obs_labels(dataset: Dataset, field: str, obs_fields: Mapping[str, str | None] | None = None) -> Array | None:
    """str [n cells] of a standard field ("cell_type"), "" where a cell has none; None where obs has no such column.

    Args:
      obs_fields: standard field -> column, overriding what is recognised by its name.

    Raises `ConfigError` for a field or a column that there is not.
    """
    columns, problems, _ = recognise_obs_fields(dataset.obs.columns, obs_fields)
    if problems:
        raise ConfigError(f"{dataset.path}: {'; '.join(problems)}. --obs-field takes NAME=COLUMN.")
    return _labels(dataset, columns[field]) if field in columns else None


def _labels(dataset: Dataset, column: str | None) -> Array:
    if column is None:
        return np.full(len(dataset.cell_ids), "")
    values = dataset.obs[column].astype(object)
    return values.where(values.notna(), "").to_numpy(str)
