"""What the rows of a regulator and of a gene say of an edge between them: is there one, and of which sign?

Each decoder takes rows float [..., D] of sources and of targets, and gives logits [..., 2]:

    [..., 0]   that there is an edge
    [..., 1]   that it activates, given that there is one; below 0: that it represses

All are directed: source and target exchanged give other logits. A decoder: a class, and a line in `LINK_DECODERS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.models.parameters import filled, weight

EDGE, SIGN = 0, 1  # places of the last axis


class Bilinear(nnx.Module):
    """source' W_k target for k = edge, sign, and what each side says alone (how many edges it has)."""

    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.form = weight(rngs, (2, dim, dim), dim * dim, (None, None, None))
        self.source, self.target = (filled(0.0, (dim, 2), (None, None), "matrix") for _ in range(2))
        self.bias = filled(0.0, (2,), (None,), "bias")

    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        asked = jnp.einsum("...d,kde->...ke", source, self.form[...])
        both = jnp.einsum("...ke,...e->...k", asked, target)
        alone = source @ self.source[...] + target @ self.target[...]
        return both + alone + jnp.broadcast_to(self.bias[...], both.shape)


class Translational(nnx.Module):
    """A gene lies where its regulator's row is moved to, by one way for activation and another for repression.

    With d = |source + way - target|^2 / D of either way (TransE: Bordes et al. 2013), an edge is there where one of the
    two is short, and is of the sign of the shorter. What a side says alone has no place here.
    """

    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.ways = weight(rngs, (2, dim), dim, (None, None))  # activates, represses
        self.margin = filled(1.0, (), (), "scalar")
        self.scale = filled(1.0, (), (), "scalar")

    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        # |s - t + w|^2 = |s - t|^2 + 2 (s - t) w + |w|^2: no array of [..., 2, D]
        apart, ways = source - target, self.ways[...]
        square, moved = (apart * apart).sum(-1, keepdims=True), 2 * apart @ ways.T
        own = jnp.broadcast_to((ways * ways).sum(-1), moved.shape)
        near = self.scale[...] * (self.margin[...] - (square + moved + own) / apart.shape[-1])  # [..., 2]
        activates, represses = near[..., 0], near[..., 1]
        return jnp.stack([jnp.logaddexp(activates, represses), activates - represses], axis=-1)


class Perceptron(nnx.Module):
    """`Bilinear`, and a perceptron of one hidden layer of both rows and of their product."""

    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.bilinear = Bilinear(dim, rngs)
        self.hidden = weight(rngs, (3, dim, dim), 3 * dim, (None, None, None))
        self.out = filled(0.0, (dim, 2), (None, None), "matrix")

    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        of_source, of_target, of_both = self.hidden[...]
        bent = jax.nn.gelu(source @ of_source + target @ of_target + (source * target) @ of_both)
        return self.bilinear(source, target) + bent @ self.out[...]


LinkDecoder = Bilinear | Translational | Perceptron
LINK_DECODERS: dict[str, Callable[[int, nnx.Rngs], LinkDecoder]] = {
    "bilinear": Bilinear,
    "translational": Translational,
    "mlp": Perceptron,
}
