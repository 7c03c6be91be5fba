"""Every random key of a run, derived from its seed: threefry, whose numbers do not depend on how arrays are sharded.

    key(seed) -> step number -> row of the batch -> feature        masks, tokens that are left out
    key(seed) -> 2**31 - 1 -> row -> feature                       the same of held-out losses (evaluators/)
    key(seed) -> INIT -> count                                     parameters
    key(seed) -> EVALUATION -> row -> feature                      tokens that `evaluate pretraining` masks
    key(seed) -> place in the model -> number                      random directions of `favor` (models/attention)
    step key  -> LINKS, EDGES, CONTEXT, or FEATURES -> modality    what all cells of a step share
    step key  -> NEIGHBOURS -> layer                               which neighbours rows hear
    row key   -> COVARIATES                                        whether a cell's covariates are hidden
    row key   -> BASES, REGIONS, ACCESSIBILITY                     what is hidden of DNA and of the regions around it
    row key   -> CELL_TYPE, NEGATIVE                               in which cell type; what it is told apart from

An arrow is one `jax.random.fold_in`, which gives two numbers two keys. So no two draws share random numbers as long as
a `KeyPurpose` is none of the numbers that are folded into the same key, and nothing is drawn with a key from which
others are folded.
"""

from enum import IntEnum

import jax


class KeyPurpose(IntEnum):
    """What a key is for, as the number that is folded in. Above every step, row, feature and count: these are int32.

    Numbers stay: others would give a continued run other draws.
    """

    COVARIATES = 2**31 - 1  # of a row's key: which cells hide their covariates; no feature table is that long
    INIT = 2**31  # of the run's key: initial parameters
    LINKS = 2**31 + 1  # of a step's key: which feature links contrastive_alignment compares
    FEATURES = 2**31 + 2  # of a step's key, then by modality: the features that all cells of a step predict
    EVALUATION = 2**31 + 3  # of the key of an evaluation's seed: the masks of evaluation/pretraining
    EDGES = 2**31 + 4  # of a step's key: the pairs that link_prediction asks about
    CONTEXT = 2**31 + 5  # of a step's key: whether rows of genes know the cells of the step
    NEIGHBOURS = 2**31 + 6  # of a step's key: edges that are dropped, and neighbours that rows hear
    BASES = 2**31 + 7  # of a row's key, as all below: which bases masked_sequence hides
    REGIONS = 2**31 + 8  # the regions that masked_regions hides
    ACCESSIBILITY = 2**31 + 9  # the regions whose accessibility alone it hides
    CELL_TYPE = 2**31 + 10  # the cell type whose accessibility a sequence is read with
    NEGATIVE = 2**31 + 11  # the hard negatives of matching


def key_for(key: jax.Array, purpose: KeyPurpose) -> jax.Array:
    """The key of `purpose`, from that of a run, a step or a row."""
    return jax.random.fold_in(key, int(purpose))


def run_key(seed: int) -> jax.Array:
    """The key all others of a run come from; nothing is drawn with it."""
    return jax.random.key(seed, impl="threefry2x32")


def init_key(seed: int) -> jax.Array:
    """The key of the initial parameters (`ModelDefinition.init`)."""
    return key_for(run_key(seed), KeyPurpose.INIT)


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """The key of a training step."""
    return jax.random.fold_in(run_key(seed), step)


def row_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """One key per row of the global batch: pure function of (seed, step, row). row int32 [B] -> keys [B]."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(row)
