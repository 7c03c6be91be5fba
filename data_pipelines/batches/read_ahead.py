"""Front ends: ways to have the batches of a reader made ahead of time.

`tf_batches` makes them inside a tf.data graph (parallel, in order, prefetched); `grain_batches` in the threads of a
Grain data set; `thread_batches` in plain threads, for machines with neither. All give the same batches bit for bit.
TensorFlow and Grain are imported when they are asked for. `ReadAhead` says which, and how far ahead.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from scmbert_jax.errors import ConfigError

DEFAULT_THREADS = 2  # the kernels release the GIL; two keep a GPU busy, more help on large hosts
DEFAULT_PREFETCH = 4  # batches made ahead

Batch = TypeVar("Batch", covariant=True)


class Reader(Protocol[Batch]):
    """What makes a batch by its step (`BatchReader`, `GenomeReader`): a NamedTuple of arrays and of such."""

    def batch_at(self, step: int) -> Batch: ...

    def empty_batch(self) -> Batch: ...


def thread_batches(
    reader: Reader[Batch],
    start_step: int,
    stop_step: int,
    *,
    num_threads: int = DEFAULT_THREADS,
    prefetch: int = DEFAULT_PREFETCH,
) -> Iterator[tuple[int, Batch]]:
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
    reader: Reader[Batch],
    start_step: int,
    stop_step: int,
    *,
    num_threads: int = DEFAULT_THREADS,
    prefetch: int = DEFAULT_PREFETCH,
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for start_step <= step < stop_step through tf.data, in order; the batches of `thread_batches`.

    TensorFlow is kept off the GPUs: JAX owns them. An error of `batch_at` is raised as itself, not as TensorFlow's.

    Raises:
      ConfigError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes on CPU features are not for our users
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nor is its note on these; no such operation is used
    try:
        import tensorflow as tf
    except ImportError as error:
        raise _not_installed("tfdata", "tensorflow", error) from error

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

    like = reader.empty_batch()
    example = _flatten(like)

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
        yield int(step), _unflatten(like, iter(arrays))


def grain_batches(
    reader: Reader[Batch],
    start_step: int,
    stop_step: int,
    *,
    num_threads: int = DEFAULT_THREADS,
    prefetch: int = DEFAULT_PREFETCH,
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for start_step <= step < stop_step through Grain, in order; the batches of `thread_batches`.

    The data set is a random-access source of steps, so that Grain's own transformations can follow it elsewhere. Its
    iterator is not checkpointed: a step is all there is to know. An error of `batch_at` is raised at its step.

    Raises:
      ConfigError: Grain is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise _not_installed("grain", "grain", error) from error

    steps = grain.MapDataset.source(_Steps(reader, start_step, stop_step))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads + prefetch)
    yield from steps.to_iter_dataset(options)


def _not_installed(front_end: str, package: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f"--reader {front_end} needs the package {package} ({error}): install scmbert_jax[{package}], or read with "
        "--reader threads, which gives the same batches."
    )


FRONT_ENDS: dict[str, Callable[..., Iterator[tuple[int, Any]]]] = {
    "tfdata": tf_batches,
    "threads": thread_batches,
    "grain": grain_batches,
}
_NAMES = {"tfdata": "tf.data", "threads": "threads", "grain": "Grain"}


@dataclass(frozen=True)
class ReadAhead:
    """How batches are made before they are needed; it changes none of them.

    Attributes:
      front_end: of `FRONT_ENDS`; "auto": tf.data where TensorFlow is installed, else threads.
      num_threads: that make batches side by side, 1 or more.
      prefetch: batches that wait for the training, 0 or more, beside those that are being made.

    Raises `ConfigError` for other values.
    """

    front_end: Literal["auto", "tfdata", "threads", "grain"] = "auto"
    num_threads: int = DEFAULT_THREADS
    prefetch: int = DEFAULT_PREFETCH

    def __post_init__(self) -> None:
        if self.front_end not in ("auto", *FRONT_ENDS):
            raise ConfigError(f"reader {self.front_end!r}: expected one of auto, {', '.join(FRONT_ENDS)}.")
        if self.num_threads < 1:
            raise ConfigError(f"--reader-threads {self.num_threads}: expected 1 or more.")
        if self.prefetch < 0:
            raise ConfigError(f"--reader-prefetch {self.prefetch}: expected 0 or more.")

    @property
    def chosen(self) -> str:
        """The name of the front end in `FRONT_ENDS`."""
        if self.front_end != "auto":
            return self.front_end
        return "threads" if find_spec("tensorflow") is None else "tfdata"

    def batches(self, reader: Reader[Batch], start_step: int, stop_step: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) for start_step <= step < stop_step, in order."""
        make = FRONT_ENDS[self.chosen]
        return make(reader, start_step, stop_step, num_threads=self.num_threads, prefetch=self.prefetch)

    def in_words(self) -> str:
        """For people, when a run starts."""
        why = ""
        if self.front_end == "auto":
            why = f"; TensorFlow is {'not ' if self.chosen == 'threads' else ''}installed"
        return (
            f"batches are read by {_NAMES[self.chosen]} (--reader {self.chosen}{why}): made by {self.num_threads} "
            f"threads, up to {self.prefetch} in waiting"
        )


class _Steps:
    """Batches by step as Grain's random-access source: element i is (step, batch) of step `start + i`."""

    def __init__(self, reader: "Reader[Any]", start_step: int, stop_step: int):
        self._reader = reader
        self._steps = range(start_step, stop_step)

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        step = self._steps[index]
        return step, self._reader.batch_at(step)


def _flatten(node: Any) -> list[np.ndarray]:
    """The arrays of a batch or of a part of it, in a fixed order."""
    if node is None:
        return []
    if isinstance(node, np.ndarray):
        return [node]
    return [array for part in (node.values() if isinstance(node, dict) else node) for array in _flatten(part)]


def _unflatten(like: Any, arrays: Iterator[np.ndarray]) -> Any:
    """What `_flatten` gave `arrays` of; `like` has its structure."""
    if like is None:
        return None
    if isinstance(like, np.ndarray):
        return next(arrays)
    if isinstance(like, dict):
        return {name: _unflatten(part, arrays) for name, part in like.items()}
    return type(like)(*(_unflatten(part, arrays) for part in like))
