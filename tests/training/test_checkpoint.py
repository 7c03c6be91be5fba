"""What is printed when Orbax cannot write; what earlier versions saved. Saving and restoring: test_loop,
test_killed_processes."""

import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scmbert_jax.errors import CheckpointError
from scmbert_jax.training.checkpoint import RunCheckpoints, load_weights, save_weights
from scmbert_jax.training.train_state import TrainState

KEPT = {"linear": {"into_cell": jnp.arange(4.0)}}
EARLIER = {"linear": {"into_cell": jnp.arange(4.0), "loadings": jnp.ones((5, 2))}}


def abstract(tree):
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)


def test_weights_of_an_earlier_version_are_read_without_what_the_corpus_gave(tmp_path):
    save_weights(tmp_path / "weights", EARLIER)
    found = load_weights(tmp_path / "weights", abstract(KEPT))
    assert list(found["linear"]) == ["into_cell"]
    np.testing.assert_array_equal(found["linear"]["into_cell"], KEPT["linear"]["into_cell"])
    with pytest.raises(CheckpointError, match="these weights cannot be read"):
        load_weights(tmp_path / "weights", abstract(EARLIER | {"more": jnp.ones(3)}))


def test_a_checkpoint_of_an_earlier_version_says_who_can_go_on_with_it(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(5, TrainState(EARLIER, KEPT, jnp.zeros((), jnp.int32)))
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=r"linear/loadings .*git_commit of its provenance.json"):
        checkpoints.restore_params(5, abstract(KEPT))
    assert set(checkpoints.restore_params(5, abstract(EARLIER))["linear"]) == {"into_cell", "loadings"}
    checkpoints.close()


def test_a_save_leaves_no_thread_behind(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=1)
    running = []
    for step in range(1, 5):
        checkpoints.save(step, TrainState(EARLIER, KEPT, jnp.asarray(step, jnp.int32)))
        checkpoints.wait()
        running.append(threading.active_count())
    assert running == running[:1] * 4
    assert checkpoints.steps() == [4]
    checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize(("words", "is_told"), [("Event loop is closed", False), ("something else", True)])
def test_writes_that_end_after_a_failed_save_print_no_traceback(words, is_told):
    program = f"""
from scmbert_jax.commands.failures_told_once import tell_failures_once
tell_failures_once()
class Late:
    def __del__(self):
        raise RuntimeError({words!r})
del [Late()][0]
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ("Traceback" in ran.stderr) == is_told, ran.stderr
