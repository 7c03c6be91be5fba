"""A checkpoint that is not what was saved is named and refused, whatever happened to its files, and one can go back."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scmbert_jax.config import MeshConfig
from scmbert_jax.errors import CheckpointError
from scmbert_jax.parallel.mesh import make_mesh, replicated, sharding
from scmbert_jax.training.checkpoint import RunCheckpoints
from scmbert_jax.training.state_digest import changed_arrays, digests
from scmbert_jax.training.train_state import TrainState

# When one of tensorstore's reads fails, nobody waits for the others.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step: int = 20) -> TrainState:
    """Arrays of random numbers, which no compression makes smaller, and of zeros."""
    numbers = np.random.default_rng(step)
    params = {"rna": {"kernel": jnp.asarray(numbers.normal(size=(48, 64)), jnp.float32)}, "bias": jnp.zeros(64)}
    return TrainState(params, {"mu": jnp.asarray(numbers.normal(size=(64, 64)), jnp.bfloat16)}, jnp.int32(step))


def abstract(like: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints 10, 15 and 20. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = RunCheckpoints(folder, keep=3)
    for step in (10, 15, 20):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    """A copy of `saved`, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run" / "checkpoints")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def largest(folder: Path) -> Path:
    """The file of the arrays themselves."""
    return max(files_of(folder), key=lambda path: path.stat().st_size)


def read(folder: Path, step: int = 20, params_only: bool = False):
    checkpoints = RunCheckpoints(folder, keep=3)
    try:
        whole = abstract(state(step))
        return checkpoints.restore_params(step, whole.params) if params_only else checkpoints.restore(step, whole)
    finally:
        checkpoints.close()


def assert_bit_equal(found, expected) -> None:
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def assert_is_what_was_saved(found: TrainState, step: int = 20) -> None:
    assert_bit_equal(found, state(step))


def flipped(path: Path, position: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0.01, 0.2, 0.5, 0.7, 0.85])
def test_one_flipped_bit_of_the_arrays_is_refused(damaged, position):
    """Orbax alone restores every one of these without a word."""
    flipped(largest(damaged / "20"), position, bit=int(position * 100) % 8)
    with pytest.raises(CheckpointError, match=r"checkpoints/20: this checkpoint cannot be read"):
        read(damaged)


def test_the_array_that_is_not_what_was_saved_is_named_with_the_way_back(damaged):
    flipped(largest(damaged / "20"), 0.5, bit=3)
    name = r"(params\['rna'\]\['kernel'\]|opt_state\['mu'\])"
    with pytest.raises(CheckpointError, match=rf"1 of its arrays .*{name}.*\[10, 15\].*--restore-step 15"):
        read(damaged)


def test_damaged_parameters_are_not_exported(damaged):
    """Only they are read, so only they are looked at."""
    refused = 0
    for position in (0.2, 0.35, 0.5, 0.65, 0.8):
        flipped(largest(damaged / "20"), position, bit=3)
        try:
            assert_bit_equal(read(damaged, params_only=True), state().params)
        except CheckpointError as error:
            refused += "not what was saved: params['rna']['kernel']" in str(error)
        flipped(largest(damaged / "20"), position, bit=3)
    assert refused > 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = {"cut": cut, "emptied": emptied, "gone": Path.unlink, "flipped": lambda path: flipped(path, 0.5, 4)}


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_happens_to_any_one_file_the_state_is_what_was_saved_or_is_refused(damaged, damage):
    refusals = []
    for file in files_of(damaged / "20"):
        before = file.read_bytes()
        DAMAGE[damage](file)
        try:
            assert_is_what_was_saved(read(damaged))
        except CheckpointError as error:
            refusals.append(str(error))
        file.write_bytes(before)
    assert len(refusals) >= 3
    assert all("checkpoints/20: this checkpoint cannot be read" in refusal for refusal in refusals)
    assert_is_what_was_saved(read(damaged))


def test_a_checkpoint_of_nothing_is_refused_and_not_passed_over(damaged):
    shutil.rmtree(damaged / "20")
    (damaged / "20").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoints/20: this checkpoint cannot be read"):
        read(damaged)


def test_a_checkpoint_without_digests_is_read_with_a_word(tmp_path, capfd):
    from orbax.checkpoint import v1 as ocp

    ocp.save(tmp_path / "checkpoints" / "20", state()._asdict())
    assert_is_what_was_saved(read(tmp_path / "checkpoints"))
    assert "by an earlier version, without digests: not verified" in capfd.readouterr().err


# --- going back ------------------------------------------------------------------------------------------------------


def go_back(folder: Path, step: int) -> list[int]:
    checkpoints = RunCheckpoints(folder, keep=3)
    try:
        checkpoints.go_back(step)
        return checkpoints.steps()
    finally:
        checkpoints.close()


def test_going_back_moves_later_checkpoints_aside_whole_even_damaged_ones(damaged, capfd):
    emptied(largest(damaged / "20"))
    content = {path.name: path.read_bytes() for path in files_of(damaged / "15")}
    assert go_back(damaged, 10) == [10]
    assert "going back to step 10: checkpoints of steps [15, 20] were moved to" in capfd.readouterr().err
    aside = damaged.parent / "set_aside" / "after-step-10"
    assert sorted(path.name for path in aside.iterdir()) == ["15", "20"]
    assert {path.name: path.read_bytes() for path in files_of(aside / "15")} == content
    assert_is_what_was_saved(read(damaged, 10), 10)


def test_a_command_that_is_repeated_does_not_go_back_again(damaged, capfd):
    assert go_back(damaged, 15) == [10, 15]
    shutil.move(damaged.parent / "set_aside" / "after-step-15" / "20", damaged / "20")  # trained anew since
    capfd.readouterr()
    assert go_back(damaged, 15) == [10, 15, 20]
    assert "this run went back to step 15 already" in capfd.readouterr().err


def test_a_move_that_was_killed_in_between_is_finished(damaged):
    partial = damaged.parent / "set_aside" / "after-step-10.partial"
    partial.mkdir(parents=True)
    shutil.move(damaged / "20", partial / "20")
    assert go_back(damaged, 10) == [10]
    assert sorted(path.name for path in partial.with_name("after-step-10").iterdir()) == ["15", "20"]


def test_a_step_without_checkpoint_is_refused_with_those_there_are(damaged):
    with pytest.raises(CheckpointError, match=r"step 12 .*\[10, 15, 20\]"):
        go_back(damaged, 12)
    assert sorted(path.name for path in damaged.parent.iterdir()) == ["checkpoints"]


def test_multiples_of_keep_every_are_kept_for_ever(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=1, keep_every=20)
    for step in range(10, 80, 10):
        checkpoints.save(step, state(step))
        checkpoints.wait()
    assert checkpoints.steps() == [20, 40, 60, 70]
    checkpoints.close()


# --- digests ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 31), st.sampled_from(["float32", "bfloat16", "int8", "bool"]))
def test_any_one_bit_changes_the_digest_of_its_array_alone(where, bit, dtype):
    tree = {"one": jnp.zeros((5, 7), dtype), "other": jnp.ones((3,), dtype)}
    bits = np.zeros((5, 7), jnp.dtype(dtype)).view(f"u{jnp.dtype(dtype).itemsize}")
    bits.reshape(-1)[where % 35] = 1 if dtype == "bool" else 1 << (bit % (8 * bits.dtype.itemsize))
    changed = {**tree, "one": jnp.asarray(bits.view(jnp.dtype(dtype)))}
    assert changed_arrays(changed, digests(tree)) == ["['one']"]


def test_two_numbers_that_change_places_change_the_digest():
    assert digests({"x": jnp.asarray([1.0, 2.0])}) != digests({"x": jnp.asarray([2.0, 1.0])})


@pytest.mark.parametrize("mesh_config", [MeshConfig(fsdp=8), MeshConfig(replica=2, fsdp=2, tensor=2)], ids=str)
def test_digests_do_not_depend_on_the_mesh(mesh_config):
    alone = state().params
    mesh = make_mesh(mesh_config)
    where = sharding(mesh, ("embed", "mlp"), (48, 64), "kernel")
    placed = {"rna": {"kernel": jax.device_put(alone["rna"]["kernel"], where)}}
    placed["bias"] = jax.device_put(alone["bias"], replicated(mesh))
    assert len({str(shard.index) for shard in placed["rna"]["kernel"].addressable_shards}) > 1
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(digests(placed), digests(alone))


# --- not the checkpoint's fault --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "message", "kind"),
    [
        (2, "UNKNOWN: Gloo AllGather failed: Connection reset by peer", ValueError),  # ends with 7: start again
        (2, "No space left on device", CheckpointError),  # ends with 5: starting again would not help
        (1, "Connection reset by peer", CheckpointError),  # of a disk over the network
    ],
)
def test_a_save_that_fails_since_another_host_died_is_told_from_one_that_the_disk_refuses(
    tmp_path, monkeypatch, processes, message, kind
):
    def fail(*_, **__):
        raise ValueError(message)

    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(type(checkpoints._checkpointer), "save_async", fail)
        patch.setattr(jax, "process_count", lambda: processes)
        with pytest.raises(kind, match=message):
            checkpoints.save(5, state(5))
    checkpoints.close()
