"""One command on all hosts, with stand-ins for gcloud and ssh."""

import pytest
from fake_tools import FakeTools

TPU = ("--name", "pod", "--zone", "us-east5-b")


@pytest.fixture
def tools(tmp_path) -> FakeTools:
    tools = FakeTools(tmp_path / "tools")
    tools.answer("gcloud")
    tools.answer("ssh")
    return tools


def test_a_slice_is_reached_by_tpu_vm_and_several_by_their_queued_resource(tools):
    assert tools.script("run_on_all_hosts.sh", *TPU, "--", "cd x && date").code == 0
    assert tools.script("run_on_all_hosts.sh", *TPU, "--slices", "2", "--", "ls", "a b").code == 0
    one, several = tools.calls()
    assert one[3:] == ["tpu-vm", "ssh", "pod", "--zone=us-east5-b", "--worker=all", "--command=cd x && date"]
    assert several[3:5] == ["queued-resources", "ssh"]
    assert several[-3:] == ["--worker=all", "--node=all", "--command=ls 'a b'"]


def test_machines_run_the_command_at_once_and_one_that_fails_is_named(tools):
    # Each waits for the other: one after the other they would never end.
    meet = 'case "$*" in *gpu1*) me=1 other=2 ;; *) me=2 other=1 ;; esac; touch "$here/$me"\n'
    meet += 'for _ in {1..100}; do [ -e "$here/$other" ] && break; sleep 0.1; done; echo "here $me"; [ $me = 1 ]\n'
    tools.answer("ssh", meet.replace('"$*" in *gpu1*', '"$3" in gpu1'))
    ran = tools.script("run_on_all_hosts.sh", "--hosts", "gpu1,gpu2", "--port", "99", "--", "train", "$PROCESS_INDEX")
    assert ran.code == 1
    assert "failed on: gpu2" in ran.err
    assert "gpu1: here 1" in ran.out
    assert "gpu2: here 2" in ran.out
    lines = sorted(call[-1] for call in tools.calls())
    told = "export COORDINATOR=gpu1:99 NUM_PROCESSES=2 PROCESS_INDEX={}; train '$PROCESS_INDEX'"
    assert lines == [told.format(0), told.format(1)]
