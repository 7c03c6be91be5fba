"""What a pre-trained model of DNA says without labels: how likely bases are, where they are hidden from it.

likelihood   the mean of log p(base) over all bases, each hidden once, every 7th at a time (of k-mers every 3k-th):
             Salazar et al. 2020, "Masked Language Model Scoring"
effect       log p(alternate) - log p(reference) at the hidden variant. A deletion puts no base there: it counts as one
             that is as likely as any other, log 1/4

A k-mer model says of one hidden base what each of the k tokens that cover it says, given the other bases of that token;
these are averaged, and normalised.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.genome.bases import UNKNOWN
from data_pipelines.genome.tokens import SPECIAL
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.regulatory.arms import Pretrained, arms
from scmbert_jax.evaluation.regulatory.baselines import Baseline
from scmbert_jax.evaluation.regulatory.likelihoods import Score
from scmbert_jax.evaluation.regulatory.variant_effects import Effects
from scmbert_jax.models.dna.sequence_encoder import base_logits, kmer_ids
from scmbert_jax.pretrained_dna import DnaPretrained
from scmbert_jax.regulation.network import NetworkOptions

Array = np.ndarray

_APART = 7  # of the bases that are hidden at once: a 7th, as many as in training
_ROWS_AT_ONCE = 64


def beginning_of(model: DnaPretrained) -> Pretrained:
    """Its sequence encoder, for the arms; one that reads both strands itself is not shown the other one again."""
    config = model.config
    options = NetworkOptions(encoder=config.model, sequence=config.sequence)
    if config.sequence.strands != "given":
        options = replace(options, strands="given")
    return Pretrained(options, model.params["sequence"])


def arms_of(model: DnaPretrained | None, shuffled: DnaPretrained | None) -> list[Baseline]:
    """`arms` of pre-trained models; None: without those."""
    beginnings = [None if own is None else beginning_of(own) for own in (model, shuffled)]
    return arms(*beginnings)


def check_likelihood(model: DnaPretrained) -> None:
    """Raises ConfigError for a model that has no likelihood of a sequence alone."""
    where, objectives = model.folder or "the model", model.config.objectives
    if "masked_sequence" not in objectives.weights():
        raise ConfigError(f"{where}: not trained with masked_sequence, so it does not say how likely a base is")
    if objectives.masked_sequence.with_regions:
        raise ConfigError(
            f"{where}: predicts bases from the regions around, which sequences alone do not have; train one with "
            "objectives.masked_sequence.with_regions False"
        )


def likelihood_of(model: DnaPretrained) -> Score:
    """codes uint8 [N, L] -> float64 [N], nats per base. Raises as `check_likelihood`."""
    check_likelihood(model)
    sequence = model.config.sequence
    apart = 3 * sequence.kmer if sequence.tokens == "kmers" else _APART

    def score(codes: Array) -> Array:
        total, known = np.zeros(len(codes)), codes < UNKNOWN
        for first in range(min(apart, codes.shape[1])):
            hidden = np.zeros(codes.shape, bool)
            hidden[:, first::apart] = True
            found = _log_probabilities(model, codes, hidden)
            own = np.take_along_axis(found, np.minimum(codes, 3)[..., None], axis=2)[..., 0]
            total += np.where(hidden & known, own, 0).sum(1)
        return total / np.maximum(known.sum(1), 1)

    return score


def effect_of(model: DnaPretrained, width: int) -> Effects:
    """(reference, alternate) uint8 [n, width] -> float64 [n], nats. Raises as `check_likelihood`."""
    check_likelihood(model)
    middle = width // 2

    def effect(reference: Array, alternate: Array) -> Array:
        once, back = np.unique(reference, axis=0, return_inverse=True)
        hidden = np.zeros(once.shape, bool)
        hidden[:, middle] = True
        found = _log_probabilities(model, once, hidden)[:, middle][back]  # [n, 4]
        own = found[np.arange(len(reference)), reference[:, middle]]
        differs = reference != alternate  # a deletion moves what is behind it, too
        substituted = differs[:, middle] & (differs.sum(1) == 1)
        other = found[np.arange(len(reference)), np.minimum(alternate[:, middle], 3)]
        return np.where(substituted, other, np.log(0.25)) - own

    return effect


def _log_probabilities(model: DnaPretrained, codes: Array, hidden: Array) -> Array:
    """float64 [N, L, 4], of the hidden bases; what it says of others means nothing. Raises ConfigError: too long."""
    most = model.config.sequence.most_bases
    if codes.shape[1] > most:
        raise ConfigError(f"sequences of {codes.shape[1]:,} bases; {model.folder or 'the model'} reads {most:,}")
    rows, found = min(_ROWS_AT_ONCE, len(codes)), []
    for first in range(0, len(codes), rows):
        part, masks = codes[first : first + rows], hidden[first : first + rows]
        missing = ((0, rows - len(part)), (0, 0))
        own = _of_bases(model.definition, model.params, model.constants, np.pad(part, missing), np.pad(masks, missing))
        found.append(np.asarray(own, np.float64)[: len(part)])
    return np.concatenate(found)


@partial(jax.jit, static_argnums=0)
def _of_bases(definition: object, params: object, constants: object, codes: jax.Array, hidden: jax.Array) -> jax.Array:
    model = definition.merge(params, constants)  # type: ignore[attr-defined]
    length = codes.shape[1]
    last = length - jnp.argmax((codes < UNKNOWN)[:, ::-1], axis=1)
    lengths = jnp.where((codes < UNKNOWN).any(1), last, length).astype(jnp.int32)
    sequence = model.config.sequence
    ids = kmer_ids(codes, sequence.kmer) if sequence.tokens == "kmers" else None
    encoded = model.sequence(jax.nn.one_hot(codes, 4), lengths, hidden, ids)
    if sequence.tokens == "bases":
        return jax.nn.log_softmax(base_logits(encoded, lengths, length, model.sequence_head))
    return _bases_of_kmers(model.sequence_head(encoded.states), codes, encoded.lengths, sequence.kmer)


def _bases_of_kmers(logits: jax.Array, codes: jax.Array, tokens: jax.Array, k: int) -> jax.Array:
    """float32 [B, L, 4] of logits [B, S, 4^k]: the mean over the tokens that cover a base and have no N,
    normalised; 1/4 each where there is no such token."""
    number = kmer_ids(codes, k) - len(SPECIAL)  # [B, S]
    there = (number >= 0) & (jnp.arange(number.shape[1])[None] < tokens[:, None])
    total = jnp.zeros((*codes.shape, 4))
    covered = jnp.zeros(codes.shape)
    for place in range(k):
        weight = 4 ** (k - 1 - place)
        own = codes[:, place : place + number.shape[1]].astype(jnp.int32)
        changed = (number - own * weight)[..., None] + jnp.arange(4)[None, None] * weight  # [B, S, 4]
        said = jax.nn.log_softmax(jnp.take_along_axis(logits, jnp.maximum(changed, 0), axis=2))
        stop = place + number.shape[1]
        total = total.at[:, place:stop].add(jnp.where(there[..., None], said, 0))
        covered = covered.at[:, place:stop].add(there)
    return jax.nn.log_softmax(total / jnp.maximum(covered, 1)[..., None])
