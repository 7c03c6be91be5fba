"""Rows picked from a table that is spread over devices, and their gradient, are those of plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scmbert_jax.config import MeshConfig
from scmbert_jax.parallel.mesh import make_mesh, sharding
from scmbert_jax.parallel.table_rows import pick_rows, sum_of_linked_rows, whole

KEYS = jax.random.split(jax.random.key(0), 3)
TABLE = jax.random.normal(KEYS[0], (64, 6))
IDS = jax.random.randint(KEYS[1], (16, 5), 0, 64)
LINKED = jax.random.randint(KEYS[2], (64, 3), -1, 64)  # -1: fewer than three


def ours(table):
    table = whole(table)
    return (jnp.sin(pick_rows(table, IDS)) ** 2).sum() + jnp.cos(sum_of_linked_rows(table, LINKED)).sum()


def plain(table):
    linked = jnp.where((LINKED >= 0)[..., None], table[LINKED], 0.0).sum(axis=1)
    return (jnp.sin(table[IDS]) ** 2).sum() + jnp.cos(linked).sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh_config",
    [None, MeshConfig(fsdp=8), MeshConfig(replica=2, fsdp=4), MeshConfig(replica=2, fsdp=2, tensor=2)],
    ids=["no_mesh", "fsdp8", "replica2_fsdp4", "all_axes"],
)
def test_values_and_gradients_are_those_of_plain_indexing(mesh_config):
    expected, expected_gradient = jax.value_and_grad(plain)(TABLE)
    if mesh_config is None:
        value, gradient = jax.value_and_grad(ours)(TABLE)
    else:
        mesh = make_mesh(mesh_config)
        lies = sharding(mesh, ("features", None), TABLE.shape, "table")
        with jax.set_mesh(mesh):
            value, gradient = jax.jit(jax.value_and_grad(ours))(jax.device_put(TABLE, lies))
        assert gradient.sharding.is_equivalent_to(lies, 2)  # summed where the rows lie, not everywhere
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-6)  # float32 sums in another order


def test_what_moves_is_the_table_and_not_the_tokens_of_all_devices():
    """Of 8,000 tokens of width 6 and a table of 64 rows, the largest array that moves is the table."""
    mesh = make_mesh(MeshConfig())
    ids = jnp.tile(IDS, (1, 100))

    def loss(table):
        return (jnp.sin(pick_rows(table, ids)) ** 2).sum()

    from scmbert_jax.planning.program_text import collectives_of

    with jax.set_mesh(mesh):
        table = jax.device_put(TABLE, sharding(mesh, ("features", None), TABLE.shape, "table"))
        text = jax.jit(jax.grad(loss)).lower(table).compile().as_text()
    moved = collectives_of(text, 8)
    assert {one.kind for one in moved} >= {"all-gather"}
    assert max(one.payload for one in moved) == TABLE.nbytes
