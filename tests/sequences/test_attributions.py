"""Mutagenesis and gradients find the motif that f reads, whatever is done at once, for one output or several."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from planted_motif import MOTIF, START, Planted, sequences_with_motif

from scmbert_jax.errors import InputError, ScmbertWarning
from scmbert_jax.sequences.gradients import contributions, integrated_gradients, saliency
from scmbert_jax.sequences.mutagenesis import mutagenesis
from scmbert_jax.sequences.sequence_function import both_strands, outputs, select_outputs

PLACES = set(range(START, START + len(MOTIF)))


@pytest.fixture
def planted():
    return Planted()


@pytest.fixture(scope="module")
def motif_one_hot():
    return sequences_with_motif()


def highest(scores):
    """The positions of the highest scores of each sequence, as many as the motif has."""
    return [set(row.tolist()) for row in np.argsort(-scores, axis=1)[:, : len(MOTIF)]]


def test_all_of_them_rank_the_places_of_the_motif_first(planted, motif_one_hot):
    found = [
        mutagenesis(planted, motif_one_hot).importance(),
        contributions(saliency(planted, motif_one_hot), motif_one_hot),
        integrated_gradients(planted, motif_one_hot, "uniform").contributions,
        integrated_gradients(planted, motif_one_hot, num_shuffles=4).contributions,
    ]
    for scores in found:
        assert scores.shape == (6, 60)
        assert highest(scores) == [PLACES] * 6


def test_mutagenesis_is_that_of_one_substitution_after_another(motif_one_hot):
    f = Planted(num_outputs=3)
    found = mutagenesis(f, motif_one_hot, 18, 55, batch_size=32)  # parts of a sequence at once
    assert found.effects.shape == (6, 37, 4, 3)
    np.testing.assert_allclose(found.reference, f(motif_one_hot), rtol=1e-6)
    for row, place, base in ((0, 22, 0), (1, 54, 2), (5, 18, 3), (3, 27, 1)):
        changed = motif_one_hot[row].copy()
        changed[place] = np.eye(4)[base]
        expected = f(changed[None])[0] - f(motif_one_hot[row][None])[0]
        np.testing.assert_allclose(found.effects[row, place - 18, base], expected, atol=1e-5)
    assert (found.effects[0, 50 - 18] == 0).all()  # N
    there = motif_one_hot[:, 18:55].astype(bool)
    assert (found.effects[there] == 0).all()
    np.testing.assert_allclose(found.hypothetical().sum(2), 0, atol=1e-5)
    several = mutagenesis(f, motif_one_hot, 18, 55, batch_size=400)  # several sequences at once
    np.testing.assert_allclose(several.effects, found.effects, atol=1e-5)


def test_a_second_sequence_and_a_second_call_compile_nothing(planted, motif_one_hot):
    def all_of_them(values):
        mutagenesis(planted, values, 10, 30, batch_size=64)
        saliency(planted, values)
        integrated_gradients(planted, values, "zeros")

    all_of_them(motif_one_hot[:1])
    compiled = planted.compiled
    all_of_them(motif_one_hot[1:2])
    assert planted.compiled == compiled
    outputs(planted, motif_one_hot[:5])
    compiled = planted.compiled
    outputs(planted, motif_one_hot)  # 5 and 6 are filled up to 8
    assert planted.compiled == compiled


def test_bound_parameters_are_arguments_and_others_compile_nothing(motif_one_hot):
    compiled = []

    def apply(params, values):
        compiled.append(values.shape)
        return jnp.tanh((values * params[None]).sum((1, 2)))

    weights = np.random.default_rng(0).normal(0, 0.1, (2, 60, 4)).astype(np.float32)
    numbers = []
    for params in weights:
        f = both_strands(Partial(apply, params))
        whole = integrated_gradients(f, motif_one_hot, "zeros").contributions.sum(1)
        found = (whole, mutagenesis(f, motif_one_hot).reference)
        both = [np.tanh((x * params).sum((1, 2))) for x in (motif_one_hot, motif_one_hot[:, ::-1, ::-1])]
        for own in found:
            np.testing.assert_allclose(own, np.mean(both, axis=0), atol=1e-3)
        numbers.append(len(compiled))
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("baseline", ["zeros", "uniform", "shuffles"])
@pytest.mark.parametrize("linear", [True, False])
def test_integrated_gradients_are_complete(planted, motif_one_hot, baseline, linear):
    def f(values):
        return values[:, 3:50, 2].sum(1) * 2 - values[:, 8, 0] if linear else planted(values)

    found = integrated_gradients(f, motif_one_hot, baseline, num_shuffles=3)
    assert found.errors.shape == (6, 3 if baseline == "shuffles" else 1)
    assert np.abs(found.errors).max() < 1e-3
    assert found.relative_error() < 1e-3
    whole = found.contributions.sum(1)
    np.testing.assert_allclose(whole, found.differences.mean(1), atol=1e-3)
    assert "completeness" in found.in_words()
    # Of the base that is there the hypothetical contribution is the contribution; at an N there is no such base.
    there = contributions(found.hypothetical, motif_one_hot)
    known = motif_one_hot.any(2)
    np.testing.assert_allclose(there[known], found.contributions[known], atol=1e-4)


def test_incomplete_gradients_are_warned_of(motif_one_hot):
    def jump(values):
        return jnp.where(values[:, 22, 2] > 0.5, 1.0, 0.0)

    with pytest.warns(ScmbertWarning, match=r"by 100\.00%.*more steps"):
        integrated_gradients(jump, motif_one_hot, "zeros")


def test_a_baseline_of_ones_own_is_each_sequences(planted, motif_one_hot):
    shared = np.full((60, 4), 0.25)
    own = np.broadcast_to(shared, (6, 2, 60, 4))
    one, other = (integrated_gradients(planted, motif_one_hot, start) for start in (shared, own))
    np.testing.assert_allclose(one.contributions, other.contributions, atol=1e-5)
    assert other.differences.shape == (6, 2)


def test_several_outputs_are_each_alone(motif_one_hot):
    several, one = Planted(3), Planted()
    for call in (saliency, lambda f, x: integrated_gradients(f, x, "uniform").hypothetical):
        found = call(several, motif_one_hot)
        assert found.shape == (6, 60, 4, 3)
        alone = call(one, motif_one_hot)
        for k in range(3):
            np.testing.assert_allclose(found[..., k], alone * (k - 1), atol=1e-5)
        np.testing.assert_allclose(call(select_outputs(several, 2), motif_one_hot), alone, atol=1e-5)
    assert outputs(select_outputs(several, (2, 0)), motif_one_hot).shape == (6, 2)


def test_a_centred_gradient_sums_to_zero_over_the_bases_and_a_raw_one_is_the_gradient(motif_one_hot):
    weights = np.arange(240, dtype=np.float32).reshape(60, 4)

    def f(values):
        return (values * weights[None]).sum((1, 2))

    np.testing.assert_allclose(saliency(f, motif_one_hot, centred=False)[2], weights)
    np.testing.assert_allclose(saliency(f, motif_one_hot)[2], weights - weights.mean(1, keepdims=True), atol=1e-4)


def test_both_strands_do_not_tell_a_sequence_from_its_reverse_complement(planted, motif_one_hot):
    turned = np.ascontiguousarray(motif_one_hot[:, ::-1, ::-1])
    assert np.abs(outputs(planted, motif_one_hot) - outputs(planted, turned)).max() > 1
    mean = both_strands(planted)
    np.testing.assert_allclose(outputs(mean, motif_one_hot), outputs(mean, turned), rtol=1e-6)
    gradient = saliency(mean, motif_one_hot)
    np.testing.assert_allclose(saliency(mean, turned), gradient[:, ::-1, ::-1], atol=1e-6)
    compiled = planted.compiled
    outputs(both_strands(planted), motif_one_hot)  # equal to the first one: compiled already
    assert planted.compiled == compiled


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, x: outputs(f, x[0]), r"one_hot: \[60, 4\], expected \[N, L, 4\]"),
        (lambda f, x: saliency(f, x.swapaxes(1, 2)), r"looks like \[N, 4, L\]"),
        (lambda f, x: outputs(f, x[:0]), "has left none"),
        (lambda f, x: mutagenesis(f, x / 2), r"sequence 0, position 0 \(0-based\).*expected one 1"),
        (lambda f, x: mutagenesis(f, x, 50, 61), r"window \[50, 61\), 0-based half-open: not inside sequences of 60"),
        (lambda f, x: outputs(lambda v: v, x), r"gives \[8, 60, 4\]; expected \[8\], or \[8, K\]"),
        (lambda f, x: outputs(lambda v: v.sum(), x), r"gives \[\]; expected"),
        (lambda f, x: outputs(f, x, batch_size=0), "batch_size 0"),
        (lambda f, x: outputs(select_outputs(f, 1), x), r"outputs 1: f gives \[8\]"),
        (lambda f, x: outputs(select_outputs(Planted(3), 3), x), r"outputs 3: f gives \[8, 3\]"),
        (lambda f, x: integrated_gradients(f, x, "ones"), "baseline 'ones'"),
        (lambda f, x: integrated_gradients(f, x, np.zeros((9, 4))), r"baseline \[9, 4\]: expected \[60, 4\]"),
        (lambda f, x: integrated_gradients(f, x, steps=0), "steps 0"),
        (lambda f, x: contributions(x[:3], x), "of other sequences"),
    ],
)
def test_what_does_not_fit_is_refused(call, words, planted, motif_one_hot):
    with pytest.raises(InputError, match=words):
        call(planted, motif_one_hot)
