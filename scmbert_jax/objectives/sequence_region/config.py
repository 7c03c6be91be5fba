"""Their options: light, since whoever reads a configuration imports it."""

from dataclasses import dataclass

from scmbert_jax.errors import require


@dataclass(frozen=True)
class MaskedSequenceConfig:
    """Masked modelling of the sequence (objectives/sequence_region/masked_sequence.py)."""

    weight: float = 1.0
    """Fraction of steps that train this objective; 0: off."""
    mask_fraction: float = 0.15
    """Fraction of the bases that is hidden."""
    span: int = 6
    """Bases that are hidden together. Every k-mer that covers a hidden base is masked, so nothing leaks."""
    with_regions: bool = True
    """Whether the regions around help to predict (GeneBERT); without them, a corpus needs no matrices."""

    def validate(self, where: str) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(0 < self.mask_fraction < 1, f"{where}.mask_fraction", self.mask_fraction, "0 < value < 1")
        require(self.span >= 1, f"{where}.span", self.span, "1 or more")


@dataclass(frozen=True)
class MaskedRegionsConfig:
    """Masked modelling of regions: of their regulators, and of their accessibility."""

    weight: float = 0.0
    """Fraction of steps that train this objective; 0: off."""
    mask_fraction: float = 0.5
    """Fraction of the regions that is hidden and predicted, all columns (GET: a half)."""
    accessibility_fraction: float = 0.25
    """Of the other regions, the fraction whose accessibility alone is hidden and predicted."""
    accessibility_weight: float = 1.0
    """Weight of a squared error of accessibility beside that of all regulators of a region, which is a mean."""
    with_sequence: bool = True
    """Whether the sequence helps to predict."""

    def validate(self, where: str) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(0 < self.mask_fraction < 1, f"{where}.mask_fraction", self.mask_fraction, "0 < value < 1")
        fraction = self.accessibility_fraction
        require(0 <= fraction <= 1, f"{where}.accessibility_fraction", fraction, "0 <= value <= 1")
        require(self.accessibility_weight >= 0, f"{where}.accessibility_weight", self.accessibility_weight, "0 or more")


@dataclass(frozen=True)
class MatchingConfig:
    """Is this the matrix of the regions around this sequence."""

    weight: float = 0.0
    """Fraction of steps that train this objective; 0: off."""
    match_weight: float = 1.0
    """Weight of the yes or no that sequence and regions together give: of a pair, and of two hard negatives of it."""
    info_nce_weight: float = 1.0
    """Weight of InfoNCE between sequence and regions, each read alone; it is what finds hard negatives."""
    projection_dim: int = 64
    """Width of the space in which they are compared."""
    initial_temperature: float = 0.1
    min_temperature: float = 0.01
    max_temperature: float = 1.0
    """The learned temperature stays between these."""

    def validate(self, where: str) -> None:
        for name in ("weight", "match_weight", "info_nce_weight"):
            require(getattr(self, name) >= 0, f"{where}.{name}", getattr(self, name), "0 or more")
        both = self.match_weight + self.info_nce_weight
        require(both > 0, f"{where}.match_weight", self.match_weight, "above 0, or info_nce_weight is")
        require(self.projection_dim >= 1, f"{where}.projection_dim", self.projection_dim, "1 or more")
        require(
            0 < self.min_temperature <= self.initial_temperature <= self.max_temperature,
            f"{where}.initial_temperature",
            self.initial_temperature,
            f"between min_temperature {self.min_temperature} and max_temperature {self.max_temperature}, above 0",
        )


@dataclass(frozen=True)
class MotifOccurrenceConfig:
    """Which regulators occur in a sequence, of the sequence alone."""

    weight: float = 0.0
    """Fraction of steps that train this objective; 0: off."""
    quantile: float = 0.9
    """A regulator occurs in a region whose value is above this quantile of the training regions (of hits, which most
    regions have none of: above 0)."""

    def validate(self, where: str) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(0 <= self.quantile < 1, f"{where}.quantile", self.quantile, "0 <= value < 1")
