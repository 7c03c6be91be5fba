"""The model of DNA: sequence encoder, region encoder, their fusion and heads put together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scmbert_jax.batch import GenomeBatch
from scmbert_jax.dna_config import DnaExperiment
from scmbert_jax.errors import ConfigError
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.models.definition import Definition
from scmbert_jax.models.dna.fusion import Fusion
from scmbert_jax.models.dna.region_encoder import make_region_encoder
from scmbert_jax.models.dna.sequence_encoder import (
    EncodedSequences,
    SequenceEncoder,
    base_logits,
    bases_of_kmers,
    kmer_ids,
)
from scmbert_jax.models.parameters import Constant
from scmbert_jax.objectives.mixture import DNA_OBJECTIVES
from scmbert_jax.random_keys import KeyPurpose, key_for


class RegionStates(NamedTuple):
    """The K regions around each of B sequences, as the region encoder left them.

    Attributes:
      states: [B, K, D]; of regions that are not read, unspecified but finite.
      present: bool [B, K], regions that are read.
      own: [B, D], the states of the sequences' own regions.
      regulators: float32 [B, K, T], scaled (`GenomeLayout`), hidden or not; None where the corpus has none.
      accessibility: float32 [B, K], in one cell type of each row, likewise.
    """

    states: jax.Array
    present: jax.Array
    own: jax.Array
    regulators: jax.Array | None
    accessibility: jax.Array | None


class FusedStates(NamedTuple):
    """Sequence and regions after they were read together: pooled float32 [B, D]; the sequence's tokens; states of the
    regions [B, K, D]."""

    pooled: jax.Array
    encoded: EncodedSequences
    regions: jax.Array


class DnaModel(nnx.Module):
    """A model of sequences and of the regions around them; `DnaDefinition` puts parameters in and out.

    What reads regions exists only in models one of whose objectives reads them; heads, in those that were trained for
    their objective.
    """

    sequence_head: Any
    region_head: Any
    matching_head: Any
    motif_head: Any

    def __init__(self, config: DnaExperiment, layout: GenomeLayout, rngs: nnx.Rngs):
        self.config = config
        self.sequence = SequenceEncoder(config.model, config.sequence, rngs)
        self.regions: Any = nnx.data(None)
        self.fusion: Any = nnx.data(None)
        if config.objectives.read_regions:
            self.regions = make_region_encoder(config.model, config.regions, layout.num_columns, rngs)
            self.fusion = Fusion(config.model, config.regions, rngs)
        for name in config.objectives.weights():
            for attribute, head in DNA_OBJECTIVES[name].heads(config, layout, rngs).items():
                setattr(self, attribute, head)
        numbers = ("regulator_mean", "regulator_scale", "occurs_above", "accessibility_mean", "accessibility_scale")
        self.scales: Any = nnx.Dict({name: Constant(np.asarray(getattr(layout, name), np.float32)) for name in numbers})

    def feature_table(self, key: jax.Array | None = None) -> jax.Array:
        """float32 [0, D]: no model of DNA looks features up; training asks every model (`Definition`)."""
        return jnp.zeros((0, self.config.model.embed_dim))

    def encode(self, batch: GenomeBatch, hidden: jax.Array | None = None) -> EncodedSequences:
        """The sequences alone. hidden: bool [B, L], bases that must not be seen; None: none."""
        ids = kmer_ids(batch.codes, self.config.sequence.kmer) if self.config.sequence.tokens == "kmers" else None
        return self.sequence(jax.nn.one_hot(batch.codes, 4), batch.lengths, hidden, ids)  # N, code 4, is four zeros

    def base_log_probabilities(self, one_hot: jax.Array, lengths: jax.Array, hidden: jax.Array) -> jax.Array:
        """float32 [B, L, 4]: log-probabilities of A, C, G, T at each base, of a model trained by `masked_sequence`.

        They are what the model says of bases that it was not shown; of `kmers` the mean over the tokens that cover a
        base. No region around the sequence is read, as where a sequence stands alone.

        Args:
          one_hot: float [B, L, 4].
          lengths: int32 [B].
          hidden: bool [B, L], bases that must not be seen.
        """
        ids = None
        if self.config.sequence.tokens == "kmers":  # looked up: as products of one-hot, 6-mers take 4,096 numbers each
            ids = kmer_ids(jnp.where(one_hot.any(-1), one_hot.argmax(-1), 4), self.config.sequence.kmer)
        encoded = self.sequence(one_hot, lengths, hidden, ids)
        if self.config.objectives.masked_sequence.with_regions:
            shape = len(lengths), self.config.regions.num_regions
            nothing = jnp.zeros((*shape, self.config.model.embed_dim), encoded.states.dtype)
            absent = jnp.zeros(shape, bool)
            encoded = self.fused(encoded, RegionStates(nothing, absent, nothing[:, 0], None, None)).encoded
        width = one_hot.shape[1]
        if self.config.sequence.tokens == "bases":
            return jax.nn.log_softmax(base_logits(encoded, lengths, width, self.sequence_head))
        return bases_of_kmers(self.sequence_head(encoded.states), self.config.sequence.kmer, width)

    def drawn_cell_types(self, keys: jax.Array) -> jax.Array:
        """int32 [B]: a cell type for each row's key [B], all alike likely."""
        number = len(self._scale("accessibility_mean"))
        return jax.vmap(lambda key: jax.random.randint(key_for(key, KeyPurpose.CELL_TYPE), (), 0, number))(keys)

    def read_regions(
        self,
        batch: GenomeBatch,
        keys: jax.Array | None = None,
        hidden: jax.Array | None = None,
        closed: jax.Array | None = None,
        cell_type: jax.Array | None = None,
    ) -> RegionStates:
        """The regions alone, each row in one cell type.

        Args:
          keys: of the rows [B]: cell types are drawn with them.
          hidden: bool [B, K], regions of which nothing is shown; None: none.
          closed: bool [B, K], regions whose accessibility is not shown; None: none.
          cell_type: int32 [B], in place of what keys draw; without both, no accessibility is shown, and all regions
            are read.
        """
        present, columns = batch.neighbours >= 0, []
        regulators = accessibility = None
        if batch.regulators is not None:
            mean, scale = (self._scale(f"regulator_{what}")[None, None] for what in ("mean", "scale"))
            regulators = (batch.regulators - mean) / scale
            columns.append(regulators)
        if batch.accessibility is not None:
            shown = jnp.zeros(present.shape, bool)
            accessibility = jnp.zeros(present.shape)
            if cell_type is None and keys is not None:
                cell_type = self.drawn_cell_types(keys)
            if cell_type is not None:
                accessibility, is_open = self._accessibility(batch.accessibility, cell_type)
                shown = jnp.ones_like(shown) if closed is None else ~closed
                own = jnp.arange(present.shape[1])[None] == present.shape[1] // 2
                present = present & (is_open | own) if self.config.regions.open_only else present
            columns += [jnp.where(shown, accessibility, 0)[..., None], shown[..., None].astype(jnp.float32)]
        states = self.regions(jnp.concatenate(columns, axis=-1), present, hidden)
        return RegionStates(states, present, states[:, states.shape[1] // 2], regulators, accessibility)

    def _accessibility(self, values: jax.Array, cell_type: jax.Array) -> tuple[jax.Array, jax.Array]:
        """values float32 [B, K, G] -> (scaled accessibility float32 [B, K] in a cell type of each row, is open)."""
        own = jnp.take_along_axis(values, cell_type[:, None, None], axis=2)[..., 0]
        mean, scale = (self._scale(f"accessibility_{what}")[cell_type][:, None] for what in ("mean", "scale"))
        return (jnp.log1p(own) - mean) / scale, own > 0

    def fused(self, encoded: EncodedSequences, found: RegionStates) -> FusedStates:
        """What sequence and regions say together; of two strands, each is read with the regions."""
        if encoded.opposite is None:
            pooled, states, regions = self.fusion(encoded.states, encoded.lengths, found.states, found.present)
            return FusedStates(pooled, encoded._replace(states=states), regions)
        twice = [jnp.repeat(x, 2, axis=0) for x in (encoded.lengths, found.states, found.present)]
        strands = jnp.stack([encoded.states, encoded.opposite], axis=1).reshape(-1, *encoded.states.shape[1:])
        pooled, states, regions = (
            x.reshape(-1, 2, *x.shape[1:]) for x in self.fusion(strands, twice[0], twice[1], twice[2])
        )
        own = encoded._replace(states=states[:, 0], opposite=states[:, 1])
        return FusedStates(pooled.mean(axis=1), own, regions.mean(axis=1))

    def occurring(self, batch: GenomeBatch) -> jax.Array:
        """bool [B, T]: regulators that occur in the sequences' own regions (`GenomeLayout.occurs_above`)."""
        assert batch.regulators is not None  # `check_genome_layout`
        own = batch.regulators[:, batch.regulators.shape[1] // 2]
        return own > self._scale("occurs_above")[None]

    def _scale(self, name: str) -> jax.Array:
        return jnp.asarray(self.scales[name][...])


def check_genome_layout(config: DnaExperiment, layout: GenomeLayout) -> None:
    """Raises `ConfigError` where an objective needs a matrix that the corpus does not have."""
    remedy = "Build the corpus with --regulators MATRIX or --motifs FILE"
    if config.objectives.read_regions and not layout.num_columns:
        name = config.objectives.read_regions[0]
        off = "with_regions False" if name == "masked_sequence" else "weight 0"
        raise ConfigError(
            f"objectives.{name} reads regions, but the corpus has neither regulators nor accessibility. {remedy}, or "
            f"set objectives.{name}.{off}."
        )
    if config.objectives.motif_occurrence.weight > 0 and not layout.regulators:
        raise ConfigError(
            f"objectives.motif_occurrence asks for regulators, which the corpus does not have. {remedy}, or set "
            "objectives.motif_occurrence.weight 0."
        )


class DnaDefinition(Definition):
    """A model of DNA without its numbers.

    Attributes: those of `Definition`, and
      layout: names and scales of the matrices' columns.

    Raises `ConfigError` as `check_genome_layout`.
    """

    unit = "sequences"

    def __init__(self, config: DnaExperiment, layout: GenomeLayout):
        check_genome_layout(config, layout)
        self.layout = layout
        super().__init__(config)

    def _create(self, key: jax.Array) -> DnaModel:
        return DnaModel(self.config, self.layout, nnx.Rngs(params=key))

    def reads_in_words(self) -> str:
        """What it reads, for the first line of a run."""
        number, cell_types = len(self.layout.regulators), len(self.layout.cell_types)
        regions = ""
        if self.config.objectives.read_regions:
            regions = f"; {self.config.regions.num_regions} regions with {number:,} regulators, {cell_types} cell types"
        return f"sequences of up to {self.config.sequence.most_bases:,} bases{regions}"
