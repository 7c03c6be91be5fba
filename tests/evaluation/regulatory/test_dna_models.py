"""What a pre-trained model of DNA says of bases that are hidden from it."""

from dataclasses import replace

import numpy as np
import pytest
from planted_sequences import random_codes

from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import DnaExperiment, DnaObjectivesConfig, SequenceConfig
from scmbert_jax.dna_model import DnaDefinition
from scmbert_jax.errors import ConfigError
from scmbert_jax.evaluation.regulatory.dna_models import (
    _log_probabilities,
    beginning_of,
    check_likelihood,
    effect_of,
    likelihood_of,
)
from scmbert_jax.genome_layout import GenomeLayout
from scmbert_jax.objectives.sequence_region.config import MaskedSequenceConfig, MotifOccurrenceConfig
from scmbert_jax.pretrained_dna import DnaPretrained
from scmbert_jax.random_keys import init_key

CONFIG = DnaExperiment(
    model=ModelConfig(embed_dim=8, num_layers=1, num_heads=1, head_dim=8, mlp_dim=8),
    sequence=SequenceConfig(most_bases=30, stem_channels=8, stem_kernel=3),
    objectives=DnaObjectivesConfig(MaskedSequenceConfig(with_regions=False)),
)


def model_of(config):
    definition = DnaDefinition(config, GenomeLayout())
    return DnaPretrained(
        config, GenomeLayout(), definition, definition.init(init_key(0)), definition.constants, {"step": 0}
    )


@pytest.fixture
def codes():
    return random_codes(np.random.default_rng(0), 5, 21)


TOKENS = {"bases": SequenceConfig(most_bases=30, stem_channels=8, stem_kernel=3)}
TOKENS["kmers"] = SequenceConfig(most_bases=30, tokens="kmers", kmer=3)


@pytest.mark.parametrize("tokens", TOKENS)
def test_what_is_said_of_a_hidden_base_does_not_depend_on_it(tokens, codes):
    model = model_of(replace(CONFIG, sequence=TOKENS[tokens]))
    hidden = np.zeros(codes.shape, bool)
    hidden[:, 10] = True
    found = _log_probabilities(model, codes, hidden)[:, 10]
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=0.2 if tokens == "kmers" else 1e-5)
    for base in range(4):
        other = codes.copy()
        other[:, 10] = base
        np.testing.assert_allclose(_log_probabilities(model, other, hidden)[:, 10], found, atol=1e-5)
    # Its neighbours do matter.
    other = codes.copy()
    other[:, 11] = (other[:, 11] + 1) % 4
    assert np.abs(_log_probabilities(model, other, hidden)[:, 10] - found).max() > 1e-4


def test_a_likelihood_is_the_mean_over_all_bases_each_hidden_once(codes):
    model = model_of(CONFIG)
    expected = np.zeros(len(codes))
    for first in range(7):
        hidden = np.arange(21) % 7 == first
        found = _log_probabilities(model, codes, np.broadcast_to(hidden, codes.shape).copy())
        for row, place in np.ndindex(codes.shape):
            expected[row] += found[row, place, codes[row, place]] * hidden[place] / 21
    np.testing.assert_allclose(likelihood_of(model)(codes), expected, atol=1e-6)


def test_an_effect_is_the_ratio_of_the_alleles_and_a_deletion_knows_no_base(codes):
    model = model_of(CONFIG)
    hidden = np.zeros(codes.shape, bool)
    hidden[:, 10] = True
    said = _log_probabilities(model, codes, hidden)[:, 10]
    own = said[np.arange(5), codes[:, 10]]
    alternate = codes.copy()
    alternate[:, 10] = (codes[:, 10] + 1) % 4
    found = effect_of(model, 21)(codes, alternate)
    np.testing.assert_allclose(found, said[np.arange(5), alternate[:, 10]] - own, atol=1e-5)
    deleted = np.concatenate([codes[:, :10], codes[:, 11:], codes[:, :1]], axis=1)
    np.testing.assert_allclose(effect_of(model, 21)(codes, deleted), np.log(0.25) - own, atol=1e-5)
    at_the_end = [np.where(np.arange(21) > end, 4, codes).astype(np.uint8) for end in (10, 9)]  # the last base of it
    said = _log_probabilities(model, at_the_end[0], hidden)[:, 10]
    own = said[np.arange(5), codes[:, 10]]
    np.testing.assert_allclose(effect_of(model, 21)(*at_the_end), np.log(0.25) - own, atol=1e-5)


def test_models_without_a_likelihood_are_refused(codes):
    model = model_of(CONFIG)
    with pytest.raises(ConfigError, match="reads 30"):
        likelihood_of(model)(random_codes(np.random.default_rng(0), 2, 31))
    no_masks = DnaObjectivesConfig(MaskedSequenceConfig(weight=0.0), motif_occurrence=MotifOccurrenceConfig(weight=1.0))
    with pytest.raises(ConfigError, match="not trained with masked_sequence"):
        check_likelihood(replace(model, config=replace(CONFIG, objectives=no_masks)))


def test_its_encoder_is_what_arms_begin_with():
    model = model_of(CONFIG)
    begun = beginning_of(model)
    assert begun.encoder is model.params["sequence"]
    assert (begun.network.encoder, begun.network.sequence) == (CONFIG.model, CONFIG.sequence)
    assert begun.network.strands == "auto"
    both = replace(CONFIG, sequence=replace(CONFIG.sequence, strands="both"))
    assert beginning_of(replace(model, config=both)).network.strands == "given"
