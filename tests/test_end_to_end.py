"""Real files, the whole way a user goes: doctor, corpus build, 20 steps of pretrain, export, embed, translate."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import anndata
import h5py
import jax
import mudata
import numpy as np
import pytest
from conftest import TINY, scmbert, scmbert_ok

import scmbert_jax
from data_pipelines.readers.example_reader import example_path
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.training.run_folder import read_metrics

TIMINGS = ("cells_per_second", "step_seconds", "data_wait_fraction")


class Journey(NamedTuple):
    """A file of the shared data (`A+B`: two of the same cells), and what a user says beside its name."""

    files: str
    modalities: tuple[str, ...]
    num_cells: int
    options: tuple[str, ...] = ()
    reader: tuple[str, ...] = ("--reader", "threads")
    output: str = "out.h5ad"


JOURNEYS = {
    "pbmc_facs": Journey("pbmc_facs/zheng_pbmc_facs.h5ad", ("rna",), 3874),
    "snareseq": Journey(
        "snareseq_cortex/rna.h5ad+snareseq_cortex/atac.h5ad",
        ("rna", "atac"),
        10309,
        ("--assembly", "mm10", "--min-genes", "20"),
    ),
    "citeseq": Journey(
        "citeseq_pbmc1k/1K_pbmc_citeseq.h5", ("rna", "protein"), 892, reader=()
    ),  # the one that is chosen by itself
}


def tiny(*modalities: str) -> tuple[str, ...]:
    """`pretrain tiny` reading these modalities only."""
    absent = [name for name in ("rna", "protein", "atac") if name not in modalities]
    return ("pretrain", "tiny", *(part for name in absent for part in (f"--modalities.{name}.num-tokens", "0")))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOURNEYS)
def test_real_cells_go_the_whole_way(name, shared_data, tmp_path, run_scmbert):
    journey = JOURNEYS[name]
    spec = "+".join(str(shared_data / part) for part in journey.files.split("+"))
    report = json.loads(scmbert_ok("doctor", spec, "--json", *journey.options))
    assert report["usable"] is True
    assert tuple(report["modalities"]) == journey.modalities

    scmbert_ok("corpus", "build", tmp_path / "corpus", spec, "--block-size", "64", *journey.options)
    assert json.loads(scmbert_ok("corpus", "verify", tmp_path / "corpus", "--json"))["ok"] is True

    folders = ("--corpus", tmp_path / "corpus", "--run-dir", tmp_path / "run")
    ran = run_scmbert(*tiny(*journey.modalities), *journey.reader, *folders, "--steps", "20", "--train.log-every", "5")
    assert ran.code == 0, ran.err
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert all(row[f"masked_modeling/{modality}_nll_weight"] > 0 for row in rows for modality in journey.modalities)

    scmbert_ok("export", tmp_path / "run", tmp_path / "model")
    # Whole cells are shown in test_embed; here, 64 tokens of 15,000 cells: a tenth of the time.
    ran = scmbert("embed", tmp_path / "model", spec, "-o", tmp_path / journey.output, "--num-tokens", "64")
    assert ran.code == 0, ran.err
    for modality in journey.modalities:
        assert f"{modality}: the file measures" in ran.err
    check_embedded(tmp_path / journey.output, spec, journey, tmp_path / "run")
    if "atac" in journey.modalities:
        check_other_regions_are_refused(Path(spec.split("+")[1]), tmp_path)


def check_other_regions_are_refused(atac: Path, tmp_path: Path):
    """Peaks called anew are other intervals: their counts would mean nothing to the model."""
    adata = anndata.read_h5ad(atac)[:50].copy()
    places = [name.replace(":", "-").replace("_", "-").split("-") for name in adata.var_names]
    adata.var_names = [f"{chrom}:{int(start) + 7}-{int(end) - 7}" for chrom, start, end in places]
    adata.write_h5ad(tmp_path / "peaks.h5ad")
    ran = scmbert("embed", tmp_path / "model", tmp_path / "peaks.h5ad", "-o", tmp_path / "peaks_out.h5ad")
    assert ran.code == 2
    assert f"{tmp_path / 'peaks.h5ad'}: none of its 25,734 atac features is among the model's 25,734" in ran.err
    assert "Regions must be the very intervals the model was trained on" in ran.err
    assert not (tmp_path / "peaks_out.h5ad").exists()


def check_embedded(path: Path, spec: str, journey: Journey, run_dir: Path):
    dataset = open_dataset(spec)
    adata = anndata.read_h5ad(path)
    assert adata.obs_names.tolist() == dataset.cell_ids.tolist()
    assert adata.obsm["X_scmbert"].shape == (journey.num_cells, 32)
    assert adata.obsm["X_scmbert"].dtype == np.float32
    assert np.isfinite(adata.obsm["X_scmbert"]).all()
    assert np.unique(adata.obsm["X_scmbert"], axis=0).shape[0] > 0.99 * journey.num_cells
    known = json.loads((run_dir / "provenance.json").read_text())
    said = adata.uns["scmbert"]
    assert said["model_step"] == 20
    for field in ("corpus_fingerprint", "feature_space_hash", "git_commit"):
        assert said[field] == known[field]
    assert set(said["features"]) == set(journey.modalities)
    if spec.endswith(".h5ad") and "+" not in spec:
        only_the_embedding_was_added(Path(spec), path)
    else:  # a new file: the cells and what is known of them, no counts
        assert adata.n_vars == 0
        assert list(adata.obs.columns) == list(dataset.obs.columns)
        for column in adata.obs.columns:
            assert adata.obs[column].astype(str).tolist() == dataset.obs[column].astype(str).tolist()


def only_the_embedding_was_added(before: Path, after: Path):
    """Every group, array and attribute of the one file is in the other, byte for byte; what is new is ours."""
    with h5py.File(before) as old, h5py.File(after) as new:
        found: dict[str, set[str]] = {}
        for which, file in (("old", old), ("new", new)):
            names = found.setdefault(which, set())
            file.visit(names.add)
        added = {name for name in found["new"] - found["old"] if name not in ("obsm", "uns")}
        assert added
        assert all(name.startswith(("obsm/X_scmbert", "uns/scmbert")) for name in added), added
        assert found["old"] <= found["new"]
        for name in found["old"]:
            assert list(old[name].attrs) == list(new[name].attrs)
            if isinstance(old[name], h5py.Dataset):
                assert old[name].dtype == new[name].dtype
                if old[name].shape is not None:
                    np.testing.assert_array_equal(old[name][()], new[name][()], err_msg=name)


@pytest.mark.slow
def test_a_file_is_embedded_beside_all_that_was_in_it(pbmc_model, pbmc_few, tmp_path):
    for output in ("out.h5mu", "again.h5mu"):
        ran = scmbert("embed", pbmc_model, pbmc_few, "-o", tmp_path / output)
        assert ran.code == 0, ran.err
    assert (tmp_path / "out.h5mu").read_bytes() == (tmp_path / "again.h5mu").read_bytes()
    assert "240 cells x 32" in ran.out
    only_the_embedding_was_added(pbmc_few, tmp_path / "out.h5mu")
    mdata = mudata.read_h5mu(tmp_path / "out.h5mu")
    assert mdata.obsm["X_scmbert"].shape == (240, 32)
    assert np.isfinite(mdata.obsm["X_scmbert"]).all()
    assert mdata.uns["scmbert"]["model_step"] == 6


@pytest.mark.slow
def test_an_embedded_file_may_be_embedded_again_and_is_never_replaced(pbmc_model, tmp_path):
    adata = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"][:100].copy()
    adata.obsm["X_pca"] = np.ones((100, 3))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for name, other in (("cells", "once"), ("once", "twice")):
        scmbert_ok("embed", pbmc_model, tmp_path / f"{name}.h5ad", "-o", tmp_path / f"{other}.h5ad")
    written = anndata.read_h5ad(tmp_path / "twice.h5ad")
    assert set(written.obsm) == {"X_pca", "X_scmbert"}
    before = (tmp_path / "cells.h5ad").read_bytes()
    refused = scmbert("embed", pbmc_model, tmp_path / "cells.h5ad", "-o", tmp_path / "cells.h5ad", "--overwrite")
    assert refused.code == 2
    assert "cells.h5ad: is what is read" in refused.err
    assert (tmp_path / "cells.h5ad").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "once.h5ad", "twice.h5ad"]


@pytest.mark.slow
def test_the_probe_scores_the_model_beside_its_untrained_twin(pbmc_model, pbmc_run, pbmc_few, tmp_path):
    arguments = ("--num-seeds", "2", "--run-dir", pbmc_run, "--report", tmp_path / "report.html", "--json")
    ran = scmbert("evaluate", "probe", "--model", pbmc_model, "--data", pbmc_few, *arguments)
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["data"] == str(pbmc_few)
    assert [result["modality"] for result in document["results"]] == ["rna", "protein", "rna+protein"]
    text = (tmp_path / "report.html").read_text()
    assert "Where the time of training went" in text
    assert "loss" in text
    assert "PCA" in text


MIXTURE = (
    *(*TINY, "--steps", "8", "--train.checkpoint-every", "4", "--train.log-every", "1"),
    *("--objectives.cross-modal-translation.weight", "1", "--objectives.cross-modal-translation.cycle-weight", "0.5"),
    *("--objectives.contrastive-alignment.weight", "1", "--objectives.contrastive-alignment.projection-dim", "8"),
)


def rows_of(run_dir: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_a_mixture_of_all_objectives_trains_continues_embeds_and_translates(
    pbmc_corpus, pbmc_few, run_scmbert, tmp_path
):
    whole, continued = tmp_path / "whole", tmp_path / "continued"
    ran = run_scmbert(*MIXTURE, "--corpus", pbmc_corpus, "--run-dir", whole)
    assert ran.code == 0, ran.err
    rows = rows_of(whole)
    assert {name.split("/")[0] for row in rows[4:] for name in row if name.endswith("/loss")} == {
        "masked_modeling",
        "cross_modal_translation",
        "contrastive_alignment",
    }
    assert np.isfinite([row["loss"] for row in rows]).all()

    # What a machine leaves that was lost between the checkpoints: the same numbers, bit for bit.
    shutil.copytree(whole, continued)
    shutil.rmtree(continued / "checkpoints" / "8")
    ran = run_scmbert(*MIXTURE, "--corpus", pbmc_corpus, "--run-dir", continued)
    assert ran.code == 0, ran.err
    assert rows_of(continued) == rows
    for run_dir in (whole, continued):
        scmbert_ok("export", run_dir, tmp_path / f"model_of_{run_dir.name}")
    model, again = (scmbert_jax.load(tmp_path / f"model_of_{name}") for name in ("whole", "continued"))
    for left, right in zip(*(jax.tree.leaves(own.pretrained.params) for own in (model, again)), strict=True):
        np.testing.assert_array_equal(left, right)

    cells_are_embedded_in_one_space(pbmc_few, tmp_path)
    proteins_are_predicted_from_rna(model, pbmc_few, tmp_path)


def cells_are_embedded_in_one_space(file: Path, tmp_path: Path):
    model_dir, output = tmp_path / "model_of_whole", tmp_path / "joint.h5mu"
    scmbert_ok("embed", model_dir, file, "-o", output, "--joint")
    mdata = mudata.read_h5mu(output)
    joint = {name: mdata.obsm[f"X_scmbert_{name}"] for name in ("joint", "rna", "protein")}
    has = {name: np.isfinite(vectors).all(axis=1) for name, vectors in joint.items()}
    assert {name: int(cells.sum()) for name, cells in has.items()} == {"joint": 240, "rna": 180, "protein": 180}
    for name, vectors in joint.items():
        assert vectors.shape == (240, 8)
        np.testing.assert_allclose(np.linalg.norm(vectors[has[name]], axis=1), 1.0, atol=1e-4)
    only_rna = has["rna"] & ~has["protein"]
    np.testing.assert_allclose(joint["joint"][only_rna], joint["rna"][only_rna], atol=1e-5)


def proteins_are_predicted_from_rna(model, file: Path, tmp_path: Path):
    model_dir, output = tmp_path / "model_of_whole", tmp_path / "translated.h5mu"
    scmbert_ok("translate", model_dir, file, "--to", "protein", "-o", output)
    translated, measured = mudata.read_h5mu(output), mudata.read_h5mu(file)
    protein, rna = translated["protein"], translated["rna"]
    assert protein.shape == (180, 224)
    assert np.isfinite(protein.X).all()
    assert (protein.layers["std"] > 0).all()
    assert (rna.X != measured["rna"].X).nnz == 0  # what was read stands as it was
    assert protein.obs_names.tolist() == rna.obs_names.tolist()
    said = translated.uns["scmbert"]
    assert (said["translated_from"], said["translated_to"], said["scale"]) == ("rna", "protein", "clr")
    assert said["model_step"] == 8
    np.testing.assert_array_equal(model.translate(measured["rna"], to="protein").X, protein.X)
