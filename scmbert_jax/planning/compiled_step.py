"""The real training step, compiled for devices that need not exist: what it keeps in memory, what it moves.

The step is `make_train_step`'s, the state and the batch are shapes with shardings, the mesh is that of the run.
"""

import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scmbert_jax.batch import CellBatch, CellProfile, ModalityTokens
from scmbert_jax.config import ExperimentConfig, batch_covariates
from scmbert_jax.errors import ConfigError
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.models.attention.backends import attention_backend
from scmbert_jax.models.attention.shape import shape_of_run
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.parallel.mesh import RULES, check_process_order, make_mesh, replicated
from scmbert_jax.planning.program_text import Collective, collectives_of
from scmbert_jax.planning.topologies import GIB, Topology, devices_of
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import TrainState, abstract_state
from scmbert_jax.training.train_step import make_train_step


class StepMemory(NamedTuple):
    """Bytes on one chip while a step runs.

    Attributes:
      params, optimizer: the state, sharded as it is; float32.
      batch: the cells' tokens, and the constants (links of features, random directions).
      temporaries: all that lives within a step: activations kept for the backward pass, gathered parameters, gradients.
      gradients: the part of the temporaries that sums of gradients must take (one float32 for each parameter here).
      code: the program.
      other: padding of arrays to the chip's tiles, metrics.
    """

    params: int
    optimizer: int
    batch: int
    temporaries: int
    gradients: int
    code: int
    other: int

    @property
    def total(self) -> int:
        return self.params + self.optimizer + self.batch + self.temporaries + self.code + self.other


class CompiledStep(NamedTuple):
    """One objective's step.

    Attributes:
      objective: its name.
      memory: see above.
      collectives: what it moves; empty where the compiler gave up because the step does not fit.
      compiled: whether there is a program; False: it needs more memory than a chip has.
      lower_seconds, compile_seconds: tracing, and the compiler's own time.
    """

    objective: str
    memory: StepMemory
    collectives: tuple[Collective, ...]
    compiled: bool
    lower_seconds: float
    compile_seconds: float


class CompiledExperiment(NamedTuple):
    """All objectives' steps, and what they share.

    Attributes:
      steps: one for each objective.
      mesh: axis -> devices.
      num_processes: hosts of the topology.
      params: parameter path -> (shape, partition spec as text, shape on one chip).
      num_params: all of them; num_feature_params: those with a row for each feature.
    """

    steps: tuple[CompiledStep, ...]
    mesh: dict[str, int]
    num_processes: int
    params: dict[str, tuple[tuple[int, ...], str, tuple[int, ...]]]
    num_params: int
    num_feature_params: int


def compile_experiment(config: ExperimentConfig, layout: FeatureLayout, topology: Topology) -> CompiledExperiment:
    """Compiles the step of every objective of `config`. Needs a process whose JAX runs on CPU (see compile_process).

    Raises `ConfigError` for what a run on that machine would be refused for: a mesh or a batch that does not divide, an
    attention backend that the chip cannot do; and when the compiler is absent or fails for another reason than memory.
    """
    mesh = make_mesh(config.mesh, devices_of(topology))
    check_process_order(mesh, config.data.global_batch_size, config.train.num_microbatches)
    model = ModelDefinition(config, layout)
    attention_backend(config.model.attention, shape_of_run(config.model, mesh.devices.flat[0]))
    optimizer = make_optimizer(config, model)
    state = abstract_state(model, optimizer, mesh)
    constants = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), model.constants
    )
    batch = abstract_batch(config, layout, mesh)
    steps = []
    with jax.set_mesh(mesh):
        for name, objective in objectives_of(config).items():
            step = jax.jit(make_train_step(model, objective, optimizer), donate_argnums=0)
            steps.append(_compile(step, (state, constants, batch), name, topology))
    return CompiledExperiment(
        tuple(steps),
        {axis: int(size) for axis, size in mesh.shape.items()},
        len({device.process_index for device in mesh.devices.flat}),
        _sharding_table(state),
        *_sizes(model),
    )


def abstract_batch(config: ExperimentConfig, layout: FeatureLayout, mesh: Mesh) -> CellBatch:
    """The global batch of a step, every array [B] or [B, L] split over the mesh as `batch_to_devices` splits it."""
    split = NamedSharding(mesh, PartitionSpec(RULES["batch"]))

    def array(dtype: Any, *width: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.data.global_batch_size, *width), dtype, sharding=split)

    modalities = {
        name: ModalityTokens(
            feature_ids=array(jnp.int32, own.num_tokens),
            counts=array(jnp.int32, own.num_tokens),
            lengths=array(jnp.int32),
            library_size=array(jnp.float32),
            measured=array(jnp.bool_),
            num_expressed=array(jnp.int32),
            num_measured=array(jnp.int32),
            mean_log_count=array(jnp.float32),
        )
        for name, own in config.modalities.in_use().items()
    }
    covariates = {name: array(jnp.int32) for name in batch_covariates(config, layout.covariate_sizes)}
    profiles = {}
    for name in config.modalities.in_use() if config.profile_tokens else ():
        number = layout.slices[name][1] - layout.slices[name][0]
        width = min(config.profile_tokens, number)
        profiles[name] = CellProfile(
            feature_ids=array(jnp.int32, width),
            counts=array(jnp.int32, width),
            lengths=array(jnp.int32),
            panel=array(jnp.uint8, -(-number // 8)),
        )
    return CellBatch(modalities, covariates, array(jnp.int32), array(jnp.int32), profiles=profiles or None)


def _compile(step: Any, arguments: tuple[TrainState, Any, CellBatch], name: str, topology: Topology) -> CompiledStep:
    started = time.perf_counter()
    try:
        lowered = step.lower(*arguments)
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise ConfigError(_refusal(str(error), topology)) from error
    lowered_at = time.perf_counter()
    state, constants, batch = arguments
    known = {
        "params": bytes_on_a_chip(state.params),
        "optimizer": bytes_on_a_chip(state.opt_state),
        "batch": bytes_on_a_chip(batch) + bytes_on_a_chip(constants),
        "gradients": bytes_on_a_chip(state.params),
    }
    in_state = known["params"] + known["optimizer"] + known["batch"]
    # Measuring candidates on a GPU needs one, and without it Triton finds no tiles for some products: cuBLAS does them.
    options: dict[str, Any] | None = (
        {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False} if topology.platform == "gpu" else None
    )
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        used = _memory_asked_for(str(error))
        if used is None:
            raise ConfigError(_refusal(str(error), topology)) from error
        memory = StepMemory(temporaries=max(0, used - in_state), code=0, other=0, **known)
        return CompiledStep(name, memory, (), False, lowered_at - started, time.perf_counter() - lowered_at)
    seconds = time.perf_counter() - lowered_at
    found = compiled.memory_analysis()
    assert found is not None  # every platform that is planned for tells
    outside = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    memory = StepMemory(
        temporaries=int(found.temp_size_in_bytes),
        code=int(found.generated_code_size_in_bytes),
        other=max(0, int(outside) - in_state),
        **known,
    )
    collectives = collectives_of(compiled.as_text(), topology.chips_per_node)
    return CompiledStep(name, memory, collectives, True, lowered_at - started, seconds)


def bytes_on_a_chip(tree: Any) -> int:
    """Of arrays or `ShapeDtypeStruct`s with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        number = 1
        for side in leaf.sharding.shard_shape(leaf.shape):
            number *= side
        total += number * leaf.dtype.itemsize
    return total


def _memory_asked_for(message: str) -> int | None:
    """Bytes that a step needs, from the compiler's refusal; None: it refused for another reason."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    used = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    if used is None:
        return None
    return int(float(used[1]) * {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[used[2]])


def _refusal(message: str, topology: Topology) -> str:
    first = next((line for line in message.splitlines() if line.strip()), "no reason given")
    if topology.platform == "gpu" and re.search(r"cudnn|dnn", message, re.IGNORECASE):
        return (
            f"cuDNN's attention cannot be compiled for {topology.name} here: {first[:300]}. It needs cuDNN itself (pip "
            "install 'scmbert_jax[cuda13]', 3 GB). Or plan with --model.attention xla_chunked: as much memory, slower."
        )
    return f"the compiler for {topology.name} failed: {first[:600]}. Show all of it with --debug."


def _sharding_table(state: TrainState) -> dict[str, tuple[tuple[int, ...], str, tuple[int, ...]]]:
    table = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        name = "/".join(str(part.key) for part in path)
        spec = ", ".join("+".join(axes) if isinstance(axes, tuple) else str(axes) for axes in leaf.sharding.spec)
        table[name] = (tuple(leaf.shape), spec, tuple(leaf.sharding.shard_shape(leaf.shape)))
    return table


def _sizes(model: ModelDefinition) -> tuple[int, int]:
    """(all parameters, those that have a row for each feature)."""
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    sizes = [int(leaf.size) for leaf in jax.tree.leaves(model.abstract_params)]
    of_features = ["features" in axes for axes in jax.tree.leaves(model.logical_axes, is_leaf=is_axes)]
    return sum(sizes), sum(size for size, own in zip(sizes, of_features, strict=True) if own)
