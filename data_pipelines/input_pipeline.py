"""Batches for the training loop: `BatchReader.batch_at(step)`, and two ways to have them made ahead of time.

`batch_at` is a pure function of (corpus, settings, step): no iterator state exists, so there is none to save.
`tf_batches` runs it inside a tf.data graph (parallel, in order, prefetched); `thread_batches` in plain threads, for
machines without TensorFlow. Both give the same batches bit for bit. TensorFlow is imported when `tf_batches` is called.
"""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data_pipelines.collate import (
    MAX_COUNT,
    MeasuredFeatures,
    TokenSampling,
    check_sampling,
    empty_tokens,
    fill_tokens,
    token_key,
)
from data_pipelines.corpus import Corpus
from data_pipelines.sampling_order import SamplingOrder, WindowPiece
from scmbert_jax.batch import MODALITIES, CellBatch, ModalityTokens
from scmbert_jax.errors import ConfigError

DEFAULT_THREADS = 2  # the kernels release the GIL; two keep a GPU busy, more help on large hosts
DEFAULT_PREFETCH = 4  # batches made ahead


class _WindowColumns(NamedTuple):
    """One modality of the concatenated blocks of a window (n cells)."""

    cell_starts: np.ndarray  # int64 [n + 1]
    feature_ids: np.ndarray  # int32 [nnz]
    counts: np.ndarray  # uint32 [nnz]
    library_size: np.ndarray  # float32 [n]
    measured: np.ndarray  # bool [n]


class _Window(NamedTuple):
    modalities: dict[str, _WindowColumns]  # only those that are read and that somebody in the window measured
    obs_codes: dict[str, np.ndarray]  # int32 [n]
    cell_index: np.ndarray  # int64 [n]


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
        self._cache_size = (num_streams // process_count) * windows_a_step
        self._cache: OrderedDict[tuple[int, int, int], Future] = OrderedDict()
        self._lock = threading.Lock()

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
        tokens = {name: empty_tokens(self.rows, choice.num_tokens) for name, choice in self.sampling.items()}
        keys = {name: token_key(self.seed, cells.epoch, name) for name in self.sampling}
        covariates = {name: np.full(self.rows, -1, np.int32) for name in self.covariates}
        cell_index = np.zeros(self.rows, np.int32)
        first_row = self.process_index * self.rows
        for piece in cells.pieces:
            window = self._window(cells.epoch, piece)
            rows = slice(piece.first_row - first_row, piece.first_row - first_row + len(piece.cells))
            cell_index[rows] = window.cell_index[piece.cells]
            for name in self.covariates:
                covariates[name][rows] = window.obs_codes[name][piece.cells]
            for name, columns in window.modalities.items():
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
        window: _Window,
        modality: str,
        columns: _WindowColumns,
        key: int,
    ) -> None:
        tokens.library_size[rows] = columns.library_size[cells]
        tokens.measured[rows] = columns.measured[cells]
        fill_tokens(
            tokens,
            rows,
            cells,
            columns.cell_starts,
            columns.feature_ids,
            columns.counts,
            window.cell_index.astype(np.uint64),
            window.obs_codes["dataset"],
            columns.measured,
            self._measured[modality],
            self.corpus.feature_space.slices[modality][0],
            self.sampling[modality].zero_fraction,
            key,
        )

    def _window(self, epoch: int, piece: WindowPiece) -> _Window:
        """The window of a piece, decoded once however many threads ask for it."""
        key = (epoch, piece.stream, piece.window)
        with self._lock:
            future = self._cache.get(key)
            mine = future is None
            if future is None:
                future = self._cache[key] = Future()
            self._cache.move_to_end(key)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        if mine:
            try:
                future.set_result(self._decode(piece.blocks))
            except BaseException as error:
                with self._lock:
                    self._cache.pop(key, None)  # a disk that comes back is read again
                future.set_exception(error)
        return future.result()

    def _decode(self, block_numbers: np.ndarray) -> _Window:
        blocks = [self.corpus.read_block(int(number), tuple(self.sampling)) for number in block_numbers]
        modalities = {}
        for name in self.sampling:
            parts = [block.modalities.get(name) for block in blocks]
            if all(part is None for part in parts):
                continue
            zeros = [np.zeros(block.num_cells, np.int32) for block in blocks]

            def joined(field: str, empty: list[np.ndarray], parts: list = parts) -> np.ndarray:
                return np.concatenate(
                    [spare if part is None else getattr(part, field) for part, spare in zip(parts, empty, strict=True)]
                )

            none = [np.zeros(0, np.int32)] * len(blocks)
            counts = joined("counts", none)
            lengths = joined("lengths", zeros)
            modalities[name] = _WindowColumns(
                cell_starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
                feature_ids=joined("feature_ids", none).astype(np.int32, copy=False),
                counts=np.minimum(counts, MAX_COUNT).astype(np.uint32),
                library_size=joined("total_counts", zeros).astype(np.float32),
                measured=joined("measured", zeros).astype(bool),
            )
        fields = {"dataset", *self.covariates}
        return _Window(
            modalities,
            {name: np.concatenate([block.obs_codes[name] for block in blocks]) for name in fields},
            np.concatenate([block.cell_index for block in blocks]),
        )


def thread_batches(
    reader: BatchReader,
    start_step: int,
    stop_step: int,
    *,
    num_threads: int = DEFAULT_THREADS,
    prefetch: int = DEFAULT_PREFETCH,
) -> Iterator[tuple[int, CellBatch]]:
    """(step, batch) for start_step <= step < stop_step, in order, made ahead in threads; no TensorFlow.

    An error of `batch_at` is raised at its step. Closing the iterator stops the threads.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="batches")
    waiting: deque[tuple[int, Future]] = deque()
    steps = iter(range(start_step, stop_step))
    try:
        while True:
            while len(waiting) < num_threads + prefetch and (step := next(steps, None)) is not None:
                waiting.append((step, pool.submit(reader.batch_at, step)))
            if not waiting:
                return
            step, future = waiting.popleft()
            yield step, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def tf_batches(
    reader: BatchReader,
    start_step: int,
    stop_step: int,
    *,
    num_threads: int = DEFAULT_THREADS,
    prefetch: int = DEFAULT_PREFETCH,
) -> Iterator[tuple[int, CellBatch]]:
    """(step, batch) for start_step <= step < stop_step through tf.data, in order; the batches of `thread_batches`.

    TensorFlow is kept off the GPUs: JAX owns them. An error of `batch_at` is raised as itself, not as TensorFlow's.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes on CPU features are not for our users
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:  # TensorFlow was used before in this process, and its devices are fixed
        if tf.config.get_visible_devices("GPU"):
            raise

    failures: dict[int, BaseException] = {}

    def make(step: np.int64) -> list[np.ndarray]:
        try:
            return _flatten(reader.batch_at(int(step)))
        except BaseException as error:
            failures[int(step)] = error
            raise

    example = _flatten(_empty_batch(reader))

    def load(step):
        arrays = tf.numpy_function(make, [step], [array.dtype for array in example], stateful=False)
        for tensor, array in zip(arrays, example, strict=True):
            tensor.set_shape(array.shape)
        return step, tuple(arrays)

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # it would move the number of threads under us; memory stays as planned
    batches = (
        tf.data.Dataset.range(start_step, stop_step)
        .map(load, num_parallel_calls=num_threads, deterministic=True)
        .prefetch(prefetch)
        .with_options(options)
    )
    iterator = batches.as_numpy_iterator()
    while True:
        try:
            step, arrays = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError:
            if failures:
                raise failures[min(failures)] from None
            raise
        yield int(step), _unflatten(reader, list(arrays))


def _empty_batch(reader: BatchReader) -> CellBatch:
    return CellBatch(
        {name: empty_tokens(reader.rows, choice.num_tokens) for name, choice in reader.sampling.items()},
        {name: np.zeros(reader.rows, np.int32) for name in reader.covariates},
        np.zeros(reader.rows, np.int32),
        np.zeros(reader.rows, np.int32),
    )


def _flatten(batch: CellBatch) -> list[np.ndarray]:
    arrays = [array for tokens in batch.modalities.values() for array in tokens]
    return [*arrays, *batch.covariates.values(), batch.cell_index, batch.row]


def _unflatten(reader: BatchReader, arrays: list[np.ndarray]) -> CellBatch:
    size = len(ModalityTokens._fields)
    modalities = {
        name: ModalityTokens(*arrays[place * size : (place + 1) * size]) for place, name in enumerate(reader.sampling)
    }
    rest = arrays[len(modalities) * size :]
    return CellBatch(modalities, dict(zip(reader.covariates, rest, strict=False)), rest[-2], rest[-1])
