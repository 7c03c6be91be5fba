"""Slurm jobs, with stand-ins for its commands: submitted once, and started again where that may help."""

import pytest
from fake_tools import SCRIPTS, FakeTools

PRETRAIN = ("--", "base", "--corpus", "gs://bucket/corpus", "--run-dir", "/data/run 1")


@pytest.fixture
def tools(tmp_path) -> FakeTools:
    tools = FakeTools(tmp_path / "tools")
    tools.answer("squeue", 'cat "$here/queue" 2> /dev/null || true\n')
    tools.answer("sbatch", 'echo 4711 > "$here/queue"; echo "Submitted batch job 4711"\n')
    tools.answer("scontrol")
    return tools


def test_a_job_is_submitted_once(tools):
    for _ in range(2):
        ran = tools.script("slurm.sh", "submit", "--name", "run1", "--nodes", "2", "--gpus-per-node", "4", *PRETRAIN)
        assert ran.code == 0, ran.err
    assert "run1 is queued or running already (job 4711); not submitted again" in ran.err
    (submitted,) = (call for call in tools.calls() if call[0] == "sbatch")
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"} < set(submitted)  # a process per GPU
    assert submitted[-5:] == ["base", "--corpus", "gs://bucket/corpus", "--run-dir", "/data/run 1"]
    assert submitted[-8] == str(SCRIPTS / "pretrain.sbatch")


@pytest.mark.parametrize(
    ("exit_code", "restarts", "starts_again"),
    [(0, 0, False), (75, 0, True), (7, 4, True), (137, 0, True), (4, 0, False), (75, 5, False)],
)
def test_the_batch_script_starts_again_what_may_help(tools, exit_code, restarts, starts_again):
    tools.answer("srun", f"exit {exit_code}\n")
    environment = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts), "SLURM_CPUS_PER_TASK": "8"}
    ran = tools.script("pretrain.sbatch", "/venv", "5", *PRETRAIN[1:], **environment)
    started = next(call for call in tools.calls() if call[0] == "srun")
    assert started[1:5] == ["--kill-on-bad-exit=1", "--cpus-per-task=8", "/venv/bin/scmbert", "pretrain"]
    assert started[-2:] == ["/data/run 1", "--multihost"]
    again = [call for call in tools.calls() if call[0] == "scontrol"]
    assert again == ([["scontrol", "requeue", "4711"]] if starts_again else [])
    assert ran.code == (0 if starts_again else exit_code)
