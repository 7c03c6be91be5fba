from itertools import combinations

import jax
import numpy as np

from data_pipelines.genome.bases import encode, reverse_complement
from scmbert_jax.sequences.gapped_kmers import gap_patterns, gapped_counts, gapped_matrix


def sequences(count: int = 4, length: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, (count, length)).astype(np.uint8)


def test_every_word_at_every_pattern_is_counted_as_by_hand():
    codes, (window, k) = sequences(), (5, 3)
    patterns = [(0, *rest) for rest in combinations(range(1, window), k - 1)]
    expected = np.zeros((len(codes), len(patterns), 4, 4, 4))
    for row, sequence in enumerate(codes):
        for which, pattern in enumerate(patterns):
            for start in range(len(sequence) - pattern[-1]):
                word = tuple(sequence[start + place] for place in pattern)
                if max(word) < 4:
                    expected[row, which][word] += 1
    assert [tuple(own) for own in gap_patterns(window, k)] == patterns
    np.testing.assert_array_equal(gapped_matrix(codes, window, k, False).toarray(), expected.reshape(len(codes), -1))


def test_of_both_strands_a_sequence_counts_as_its_reverse_complement_and_nothing_is_lost():
    codes = sequences()
    both, one = gapped_matrix(codes, 6, 4, True).toarray(), gapped_matrix(codes, 6, 4, False).toarray()
    np.testing.assert_array_equal(gapped_matrix(reverse_complement(codes), 6, 4, True).toarray(), both)
    assert (one != gapped_matrix(reverse_complement(codes), 6, 4, False).toarray()).any()
    assert one.sum() < both.sum() < 2 * one.sum() + 1


def test_a_sequence_shorter_than_the_window_has_what_it_has():
    short = encode("ACG")[None]
    assert gapped_matrix(short, 5, 3, False).toarray().sum() == 1
    one_hot = jax.nn.one_hot(short, 4)
    np.testing.assert_array_equal(gapped_counts(one_hot, 5, 3, False), gapped_matrix(short, 5, 3, False).toarray())
