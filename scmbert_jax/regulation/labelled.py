"""Sequences with labels, and what kind of label it is.

kind      labels                               outputs of a model, K               targets
binary    one of two                           1: log-odds of names[1]             [N, 1], 0 or 1
classes   one of several                       a logit for each, of mean 0         [N, 1], the number of the class
labels    several at once (cell types, ...)    log-odds of each                    [N, K], 0, 1, or nan: not measured
values    numbers (accessibility, ...)         the numbers                         [N, K], nan: not measured
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from data_pipelines.genome.bases import UNKNOWN, reverse_complement
from scmbert_jax.errors import InputError

Kind = Literal["binary", "classes", "labels", "values"]


@dataclass(frozen=True)
class Task:
    """Attributes:
      kind: see above.
      names: of the classes, or of the outputs; of a binary label both, the second is what is predicted.

    Raises InputError: another kind, or a number of names that does not fit it.
    """

    kind: Kind
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"task {self.kind!r}: expected one of {', '.join(get_args(Kind))}")
        fewest = {"binary": 2, "classes": 3}.get(self.kind, 1)
        if len(self.names) < fewest or (self.kind == "binary" and len(self.names) > 2):
            raise InputError(
                f"a task of the kind {self.kind} with {len(self.names)} names: {', '.join(self.names[:5])}"
            )

    @property
    def num_outputs(self) -> int:
        return 1 if self.kind == "binary" else len(self.names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the K outputs of a model."""
        return self.names[1:] if self.kind == "binary" else self.names

    @property
    def num_targets(self) -> int:
        return 1 if self.kind in ("binary", "classes") else len(self.names)


@dataclass(frozen=True)
class LabelledSequences:
    """N sequences.

    Attributes:
      codes: uint8 [N, L], as in `data_pipelines.genome.bases`; 4 (N) behind the end of a shorter one.
      lengths: int32 [N], bases of each.
      targets: float32 [N, T], see above.
      task: what they are.
      keys: str [N], ids ("chr1:100-200", or the number of the row).
      chromosome: str [N], or None where it is not known.
      where: the file.

    Raises InputError: shapes that do not fit, no sequence, targets that the task does not know.
    """

    codes: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    task: Task
    keys: np.ndarray | None = None
    chromosome: np.ndarray | None = None
    where: str = "sequences"

    def __post_init__(self) -> None:
        number = len(self.codes)
        if self.codes.ndim != 2 or not number:
            raise InputError(f"{self.where}: codes {list(self.codes.shape)}; expected [N, L], at least one sequence")
        if self.lengths.shape != (number,) or self.targets.shape != (number, self.task.num_targets):
            raise InputError(
                f"{self.where}: {number:,} sequences, lengths {list(self.lengths.shape)}, targets "
                f"{list(self.targets.shape)}; expected [{number}] and [{number}, {self.task.num_targets}]"
            )
        kind, values = self.task.kind, self.targets
        known = {"binary": (0, 1), "labels": (0, 1), "classes": tuple(range(len(self.task.names)))}.get(kind)
        allowed = np.isfinite(values) | (np.isnan(values) & (kind in ("labels", "values")))
        allowed &= True if known is None else np.isin(values, known) | np.isnan(values)
        if not allowed.all():
            row, column = np.argwhere(~allowed)[0].tolist()
            raise InputError(
                f"{self.where}: target {values[row, column]:g} of sequence {row}, which a task of the kind {kind} "
                f"with {len(self.task.names)} names does not know"
            )

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> "LabelledSequences":
        """Some sequences: int [m], or bool [N]."""
        return replace(
            self,
            codes=self.codes[rows],
            lengths=self.lengths[rows],
            targets=self.targets[rows],
            keys=None if self.keys is None else self.keys[rows],
            chromosome=None if self.chromosome is None else self.chromosome[rows],
        )

    def counts(self) -> dict[str, int]:
        """Name -> sequences with that label (of values: that have one)."""
        if self.task.kind in ("binary", "classes"):
            return {name: int((self.targets[:, 0] == place).sum()) for place, name in enumerate(self.task.names)}
        there = np.isfinite(self.targets) if self.task.kind == "values" else self.targets == 1
        return dict(zip(self.task.names, there.sum(0).tolist(), strict=True))


def padded(codes: np.ndarray, length: int) -> np.ndarray:
    """uint8 [N, length]: N behind the end. Raises InputError where sequences are longer than that."""
    if codes.shape[1] > length:
        raise InputError(
            f"sequences of up to {codes.shape[1]:,} bases; the model reads {length:,}: cut windows of {length:,}"
        )
    return np.pad(codes, ((0, 0), (0, length - codes.shape[1])), constant_values=UNKNOWN)


def strand_free_keys(codes: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """[N]: the same for a sequence and its reverse complement, and for no other."""
    turned = reverse_complement(codes, lengths)
    found = []
    for own, other, length in zip(codes, turned, lengths.tolist(), strict=True):
        first, second = own[:length].tobytes(), other[:length].tobytes()
        found.append(min(first, second))
    return found


def in_another(parts: Sequence[LabelledSequences], of: LabelledSequences) -> np.ndarray:
    """bool [N]: sequences that are, or whose reverse complement is, in one of `parts`, too."""
    known = {key for part in parts for key in strand_free_keys(part.codes, part.lengths)}
    return np.array([key in known for key in strand_free_keys(of.codes, of.lengths)], bool)
