"""The BABEL-type network: its paths, what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from translation_cells import random_cells

from scmbert_jax.evaluation.metrics import mean_pearson, rmse
from scmbert_jax.evaluation.translation import babel
from scmbert_jax.evaluation.translation.babel import BabelSettings, CountsSide, PeaksSide
from scmbert_jax.evaluation.translation.babel_baseline import BabelBaseline, _prepare
from scmbert_jax.evaluation.translation.fold import make_fold
from scmbert_jax.models.negative_binomial import negative_binomial_nll

SIDES = {"rna": CountsSide((0.0, 1.0, -1.0)), "atac": PeaksSide((2, 3), (-1.0,) * 5)}


@pytest.mark.parametrize(("mean", "dispersion", "divisor"), [(0.1, 0.5, 1.0), (3.0, 2.0, 4.0), (400.0, 8.0, 30.0)])
def test_the_expected_log_is_that_of_drawn_counts(mean, dispersion, divisor):
    draws = np.random.default_rng(0).negative_binomial(dispersion, dispersion / (dispersion + mean), size=200_000)
    found = babel.expected_log1p(
        jnp.log(jnp.full((1, 1), mean)), jnp.full((1, 1), dispersion), jnp.full((1, 1), divisor)
    )
    # Drawing leaves an error of about .002; the second-order form of large means is good to about .02.
    assert float(found[0, 0]) == pytest.approx(np.log1p(draws / divisor).mean(), abs=0.025 if mean > 50 else 0.004)


@pytest.mark.slow
def test_every_encoder_is_spliced_to_every_decoder_and_peaks_weigh_133_hundredths():
    settings = BabelSettings()
    params = babel.init_params(SIDES, settings, jax.random.key(0))
    inputs = {"rna": jnp.ones((4, 3)), "atac": jnp.ones((4, 5))}
    targets = {"rna": jnp.ones((4, 3)), "atac": jnp.zeros((4, 5))}
    sizes = {"rna": jnp.ones(4), "atac": jnp.ones(4)}
    expected = 0.0
    for source in SIDES:
        latent = babel.encode(params[source]["encoder"], SIDES[source], inputs[source])
        assert latent.shape == (4, settings.latent_dim)
        log_mean, dispersion = babel.decode(params["rna"]["decoder"], SIDES["rna"], latent)
        expected += float(negative_binomial_nll(targets["rna"], log_mean, jnp.log(dispersion)).mean())
        logits, _ = babel.decode(params["atac"]["decoder"], SIDES["atac"], latent)
        expected += 1.33 * float(-jnp.log1p(-jax.nn.sigmoid(logits)).mean())
    assert float(babel.loss(params, SIDES, settings, inputs, targets, sizes)) == pytest.approx(expected, rel=1e-4)


def test_a_peak_only_meets_the_peaks_of_its_chromosome_before_the_join():
    params = babel.init_params(SIDES, BabelSettings(), jax.random.key(0))["atac"]["encoder"]
    assert {name: part["layer0"]["kernel"].shape[0] for name, part in params.items() if name != "join"} == {
        "block0": 2,
        "block1": 3,
    }


def test_peaks_open_in_too_few_or_too_many_cells_are_left_out_and_the_rest_ordered_by_chromosome():
    counts = np.zeros((100, 4), np.int32)
    counts[:4, 0] = counts[:5, 1] = counts[:10, 2] = counts[:11, 3] = 2
    prepared = _prepare("atac", sp.csr_matrix(counts), np.array(["chr2", "chr2", "chr1", "chr1"]))
    assert prepared.columns.tolist() == [2, 1]
    assert prepared.side.blocks == (1, 1)


# A peak that is open in a tenth of the cells at most is mostly chance, even knowing all of its rate.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "correlation"), [("rna", "protein", 0.3), ("rna", "atac", 0.05), ("atac", "rna", 0.1)]
)
def test_it_learns_what_the_modalities_share(source, target, correlation):
    cells = random_cells(num_cells=800)
    train = np.arange(800) < 600
    fold, truth = make_fold(cells, source, target, train, ~train)
    predicted = BabelBaseline(BabelSettings(max_epochs=60)).predict(fold, seed=0)
    assert predicted.shape == truth.shape
    # Peaks open in more than 10% of the cells are the training mean; of the others each is open in a few cells only.
    known = predicted.std(0) > 0
    assert known.sum() > 5
    truth, predicted, mean = truth[:, known], predicted[:, known], fold.train_mean[known]
    assert rmse(truth, predicted) < rmse(truth, np.tile(mean, (fold.num_test, 1)))
    assert mean_pearson(truth, predicted, per="feature") > correlation
