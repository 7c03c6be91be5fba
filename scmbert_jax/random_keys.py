"""Every random key of a run, derived from its seed: threefry, whose numbers do not depend on how arrays are sharded.

    key(seed) -> step number -> row of the batch -> feature        masks, tokens that are left out
    key(seed) -> count                                             parameters; steps have these keys, too
    key(seed) -> place in the model -> number                      random directions of `favor` (models/attention)
    step key  -> LINKS, or FEATURES -> modality                    what all cells of a step share
    row key   -> COVARIATES                                        whether a cell's covariates are hidden

An arrow is one `jax.random.fold_in`, which gives two numbers two keys. So no two draws of a step share random numbers
as long as a `KeyPurpose` is none of the numbers that are folded into the same key. Nothing is drawn with the key of a
step itself, only with those folded from it.
"""

from enum import IntEnum

import jax


class KeyPurpose(IntEnum):
    """What a key is for, as the number that is folded in. Above every step, row, feature and count: these are int32.

    Numbers stay: others would give a continued run other draws.
    """

    COVARIATES = 2**31 - 1  # of a row's key: which cells hide their covariates; no feature table is that long
    LINKS = 2**31 + 1  # of a step's key: which feature links contrastive_alignment compares
    FEATURES = 2**31 + 2  # of a step's key, then by modality: the features that all cells of a step predict


def key_for(key: jax.Array, purpose: KeyPurpose) -> jax.Array:
    """The key of `purpose`, from that of a run, a step or a row."""
    return jax.random.fold_in(key, int(purpose))


def run_key(seed: int) -> jax.Array:
    """The key all others of a run come from; nothing is drawn with it."""
    return jax.random.key(seed, impl="threefry2x32")


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """The key of a training step."""
    return jax.random.fold_in(run_key(seed), step)


def row_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """One key per row of the global batch: pure function of (seed, step, row). row int32 [B] -> keys [B]."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(row)
