"""What the `probe` suite found: plain rows, to and from JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# The name in `held_out` of figures averaged over all held-out parts (each counts equally).
MEAN_OVER_BATCHES = "mean"

# What a part is: a technical batch, or a random fraction of the cells of each class where there is one batch only.
BY_BATCH, AT_RANDOM = "technical batch", "random part"


@dataclass(frozen=True)
class ProbeSettings:
    """How the probes are fitted.

    Attributes:
      num_seeds: repetitions; seed s trains on its own subsample of the training cells and its own embedding.
      train_fraction: fraction of the training cells of each class that a seed sees.
      c_grid: inverse L2 strengths of the logistic regression among which the training batches choose.
      max_iter: iterations of L-BFGS per fit; a fit that stops there is counted and reported.
      knn_neighbours: k of the kNN probe; fixed, so that it needs no choosing.
      num_resamples: bootstrap resamples of the test cells for the intervals of differences.
      seed: of subsamples and resamples.
    """

    num_seeds: int = 5
    train_fraction: float = 0.8
    c_grid: tuple[float, ...] = (1e-2, 1e-1, 1.0, 10.0)
    max_iter: int = 1000
    knn_neighbours: int = 15
    num_resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_seeds, self.max_iter, self.knn_neighbours, self.num_resamples) < 1:
            raise ValueError(f"num_seeds, max_iter, knn_neighbours and num_resamples are at least 1: {self}")
        if not self.c_grid or min(self.c_grid) <= 0 or list(self.c_grid) != sorted(self.c_grid):
            raise ValueError(f"c_grid holds positive numbers in ascending order, not {self.c_grid}")


@dataclass(frozen=True)
class ProbeRow:
    """One figure: `mean` +- `half_width` (95% Student-t over `num_seeds` seeds; nan for one seed) on `num_cells`."""

    modality: str
    held_out: str
    method: str
    probe: str
    metric: str
    mean: float
    half_width: float
    num_seeds: int
    num_cells: int


@dataclass(frozen=True)
class DifferenceRow:
    """`method` minus `other` on the same cells and training subsamples.

    Attributes:
      mean, half_width: 95% Student-t interval of the paired difference over seeds.
      low, high: 95% paired bootstrap interval over test cells (cells resampled within each held-out batch).
    """

    modality: str
    held_out: str
    method: str
    other: str
    probe: str
    metric: str
    mean: float
    half_width: float
    low: float
    high: float
    num_seeds: int
    num_cells: int

    @property
    def verdict(self) -> str:
        """ "better" / "worse" when both intervals exclude zero on that side, else "no clear difference".

        One seed has no interval: then the one over test cells decides, and what is printed beside it says "one seed".
        """
        over_seeds = 0.0 if math.isnan(self.half_width) else self.half_width
        if self.mean - over_seeds > 0 and self.low > 0:
            return "better"
        if self.mean + over_seeds < 0 and self.high < 0:
            return "worse"
        return "no clear difference"


@dataclass(frozen=True)
class FoldSummary:
    """One held-out batch; `absent_classes`: class -> test cells of classes no training cell has (always errors)."""

    held_out: str
    num_train: int
    num_test: int
    absent_classes: dict[str, int]


@dataclass(frozen=True)
class FitCounts:
    """Logistic regressions fitted, and those that L-BFGS left unconverged, while choosing C and at the end."""

    total: int = 0
    unconverged_choosing: int = 0
    unconverged_final: int = 0

    def __add__(self, other: "FitCounts") -> "FitCounts":
        return FitCounts(
            self.total + other.total,
            self.unconverged_choosing + other.unconverged_choosing,
            self.unconverged_final + other.unconverged_final,
        )


@dataclass(frozen=True)
class ProbeResult:
    """All of one modality.

    Attributes:
      classes: names of the classes, sorted.
      num_unlabelled: cells without a label, left out of training and test.
      chosen_c: method -> C chosen, one per (held-out batch, seed), batches outermost.
      dimensions: method -> width of its embedding.
      split: what is held out: `BY_BATCH` or `AT_RANDOM`.
    """

    modality: str
    rows: tuple[ProbeRow, ...]
    differences: tuple[DifferenceRow, ...]
    folds: tuple[FoldSummary, ...]
    classes: tuple[str, ...]
    num_unlabelled: int
    fits: FitCounts
    settings: ProbeSettings = field(default_factory=ProbeSettings)
    chosen_c: dict[str, list[float]] = field(default_factory=dict)
    dimensions: dict[str, int] = field(default_factory=dict)
    split: str = BY_BATCH

    def row(self, method: str, probe: str, metric: str, held_out: str = MEAN_OVER_BATCHES) -> ProbeRow:
        """The row of that name. Raises KeyError when there is none."""
        wanted = (method, probe, metric, held_out)
        for row in self.rows:
            if (row.method, row.probe, row.metric, row.held_out) == wanted:
                return row
        raise KeyError(f"no row {wanted} of modality {self.modality}")

    def difference(
        self, method: str, other: str, probe: str, metric: str, held_out: str = MEAN_OVER_BATCHES
    ) -> DifferenceRow:
        """The difference of that name. Raises KeyError when there is none."""
        wanted = (method, other, probe, metric, held_out)
        for row in self.differences:
            if (row.method, row.other, row.probe, row.metric, row.held_out) == wanted:
                return row
        raise KeyError(f"no difference {wanted} of modality {self.modality}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; nan (an interval of one seed) becomes null."""
        document = asdict(self)
        document["differences"] = [asdict(row) | {"verdict": row.verdict} for row in self.differences]
        return _nan_to_none(document)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ProbeResult":
        """The inverse of `to_json`."""
        d = dict(document)
        settings = dict(d["settings"])
        settings["c_grid"] = tuple(settings["c_grid"])
        differences = [{k: v for k, v in row.items() if k != "verdict"} for row in d["differences"]]
        return cls(
            modality=d["modality"],
            rows=tuple(ProbeRow(**_none_to_nan(row)) for row in d["rows"]),
            differences=tuple(DifferenceRow(**_none_to_nan(row)) for row in differences),
            folds=tuple(FoldSummary(**fold) for fold in d["folds"]),
            classes=tuple(d["classes"]),
            num_unlabelled=d["num_unlabelled"],
            fits=FitCounts(**d["fits"]),
            settings=ProbeSettings(**settings),
            chosen_c={k: list(v) for k, v in d["chosen_c"].items()},
            dimensions=dict(d["dimensions"]),
            split=d["split"],
        )


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _none_to_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}
