"""A function of sequences that reads a motif at one place."""

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.genome.bases import encode, one_hot

MOTIF, START = "TGACTCA", 21


class Planted:
    """How well the motif fits at its place: smooth, not linear, never flat; counts how often it is compiled."""

    def __init__(self, num_outputs=0):
        self.kernel = jnp.asarray(one_hot(encode(MOTIF))) * 2 - 0.5
        self.num_outputs = num_outputs
        self.compiled = 0

    def __call__(self, values):
        self.compiled += 1
        score = jnp.einsum("nwb,wb->n", values[:, START : START + len(MOTIF)], self.kernel)
        found = jax.nn.softplus(score - 5) + 0.01 * values[:, :, 1].sum(1)
        return found if not self.num_outputs else jnp.stack([found * (k - 1) for k in range(self.num_outputs)], 1)


def sequences_with_motif():
    """One-hot [6, 60, 4] with the motif at START, and an N at 50 of the first."""
    codes = np.random.default_rng(0).integers(0, 4, (6, 60)).astype(np.uint8)
    codes[:, START : START + len(MOTIF)] = encode(MOTIF)
    codes[0, 50] = 4
    return one_hot(codes)
