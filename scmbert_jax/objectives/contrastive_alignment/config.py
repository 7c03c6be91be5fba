"""Its options: light, since whoever reads a configuration imports it."""

from dataclasses import dataclass
from typing import Literal

from scmbert_jax.errors import require
from scmbert_jax.modalities import ModalitiesConfig, require_two_modalities


@dataclass(frozen=True)
class ContrastiveAlignmentConfig:
    """Symmetric InfoNCE between the modalities of a cell (objectives/contrastive_alignment/)."""

    weight: float = 0.0
    """Fraction of steps that train this objective; 0: off."""
    projection_dim: int = 64
    """Width of the space in which modalities are compared."""
    negatives: Literal["auto", "technical_batch", "all"] = "auto"
    """Which cells a cell is told apart from: those of its own technical batch, or all of the global batch; `auto`: of
    its own technical batch where the corpus knows it (across batches, the batch alone would be the answer). Cells of
    one technical batch are then drawn together."""
    initial_temperature: float = 0.1
    min_temperature: float = 0.01
    max_temperature: float = 1.0
    """The learned temperature stays between these."""
    source_fraction: float = 1.0
    """Fraction of each modality's tokens that the encoder is shown."""
    link_weight: float = 0.0
    """Weight of telling a feature's linked genes from others by their rows of the feature table; needs no pairs."""

    def validate(self, where: str, modalities: ModalitiesConfig) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(self.projection_dim >= 1, f"{where}.projection_dim", self.projection_dim, "1 or more")
        require(self.link_weight >= 0, f"{where}.link_weight", self.link_weight, "0 or more")
        require(0 < self.source_fraction <= 1, f"{where}.source_fraction", self.source_fraction, "0 < value <= 1")
        require(self.min_temperature > 0, f"{where}.min_temperature", self.min_temperature, "above 0")
        require(
            self.min_temperature <= self.initial_temperature <= self.max_temperature,
            f"{where}.initial_temperature",
            self.initial_temperature,
            f"between min_temperature {self.min_temperature} and max_temperature {self.max_temperature}",
        )
        require_two_modalities(self.weight, where, modalities)
