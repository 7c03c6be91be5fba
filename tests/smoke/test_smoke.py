"""The shortest proof that this host can train: `make smoke`. Runs on whatever JAX finds here: CPU, GPU or TPU.

It needs JAX, Flax, Optax, Orbax, pandas and pytest: neither TensorFlow nor anndata, and no corpus. What needs another
kind of host, or a package that is not here, is skipped with the reason.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.synthetic.cells import synthetic_batch, synthetic_layout
from data_pipelines.synthetic.networks import with_synthetic_network
from scmbert_jax.batch import CellBatch
from scmbert_jax.config import (
    DataConfig,
    ExperimentConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
)
from scmbert_jax.models.attention.backends import BACKENDS
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.parallel.mesh import batch_to_devices, make_mesh, replicated
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.checkpoint import RunCheckpoints
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import abstract_state, initial_state
from scmbert_jax.training.train_step import make_train_step

PLATFORM = jax.default_backend()
DEVICES = jax.device_count()
LAYOUT = synthetic_layout(64, 16, 32, {"technical_batch": 3})
WITH_NETWORK = with_synthetic_network(LAYOUT, 100)
TOKENS = {"rna": 16, "protein": 8, "atac": 8}
CONFIG = ExperimentConfig(
    modalities=ModalitiesConfig(
        rna=ModalityConfig(num_tokens=TOKENS["rna"]),
        protein=ModalityConfig(num_tokens=TOKENS["protein"], zero_fraction=0.0),
        atac=ModalityConfig(num_tokens=TOKENS["atac"], likelihood="bernoulli"),
    ),
    data=DataConfig(global_batch_size=8 * DEVICES, num_streams=1),
    model=ModelConfig(embed_dim=8 * DEVICES, num_layers=1, num_heads=2, head_dim=8, mlp_dim=32),
    optimizer=OptimizerConfig(warmup_steps=1),
    train=TrainConfig(num_steps=6, log_every=1, checkpoint_every=2),
)
OBJECTIVES = tuple(field.name for field in dataclasses.fields(ObjectivesConfig))


def config_of(objective: str, **model: object) -> ExperimentConfig:
    """That objective alone, over a network if it is of one, and another attention if asked for."""
    if objective == "link_prediction":
        model |= {"networks": ("network.csv",), "graph": "learned"}
    weights = {
        name: dataclasses.replace(getattr(CONFIG.objectives, name), weight=float(name == objective))
        for name in OBJECTIVES
    }
    return dataclasses.replace(
        CONFIG, objectives=ObjectivesConfig(**weights), model=dataclasses.replace(CONFIG.model, **model)
    )


def batch_at(config: ExperimentConfig, step: int) -> CellBatch:
    return synthetic_batch(
        LAYOUT, config.data.global_batch_size, TOKENS, config.seed, step, profile_tokens=config.profile_tokens
    )


class Training:
    """The jitted step of one objective on all devices of this host."""

    def __init__(self, config: ExperimentConfig, objective: str):
        self.config, self.mesh = config, make_mesh(config.mesh)
        model = ModelDefinition(config, WITH_NETWORK if config.model.networks else LAYOUT)
        optimizer = make_optimizer(config, model)
        self.abstract = abstract_state(model, optimizer, self.mesh)
        self.state = initial_state(model, optimizer, self.mesh)
        self._constants = jax.device_put(model.constants, replicated(self.mesh))
        self._step = jax.jit(make_train_step(model, objectives_of(config)[objective], optimizer))

    def after(self, state, step: int):
        """(state after the step, its loss)."""
        with jax.set_mesh(self.mesh):
            batch = batch_to_devices(batch_at(self.config, step), self.mesh)
            state, metrics = self._step(state, self._constants, batch)
            return state, float(metrics["loss"])


def assert_bit_equal(one, other) -> None:
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_the_accelerator_of_this_host_is_used():
    """A virtual environment made by `make install` has JAX for CPUs only."""
    print(f"\n{DEVICES} x {jax.devices()[0].device_kind} ({PLATFORM}), JAX {jax.__version__}")
    if os.environ.get("JAX_PLATFORMS"):
        pytest.skip(
            f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} was chosen, by `make smoke` where it sees no accelerator"
        )
    here = [kind for kind, path in (("NVIDIA GPU", "/dev/nvidia0"), ("TPU", "/dev/accel0")) if Path(path).exists()]
    assert not (here and PLATFORM == "cpu"), (
        f"this host has a {here[0]}, and JAX sees none: install jax[cuda13] or jax[tpu], or name a Python that has it: "
        "make smoke PYTHON_BIN=python3"
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_trains_and_its_state_survives_saving_bit_for_bit(objective, tmp_path):
    training = Training(config_of(objective), objective)
    state, losses = training.state, []
    for step in range(3):
        state, loss = training.after(state, step)
        losses.append(loss)
    assert np.isfinite(losses).all(), losses
    assert int(state.step) == 3
    moved = [
        not np.array_equal(*pair)
        for pair in zip(jax.tree.leaves(training.state.params), jax.tree.leaves(state.params), strict=True)
    ]
    assert sum(moved) > len(moved) / 4

    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=1)
    with jax.set_mesh(training.mesh):
        checkpoints.save(3, state)
        checkpoints.wait()
        restored = checkpoints.restore(3, training.abstract)
    checkpoints.close()
    assert_bit_equal(restored, state)
    (one, loss), (other, again) = training.after(state, 3), training.after(restored, 3)
    assert loss == again
    if PLATFORM != "gpu":  # sums by atomic additions differ from run to run there
        assert_bit_equal(one, other)


class SyntheticData:
    """Batches without a corpus; the process is gone at the batch of step `dies_at`."""

    def __init__(self, dies_at: int | None = None):
        self.layout, self.dies_at = LAYOUT, dies_at
        self.fingerprint, self.feature_space_hash = "f" * 64, "a" * 64
        self.description = {"corpora": [{"path": "made"}], "options": {}, "order_version": 1}
        self.covariates = {"technical_batch": ["1", "2", "3"]}
        self.information: dict[str, object] = {}

    def batches(self, start_step: int, stop_step: int):
        for step in range(start_step, stop_step):
            if step == self.dies_at:
                raise KeyboardInterrupt
            yield step, batch_at(CONFIG, step)

    def save_features(self, folder: Path) -> None:
        (folder / "feature_space.parquet").write_bytes(b"features")


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorboardX", "cattrs")),
    reason="needs tensorboardX and cattrs: pip install tensorboardX cattrs",
)
def test_a_run_that_is_killed_continues_from_its_checkpoint(tmp_path):
    from scmbert_jax.training.goodput import read_goodput
    from scmbert_jax.training.loop import Outcome, pretrain
    from scmbert_jax.training.run_folder import read_metrics

    with pytest.raises(KeyboardInterrupt):
        pretrain(CONFIG, SyntheticData(dies_at=5), tmp_path / "run", show_progress=False)
    assert pretrain(CONFIG, SyntheticData(), tmp_path / "run", show_progress=False) == Outcome(6)
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert read_goodput(tmp_path / "run").starts == 2


# --- kernels of accelerators -----------------------------------------------------------------------------------------

KERNELS = [
    pytest.param("gpu", "cudnn", "bfloat16", 2e-2, marks=pytest.mark.gpu),
    pytest.param("tpu", "splash", "bfloat16", 2e-2, marks=pytest.mark.tpu),
    pytest.param("tpu", "splash", "float32", 1e-2, marks=pytest.mark.tpu),
]


def needs(platform: str) -> None:
    if platform != PLATFORM:
        pytest.skip(f"needs a {platform.upper()}, this host's JAX has {PLATFORM}")


def value_and_gradients(backend: str, dtype: str):
    """(output, gradients) of attention over rows of several lengths, padded to 256; padded queries are not read."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (jax.random.normal(key, (4, 256, 4, 64)).astype(dtype) for key in keys)
    lengths = jnp.asarray([256, 200, 77, 1], jnp.int32)
    read = (jnp.arange(256)[None] < lengths[:, None])[..., None, None]

    def loss(q, k, v):
        out = jnp.where(read, BACKENDS[backend].attend(q, k, v, lengths), 0)
        return jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float64) for x in (out, *gradients)]


@pytest.mark.parametrize(("platform", "backend", "dtype", "tolerance"), KERNELS)
def test_a_kernel_computes_what_xla_computes_with_its_gradients(platform, backend, dtype, tolerance):
    needs(platform)
    for ours, wanted in zip(value_and_gradients(backend, dtype), value_and_gradients("xla", dtype), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize(("platform", "backend", "dtype", "tolerance"), KERNELS)
def test_a_step_with_the_kernel_has_the_loss_of_a_step_with_xla(platform, backend, dtype, tolerance):
    needs(platform)
    losses = []
    for name in (backend, "xla"):
        config = config_of("masked_modeling", attention=name, head_dim=64, compute_dtype=dtype)
        training = Training(config, "masked_modeling")
        losses.append(training.after(training.after(training.state, 0)[0], 1)[1])
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
