"""Tokens give back the bases they were made of; a masked base is in no visible token; BPE is the same every time."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.genome.bases import decode, encode
from data_pipelines.genome.bpe_tokens import BpeTokeniser, load_bpe, train_bpe
from data_pipelines.genome.kmer_tokens import KmerTokeniser, hidden_bases, masked_kmers
from data_pipelines.genome.tokens import MASK, PAD, UNK
from scmbert_jax.errors import InputError


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (20, 90)).astype(np.uint8)
    codes[:, 30:50] = codes[0, 30:50]  # a repeat, that BPE finds
    codes[3, 10:14] = 4
    lengths = rng.integers(0, 91, 20)
    lengths[:2] = (90, 2)
    codes[np.arange(90)[None] >= lengths[:, None]] = 4
    return codes, lengths


@pytest.fixture(scope="module")
def tokenisers(sequences):
    return [*(KmerTokeniser(k) for k in (1, 3, 6)), train_bpe(sequences[0], 60, sequences[1])]


def test_every_token_is_the_bases_at_its_place(sequences, tokenisers):
    codes, lengths = sequences
    for tokeniser in tokenisers:
        found = tokeniser.tokens(codes, lengths)
        names = tokeniser.vocabulary
        for row, size in enumerate(lengths.tolist()):
            letters, own = decode(codes[row, :size]), found.lengths[row]
            assert (found.ids[row, own:] == PAD).all()
            assert (found.ids[row, :own] != PAD).all()
            for token, start, width in zip(found.ids[row, :own], found.starts[row], found.widths[row], strict=False):
                bases = letters[start : start + width]
                assert len(bases) == width > 0
                assert "N" in bases if token == UNK else names[token] == bases
            covered = {at for s, w in zip(found.starts[row], found.widths[row], strict=True) for at in range(s, s + w)}
            assert covered == (set(range(size)) if own else set())


def test_vocabularies_are_as_large_as_they_are_said_to_be(tokenisers):
    assert [len(one.vocabulary) for one in tokenisers] == [4 + 5, 4**3 + 5, 4**6 + 5, 60]
    assert len(set(tokenisers[-1].vocabulary)) == 60
    with pytest.raises(InputError, match="expected 1 to 6"):
        KmerTokeniser(7)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_no_visible_token_has_a_hidden_base(k):
    """For every hidden base: change it, and no visible token changes. For every masked token: it has a hidden base."""
    rng = np.random.default_rng(k)
    codes = rng.integers(0, 4, (8, 200)).astype(np.uint8)
    uniform = rng.random((8, 200 + k - 1))
    hidden = hidden_bases(uniform, 0.15, k)
    masked = masked_kmers(hidden, k)
    others = np.where(hidden, (codes + rng.integers(1, 4, codes.shape)) % 4, codes).astype(np.uint8)
    seen, seen_of_others = (np.where(masked, MASK, KmerTokeniser(k).tokens(c).ids) for c in (codes, others))
    assert hidden.any()
    np.testing.assert_array_equal(seen, seen_of_others)
    assert (KmerTokeniser(k).tokens(others).ids[masked] != KmerTokeniser(k).tokens(codes).ids[masked]).all()
    np.testing.assert_array_equal(masked_kmers(hidden_bases(jnp.asarray(uniform), 0.15, k), k), masked)


def test_as_many_bases_are_hidden_as_was_asked_for():
    uniform = np.random.default_rng(0).random((100, 1005))
    assert hidden_bases(uniform, 0.15, 6).mean() == pytest.approx(0.15, abs=0.01)
    with pytest.raises(InputError, match="0 <= rate < 1"):
        hidden_bases(uniform, 1.0, 6)


def test_bpe_joins_the_most_frequent_pair_and_then_the_next():
    codes = encode("ACACACACGG")[None]
    learned = train_bpe(codes, 11)
    assert learned.vocabulary[9:] == ("AC", "ACAC")
    found = learned.tokens(codes)
    assert [learned.vocabulary[token] for token in found.ids[0]] == ["ACAC", "ACAC", "G", "G"]
    assert train_bpe(encode("AAAA")[None], 11).vocabulary[9:] == ("AA",)  # one pair left: it occurs once
    assert train_bpe(encode("AANAA")[None], 11).vocabulary[9:] == ("AA",)  # and none across an N


def test_bpe_is_the_same_every_time_and_after_it_was_saved(sequences, tokenisers, tmp_path):
    learned = tokenisers[-1]
    assert train_bpe(sequences[0], 60, sequences[1]) == learned
    assert max(map(len, learned.vocabulary[9:])) > 8  # the repeat
    learned.save(tmp_path / "bpe.json")
    assert load_bpe(tmp_path / "bpe.json") == learned
    (tmp_path / "bpe.json").write_text('{"joins": [[5, 6]]}')
    with pytest.raises(InputError, match="train it again"):
        load_bpe(tmp_path / "bpe.json")
    for wrong, words in (
        (lambda: BpeTokeniser(((5, 40),)), "two earlier tokens"),
        (lambda: train_bpe(sequences[0], 8), "9 or more"),
    ):
        with pytest.raises(InputError, match=words):
            wrong()
    with pytest.raises(InputError, match="no bases"):
        train_bpe(encode("NNN")[None], 20)
