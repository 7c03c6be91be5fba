"""Every backend computes what it says, gradients included; what it cannot do, it refuses and says who can."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import XLA_DEFAULT
from hypothesis import given, settings
from hypothesis import strategies as st

from scmbert_jax.config import MeshConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.attention import chunked
from scmbert_jax.models.attention.backends import BACKENDS, attention_backend
from scmbert_jax.models.attention.chunked import join_tokens, split_tokens, valid_tokens
from scmbert_jax.models.attention.favor import random_directions
from scmbert_jax.models.attention.kernels import splash_attend
from scmbert_jax.models.attention.shape import AttentionShape
from scmbert_jax.parallel.mesh import make_mesh

SHAPE = AttentionShape(num_heads=2, head_dim=8, dtype="float32", platform="cpu")
EXACT_HERE = ("xla", "xla_chunked")
QUERIES, KEYS = 12, 20
DIRECTIONS = random_directions(jax.random.key(5), (16, 8))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 tokens at most, so that short rows have several."""
    monkeypatch.setattr(chunked, "BLOCK", 8)


def attend_here(name):
    """Backend `name` on this machine, as a function of (q, k, v, lengths)."""
    attend = attention_backend(name, SHAPE)
    return functools.partial(attend, directions=DIRECTIONS) if name == "favor" else attend


def reference(q, k, v, lengths):
    """Softmax attention in ten lines, as it is written in papers; float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    valid = jnp.arange(k.shape[1])[None, None, None] < lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(valid, logits, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


@functools.cache
def inputs(dtype="float32", seed=0):
    """(q, k, v), and a cotangent of the output."""
    keys = jax.random.split(jax.random.key(seed), 4)
    lengths = (QUERIES, KEYS, KEYS, QUERIES)
    q, k, v, cotangent = (jax.random.normal(key, (3, length, 2, 8)) for key, length in zip(keys, lengths, strict=True))
    return tuple(x.astype(dtype) for x in (q, k, v)), cotangent


@functools.cache
def value_and_gradients(function):
    def loss(q, k, v, lengths, cotangent):
        out = function(q, k, v, lengths)
        return jnp.sum(out.astype(jnp.float32) * cotangent), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=XLA_DEFAULT)


def assert_close(ours, wanted, tolerance):
    """Every number within `tolerance` of the array's largest, or of 1."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


# bfloat16 keeps 8 bits: weights, outputs and gradients are rounded to 2^-9 of their size, some of them twice.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1.5e-2)])
@pytest.mark.parametrize("name", EXACT_HERE)
def test_an_exact_backend_equals_the_reference_with_its_gradients(name, dtype, tolerance):
    (q, k, v), cotangent = inputs(dtype)
    lengths = jnp.asarray([KEYS, 1, 9])
    (_, ours), gradients = value_and_gradients(attend_here(name))(q, k, v, lengths, cotangent)
    wanted = value_and_gradients(reference)(*(x.astype(jnp.float32) for x in (q, k, v)), lengths, cotangent)
    assert ours.dtype == q.dtype
    assert_close((ours, gradients), (wanted[0][1], wanted[1]), tolerance)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, KEYS), min_size=3, max_size=3), seed=st.integers(0, 3))
def test_chunked_attention_equals_the_reference_for_any_lengths(lengths, seed):
    (q, k, v), cotangent = inputs(seed=seed)
    lengths = jnp.asarray(lengths)
    ours = value_and_gradients(chunked.attend)(q, k, v, lengths, cotangent)
    wanted = value_and_gradients(reference)(q, k, v, lengths, cotangent)
    assert_close(ours, wanted, 1e-5)


@pytest.mark.parametrize("length", [1, 8, 9, 17, 70])
def test_tokens_in_blocks_are_the_same_tokens(length):
    x = jnp.arange(1, 1 + 2 * length * 3).reshape(2, length, 3)
    lengths = np.array([length, length // 2 + 1])

    @jax.jit
    def split_and_joined(x):
        blocks = split_tokens(x, 16)
        number, _, size, _ = blocks.shape
        assert size <= 16
        assert number * size - length < 8 * number  # padding does not grow with the block
        return join_tokens(blocks, length), join_tokens(valid_tokens(blocks, jnp.asarray(lengths)), number * size)

    joined, valid = split_and_joined(x)
    np.testing.assert_array_equal(joined, x)
    np.testing.assert_array_equal(valid, np.arange(valid.shape[1]) < lengths[:, None])


@pytest.mark.parametrize("name", [*EXACT_HERE, "favor"])
def test_padded_tokens_get_zero_gradient_and_never_nan(name):
    (q, k, v), cotangent = inputs()
    lengths = jnp.asarray([KEYS, 1, 9])
    padding = np.arange(KEYS)[None] >= np.asarray(lengths)[:, None]
    # What padding holds must not matter, however large.
    q, k, v = q.at[2, 9:].set(1e4), *(jnp.where(padding[..., None, None], 1e4, x) for x in (k, v))
    cotangent = cotangent.at[2, 9:].set(0.0)  # a loss that reads real queries only
    (_, out), gradients = value_and_gradients(attend_here(name))(q, k, v, lengths, cotangent)
    assert np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert (np.asarray(gradients[0])[2, 9:] == 0).all()
    for gradient in gradients[1:]:
        assert (np.asarray(gradient)[padding] == 0).all()
    assert (np.asarray(gradients[2])[~padding] != 0).any(axis=(1, 2)).all()


@pytest.mark.parametrize("name", EXACT_HERE)
def test_huge_logits_do_not_overflow(name):
    (q, k, v), cotangent = inputs()
    lengths = jnp.asarray([KEYS, 2, 9])
    (_, out), gradients = value_and_gradients(attend_here(name))(1e9 * q, 1e9 * k, v, lengths, cotangent)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # The largest logit takes all the weight: the output is one of the values.
    logits = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(x, np.float64) for x in (q, k)))
    logits[np.broadcast_to(np.arange(KEYS) >= np.asarray(lengths)[:, None, None, None], logits.shape)] = -np.inf
    best = logits.argmax(-1)  # [B, H, Sq]
    wanted = np.stack([np.asarray(v)[row, best[row].T, np.arange(2)] for row in range(3)])  # [B, Sq, H, Dh]
    np.testing.assert_allclose(out, wanted, rtol=1e-6)


def test_chunked_attention_takes_memory_linear_in_the_tokens(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 128)

    def temporary_bytes(name, length):
        q = jax.ShapeDtypeStruct((2, length, 2, 8), jnp.float32)
        gradients = jax.jit(
            jax.grad(lambda q, k, v, lengths: BACKENDS[name].attend(q, k, v, lengths).sum(), argnums=(0, 1, 2))
        )
        compiled = gradients.lower(q, q, q, jax.ShapeDtypeStruct((2,), jnp.int32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes("xla", 2048) > 3.5 * temporary_bytes("xla", 1024)
    assert temporary_bytes("xla_chunked", 2048) < 2.1 * temporary_bytes("xla_chunked", 1024)


@pytest.mark.parametrize("name", ["xla_chunked", "favor"])
def test_a_mesh_changes_no_number(name):
    (q, k, v), cotangent = inputs()
    q, k, v, cotangent = (jnp.concatenate([x, x[:1]]) for x in (q, k, v, cotangent))  # four rows over two devices
    arguments = q, k, v, jnp.asarray([KEYS, 1, 9, 3]), cotangent
    alone = value_and_gradients(attend_here(name))(*arguments)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        by_row = jax.sharding.PartitionSpec("fsdp")
        by_row_and_head = jax.sharding.PartitionSpec("fsdp", None, "tensor")
        placed = [jax.device_put(x, by_row_and_head if x.ndim == 4 else by_row) for x in arguments]
        together = value_and_gradients(attend_here(name))(*placed)
    assert not together[1][0].sharding.is_fully_replicated
    assert_close(together, alone, 1e-5)


# --- kernels of accelerators -----------------------------------------------------------------------------------------


def kernel_equals_the_reference(attend, dtype, tolerance):
    """Lengths that are no multiple of a block, rows of length 1, padding that gets no gradient."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (
        jax.random.normal(key, (2, n, 2, 64)) for key, n in zip(keys, (130, 140, 140, 130), strict=True)
    )
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    lengths = jnp.asarray([140, 1])
    (_, ours), gradients = value_and_gradients(attend)(q, k, v, lengths, cotangent)
    wanted = value_and_gradients(reference)(*(x.astype(jnp.float32) for x in (q, k, v)), lengths, cotangent)
    assert_close((ours, gradients), (wanted[0][1], wanted[1]), tolerance)
    for gradient in gradients[1:]:
        assert (np.asarray(gradient, np.float32)[1, 1:] == 0).all()


@pytest.mark.slow
def test_splash_equals_the_reference_with_its_gradients_on_any_mesh():
    """The kernel's own program, interpreted: on the devices of a mesh, each with its cells and heads."""
    interpreted = functools.partial(splash_attend, interpret=True)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])):
        kernel_equals_the_reference(interpreted, "float32", 1e-5)


needs_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU (JAX_PLATFORMS=cuda)")
needs_tpu = pytest.mark.skipif(jax.default_backend() != "tpu", reason="needs a TPU (JAX_PLATFORMS=tpu)")


@pytest.mark.gpu
@needs_gpu
def test_cudnn_equals_the_reference_with_its_gradients():
    kernel_equals_the_reference(BACKENDS["cudnn"].attend, "bfloat16", 1.5e-2)


@pytest.mark.tpu
@needs_tpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-2), ("bfloat16", 1.5e-2)])
def test_splash_equals_the_reference_with_its_gradients_on_a_tpu(dtype, tolerance):
    kernel_equals_the_reference(BACKENDS["splash"].attend, dtype, tolerance)


# --- what is refused -------------------------------------------------------------------------------------------------

HOPPER = AttentionShape(num_heads=8, head_dim=64, dtype="bfloat16", platform="gpu", compute_capability="9.0")
TPU = AttentionShape(num_heads=8, head_dim=64, dtype="float32", platform="tpu")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cudnn", HOPPER),
        ("cudnn", HOPPER._replace(head_dim=256)),
        ("cudnn", HOPPER._replace(head_dim=128, compute_capability="8.0")),
        ("cudnn", HOPPER._replace(compute_capability="")),  # not known while a step is traced
        ("splash", TPU),
        *((name, shape) for name in (*EXACT_HERE, "favor") for shape in (SHAPE, HOPPER, TPU)),
    ],
)
def test_what_a_backend_can_do_it_does(name, shape):
    assert attention_backend(name, shape) is BACKENDS[name].attend


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("cudnn", SHAPE, "needs an NVIDIA GPU, and this run is on cpu"),
        ("cudnn", TPU, "needs an NVIDIA GPU, and this run is on tpu"),
        (
            "cudnn",
            HOPPER._replace(compute_capability="gfx942"),
            "needs an NVIDIA GPU, and this one calls itself gfx942",
        ),
        ("cudnn", HOPPER._replace(compute_capability="7.5"), "8.0 .* and this GPU has 7.5"),
        ("cudnn", HOPPER._replace(dtype="float32"), "bfloat16 or float16, and model.compute_dtype is float32"),
        ("cudnn", HOPPER._replace(head_dim=20), "multiple of 8 and at most 256, and model.head_dim is 20"),
        ("cudnn", HOPPER._replace(head_dim=136, compute_capability="8.0"), "at most 128, and model.head_dim is 136"),
        ("cudnn", HOPPER._replace(head_dim=264), "at most 256, and model.head_dim is 264"),
        ("splash", SHAPE, "needs a TPU, and this run is on cpu"),
        ("splash", HOPPER, "needs a TPU, and this run is on gpu"),
    ],
)
def test_what_a_backend_cannot_do_is_refused_with_those_that_can(name, shape, why):
    with pytest.raises(ConfigError, match=f"model.attention is '{name}': it .*{why}") as refused:
        attention_backend(name, shape)
    message = str(refused.value)
    assert ("xla, xla_chunked, cudnn, which" in message) == (name != "cudnn" and shape.platform == "gpu")
    assert f"which compute the same as {name}, and favor, which estimates it" in message


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'flash'.*xla, xla_chunked, cudnn, splash, favor"):
        attention_backend("flash", SHAPE)


def test_the_platform_is_that_of_the_mesh():
    from scmbert_jax.models.attention.shape import shape_of

    (q, _, _), _ = inputs()
    assert shape_of(q) == SHAPE
    of_a_tpu = jax.sharding.AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("fsdp",), abstract_device=of_a_tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        assert shape_of(q).platform == "tpu"
