"""A run with networks keeps them: it continues, is exported and used without the user's table, and with no other."""

import gzip
import json
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import TINY, scmbert, scmbert_ok

from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.networks.model_network import NETWORK, save_network
from scmbert_jax.config import to_dict
from scmbert_jax.pretrained import load_model
from scmbert_jax.run_networks import run_networks
from scmbert_jax.training.checkpoint import RunCheckpoints

OPTIONS = (
    *("--model.graph", "learned", "--model.network-split", "edge", "--objectives.link-prediction.weight", "1"),
    *("--train.checkpoint-every", "2", "--held-out", "cell=0.1", "--validation.evaluators", "links"),
)


def table(path, genes, seed, count=900):
    rng = np.random.default_rng(seed)
    pairs = np.unique(np.stack([rng.choice(genes[:20], count), rng.choice(genes, count)], axis=1), axis=0)
    lines = [f"{one},{other},{rng.choice([-1, 1])}" for one, other in pairs if one != other]
    path.write_text("source,target,weight\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def genes(pbmc_corpus):
    return FeatureSpace.load(pbmc_corpus / "feature_space.parquet").modalities["rna"].ids


def params_of(run, step, model):
    checkpoints = RunCheckpoints(run / "checkpoints", 3)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), model.definition.abstract_params
    )
    try:
        return jax.device_get(checkpoints.restore_params(step, placed))
    finally:
        checkpoints.close()


def test_a_network_by_name_is_not_fetched_again(genes, pbmc_corpus, tiny_config, tmp_path, monkeypatch):
    kept = tmp_path / "networks"
    kept.mkdir()
    table(kept / "plain.csv", genes, 0)
    (kept / "collectri_human_academic.csv.gz").write_bytes(gzip.compress((kept / "plain.csv").read_bytes()))
    monkeypatch.setenv("SCMBERT_NETWORKS", str(kept))
    space = FeatureSpace.load(pbmc_corpus / "feature_space.parquet")
    model = replace(tiny_config.model, networks=("network:collectri",), graph="learned")
    config, run = replace(tiny_config, model=model), tmp_path / "run"
    started = run_networks(config, space, run)
    run.mkdir()
    save_network(started.layout, run)
    space.save(run / "feature_space.parquet")
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    monkeypatch.delenv("SCMBERT_NETWORKS")
    monkeypatch.setitem(sys.modules, "decoupler", None)
    again = run_networks(config, space, run)
    assert again.words == ["network:collectri: is not fetched again; the run continues with its own copy"]
    assert again.layout.network.digest == started.layout.network.digest


@pytest.mark.slow
def test_a_run_continues_bit_for_bit_and_is_used_without_its_table_and_refuses_another(pbmc_corpus, genes, tmp_path):
    edges = table(tmp_path / "edges.csv", genes, 0)
    network = ("--model.networks", edges, "--mesh.fsdp", "1", "--mesh.replica", str(jax.device_count()))
    run = tmp_path / "run"
    command = (*TINY, "--corpus", pbmc_corpus, *network, *OPTIONS)
    scmbert_ok(*command, "--run-dir", run, "--steps", "4")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = next(row for row in rows if any("links/auroc" in name for name in row))
    assert any("links/edges" in name for name in judged)
    told = json.loads((run / "provenance.json").read_text())["information"]["networks"]
    assert told["names"] == ["edges.csv"]
    assert told["edges"]["codes"] > 0  # proteins of genes are in the same graph

    again = shutil.copytree(run, tmp_path / "again")
    table(edges, genes, 1)
    ran = scmbert(*command, "--run-dir", again, "--steps", "4", "--restore-step", "2")
    assert ran.code != 0
    assert "was started with another network" in ran.err
    edges.unlink()
    ran = scmbert(*command, "--run-dir", again, "--steps", "4", "--restore-step", "2")
    assert ran.code == 0, ran.err
    assert "the run continues with its own copy" in ran.err
    scmbert_ok("export", run, tmp_path / "model")
    model = load_model(tmp_path / "model")
    first, second = (params_of(folder, 4, model) for folder in (run, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert (tmp_path / "model" / NETWORK).read_bytes() == (run / NETWORK).read_bytes()
    of_network = model.constants["network"]
    rows = of_network["nodes"][of_network["edges"]["source"]]
    np.testing.assert_array_equal(rows, model.definition.layout.messages.source)
    assert "edges.csv" in (tmp_path / "model" / "MODEL_CARD.md").read_text()

    # Another network for a run that starts from its weights: the graph's own weights fit.
    other = table(tmp_path / "other.csv", genes, 2)
    options = (*TINY, "--corpus", pbmc_corpus, "--model.networks", other, *network[2:], *OPTIONS)
    ran = scmbert(*options, "--run-dir", tmp_path / "next", "--steps", "2", "--init-from", tmp_path / "model")
    assert ran.code == 0, ran.err
    started = json.loads((tmp_path / "next" / "provenance.json").read_text())["init_from"]
    assert not any("network" in name or "link_head" in name for name in started["new"])
    damaged = tmp_path / "run" / NETWORK
    damaged.write_bytes(damaged.read_bytes()[:200])
    table(edges, genes, 0)
    ran = scmbert(*command, "--run-dir", run, "--steps", "6")
    assert ran.code != 0
    assert "network.npz: the networks of the model cannot be read" in ran.err
