"""The discrepancy between technical batches: its formula, what it is blind to, and any number of devices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scmbert_jax.config import MeshConfig, ObjectivesConfig, WholeProfileConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.objectives.whole_profile.batch_mixing import WIDTHS, batch_discrepancy
from scmbert_jax.objectives.whole_profile.objective import WholeProfile
from scmbert_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def cells():
    """24 cells in 6 dimensions, three batches (one cell of unknown batch), the second moved."""
    rng = np.random.default_rng(0)
    batches = np.array([-1, *[0] * 9, *[1] * 8, *[2] * 6], np.int32)
    return (rng.normal(size=(24, 6)) + 0.8 * (batches == 1)[:, None]).astype(np.float32), batches


def in_loops(x, batches):
    """The same, cell by cell and pair by pair, in float64."""
    x, known = x.astype(np.float64), np.flatnonzero(batches >= 0)
    distance = ((x[:, None] - x[None]) ** 2).sum(2)
    width = np.mean([distance[i, j] for i in known for j in known if i != j])
    total = 0.0
    for i in known:
        sides: dict[bool, list[float]] = {True: [], False: []}
        for j in known:
            if i != j:
                kernel = np.mean([np.exp(-distance[i, j] / (w * width)) for w in WIDTHS])
                sides[bool(batches[i] == batches[j])].append(kernel)
        total += np.mean(sides[True]) - np.mean(sides[False])
    return total, len(known)


def test_it_is_the_formula(cells):
    total, number = jax.jit(batch_discrepancy)(*cells)
    expected, known = in_loops(*cells)
    assert (float(number), float(total)) == (known, pytest.approx(expected, rel=1e-4))
    assert expected > 0.5  # of one batch that lies elsewhere


def test_it_grows_with_the_distance_and_not_with_the_size_of_the_embedding(cells):
    x, batches = cells
    gap = float(batch_discrepancy(x, batches)[0])
    assert float(batch_discrepancy(100.0 * x, batches)[0]) == pytest.approx(gap, rel=1e-3)
    assert float(batch_discrepancy(x + 2.0 * (batches == 1)[:, None], batches)[0]) > 2 * gap


def test_batches_drawn_alike_have_none_on_average_and_one_batch_nothing_to_compare():
    rng = np.random.default_rng(1)
    batches = np.repeat([0, 1, 2], [10, 6, 8]).astype(np.int32)
    measure = jax.jit(batch_discrepancy)
    gaps = [float(measure(rng.normal(size=(24, 4)).astype(np.float32), batches)[0]) / 24 for _ in range(300)]
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / 300**0.5
    alone, gradient = jax.value_and_grad(lambda x: batch_discrepancy(x, np.zeros(24, np.int32))[0])(jnp.ones((24, 4)))
    assert float(alone) == 0.0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("mesh_config", [MeshConfig(fsdp=8), MeshConfig(replica=2, fsdp=4)], ids=str)
def test_devices_see_each_others_cells(cells, mesh_config):
    def measure(x, batches):
        return jax.value_and_grad(lambda own: batch_discrepancy(own, batches)[0])(x)

    mesh = make_mesh(mesh_config)
    rows = NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))
    with jax.set_mesh(mesh):
        spread = jax.jit(measure)(*(jax.device_put(part, rows) for part in cells))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), spread, jax.jit(measure)(*cells))


def test_without_the_covariate_it_is_refused(tiny_config):
    own = ObjectivesConfig(whole_profile=WholeProfileConfig(weight=1.0, batch_mixing_weight=1.0))
    with pytest.raises(ConfigError, match=r"--model\.covariates technical_batch"):
        WholeProfile(replace(tiny_config, objectives=own))
