"""Its options: light, since whoever reads a configuration imports it."""

from dataclasses import dataclass

from scmbert_jax.errors import require
from scmbert_jax.modalities import MODALITIES, ModalitiesConfig, require_two_modalities


@dataclass(frozen=True)
class CrossModalTranslationConfig:
    """Predicting one modality of a cell from another (objectives/cross_modal_translation/)."""

    weight: float = 0.0
    """Fraction of steps that train this objective; 0: off."""
    directions: tuple[str, ...] = ()
    """Such as ("rna>protein", "protein>rna"); (): every ordered pair of the modalities that are read."""
    pair_weight: float = 1.0
    """Weight of predicting the measured other modality; 0: pairs are not used."""
    cycle_weight: float = 0.0
    """Weight of predicting the measured modality back from the predicted other one; needs no pairs."""
    cycle_features: int = 64
    """Features of the other modality that are predicted in the first half of that cycle."""
    source_fraction: float = 1.0
    """Fraction of the source's tokens that the encoder is shown; the rest changes from epoch to epoch."""
    covariate_dropout: float = 0.1
    """Fraction of cells whose covariates are hidden, so that an unknown covariate is a trained case."""

    def validate(self, where: str, modalities: ModalitiesConfig) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(self.pair_weight >= 0, f"{where}.pair_weight", self.pair_weight, "0 or more")
        require(self.cycle_weight >= 0, f"{where}.cycle_weight", self.cycle_weight, "0 or more")
        require(self.cycle_features >= 1, f"{where}.cycle_features", self.cycle_features, "1 or more")
        require(0 < self.source_fraction <= 1, f"{where}.source_fraction", self.source_fraction, "0 < value <= 1")
        require(0 <= self.covariate_dropout < 1, f"{where}.covariate_dropout", self.covariate_dropout, "0 <= value < 1")
        require_two_modalities(self.weight, where, modalities)
        for direction in self.directions:
            source, _, target = direction.partition(">")
            known = source in MODALITIES and target in MODALITIES and source != target
            require(known, f"{where}.directions", direction, f"SOURCE>TARGET, two of {', '.join(MODALITIES)}")
            read = modalities.in_use()
            are_read = source in read and target in read
            require(are_read, f"{where}.directions", direction, f"modalities that are read: {', '.join(read)}")
