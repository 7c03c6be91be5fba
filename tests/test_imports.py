"""What may import what, and what the package does without TensorFlow and anndata. Read from the source by ast."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, xla_flags

# Lower ones know nothing of higher ones; parts of one line may know each other.
LAYERS = (
    (
        "errors",
        "modalities",
        "options of an objective",
        "batch",
        "genome_layout",
        "feature_layout",
        "random_keys",
        "value_scales",
        "compiled_programs",
        "outputs",
        "plain_text",
        "text_table",
        "version",
        "folder_digests",
    ),
    ("config",),
    ("dna_config",),
    ("experiment_files",),
    ("parallel", "sequences"),
    ("models",),
    ("objectives",),
    ("scmbert", "dna_model"),
    ("training",),
    ("planning",),
    ("pretrained", "pretrained_dna"),
    ("warm_start", "run_networks", "run_regions", "torch_models"),
    ("tasks",),
    ("annotation",),
    ("regulation",),
    ("integration",),
    ("evaluation",),
    ("interpretation",),
    ("networks",),
    ("evaluators",),
    ("finished_run", "pretraining", "pretraining_dna"),
    ("benchmarks",),
    ("commands",),
    ("cli",),
)

# The rooms of data_pipelines, in the order in which a cell goes through them.
ROOMS = (
    ("counter_hash", "files"),
    ("features", "statistics"),
    ("cells",),
    ("readers", "corpus"),
    ("tfds_blocks", "checks", "sampling", "networks"),
    ("genome",),
    ("synthetic",),
    ("build",),
    ("batches",),
)

# Those of scmbert_jax/evaluation: a suite knows neither another suite nor who draws for it.
EVALUATION = (
    ("metrics", "intervals", "ridge", "seen_cells", "baselines"),
    ("data",),
    ("report",),
    ("probe", "alignment", "translation", "pretraining", "annotation", "networks", "regulatory"),
)

# Makes `import NAME` fail and `find_spec(NAME)` find nothing, as where the package is not installed.
BLOCKER = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"


def python(code: str, *arguments: object, without: tuple[str, ...] = ()) -> str:
    """Standard output of Python code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(names=without) + code, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": xla_flags(1)},  # one device compiles faster than the eight of other tests
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported_by(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; `a.b.c` for `from a.b import c`, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(names: tuple[str, ...]) -> str:
    """`names`: of a module, inside the package. Options of an objective stand beside it, but below config."""
    return "options of an objective" if names[:1] + names[2:3] == ("objectives", "config") else names[0]


def layer_of(part: str, layers: tuple[tuple[str, ...], ...] = LAYERS) -> int:
    return next(height for height, parts in enumerate(layers) if part in parts)


def imports_among_files() -> dict[str, set[str]]:
    """Module -> the modules of the repository that it imports, at its top or inside a function."""
    packages = ("scmbert_jax", "data_pipelines", "experiments")
    modules = {}
    for path in (path for package in packages for path in sources(package)):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = path
    return {
        name: {
            found
            for imported in imported_by(path)
            for found in [imported if imported in modules else imported.rpartition(".")[0]]
            if found in modules and found != name
        }
        for name, path in modules.items()
    }


# --- direction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources("scmbert_jax"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_part_of_the_package_imports_one_above_it(path):
    part = part_of(path.relative_to(REPOSITORY / "scmbert_jax").with_suffix("").parts)
    if part == "__init__":
        return  # `scmbert_jax.load` stands above everything
    for module in imported_by(path):
        names = module.split(".")
        if names[0] == "scmbert_jax" and len(names) > 1:
            assert layer_of(part_of(tuple(names[1:]))) <= layer_of(part), f"{path.name} ({part}) imports {module}"


@pytest.mark.parametrize(
    ("house", "rooms", "path"),
    [
        pytest.param(house, rooms, path, id=str(path.relative_to(REPOSITORY)))
        for house, rooms in (("data_pipelines", ROOMS), ("scmbert_jax/evaluation", EVALUATION))
        for path in sources(house)
    ],
)
def test_no_room_imports_one_above_it_or_beside_it(house, rooms, path):
    """Files that stand in no room of the lowest floor may know each other."""
    room = path.relative_to(REPOSITORY / house).parts[0].removesuffix(".py")
    inside = house.replace("/", ".") + "."
    for module in imported_by(path):
        other = module.removeprefix(inside).split(".")[0]
        if module.startswith(inside) and other != room:
            floor, own = layer_of(other, rooms), layer_of(room, rooms)
            assert floor < own or floor == own == 0, f"{path.name} ({room}) imports {module}"


def test_a_name_is_imported_from_the_file_that_defines_it():
    """By way of a third file, an import says nothing of where a thing stands, and needs a file for nothing. But options
    come from `config`, all of them: an experiment file is no reader of the package."""
    trees = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): ast.parse(path.read_text())
        for package in ("scmbert_jax", "data_pipelines", "tests")
        for path in sources(package)
    }
    imports = {
        name: [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)] for name, tree in trees.items()
    }
    borrowed = {
        (name, alias.asname or alias.name) for name, nodes in imports.items() for node in nodes for alias in node.names
    }
    found = [
        f"{name} imports {alias.name} from {node.module}"
        for name, nodes in imports.items()
        for node in nodes
        for alias in node.names
        if (node.module, alias.name) in borrowed and f"{node.module}.{alias.name}" not in trees
        if node.module != "scmbert_jax.config" or not alias.name.endswith("Config")
    ]
    assert not found


def test_no_two_files_import_each_other_not_even_by_way_of_others():
    """Kahn's order: what is left when files that import nothing left are taken away, is a circle."""
    left = imports_among_files()
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize("path", sources("data_pipelines"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_data_pipelines_know_only_what_stands_below_both_packages_and_never_jax(path):
    for module in imported_by(path):
        names = module.split(".")
        assert names[0] not in ("jax", "jaxlib", "flax", "optax", "orbax"), module
        if names[0] == "scmbert_jax":
            assert names[1] in (
                "batch",
                "errors",
                "feature_layout",
                "genome_layout",
                "modalities",
                "outputs",
                "plain_text",
                "value_scales",
            ), module
        if names[0] in ("tensorflow", "grain"):
            assert path.name in ("read_ahead.py", "tfds_blocks.py")


def test_only_checkpoints_know_orbax():
    users = [path for path in sources("scmbert_jax") if any(name.startswith("orbax") for name in imported_by(path))]
    assert [str(path.relative_to(REPOSITORY)) for path in users] == ["scmbert_jax/training/checkpoint.py"]


# How DNA is written in numbers and which of its tokens a mask hides: arithmetic on arrays, of NumPy or JAX.
OF_ARRAYS = tuple(f"data_pipelines.genome.{name}" for name in ("bases", "tokens", "kmer_tokens"))


def test_training_does_not_know_files_of_counts():
    """The loop takes any `TrainingData`; what reads files stands outside."""
    for part in ("parallel", "models", "objectives", "training"):
        for path in sources(f"scmbert_jax/{part}"):
            known = [module for module in imported_by(path) if module.startswith("data_pipelines")]
            assert all(module.startswith(OF_ARRAYS) for module in known), path


# --- weight ----------------------------------------------------------------------------------------------------------


def test_importing_the_package_and_every_option_of_a_run_loads_nothing_heavy():
    heavy = ("jax", "tensorflow", "anndata", "mudata", "flax", "pandas", "numpy", "h5py", "sklearn")
    loaded = python(f"import scmbert_jax.config\nprint([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_help_answers_within_a_second():
    """The issue's own bound, on the best of three, since other tests run beside this one."""
    seconds = []
    for _ in range(3):
        before = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "scmbert_jax.cli", "--help"], cwd=REPOSITORY, capture_output=True)
        seconds.append(time.perf_counter() - before)
        assert done.returncode == 0
        assert b"pretrain" in done.stdout
    assert min(seconds) < 1.0


# --- without TensorFlow, without anndata -----------------------------------------------------------------------------

SYNTHETIC_STEP = """
import jax, numpy as np
import scmbert_jax
from data_pipelines.synthetic.cells import synthetic_batch, synthetic_layout
from scmbert_jax.config import DataConfig, ExperimentConfig, ModalitiesConfig, ModalityConfig, ModelConfig
from scmbert_jax.scmbert import ModelDefinition
from scmbert_jax.objectives.mixture import objectives_of
from scmbert_jax.training.optimizer import make_optimizer
from scmbert_jax.training.train_state import TrainState
from scmbert_jax.training.train_step import make_train_step

config = ExperimentConfig(
    modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=8), protein=ModalityConfig(num_tokens=4)),
    data=DataConfig(global_batch_size=4, num_streams=2),
    model=ModelConfig(embed_dim=8, num_layers=1, num_heads=2, head_dim=4, mlp_dim=8),
)
model = ModelDefinition(config, synthetic_layout(20, 6))
optimizer = make_optimizer(config, model)
params = model.init(jax.random.key(0))
state = TrainState(params, optimizer.init(params), jax.numpy.zeros((), "int32"))
step = jax.jit(make_train_step(model, objectives_of(config)["masked_modeling"], optimizer))
batch = synthetic_batch(model.layout, 4, {"rna": 8, "protein": 4}, 0, 0)
state, metrics = step(state, model.constants, batch)
assert np.isfinite(float(metrics["loss"])) and int(state.step) == 1
print("trained")
"""


@pytest.mark.slow
def test_a_synthetic_training_step_needs_neither_tensorflow_nor_anndata():
    out = python(SYNTHETIC_STEP, without=("tensorflow", "anndata", "mudata"))
    assert out.strip() == "trained"


@pytest.mark.slow
def test_a_corpus_is_trained_on_without_tensorflow_and_anndata(pbmc_corpus, tmp_path):
    code = "from scmbert_jax.cli import main\nraise SystemExit(main(sys.argv[1:]))"
    options = ("--corpus", pbmc_corpus, "--run-dir", tmp_path / "run", "--steps", "2")
    python(code, *TINY, *options, without=("tensorflow", "tensorflow_datasets", "grain", "anndata", "mudata"))
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["data_pipelines/__init__.py", "data_pipelines.py"])
def test_another_package_of_the_name_of_ours_is_refused_by_its_place(file, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    code = "import sys; sys.path.insert(0, sys.argv[1])\ntry: import scmbert_jax\n"
    said = python(code + "except ImportError as error: print(error)", tmp_path)
    assert said.startswith(f"{tmp_path / file}".removesuffix("/__init__.py") + ": found where ")
    assert f"{REPOSITORY / 'data_pipelines'} is needed" in said
    assert "Rename the other package" in said


def test_a_project_may_have_experiments_and_folders_of_data_of_its_own(tmp_path):
    """A folder that is no package (no __init__.py) hides no package behind it."""
    for name in ("experiments", "data_pipelines"):
        (tmp_path / name).mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("MINE = 1\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport experiments, scmbert_jax\n"
        "print(experiments.MINE, scmbert_jax.load_experiment('tiny').seed)"
    )
    assert python(code, tmp_path).split() == ["1", "0"]


# --- side effects ----------------------------------------------------------------------------------------------------

# Other packages do change the process when they are imported, so ours are imported twice: once with all that they
# bring in, and once more alone. The changes of the first time are undone before the second.
IMPORT_ALL = """
import faulthandler, importlib, logging, os, pkgutil, signal, sys, warnings

def modules():
    import data_pipelines, scmbert_jax
    for package in (scmbert_jax, data_pipelines):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield found.name

def state():
    loggers = {"": logging.root, **{n: l for n, l in logging.root.manager.loggerDict.items() if hasattr(l, "filters")}}
    hooks = {n: getattr(sys, n) for n in ("excepthook", "unraisablehook", "displayhook", "stdout", "stderr")}
    return {
        "hooks": hooks | {"showwarning": warnings.showwarning},
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "faulthandler": faulthandler.is_enabled(),
        "logging": {n: ([*l.filters], [*l.handlers], l.level, l.propagate, l.disabled) for n, l in loggers.items()},
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "start": (os.getcwd(), os.umask(os.umask(0o22))),
        "jax": dict(jax.config.values) if (jax := sys.modules.get("jax")) else None,
    }

# What the process of the tests has in its environment, our modules may have put there.
environment = {n: v for n, v in os.environ.items() if n in ("PATH", "HOME", "JAX_PLATFORMS", "XLA_FLAGS")}
os.environ.clear()
os.environ.update(environment)
names = list(modules())
for name in names:
    importlib.import_module(name)
os.environ.clear()
os.environ.update(environment)
for name in [n for n in sys.modules if n.split(".")[0] in ("scmbert_jax", "data_pipelines")]:
    del sys.modules[name]
before = state()
for name in names:
    importlib.import_module(name)
after = state()
for part in before:
    old, new = before[part], after[part]
    if isinstance(old, dict):
        old, new = ({n: v for n, v in x.items() if before[part].get(n) != after[part].get(n)} for x in (old, new))
    assert old == new, f"importing our modules changes {part}: {old} -> {new}"
print(len(names))
"""


@pytest.mark.slow
def test_importing_any_module_changes_nothing_of_the_process():
    assert int(python(IMPORT_ALL)) > 200
