"""A motif placed, a stretch taken away, a variant: f after minus f before, of each sequence."""

import jax.numpy as jnp
import numpy as np
import pytest
from planted_motif import MOTIF, START, sequences_with_motif

from data_pipelines.genome.bases import encode, from_one_hot, one_hot
from scmbert_jax.errors import InputError, ScmbertWarning
from scmbert_jax.sequences.changes import ablate, marginalise, variant_effects
from scmbert_jax.sequences.dinucleotide_shuffle import dinucleotide_shuffles

END = START + len(MOTIF)
KERNEL = one_hot(encode(MOTIF))


@pytest.fixture(scope="module")
def motif_one_hot():
    return sequences_with_motif()


def additive(values):
    """3.5 per occurrence of the motif, plus the number of C: [N, 2], the second output twice that."""
    fits = sum(values[:, k : values.shape[1] - len(MOTIF) + k + 1] @ KERNEL[k] for k in range(len(MOTIF)))
    found = 3.5 * (fits > len(MOTIF) - 0.5).sum(1) + values[:, :, 1].sum(1)
    return jnp.stack([found, 2 * found], 1)


def test_a_marginal_effect_is_what_the_motif_adds():
    backgrounds = one_hot(np.random.default_rng(1).choice([0, 2, 3], (8, 60)).astype(np.uint8))  # no C
    found = marginalise(additive, MOTIF, backgrounds, START)
    np.testing.assert_allclose(found.effect, np.tile([3.5 + 2, 11.0], (8, 1)))  # the motif has two C
    np.testing.assert_allclose(marginalise(additive, KERNEL, backgrounds).effect, found.effect)
    gapped = marginalise(additive, "CNNNC", backgrounds)
    np.testing.assert_allclose(gapped.effect[:, 0], 2)
    np.testing.assert_allclose(marginalise(lambda values: values.sum((1, 2)), "CNNNC", backgrounds).effect, 0)
    assert (backgrounds[..., 1] == 0).all()  # the caller's are not changed


def test_ablation_takes_away_what_the_stretch_adds(motif_one_hot):
    found = ablate(additive, motif_one_hot, START - 4, END + 4, num_shuffles=12)
    assert found.after.shape == (6, 12, 2)
    # The shuffles have the same bases, so only the motif is missing; one shuffle or another may have it again.
    np.testing.assert_allclose(np.median(found.effect[..., 0], axis=1), -3.5)
    unknown = ablate(additive, motif_one_hot, START, END, by="unknown")
    np.testing.assert_allclose(unknown.effect[:, 0, 0], -5.5)
    assert (ablate(additive, motif_one_hot, 0, 15, by="unknown").effect <= 0).all()


def test_a_stretch_of_its_own_for_each_sequence_and_nothing_else_changes(motif_one_hot):

    def f(values):
        return values @ jnp.arange(4.0) @ (3.0 ** jnp.arange(60) % 101)  # tells sequences apart

    start = np.arange(6) * 3
    found = ablate(f, motif_one_hot, start, start + 20 + (np.arange(6) % 2), num_shuffles=3, seed=4)
    codes = from_one_hot(motif_one_hot)
    for parity in (0, 1):
        rows = np.arange(parity, 6, 2)
        places = start[rows, None] + np.arange(20 + parity)
        shuffled = dinucleotide_shuffles(codes[rows[:, None], places], 3, seed=4)
        for row, place, own in zip(rows, places, shuffled, strict=True):
            changed = np.repeat(codes[row][None], 3, axis=0)
            changed[:, place] = own
            np.testing.assert_allclose(found.after[row], f(jnp.asarray(one_hot(changed))), rtol=1e-5)
    assert (found.effect != 0).any(1).all()


def test_stretches_that_no_shuffle_changes_are_warned_of(motif_one_hot):
    with pytest.warns(
        ScmbertWarning, match="4 of 6 stretches came back from 20 shuffles as they were, e.g. sequence 1, CTCAGG"
    ):
        ablate(additive, motif_one_hot, 30, 36)


def test_variants_are_compared_row_by_row(motif_one_hot):
    broken = motif_one_hot.copy()
    broken[:, START + 2] = np.eye(4)[3]
    found = variant_effects(additive, motif_one_hot, broken)
    assert found.effect.shape == (6, 2)
    np.testing.assert_allclose(found.effect[:, 0], -3.5)
    with pytest.raises(InputError, match=r"6 of 6 variants change nothing in their window \(the first: row 0\)"):
        variant_effects(additive, motif_one_hot, motif_one_hot)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: marginalise(additive, MOTIF, x, 54), r"7 bases placed at 54 \(0-based\) do not lie inside"),
        (lambda x: marginalise(additive, "TG-CA", x), "insert: letter 3 is '-'"),
        (lambda x: marginalise(additive, x, x), r"insert \(as \[1, W, 4\]\): \[1, 6, 60, 4\]"),
        (lambda x: ablate(additive, x, 9, 9), r"sequence 0: stretch \[9, 9\), 0-based half-open"),
        (lambda x: ablate(additive, x, np.arange(5), 9), r"start \(5,\), end \(\): expected a number, or \[6\]"),
        (lambda x: ablate(additive, x, 0, 9, by="gap"), "by 'gap': expected shuffle or unknown"),
        (lambda x: variant_effects(additive, x, x[:, :50]), r"reference \[6, 60, 4\], alternate \[6, 50, 4\]"),
    ],
)
def test_changes_that_do_not_fit_are_refused(call, words, motif_one_hot):
    with pytest.raises(InputError, match=words):
        call(motif_one_hot)
