"""scmbert plan: on devices that one CPU plays, and what it says of what cannot be."""

import dataclasses
import importlib.util
import json

import pytest
from conftest import scmbert, scmbert_ok

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.config import MeshConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.experiment_files import load_experiment
from scmbert_jax.models.flops import counts_of_full_cells, feature_table_flops
from scmbert_jax.objectives.mixture import step_flops
from scmbert_jax.planning import plan as plan_module
from scmbert_jax.planning import topologies
from scmbert_jax.planning.compile_process import Compilation, compile_apart
from scmbert_jax.planning.compiled_step import CompiledExperiment, CompiledStep, StepMemory
from scmbert_jax.planning.estimate import cost, estimate
from scmbert_jax.planning.program_text import Collective
from scmbert_jax.planning.search import search
from scmbert_jax.planning.topologies import GIB, TOPOLOGIES, topology_named

FEATURES = ("--num-features", "rna=200", "protein=20", "atac=100")
TINY_PLAN = ("plan", "tiny", "--topology", "cpu-8", *FEATURES)
LAYOUT = synthetic_layout(200, 20, 100)


@pytest.fixture(scope="module")
def tiny_compiled():
    return compile_apart(load_experiment("tiny"), LAYOUT, topology_named("cpu-8"))


@pytest.fixture
def compiled_already(monkeypatch, tiny_compiled):
    """`scmbert plan` gets this compilation, whatever it asks for; the list of what it asks for."""
    asked = []

    def compile_nothing(config, layout, topology):
        asked.append((config, layout, topology))
        return tiny_compiled

    monkeypatch.setattr(plan_module, "compile_apart", compile_nothing)
    return asked


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_plan_is_one_json_document_with_memory_by_kind_and_traffic(compiled_already):
    tiny_plan = json.loads(scmbert_ok(*TINY_PLAN, "--json"))
    assert compiled_already[0][0] == load_experiment("tiny")
    (step,) = tiny_plan["steps"]
    memory = step["memory"]
    assert tiny_plan["fits"] is True
    assert tiny_plan["mesh"] == {"replica": 1, "fsdp": 8, "tensor": 1}
    assert memory["total"] == sum(value for kind, value in memory.items() if kind not in ("total", "gradients"))
    # AdamW: two moments beside each parameter, and two counters of 4 bytes; all of it split, but for small vectors.
    assert 0 <= memory["optimizer"] - 2 * memory["params"] <= 64
    assert tiny_plan["num_params"] * 4 / 8 < memory["params"] < tiny_plan["num_params"] * 4 / 4
    assert memory["temporaries"] > memory["gradients"] == memory["params"]
    assert step["collectives"]["all-gather"]["bytes"] > 0
    assert step["estimate"] is None  # a CPU that plays eight devices has no speed to estimate with
    assert tiny_plan["cost"] is None
    assert tiny_plan["compile_peak_bytes"] > 2**27


def test_the_operations_are_those_of_the_formula(compiled_already):
    tiny_plan = json.loads(scmbert_ok(*TINY_PLAN, "--json"))
    config = load_experiment("tiny")
    expected = step_flops(config, "masked_modeling", counts_of_full_cells(config, 16))
    expected["feature_table"] = feature_table_flops(config, LAYOUT)
    assert tiny_plan["steps"][0]["flops"] == pytest.approx(expected)


def test_what_does_not_fit_says_by_how_much_and_what_helps(monkeypatch, compiled_already):
    small = dataclasses.replace(topologies.CPU, memory_bytes=100_000)
    monkeypatch.setattr(topologies, "CPU", small)
    ran = scmbert(*TINY_PLAN)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert "does not fit: 0." in ran.out
    for words in ("GiB a chip too much", "--model.remat dots", "--train.num-microbatches 2", "--mesh.fsdp is 8"):
        assert words in ran.out


def test_a_corpus_gives_the_features(pbmc_corpus, compiled_already):
    tokens = ("--modalities.atac.num-tokens", "0", "--modalities.rna.num-tokens", "16")
    plan = json.loads(scmbert_ok("plan", "tiny", "--topology", "cpu-2", "--corpus", pbmc_corpus, *tokens, "--json"))
    assert plan["num_features"] == {"rna": 497, "protein": 224}  # of 500 genes, those that the gene table knows
    ((_, layout, _),) = compiled_already
    assert layout.covariate_sizes["technical_batch"] > 1
    assert len(layout.links["protein"][0]) == 74


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--topology", "v7-8"), ("topology 'v7-8' is not known", "v6e-256", "h200-8", "cpu-N")),
        ((), ("--topology NAME",)),
        (("--topology", "cpu-8", "--data.global-batch-size", "12"), ("global_batch_size is 12", "multiple of 8")),
        (("--topology", "cpu-8", "--model.attention", "splash"), ("'splash'", "needs a TPU", "on cpu")),
        (("--topology", "cpu-8", "--num-features", "genes=3"), ("--num-features genes=3", "rna, protein, atac")),
        (("--topology", "cpu-8", "--cells", "0"), ("--cells is 1 or more",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_planned_is_named(arguments, words):
    ran = scmbert("plan", "tiny", *arguments)
    assert ran.code == ConfigError.exit_code
    assert all(word in ran.err for word in words)
    assert ran.out == ""


@pytest.mark.parametrize(("topology", "extra"), [("v5e-16", "tpu"), ("h200-8", "cuda13")])
def test_without_the_compiler_the_extra_is_named(monkeypatch, topology, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'scmbert_jax\[{extra}\]'"):
        topologies.check_compiler(topology_named(topology))


def test_google_counts_two_cores_to_a_v5p_chip():
    assert TOPOLOGIES["v5p-128"].num_chips == 64
    assert TOPOLOGIES["v6e-256"].num_chips == 256
    assert TOPOLOGIES["h200-64"].chips_per_node == 8
    assert topology_named("cpu-4").num_chips == 4


# --- estimates, on steps made up here --------------------------------------------------------------------------------


def made_up_step(temporaries: int, collectives: tuple[Collective, ...] = (), compiled: bool = True) -> CompiledStep:
    memory = StepMemory(2 * GIB, 4 * GIB, 0, temporaries, 2 * GIB, 0, 0)
    return CompiledStep("masked_modeling", memory, collectives, compiled, 0.0, 0.0)


def test_a_step_is_bound_by_the_slowest_of_four():
    config, topology = load_experiment("base_110m"), TOPOLOGIES["h200-64"]
    by_compute = estimate(config, LAYOUT, topology, made_up_step(GIB), 0.5)
    assert by_compute.bound == "compute"
    assert by_compute.seconds == pytest.approx(by_compute.flops / 64 / 989e12 / 0.5)
    assert by_compute.mfu == pytest.approx(0.5)
    # 1 TB that all gather: seven eighths of it come from other nodes, by 8 cards of 50 GB/s.
    spread = made_up_step(GIB, (Collective("all-gather", 10**12, 64, 8, 1),))
    by_network = estimate(config, LAYOUT, topology, spread, 0.5)
    assert by_network.bound == "network"
    assert by_network.network == pytest.approx(10**12 * 7 / 8 / 8 / 50e9)
    assert by_network.links == pytest.approx((10**12 * 63 / 64 - 10**12 * 7 / 64) / 450e9)


def test_remat_is_work_but_no_progress():
    config, topology = load_experiment("base_110m"), TOPOLOGIES["h200-8"]
    again = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full"))
    plain, twice = (estimate(own, LAYOUT, topology, made_up_step(GIB), 0.5) for own in (config, again))
    assert plain.flops == twice.flops
    assert plain.recomputed_flops == 0
    assert 0.2 < twice.recomputed_flops / twice.flops < 1 / 3
    assert twice.mfu < plain.mfu


def test_days_and_dollars_are_those_of_the_steps():
    config, topology = load_experiment("base_110m"), TOPOLOGIES["h200-8"]
    one = estimate(config, LAYOUT, topology, made_up_step(GIB), 0.5)._replace(seconds=2.0)
    found = cost(config, topology, {"masked_modeling": one}, 1024 * 1800 + 1, 3.0)
    assert found.steps == 1801
    assert found.days == pytest.approx(1801 * 2 / 86400)
    assert found.dollars == pytest.approx(1801 * 2 / 3600 * 8 * 3)


def test_a_step_that_was_not_compiled_has_no_estimate():
    config = load_experiment("base_110m")
    assert estimate(config, LAYOUT, TOPOLOGIES["v5e-16"], made_up_step(20 * GIB, compiled=False), 0.5) is None


# --- search ----------------------------------------------------------------------------------------------------------


def test_search_finds_the_largest_batch_and_the_cheapest_remat(monkeypatch):
    """Plans made up: a cell takes 4, 2 or 1 GiB by remat, besides 6 of state; of 15.75."""
    topology = TOPOLOGIES["v5e-16"]
    each = {"none": 4, "dots": 2, "full": 1}

    def compiled(config, layout, topology):
        parts = 16
        cells = config.data.global_batch_size // parts // config.train.num_microbatches
        needed = made_up_step(each[config.model.remat] * cells * GIB)
        mesh = {"replica": 1, "fsdp": 16, "tensor": 1}
        return Compilation(CompiledExperiment((needed,), mesh, 4, {}, 1, 0), 1.0, 1.0, 1)

    monkeypatch.setattr(plan_module, "compile_apart", compiled)
    asked = []

    def plan_of(config):
        asked.append(config)
        return plan_module.make_plan("base_110m", config, LAYOUT, topology, cells=10**6)

    result = search(load_experiment("base_110m"), topology, plan_of, lambda _: None)
    assert {one.remat: one.cells_per_chip for one in result.found} == {"none": 2, "dots": 4, "full": 8}
    assert [one.largest_batch for one in result.found] == [32, 64, 128]
    # Two cells of 2,048 tokens keep a chip busy, with nothing computed twice: 1,024 cells in parts of 32.
    assert result.best.config.model.remat == "none"
    assert result.best.config.train.num_microbatches == 32
    assert result.best.config.data.global_batch_size == 1024
    assert result.best.fits
    assert len(asked) < 15


def test_search_says_when_nothing_fits(monkeypatch):
    def compiled(config, layout, topology):
        mesh = {"replica": 1, "fsdp": 16, "tensor": 1}
        return Compilation(CompiledExperiment((made_up_step(99 * GIB),), mesh, 4, {}, 1, 0), 1.0, 1.0, 1)

    monkeypatch.setattr(plan_module, "compile_apart", compiled)
    topology = TOPOLOGIES["v5e-16"]
    result = search(
        load_experiment("base_110m"),
        topology,
        lambda config: plan_module.make_plan("base_110m", config, LAYOUT, topology, cells=1),
        lambda _: None,
    )
    assert result.best is None
    assert all(one.cells_per_chip == 0 for one in result.found)


def test_the_mesh_of_a_plan_is_that_of_the_run():
    from scmbert_jax.parallel.mesh import mesh_sizes

    assert mesh_sizes(MeshConfig(replica=16), 256) == (16, 16, 1)
    with pytest.raises(ConfigError, match="does not fit 256 device"):
        mesh_sizes(MeshConfig(replica=3), 256)
