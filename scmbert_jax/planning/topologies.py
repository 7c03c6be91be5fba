"""The machines that a plan can be made for, and their devices as JAX sees them without owning any."""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any, Literal

import jax

from scmbert_jax.errors import ConfigError
from scmbert_jax.planning.gpu_target import H200_TARGET

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, per direction and at its best; what makers publish, rounded (Google Cloud's pages "TPU v5e", "TPU v5p",
    "TPU v6e"; NVIDIA's data sheet "H200", dense figures).

    Attributes:
      memory_bytes: HBM that a program can use.
      flops: bfloat16 matrix products per second; 0: no machine of this kind is sold.
      memory_bandwidth: bytes per second to and from HBM.
      link_bandwidth: bytes per second that a chip sends to others of its slice (ICI: half of the bidirectional figure)
        or of its node (NVLink).
      network_bandwidth: bytes per second that a chip sends to other slices or nodes.
      dollars_per_hour: an ASSUMPTION: on-demand list prices of 2025 in the US, which change and differ.
      kernel: the attention backend made for it.
    """

    name: str
    memory_bytes: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    dollars_per_hour: float
    kernel: str


V5E = Chip("TPU v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, 3.1e9, 1.20, "splash")
V5P = Chip("TPU v5p", int(95.0 * GIB), 459e12, 2765e9, 600e9, 6.25e9, 4.20, "splash")
V6E = Chip("TPU v6e", int(31.25 * GIB), 918e12, 1638e9, 400e9, 12.5e9, 2.70, "splash")
# 8 GPUs a node behind NVSwitch, one 400 Gb/s network card for each. 10% of the memory is left to CUDA, NCCL and the
# allocator's own losses.
H200 = Chip("H200", int(0.9 * 141e9), 989e12, 4800e9, 450e9, 50e9, 4.00, "cudnn")
CPU = Chip("a CPU device", 64 * GIB, 0.0, 0.0, 0.0, 0.0, 0.0, "xla_chunked")


@dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod, GPUs in nodes, or devices that one CPU simulates.

    Attributes:
      name: as people say it; Google counts TensorCores in v5p-N, two to a chip.
      num_chips: also JAX's devices.
      chips_per_node: chips that reach each other without the network between nodes or slices.
      description: what the compiler calls it.
    """

    name: str
    chip: Chip
    platform: Literal["tpu", "gpu", "cpu"]
    num_chips: int
    chips_per_node: int
    description: str


def _tpu(name: str, chip: Chip, kind: str, shape: tuple[int, ...]) -> Topology:
    number = 1
    for side in shape:
        number *= side
    return Topology(name, chip, "tpu", number, number, f"{kind}:{'x'.join(map(str, shape))}")


def _h200(number: int) -> Topology:
    nodes = max(1, number // 8)
    return Topology(f"h200-{number}", H200, "gpu", number, min(number, 8), f"1x{nodes}x{number // nodes}")


_SQUARES = {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBES = {64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8)}

TOPOLOGIES: dict[str, Topology] = {
    topology.name: topology
    for topology in (
        *(_tpu(f"v5e-{number}", V5E, "v5e", shape) for number, shape in _SQUARES.items()),
        *(_tpu(f"v6e-{number}", V6E, "v6e", shape) for number, shape in _SQUARES.items()),
        *(_tpu(f"v5p-{2 * number}", V5P, "v5p", shape) for number, shape in _CUBES.items()),
        *(_h200(number) for number in (1, 8, 16, 32, 64)),
    )
}


def topology_named(name: str) -> Topology:
    """The topology of this name; `cpu-N`: N devices simulated by one CPU. Raises `ConfigError` that lists the names."""
    if re.fullmatch(r"cpu-[1-9]\d{0,2}", name):
        number = int(name.removeprefix("cpu-"))
        return Topology(name, CPU, "cpu", number, number, "")
    if name not in TOPOLOGIES:
        raise ConfigError(
            f"topology {name!r} is not known. There are: {', '.join(TOPOLOGIES)}; and cpu-N for N devices simulated by "
            "one CPU. v5p-N has N / 2 chips (N TensorCores, as Google counts)."
        )
    return TOPOLOGIES[name]


def check_compiler(topology: Topology) -> None:
    """Raises `ConfigError` naming the extra to install when this machine has no compiler for the topology."""
    needed, extra = {
        "tpu": ("libtpu", "tpu"),
        "gpu": ("jax_plugins.xla_cuda13", "cuda13"),
        "cpu": ("jax", ""),
    }[topology.platform]
    try:
        found = importlib.util.find_spec(needed) is not None
    except ModuleNotFoundError:  # the parent package is not there either
        found = False
    if not found:
        raise ConfigError(
            f"planning for {topology.name} needs the compiler in {needed}, which is not installed here. Install the "
            f"extra: pip install 'scmbert_jax[{extra}]'. No {'TPU' if extra == 'tpu' else 'GPU'} is needed."
        )


def devices_of(topology: Topology) -> list[Any]:
    """Its devices, which can be compiled for and nothing else (those of a CPU also run).

    Raises `ConfigError` when the compiler is absent, or this process was not started with enough CPU devices.
    """
    check_compiler(topology)
    if topology.platform == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < topology.num_chips:
            raise ConfigError(
                f"{topology.name}: this process has {len(devices)} CPU device(s). Start it with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.num_chips}."
            )
        return devices[: topology.num_chips]
    from jax.experimental import topologies

    if topology.platform == "tpu":
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.description)
    else:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name=topology.name, target_config=H200_TARGET, topology=topology.description
        )
    return list(found.devices)
