"""Every example of docs/extending.md runs, a section at a time, as a file that somebody might write."""

import importlib.util
import re
import sys
from types import SimpleNamespace

import jax
import pytest
from conftest import REPOSITORY

from data_pipelines.readers.open_dataset import READERS
from scmbert_jax.cli import VERBS
from scmbert_jax.evaluation.translation.suite import ALL_BASELINES
from scmbert_jax.evaluators.inputs import EvaluatorInputs
from scmbert_jax.evaluators.table import EVALUATORS
from scmbert_jax.modalities import TABLE
from scmbert_jax.models.attention.backends import BACKENDS
from scmbert_jax.models.embeddings import VALUE_ENCODINGS
from scmbert_jax.objectives.mixture import OBJECTIVES
from scmbert_jax.parallel.mesh import make_mesh
from scmbert_jax.scmbert import ModelDefinition

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
SECTIONS = {
    heading: "\n\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    for heading, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
TABLES = (OBJECTIVES, EVALUATORS, VERBS, VERBS["evaluate"], VALUE_ENCODINGS, BACKENDS, TABLE)


@pytest.fixture(autouse=True)
def tables_are_as_before():
    tables, lists = [dict(table) for table in TABLES], [list(READERS), list(ALL_BASELINES)]
    yield
    for table, before in zip(TABLES, tables, strict=True):
        table.clear()
        table.update(before)
    READERS[:], ALL_BASELINES[:] = lists


@pytest.fixture
def of_a_run(tiny_config, tiny_layout, tiny_batch):
    """What the example of an evaluator is given: of a run whose held-out cells are 16 synthetic ones."""
    mesh = make_mesh(tiny_config.mesh, jax.devices()[:1])
    model = ModelDefinition(tiny_config, tiny_layout)
    inputs = EvaluatorInputs(model, mesh, SimpleNamespace(batches=[tiny_batch()], num_cells=16))
    with jax.set_mesh(mesh):
        yield {"inputs": inputs, "params": jax.jit(model.init)(jax.random.key(0)), "constants": model.constants}


def test_the_page_shows_every_kind():
    kinds = ("reader", "objective", "evaluator", "suite", "baseline", "task", "value encoding")
    assert [re.sub("^An? ", "", heading) for heading in SECTIONS] == [*kinds, "attention backend", "modality"]


@pytest.mark.slow
@pytest.mark.parametrize("heading", SECTIONS)
def test_an_example_runs(heading, tmp_path, monkeypatch, request):
    before = [len(table) for table in (*TABLES, READERS, ALL_BASELINES)]
    path = tmp_path / f"{heading.replace(' ', '_').lower()}.py"
    path.write_text(SECTIONS[heading])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    if heading == "An evaluator":
        vars(module).update(request.getfixturevalue("of_a_run"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    after = [len(table) for table in (*TABLES, READERS, ALL_BASELINES)]
    assert sum(after) == sum(before) + 1, "an example is one line in one table"
