"""Sequence encoders of models that were pre-trained on DNA: as the beginning of a network, and for embeddings."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scmbert_jax.dna_config import SequenceConfig
from scmbert_jax.dna_model import DnaDefinition
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.models.dna.sequence_encoder import reverse_complement
from scmbert_jax.outputs import MODEL, REGULATORY, is_of_kind
from scmbert_jax.pretrained_dna import open_dna_model
from scmbert_jax.regulation.model_folder import load_regulatory
from scmbert_jax.regulation.network import NetworkOptions, real_lengths
from scmbert_jax.regulation.network_training import Start

Array = np.ndarray


def pretrained_network(folder: Path, options: NetworkOptions, frozen: bool) -> tuple[NetworkOptions, Start]:
    """(the options with the configuration of a model's sequence encoder, its parameters).

    Args:
      folder: `scmbert export` of a run on DNA.
      frozen: whether they stay as they are.

    Raises CheckpointError: no such folder, or damaged. ConfigError: its tokens are made on the host (bpe).
    """
    model = open_dna_model(folder)
    sequence = _read_from_one_hot(folder, model.config.sequence)
    changed = replace(options, encoder=model.config.model, sequence=sequence)
    return changed, Start(model.params["sequence"], frozen)


def embedder_of(folder: Path, batch_size: int) -> tuple[Callable[[Array], Array], int]:
    """(codes uint8 [N, L] -> float32 [N, W], L) of a regulatory model, or of one that was pre-trained on DNA: the mean
    of the states of its sequence encoder, over both strands.

    Raises CheckpointError: neither, or damaged.
    """
    if is_of_kind(folder, REGULATORY):
        model = load_regulatory(folder)
        return partial(model.embed, batch_size=batch_size), model.length
    if not is_of_kind(folder, MODEL):
        raise CheckpointError(
            f"{folder}: neither a regulatory model (scmbert regulate fit) nor a model of DNA (scmbert export)"
        )
    pretrained = open_dna_model(folder)
    length = _read_from_one_hot(folder, pretrained.config.sequence).most_bases

    def embed(codes: Array) -> Array:
        parts = []
        for first in range(0, len(codes), batch_size):
            part = codes[first : first + batch_size]
            full = np.pad(part, ((0, min(batch_size, len(codes)) - len(part)), (0, 0)), constant_values=4)
            found = _pooled(pretrained.definition, pretrained.params, pretrained.constants, full)
            parts.append(np.asarray(found)[: len(part)])
        return np.concatenate(parts)

    return embed, length


def _read_from_one_hot(folder: Path, sequence: SequenceConfig) -> SequenceConfig:
    if sequence.tokens == "bpe":
        raise ConfigError(
            f"{folder}: its tokens (bpe) are made of letters, not of one-hot, which regulatory models read; pre-train "
            "with --sequence.tokens bases or kmers"
        )
    return sequence


@partial(jax.jit, static_argnums=0)
def _pooled(definition: DnaDefinition, params: Any, constants: Any, codes: jax.Array) -> jax.Array:
    encoder, one_hot = definition.merge(params, constants).sequence, jax.nn.one_hot(codes, 4)
    lengths = real_lengths(one_hot)
    found = encoder(one_hot, lengths)
    other = found.opposite
    if other is None:
        other = encoder(reverse_complement(one_hot, lengths), lengths).states
    return (_mean_state(found.states, found.lengths) + _mean_state(other, found.lengths)) / 2


def _mean_state(states: jax.Array, lengths: jax.Array) -> jax.Array:
    """float32 [N, D] of states [N, S, D]. `[CLS]` is no vector of a sequence where no objective has read it."""
    real = (jnp.arange(states.shape[1])[None] < lengths[:, None])[..., None]
    return jnp.where(real, states.astype(jnp.float32), 0).sum(1) / jnp.maximum(lengths, 1)[:, None]
