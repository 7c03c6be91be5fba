import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scmbert_jax.config import ModelConfig
from scmbert_jax.models.encoder import Encoder
from scmbert_jax.models.layers import LayerNorm
from scmbert_jax.models.token_sequence import TokenSequence

CONFIG = ModelConfig(embed_dim=16, num_layers=3, num_heads=2, head_dim=8, mlp_dim=64)


def tokens_of(lengths: list[int]) -> TokenSequence:
    """RNA tokens in rows 31 wide; their features and counts are nothing the encoder reads."""
    valid = jnp.arange(31)[None] < jnp.asarray(lengths)[:, None]
    numbers = valid.astype(jnp.float32)
    ids = valid.astype(jnp.int32)
    return TokenSequence(
        ids, numbers, numbers, numbers, numbers, ids * 0, valid, jnp.asarray(lengths)[:, None], (("rna", 31),)
    )


def compiled_gradients(config: ModelConfig):
    """(compiled loss and gradients of an encoder, its arguments)."""
    graph, params = nnx.split(Encoder(config, (), nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (4, 32, 16))
    tokens = tokens_of([31, 4, 0, 19])

    def loss(params, x, modality_lengths):
        tokens_here = dataclasses.replace(tokens, modality_lengths=modality_lengths)
        real = jnp.arange(32)[None, :, None] <= tokens_here.lengths[:, None, None]
        return jnp.sum(jnp.where(real, nnx.merge(graph, params)(x, tokens_here), 0.0) ** 3)

    arguments = (params, x, tokens.modality_lengths)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile(), arguments


def loss_and_gradients(config: ModelConfig):
    compiled, arguments = compiled_gradients(config)
    return jax.tree.map(np.asarray, compiled(*arguments)), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"scan_layers": False}, {"remat": "dots"}, {"remat": "full"}])
def test_scanning_and_recomputing_change_no_number(change):
    plain, _ = loss_and_gradients(CONFIG)
    changed, _ = loss_and_gradients(dataclasses.replace(CONFIG, **change))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(changed), strict=True):
        # float32, other fusions; gradients of a cubic loss reach tens
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_layers_that_are_not_scanned_do_not_add_up_the_gradients_of_all_later_ones():
    """What the transposed operand of a weight's gradient is made of does not grow with the number of layers."""

    def most_read(num_layers: int) -> int:
        config = dataclasses.replace(CONFIG, num_layers=num_layers, scan_layers=False)
        text = compiled_gradients(config)[0].as_text()
        fused = [part.strip() for part in text.split("\n\n") if part.strip().startswith("%fused_computation")]
        copies = [part.splitlines()[0].count(": f32") for part in fused if " copy(" in part]
        assert len(copies) > num_layers
        return max(copies)

    assert most_read(6) == most_read(2)


def test_full_recomputation_takes_less_memory_than_none():
    _, without = loss_and_gradients(CONFIG)
    _, with_remat = loss_and_gradients(dataclasses.replace(CONFIG, remat="full"))
    assert with_remat < 0.8 * without


def test_layer_norm_is_computed_in_float32():
    x = (jax.random.normal(jax.random.key(0), (4, 64)) * 3 + 100).astype(jnp.bfloat16)
    y = LayerNorm(64)(x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=0.02)  # half a bfloat16 step at 3


@pytest.mark.slow
def test_bfloat16_compute_stays_close_to_float32(tiny_config, tiny_layout, tiny_batch):
    from scmbert_jax.scmbert import ModelDefinition

    def embedding(dtype):
        config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, compute_dtype=dtype))
        definition = ModelDefinition(config, tiny_layout)
        model = definition.merge(jax.jit(definition.init)(jax.random.key(0)), definition.constants)
        return np.asarray(model.cell_embedding(model.feature_table(), tiny_batch()))

    single, half = embedding("float32"), embedding("bfloat16")
    assert not np.array_equal(single, half)
    assert np.abs(single - half).max() < 0.15  # 8 bits of mantissa through two layers, outputs of order 1
