"""What a biologist wants to see of a translation: predicted against measured for some features, each type's error."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.report.modality_figures import error_per_type, predicted_versus_measured
from scmbert_jax.evaluation.report.report import Drawing
from scmbert_jax.evaluation.translation.fold import TranslationFold, TranslationMethod

Array = np.ndarray

NUM_FEATURES = 6
_UNITS = {"log1p": "log1p counts", "clr": "CLR", "probability": "probability"}
_BESIDE = ("train mean", "SVD50 + ridge", "cell-type oracle")  # more lines than these hide each other


@dataclass(frozen=True)
class Picture:
    """One direction of one split; n test cells, f chosen features.

    Attributes:
      heading: "rna -> protein, p4_0 held out".
      scale: of the values.
      names: str [f]; measured: float32 [n, f]; types: str [n].
      predicted: method -> float32 [n, f]; errors: method -> float64 [n], RMSE of each cell over all features.
      trained: methods that were trained elsewhere; honest: methods that use pairs and nothing of the test cells.
    """

    heading: str
    scale: str
    names: tuple[str, ...]
    measured: Array
    types: Array
    predicted: dict[str, Array] = field(default_factory=dict)
    errors: dict[str, Array] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    honest: list[str] = field(default_factory=list)

    def add(self, method: TranslationMethod, columns: Array, truth: Array, predicted: Array) -> None:
        """Keeps of all predictions float32 [n, F] the chosen columns and the error of each cell."""
        self.predicted[method.name] = predicted[:, columns]
        self.errors[method.name] = np.sqrt(np.mean((truth - predicted) ** 2, axis=1, dtype=np.float64))
        if method.num_trained:
            self.trained.append(method.name)
        elif method.uses == "pairs":
            self.honest.append(method.name)

    def drawings(self) -> list[Drawing]:
        """(heading, SVG, caption) for `write_report`; features are of the best model, or best baseline with pairs."""
        found: list[Drawing] = []
        candidates = self.trained or self.honest
        if candidates and self.names and self.scale != "probability":
            best = min(candidates, key=lambda name: float((self.errors[name] ** 2).mean()))
            types = self.types if (self.types != "").all() else None
            svg = predicted_versus_measured(self.measured, self.predicted[best], self.names, _UNITS[self.scale], types)
            found.append((f"Predicted and measured: {self.heading}", svg, f"{best}; each point is a held-out cell."))
        shown = {name: self.errors[name] for name in (*_BESIDE, *self.trained) if name in self.errors}
        if shown and (self.types != "").all():
            svg = error_per_type(shown, self.types, f"RMSE of a cell, {_UNITS[self.scale]}")
            found.append((f"Error by cell type: {self.heading}", svg, "Marks: mean over a type's held-out cells."))
        return found


def chosen_features(fold: TranslationFold, wanted: Sequence[str]) -> Array:
    """int64 [f]: columns of the named target features, or those that vary most over the training cells.

    Features without a known id come last among the latter: of them no trained model knows more than the mean.
    A name is matched without regard to case; names that are no target feature are left to the other directions.
    """
    if wanted:
        asked = {name.lower() for name in wanted}
        return np.array([i for i, name in enumerate(fold.target_features.names) if name.lower() in asked], np.int64)
    values = fold.train_values
    variance = np.asarray(values.multiply(values).mean(0)).ravel() - fold.train_mean**2
    return np.lexsort((-variance, fold.target_features.ids == ""))[:NUM_FEATURES]


def require_features(names: Sequence[str], known: Sequence[Array]) -> None:
    """Raises `ConfigError` for a name that is a feature of no modality."""
    existing = {str(name).lower() for names_of_modality in known for name in names_of_modality}
    unknown = [name for name in names if name.lower() not in existing]
    if unknown:
        raise ConfigError(f"--features {', '.join(unknown)}: the data has no feature of that name.")
