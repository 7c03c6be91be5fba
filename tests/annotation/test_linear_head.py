import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression

from scmbert_jax.annotation.linear_head import (
    Imbalance,
    cell_weights,
    choose_linear_head,
    class_shares,
    fit_linear_head,
    losses_of_logits,
    marginal_nll,
)
from scmbert_jax.errors import ConfigError


@pytest.fixture(scope="module")
def blobs():
    """300 cells of three types of 200, 70 and 30 cells, in 4 dimensions; overlapping."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [200, 70, 30])
    means = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, 2, 0, 0]])
    return rng.normal(size=(300, 4)) * [1, 1, 3, 0.1] + means[codes], codes


def one_hot(codes, number=3):
    return np.arange(number) == codes[:, None]


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_on_plain_labels_it_is_the_logistic_regression_of_scikit_learn(blobs, c, balance):
    x, codes = blobs
    mine = fit_linear_head(x, one_hot(codes), c=c, imbalance=Imbalance(balance=balance))
    weights = cell_weights(one_hot(codes), balance)
    if balance:
        assert [weights[codes == code].sum() for code in range(3)] == pytest.approx([100] * 3)
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(mine.scale(x), codes, sample_weight=weights)
    expected = theirs.predict_log_proba(mine.scale(x))
    found = mine.logits(x) - np.log(np.exp(mine.logits(x)).sum(1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("focal", [0.0, 0.5, 2.0])
def test_derivatives_are_those_of_the_loss(focal):
    rng = np.random.default_rng(1)
    membership = np.array([[True, False, False], [True, True, False], [False, True, True], [False, False, True]])

    def loss(theta):
        return losses_of_logits(theta.reshape(4, 3), membership, focal)[0].sum()

    def slope(theta):
        return losses_of_logits(theta.reshape(4, 3), membership, focal)[1].ravel()

    assert check_grad(loss, slope, rng.normal(size=12)) < 1e-5


def test_a_coarse_label_teaches_that_its_cells_are_of_no_other_leaf(blobs):
    """Half of the cells of types 1 and 2 are only called "1 or 2": with these, all are told apart better."""
    x, codes = blobs
    coarse = one_hot(codes)
    coarse[(codes > 0) & (np.arange(300) % 2 == 0)] = [False, True, True]
    left_out = coarse.sum(1) == 1
    whole = fit_linear_head(x, coarse)
    part = fit_linear_head(x[left_out], coarse[left_out])
    assert marginal_nll(whole.logits(x), one_hot(codes)) < marginal_nll(part.logits(x), one_hot(codes))
    with pytest.raises(ValueError, match="no leaf"):
        fit_linear_head(x, np.zeros((300, 3), bool))


def test_adjusted_logits_find_more_cells_of_rare_types(blobs):
    x, codes = blobs
    found = {
        tau: fit_linear_head(x, one_hot(codes), imbalance=Imbalance(logit_adjustment=tau)).logits(x).argmax(1)
        for tau in (0.0, 1.0)
    }
    recall = {tau: (predicted[codes == 2] == 2).mean() for tau, predicted in found.items()}
    assert recall[1.0] > recall[0.0] + 0.1
    assert class_shares(one_hot(codes)) == pytest.approx([2 / 3, 70 / 300, 0.1])


def test_the_strength_is_chosen_on_cells_that_were_held_out(blobs):
    """Of noise, the strongest penalty is best; of what tells types apart, a weak one."""
    x, codes = blobs
    folds = np.arange(300) % 5
    noise = np.random.default_rng(2).normal(size=(300, 40))
    of_noise = choose_linear_head(noise, one_hot(codes), folds, grid=(0.001, 1.0))
    of_types = choose_linear_head(x, one_hot(codes), folds, grid=(0.0001, 1.0))
    assert (of_noise.c, of_types.c) == (0.001, 1.0)
    held = folds == 3
    without = fit_linear_head(x[~held], one_hot(codes)[~held])
    np.testing.assert_allclose(of_types.held_out[held], without.logits(x[held]), atol=1e-3)
    assert marginal_nll(of_types.held_out, one_hot(codes)) > marginal_nll(of_types.head.logits(x), one_hot(codes))


@pytest.mark.parametrize("wrong", [{"balance": 1.1}, {"logit_adjustment": -1}, {"focal": float("nan")}])
def test_imbalance_out_of_range_is_refused_by_its_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Imbalance(**wrong)
