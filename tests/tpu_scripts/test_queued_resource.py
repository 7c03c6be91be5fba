"""Queued resources, with a stand-in for gcloud: nothing is created twice, and errors are not taken for absence."""

import pytest
from fake_tools import FakeTools

TPU = ("--name", "pod", "--zone", "us-east5-b")
CREATE = ("create", *TPU, "--accelerator-type", "v6e-16", "--runtime-version", "v2-alpha-tpuv6e", "--poll", "0")

# The state of the queued resource lies in a file; `create` and `delete` change it.
QUEUE = """
case "$4" in
    create) [ ! -e "$here/state" ] || { echo 'ERROR: ALREADY_EXISTS' >&2; exit 1; }; echo ACTIVE > "$here/state" ;;
    describe) cat "$here/state" 2> /dev/null || { echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1; } ;;
    delete) rm "$here/state" ;;
esac
"""


@pytest.fixture
def tools(tmp_path) -> FakeTools:
    tools = FakeTools(tmp_path / "tools")
    tools.answer("gcloud", QUEUE)
    return tools


def test_what_was_created_is_not_created_again_and_deleted_once(tools):
    for _ in range(2):
        ran = tools.script("queued_resource.sh", *CREATE, "--spot")
        assert ran.code == 0, ran.err
    assert "pod is there already (ACTIVE); not created again" in ran.err
    changes = ["gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--zone=us-east5-b"]
    changes += ["--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--async", "--node-id=pod", "--spot"]
    assert tools.calls("describe") == [changes]
    assert tools.script("queued_resource.sh", "status", *TPU).out == "ACTIVE\n"
    for _ in range(2):
        assert tools.script("queued_resource.sh", "delete", *TPU).code == 0
    assert len(tools.calls("describe")) == 2
    assert tools.script("queued_resource.sh", "status", *TPU).out == "ABSENT\n"


def test_several_slices_get_numbered_names(tools):
    assert tools.script("queued_resource.sh", *CREATE, "--slices", "4").code == 0
    assert {"--node-count=4", "--node-prefix=pod"} < set(tools.calls("describe")[0])


def test_it_is_waited_for_until_active(tools):
    states = 'n=$(cat "$here/n" 2> /dev/null || echo 0); echo $((n + 1)) > "$here/n"\n'
    states += "words=(WAITING_FOR_RESOURCES PROVISIONING PROVISIONING ACTIVE); echo ${words[$n]}\n"
    tools.answer("gcloud", states)
    ran = tools.script("queued_resource.sh", "wait", *TPU, "--poll", "0")
    assert ran.code == 0
    assert [line.split()[-1] for line in ran.err.splitlines()] == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert len(tools.calls()) == 4


def test_it_is_not_waited_for_for_ever(tools):
    tools.answer("gcloud", "echo WAITING_FOR_RESOURCES\n")
    ran = tools.script("queued_resource.sh", "wait", *TPU, "--poll", "1", "--patience", "1")
    assert ran.code == 1
    assert "still WAITING_FOR_RESOURCES after 1 s (--patience); it stays in the queue" in ran.err


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_one_that_will_never_be_active_is_told_of_and_replaced_when_asked(tools, tmp_path, state):
    (tmp_path / "tools" / "bin" / "state").write_text(state)
    ran = tools.script("queued_resource.sh", *CREATE)
    assert ran.code == 1
    assert f"pod is there and {state}; --replace deletes it and creates it again" in ran.err
    assert tools.calls("describe") == []
    assert tools.script("queued_resource.sh", *CREATE, "--replace").code == 0
    assert [call[4] for call in tools.calls("describe")] == ["delete", "create"]


def test_an_answer_that_is_an_error_is_not_taken_for_absence(tools):
    tools.answer("gcloud", "echo 'ERROR: PERMISSION_DENIED: ask your admin' >&2; exit 1\n")
    ran = tools.script("queued_resource.sh", *CREATE)
    assert ran.code == 1
    assert "PERMISSION_DENIED: ask your admin" in ran.err
    assert "failed: gcloud compute tpus queued-resources describe pod" in ran.err
    assert len(tools.calls()) == 1
