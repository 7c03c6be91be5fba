import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import RegionConfig
from scmbert_jax.models.dna.fusion import Fusion
from scmbert_jax.models.dna.region_encoder import make_region_encoder

MODEL = ModelConfig(embed_dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=16)
SWIN = RegionConfig(num_regions=7, num_layers=1, patch_regions=1, patch_columns=2, window_regions=2, window_columns=2)
SET = RegionConfig(encoder="set", num_regions=7, num_layers=1)
MATRIX = np.random.default_rng(0).normal(size=(2, 7, 9)).astype(np.float32)
PRESENT = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 0]], bool)


def encoder(config):
    own = make_region_encoder(MODEL, config, 9, nnx.Rngs(0))
    return own, jax.jit(lambda matrix, present, hidden=None: own(matrix, present, hidden))


def reached_by(encode, region, column):
    """bool [K]: regions whose states a number of the matrix reaches."""
    changed = MATRIX.copy()
    changed[0, region, column] += 1
    difference = np.abs(np.asarray(encode(MATRIX, PRESENT)[0] - encode(changed, PRESENT)[0])).max(-1)
    return difference > 1e-6


def test_windows_are_shifted_in_every_second_layer():
    _, one = encoder(SWIN)
    assert reached_by(one, 1, 0).nonzero()[0].tolist() == [0, 1]
    assert reached_by(one, 6, 0).nonzero()[0].tolist() == [6]  # the last window has one region
    _, two = encoder(dataclasses.replace(SWIN, num_layers=2))
    assert reached_by(two, 1, 0).nonzero()[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("config", [dataclasses.replace(SWIN, num_layers=2, patch_regions=2), SET], ids=["swin", "set"])
def test_regions_that_are_absent_or_hidden_are_not_read(config):
    _, encode = encoder(config)
    hidden = np.zeros_like(PRESENT)
    hidden[0, 3] = True
    other = MATRIX.copy()
    other[1, [0, 3, 6]] = 50.0
    other[0, 3] = 50.0
    ours, theirs = (np.asarray(encode(matrix, PRESENT, hidden)) for matrix in (MATRIX, other))
    np.testing.assert_array_equal(ours[PRESENT], theirs[PRESENT])
    assert np.isfinite(ours).all()
    seen = np.asarray(encode(MATRIX, PRESENT, np.zeros_like(hidden)))
    assert np.abs(seen - ours)[0, 3].max() > 0.01


def test_a_set_has_no_order_and_a_picture_has():
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    for config, same in ((SET, True), (dataclasses.replace(SWIN, num_layers=2), False)):
        _, encode = encoder(config)
        moved = np.asarray(encode(MATRIX[:, order], PRESENT[:, order]))
        there = np.asarray(encode(MATRIX, PRESENT))[:, order]
        close = np.allclose(moved[PRESENT[:, order]], there[PRESENT[:, order]], atol=1e-5)
        assert close == same


def test_sequence_and_regions_hear_each_other_but_nothing_absent():
    own = Fusion(MODEL, SET, nnx.Rngs(0))
    fuse = jax.jit(lambda *arguments: own(*arguments))
    sequence = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)
    regions = np.random.default_rng(2).normal(size=(2, 7, 8)).astype(np.float32)
    lengths = jnp.array([5, 3])
    plain = fuse(sequence, lengths, regions, PRESENT)
    absent = fuse(np.where(np.arange(5)[None, :, None] < 3, sequence, 9.0), lengths, regions, PRESENT)
    np.testing.assert_array_equal(plain.pooled[1], absent.pooled[1])
    absent = fuse(sequence, lengths, np.where(PRESENT[..., None], regions, 9.0), PRESENT)
    np.testing.assert_array_equal(plain.pooled, absent.pooled)
    heard = fuse(sequence, lengths, np.where(np.arange(7)[None, :, None] == 4, 9.0, regions), PRESENT)
    for ours, theirs in zip(plain, heard, strict=True):
        assert np.abs(np.asarray(ours - theirs)[:, :3]).max() > 0.01
