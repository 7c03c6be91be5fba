"""What the probe suite asks of a file before anything is embedded, and how it splits the cells. No model is run."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest

from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.probe import suite as probe_suite
from scmbert_jax.evaluation.probe.result import AT_RANDOM, BY_BATCH, ProbeSettings

MODEL = SimpleNamespace(
    config=SimpleNamespace(modalities=SimpleNamespace(in_use=lambda: {"rna": None})), linear_path_alone=lambda: None
)


@pytest.fixture
def file(tmp_path):
    """A function of obs columns: a file of 60 cells with them."""
    genes = ["CD3D", "CD3E", "MS4A1", "CD79A", "LYZ", "NKG7", "GNLY", "CD8A", "IL7R", "S100A8"]

    def write(**columns):
        counts = np.random.default_rng(0).poisson(2.0, size=(60, len(genes))).astype(np.float32)
        obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(60)])
        path = tmp_path / "cells.h5ad"
        anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
        return path

    return write


TYPES = np.array(["T", "B", "NK"])[np.arange(60) % 3]


def tasks(path, obs_fields=None, test_batches=()):
    dataset = open_dataset(str(path))
    settings = ProbeSettings()
    return probe_suite._labelled_cells(MODEL, dataset, obs_fields, test_batches, settings, lambda message: None)


def test_cells_of_one_batch_are_split_at_random_within_each_type(file):
    for columns in ({"louvain": TYPES}, {"louvain": TYPES, "batch": ["a"] * 60}):
        (task,) = tasks(file(**columns), {"cell_type": "louvain"})
        assert (task.split, task.held_out) == (AT_RANDOM, None)
        parts, counts = np.unique(task.parts, return_counts=True)
        assert len(parts) == 5
        assert counts.tolist() == [12] * 5
        for part in parts:
            assert sorted(task.labels[task.parts == part]) == ["B"] * 4 + ["NK"] * 4 + ["T"] * 4


def test_cells_of_several_batches_are_split_by_them_unless_the_column_is_left_out(file):
    path = file(cell_type=TYPES, batch=np.array(["x", "y"])[np.arange(60) // 30])
    (task,) = tasks(path)
    assert (task.split, task.parts.tolist()) == (BY_BATCH, task.batches.tolist())
    (task,) = tasks(path, {"technical_batch": None})
    assert task.split == AT_RANDOM
    (task,) = tasks(path, test_batches=["y"])
    assert (task.split, task.held_out) == (BY_BATCH, ["y"])


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"louvain": TYPES}, {}, InputError, "(louvain). Say which column holds them: --obs-field cell_type=COLUMN"),
        (
            {"a": TYPES},
            {"obs_fields": {"cell_type": "b"}},
            ConfigError,
            "obs has no column 'b' for cell_type",
        ),
        ({"cell_type": ["T"] * 60}, {}, InputError, "needs two of at least 5 cells; found T 60"),
        ({"cell_type": ["T"] * 57 + ["B"] * 3}, {}, InputError, "needs two of at least 5 cells; found B 3, T 57"),
        ({"cell_type": [""] * 60}, {}, InputError, "none of 60 cells has a label"),
        ({"cell_type": ["T"] * 8 + ["B"] * 8 + [""] * 44}, {}, InputError, "label more cells"),
        ({"cell_type": TYPES, "batch": TYPES}, {}, InputError, "--obs-field technical_batch="),
        ({"cell_type": TYPES}, {"test_batches": ["day2"]}, ConfigError, "--test-batches day2"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_embedded(
    file, monkeypatch, columns, options, error, message
):
    def embedded(*_, **__):
        raise AssertionError("cells were embedded")

    monkeypatch.setattr(probe_suite, "embed_dataset", embedded)
    with pytest.raises(error) as refused:
        probe_suite.probe_model(MODEL, str(file(**columns)), **options)
    assert message in str(refused.value)
