"""What stands beside a model's masked values: each feature alone, the cell's rate, and a PCA fitted to the very task.

All of them are fitted on training cells whose tokens are drawn and hidden as those of the held-out cells are, and all
speak through the likelihood of the modality (`masked_training`), so their bits and the model's are of one kind.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from scmbert_jax.evaluation.pretraining.masked_training import MaskedTraining
from scmbert_jax.evaluation.pretraining.masked_values import CellTokens
from scmbert_jax.evaluation.pretraining.pca_ridge import PcaRidge

Array = np.ndarray

MARGINAL, CELL_RATE = "each feature alone", "the cell's rate"


class MaskedBaseline(Protocol):
    """A row of `evaluate pretraining`, and a figure of the evaluator `masked`; made of training cells.

    Attributes:
      name: of the row.
      metric: of the figure, MODALITY/metric.
    """

    name: str
    metric: str

    def __init__(self, training: MaskedTraining): ...

    def nll(self, tokens: Mapping[str, CellTokens], num_cells: int) -> dict[str, Array]:
        """Modality -> float64 [masked tokens], nats, in the order of `tokens`, of cells 0 .. num_cells - 1."""

    def notes(self) -> list[str]:
        """What it knows and how it was fitted, a sentence each."""


class Marginal:
    name, metric = MARGINAL, "bits_marginal"

    def __init__(self, training: MaskedTraining):
        self._modalities = training.modalities

    def nll(self, tokens: Mapping[str, CellTokens], num_cells: int) -> dict[str, Array]:
        nothing, found = np.zeros((num_cells, 0), np.float32), {}
        for name, own in tokens.items():
            modality = self._modalities[name]
            found[name] = modality.nll(modality.alone, nothing, own.at(own.masked))
        return found

    def notes(self) -> list[str]:
        return [
            f"{MARGINAL}: by its fraction of the library or how often it is open; knows nothing of the cell but its "
            "library size and what became of its zeros."
        ]


class CellRate:
    name, metric = CELL_RATE, "bits_rate"

    def __init__(self, training: MaskedTraining):
        self._modalities = training.modalities

    def nll(self, tokens: Mapping[str, CellTokens], num_cells: int) -> dict[str, Array]:
        return {name: self._modalities[name].rate_nll(own, num_cells) for name, own in tokens.items()}

    def notes(self) -> list[str]:
        return [
            f"{CELL_RATE}: that, times powers of how much the cell's visible tokens exceed their features' means and "
            "of how many features were measured. Of bins: how often each occurs among the cell's visible tokens."
        ]


# The weakest first.
MASKED_BASELINES: list[type[MaskedBaseline]] = [Marginal, CellRate, PcaRidge]


class MaskedBaselines:
    """All of `MASKED_BASELINES`, fitted."""

    def __init__(self, training: MaskedTraining):
        self._fitted = [baseline(training) for baseline in MASKED_BASELINES]

    def nll(self, tokens: Mapping[str, CellTokens], num_cells: int) -> dict[str, dict[str, Array]]:
        """Modality -> baseline -> float64 [masked tokens], nats, in the order of `tokens`."""
        found = {own.name: own.nll(tokens, num_cells) for own in self._fitted}
        return {name: {method: of[name] for method, of in found.items()} for name in tokens}

    def notes(self) -> list[str]:
        return [note for own in self._fitted for note in own.notes()]
