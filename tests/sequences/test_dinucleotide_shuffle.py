"""A shuffle has exactly the dinucleotides of its sequence (that all such are as likely: test_shuffled.py)."""

import numpy as np
import pytest

from scmbert_jax.errors import InputError
from scmbert_jax.sequences.dinucleotide_shuffle import dinucleotide_shuffles


def dinucleotides(codes):
    return np.bincount(codes[:-1].astype(int) * 5 + codes[1:], minlength=25)


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (40, 150)).astype(np.uint8)
    codes[1] = 0  # one letter
    codes[2] = np.tile([0, 3], 75)  # a repeat
    codes[3, 40:60] = 4  # N
    codes[4, :-1], codes[4, -1] = 0, 1  # a single way out of A
    codes[5, 100:] = 4  # padding
    codes[6:20] = rng.choice(4, (14, 150), p=[0.9, 0.04, 0.04, 0.02])
    return codes


def test_dinucleotides_and_both_ends_stay_exactly(codes):
    found = dinucleotide_shuffles(codes, 7, seed=3)
    assert found.shape == (40, 7, 150)
    assert found.dtype == np.uint8
    for own, shuffles in zip(codes, found, strict=True):
        for shuffled in shuffles:
            np.testing.assert_array_equal(dinucleotides(shuffled), dinucleotides(own))
            assert (shuffled[0], shuffled[-1]) == (own[0], own[-1])
    assert (found[20:] == codes[20:, None]).mean() < 0.3  # of four letters a quarter are equal by chance
    np.testing.assert_array_equal(found[5, :, 100:], 4)  # padding stays behind


def test_a_seed_gives_the_same_whatever_follows(codes):
    whole = dinucleotide_shuffles(codes, 3, seed=5)
    np.testing.assert_array_equal(dinucleotide_shuffles(codes[:25], 3, seed=5), whole[:25])
    assert (dinucleotide_shuffles(codes, 3, seed=6) != whole).any()
    assert (whole[20:, 0] != whole[20:, 1]).any(1).all()


@pytest.mark.parametrize(
    ("codes", "number", "words"),
    [
        (np.zeros((2, 9, 4)), 1, r"codes: float64 \[2, 9, 4\], expected whole numbers \[N, L\]"),
        (np.full((2, 9), 7, np.uint8), 1, "codes from 7 to 7"),
        (np.zeros((2, 9), np.uint8), 0, "num_shuffles 0"),
    ],
)
def test_what_is_no_sequence_is_refused(codes, number, words):
    with pytest.raises(InputError, match=words):
        dinucleotide_shuffles(codes, number)
