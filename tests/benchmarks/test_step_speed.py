"""The benchmark of the train step runs every combination, says what could not run, and compares with a peer."""

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import scmbert

from data_pipelines.synthetic.cells import synthetic_layout
from scmbert_jax.benchmarks import step_suites, timed_step
from scmbert_jax.benchmarks.device_peaks import peak_flops
from scmbert_jax.benchmarks.step_suites import Suite, SuiteModel, h200_suite, measure_suite, suite_of_experiment
from scmbert_jax.benchmarks.timed_step import synthetic_cells_of
from scmbert_jax.benchmarks.torch_speed import encoder_config
from scmbert_jax.config import ModelConfig
from scmbert_jax.errors import ConfigError
from scmbert_jax.models.flops import counts_of_batch
from scmbert_jax.objectives.mixture import step_flops

TINY_MODEL = ModelConfig(embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=32)
SMALL = ("--experiment", "tiny", "--lengths", "15", "--batch-sizes", "4", "--num-features", "40", "--threads", "1")

# Stands for a Python with torch: speaks the protocol of torch_peer.py, and counts the parameters it was handed.
FAKE_PEER = """#!{python}
import json, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[2])
setup = json.loads((folder / "setup.json").read_text())
params, batch = np.load(folder / "params.npz"), np.load(folder / "batch.npz")
assert batch["feature_ids"].shape == batch["counts"].shape == batch["library_size"].shape
assert (batch["chosen"].sum(axis=1) == np.floor(setup["mask_fraction"] * batch["lengths"] + 0.5)).all()
number = sum(params[name].size for name in params.files)
print(json.dumps({{"torch": "0.0", "parameters": int(number)}}), flush=True)
for line in sys.stdin:
    what, _, steps = line.partition(" ")
    print(json.dumps({{"loss": 1.0}} if what.strip() == "loss" else {{"seconds": 2.0 * int(steps), "peak_bytes": 7}}))
    sys.stdout.flush()
"""


@pytest.fixture
def fake_peer(tmp_path) -> Path:
    path = tmp_path / "python"
    path.write_text(FAKE_PEER.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.nightly
def test_every_combination_is_a_row_and_what_cannot_run_says_why(run_scmbert, fake_peer, tmp_path):
    options = ("--attention", "xla", "cudnn", "--remat", "none", "full", "--steps", "3", "--warmup", "1")
    more = ("--trace", tmp_path / "trace", "--peer-python", fake_peer, "--peer-rounds", "2", "--json")
    ran = run_scmbert("bench", "step", *SMALL, *options, *more)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert len(found["rows"]) == 2 * 2
    for row in found["rows"]:
        if row["attention"] == "cudnn":
            assert row["speed"] is None
            assert "NVIDIA GPU" in row["refusal"]
            continue
        speed = row["speed"]
        assert speed["steps"] == 3
        assert speed["padding"] == 0
        assert speed["tokens_per_second"] == pytest.approx(15 * speed["cells_per_second"])
        assert speed["mfu"] is None  # nobody states a peak of this CPU
        assert speed["interval"] > 0
        assert speed["peak_bytes"] > speed["step_bytes"] > 0
    assert len(list((tmp_path / "trace").iterdir())) == 2
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    (peer,) = found["peers"]
    assert peer["parameters"] == peer["peer_parameters"] > 1000
    assert peer["peer_seconds"] == 2.0
    assert peer["speed"] == pytest.approx(2.0 / peer["seconds"], rel=0.5)
    assert found["settings"]["steps"] == 3


@pytest.mark.slow
def test_the_suite_of_a_gpu_runs_on_a_cpu_when_it_is_small(monkeypatch):
    """Every path of --suite h200 but the GPU and the peers: several batches, MFU, embedding."""
    own = SuiteModel("tiny", TINY_MODEL, (15,), (8, 16), ("xla",))
    monkeypatch.setattr(timed_step, "peak_flops", lambda device, dtype: 1e9)
    suite, said = Suite((own,), embedding=(40, 2)), []
    found = measure_suite(
        suite, synthetic_layout(40), steps=2, warmup=1, peer_python=None, peer_rounds=1, padding=0.2, say=said.append
    )
    assert [(row.batch_size, row.remat) for row in found.rows] == [(8, "none"), (16, "none")]
    for row in found.rows:
        assert row.speed.mfu == pytest.approx(row.speed.flops / row.speed.seconds / 8e9)  # of eight devices
        assert 0.1 < row.speed.padding < 0.3
    assert found.embedding.cells_per_second > 0
    assert found.embedding.speed is None
    text = found.text()
    assert "MFU" in text
    assert "40 tokens" in text


def test_the_h200_suite_is_the_three_sizes_at_their_lengths(monkeypatch, tiny_config):
    asked = []
    monkeypatch.setattr(step_suites, "load_experiment", lambda name: asked.append(name) or tiny_config)
    suite = h200_suite()
    assert asked == ["base_110m", "large_350m", "xl_1b"]
    assert [own.lengths for own in suite.models] == [(2047,), (4095,), (4095,)]  # and [CLS]
    assert all(own.attention[0] == own.model.attention == "cudnn" for own in suite.models)
    assert all(own.model.compute_dtype == "bfloat16" for own in suite.models)
    assert suite.embedding[0] == 16_907
    (own,) = suite_of_experiment("tiny").models
    assert (own.lengths, own.batch_sizes, own.attention) == ((16 + 8 + 8,), (16,), ("xla",))


def test_flops_and_tokens_are_of_real_tokens_only():
    config = encoder_config(TINY_MODEL, 64, 256)
    layout = synthetic_layout(100)
    for padding in (0.0, 0.25):
        batch = synthetic_cells_of(config, layout, padding, 0)
        rna = batch.modalities["rna"]
        assert 1 - rna.lengths.mean() / 64 == pytest.approx(padding, abs=0.02)
        for ids, length in zip(rna.feature_ids, rna.lengths, strict=True):
            assert (np.diff(ids[:length]) > 0).all()
            assert not ids[length:].any()
    full, partly = (
        step_flops(config, "masked_modeling", counts_of_batch(synthetic_cells_of(config, layout, padding, 0)))
        for padding in (0.0, 0.25)
    )
    assert partly["encoder"] == pytest.approx(0.75 * full["encoder"], rel=0.03)


def test_a_peak_is_stated_for_bfloat16_of_known_devices_only():
    class Device:
        def __init__(self, kind: str):
            self.device_kind = kind

    assert peak_flops(Device("NVIDIA H200"), "bfloat16") == 989.5e12
    assert peak_flops(Device("TPU v5 lite"), "bfloat16") == 197e12
    assert peak_flops(Device("TPU v5p"), "bfloat16") == 459e12
    assert peak_flops(Device("NVIDIA H200"), "float32") is None
    assert peak_flops(Device("cpu"), "bfloat16") is None


def test_options_that_cannot_be_are_refused():
    for options, said in (
        (("--attention", "flash"), "the backends are xla"),
        (("--steps", "0"), "expected 1 or more"),
        (("--lengths", "900", "--num-features", "800"), "expected at least 900"),
        (("--padding", "1"), "--padding"),
        (("--threads", "4096"), "this process may use"),
    ):
        ran = scmbert("bench", "step", *options)
        assert ran.code == 4, ran.err
        assert said in ran.err


@pytest.mark.nightly
@pytest.mark.parametrize("padding", [0.0, 0.3])
def test_the_model_in_pytorch_has_our_loss(padding):
    """The peer is the same model: same parameters, cells and masked positions give the same loss."""
    python = os.environ.get("SCMBERT_TORCH_PYTHON")
    if not python:
        pytest.skip("set SCMBERT_TORCH_PYTHON to a Python with torch and numpy")
    from scmbert_jax.benchmarks.torch_speed import TorchPeer, start_of

    config = encoder_config(replace(TINY_MODEL, num_layers=2), 63, 8)
    start = start_of(config, synthetic_layout(100), padding)
    peer = TorchPeer(start, Path(python), "ours", False, 1, "cpu")
    try:
        assert peer.loss == pytest.approx(start.loss, rel=1e-5)
        assert peer.take(2) > 0
    finally:
        peer.close()


def test_an_installed_package_says_where_the_peers_are(monkeypatch, tmp_path):
    monkeypatch.setattr("scmbert_jax.benchmarks.peer_process.PEERS", tmp_path / "peers")
    for command in (
        ("bench", "favor", "--tokens", "40", "--threads", "1", "--torch-python", sys.executable),
        ("bench", "input", "--scdataset-python", sys.executable, "--folder", tmp_path / "stores"),
    ):
        ran = scmbert(*command)
        assert ran.code == ConfigError.exit_code
        assert "run this command from a checkout" in ran.err
        assert str(tmp_path / "peers") in ran.err
    assert not (tmp_path / "stores").exists(), "refused before anything is made"
