"""A file's cells as a trained model reads them: checked, mapped to its features, made into batches of like length.

A model is shown every feature that a cell expresses, with as large a fraction of zeros as in training, up to a bound of
tokens; the scores of its linear path are of all counts in any case. A cell's tokens depend on nothing but its counts.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from data_pipelines.batches.collate import TokenSampling, collate_counts
from data_pipelines.batches.model_counts import CountsChunk, Overlap, model_counts, overlap_with_model
from data_pipelines.checks.input_check import check_dataset, require_usable
from data_pipelines.checks.input_report import InputReport
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.batch import CellBatch
from scmbert_jax.errors import ConfigError, InputError, ScmbertWarning
from scmbert_jax.models.linear_path import scores_of_counts
from scmbert_jax.models.token_sequence import CutBatch
from scmbert_jax.pretrained import PretrainedModel
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.length_groups import cut

# Tokens of a modality that a cell is shown by at most, unless told otherwise: nearly all cells of droplet assays whole.
NUM_TOKENS = 4096
# A file that measures less than this of what a training cell expresses is refused; less than that is warned of.
LEAST_COVERAGE, USUAL_COVERAGE = 0.5, 0.9
# float32 numbers that the widest arrays of a device call may hold: 512 MiB. Changes speed and memory only.
_NUMBERS_AT_A_TIME = 1 << 27
_FEATURES_AT_A_TIME = 1024  # that a translation decodes (translate.py)

MOST_CELLS = 1 << 16  # of a device call


@dataclass(frozen=True)
class ModelCells:
    """The cells of a data set in the features of a model.

    Attributes:
      model: the model.
      dataset: the data set with its cell ids and metadata.
      report: the input check.
      overlaps: modality -> how the file's features meet the model's.
      coverage: modality -> of the features that a training cell expresses, the fraction that the file measures.
    """

    model: PretrainedModel
    dataset: Dataset
    report: InputReport
    overlaps: dict[str, Overlap]
    coverage: dict[str, float]
    _shown: dict[str, list[int]] = field(default_factory=dict)  # modality -> expressed features shown, and all

    def batches(
        self,
        num_tokens: int | Mapping[str, int] | None,
        batch_size: int,
        seed: int,
        only: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, CutBatch, int]]:
        """(cells int64 [n], batch whose first n rows are those cells, cells done); longest first among 2,048 cells.

        Cells without a count of the model's features are passed over.

        Args:
          num_tokens: most tokens of a cell, of each modality or by modality; None: `NUM_TOKENS`, or what training had.
          batch_size: rows of a batch; fewer where rows are so long that memory would not hold them.
          seed: which tokens are drawn of cells that have more, and which zeros.
          only: int64, the cells that are wanted; None: all.
        """
        if not 1 <= batch_size <= MOST_CELLS:
            raise ConfigError(f"batch_size {batch_size:,}: expected 1 to {MOST_CELLS:,} cells per device call.")
        sampling = self.sampling(num_tokens)
        for chunk in model_counts(self.dataset, self.report, self.overlaps):
            batch = self.batch_of(chunk, sampling, seed)
            rows = np.flatnonzero(num_expressed(batch) > 0)
            if only is not None:
                rows = rows[np.isin(chunk.first + rows, only)]
            self.count_shown(batch, rows)
            done = 0
            for mine, part in self.parts(batch, rows, batch_size):
                done += len(mine)
                yield chunk.first + mine, part, chunk.first + done

    def sampling(self, num_tokens: int | Mapping[str, int] | None) -> dict[str, TokenSampling]:
        """`token_sampling` of the modalities that the data set has."""
        found = token_sampling(self.model.definition, num_tokens)
        return {name: choice for name, choice in found.items() if name in self.overlaps}

    def parts(self, batch: CellBatch, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, CutBatch]]:
        """(rows int64 [n], batch whose first n rows are those), cells of like length together, the longest first."""
        lengths = np.sum([tokens.lengths for tokens in batch.modalities.values()], axis=0)
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        start = 0
        while start < len(rows):
            width = row_width(int(lengths[rows[start]]))
            at_a_time = self._rows_at(width, batch_size)
            mine = rows[start : start + at_a_time]
            start += len(mine)
            # The last rows are repeated to fill the batch, so that one program serves all of a width.
            filled = np.resize(mine, at_a_time)
            yield mine, cut(jax.tree.map(lambda x, r=filled: x[r], batch), width)

    def fractions_shown(self) -> dict[str, float]:
        """Modality -> of the features that the cells so far expressed, the fraction that were tokens."""
        return {name: shown / max(number, 1) for name, (shown, number) in self._shown.items()}

    def warn_of_what_was_not_shown(self) -> None:
        """One `ScmbertWarning` where cells had more features than tokens."""
        less = {name: fraction for name, fraction in self.fractions_shown().items() if fraction < 1}
        if less:
            fractions = ", ".join(f"{fraction:.1%} of {name}" for name, fraction in less.items())
            warnings.warn(
                f"{self.report.path}: of the features that cells express, the transformer was shown {fractions}; "
                "principal components are of all counts. Show more with a larger --num-tokens (num_tokens=...).",
                ScmbertWarning,
                stacklevel=3,
            )

    def batch_of(
        self,
        chunk: CountsChunk,
        sampling: dict[str, TokenSampling],
        seed: int,
        cell_keys: np.ndarray | None = None,
    ) -> CellBatch:
        """Cells of a chunk as rows of one batch. `seed`, `cell_keys`: as in `collate_counts`."""
        layout, config = self.model.definition.layout, self.model.config
        num_cells = len(next(iter(chunk.measured.values())))
        batch = collate_counts(
            chunk.counts,
            sampling,
            layout.slices,
            {name: overlap.measured for name, overlap in self.overlaps.items()},
            measured_cells=chunk.measured,
            # A new file's technical batches are none of those of training.
            covariates={name: np.full(num_cells, -1, np.int32) for name in config.model.covariates},
            seed=seed,
            cell_keys=cell_keys,
        )
        if not config.model.linear_path or layout.statistics is None:
            return batch
        scores = {}
        for name, counts in chunk.counts.items():
            mine = slice(*layout.slices[name])
            loadings = np.asarray(self.model.constants["linear"]["loadings"][mine])
            own = scores_of_counts(loadings, layout.statistics, name, mine, counts, self.overlaps[name].measured)
            scores[name] = own
        return batch._replace(scores=scores)

    def count_shown(self, batch: CellBatch, rows: np.ndarray) -> None:
        """Adds these cells to what `fractions_shown` tells; `batches` does."""
        for name, tokens in batch.modalities.items():
            counts = self._shown.setdefault(name, [0, 0])
            counts[0] += int((tokens.counts[rows] > 0).sum())
            counts[1] += int(tokens.num_expressed[rows].sum())

    def _rows_at(self, width: int, batch_size: int) -> int:
        config = self.model.config.model
        # `xla` holds every token beside every other, and beside every feature that is decoded.
        scores = config.num_heads * max(width, _FEATURES_AT_A_TIME) if config.attention == "xla" else 0
        return max(1, min(batch_size, _NUMBERS_AT_A_TIME // (width * max(config.mlp_dim, scores))))


def num_expressed(batch: CellBatch) -> np.ndarray:
    """int64 [B]: features of each cell with a count above 0, of all modalities."""
    return np.sum([tokens.num_expressed for tokens in batch.modalities.values()], axis=0)


def row_width(length: int) -> int:
    """The narrowest of 128, 256, 384, 512, 768, 1024, 1536, ... that holds `length`: few programs, little padding."""
    width = 128
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 and width > 128 else max(256, width * 4 // 3)
    return width


def token_sampling(
    model: ModelDefinition, num_tokens: int | Mapping[str, int] | None = None
) -> dict[str, TokenSampling]:
    """How cells become tokens: all expressed features and the fraction of zeros of training, up to `num_tokens`."""
    asked = (
        num_tokens if isinstance(num_tokens, Mapping) else dict.fromkeys(model.config.modalities.in_use(), num_tokens)
    )
    found = {}
    for name, modality in model.config.modalities.in_use().items():
        most = asked.get(name)
        if most is not None and most < 1:
            raise ConfigError(f"num_tokens {most} of {name}: expected 1 or more tokens per cell.")
        first, stop = model.layout.slices[name]
        # Where a row of training held the whole panel, the model has learned from all zeros of a cell.
        found[name] = TokenSampling(
            most or max(NUM_TOKENS, modality.num_tokens), modality.zero_fraction, modality.num_tokens >= stop - first
        )
    return found


def open_model_cells(
    model: PretrainedModel,
    cells: Any,
    modalities: tuple[str, ...] | None = None,
    organism: str | None = None,
    assembly: str | None = None,
) -> ModelCells:
    """Checks `cells` and maps them to the model's features.

    Args:
      cells: whatever `open_dataset` takes: a path, `A+B`, `example:NAME`, an AnnData, a MuData, or an open `Dataset`.
      modalities: read only these (of those the model knows and the data has); None: all.
      organism, assembly: as in `check_dataset`; what the file does not tell is taken from the model.

    Raises:
      InputError: no raw counts, unknown features, another organism or genome build, or too few of the model's features
        (unless `model.allow_low_coverage`); the message says what to do.

    Warns `ScmbertWarning` of a file that lacks many of the model's features.
    """
    wanted = [name for name in model.config.modalities.in_use() if modalities is None or name in modalities]
    if not wanted:
        raise InputError(
            f"modalities {', '.join(modalities or ())}: the model reads {', '.join(model.config.modalities.in_use())}."
        )
    dataset, report, overlaps = cells_in_features(model.feature_space, wanted, cells, organism, assembly)
    statistics, slices = model.definition.layout.statistics, model.definition.layout.slices
    # A gene head has a row for each feature, and nothing in the place of one that is missing.
    least = USUAL_COVERAGE if model.config.model.gene_head else LEAST_COVERAGE
    coverage = {
        name: coverage_of(overlap, None if statistics is None else statistics.cell_detection[slice(*slices[name])])
        for name, overlap in overlaps.items()
    }
    for name, fraction in coverage.items():
        check_coverage(report.path, name, overlaps[name], fraction, model.allow_low_coverage, least)
    return ModelCells(model, dataset, report, overlaps, coverage)


def cells_in_features(
    space: FeatureSpace, modalities: list[str], cells: Any, organism: str | None = None, assembly: str | None = None
) -> tuple[Dataset, InputReport, dict[str, Overlap]]:
    """`cells`, checked, and how their features meet those of `space` in these modalities; as `open_model_cells`."""
    dataset = cells if isinstance(cells, Dataset) else open_dataset(cells)
    measured = [matrix.modality for matrix in dataset.matrices]
    if assembly is None and "atac" in measured and "atac" in space.modalities:
        # Regions only mean something in the model's own assembly; that they match it is checked interval by interval.
        assembly = space.modalities["atac"].space.partition(":")[2]
    if organism is None and "rna" not in measured:
        # Genes tell their organism, antibodies and regions do not.
        organism = space.organism
    report = check_dataset(dataset, organism=organism, assembly=assembly, min_genes=0)
    require_usable(report)
    return dataset, report, overlap_with_model(report, space, modalities)


def coverage_of(overlap: Overlap, detection: np.ndarray | None) -> float:
    """Each feature counts as often as cells of training express it (float [F]): a gene that no cell has is no loss."""
    if detection is None:
        return float(overlap.measured.mean())
    return float(detection[overlap.measured].sum() / detection.sum())


def check_coverage(
    path: str,
    modality: str,
    overlap: Overlap,
    fraction: float,
    allow_low_coverage: bool,
    least: float = LEAST_COVERAGE,
) -> None:
    """Raises InputError below `least` unless it is allowed; warns below `USUAL_COVERAGE`."""
    if fraction >= USUAL_COVERAGE:
        return
    found = (
        f"{path}: {modality}: the file measures {int(overlap.measured.sum()):,} of the model's "
        f"{len(overlap.measured):,} features, {fraction:.0%} of those that a cell of the model's corpus expresses"
    )
    if fraction < least and not allow_low_coverage:
        raise InputError(
            f"{found}; below {least:.0%} its answers mean little. Give the file as it was before features "
            "were selected, use a model trained on such a panel, or continue all the same: --allow-low-coverage "
            "(allow_low_coverage=True)."
        )
    warnings.warn(f"{found}: the others are taken for their mean.", ScmbertWarning, stacklevel=4)
