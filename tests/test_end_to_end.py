"""Real files, the whole way a user goes: doctor, corpus build, 50 steps of pretrain, export, embed."""

import json
from pathlib import Path
from typing import NamedTuple

import anndata
import h5py
import mudata
import numpy as np
import pytest
from conftest import scmbert, scmbert_ok

from data_pipelines.readers import example_path, open_dataset
from scmbert_jax.training.run_folder import read_metrics


class Journey(NamedTuple):
    """A file of the shared data (`A+B`: two of the same cells), and what a user says beside its name."""

    files: str
    modalities: tuple[str, ...]
    num_cells: int
    options: tuple[str, ...] = ()
    output: str = "out.h5ad"


JOURNEYS = {
    "pbmc_facs": Journey("pbmc_facs/zheng_pbmc_facs.h5ad", ("rna",), 3874),
    "snareseq": Journey(
        "snareseq_cortex/rna.h5ad+snareseq_cortex/atac.h5ad",
        ("rna", "atac"),
        10309,
        ("--assembly", "mm10", "--min-genes", "20"),
    ),
    "citeseq": Journey("citeseq_pbmc1k/1K_pbmc_citeseq.h5", ("rna", "protein"), 892),
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
    ran = run_scmbert(*tiny(*journey.modalities), *folders, "--steps", "50", "--train.log-every", "5")
    assert ran.code == 0, ran.err
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(5, 51, 5))
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert all(row[f"{modality}_nll_weight"] > 0 for row in rows for modality in journey.modalities)

    scmbert_ok("export", tmp_path / "run", tmp_path / "model")
    for output in (journey.output, "again.h5ad"):
        ran = scmbert("embed", tmp_path / "model", spec, "-o", tmp_path / output)
        assert ran.code == 0, ran.err
        for modality in journey.modalities:
            assert f"{modality}: the file measures" in ran.err
    assert (tmp_path / journey.output).read_bytes() == (tmp_path / "again.h5ad").read_bytes()
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
    assert said["model_step"] == 50
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


def test_the_example_is_embedded_beside_all_that_was_in_it(pbmc_model, tmp_path):
    for output in ("out.h5mu", "again.h5mu"):
        ran = scmbert("embed", pbmc_model, "example:pbmc_mosaic", "-o", tmp_path / output)
        assert ran.code == 0, ran.err
    assert (tmp_path / "out.h5mu").read_bytes() == (tmp_path / "again.h5mu").read_bytes()
    assert "1,600 cells x 32" in ran.out
    only_the_embedding_was_added(example_path("pbmc_mosaic"), tmp_path / "out.h5mu")
    mdata = mudata.read_h5mu(tmp_path / "out.h5mu")
    assert mdata.obsm["X_scmbert"].shape == (1600, 32)
    assert np.isfinite(mdata.obsm["X_scmbert"]).all()
    assert mdata.uns["scmbert"]["model_step"] == 6


def test_an_embedded_file_may_be_embedded_again_in_place(pbmc_model, tmp_path):
    adata = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"][:100].copy()
    adata.obsm["X_pca"] = np.ones((100, 3))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for _ in range(2):
        scmbert_ok("embed", pbmc_model, tmp_path / "cells.h5ad", "-o", tmp_path / "cells.h5ad")
    written = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert set(written.obsm) == {"X_pca", "X_scmbert"}
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


@pytest.mark.slow
def test_the_probe_scores_the_model_beside_its_untrained_twin(pbmc_model, pbmc_run, tmp_path):
    arguments = ("--num-seeds", "2", "--run-dir", pbmc_run, "--report", tmp_path / "report.html", "--json")
    ran = scmbert("evaluate", "probe", "--model", pbmc_model, *arguments)
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["data"] == "example:pbmc_mosaic"
    assert [result["modality"] for result in document["results"]] == ["rna", "protein", "rna+protein"]
    text = (tmp_path / "report.html").read_text()
    assert "loss" in text
    assert "PCA" in text
