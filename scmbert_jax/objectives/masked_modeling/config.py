"""Its options: light, since whoever reads a configuration imports it."""

from dataclasses import dataclass
from typing import Literal

from scmbert_jax.errors import require
from scmbert_jax.modalities import ModalitiesConfig


@dataclass(frozen=True)
class MaskedModelingConfig:
    """Masked modelling of values (objectives/masked_modeling/)."""

    weight: float = 1.0
    """Fraction of steps that train this objective; 0: off."""
    mask_fraction: float = 0.3
    """Fraction of a cell's eligible tokens whose value is hidden and predicted."""
    mask_zeros: bool = True
    """Whether tokens of count 0 are eligible (scBERT: False)."""
    keep_fraction: float = 0.0
    """Fraction of masked tokens whose value the encoder still sees (scBERT: 0.1)."""
    cell_weight: float = 1.0
    """Weight of predicting the same values a second time from the cell embedding alone, which trains it."""
    token_head: Literal["features", "linear"] = "features"
    """What predicts a token's value from its state: a layer, and a bias and a dispersion of each feature; or one linear
    layer for all features (scBERT)."""
    covariate_dropout: float = 0.1
    """Fraction of cells whose covariates are hidden, so that an unknown covariate is a trained case."""

    def validate(self, where: str, modalities: ModalitiesConfig) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(0 < self.mask_fraction < 1, f"{where}.mask_fraction", self.mask_fraction, "0 < value < 1")
        require(0 <= self.keep_fraction < 1, f"{where}.keep_fraction", self.keep_fraction, "0 <= value < 1")
        require(self.cell_weight >= 0, f"{where}.cell_weight", self.cell_weight, "0 or more")
        counts = [name for name, own in modalities.in_use().items() if own.likelihood == "negative_binomial"]
        fits = self.weight == 0 or self.token_head != "linear" or not counts
        require(fits, f"{where}.token_head", self.token_head, f"features: counts of {', '.join(counts)} are predicted")
        require(0 <= self.covariate_dropout < 1, f"{where}.covariate_dropout", self.covariate_dropout, "0 <= value < 1")
