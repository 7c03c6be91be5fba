"""Memory, sharding and collectives of compiled steps are those of the files beside this one (see goldens.py)."""

import importlib.util
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
    golden = goldens.read(name)
    assert golden is not None, f"no golden of {name}: python tests/golden/goldens.py --refresh"
    of_compiler = "libtpu" if ".v" in name else "jaxlib"
    found = goldens.compiler_versions()
    if golden["made_with"][of_compiler] != found[of_compiler]:
        pytest.skip(f"the golden is of {of_compiler} {golden['made_with'][of_compiler]}, here is {found[of_compiler]}")
    lines = goldens.differences(golden, goldens.snapshot(goldens.compiled(name)))
    assert not lines, "\n".join([name, *lines, "if this was meant: python tests/golden/goldens.py --refresh"])


@pytest.mark.parametrize("name", [name for name in goldens.CASES if name.endswith("cpu-8")])
def test_a_step_on_eight_devices_keeps_and_moves_what_it_did(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in goldens.CASES if not name.endswith("cpu-8")])
def test_a_step_for_a_tpu_slice_keeps_and_moves_what_it_did(name):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'scmbert_jax[tpu]'")
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
