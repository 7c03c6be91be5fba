"""Its options: light, since whoever reads a configuration imports it."""

from dataclasses import dataclass
from typing import Literal

from scmbert_jax.errors import require
from scmbert_jax.modalities import ModalitiesConfig


@dataclass(frozen=True)
class LinkPredictionConfig:
    """Telling the edges of `model.networks` from pairs that are none (objectives/link_prediction/)."""

    weight: float = 0.0
    """Fraction of steps that train this objective; 0: off. Without `context` its steps read no cell."""
    edges_per_step: int = 1024
    """Edges of a step, drawn by their confidence, and as many pairs that are none."""
    negatives: Literal["uniform", "degree_matched", "same_regulator", "degree_aware"] = "degree_matched"
    """How pairs that are none are drawn, once for a run: a regulator and a gene at random; those of two edges, so that
    a hub is as often in a pair that is none; or so that the degrees of one side, or of both, say nothing."""
    decoder: Literal["bilinear", "translational", "mlp"] = "bilinear"
    """What is computed of the rows of a regulator and a gene (models/link_decoders.py)."""
    context: bool = False
    """Whether, in half of the steps, rows of genes know the cells of the step: what the encoder makes of a gene, mean
    over the cells that show it, is added to its row. With cells of one type, edges are then told of that type."""
    sign_weight: float = 1.0
    """Weight of whether an edge activates or represses, where that is known, beside whether it is one."""

    def validate(self, where: str, modalities: ModalitiesConfig) -> None:
        require(self.weight >= 0, f"{where}.weight", self.weight, "0 or more")
        require(self.edges_per_step >= 1, f"{where}.edges_per_step", self.edges_per_step, "1 or more")
        require(self.sign_weight >= 0, f"{where}.sign_weight", self.sign_weight, "0 or more")
        asks = self.weight == 0 or modalities.rna.num_tokens > 0
        require(asks, f"{where}.weight", self.weight, "0 without modalities.rna: a network is of genes")
