"""What an attention backend is asked to serve: plain facts of a run, for checks that can say no before it starts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scmbert_jax.config import ModelConfig


class AttentionShape(NamedTuple):
    """Heads, head width, dtype name, platform name, and of NVIDIA GPUs the compute capability ("9.0"; "": not known).

    No length: every backend takes any, padding it to its own blocks where it must.
    """

    num_heads: int
    head_dim: int
    dtype: str
    platform: str
    compute_capability: str = ""


def shape_of_run(model: ModelConfig, device: jax.Device) -> AttentionShape:
    """That of a run of `model` on devices like `device`."""
    capability = str(getattr(device, "compute_capability", ""))
    return AttentionShape(model.num_heads, model.head_dim, model.compute_dtype, device.platform, capability)


def shape_of(q: jax.Array) -> AttentionShape:
    """That of queries q [B, S, H, Dh] on the devices of the current mesh (`jax.set_mesh`), or JAX's default ones."""
    # Of the mesh where there is one: a step may be compiled for devices that this process does not have.
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return AttentionShape(q.shape[2], q.shape[3], jnp.dtype(q.dtype).name, platform)
