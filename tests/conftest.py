"""Shared fixtures. Real data lies beside the repository (or at $SCMBERT_SHARED_DATA); without it those tests skip."""

import contextlib
import fcntl
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from scmbert_jax.compiled_programs import flags_to_compile_quickly

# Before JAX starts: eight devices on one CPU, so that every test can ask for a mesh. Programs run for milliseconds here
# and compile for minutes: without optimisation by LLVM and MLIR they compile four to six times as fast.
# With SCMBERT_TESTS_XLA=default they are those that users run (`make nightly-default`).
# `make smoke` leaves the choice of the platform to JAX, and with it the flags.
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    quickly = "" if os.environ.get("SCMBERT_TESTS_XLA") == "default" else f" {flags_to_compile_quickly()}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + quickly + " --xla_force_host_platform_device_count=8"
# Several processes test at once, and threads of OpenMP wait in busy loops: with two each on two cores, tests that solve
# and cluster take three times the processor time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# No programs kept on a disk, of this process or of an earlier run: of those that were loaded instead of compiled, some
# with collectives of eight CPU devices wait for each other for ever, and XLA ends the process (jaxlib 0.10.2).
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
# [B, S] and [S] may have met by mistake, [B, S] and [1, S] on purpose. Held in the processes that tests start, too.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Commands keep compiled programs in the user's cache folder; tests leave nothing there.
os.environ["SCMBERT_COMPILATION_CACHE"] = "off"

import numpy as np
import pytest

from scmbert_jax.batch import CellBatch
from scmbert_jax.config import (
    ContrastiveAlignmentConfig,
    CrossModalTranslationConfig,
    DataConfig,
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
    without_modalities,
)
from scmbert_jax.feature_layout import FeatureLayout

REPOSITORY = Path(__file__).resolve().parent.parent
# `jax.jit(f, compiler_options=XLA_DEFAULT)` gives the program that users run in spite of the flags above: the same bits
# of a training step as from a process without flags. It compiles five times as long.
XLA_DEFAULT: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if "xla_cpu_use_fusion_emitters" in flags_to_compile_quickly():
    XLA_DEFAULT["xla_cpu_use_fusion_emitters"] = True
MOST_MAPS = 20_000  # a module of tests adds up to 4,000


@pytest.fixture(scope="session", autouse=True)
def compiled_programs() -> Iterator[dict[tuple, Any]]:
    """All programs of this process. Tests make the same model again and again, and `jax.jit` of a new function knows
    nothing of the one before: a program of the same text for the same devices is taken instead of compiled."""
    from jax._src import cache_key, compiler

    compile_anew, programs = compiler.compile_or_get_cached, {}

    def compile_once(backend, computation, devices, options, host_callbacks, *more, **named):
        if backend.platform != "cpu" or host_callbacks:  # for other machines (goldens); with functions of Python
            return compile_anew(backend, computation, devices, options, host_callbacks, *more, **named)
        key = cache_key.get(computation, devices, options, backend), *(device.id for device in devices.flat)
        if key not in programs:
            programs[key] = compile_anew(backend, computation, devices, options, host_callbacks, *more, **named)
        return programs[key]

    compiler.compile_or_get_cached = compile_once
    yield programs
    compiler.compile_or_get_cached = compile_anew


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped_before_the_process_has_no_room_for_more(compiled_programs):
    """XLA for CPUs keeps each program in some memory maps, of which Linux gives a process 65,530; then it crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()
        compiled_programs.clear()


@pytest.fixture(scope="session")
def transport_at_full_speed() -> Iterator[None]:
    """Its loop of up to 2,000 rounds takes many times as long in a program that was compiled quickly."""
    import jax

    from scmbert_jax.tasks import optimal_transport

    quickly = optimal_transport._solve_cost
    optimal_transport._solve_cost = jax.jit(quickly.__wrapped__, static_argnums=1, compiler_options=XLA_DEFAULT)
    yield
    optimal_transport._solve_cost = quickly


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("SCMBERT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set SCMBERT_SHARED_DATA to its folder")
    return folder


def xla_flags(devices: int) -> str:
    """Those of this process, but for a process of another number of CPU devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")


class Ran(NamedTuple):
    """What a call of `scmbert` left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def scmbert(*arguments: str | Path) -> Ran:
    """The command line in this process. What is no `UserError` passes through and fails the test."""
    from scmbert_jax.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


def scmbert_ok(*arguments: str | Path) -> str:
    """The standard output of a command that must succeed."""
    ran = scmbert(*arguments)
    assert ran.code == 0, ran.err
    return ran.out


@pytest.fixture(scope="session")
def folder_of_all(tmp_path_factory) -> Path:
    """A folder of this call of pytest, one for all its processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """Whether `folder` is to be filled now: of all test processes the first that comes does, the others wait for it."""
    with folder.with_suffix(".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder.with_suffix(".made")
        yield not made.exists()
        made.touch()


@pytest.fixture(scope="session")
def start_scmbert(folder_of_all) -> Callable[..., subprocess.Popen]:
    """Starts `scmbert` as a process of its own, with one CPU device (or `devices`); output is captured as text."""
    cache = folder_of_all / "compiled"

    def start(*arguments: str | Path, devices: int = 1) -> subprocess.Popen:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            **os.environ,
            "XLA_FLAGS": xla_flags(devices),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "scmbert_jax.cli", *map(str, arguments)],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_scmbert(start_scmbert) -> Callable[..., Ran]:
    """As `start_scmbert`, waited for."""

    def run(*arguments: str | Path, devices: int = 1) -> Ran:
        process = start_scmbert(*arguments, devices=devices)
        out, err = process.communicate(timeout=900)
        return Ran(process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def mosaic_cells():
    """300 cells, RNA, protein and ATAC, with a known truth."""
    from data_pipelines.synthetic.cells import synthetic_cells

    return synthetic_cells(300, 120, 12, 40, num_cell_types=3, num_batches=6, seed=0)


@pytest.fixture(scope="session")
def mosaic_file(mosaic_cells, tmp_path_factory) -> Path:
    """`mosaic_cells` as a file."""
    path = tmp_path_factory.mktemp("source") / "mosaic.h5mu"
    mosaic_cells.to_mudata().write_h5mu(path)
    return path


@pytest.fixture(scope="session")
def pbmc_corpus(folder_of_all) -> Path:
    """The built-in example as a corpus: 1,600 cells, RNA and protein, a mosaic. Not to be changed: copy it."""
    corpus = folder_of_all / "pbmc" / "corpus"
    with made_once(folder_of_all / "pbmc_corpus") as missing:
        if missing:
            scmbert_ok("corpus", "build", corpus, "example:pbmc_mosaic", "--block-size", "64")
    return corpus


@pytest.fixture(scope="session")
def pbmc_few(tmp_path_factory) -> Path:
    """The first 60 cells of each technical batch of the built-in example, as a file of the same name: p1_0 has RNA,
    p2_0 protein, p3_0 and p4_0 both. Embedding them takes seconds, embedding all of the example half a minute."""
    import mudata

    from data_pipelines.readers.example_reader import example_path

    file = tmp_path_factory.mktemp("few") / "pbmc_mosaic.h5mu"
    rows = np.concatenate([np.arange(first, first + 60) for first in (0, 400, 800, 1200)])
    mudata.read_h5mu(example_path("pbmc_mosaic"))[rows].copy().write(file)
    return file


# Experiment `tiny` on a corpus of RNA and protein.
TINY = ("pretrain", "tiny", "--modalities.atac.num-tokens", "0", "--reader", "threads")


@pytest.fixture(scope="session")
def pbmc_run(pbmc_corpus, folder_of_all, run_scmbert) -> Path:
    """A run folder of 6 steps on `pbmc_corpus`, checkpoints 3 and 6. Not to be changed: copy it."""
    run_dir = pbmc_corpus.parent / "run"
    with made_once(folder_of_all / "pbmc_run") as missing:
        if missing:
            _train_on_pbmc(pbmc_corpus, run_dir, run_scmbert)
    return run_dir


def _train_on_pbmc(corpus: Path, run_dir: Path, run_scmbert: Callable[..., Ran]) -> None:
    options = ("--corpus", corpus, "--run-dir", run_dir, "--steps", "6", "--train.checkpoint-every", "3")
    # What the corpus lacks is left out by itself; those who continue this run leave it out as `TINY` does.
    ran = run_scmbert("pretrain", "tiny", "--reader", "threads", *options, "--train.log-every", "1")
    assert ran.code == 0, ran.err
    assert f"atac: not in {corpus}; trained without" in ran.err
    assert "1,600 cells of " in ran.err
    what = r"parameters; features: \d+ rna, 224 protein; masked_modeling\n1 x .+, mesh replica 1 x fsdp 1 x tensor 1\n"
    assert re.search(what, ran.err), ran.err
    assert "starting at step 0 of 6" in ran.err


@pytest.fixture(scope="session")
def pbmc_model(pbmc_run, folder_of_all) -> Path:
    """The model folder exported from `pbmc_run`. Not to be changed: copy it."""
    model_dir = pbmc_run.parent / "model"
    with made_once(folder_of_all / "pbmc_model") as missing:
        if missing:
            scmbert_ok("export", pbmc_run, model_dir)
    return model_dir


@pytest.fixture
def exact_neighbours(monkeypatch):
    """For scib-metrics: its approximate search compiles for most of a minute, for a few hundred cells."""
    from scib_metrics import nearest_neighbors
    from sklearn.neighbors import NearestNeighbors

    def search(x, n_neighbors, random_state=0, n_jobs=1):
        distances, indices = NearestNeighbors(n_neighbors=n_neighbors).fit(x).kneighbors(x)
        return nearest_neighbors.NeighborsResults(indices=indices, distances=distances)

    monkeypatch.setattr(nearest_neighbors, "pynndescent", search)


@pytest.fixture(scope="session")
def tiny_config() -> ExperimentConfig:
    """All three modalities, one encoding and likelihood each, sizes that compile in seconds."""
    return ExperimentConfig(
        modalities=ModalitiesConfig(
            rna=ModalityConfig(num_tokens=16),
            protein=ModalityConfig(num_tokens=8, zero_fraction=0.0, value_encoding="bins", likelihood="bins"),
            atac=ModalityConfig(num_tokens=8, likelihood="bernoulli"),
        ),
        data=DataConfig(global_batch_size=16, num_streams=2, window_blocks=2),
        model=ModelConfig(embed_dim=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=32),
        optimizer=OptimizerConfig(warmup_steps=5),
        train=TrainConfig(num_steps=20, log_every=1, checkpoint_every=5),
    )


@pytest.fixture(scope="session")
def mixed_config(tiny_config: ExperimentConfig) -> ExperimentConfig:
    """`tiny_config` with all three objectives, pairs and cycle."""
    objectives = ObjectivesConfig(
        MaskedModelingConfig(weight=1.0),
        CrossModalTranslationConfig(weight=1.0, cycle_weight=0.5, cycle_features=6),
        ContrastiveAlignmentConfig(weight=1.0, projection_dim=8, negatives="all"),
    )
    return replace(tiny_config, objectives=objectives)


@pytest.fixture(scope="session")
def tiny_layout() -> FeatureLayout:
    from data_pipelines.synthetic.cells import synthetic_layout

    return synthetic_layout(40, 12, 20, {"technical_batch": 3})


@pytest.fixture(scope="session")
def known_layout(tiny_layout: FeatureLayout, tiny_config: ExperimentConfig) -> FeatureLayout:
    """`tiny_layout` with the statistics of a thousand cells, so that a model starts where a run's would."""
    from data_pipelines.statistics.feature_statistics import feature_statistics

    batch = synthetic_tokens(tiny_layout, tiny_config, 1000, 1024)
    target_sums = {name: modality.target_sum for name, modality in tiny_config.modalities.in_use().items()}
    cells = cells_of_batch(batch, tiny_layout)
    return replace(tiny_layout, statistics=feature_statistics([batch], tiny_layout, target_sums, cells))


@pytest.fixture(scope="session")
def tiny_batch(tiny_layout: FeatureLayout, tiny_config: ExperimentConfig):
    """step -> a batch of the tiny configuration."""

    def make(step: int = 0, batch_size: int = 16) -> CellBatch:
        return synthetic_tokens(tiny_layout, tiny_config, step, batch_size)

    return make


@pytest.fixture(scope="session")
def held_out_inputs(pbmc_corpus, tiny_config):
    """(number of devices, configuration) -> what evaluators are made of, for a run on RNA and protein of the example of
    which a tenth of the cells is held out; 90 of them are looked at."""
    import jax

    from data_pipelines.batches.batch_reader import BatchReader
    from data_pipelines.batches.read_ahead import ReadAhead
    from data_pipelines.batches.training_data import MixtureData
    from data_pipelines.batches.validation_data import ValidationData, held_out_mixture
    from data_pipelines.corpus.corpus import open_corpus
    from data_pipelines.sampling.mixture import Mixture, MixtureOptions
    from scmbert_jax.evaluation.pretraining.masked_cells import sampling_of
    from scmbert_jax.evaluators.inputs import EvaluatorInputs
    from scmbert_jax.parallel.mesh import make_mesh
    from scmbert_jax.scmbert import ModelDefinition

    protein = ModalityConfig(num_tokens=8, zero_fraction=0.0)
    modalities = replace(tiny_config.modalities, protein=protein)
    usual = without_modalities(replace(tiny_config, modalities=modalities), ["atac"])
    with open_corpus(pbmc_corpus) as corpus:
        mixture = Mixture([corpus], MixtureOptions(held_out=("cell=0.1",)), list(usual.modalities.in_use()))
        reader = BatchReader(
            mixture,
            sampling_of(usual),
            seed=0,
            global_batch_size=usual.data.global_batch_size,
            num_streams=usual.data.num_streams,
            window_blocks=usual.data.window_blocks,
        )
        layout = MixtureData(reader, ReadAhead("threads"), {"rna": 1e4, "protein": 1e4}).layout
        data = ValidationData(held_out_mixture(mixture), reader, 90)

        def make(number_of_devices: int = 1, config: ExperimentConfig = usual) -> EvaluatorInputs:
            mesh = make_mesh(config.mesh, jax.devices()[:number_of_devices])
            return EvaluatorInputs(ModelDefinition(config, layout), mesh, data)

        yield make


def synthetic_tokens(layout: FeatureLayout, config: ExperimentConfig, step: int, batch_size: int) -> CellBatch:
    from data_pipelines.synthetic.cells import synthetic_batch

    tokens = {name: modality.num_tokens for name, modality in config.modalities.in_use().items()}
    return synthetic_batch(layout, batch_size, tokens, config.seed, step)


def cells_of_batch(batch: CellBatch, layout: FeatureLayout):
    """`WholeCells` of a batch whose every expressed feature is a token and whose every feature was measured."""
    import scipy.sparse as sp

    from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
    from scmbert_jax.feature_layout import fold_of

    modalities = {}
    for name, tokens in batch.modalities.items():
        first, stop = layout.slices[name]
        cells = np.flatnonzero(tokens.measured)
        real = (np.arange(tokens.feature_ids.shape[1]) < tokens.lengths[:, None])[cells]
        rows = np.repeat(np.arange(len(cells)), tokens.lengths[cells])
        entries = tokens.counts[cells][real].astype(np.float64), (rows, tokens.feature_ids[cells][real] - first)
        counts = sp.csr_matrix(entries, (len(cells), stop - first))
        counts.eliminate_zeros()
        modalities[name] = CellCounts(
            cells=cells,
            counts=counts,
            library_size=tokens.library_size[cells].astype(np.float64),
            mean_log_count=tokens.mean_log_count[cells].astype(np.float64),
            panel_of=np.zeros(len(cells), np.int64),
            panels=np.ones((1, stop - first), bool),
        )
    unknown = np.full(len(batch.row), -1, np.int32)
    return WholeCells(modalities, fold_of(batch.cell_index), batch.covariates.get("technical_batch", unknown))


def padded(batch: CellBatch, more: int) -> CellBatch:
    """The same batch with `more` padding tokens per modality."""

    def widen(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, more)))

    modalities = {
        name: tokens._replace(feature_ids=widen(tokens.feature_ids), counts=widen(tokens.counts))
        for name, tokens in batch.modalities.items()
    }
    return batch._replace(modalities=modalities)


def without(batch: CellBatch, modality: str, rows: np.ndarray | slice = slice(None)) -> CellBatch:
    """The same batch, in which `modality` was not measured in the cells `rows`."""
    gone = np.zeros(len(batch.row), bool)
    gone[rows] = True

    def emptied(x: np.ndarray) -> np.ndarray:
        return np.where(gone.reshape(-1, *[1] * (x.ndim - 1)), np.zeros_like(x), x)

    tokens = batch.modalities[modality]
    nothing = tokens._replace(**{name: emptied(getattr(tokens, name)) for name in tokens._fields})
    return batch._replace(modalities={**batch.modalities, modality: nothing})


def shaken(params: dict, size: float = 0.1) -> dict:
    """Parameters with noise on every number: output layers start at zero, where nothing behind them shows."""
    import jax

    rng = np.random.default_rng(99)  # not JAX's, which compiles a program for each shape
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(leaf + size * rng.standard_normal(leaf.shape, np.float32), leaf.dtype),
        jax.device_get(params),
    )
