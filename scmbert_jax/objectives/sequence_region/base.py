"""What the objectives of `sequence_region` share."""

from abc import abstractmethod

import jax
from flax import nnx

from scmbert_jax.dna_config import DnaExperiment
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.objectives.base import AnyObjective
from scmbert_jax.random_keys import KeyPurpose, key_for


class DnaObjective(AnyObjective):
    """One training task of sequences and regions, a line of `objectives.mixture.DNA_OBJECTIVES`; its model is a
    `DnaModel`, its batch a `GenomeBatch`."""

    reads_table = False

    @abstractmethod
    def __init__(self, config: DnaExperiment): ...

    @staticmethod
    @abstractmethod
    def heads(config: DnaExperiment, layout: GenomeLayout, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """As those of `Objective`."""


def draw_rows(keys: jax.Array, purpose: KeyPurpose, number: int) -> jax.Array:
    """float32 [B, number] in [0, 1), from the keys [B] of the rows: whatever the mesh and the microbatch."""
    return jax.vmap(lambda key: jax.random.uniform(key_for(key, purpose), (number,)))(keys)
