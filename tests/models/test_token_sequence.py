import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scmbert_jax.batch import CellBatch, ModalityTokens
from scmbert_jax.modalities import MODALITIES
from scmbert_jax.models.token_sequence import (
    TokenSequence,
    join_modalities,
    pack_tokens,
    split_modalities,
    subsample_tokens,
)

WIDTHS = {"rna": 5, "protein": 3, "atac": 4}


def tokens(ids, lengths) -> ModalityTokens:
    ids, lengths = np.asarray(ids, np.int32), np.asarray(lengths, np.int32)
    libraries = np.asarray([100.0, 200.0], np.float32)
    return ModalityTokens(ids, ids * 10, lengths, libraries, lengths > 0, lengths, lengths, lengths * 0.0)


def mosaic(lengths: dict[str, list[int]]) -> CellBatch:
    """Two cells with these numbers of real tokens; every token's feature id is another."""
    modalities, first = {}, 1
    for name, width in WIDTHS.items():
        ids = first + np.arange(2 * width).reshape(2, width)
        real = np.arange(width) < np.asarray(lengths[name])[:, None]
        modalities[name] = tokens(np.where(real, ids, 0), lengths[name])
        first += 2 * width
    return CellBatch(modalities, {}, np.arange(2, dtype=np.int32), np.arange(2, dtype=np.int32))


cells = st.fixed_dictionaries(
    {name: st.lists(st.integers(0, width), min_size=2, max_size=2) for name, width in WIDTHS.items()}
)


@pytest.mark.slow
def test_packing_puts_real_tokens_first_and_keeps_their_order():
    batch = CellBatch(
        {"rna": tokens([[1, 2, 0], [3, 0, 0]], [2, 1]), "protein": tokens([[7, 0], [8, 9]], [1, 2])},
        {},
        np.arange(2, dtype=np.int32),
        np.arange(2, dtype=np.int32),
    )
    packed = pack_tokens(batch)
    assert packed.lengths.tolist() == [3, 3]
    assert packed.feature_ids[:, :3].tolist() == [[1, 2, 7], [3, 8, 9]]
    assert packed.counts[:, :3].tolist() == [[10, 20, 70], [30, 80, 90]]
    assert packed.modality[:, :3].tolist() == [[0, 0, 1], [0, 1, 1]]
    assert packed.library_size[0, :3].tolist() == [100, 100, 100]
    assert packed.valid.sum(1).tolist() == [3, 3]


@pytest.mark.slow
def test_modalities_stand_in_their_own_order_inside_a_jitted_function_too():
    """JAX sorts the keys of a dict: atac would come first."""
    batch = mosaic({"rna": [5, 2], "protein": [2, 3], "atac": [4, 1]})
    turned = batch._replace(modalities=dict(reversed(batch.modalities.items())))
    for packed in (pack_tokens(batch), jax.jit(pack_tokens)(batch), pack_tokens(turned)):
        assert [name for name, _ in packed.widths] == ["rna", "protein", "atac"]
        assert packed.modality[0, :11].tolist() == [0] * 5 + [1] * 2 + [2] * 4


def test_packing_one_modality_reads_no_other():
    lengths = {"rna": [5, 0], "protein": [2, 3], "atac": [4, 1]}
    batch = mosaic(lengths)
    poisoned = batch._replace(
        modalities={name: own if name == "protein" else None for name, own in batch.modalities.items()}
    )
    packed = pack_tokens(poisoned, ("protein",))
    assert packed.widths == (("protein", 3),)
    assert packed.lengths.tolist() == [2, 3]
    np.testing.assert_array_equal(packed.feature_ids, batch.modalities["protein"].feature_ids)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(cells)
def test_modalities_are_taken_apart_and_put_together_again(lengths):
    packed = pack_tokens(mosaic(lengths))
    x = jax.random.normal(jax.random.key(0), (*packed.valid.shape, 2))
    parts = split_modalities(x, packed)
    for part, (name, width) in zip(parts, packed.widths, strict=True):
        assert part.shape == (2, width, 2)
        for row in range(2):
            mine = np.asarray(packed.valid & (packed.modality == MODALITIES.index(name)))[row]
            np.testing.assert_array_equal(part[row, : lengths[name][row]], x[row][mine])
    joined = np.asarray(join_modalities(parts, packed))
    np.testing.assert_array_equal(joined[packed.valid], np.asarray(x)[packed.valid])
    assert np.isfinite(joined).all()


@cache
def many_cells() -> TokenSequence:
    """64 cells with 0 to 12 of 12 possible tokens, each standing for several features."""
    lengths = np.arange(64) % 13
    real = np.arange(12) < lengths[:, None]
    counts = np.where(real, np.arange(12) % 3, 0).astype(np.int32)
    expressed = (counts > 0).sum(1)
    own = ModalityTokens(
        np.where(real, np.arange(12) + 1, 0).astype(np.int32),
        counts,
        lengths.astype(np.int32),
        np.full(64, 50.0, np.float32),
        lengths > 0,
        (3 * expressed).astype(np.int32),
        np.where(lengths > 0, 3 * expressed + 20, 0).astype(np.int32),
        np.zeros(64, np.float32),
    )
    return pack_tokens(CellBatch({"rna": own}, {}, np.arange(64), np.arange(64)))


@pytest.mark.slow
def test_a_part_of_the_tokens_has_the_stated_fraction_and_no_token_twice():
    whole = many_cells()
    part = subsample_tokens(whole, 0.4, jax.random.split(jax.random.key(0), 64))
    assert part.widths == (("rna", 5),)
    np.testing.assert_array_equal(part.lengths, np.ceil(0.4 * np.asarray(whole.lengths)))
    np.testing.assert_array_equal(np.asarray(part.valid).sum(1), part.lengths)
    for row in range(64):
        drawn = np.asarray(part.feature_ids[row])[np.asarray(part.valid[row])]
        assert len(set(drawn.tolist())) == len(drawn)
        assert set(drawn.tolist()) <= set(np.asarray(whole.feature_ids[row])[np.asarray(whole.valid[row])].tolist())
        # each with its own count
        np.testing.assert_array_equal(np.asarray(part.counts[row])[np.asarray(part.valid[row])], (drawn - 1) % 3)


@pytest.mark.slow
def test_a_part_of_the_tokens_stands_for_as_many_features_on_average():
    whole = many_cells()

    def weights(key):
        return subsample_tokens(whole, 0.5, jax.random.split(key, 64)).weight.sum(1)

    drawn = np.asarray(jax.vmap(weights)(jax.random.split(jax.random.key(1), 400)))
    wanted = np.asarray(whole.weight).sum(1)
    # Rows with an even number of tokens: exactly half of them; others a little more, which the factor makes up for.
    assert np.abs(drawn.mean(0) - wanted).max() < 0.12 * wanted.max()
    assert (drawn[:, wanted == 0] == 0).all()


def test_every_token_is_drawn_equally_often_whatever_the_padding():
    whole = many_cells()
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 8))) if x.shape[1] == 12 else x, whole)
    wide = dataclasses.replace(wide, widths=(("rna", 20),))
    keys = jax.random.split(jax.random.key(2), 64)

    def chosen(tokens):
        part = subsample_tokens(tokens, 0.5, keys)
        return [
            set(ids[ok].tolist()) for ids, ok in zip(np.asarray(part.feature_ids), np.asarray(part.valid), strict=True)
        ]

    assert chosen(whole) == chosen(wide)


def test_all_of_the_tokens_are_left_as_they_are():
    assert subsample_tokens(many_cells(), 1.0, None) is many_cells()
