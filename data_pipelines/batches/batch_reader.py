"""Batches by step: `BatchReader.batch_at(step)` is a pure function of (mixture, settings, step).

No iterator state exists, so there is none to save. `read_ahead` makes batches ahead of time.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.batches.collate import (
    TokenSampling,
    check_sampling,
    clear_tokens,
    empty_tokens,
    fill_tokens,
    profile_key,
    token_key,
    unwritten_profile,
    unwritten_tokens,
    with_profile,
)
from data_pipelines.batches.draw_tokens import MeasuredFeatures, StoredCells, TokenDraw
from data_pipelines.batches.window_reader import Window, WindowReader
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.sampling.drawn_together import fraction_with_another
from data_pipelines.sampling.joined_corpora import JoinedCorpora
from data_pipelines.sampling.mixture import Mixture
from data_pipelines.sampling.sampling_order import SamplingOrder, SourcePlan, WindowDraws, check_batch
from data_pipelines.sampling.source_blocks import SourceBlocks, plan_alone, plan_in_mixture
from scmbert_jax.batch import CellBatch, CellProfile, ModalityTokens, panel_bits
from scmbert_jax.errors import ConfigError
from scmbert_jax.modalities import MODALITIES


class BatchReader:
    """Makes the batches of one process. Threads may share it.

    Args:
      mixture: what cells are drawn from; a corpus alone is the mixture of all its cells.
      sampling: modality -> tokens per cell; modalities left out or with 0 tokens are not read.
      seed: fixes the order of cells and the sampling of tokens.
      global_batch_size, num_streams: see `SamplingOrder`.
      window_blocks: blocks of a corpus that a stream shuffles together; more mix better and take more memory.
      covariates: obs fields whose codes the batch carries.
      process_index, process_count: this process makes its part of the rows of the global batch.

    Attributes:
      mixture: as given.
      steps_per_epoch: steps until as many cells were drawn as there are (of one source: until each was offered once,
        but for the tail that `SourceOrder.unused_per_epoch` states).
      order: the `SamplingOrder`.
      collation: what makes its batches of the cells that the order names.
      rows: rows of a batch of this process.

    Raises:
      ConfigError: a modality or covariate that the corpora have not, settings that `SamplingOrder` refuses, or fewer
        cells than a batch.
    """

    def __init__(
        self,
        mixture: Mixture | Corpus,
        sampling: dict[str, TokenSampling],
        *,
        seed: int,
        global_batch_size: int,
        num_streams: int,
        window_blocks: int,
        covariates: tuple[str, ...] = (),
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.mixture = mixture if isinstance(mixture, Mixture) else Mixture([mixture])
        joined = self.mixture.joined
        check_sampling(sampling, joined.modalities, f"the corpus {joined.where}")
        unknown = [name for name in covariates if name not in joined.vocabularies]
        if unknown:
            raise ConfigError(
                f"covariate {unknown[0]!r} is not known of the cells of {joined.where}; it has "
                f"{sorted(joined.vocabularies)}"
            )
        if window_blocks < 1:
            raise ConfigError(f"window_blocks is {window_blocks}; it must be at least 1")
        check_batch(global_batch_size, num_streams)
        self.sampling = {
            name: sampling[name] for name in MODALITIES if name in sampling and sampling[name].num_tokens > 0
        }
        self.seed = int(seed)
        self.covariates = tuple(covariates)
        self.process_index, self.process_count = process_index, process_count
        self.window_blocks = int(window_blocks)
        plans = _plans(self.mixture, global_batch_size, num_streams, self.window_blocks)
        self._groups = self.mixture.groups
        if self._groups is not None:
            plans = [plan._replace(groups=groups) for plan, groups in zip(plans, self._groups, strict=True)]
        self.order = SamplingOrder(plans, self.mixture.draws, seed, global_batch_size, num_streams)
        self.order.cells_at(0, process_index, process_count)  # the number of processes is checked here, not at step 0
        self.steps_per_epoch = self.order.steps_per_epoch
        self.rows = global_batch_size // process_count
        self.collation = Collation(joined, self.sampling, self.covariates, self.seed)
        self._windows = [self._window_reader(source, plan) for source, plan in enumerate(plans)]
        self._remote = any(corpus.files.remote for corpus in joined.corpora)
        windows = [self.order.source_orders[source].smallest_window for source in range(len(plans))]
        draws = [self.order.most_draws(source) for source in range(len(plans))]
        # about a window of the source whose windows last shortest
        self._steps_ahead = max(1, min(size // number for size, number in zip(windows, draws, strict=True)))

    def _window_reader(self, number: int, plan: SourcePlan) -> WindowReader:
        """Of a source: keeps two windows per partition of this process, and what one step of each may touch beyond."""
        source = self.mixture.sources[number]
        corpus = self.mixture.joined.corpora[source.corpus]
        streams_here = self.order.num_streams // self.process_count
        streams_of_partition = self.order.num_streams // plan.num_partitions
        partitions_here = max(1, streams_here // streams_of_partition)
        windows_a_step = 2 + self.order.most_draws(number) // self.order.source_orders[number].smallest_window
        return WindowReader(
            SourceBlocks(corpus, source.rows, plan.block_sizes),
            tuple(name for name in self.sampling if name in corpus.modalities),
            tuple(name for name in self.covariates if name in corpus.vocabularies),
            partitions_here * windows_a_step,
        )

    def empty_batch(self) -> CellBatch:
        """One of the same shapes and types, for who plans for it."""
        return CellBatch(
            {name: empty_tokens(self.rows, choice.num_tokens) for name, choice in self.sampling.items()},
            {name: np.zeros(self.rows, np.int32) for name in self.covariates},
            np.zeros(self.rows, np.int32),
            np.zeros(self.rows, np.int32),
            profiles=self.collation.unwritten_profiles(self.rows) or None,
        )

    def of_all_processes(self) -> "BatchReader":
        """The same reader, giving all rows of the global batch."""
        return BatchReader(
            self.mixture,
            self.sampling,
            seed=self.seed,
            global_batch_size=self.rows * self.process_count,
            num_streams=self.order.num_streams,
            window_blocks=self.window_blocks,
            covariates=self.covariates,
        )

    def draws_at(self, step: int) -> Iterator[tuple[WindowDraws, int, Window]]:
        """The cells of this process's rows of a step: (draws, their corpus, the window that holds them), in order."""
        of_step = self.order.cells_at(step, self.process_index, self.process_count)
        if self._remote:  # the windows of this step come together, and those of the next are on their way
            ahead = self.order.cells_at(step + self._steps_ahead, self.process_index, self.process_count)
            for draws in (*of_step, *ahead):
                self._windows[draws.source].read_ahead(draws.blocks)
        for draws in of_step:
            yield draws, self.mixture.sources[draws.source].corpus, self._windows[draws.source].window(draws.blocks)

    def fraction_together(self) -> float | None:
        """Of the cells of a batch, the fraction that meets another of its group (`MixtureOptions.together`); of some
        batches of an epoch. None: there are no groups."""
        if self._groups is None:
            return None
        fractions = []
        for step in np.unique(np.linspace(0, self.steps_per_epoch - 1, 16).astype(int)).tolist():
            parts = [
                self._groups[draws.source][self.order.source_orders[draws.source].numbers_of(draws.blocks)[draws.cells]]
                for draws in self.order.cells_at(step)
            ]
            fractions.append(fraction_with_another(np.concatenate(parts)))
        return float(np.mean(fractions))

    def batch_at(self, step: int) -> CellBatch:
        """This process's rows of the global batch of `step` (numpy arrays), a pure function of (seed, step).

        Raises:
          CorpusError: a block cannot be read; the shard and the block are named.
        """
        return self.collation.batch(self.draws_at(step), self.process_index * self.rows, self.rows)


class Collation:
    """Makes batches of cells of windows. Threads may share it.

    Args:
      joined: the corpora; their numbers of features, covariates and cells are those of the batches.
      sampling: modality -> tokens per cell, only those that are read, in the order of `MODALITIES`.
      covariates: obs fields whose codes a batch carries.
      seed: of the sampling of tokens.
    """

    def __init__(
        self, joined: JoinedCorpora, sampling: dict[str, TokenSampling], covariates: tuple[str, ...], seed: int
    ):
        self.joined, self.sampling, self.covariates, self.seed = joined, sampling, covariates, seed
        self._translations = joined.translations
        self._measured = [_measured_features(corpus, tuple(sampling)) for corpus in joined.corpora]
        slices = joined.feature_space.slices
        self._panels = [
            {
                name: _panels(corpus, name, translation.features[name] - slices[name][0], *slices[name])
                for name, choice in sampling.items()
                if choice.profile_tokens and name in corpus.modalities
            }
            for corpus, translation in zip(joined.corpora, self._translations, strict=True)
        ]

    def batch(self, of_rows: Iterable[tuple[WindowDraws, int, Window]], first_row: int, num_rows: int) -> CellBatch:
        """Rows [first_row, first_row + num_rows) of a global batch (numpy arrays).

        Args:
          of_rows: (draws, their corpus, the window that holds them), in order; where they end before the last row, the
            rest are cells in which nothing was measured: no objective gives them weight.

        Raises:
          CorpusError: a block cannot be read; the shard and the block are named.
        """
        tokens = {name: unwritten_tokens(num_rows, choice.num_tokens) for name, choice in self.sampling.items()}
        covariates = {name: np.full(num_rows, -1, np.int32) for name in self.covariates}
        cell_index = np.zeros(num_rows, np.int32)
        profiles = self.unwritten_profiles(num_rows)
        filled = 0
        for draws, corpus, window in of_rows:
            translation = self._translations[corpus]
            rows = slice(draws.first_row - first_row, draws.first_row - first_row + len(draws.cells))
            filled = rows.stop
            cell_index[rows] = window.cell_index[draws.cells] + translation.first_cell
            for name in self.covariates:
                if name in translation.codes:
                    covariates[name][rows] = translation.codes[name][window.obs_codes[name][draws.cells]]
            for name in self.sampling:
                choice, where = self.sampling[name], (rows, draws.cells, window, name, corpus)
                if name in window.modalities:
                    key = token_key(self.seed, draws.epoch, name)
                    self._fill(tokens[name], *where, key, choice.zero_fraction, choice.whole_panel)
                else:
                    clear_tokens(tokens[name], rows)
                if name in profiles and name in window.modalities:
                    key = profile_key(self.seed, draws.epoch, name)
                    self._fill(with_profile(tokens[name], profiles[name]), *where, key)
                    measured = tokens[name].measured[rows, None]
                    panels = self._panels[corpus][name][window.obs_codes["dataset"][draws.cells]]
                    profiles[name].panel[rows] = np.where(measured, panels, 0)
                elif name in profiles:
                    clear_tokens(profiles[name], rows)
        for own in tokens.values():
            clear_tokens(own, slice(filled, num_rows))
        for profile in profiles.values():
            clear_tokens(profile, slice(filled, num_rows))
        return CellBatch(
            modalities=tokens,
            covariates=covariates,
            cell_index=cell_index,
            row=np.arange(first_row, first_row + num_rows, dtype=np.int32),
            profiles=profiles or None,
        )

    def unwritten_profiles(self, num_rows: int) -> dict[str, CellProfile]:
        """The profiles of a batch with anything in them; of the modalities that are to have any."""
        slices = self.joined.feature_space.slices
        return {
            name: unwritten_profile(num_rows, choice.profile_tokens, slices[name][1] - slices[name][0])
            for name, choice in self.sampling.items()
            if choice.profile_tokens
        }

    def _fill(
        self,
        tokens: ModalityTokens,
        rows: slice,
        cells: np.ndarray,
        window: Window,
        modality: str,
        corpus: int,
        key: int,
        zero_fraction: float = 0.0,
        whole_panel: bool = True,
    ) -> None:
        columns, translation = window.modalities[modality], self._translations[corpus]
        features = translation.features[modality]
        # Where a corpus' features stand side by side in the joint table, the kernel adds their first row.
        side_by_side = int(features[-1] - features[0]) == len(features) - 1 if len(features) else True
        tokens.library_size[rows] = columns.library_size[cells]
        tokens.measured[rows] = columns.measured[cells]
        keys = (window.cell_index + translation.first_cell).view(np.uint64)
        stored = StoredCells(columns.counts, columns.places, keys, window.obs_codes["dataset"], columns.measured)
        first_feature = features[0] if side_by_side and len(features) else 0
        draw = TokenDraw(key, zero_fraction, whole_panel, first_feature)
        fill_tokens(tokens, rows, cells, stored, self._measured[corpus][modality], draw)
        if not side_by_side:
            ids = tokens.feature_ids[rows]
            real = np.arange(ids.shape[1]) < tokens.lengths[rows, None]
            np.copyto(ids, features[ids], where=real)


def _measured_features(corpus: Corpus, modalities: tuple[str, ...]) -> dict[str, MeasuredFeatures]:
    return {
        name: MeasuredFeatures.from_masks([corpus.measured(dataset, name) for dataset in range(len(corpus.datasets))])
        for name in modalities
        if name in corpus.modalities
    }


def _panels(corpus: Corpus, modality: str, places: np.ndarray, first: int, stop: int) -> np.ndarray:
    """`CellProfile.panel` of each data set, uint8 [data sets, W], of the features of all corpora.

    `places` int32: where among the modality's features, rows `first` to `stop`, those of the corpus stand.
    """
    panels = np.zeros((len(corpus.datasets), stop - first), bool)
    for dataset in range(len(corpus.datasets)):
        panels[dataset, places[corpus.measured(dataset, modality)]] = True
    return panel_bits(panels)


def _plans(mixture: Mixture, global_batch_size: int, num_streams: int, window_blocks: int) -> list[SourcePlan]:
    """The layout of every source. Raises ConfigError: fewer cells than a batch, or fewer blocks than streams."""
    if mixture.num_cells < global_batch_size:
        chosen = f" that {mixture.options.selection} keeps" if mixture.options.selection else ""
        raise ConfigError(
            f"{mixture.joined.where}: {mixture.num_cells:,} cells{chosen}, fewer than one batch of "
            f"{global_batch_size}: lower global_batch_size, or choose more cells"
        )
    sizes = [mixture.joined.corpora[source.corpus].block_sizes for source in mixture.sources]
    if len(mixture.sources) > 1:
        fractions = mixture.draws / mixture.draws.sum()
        return [
            plan_in_mixture(of_corpus, source.rows, fraction, len(fractions), num_streams, window_blocks)
            for of_corpus, source, fraction in zip(sizes, mixture.sources, fractions.tolist(), strict=True)
        ]
    return [plan_alone(sizes[0], mixture.sources[0].rows, num_streams, window_blocks)]
