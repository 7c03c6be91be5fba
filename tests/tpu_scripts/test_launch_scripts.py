"""What all launch scripts do alike: --help, refusals, --dry-run, flags from the environment."""

import re
import shutil
import subprocess

import pytest
from conftest import REPOSITORY
from fake_tools import SCRIPTS, FakeTools

from scmbert_jax.experiment_files import experiment_names

SHELL_SCRIPTS = ("gke_jobset.sh", "queued_resource.sh", "run_on_all_hosts.sh", "setup_host.sh", "slurm.sh")
TPU = ("--name", "pod", "--zone", "us-east5-b")
CREATE = ("create", *TPU, "--accelerator-type", "v6e-16", "--runtime-version", "v2-alpha-tpuv6e", "--poll", "0")
JOBSET = ("--name", "run1", "--image", "registry/scmbert:1", "--tpu", "tpu-v6e-slice", "--topology", "4x4")
PRETRAIN = ("--", "base", "--corpus", "gs://bucket/corpus", "--run-dir", "/data/run 1")


@pytest.fixture
def tools(tmp_path) -> FakeTools:
    tools = FakeTools(tmp_path / "tools")
    for tool in ("gcloud", "kubectl", "squeue", "sbatch", "scancel", "scontrol", "ssh"):
        tools.answer(tool)
    return tools


@pytest.mark.parametrize("script", [*SHELL_SCRIPTS, "preemption_drill.py"])
def test_help_shows_an_example_and_the_dry_run(tools, script):
    ran = tools.script(script, "--help")
    assert ran.code == 0
    assert f"{script} " in ran.out
    assert "--dry-run" in ran.out
    assert tools.calls() == []


@pytest.mark.slow
def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    scripts = sorted((*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch"), *(REPOSITORY / "experiments").glob("*.sh")))
    assert {script.name for script in scripts} >= {*SHELL_SCRIPTS, "flags.sh", "pretrain.sbatch"}
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("queued_resource.sh", (), "a verb is missing: create wait status delete"),
        ("queued_resource.sh", ("destroy",), "destroy: no such verb"),
        ("queued_resource.sh", ("create", "delete"), "delete: one verb at a time"),
        ("queued_resource.sh", ("create", "--name", "pod"), "--zone is missing (or SCMBERT_ZONE)"),
        ("queued_resource.sh", ("create", *TPU), "--accelerator-type is missing"),
        ("queued_resource.sh", (*CREATE, "--slices", "two"), "--slices two: expected a whole number"),
        ("queued_resource.sh", (*CREATE, "--spot=maybe"), "--spot maybe: expected true or false"),
        ("queued_resource.sh", (*CREATE, "--zone"), "--zone: a value is missing"),
        ("queued_resource.sh", (*CREATE, "--colour", "red"), "--colour: no such flag"),
        ("run_on_all_hosts.sh", TPU, "a command is missing"),
        ("run_on_all_hosts.sh", ("--name", "pod", "--", "date"), "--zone is missing"),
        ("run_on_all_hosts.sh", ("--name", "pod", "--hosts", "a", "--", "date"), "give one of them"),
        ("gke_jobset.sh", ("submit", *JOBSET), "arguments of scmbert pretrain are missing"),
        ("gke_jobset.sh", ("submit", "--name", "run1", *PRETRAIN), "--image is missing"),
        ("gke_jobset.sh", ("render", *JOBSET, "--name", "Run_1", *PRETRAIN), "--name Run_1: expected"),
        ("gke_jobset.sh", ("render", *JOBSET, "--topology", "16", *PRETRAIN), "--topology 16: expected 4x4"),
        ("gke_jobset.sh", ("render", *JOBSET, "--topology", "3x3", *PRETRAIN), "9 chips are no multiple"),
        ("slurm.sh", ("submit", "--name", "run1"), "arguments of scmbert pretrain are missing"),
        ("slurm.sh", ("submit", *PRETRAIN), "--name is missing"),
        ("setup_host.sh", (), "--accelerator is missing"),
        ("setup_host.sh", ("--accelerator", "abacus"), "--accelerator abacus: expected tpu, cuda13 or cpu"),
        ("setup_host.sh", ("--accelerator", "cpu", "--package", "/nowhere"), "there is no such folder or file"),
    ],
)
def test_what_is_missing_or_cannot_be_meant_is_refused_before_anything_is_run(tools, script, arguments, message):
    ran = tools.script(script, *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert tools.calls() == []


@pytest.mark.parametrize(
    ("script", "arguments", "printed"),
    [
        ("queued_resource.sh", CREATE, "--accelerator-type=v6e-16"),
        ("queued_resource.sh", ("delete", *TPU), "queued-resources delete pod --zone=us-east5-b --force --quiet"),
        ("run_on_all_hosts.sh", (*TPU, "--", "echo", "a b"), "--worker=all '--command=echo "),
        (
            "run_on_all_hosts.sh",
            ("--hosts", "me@a,b", "--", "date"),
            "COORDINATOR=a:8476 NUM_PROCESSES=2 PROCESS_INDEX=1",
        ),
        ("gke_jobset.sh", ("submit", *JOBSET, *PRETRAIN), "create -f - <<END"),
        ("gke_jobset.sh", ("delete", "--name", "run1"), "delete jobset run1"),
        ("slurm.sh", ("submit", "--name", "run1", *PRETRAIN), "sbatch --job-name=run1"),
        ("slurm.sh", ("cancel", "--name", "run1"), "scancel --me --name=run1"),
        ("setup_host.sh", ("--accelerator", "tpu"), f"{REPOSITORY}[tpu]"),
    ],
)
def test_a_dry_run_prints_what_would_be_run_and_runs_nothing(tools, tmp_path, script, arguments, printed):
    before = sorted(tmp_path.rglob("*"))
    place = arguments.index("--") if "--" in arguments else len(arguments)
    ran = tools.script(script, *arguments[:place], "--dry-run", *arguments[place:])
    assert ran.code == 0, ran.err
    assert printed in ran.out
    assert tools.calls() == []
    assert sorted(tmp_path.rglob("*")) == before


def test_flags_are_read_from_the_environment_and_the_command_line_wins(tools):
    environment = {"SCMBERT_NAME": "pod", "SCMBERT_ZONE": "there", "SCMBERT_PROJECT": "ours"}
    ran = tools.script("queued_resource.sh", "delete", "--zone=here", "--dry-run", **environment)
    assert "delete pod --zone=here --project=ours" in ran.out


def test_examples_name_experiments_that_exist():
    examples = [
        name
        for path in SCRIPTS.iterdir()
        if path.is_file()
        for name in re.findall(r"(?:pretrain|--) (\w+) --corpus", path.read_text())
    ]
    assert len(examples) > 5
    assert set(examples) - {"EXPERIMENT"} <= set(experiment_names())
