"""Its options: light, since whoever reads a configuration imports it."""

from dataclasses import dataclass

from scmbert_jax.errors import require
from scmbert_jax.modalities import ModalitiesConfig


@dataclass(frozen=True)
class WholeProfileConfig:
    """Predicting all that was measured of a cell from its embedding (objectives/whole_profile/)."""

    weight: float = 0.0
    """Fraction of steps that train this objective; 0: off."""
    hidden_dim: int = 256
    """Width of the one layer between the cell embedding and the features."""
    profile_tokens: int = 2048
    """Expressed features per cell and modality that are compared with their counts. Of a cell with more, each epoch
    draws others at random, and each counts for several. Zeros need no place: they are what is not expressed."""
    features_per_step: int = 16_384
    """Features of a modality that are predicted in a step. If there are more, each step draws as many at random, the
    same for all its cells. 0: all. With negative binomial counts always all: they share the cell's library."""
    source_fraction: float = 1.0
    """Fraction of a cell's tokens that the encoder is shown. Below 1, also cells of fewer expressed features than
    `num_tokens` are predicted from a part of them."""
    covariate_dropout: float = 0.1
    """Fraction of cells whose covariates are hidden, so that an unknown covariate is a trained case."""
    batch_mixing_weight: float = 0.0
    """Weight of how far technical batches lie apart in the cell embedding (batch_mixing.py), in nats per expressed
    feature. Needs technical_batch among model.covariates. Above 0 the loss compares cells of the whole batch, so that
    it is not split into microbatches."""

    def validate(self, where: str, modalities: ModalitiesConfig) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(self.hidden_dim >= 1, f"{where}.hidden_dim", self.hidden_dim, "1 or more")
        require(self.profile_tokens >= 1, f"{where}.profile_tokens", self.profile_tokens, "1 or more")
        require(self.features_per_step >= 0, f"{where}.features_per_step", self.features_per_step, "0 (all) or more")
        require(0 < self.source_fraction <= 1, f"{where}.source_fraction", self.source_fraction, "0 < value <= 1")
        require(self.batch_mixing_weight >= 0, f"{where}.batch_mixing_weight", self.batch_mixing_weight, "0 or more")
        require(0 <= self.covariate_dropout < 1, f"{where}.covariate_dropout", self.covariate_dropout, "0 <= value < 1")
