"""Collectives are counted as often as their loops run, with the bytes of the array that moves."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from scmbert_jax.config import MeshConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.parallel.mesh import make_mesh
from scmbert_jax.planning.program_text import Collective, collectives_of, summary


def program(*lines: str, entry: str) -> str:
    return (
        "HloModule m, num_partitions=8\n\n"
        + "\n".join(lines)
        + f"\nENTRY %main (p: f32[8]) -> f32[8] {{\n{entry}\n}}\n"
    )


ONE = "  %p = f32[8]{0} parameter(0)\n"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (
            "%x = f32[64]{0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}",
            Collective("all-gather", 256, 8, 1, 1),
        ),
        (
            "%x = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add",
            Collective("all-reduce", 32, 2, 2, 1),
        ),
        (
            "%x = bf16[4]{0} reduce-scatter(%p), channel_id=1, replica_groups=[2,4]<=[2,4]T(0,1), dimensions={0}",
            Collective("reduce-scatter", 32, 4, 1, 1),
        ),
        (
            "%x = f32[8]{0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add",
            Collective("all-reduce", 32, 2, 2, 1),
        ),
        (
            "%x = f32[8]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}",
            Collective("all-to-all", 32, 4, 1, 1),
        ),
        (
            "%x = f32[8]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={0}",
            Collective("all-to-all", 32, 8, 2, 1),
        ),
        (
            "%x = f32[8]{0} all-to-all(%p), replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}, "
            "dimensions={0}",
            Collective("all-to-all", 32, 2, 2, 1),
        ),
        ("%x = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add", Collective("all-reduce", 32, 8, 2, 1)),
        (
            "%x = f32[8]{0} all-to-all(%p), replica_groups=mesh['a'=8] {'a':(2)2}, dimensions={0}",
            Collective("all-to-all", 32, 2, 1, 1),
        ),
        (
            "%x = (f32[8]{0}, f32[64]{0}) all-gather-start(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}",
            Collective("all-gather", 256, 8, 2, 1),
        ),
        (
            "%x = ((f32[8]{0}, f32[16]{0}), (f32[1]{0}, f32[2]{0})) reduce-scatter-start(%p, %p), "
            "replica_groups=[1,8]<=[8], dimensions={0}",
            Collective("reduce-scatter", 96, 8, 2, 1),
        ),
        (
            "%x = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
            Collective("collective-permute", 32, 2, 1, 1),
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Collective) else "",
)
def test_every_way_a_collective_is_written(instruction, expected):
    nodes_of_four = 4
    if expected.kind in ("all-gather", "all-to-all") and expected.nodes == 1 and expected.group == 8:
        nodes_of_four = 8
    assert collectives_of(program(entry=ONE + "  " + instruction), nodes_of_four) == (expected,)


def test_a_collective_of_one_chip_moves_nothing():
    line = "  %x = f32[8]{0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add"
    assert collectives_of(program(entry=ONE + line), 8) == ()


def test_groups_in_words_that_nobody_knows_are_not_passed_over():
    line = "  %x = f32[8]{0} all-reduce(%p), replica_groups=everyone, to_apply=%add"
    with pytest.raises(ConfigError, match=r"cannot read: .*everyone"):
        collectives_of(program(entry=ONE + line), 8)


LOOP = """%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %step = s32[] constant(2)
  %next = s32[] add(%i, %step)
  %v = f32[8]{0} get-tuple-element(%s), index=1
  %x = f32[8]{0} all-reduce(%v), channel_id=3, replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %x)
}

%cond (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %stop = s32[] constant(13)
  ROOT %less = pred[] compare(%i, %stop), direction=LT
}
"""


@pytest.mark.parametrize(
    ("noted", "times"), [("", 6), (', backend_config={"known_trip_count":{"n":"7"}}', 7)], ids=["condition", "noted"]
)
def test_what_a_loop_holds_counts_as_often_as_it_runs(noted, times):
    entry = ONE + (
        "  %first = s32[] constant(1)\n  %start = (s32[], f32[8]{0}) tuple(%first, %p)\n"
        f"  %w = (s32[], f32[8]{{0}}) while(%start), condition=%cond, body=%body{noted}"
    )
    (found,) = collectives_of(program(LOOP, entry=entry), 8)
    assert found.times == times  # 1, 3, 5, 7, 9, 11


def test_a_collective_that_the_tpu_compiler_spreads_over_fusions_counts_once():
    part_of_text = (
        "%async_collective_fusion.{n} (q: f32[8]) -> f32[64] {{\n  %q = f32[8]{{0}} parameter(0)\n"
        "  %x = f32[64]{{0}} all-gather(%q), channel_id=5, replica_groups=[1,8]<=[8], dimensions={{0}}\n}}\n"
    )
    entry = ONE + "\n".join(
        f"  %f{n} = f32[64]{{0}} fusion(%p), kind=kCustom, calls=%async_collective_fusion.{n}" for n in (1, 2, 3)
    )
    text = program(*(part_of_text.format(n=n) for n in (1, 2, 3)), entry=entry)
    assert summary(collectives_of(text, 8)) == {"all-gather": {"instructions": 1, "times": 1, "bytes": 256}}


def test_a_compiled_program_of_known_traffic():
    """Five iterations, each a sum of 32 floats over eight devices, read from what XLA really writes."""

    def on_one(x):
        def turn(total, _):
            return total + jax.lax.psum(total, "fsdp"), None

        return jax.lax.scan(turn, x, length=5)[0]

    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        step = jax.shard_map(on_one, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
        text = jax.jit(step).lower(jax.ShapeDtypeStruct((32,), jnp.float32)).compile().as_text()
    assert summary(collectives_of(text, 8)) == {"all-reduce": {"instructions": 1, "times": 5, "bytes": 5 * 128}}


def test_a_ring_sends_what_it_must():
    assert Collective("all-gather", 800, 8, 1, 1).sent == 700
    assert Collective("all-reduce", 800, 8, 1, 1).sent == 1400
    assert Collective("collective-permute", 800, 2, 1, 1).sent == 800
    spread = Collective("all-gather", 800, 16, 2, 1)  # two nodes of eight: half comes from the other, by eight cards
    assert spread.sent_between_nodes == 50
    assert Collective("all-gather", 800, 8, 1, 1).sent_between_nodes == 0
