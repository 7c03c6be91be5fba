"""Batches of a corpus by step: `BatchReader.batch_at(step)` is a pure function of (corpus, settings, step).

No iterator state exists, so there is none to save. `input_pipeline` makes batches ahead of time.
"""

import numpy as np

from data_pipelines.collate import (
    MeasuredFeatures,
    TokenSampling,
    check_sampling,
    clear_tokens,
    fill_tokens,
    token_key,
    unwritten_tokens,
)
from data_pipelines.corpus import Corpus
from data_pipelines.sampling_order import SamplingOrder
from data_pipelines.window_reader import Window, WindowColumns, WindowReader
from scmbert_jax.batch import MODALITIES, CellBatch, ModalityTokens
from scmbert_jax.errors import ConfigError


class BatchReader:
    """Makes the batches of one process. Threads may share it.

    Args:
      corpus: an open corpus.
      sampling: modality -> tokens per cell; modalities left out or with 0 tokens are not read.
      seed: fixes the order of cells and the sampling of tokens.
      global_batch_size, num_streams, window_blocks: see `SamplingOrder`.
      covariates: obs fields of the corpus whose codes the batch carries.
      process_index, process_count: this process makes its share of the rows of the global batch.

    Attributes:
      steps_per_epoch: steps until every cell was offered once (but for the tail that `order` states).
      order: the `SamplingOrder`.
      rows: rows of a batch of this process.

    Raises:
      ConfigError: a modality or covariate the corpus has not, or settings that `SamplingOrder` refuses.
    """

    def __init__(
        self,
        corpus: Corpus,
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
        check_sampling(sampling, corpus.modalities, f"the corpus {corpus.path}")
        unknown = [name for name in covariates if name not in corpus.vocabularies]
        if unknown:
            raise ConfigError(
                f"covariate {unknown[0]!r} is not known of the cells of {corpus.path}; it has "
                f"{sorted(corpus.vocabularies)}"
            )
        self.corpus = corpus
        self.sampling = {
            name: sampling[name] for name in MODALITIES if name in sampling and sampling[name].num_tokens > 0
        }
        self.seed = int(seed)
        self.covariates = tuple(covariates)
        self.process_index, self.process_count = process_index, process_count
        self.order = SamplingOrder(corpus.block_sizes, seed, global_batch_size, num_streams, window_blocks)
        self.order.cells_at(0, process_index, process_count)  # the number of processes is checked here, not at step 0
        self.steps_per_epoch = self.order.steps_per_epoch
        self.rows = global_batch_size // process_count
        self._measured = {
            name: MeasuredFeatures.from_masks([corpus.measured(d, name) for d in range(len(corpus.datasets))])
            for name in self.sampling
        }
        # Two windows per stream of this process, and what one step of each may touch beyond that.
        smallest_window = int(corpus.block_sizes.min()) * min(window_blocks, self.order.blocks_per_stream)
        windows_a_step = 2 + self.order.cells_per_stream // max(smallest_window, 1)
        capacity = (num_streams // process_count) * windows_a_step
        self._windows = WindowReader(corpus, tuple(self.sampling), self.covariates, capacity)

    def of_all_processes(self, sampling: dict[str, TokenSampling]) -> "BatchReader":
        """The same reader, giving all rows of the global batch, tokens drawn by `sampling`."""
        return BatchReader(
            self.corpus,
            sampling,
            seed=self.seed,
            global_batch_size=self.rows * self.process_count,
            num_streams=self.order.num_streams,
            window_blocks=self.order.window_blocks,
            covariates=self.covariates,
        )

    def batch_at(self, step: int) -> CellBatch:
        """This process's rows of the global batch of `step` (numpy arrays), a pure function of (seed, step).

        Raises:
          CorpusError: a block cannot be read; the shard and the block are named.
        """
        cells = self.order.cells_at(step, self.process_index, self.process_count)
        tokens = {name: unwritten_tokens(self.rows, choice.num_tokens) for name, choice in self.sampling.items()}
        keys = {name: token_key(self.seed, cells.epoch, name) for name in self.sampling}
        covariates = {name: np.full(self.rows, -1, np.int32) for name in self.covariates}
        cell_index = np.zeros(self.rows, np.int32)
        first_row = self.process_index * self.rows
        for piece in cells.pieces:
            window = self._windows.window((cells.epoch, piece.stream, piece.window), piece.blocks)
            rows = slice(piece.first_row - first_row, piece.first_row - first_row + len(piece.cells))
            cell_index[rows] = window.cell_index[piece.cells]
            for name in self.covariates:
                covariates[name][rows] = window.obs_codes[name][piece.cells]
            for name in self.sampling:
                columns = window.modalities.get(name)
                if columns is None:
                    clear_tokens(tokens[name], rows)
                else:
                    self._fill(tokens[name], rows, piece.cells, window, name, columns, keys[name])
        return CellBatch(
            modalities=tokens,
            covariates=covariates,
            cell_index=cell_index,
            row=np.arange(first_row, first_row + self.rows, dtype=np.int32),
        )

    def _fill(
        self,
        tokens: ModalityTokens,
        rows: slice,
        cells: np.ndarray,
        window: Window,
        modality: str,
        columns: WindowColumns,
        key: int,
    ) -> None:
        tokens.library_size[rows] = columns.library_size[cells]
        tokens.measured[rows] = columns.measured[cells]
        fill_tokens(
            tokens,
            rows,
            cells,
            columns.counts,
            columns.starts,
            window.cell_index.view(np.uint64),
            window.obs_codes["dataset"],
            columns.measured,
            self._measured[modality],
            self.corpus.feature_space.slices[modality][0],
            self.sampling[modality].zero_fraction,
            key,
        )
