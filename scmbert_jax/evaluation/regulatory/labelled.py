"""Sets of labelled sequences: every method, at every fraction of the labels, on the same test sequences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.intervals import student_t_interval
from scmbert_jax.evaluation.regulatory.baselines import Baseline, Fitted, Split
from scmbert_jax.evaluation.regulatory.result import METRICS, SequenceRow
from scmbert_jax.evaluation.regulatory.tasks import SequenceTask
from scmbert_jax.regulation.labelled import in_another
from scmbert_jax.regulation.scores import scores
from scmbert_jax.sequences.motif_scanner import MotifScanner

Array = np.ndarray
Say = Callable[[str], None]

_FEWEST_OF_A_CLASS = 2  # labels that learn, where a fraction would leave fewer


@dataclass(frozen=True)
class Figures:
    """Metric -> (value, low, high), each times 100; of one seed."""

    values: dict[str, tuple[float, float, float]]
    num_parameters: int
    chosen: str


def sizes_of(task: SequenceTask) -> dict[str, int]:
    """How many sequences learn, choose (in the first fold) and test; and how many of these, or their reverse
    complements, also learn or choose."""
    first = task.splits[0]
    repeated = sum(int(_repeated(split).sum()) for split in task.splits)
    return {"train": len(first.train), "dev": len(first.dev), "test": task.num_test, "repeated": repeated}


def score_task(
    task: SequenceTask,
    methods: Sequence[Baseline],
    scanner: MotifScanner | None,
    *,
    fractions: Sequence[float] = (1.0,),
    num_seeds: int = 3,
    say: Say = lambda message: None,
) -> list[SequenceRow]:
    """Rows of all methods. Without randomness in a method, and with all labels, one seed is enough.

    Args:
      scanner: of motifs, for the methods that need it.
      fractions: of the labels that learn; dev stays whole, the same for all methods.

    Raises ConfigError: a fraction that is none.
    """
    if bad := [fraction for fraction in fractions if not 0 < fraction <= 1]:
        raise ConfigError(f"a fraction {bad[0]} of the labels: expected above 0, at most 1 (all)")
    figures: dict[tuple[float, str], list[Figures]] = {}
    splits = [replace(split, scanner=scanner) for split in task.splits]
    repeated = [_repeated(split) for split in splits]
    for fraction in fractions:
        for seed in range(num_seeds):
            own = [split if fraction == 1 else part_of(split, fraction, seed) for split in splits]
            for method in methods:
                if seed and fraction == 1 and not method.seeded:
                    continue
                say(f"{task.name}, {fraction:.0%} of the labels, seed {seed}: {method.name}")
                with threadpool_limits(1):  # sums that repeat; and threads of small fits wait for each other
                    found = [method.fit(split, seed) for split in own]
                for split, fitted in zip(own, found, strict=True):
                    split.fitted[method.name] = fitted
                figures.setdefault((fraction, method.name), []).append(_figures(splits, found, repeated, seed))
    return [row for (fraction, method), own in figures.items() for row in _rows(task.name, method, fraction, own)]


def part_of(split: Split, fraction: float, seed: int) -> Split:
    """A fraction of each class of the training sequences. What was made of all of them is taken over."""
    labels = split.labels[0]
    rng = np.random.default_rng((seed, int(1e6 * fraction)))
    rows = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rows.append(rng.permutation(own)[: max(_FEWEST_OF_A_CLASS, round(fraction * len(own)))])
    return split.with_training_rows(np.sort(np.concatenate(rows)))


def outputs_of(probabilities: Array) -> Array:
    """float64 [N, K] as models give them: log-odds of the second of two classes, else a logit for each."""
    logs = np.log(np.maximum(probabilities, 1e-12))
    return logs[:, 1:] - logs[:, :1] if probabilities.shape[1] == 2 else logs


def _repeated(split: Split) -> Array:
    return in_another((split.train, split.dev), split.test)


def _figures(splits: Sequence[Split], found: Sequence[Fitted], repeated: Sequence[Array], seed: int) -> Figures:
    targets = np.concatenate([split.test.targets for split in splits])
    outputs = np.concatenate([outputs_of(fitted.test) for fitted in found])
    task, new = splits[0].test.task, ~np.concatenate(repeated)
    values = {name: score for name, score in scores(task, targets, outputs).items() if name in METRICS}
    if new.any() and not new.all():
        values["mcc_unseen"] = scores(task, targets[new], outputs[new])["mcc"]
    return Figures(
        {name: (100 * score.value, 100 * score.low, 100 * score.high) for name, score in values.items()},
        round(float(np.mean([fitted.num_parameters for fitted in found]))),
        found[0].chosen,
    )


def _rows(task: str, method: str, fraction: float, figures: Sequence[Figures]) -> list[SequenceRow]:
    first, found = figures[0], []
    for metric in first.values:
        values = np.array([own.values[metric] for own in figures])  # [S, 3]
        mean, half_width, number = student_t_interval(values[:, 0])
        low, high = values[:, 1:].mean(0).tolist()
        found.append(
            SequenceRow(
                task, method, fraction, metric, mean, half_width, low, high, number, first.num_parameters, first.chosen
            )
        )
    return found
