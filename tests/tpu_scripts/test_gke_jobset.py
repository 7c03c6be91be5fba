"""The JobSet: what it says, that it is one, and that it is submitted once; with a stand-in for kubectl."""

import json

import jsonschema
import pytest
import yaml
from fake_tools import SCRIPTS, FakeTools

from scmbert_jax import errors

JOBSET = ("--name", "run1", "--image", "registry/scmbert:1", "--tpu", "tpu-v6e-slice", "--topology", "4x4")
PRETRAIN = ("--", "base", "--corpus", "gs://bucket/corpus", "--run-dir", "/data/run 1")

# What was created lies in a file; `get` shows it as asked.
CLUSTER = """
case "$*" in
    *"create -f -"*) printf '%s' "$input" > "$here/jobset.yaml" ;;
    *"get jobset"*)
        [ -e "$here/jobset.yaml" ] || exit 0
        echo "run1 $(sed -n 's/.*rendered-sha256: "\\(.*\\)"/\\1/p' "$here/jobset.yaml")" ;;
    *delete*) rm -f "$here/jobset.yaml" ;;
esac
"""


@pytest.fixture
def tools(tmp_path) -> FakeTools:
    tools = FakeTools(tmp_path / "tools")
    tools.answer("kubectl", CLUSTER)
    return tools


def rendered(tools: FakeTools, *more: str) -> dict:
    ran = tools.script("gke_jobset.sh", "render", *JOBSET, *more, *PRETRAIN)
    assert ran.code == 0, ran.err
    return yaml.safe_load(ran.out)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    described = json.loads((SCRIPTS / "jobset.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(described)
    return jsonschema.Draft202012Validator(described)


@pytest.mark.parametrize("more", [(), ("--slices", "4", "--spot", "--volume-claim", "runs", "--mount", "/m")])
def test_the_jobset_is_one_by_its_schema(tools, schema, more):
    schema.validate(rendered(tools, *more))


def test_the_schema_refuses_what_is_no_jobset(tools, schema):
    def job(jobset: dict) -> dict:
        return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]

    spoilt = [rendered(tools) for _ in range(4)]
    spoilt[0]["spec"]["replicas"] = 2  # in the wrong place
    job(spoilt[1])["parallelism"] = "4"
    job(spoilt[2])["template"]["spec"]["restartPolicy"] = "OnFailure"
    del job(spoilt[3])["template"]["spec"]["containers"][0]["image"]
    assert [schema.is_valid(jobset) for jobset in spoilt] == [False] * 4


@pytest.mark.parametrize(
    ("topology", "chips_per_host", "hosts", "chips"),
    [("4x4", 4, 4, 4), ("2x2x4", 4, 4, 4), ("2x4", 8, 1, 8), ("1x1", 4, 1, 1)],
)
def test_a_pod_per_host_and_a_job_per_slice(tools, topology, chips_per_host, hosts, chips):
    jobset = rendered(tools, "--topology", topology, "--chips-per-host", str(chips_per_host), "--slices", "3")
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert slices["replicas"] == 3
    assert job["parallelism"] == job["completions"] == hosts
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


def test_arguments_reach_the_container_as_they_were_given(tools):
    odd = 'a "quoted" back\\slash & @name@ $HOME\nline'
    ran = tools.script("gke_jobset.sh", "render", *JOBSET, "--", "base", "--run-dir", odd)
    jobset = yaml.safe_load(ran.out)
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["scmbert", "pretrain", "base", "--run-dir", odd, "--multihost"]


def test_mistakes_end_the_run_and_lost_hosts_start_it_again(tools):
    """The codes are those of `scmbert_jax.errors`: what is started again must not be among what is not."""
    jobset = rendered(tools)
    (rule,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    mistakes = (
        *(errors.InputError, errors.CorpusError, errors.ConfigError, errors.CheckpointError, errors.TrainingError),
        *(errors.OutputError, errors.MemoryExhausted),
    )
    assert rule["onExitCodes"]["values"] == [error.exit_code for error in mistakes]
    again = {errors.HostError.exit_code, errors.RunInProgress.exit_code, errors.INTERRUPTED}
    assert not again & set(rule["onExitCodes"]["values"])
    assert jobset["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"


def test_a_jobset_is_submitted_once_and_one_of_other_parameters_is_refused(tools, tmp_path, schema):
    for _ in range(2):
        ran = tools.script("gke_jobset.sh", "submit", *JOBSET, *PRETRAIN)
        assert ran.code == 0, ran.err
    assert "run1 is there already; not created again" in ran.err
    created = ["kubectl", "--namespace=default", "create", "-f", "-"]
    assert tools.calls("get") == [created]
    schema.validate(yaml.safe_load((tmp_path / "tools" / "bin" / "jobset.yaml").read_text()))
    other = tools.script("gke_jobset.sh", "submit", *JOBSET, "--slices", "2", *PRETRAIN)
    assert other.code == 1
    assert "another JobSet run1 is there, of other parameters; delete it first" in other.err
    assert tools.calls("get") == [created]


@pytest.mark.parametrize("fails", ["get", "create"])
def test_a_cluster_that_answers_with_an_error_is_told_of(tools, fails):
    tools.answer("kubectl", f'case "$*" in *{fails}*) echo "no route to host" >&2; exit 3 ;; esac\n')
    ran = tools.script("gke_jobset.sh", "submit", *JOBSET, *PRETRAIN)
    assert ran.code == 1
    assert "no route to host" in ran.err
    assert "failed with exit code 3: kubectl --namespace=default" in ran.err
