"""Every method on every task: kept predictions are read, the others are made, and one that fails stops no other."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from scmbert_jax.errors import UserError
from scmbert_jax.evaluation.annotation.kept_fits import KeptFits
from scmbert_jax.evaluation.annotation.task import CellValues, Method, Predictions, Task

Job = tuple[int, int]  # places of the method and of the task


@dataclass
class Fits:
    """What came of all methods and tasks.

    Attributes:
      found: (place of the method, place of the task) -> arm -> predictions.
      failed: the same -> why.
      lacking: (name of the method, split, case) -> why it has no answer there.
      num_kept: how many were read from an earlier command.
    """

    found: dict[Job, dict[str, Predictions]] = field(default_factory=dict)
    failed: dict[Job, str] = field(default_factory=dict)
    lacking: dict[tuple[str, str, str], str] = field(default_factory=dict)
    num_kept: int = 0


def fit_all(
    cells: CellValues,
    tasks: Sequence[Task],
    methods: Sequence[Method],
    *,
    kept: KeptFits | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Fits:
    """Fits what is not kept, in `workers` processes where a method allows it.

    Results do not depend on `workers`: each fit has one thread and the seed of its task.
    """
    fits, left = Fits(), []
    for job in [(m, t) for t in range(len(tasks)) for m in range(len(methods))]:
        method, task = methods[job[0]], tasks[job[1]]
        if reason := method.lacks(task):
            fits.lacking[method.name, task.split, task.case] = reason
        elif kept is not None and (found := kept.read(method, task)) is not None:
            fits.found[job] = found
            fits.num_kept += 1
        else:
            left.append(job)
    for done, (job, outcome) in enumerate(_outcomes(cells, tasks, methods, left, workers), 1):
        if isinstance(outcome, str):
            fits.failed[job] = outcome
        else:
            fits.found[job] = outcome
            if kept is not None:
                kept.write(methods[job[0]], tasks[job[1]], outcome)
        if progress is not None:
            progress(done, len(left))
    return fits


def _outcomes(
    cells: CellValues, tasks: Sequence[Task], methods: Sequence[Method], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, dict[str, Predictions] | str]]:
    """Each job with its predictions, or with the reason why there are none, as they come."""
    elsewhere = [job for job in jobs if methods[job[0]].parallel] if workers > 1 else []
    here = [job for job in jobs if job not in set(elsewhere)]
    if elsewhere:
        # "spawn": a process that was forked while JAX runs threads may hang.
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(cells.prepared(),)
        ) as pool:
            futures: dict[Future[dict[str, Predictions] | str], Job] = {
                pool.submit(_fit_in_worker, methods[m], tasks[t]): (m, t) for m, t in elsewhere
            }
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    yield futures[future], _reason(error) if error is not None else future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for m, t in here:
        yield (m, t), _fit(methods[m], cells, tasks[t])


_CELLS: list[CellValues] = []  # of a worker


def _begin(cells: CellValues) -> None:
    _CELLS[:] = [cells]


def _fit_in_worker(method: Method, task: Task) -> dict[str, Predictions] | str:
    return _fit(method, _CELLS[0], task)


def _fit(method: Method, cells: CellValues, task: Task) -> dict[str, Predictions] | str:
    """Predictions, or why there are none: whatever goes wrong in a method is told in the table."""
    try:
        # Small matrices: threads cost more than they give, and one thread makes the sums repeatable.
        with threadpool_limits(1 if method.parallel else None), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said once, in the notes of the report
            return method.fit_predict(cells, task)
    except Exception as error:
        return _reason(error)


def _reason(error: BaseException) -> str:
    text = str(error) or "no reason was given"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
