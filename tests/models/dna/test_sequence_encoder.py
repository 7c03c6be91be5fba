import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.genome.bases import one_hot, reverse_complement
from data_pipelines.genome.kmer_tokens import KmerTokeniser
from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import SequenceConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.dna.sequence_encoder import SequenceEncoder, base_logits, bases_of_kmers

MODEL = ModelConfig(embed_dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=16)
BASES = SequenceConfig(most_bases=24, stem_layers=2, stem_channels=6, stem_kernel=5, stem_pool=3)
KMERS = SequenceConfig(most_bases=24, tokens="kmers", kmer=3)
LENGTHS = np.array([24, 20, 9], np.int32)  # 20 is no multiple of stem_pool


def sequences():
    codes = np.random.default_rng(0).integers(0, 4, (3, 24)).astype(np.uint8)
    codes[np.arange(24)[None] >= LENGTHS[:, None]] = 4
    codes[0, 7] = 4  # an N
    return codes


def encoder(config: SequenceConfig, seed=0):
    own = SequenceEncoder(MODEL, config, nnx.Rngs(seed))
    return own, jax.jit(lambda x, lengths, hidden=None, ids=None: own(x, lengths, hidden, ids))


def real(values, lengths):
    return [np.asarray(row[:length]) for row, length in zip(values, lengths, strict=True)]


@pytest.mark.parametrize("config", [BASES, KMERS], ids=["bases", "kmers"])
@pytest.mark.parametrize("strands", ["both", "equivariant"])
def test_the_reverse_complement_gives_the_same_states_back_to_front(config, strands):
    _, encode = encoder(dataclasses.replace(config, strands=strands))
    codes = sequences()
    given = encode(one_hot(codes), LENGTHS)
    turned = encode(one_hot(reverse_complement(codes, LENGTHS)), LENGTHS)
    np.testing.assert_allclose(given.pooled, turned.pooled, atol=1e-5)
    sizes = np.asarray(given.lengths)
    for ours, theirs in ((given.states, turned.opposite), (given.opposite, turned.states)):
        for row, other in zip(real(ours, sizes), real(theirs, sizes), strict=True):
            np.testing.assert_allclose(row, other[::-1], atol=1e-5)
    assert np.abs(np.asarray(given.states - given.opposite)).max() > 0.1


def test_of_one_strand_the_reverse_complement_is_another_sequence():
    _, encode = encoder(BASES)
    codes = sequences()
    given = encode(one_hot(codes), LENGTHS)
    assert given.opposite is None
    turned = encode(one_hot(reverse_complement(codes, LENGTHS)), LENGTHS)
    assert np.abs(np.asarray(given.pooled - turned.pooled)).max() > 0.1


def test_a_token_hears_what_stands_opposite_only_if_it_is_asked_for():
    own, _ = encoder(dataclasses.replace(BASES, strands="equivariant"))
    alone, _ = encoder(dataclasses.replace(BASES, strands="both"))
    assert alone.opposite is None
    tokens = []
    own._encode = lambda x, lengths: (tokens.append(x), (x, x[:, 0]))[1]
    own(jnp.asarray(one_hot(sequences())), LENGTHS)
    plain = own._tokens(jnp.asarray(one_hot(sequences())), LENGTHS, None, None)
    assert np.abs(np.asarray(tokens[0][::2] - plain)).max() > 0.1


@pytest.mark.parametrize("config", [dataclasses.replace(BASES, stem_pooling="max"), KMERS])
def test_padding_changes_nothing(config):
    _, encode = encoder(dataclasses.replace(config, strands="both", pooled="mean"))
    codes = sequences()
    whole, cut = encode(one_hot(codes[2:]), LENGTHS[2:]), encode(one_hot(codes[2:, :12]), LENGTHS[2:])
    np.testing.assert_allclose(whole.pooled, cut.pooled, atol=1e-5)


def test_kmers_are_the_same_from_one_hot_and_from_their_ids():
    _, encode = encoder(KMERS)
    codes = sequences()
    ids = KmerTokeniser(3).tokens(codes, LENGTHS).ids
    hidden = np.zeros(codes.shape, bool)
    hidden[:, 3:5] = True
    for unseen in (None, hidden):
        a, b = (encode(one_hot(codes), LENGTHS, unseen, own) for own in (None, ids))
        for row, other in zip(real(a.states, a.lengths), real(b.states, a.lengths), strict=True):
            np.testing.assert_allclose(row, other, atol=1e-5)


def test_hidden_bases_are_not_seen_on_either_strand():
    _, encode = encoder(dataclasses.replace(BASES, strands="equivariant"))
    codes = sequences()
    hidden = np.zeros(codes.shape, bool)
    hidden[:, 2:6] = True
    other = np.where(hidden, 3 - np.minimum(codes, 3), codes).astype(np.uint8)
    np.testing.assert_array_equal(
        encode(one_hot(codes), LENGTHS, hidden).pooled, encode(one_hot(other), LENGTHS, hidden).pooled
    )
    assert np.abs(np.asarray(encode(one_hot(codes), LENGTHS).pooled - encode(one_hot(other), LENGTHS).pooled)).max()


@pytest.mark.parametrize("config", [BASES, KMERS], ids=["bases", "kmers"])
def test_gradients_reach_every_base(config):
    own, _ = encoder(config)
    values = jnp.asarray(one_hot(sequences()))
    gradient = jax.jit(jax.grad(lambda x: (own(x, LENGTHS).pooled[:, 0]).sum()))(values)
    size = np.abs(np.asarray(gradient)).sum(-1)
    for row, length in zip(size, LENGTHS, strict=True):
        assert (row[:length] > 0).all()
        assert (row[length:] == 0).all()


def test_logits_of_bases_are_those_of_the_other_strand_in_its_letters():
    _, encode = encoder(dataclasses.replace(BASES, strands="both"))
    codes = sequences()
    matrix = jax.random.normal(jax.random.key(1), (8, 3 * 4))

    def logits(codes):
        return base_logits(encode(one_hot(codes), LENGTHS), LENGTHS, 24, lambda states: states @ matrix)

    given, turned = logits(codes), logits(reverse_complement(codes, LENGTHS))
    for row, other in zip(real(given, LENGTHS), real(turned, LENGTHS), strict=True):
        np.testing.assert_allclose(row, other[::-1, ::-1], atol=1e-4)


def test_bpe_reads_ids_and_nothing_else():
    config = SequenceConfig(most_bases=10, tokens="bpe", bpe_vocabulary=12)
    own, encode = encoder(config)
    ids = np.array([[5, 6, 7, 0], [8, 9, 10, 11]], np.int32)
    found = encode(np.zeros((2, 0, 4), np.float32), np.array([3, 4], np.int32), None, ids)
    assert found.states.shape == (2, 4, 8)
    with pytest.raises(ConfigError, match="give their ids"):
        own(jnp.zeros((2, 4, 4)), jnp.array([3, 4]))


def test_what_does_not_fit_is_refused():
    own, _ = encoder(BASES)
    with pytest.raises(ConfigError, match="most_bases is 24"):
        own(jnp.zeros((1, 25, 4)), jnp.array([25]))
    for change, named in (
        ({"stem_kernel": 4}, "stem_kernel"),
        ({"tokens": "kmers"}, "stem_pool"),
        ({"tokens": "bpe", "stem_pool": 1, "strands": "both"}, "strands"),
    ):
        with pytest.raises(ConfigError, match=named):
            SequenceEncoder(MODEL, dataclasses.replace(BASES, **change), nnx.Rngs(0))


def test_bases_of_kmers_are_the_marginals_of_those_that_cover_them():
    sure = np.full((1, 3, 16), -50.0, np.float32)  # of ACGT: AC, CG, GT
    for place, number in enumerate((0 * 4 + 1, 1 * 4 + 2, 2 * 4 + 3)):
        sure[0, place, number] = 0.0
    found = np.exp(np.asarray(bases_of_kmers(jnp.asarray(sure), 2, 5)))
    np.testing.assert_allclose(found[0, :4], np.eye(4), atol=1e-5)
    np.testing.assert_allclose(found[0, 4], 0.25)  # behind the last k-mer
    even = np.zeros((1, 1, 16), np.float32)
    even[0, 0, 4:8] = np.log(3.0)  # C first: 3 of 6 parts
    np.testing.assert_allclose(np.exp(np.asarray(bases_of_kmers(jnp.asarray(even), 2, 2)))[0, 0, 1], 0.5, rtol=1e-5)
