"""Encoders of a matrix of K regions by C columns (regulators, accessibility): a state per region.

`SwinRegions` reads the matrix as a picture: patches of it attend to each other within windows over both axes, which
are shifted by half a window in every second layer (Liu et al. 2021). Columns have no neighbours by nature, so a column
of patches has weights of its own. `RegionSet` reads a row per region, as GET does, and does not know their order.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import RegionConfig
from scmbert_jax.models.dna.present_first import encode_present
from scmbert_jax.models.encoder import Encoder, EncoderBlock
from scmbert_jax.models.layers import LayerNorm, linear
from scmbert_jax.models.parameters import parameter, weight
from scmbert_jax.parallel.mesh import constrain


class RegionSet(nnx.Module):
    """A transformer over a set of regions."""

    def __init__(self, model: ModelConfig, regions: RegionConfig, num_columns: int, rngs: nnx.Rngs):
        dim = model.embed_dim
        self.rows = weight(rngs, (num_columns, dim), num_columns, (None, "embed"))
        self.first, self.hidden = _vector(rngs, dim), _vector(rngs, dim)
        self.encoder = Encoder(replace(model, num_layers=regions.num_layers), (), rngs)
        self.dtype = jnp.dtype(model.compute_dtype)

    def __call__(self, matrix: jax.Array, present: jax.Array, hidden: jax.Array | None = None) -> jax.Array:
        """As `SwinRegions`."""
        x = linear(_shown(matrix, present, hidden).astype(self.dtype), self.rows[...].astype(self.dtype))
        if hidden is not None:
            x = x + jnp.where(hidden[..., None], self.hidden[...].astype(self.dtype)[None, None], 0)
        return encode_present(self.encoder, x, present, self.first[...])[1]


class SwinRegions(nnx.Module):
    """Shifted windows over patches of `patch_regions` by `patch_columns`."""

    def __init__(self, model: ModelConfig, regions: RegionConfig, num_columns: int, rngs: nnx.Rngs):
        self.config, dim = regions, model.embed_dim
        high, wide = regions.patch_regions, regions.patch_columns
        self.grid = -(-regions.num_regions // high), -(-num_columns // wide)
        self.patches = weight(rngs, (self.grid[1], high * wide, dim), high * wide, (None, None, "embed"))
        self.region_places = _vectors(rngs, self.grid[0], dim)
        self.column_places = _vectors(rngs, self.grid[1], dim)
        self.first, self.hidden = _vector(rngs, dim), _vector(rngs, dim)
        self.blocks: Any = nnx.List([EncoderBlock(model, 1, rngs) for _ in range(regions.num_layers)])
        self.norm = LayerNorm(dim, model.norm_epsilon)
        self.regions: Any = nnx.data(None)
        if high > 1:
            self.regions = weight(rngs, (dim, high, dim), dim, ("embed", None, None))
        self.dtype = jnp.dtype(model.compute_dtype)

    def __call__(self, matrix: jax.Array, present: jax.Array, hidden: jax.Array | None = None) -> jax.Array:
        """Args:
          matrix: float32 [B, K, C].
          present: bool [B, K]; a region that is not there is read by none.
          hidden: bool [B, K], regions that are there but must not be seen; None: none.

        Returns: [B, K, D]; of absent regions unspecified but finite.
        """
        (rows, columns), high = self.grid, self.config.patch_regions
        number, num_regions, num_columns = matrix.shape
        missing = rows * high - num_regions, columns * self.config.patch_columns - num_columns
        x = _shown(matrix, present, hidden).astype(self.dtype)
        x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]))).reshape(number, rows, high, columns, -1)
        x = jnp.einsum("nrhcw,chwd->nrcd", x, self._patch_weights())
        x = x + self.region_places[...].astype(x.dtype)[None, :, None]
        x = x + self.column_places[...].astype(x.dtype)[None, None]
        if hidden is not None:
            part = jnp.pad(hidden, ((0, 0), (0, missing[0]))).reshape(number, rows, high).mean(axis=2)
            x = x + (part.astype(x.dtype)[..., None] * self.hidden[...].astype(x.dtype)[None, None])[:, :, None]
        there = jnp.pad(present, ((0, 0), (0, missing[0]))).reshape(number, rows, high).any(axis=2)
        for layer, block in enumerate(self.blocks):
            x = self._within_windows(block, x, there, shifted=layer % 2 == 1)
        states = self.norm(x).mean(axis=2)  # [B, K / high, D]
        if self.regions is not None:
            states = linear(states, self.regions[...].astype(x.dtype)).reshape(number, rows * high, -1)
        return constrain(states[:, :num_regions], "batch", "length", "embed")

    def _patch_weights(self) -> jax.Array:
        """[columns of patches, regions of a patch, columns of a patch, D]."""
        own = self.patches[...].astype(self.dtype)
        return own.reshape(len(own), self.config.patch_regions, -1, own.shape[-1])

    def _within_windows(self, block: EncoderBlock, x: jax.Array, there: jax.Array, shifted: bool) -> jax.Array:
        """x [B, R, C, D] -> the same; there bool [B, R]: patches that attend and are attended to."""
        number, rows, columns, dim = x.shape
        sizes = min(self.config.window_regions, rows), min(self.config.window_columns, columns)
        # A shifted grid begins before the first patch; one that a single window covers has nothing to shift.
        before = tuple(
            size - size // 2 if shifted and size < all_of else 0
            for size, all_of in zip(sizes, (rows, columns), strict=True)
        )
        after = tuple(
            -(start + all_of) % size for size, all_of, start in zip(sizes, (rows, columns), before, strict=True)
        )
        margins = ((0, 0), (before[0], after[0]), (before[1], after[1]))
        padded = jnp.pad(x, (*margins, (0, 0)))
        present = jnp.pad(jnp.broadcast_to(there[..., None], (number, rows, columns)), margins)
        high, wide = padded.shape[1] // sizes[0], padded.shape[2] // sizes[1]

        def windows(of_grid: jax.Array) -> jax.Array:
            """[B, R, C, ...] -> [B * windows, patches of a window, ...]."""
            parts = of_grid.reshape(number, high, sizes[0], wide, sizes[1], *of_grid.shape[3:])
            return jnp.swapaxes(parts, 2, 3).reshape(-1, sizes[0] * sizes[1], *of_grid.shape[3:])

        apply = partial(block, experts=())
        states = encode_present(apply, windows(padded), windows(present), self.first[...])[1]
        states = jnp.swapaxes(states.reshape(number, high, wide, sizes[0], sizes[1], dim), 2, 3)
        states = states.reshape(padded.shape)
        return states[:, before[0] : before[0] + rows, before[1] : before[1] + columns]


REGION_ENCODERS: dict[str, type[SwinRegions] | type[RegionSet]] = {"swin": SwinRegions, "set": RegionSet}


def make_region_encoder(
    model: ModelConfig, regions: RegionConfig, num_columns: int, rngs: nnx.Rngs
) -> SwinRegions | RegionSet:
    """The encoder that `regions.encoder` asks for, of matrices [B, num_regions, num_columns]."""
    return REGION_ENCODERS[regions.encoder](model, regions, num_columns, rngs)


def _shown(matrix: jax.Array, present: jax.Array, hidden: jax.Array | None) -> jax.Array:
    """The matrix with zeros where nothing may be seen."""
    seen = present if hidden is None else present & ~hidden
    return jnp.where(seen[..., None], matrix, 0)


def _vector(rngs: nnx.Rngs, dim: int) -> nnx.Param:
    return parameter(jax.random.normal(rngs.params(), (dim,)) * 0.1, ("embed",), "embedding")


def _vectors(rngs: nnx.Rngs, number: int, dim: int) -> nnx.Param:
    return parameter(jax.random.normal(rngs.params(), (number, dim)) * 0.1, (None, "embed"), "embedding")
