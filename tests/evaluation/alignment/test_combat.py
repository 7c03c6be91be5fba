"""ComBat is what its formulas say, and takes off a shift and a scale of each feature."""

import numpy as np
import pytest

from scmbert_jax.evaluation.alignment.combat import combat


def test_a_shift_and_a_spread_of_each_feature_are_taken_off():
    rng = np.random.default_rng(0)
    batches = np.repeat(["a", "b"], 150)
    x = rng.normal(size=(300, 40)) + np.arange(40)
    x[batches == "b"] = 1.7 * x[batches == "b"] + rng.normal(1.0, 0.5, 40)
    x[:, 7] = 3.0  # says nothing, stays
    found = combat(x, batches)
    a, b = found[batches == "a"], found[batches == "b"]
    assert np.abs(a.mean(0) - b.mean(0)).max() < 0.15
    assert a.std(0)[:7] == pytest.approx(b.std(0)[:7], rel=0.15)
    np.testing.assert_array_equal(found[:, 7], 3.0)


def test_the_estimates_solve_the_equations_of_the_paper():
    """Eq. 3.4: each is what the other says, with priors by the method of moments."""
    from scmbert_jax.evaluation.alignment.combat import _shrunken

    rng = np.random.default_rng(1)
    z = rng.normal(rng.normal(0.3, 0.5, 30), rng.uniform(0.5, 2.0, 30), (12, 30))
    gamma, delta = _shrunken(z)
    means, variances = z.mean(0), z.var(0, ddof=1)
    tau2, average = means.var(ddof=1), means.mean()
    v, s2 = variances.mean(), variances.var(ddof=1)
    shape, scale = (v**2 + 2 * s2) / s2, (v**3 + v * s2) / s2
    assert gamma == pytest.approx((12 * tau2 * means + delta * average) / (12 * tau2 + delta), rel=1e-3)
    assert delta == pytest.approx((scale + ((z - gamma) ** 2).sum(0) / 2) / (12 / 2 + shape - 1), rel=1e-3)
    # Shrunken: nearer to the mean of all than what the cells alone say.
    assert (np.abs(gamma - average) < np.abs(means - average)).all()
