"""What a pre-trained model of DNA says without labels: how likely bases are, where they are hidden from it.

likelihood   the mean of log p(base) over all bases, each hidden once, every 7th at a time (of k-mers every 3k-th):
             Salazar et al. 2020, "Masked Language Model Scoring"
effect       log p(alternate) - log p(reference) at the hidden variant. A deletion puts no base there: it counts as one
             that is as likely as any other, log 1/4

A model that also reads the regions around a sequence reads none here (`DnaModel.base_log_probabilities`).
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.genome.bases import UNKNOWN
from scmbert_jax.dna_model import DnaDefinition
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.regulatory.arms import Pretrained, arms
from scmbert_jax.evaluation.regulatory.baselines import Baseline
from scmbert_jax.evaluation.regulatory.likelihoods import Score
from scmbert_jax.evaluation.regulatory.variant_effects import Effects
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
    """Raises ConfigError for a model that does not say how likely a base is."""
    if "masked_sequence" not in model.config.objectives.weights():
        where = model.folder or "the model"
        raise ConfigError(f"{where}: not trained with masked_sequence, so it does not say how likely a base is")


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
        # At the end of an element a deletion brings in N.
        substituted = differs[:, middle] & (differs.sum(1) == 1) & (alternate[:, middle] < UNKNOWN)
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
def _of_bases(definition: DnaDefinition, params: Any, constants: Any, codes: jax.Array, hidden: jax.Array) -> jax.Array:
    length = codes.shape[1]
    last = length - jnp.argmax((codes < UNKNOWN)[:, ::-1], axis=1)
    lengths = jnp.where((codes < UNKNOWN).any(1), last, length).astype(jnp.int32)
    model = definition.merge(params, constants)
    # k-mers that disagree about a base leave its probabilities with another sum.
    return jax.nn.log_softmax(model.base_log_probabilities(jax.nn.one_hot(codes, 4), lengths, hidden))
