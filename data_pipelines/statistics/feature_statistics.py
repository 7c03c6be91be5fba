"""What a run's first cells say of each feature by itself: where a model starts, so that no step is spent on means.

A model without any encoder can know each feature's fraction of the counts, its spread, how often it is seen. Training
starts from exactly that (the marginal model), and its loss at step 0 is the baseline that the encoder has to beat.

There are two marginal models. Masked modelling predicts *tokens*, among which zeros are fewer than in the cells because
they are sampled. Translation predicts *cells*, and so all else here is of whole cells: every count, and every zero of a
measured feature, whose part of a sum is known without being looked at. A feature that was not measured is no zero: it
takes no part.

What a feature is by itself, some thousand cells say. What a linear path starts from, components and maps of them, is of
many more, read in parts.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
from data_pipelines.statistics.linear_maps import Scores, alignment_maps, memory_of_pairs, translation_maps
from data_pipelines.statistics.principal_components import Components, MeasuredValues, PrincipalComponents
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import InputError
from scmbert_jax.feature_layout import (
    LIBRARY_QUANTILES,
    NUM_COMPONENTS,
    FeatureLayout,
    FeatureStatistics,
    LinearStatistics,
)
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.value_scales import ATAC_VALUES, clr_values, linear_values, log1p_values

MAX_TOKENS = 1_000_000
# log of the negative binomial's inverse dispersion: the values among which the likelihood chooses.
_LOG_DISPERSIONS = np.linspace(-3.0, 5.0, 17)


class DrawnTokens(NamedTuple):
    """Real tokens of some batches, [n] each; counts and libraries float64."""

    ids: np.ndarray
    counts: np.ndarray
    libraries: np.ndarray


def feature_statistics(
    batches: Iterable[CellBatch],
    layout: FeatureLayout,
    target_sums: Mapping[str, float],
    cells: WholeCells,
    max_tokens: int = MAX_TOKENS,
    *,
    more_cells: Callable[[], Iterable[WholeCells]] = tuple,
    linear_path: bool = True,
) -> FeatureStatistics:
    """Statistics over the tokens of `batches`, and over cells; a pure function of them.

    A feature without a token gets half a count, half a token of detection, and the median of the others'
    dispersion; one that no cell measured gets the median of its modality's other statistics.

    Args:
      batches: as in training, in any number, read until `max_tokens` are seen.
      layout: of the features.
      target_sums: modality -> the library size that values are scaled to (`ModalityConfig.target_sum`).
      cells: of which all else is made, but for what a linear path starts from.
      more_cells: gives others, in parts, the same ones each time: what a linear path starts from is made of them, too.
      linear_path: whether a linear path will start from them; without one, its part is not made.
    """
    rows = layout.num_features
    # Where no cell is read, of a modality that the run leaves out, a spread of zero would have no logarithm.
    columns: dict[str, Any] = {name: np.full(rows, name.endswith("_std"), np.float32) for name in _FIELDS_OF_FEATURES}
    tokens = _read(batches, max_tokens)
    of_tokens = token_statistics(tokens, rows)
    columns.update(
        zip(("fraction", "log_dispersion", "detection"), (x.astype(np.float32) for x in of_tokens), strict=True)
    )
    libraries = np.ones((len(MODALITIES), len(LIBRARY_QUANTILES)), np.float32)
    first: dict[str, MeasuredValues] = {}
    for name, own in cells.modalities.items():
        mine, place = slice(*layout.slices[name]), MODALITIES.index(name)
        libraries[place] = np.maximum(np.quantile(own.library_size, LIBRARY_QUANTILES), 1.0)
        found, values = _of_cells(name, own, target_sums.get(name, 1.0), float(libraries[place, _MEDIAN]))
        for column, array in found.items():
            columns[column][mine] = array
        first[name] = MeasuredValues(values, own.panels, own.panel_of)
    statistics = FeatureStatistics(**columns, library_quantiles=libraries)
    if not linear_path:
        return statistics
    loadings = np.zeros((rows, NUM_COMPONENTS), np.float32)
    offset = np.zeros((len(MODALITIES), NUM_COMPONENTS), np.float32)
    scores: dict[str, Scores] = {}
    for name, (components, scores[name]) in _components(cells, first, more_cells, statistics, layout).items():
        mine = slice(*layout.slices[name])
        loadings[mine] = components.loadings
        mean, centre = statistics.linear_mean[mine], statistics.linear_centre[mine]
        mean[components.measured_in > 0] = components.mean[components.measured_in > 0]
        offset[MODALITIES.index(name)] = np.round((mean.astype(np.float64) - centre) @ components.loadings, 4)
    maps = translation_maps(scores)
    memory = memory_of_pairs(scores, maps)
    linear = LinearStatistics(
        loadings=loadings,
        component_offset=offset,
        translation_maps=maps,
        alignment_maps=alignment_maps(scores),
        memory_scores=memory.scores,
        memory_measured=memory.measured,
        memory_folds=memory.folds,
        neighbour_fractions=memory.fractions,
    )
    return statistics._replace(linear=linear)


def _components(
    cells: WholeCells,
    first: dict[str, MeasuredValues],
    more_cells: Callable[[], Iterable[WholeCells]],
    statistics: FeatureStatistics,
    layout: FeatureLayout,
) -> dict[str, tuple[Components, Scores]]:
    """Of all cells, by modality; `first` are the linear values of `cells`."""

    def parts() -> Iterator[tuple[WholeCells, dict[str, MeasuredValues]]]:
        yield cells, first
        for part in more_cells():
            values = {}
            for name in first.keys() & part.modalities.keys():
                own, median = part.modalities[name], statistics.library_quantiles[MODALITIES.index(name), _MEDIAN]
                detection = statistics.cell_detection[slice(*layout.slices[name])]
                # Half the bits: products with many cells are what takes the time.
                of_part = _values_of(name, own, float(median), detection).astype(np.float32)
                values[name] = MeasuredValues(of_part, own.panels, own.panel_of)
            yield part, values

    found = {name: PrincipalComponents(measured.values.shape[1]) for name, measured in first.items()}
    for _, values in parts():
        for name, measured in values.items():
            found[name].widen(measured)
    members: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in found}
    number = 0
    for part, values in parts():
        for name, measured in values.items():
            found[name].project(measured)
            mine = part.modalities[name].cells
            members[name].append((number + mine, part.folds[mine], part.technical_batches[mine]))
        number += len(part.folds)
    results = {}
    for name, of_parts in members.items():
        components = found[name].components()
        indices, folds, batches = (np.concatenate(column) for column in zip(*of_parts, strict=True))
        results[name] = components, Scores(indices, components.scores, folds, batches)
    return results


_FIELDS_OF_FEATURES = FeatureStatistics._fields[: FeatureStatistics._fields.index("library_quantiles")]
_MEDIAN = len(LIBRARY_QUANTILES) // 2


# Field -> its name in files, where that is another.
STORED_AS = {"fraction": "share", "cell_fraction": "cell_share", "neighbour_fractions": "neighbour_shares"}


def as_arrays(statistics: FeatureStatistics) -> dict[str, np.ndarray]:
    """All of them by the names that they have in files."""
    arrays = statistics._asdict()
    linear = arrays.pop("linear")
    arrays |= {} if linear is None else linear._asdict()
    return {STORED_AS.get(name, name): array for name, array in arrays.items()}


def from_arrays(arrays: Mapping[str, np.ndarray], linear_path: bool) -> FeatureStatistics:
    """Of `as_arrays`. Raises `KeyError` naming what is missing; what only a linear path needs is read for one alone."""

    def named(fields: Iterable[str]) -> dict[str, Any]:
        return {name: arrays[STORED_AS.get(name, name)] for name in fields}

    found = FeatureStatistics(**named(name for name in FeatureStatistics._fields if name != "linear"))
    if not linear_path:
        return found
    return found._replace(linear=LinearStatistics(**named(LinearStatistics._fields)))


def save_statistics(statistics: FeatureStatistics, path: Path) -> None:
    """Writes an .npz."""
    arrays: dict[str, Any] = as_arrays(statistics)
    np.savez_compressed(path, **arrays, atac_values=np.array(ATAC_VALUES))


def load_statistics(path: Path, num_features: int, *, linear_path: bool, regions: bool = False) -> FeatureStatistics:
    """Raises `InputError` when the file is missing, damaged, of another number of features, or, for a model with a
    linear path, without its part, or, where some features are `regions`, of another scale of their values."""
    try:
        with open_arrays(path) as arrays:
            statistics = from_arrays(arrays, linear_path)
            atac_values = str(arrays["atac_values"]) if "atac_values" in arrays else "log(TF x IDF)"
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: cannot be read as feature statistics ({error}); make its folder again.") from error
    of_features = [getattr(statistics, name) for name in _FIELDS_OF_FEATURES]
    if statistics.linear is not None:
        of_features.append(statistics.linear.loadings)
    if any(len(array) != num_features for array in of_features):
        raise InputError(
            f"{path}: is of {len(statistics.fraction)} features, expected {num_features}; files were mixed."
        )
    if linear_path and regions and atac_values != ATAC_VALUES:
        raise InputError(
            f"{path}: ATAC counts became {atac_values}; in this program they become {ATAC_VALUES}, so that the same "
            "numbers would mean something else. Train the model again, or use it with the program that made it."
        )
    return statistics


def _read(batches: Iterable[CellBatch], max_tokens: int) -> DrawnTokens:
    parts: list[tuple[np.ndarray, ...]] = []
    number = 0
    for batch in batches:
        for tokens in batch.modalities.values():
            real = np.arange(tokens.feature_ids.shape[1]) < tokens.lengths[:, None]
            libraries = np.repeat(tokens.library_size.astype(np.float64), tokens.lengths)
            parts.append((tokens.feature_ids[real].astype(np.int64), tokens.counts[real].astype(np.float64), libraries))
            number += len(libraries)
        if number >= max_tokens:
            break
    return DrawnTokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def token_statistics(tokens: DrawnTokens, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fraction, log dispersion and detection of each of `rows` features among its tokens, float64 [rows] each."""

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(tokens.ids, values, minlength=rows)

    number, libraries = sums(np.ones(len(tokens.ids))), tokens.libraries
    fraction = np.minimum((sums(tokens.counts) + 0.5) / (sums(libraries) + max(libraries.mean(), 1.0)), 0.5)
    mean = np.maximum(libraries * fraction[tokens.ids], 1e-8)
    nll = np.stack([sums(_nll(tokens.counts, mean, np.exp(value))) for value in _LOG_DISPERSIONS])
    dispersion = _LOG_DISPERSIONS[nll.argmin(0)]
    dispersion[number == 0] = np.median(dispersion[number > 0])
    return fraction, dispersion, (sums(tokens.counts > 0) + 0.5) / (number + 1.0)


def cell_statistics(cells: CellCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fraction, log dispersion and detection of each feature among the cells that measured it, float64 [F]; one that
    no cell measured has the median of the others' dispersion."""
    matrix = cells.counts
    number = np.bincount(cells.panel_of, minlength=len(cells.panels)) @ cells.panels
    libraries = np.bincount(cells.panel_of, cells.library_size, minlength=len(cells.panels)) @ cells.panels
    total, expressed = (
        np.bincount(matrix.indices, values, minlength=matrix.shape[1]) for values in (matrix.data, np.ones(matrix.nnz))
    )
    fraction = np.minimum((total + 0.5) / (libraries + max(cells.library_size.mean(), 1.0)), 0.5)
    of_cell = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    log_dispersion = _dispersion_of_cells(cells, of_cell, fraction)
    log_dispersion[number == 0] = np.median(log_dispersion[number > 0])
    return fraction, log_dispersion, (expressed + 0.5) / (number + 1.0)


def _of_cells(
    modality: str, cells: CellCounts, target_sum: float, median_library: float
) -> tuple[dict[str, np.ndarray], sp.csr_matrix]:
    """Statistics float64 [F] by their names in `FeatureStatistics`, and the linear values of the counts, CSR [n, F]."""
    matrix = cells.counts
    ids, counts = matrix.indices, matrix.data
    of_cell = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    cells_of_panel = np.bincount(cells.panel_of, minlength=len(cells.panels)).astype(np.float64)
    number = cells_of_panel @ cells.panels  # [F], the cells that measured it
    fraction, log_dispersion, detection = cell_statistics(cells)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(ids, values, minlength=matrix.shape[1])

    expressed = sums(np.ones(len(ids)))

    def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of each feature's values, which are 0 where its count is."""
        mean = sums(values) / np.maximum(number, 1.0)
        squares = sums((values - mean[ids]) ** 2) + (number - expressed) * mean**2
        # Two cells of the average spread are added, so that a feature seen once or twice is not blown up.
        average = squares.sum() / max(number.sum(), 1.0)
        return mean, np.sqrt((squares + 2 * average) / (number + 2.0) + 1e-4)

    libraries = cells.library_size[of_cell]
    value_mean, value_std = moments(log1p_values(counts, libraries, target_sum))
    log1p_mean, log1p_std = moments(log1p_values(counts, libraries, median_library))
    clr_mean, clr_std = moments(clr_values(counts, cells.mean_log_count[of_cell]))
    values = _values_of(modality, cells, median_library, detection)
    linear_mean, linear_std = moments(values.data)
    found = {
        "cell_fraction": fraction,
        "cell_log_dispersion": log_dispersion,
        "cell_detection": detection,
        # The usual value of a feature that most cells lack is zero. Its mean would be no better a centre: the zeros
        # that are shown are a sample, and each would carry a little noise into the cell.
        "value_centre": np.where(detection >= 0.5, value_mean, 0.0),
        "value_std": value_std,
        "log1p_mean": log1p_mean,
        "log1p_std": log1p_std,
        "clr_mean": clr_mean,
        "clr_std": clr_std,
        "linear_mean": linear_mean,
        "linear_std": linear_std,
    }
    for name, column in found.items():
        if name != "cell_fraction":
            column[number == 0] = np.median(column[number > 0])
    # Here the same is asked of the modality: without centres, cells whose expressed features are all shown have exact
    # scores whatever zeros were drawn; with them, antibodies, seen in almost every cell, can be drawn too.
    is_dense = number @ found["cell_detection"] >= 0.5 * number.sum()
    found["linear_centre"] = found["linear_mean"] if is_dense else np.zeros(len(number))
    return found, values


def _values_of(modality: str, cells: CellCounts, median_library: float, detection: np.ndarray) -> sp.csr_matrix:
    """Linear values of the counts, CSR [n, F]; `detection` [F]."""
    matrix = cells.counts
    of_cell = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    typical = np.full(matrix.nnz, median_library) if modality == "rna" else detection[matrix.indices]
    values = linear_values(
        modality, matrix.data, cells.library_size[of_cell], cells.mean_log_count[of_cell], typical, np
    )
    return sp.csr_matrix((values, matrix.indices, matrix.indptr), matrix.shape)


def _dispersion_of_cells(cells: CellCounts, of_cell: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """log theta [F] by likelihood, over all cells that measured a feature.

    A zero's part of it depends on its expected count alone, so the sum over the cells of a panel is a smooth function
    of the feature's fraction: it is tabulated and interpolated.
    """
    ids, counts = cells.counts.indices, cells.counts.data
    mean = np.maximum(cells.library_size[of_cell] * fraction[ids], 1e-8)
    grid = np.linspace(np.log(fraction.min()), np.log(fraction.max()) + 1e-6, 100)
    best, lowest = np.zeros(len(fraction)), np.full(len(fraction), np.inf)
    for log_theta in _LOG_DISPERSIONS:
        theta = np.exp(log_theta)
        # What the expressed have more than a zero of the same expected count.
        more = gammaln(theta) - gammaln(counts + theta) + counts * np.log(theta + mean)
        nll = np.bincount(ids, more, minlength=len(fraction))
        for panel, features in enumerate(cells.panels):
            libraries = np.maximum(cells.library_size[cells.panel_of == panel], 1e-8)
            of_zeros = np.array([theta * np.log1p(libraries * np.exp(x) / theta).sum() for x in grid])
            nll[features] += np.interp(np.log(fraction[features]), grid, of_zeros)
        better = nll < lowest
        best[better], lowest[better] = log_theta, nll[better]
    return best


def _nll(counts: np.ndarray, mean: np.ndarray, theta: float) -> np.ndarray:
    """-log NB(counts; mean, theta) without the terms that do not depend on theta."""
    total = np.log(theta + mean)
    return gammaln(theta) - gammaln(counts + theta) - theta * np.log(theta) + (theta + counts) * total
