"""Ridge by inner products against scikit-learn's RidgeCV."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Ridge, RidgeCV

from scmbert_jax.evaluation import ridge
from scmbert_jax.evaluation.ridge import STRENGTHS, choose_strength, ridge_predict


def problem(num_cells, num_inputs, noise, seed=0):
    rng = np.random.default_rng(seed)
    x = sp.random(num_cells + 20, num_inputs, 0.3, format="csr", random_state=seed) * 3
    y = sp.csr_matrix(np.maximum(x @ rng.normal(size=(num_inputs, 7)) + noise * rng.normal(size=(x.shape[0], 7)), 0))
    return x[:num_cells], y[:num_cells], x[num_cells:]


@pytest.mark.parametrize("noise", [0.5, 30.0])
@pytest.mark.parametrize(("num_cells", "num_inputs"), [(120, 15), (40, 90)])
@pytest.mark.parametrize("dense", [False, True])
def test_strength_and_predictions_equal_scikit_learn(num_cells, num_inputs, noise, dense):
    x, y, new = problem(num_cells, num_inputs, noise)
    expected = RidgeCV(STRENGTHS).fit(x.toarray(), y.toarray())
    given = (x.toarray(), y.toarray(), new.toarray()) if dense else (x, y, new)
    predicted, strength = ridge_predict(*given)
    assert strength == expected.alpha_
    np.testing.assert_allclose(predicted, expected.predict(new.toarray()), atol=1e-4)


def test_more_noise_asks_for_more_strength():
    chosen = [choose_strength(*problem(60, 20, noise)[:2], STRENGTHS) for noise in (0.1, 50.0)]
    assert chosen[0] < chosen[1]


def test_many_cells_choose_their_strength_on_some_and_fit_on_all(monkeypatch):
    monkeypatch.setattr(ridge, "_CHOOSING_CELLS", 50)
    x, y, new = problem(200, 12, 3.0)
    predicted, strength = ridge_predict(x, y, new)
    whole = Ridge(strength).fit(x.toarray(), y.toarray()).predict(new.toarray())
    np.testing.assert_allclose(predicted, whole, atol=1e-4)
