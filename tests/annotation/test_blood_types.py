"""The annotator in the package, `example:blood_types`: what it is made of, what it says of blood, what it refuses."""

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, scmbert_ok

from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.annotator import is_annotator, load_annotator
from scmbert_jax.annotation.label_tree import LabelTree, cell_ontology
from scmbert_jax.annotation.predict import predict
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.experiment_files import experiment_module

FOLDER = REPOSITORY / "scmbert_jax" / "annotation" / "blood_types"


@pytest.fixture(scope="module")
def annotator():
    return load_annotator("example:blood_types")


@pytest.fixture(scope="module")
def blood():
    """RNA of 120 cells of the built-in example, with 500 genes; none was learned from."""
    both = mudata.read_h5mu(example_path("pbmc_mosaic"))
    cells = both.mod["rna"]
    cells.obs = both.obs.loc[cells.obs_names, ["celltype"]].copy()
    return cells[np.arange(0, cells.n_obs, 10)].copy()


def whole_cells(annotator, number, measured, seed=0):
    """Made-up cells of the annotator's genes of which `measured` are in the file."""
    rng = np.random.default_rng(seed)
    genes = np.array(annotator.representation.pca.space.modalities["rna"].ids)[measured]
    detection = annotator.representation.pca.parts["rna"].detection[measured]
    counts = rng.poisson(detection, (number, len(genes))).astype(np.float32)
    return anndata.AnnData(counts, pd.DataFrame(index=np.arange(number).astype(str)), pd.DataFrame(index=genes))


def test_it_is_small_and_names_nothing_of_where_it_was_made(annotator):
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    for path in files:
        assert not any(word in path.read_bytes() for word in (b"/tmp/", b"/work/", b"/home/", b"/root/")), path
    assert not {"command", "hostname"} & set(annotator.info)


def test_its_card_has_types_data_licences_floors_and_limits(annotator):
    card = (FOLDER / "MODEL_CARD.md").read_text()
    wanted = ("CC BY 4.0", "GSE96583", "## Limits", "SVD + logistic", "nearest centroid", "OneK1K", "{")
    assert [word for word in wanted if word not in card] == ["{"]
    assert all(name in card for name in annotator.types)
    assert "experiments.blood_types" in card


def test_half_of_the_genes_are_enough_and_their_coverage_is_stated(annotator):
    measured, said = np.arange(0, 1500, 2), list[str]()
    found = predict(annotator, whole_cells(annotator, 20, measured), say=said.append)
    assert 0.4 < found.coverage["rna"] < 0.6
    assert f"{found.coverage['rna']:.0%} of what a labelled cell expresses" in " ".join(said)
    assert found.counts()["unsupported"] == 0


def test_blood_cut_to_500_genes_is_unsupported_unless_allowed(annotator, blood):
    said = list[str]()
    found = predict(annotator, blood, say=said.append)
    assert 0.01 < found.coverage["rna"] < 0.3
    assert found.counts()["unsupported"] == len(found.labels)
    assert "less than 30% of its rna features measured" in " ".join(said)
    assert set(found.labels) == {""}


def test_it_tells_the_types_of_blood_that_it_has_not_seen(annotator, blood):
    found = predict(annotator, blood, reading=Reading(allow_low_coverage=True))
    assert found.fitted_to == 0
    names = experiment_module("blood_types").TYPES
    truth = blood.obs["celltype"].astype(str).map(names).fillna("").to_numpy().astype(str)
    known = (truth != "") & (found.labels != "")
    assert known.sum() > 90
    assert LabelTree(annotator.types, cell_ontology()).is_right(found.labels, truth)[known].mean() > 0.75


def test_mouse_cells_are_refused_with_the_reason(annotator, blood):
    mouse = blood[:20].copy()
    mouse.var = pd.DataFrame(index=[name.capitalize() for name in blood.var_names])
    with pytest.raises(InputError, match=r"gene:mouse, the model knows gene:human"):
        predict(annotator, mouse)


def test_the_command_takes_it_by_its_name(blood, tmp_path):
    cells, out = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    blood[:40].copy().write_h5ad(cells)
    printed = scmbert_ok("annotate", "predict", "example:blood_types", cells, "-o", out, "--allow-low-coverage")
    assert "scmbert_label" in printed
    assert set(anndata.read_h5ad(out).obs["scmbert_label"]) > {"B cell", "classical monocyte"}


def test_another_name_is_refused_with_those_there_are():
    assert is_annotator("example:blood_types")
    with pytest.raises(ConfigError, match=r"example:brain: no such annotator; there is example:blood_types"):
        load_annotator("example:brain")
