"""The representation of `--method pca`: principal components of the labelled cells, no model.

Counts become log1p of counts per 10,000, square roots of fractions, or ranks within the cell (RNA), CLR (protein) or
roots times IDF (ATAC), with what the labelled cells say of depth and of rare regions. Each modality's scores are
brought to one scale, never each component (a scale per component gives noise the say of what tells types apart), and
stand side by side. What was not measured has its mean.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, svds
from scipy.stats import rankdata

from data_pipelines.batches.model_counts import CountsChunk, Overlap, model_counts
from data_pipelines.checks.input_check import check_dataset, require_usable
from data_pipelines.checks.input_report import InputReport
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from data_pipelines.statistics.principal_components import principal_components
from scmbert_jax.errors import InputError
from scmbert_jax.feature_layout import NUM_COMPONENTS
from scmbert_jax.tasks.model_cells import cells_in_features, check_coverage, coverage_of
from scmbert_jax.value_scales import ATAC_VALUES, clr_values, log1p_values, root_idf_values, root_values

Array = np.ndarray

_TARGET_SUM = 1e4
# Unless told otherwise: best on held-out donors of kang_pbmc_8donors (RNA) and batches of snareseq_cortex (ATAC). The
# first of ATAC is not left out as depth: of centred values it tells types apart.
USUAL_COMPONENTS = {"rna": 30, "protein": 30, "atac": 50}


@dataclass(frozen=True)
class MappedCells:
    """The cells of a data set in the features of a `Pca`; attributes as of `ModelCells`."""

    dataset: Dataset
    report: InputReport
    overlaps: dict[str, Overlap]
    coverage: dict[str, float]


@dataclass(frozen=True)
class ModalityPca:
    """Of one modality of F features.

    Attributes:
      fraction: float64 [F], of the counts (ATAC: open regions) of a labelled cell; how much of a cell a file measures.
      detection: float64 [F], the fraction of labelled cells that express a feature.
      mean: float64 [F] of the values; loadings: float32 [F, d].
      scale: of the scores of the labelled cells: their mean variance is its square.
      values: of RNA: "log1p", "roots" (`root_values`), or "ranks" (`rank_values`, less their mean over the measured
        features of a cell). Of ATAC `ATAC_VALUES`, so that folders of before are told.
    """

    fraction: Array
    detection: Array
    mean: Array
    loadings: Array
    scale: float
    values: str = "log1p"

    @property
    def width(self) -> int:
        return self.loadings.shape[1]

    def loadings_of(self, measured: Array) -> Array:
        """float [F, d] by which values are multiplied in a file that measures bool [F] of the features.

        Of ranks less their mean within the cell: it is taken from the loadings, so that zeros stay unstored."""
        if self.values != "ranks":
            return self.loadings
        return np.where(measured[:, None], self.loadings - self.loadings[measured].mean(0), 0.0)

    def scores(self, modality: str, counts: sp.csr_matrix, measured: Array) -> Array:
        """float64 [n, d] of counts [n, F] in a file that measures bool [F] of the features."""
        values = values_of_counts(modality, counts, measured, self)
        return (values @ self.loadings_of(measured) - (self.mean * measured) @ self.loadings) / self.scale


@dataclass(frozen=True)
class Pca:
    """Attributes:
    space: the features it knows.
    parts: modality -> its components.
    """

    space: FeatureSpace
    parts: dict[str, ModalityPca] = field(repr=False)

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts.values())

    def open(
        self, cells: Any, organism: str | None = None, assembly: str | None = None, allow_low_coverage: bool = False
    ) -> MappedCells:
        """Raises `InputError`, as `open_model_cells`."""
        dataset, report, overlaps = cells_in_features(self.space, list(self.parts), cells, organism, assembly)
        coverage = {name: coverage_of(overlap, self.parts[name].detection) for name, overlap in overlaps.items()}
        for name, fraction in coverage.items():
            check_coverage(report.path, name, overlaps[name], fraction, allow_low_coverage)
        return MappedCells(dataset, report, overlaps, coverage)

    def vectors(self, cells: MappedCells) -> Array:
        """float32 [n, D]; a modality that a cell has not is its mean, 0."""
        found = np.zeros((len(cells.dataset.cell_ids), self.width), np.float32)
        for chunk in model_counts(cells.dataset, cells.report, cells.overlaps):
            first = 0
            for name, part in self.parts.items():
                if name in chunk.counts:
                    rows = np.flatnonzero(chunk.measured[name] & (chunk.counts[name].getnnz(1) > 0))
                    scores = part.scores(name, chunk.counts[name][rows], cells.overlaps[name].measured)
                    found[chunk.first + rows, first : first + part.width] = scores
                first += part.width
        return found

    def arrays(self) -> dict[str, Array]:
        """What `from_arrays` needs besides the space."""
        return {
            f"{name}/{key}": np.asarray(getattr(part, key))
            for name, part in self.parts.items()
            for key in ModalityPca.__dataclass_fields__
        }

    @classmethod
    def from_arrays(cls, space: FeatureSpace, arrays: dict[str, Array]) -> "Pca":
        parts = {
            name: ModalityPca(
                **{key: arrays[f"{name}/{key}"] for key in ("fraction", "detection", "mean", "loadings")},
                scale=float(arrays[f"{name}/scale"]),
                values=str(arrays.get(f"{name}/values", "log1p")),  # folders of before there was a choice
            )
            for name in space.modalities
        }
        if "atac" in parts and parts["atac"].values != ATAC_VALUES:
            raise ValueError(f"its ATAC values are of an earlier version; this program takes {ATAC_VALUES}")
        return cls(space, parts)


def reference_space(
    cells: Any, organism: str | None, assembly: str | None, space: FeatureSpace | None = None
) -> tuple[FeatureSpace, MappedCells]:
    """The space, or all features of the data set, and its cells in them. Raises `InputError`, as `open_model_cells`."""
    if space is not None:
        dataset, report, overlaps = cells_in_features(space, list(space.modalities), cells, organism, assembly)
        return space, MappedCells(dataset, report, overlaps, dict.fromkeys(overlaps, 1.0))
    dataset = cells if isinstance(cells, Dataset) else open_dataset(cells)
    report = check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0)
    require_usable(report)
    space = FeatureSpace(report.features)
    names = list(space.modalities)
    dataset, report, overlaps = cells_in_features(space, names, dataset, organism, assembly)
    return space, MappedCells(dataset, report, overlaps, dict.fromkeys(names, 1.0))


def fit_pca(space: FeatureSpace, cells: MappedCells, num_components: int | None = None, values: str = "log1p") -> Pca:
    """Of all cells with counts, labelled or not; holds their counts in memory, sparse.

    Args:
      num_components: of each modality, at most 64; None: `USUAL_COMPONENTS`.
      values: of RNA, as of `ModalityPca`.

    Raises `InputError` for fewer than 3 cells with counts of a modality.
    """
    chunks = list(model_counts(cells.dataset, cells.report, cells.overlaps))
    parts = {
        name: _fit_modality(
            name,
            chunks,
            cells.overlaps[name],
            num_components or USUAL_COMPONENTS[name],
            values if name == "rna" else ATAC_VALUES if name == "atac" else "log1p",
            cells.report.path,
        )
        for name in cells.overlaps
    }
    return Pca(FeatureSpace({name: space.modalities[name] for name in parts}), parts)


def _fit_modality(
    name: str, chunks: list[CountsChunk], overlap: Overlap, num_components: int, kind: str, path: str
) -> ModalityPca:
    counts = sp.vstack([chunk.counts[name] for chunk in chunks], format="csr")
    counts = counts[counts.getnnz(1) > 0]
    if counts.shape[0] < 3:
        raise InputError(f"{path}: {counts.shape[0]} cells have {name} counts; principal components need 3 or more.")
    binary = counts.astype(bool).astype(np.float64)
    detection = np.asarray(binary.mean(0)).ravel()
    of_cell = binary if name == "atac" else counts
    fraction = np.asarray(of_cell.multiply(1 / of_cell.sum(1).reshape(-1, 1)).mean(0)).ravel()
    nothing = np.zeros(len(detection))
    unfitted = ModalityPca(fraction, detection, nothing, np.zeros((len(detection), 0), np.float32), 1.0, kind)
    values = values_of_counts(name, counts, overlap.measured, unfitted)
    if kind == "ranks":
        mean, loadings, scores = _components_of_ranks(values, overlap.measured)
    else:
        found = principal_components(values, overlap.measured[None], np.zeros(counts.shape[0], np.int64))
        mean, loadings, scores = found.mean, found.loadings, found.scores
    width = min(num_components, NUM_COMPONENTS)
    width = min(width, int((np.abs(loadings).max(0) > 0).sum()))
    scores = scores[:, :width]
    scale = float(np.sqrt(scores.var(0).mean())) if width else 1.0
    return ModalityPca(fraction, detection, mean, loadings[:, :width], scale or 1.0, kind)


def _components_of_ranks(values: sp.csr_matrix, measured: Array) -> tuple[Array, Array, Array]:
    """(mean, loadings, scores) as of `principal_components`, of values less their mean over a cell's measured features.

    That mean is what zeros become; it is taken off in products, so that they stay unstored."""
    of_cell = np.asarray(values.sum(1)).ravel() / max(int(measured.sum()), 1)
    mean = np.where(measured, np.asarray(values.mean(0)).ravel() - of_cell.mean(), 0.0)

    def times(x: Array) -> Array:
        return values @ x - np.multiply.outer(of_cell, measured @ x) - mean @ x

    def transposed(y: Array) -> Array:
        return values.T @ y - measured * (of_cell @ y) - mean * y.sum()

    operator = LinearOperator(values.shape, matvec=lambda x: times(x.ravel()), rmatvec=lambda y: transposed(y.ravel()))
    number, fewest = min(NUM_COMPONENTS, min(values.shape) - 1), min(values.shape)
    _, singular, right = svds(operator, k=number, v0=np.ones(fewest) / np.sqrt(fewest))
    axes = right[np.argsort(-singular)].T
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(number)])
    loadings = np.round(axes * signs, 6).astype(np.float32)
    return mean, loadings, times(loadings)


def values_of_counts(modality: str, counts: sp.csr_matrix, measured: Array, known: ModalityPca) -> sp.csr_matrix:
    """float64 CSR [n, F]. A cell of which a file measures a part is scaled as if the rest had been there, too."""
    if known.values == "ranks":
        return rank_values(counts, int(measured.sum()))
    number = np.diff(counts.indptr)
    part = max(float(known.fraction[measured].sum()), 1e-6)
    if modality == "protein":
        mean_log = np.asarray(counts.log1p().sum(1)).ravel() / max(int(measured.sum()), 1)
        data = clr_values(counts.data, np.repeat(mean_log, number))
    elif modality == "atac":
        data = root_idf_values(counts.data, np.repeat(number / part, number), known.detection[counts.indices])
    else:
        totals = np.asarray(counts.sum(1)).ravel() / part
        library_size = np.repeat(totals, number)
        data = (
            root_values(counts.data, library_size)
            if known.values == "roots"
            else log1p_values(counts.data, library_size, _TARGET_SUM)
        )
    return sp.csr_matrix((np.asarray(data, np.float64), counts.indices, counts.indptr), counts.shape)


def rank_values(counts: sp.csr_matrix, num_measured: int) -> sp.csr_matrix:
    """float64 CSR [n, F]: how far the rank of a count is above that of 0 in its cell, ties at their mean rank.

    In units in which a cell's ranks, less their mean, have length 1: products of such cells are Spearman's correlation.
    """
    data = np.zeros(counts.nnz)
    for first, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        zeros = num_measured - (end - first)
        ranks = zeros + rankdata(counts.data[first:end])
        middle, of_zero = (num_measured + 1) / 2, (zeros + 1) / 2
        length = np.sqrt(((ranks - middle) ** 2).sum() + zeros * (of_zero - middle) ** 2)
        data[first:end] = (ranks - of_zero) / max(length, 1e-9)
    return sp.csr_matrix((data, counts.indices, counts.indptr), counts.shape)
