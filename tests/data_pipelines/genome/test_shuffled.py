"""A shuffled sequence has the pairs of neighbours of its own, and every sequence that has them is as likely."""

from collections import Counter
from itertools import pairwise, permutations

import numpy as np

from data_pipelines.genome.bases import decode, encode
from data_pipelines.genome.shuffled import shuffle_dinucleotides


def test_pairs_of_neighbours_stay_as_frequent_and_the_order_does_not():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, (50, 100)).astype(np.uint8)
    lengths = rng.integers(0, 101, 50)
    found = shuffle_dinucleotides(codes, 7, lengths)
    for row, size in enumerate(lengths.tolist()):
        own, other = codes[row, :size].tolist(), found[row, :size].tolist()
        assert Counter(pairwise(own)) == Counter(pairwise(other))
        assert own[:1] + own[-1:] == other[:1] + other[-1:]
        np.testing.assert_array_equal(codes[row, size:], found[row, size:])
    assert (found != codes)[lengths > 50].mean() > 0.2
    np.testing.assert_array_equal(shuffle_dinucleotides(codes, 7, lengths), found)
    assert (shuffle_dinucleotides(codes, 8, lengths) != found).any()


def test_every_sequence_with_the_same_pairs_is_as_likely():
    text = "ACGATCAGT"
    pairs = Counter(pairwise(text))
    inner = {"".join(letters) for letters in permutations(text[1:-1])}
    possible = {t for m in inner if Counter(pairwise(t := f"{text[0]}{m}{text[-1]}")) == pairs}
    drawn = Counter(map(decode, shuffle_dinucleotides(np.repeat(encode(text)[None], 20_000, 0), 0)))
    assert set(drawn) == possible
    assert len(possible) > 4
    expected = 20_000 / len(possible)
    assert max(abs(number - expected) for number in drawn.values()) < 5 * expected**0.5


def test_long_runs_of_each_letter_are_shuffled_at_once():
    codes = encode("A" * 250 + "C" * 250 + "G" * 250 + "T" * 250 + "N")[None]  # there is one order of these pairs
    np.testing.assert_array_equal(shuffle_dinucleotides(np.repeat(codes, 100, 0), 3), np.repeat(codes, 100, 0))
    back = np.concatenate([codes, codes], axis=1)
    found = shuffle_dinucleotides(np.repeat(back, 20, 0), 3)
    assert (found != back).any()
    for row in found:
        assert Counter(pairwise(row.tolist())) == Counter(pairwise(back[0].tolist()))
