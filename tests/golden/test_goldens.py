"""Memory, sharding and collectives of compiled steps are those of the files beside this one (see goldens.py)."""

import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import goldens

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.models import encoder
from scmbert_jax.planning.compiled_step import compile_experiment
from scmbert_jax.planning.topologies import topology_named


def check(name: str) -> None:
    """Skips only where the compiler is another than the one of constraints.txt."""
    of_compiler = "libtpu" if ".v" in name else "jaxlib"
    found, pinned = goldens.compiler_versions()[of_compiler], goldens.pinned_versions()[of_compiler]
    if found != pinned:
        pytest.skip(f"goldens are of {of_compiler} {pinned} (constraints.txt), here is {found or 'none'}")
    golden = goldens.read(name)
    assert golden is not None, f"no golden of {name}: python tests/golden/goldens.py --refresh"
    assert golden["made_with"][of_compiler] == pinned, (
        f"{name}.json was made with {of_compiler} {golden['made_with'][of_compiler]}, constraints.txt has {pinned}: "
        "python tests/golden/goldens.py shows what changed, with --refresh it writes it anew"
    )
    lines = goldens.differences(golden, goldens.snapshot(goldens.compiled(name)))
    assert not lines, "\n".join([name, *lines, "if this was meant: python tests/golden/goldens.py --refresh"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in goldens.CASES if name.endswith("cpu-8")])
def test_a_step_on_eight_devices_keeps_and_moves_what_it_did(name):
    check(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in goldens.CASES if not name.endswith("cpu-8")])
def test_a_step_for_a_tpu_slice_keeps_and_moves_what_it_did(name):
    check(name)


def test_without_the_residual_constraint_the_memory_golden_fails(monkeypatch):
    """A numeric test passes both ways; only memory shows it."""
    case = goldens.CASES["small_10m.cpu-8"]
    monkeypatch.setattr(encoder, "constrain", lambda x, *_: x)
    # In this process, where it is patched: eight CPU devices, too.
    assert len(jax.devices()) == 8
    broken = compile_experiment(case.config(), synthetic_layout(*case.features), topology_named(case.topology))
    golden = goldens.read("small_10m.cpu-8")
    lines = goldens.differences(golden, goldens.snapshot(broken))
    assert any(line.startswith("memory of masked_modeling") for line in lines)
    assert broken.steps[0].memory.total > 2 * golden["memory_bytes"]["masked_modeling"]
