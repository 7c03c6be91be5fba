"""Bad input through the command line: each is a clear error that names the place and the remedy, and leaves nothing.

One case for each; what the parts do in every variant stands in their own tests.
"""

import contextlib
import gc
import json
import os
import resource
import shutil
from pathlib import Path

import anndata
import h5py
import jax
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import TINY, Ran, scmbert, scmbert_ok
from multimodal_model import multimodal_model  # noqa: F401

from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.example_reader import example_path
from scmbert_jax import pretrained
from scmbert_jax.errors import CheckpointError, CorpusError, InputError
from scmbert_jax.training.checkpoint import save_weights

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def refused(ran: Ran, kind: type, *words: object) -> None:
    """The exit code of its kind, one message without a traceback, every word of `words` in it, nothing on stdout."""
    assert ran.code == kind.exit_code, (ran.code, ran.err)
    assert "Traceback" not in ran.err
    for word in words:
        assert str(word) in ran.err, (word, ran.err)


def gene_symbols(organism: str, number: int) -> list[str]:
    table = load_gene_table(organism)
    return table.symbols[np.flatnonzero(table.reference & (table.symbols != "") & (table.tss > 0))[:number]].tolist()


def cells(organism: str = "human", num_cells: int = 300) -> anndata.AnnData:
    """Good counts, to be spoilt."""
    values = np.random.default_rng(0).poisson(1.0, (num_cells, 60)).astype(np.float32)
    values[:, 0] += 1
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(num_cells)])
    return anndata.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=gene_symbols(organism, 60)))


# --- files of counts -------------------------------------------------------------------------------------------------


def log_normalised(adata):
    adata.X = adata.X.log1p()


def negative(adata):
    adata.X[7, 5] = -3


def not_finite(adata):
    adata.X[7, 5] = np.nan


def unknown_symbols(adata):
    adata.var_names = [*adata.var_names[:20], *(f"made_up_{i}" for i in range(40))]


def repeated_cells(adata):
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]


def repeated_features(adata):
    adata.var_names = [adata.var_names[0], *adata.var_names[:59]]


def without_cells(adata):
    adata._inplace_subset_obs(slice(0, 0))


SPOILT = {
    log_normalised: ("looks log-normalised", "raw counts are needed", "layers['counts']"),
    negative: ("1 negative values", "'cell7'"),
    not_finite: ("1 NaN or infinite values", "'cell7'"),
    unknown_symbols: ("only 33% of the genes are known", "made_up_0", "--min-coverage"),
    repeated_cells: ("cell ids occur more than once", "'same'", "Make them unique"),
    repeated_features: ("feature ids occur more than once", "Use unique ids"),
    without_cells: ("empty matrix", "0 x 60"),
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_file_that_cannot_be_used_is_refused_by_doctor_build_embed_and_translate(
    spoil,
    multimodal_model,  # noqa: F811
    tmp_path,
):
    adata = cells()
    spoil(adata)
    file = tmp_path / "cells.h5ad"
    adata.write_h5ad(file)
    before = file.read_bytes()
    doctor = scmbert("doctor", file, "--min-genes", "1")
    assert doctor.code == InputError.exit_code
    for word in (file, *SPOILT[spoil]):
        assert str(word) in doctor.out + doctor.err, word
    refused(scmbert("corpus", "build", tmp_path / "corpus", file, "--min-genes", "1"), InputError, file, *SPOILT[spoil])
    refused(scmbert("embed", multimodal_model, file, "-o", tmp_path / "out.h5ad"), InputError, file, *SPOILT[spoil])
    translate = scmbert("translate", multimodal_model, file, "--to", "protein", "-o", tmp_path / "out.h5mu")
    refused(translate, InputError, file, *SPOILT[spoil])
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == before


def nothing_like_it(file):
    file.write_text("gene,cell1,cell2\nCD3E,1,2\n")


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def another_hdf5(file):
    file.unlink()
    with h5py.File(file, "w") as other:
        other["weights"] = np.zeros(3)


def gone(file):
    file.unlink()


def in_another_file(file):
    with h5py.File(file, "r+") as spoilt:
        del spoilt["X"]
        spoilt["X"] = h5py.ExternalLink("/etc/passwd", "/X")


def with_fractions_for_places(file):
    with h5py.File(file, "r+") as spoilt:
        places = spoilt["X/indices"][:] + 0.5
        del spoilt["X/indices"]
        spoilt["X/indices"] = places


BROKEN = {
    nothing_like_it: ("not an HDF5 file but a table of text", "_rewritten.h5ad"),
    truncated: ("truncated or damaged HDF5", "copy or download it again"),
    another_hdf5: ("HDF5 with weights", "expected an .h5ad"),
    gone: ("no such file", "expected an .h5ad"),
    in_another_file: ("'/X' is an external link", "write it whole"),
    with_fractions_for_places: ("X/indices: of type float64", "whole numbers"),
}


@pytest.mark.slow
@pytest.mark.parametrize("break_file", BROKEN, ids=lambda break_file: break_file.__name__)
def test_a_file_that_is_none_is_refused_by_doctor_build_embed_and_translate(
    break_file,
    multimodal_model,  # noqa: F811
    tmp_path,
):
    file = tmp_path / "cells.h5ad"
    cells().write_h5ad(file)
    break_file(file)
    left = list(tmp_path.iterdir())
    refused(scmbert("doctor", file), InputError, file, *BROKEN[break_file])
    refused(scmbert("corpus", "build", tmp_path / "corpus", file), InputError, file, *BROKEN[break_file])
    embed = scmbert("embed", multimodal_model, file, "-o", tmp_path / "out.h5ad")
    refused(embed, InputError, file, *BROKEN[break_file])
    translate = scmbert("translate", multimodal_model, file, "--to", "protein", "-o", tmp_path / "out.h5mu")
    refused(translate, InputError, file, *BROKEN[break_file])
    assert list(tmp_path.iterdir()) == left


def test_a_wrong_organism_is_refused_by_doctor_and_by_a_model_of_the_other(pbmc_model, tmp_path):
    file = tmp_path / "mouse.h5ad"
    cells("mouse").write_h5ad(file)
    doctor = scmbert("doctor", file, "--organism", "human", "--min-genes", "1")
    assert doctor.code == InputError.exit_code
    assert "The genes are mouse, not human: state --organism mouse" in " ".join(doctor.out.split())
    embed = scmbert("embed", pbmc_model, file, "-o", tmp_path / "out.h5ad")
    refused(embed, InputError, file, "gene:mouse", "gene:human", "use a model of that space")
    assert list(tmp_path.iterdir()) == [file]


def test_a_cell_without_counts_is_dropped_from_a_corpus_with_a_word_and_has_no_embedding(pbmc_model, tmp_path):
    adata = mudata.read_h5mu(example_path("pbmc_mosaic")).mod["rna"][:40].copy()
    adata.X = sp.csr_matrix(adata.X.multiply(np.arange(40)[:, None] != 5))
    file = tmp_path / "cells.h5ad"
    adata.write_h5ad(file)
    doctor = scmbert("doctor", file, "--min-genes", "1")
    assert doctor.code == 0
    assert "1 cell without counts dropped" in doctor.out
    text = scmbert_ok("corpus", "build", tmp_path / "corpus", file, "--min-genes", "1", "--block-size", "8")
    assert "39 cells" in text
    ran = scmbert("embed", pbmc_model, file, "-o", tmp_path / "out.h5ad")
    assert ran.code == 0
    assert "1 cells have no counts of the model's features: their embedding is nan" in ran.err
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert np.flatnonzero(np.isnan(written.obsm["X_scmbert"]).any(axis=1)).tolist() == [5]
    assert written.uns["scmbert"]["cells_without_embedding"] == 1


def test_a_file_of_regions_is_refused_by_a_model_of_genes(pbmc_model, tmp_path):
    names = [f"chr1:{1000 * i}-{1000 * i + 500}" for i in range(1, 61)]
    adata = cells()
    adata.var_names = names
    adata.write_h5ad(tmp_path / "peaks.h5ad")
    ran = scmbert("embed", pbmc_model, tmp_path / "peaks.h5ad", "-o", tmp_path / "out.h5ad", "--assembly", "hg38")
    refused(ran, InputError, tmp_path / "peaks.h5ad", "has atac; the model reads rna, protein")
    assert not (tmp_path / "out.h5ad").exists()


# --- a corpus --------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(pbmc_corpus, tmp_path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(pbmc_corpus, tmp_path / "corpus")


def truncate_shard(corpus):
    shard = corpus / "shard-00000.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-1000])
    return CorpusError, ("shard-00000.tfrecord", "bytes, the manifest says")


def of_another_version(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    (corpus / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    return CorpusError, ("manifest.json", "format version 99", "reads version 2")


def without_manifest(corpus):
    (corpus / "manifest.json").unlink()
    return CorpusError, ("no manifest.json in it", "scmbert corpus build")


@pytest.mark.parametrize("damage", [truncate_shard, of_another_version, without_manifest])
def test_a_damaged_corpus_is_refused_before_there_is_a_run_folder(damage, corpus, tmp_path):
    kind, words = damage(corpus)
    run_dir = tmp_path / "run"
    refused(scmbert(*TINY, "--corpus", corpus, "--run-dir", run_dir), kind, corpus, *words)
    assert not run_dir.exists()
    assert scmbert("corpus", "verify", corpus).code == CorpusError.exit_code


def test_a_flipped_byte_of_a_shard_is_named_by_verify_and_stops_training(corpus, tmp_path):
    shard = corpus / "shard-00000.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    verify = scmbert("corpus", "verify", corpus)
    assert verify.code == CorpusError.exit_code
    assert f"{shard}: block " in verify.out
    document = scmbert("corpus", "verify", corpus, "--json")
    assert document.code == CorpusError.exit_code
    assert json.loads(document.out)["ok"] is False
    for position in range(100, len(data), 2000):  # every block, so that the first batch meets one
        data[position] ^= 1
    shard.write_bytes(bytes(data))
    ran = scmbert(*TINY, "--corpus", corpus, "--run-dir", tmp_path / "run")
    refused(ran, CorpusError, f"{shard}: block ", "rebuild the corpus")


# --- runs and models -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_folder_of_another_corpus_is_refused(pbmc_run, tmp_path):
    run_dir = shutil.copytree(pbmc_run, tmp_path / "run")
    corpus = tmp_path / "corpus"
    build = ("corpus", "build", corpus, "example:pbmc_mosaic", "--block-size", "64")
    scmbert_ok(*build, "--seed", "1")
    options = ("--train.checkpoint-every", "3", "--train.log-every", "1", "--steps", "6")
    ran = scmbert(*TINY, "--corpus", corpus, "--run-dir", run_dir, *options)
    refused(ran, CheckpointError, run_dir, "started on another corpus", "use another run folder")
    assert (run_dir / "metrics.jsonl").read_bytes() == (pbmc_run / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_refused_until_one_goes_back(pbmc_corpus, pbmc_run, tmp_path):
    run_dir = shutil.copytree(pbmc_run, tmp_path / "run")
    newest = run_dir / "checkpoints" / "6"
    data = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    options = ("--steps", "6", "--train.checkpoint-every", "3", "--train.log-every", "1")
    command = (*TINY, "--corpus", pbmc_corpus, "--run-dir", run_dir, *options)
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    refused(scmbert(*command), CheckpointError, newest, "not what was saved", "--restore-step 3")
    refused(scmbert(*command, "--restore-step", "5"), CheckpointError, "no checkpoint of step 5", "[3, 6]")
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics
    assert newest.is_dir()

    ran = scmbert(*command, "--restore-step", "3")
    assert ran.code == 0, ran.err
    assert "checkpoints of steps [6] were moved to" in ran.err
    assert "continuing from step 3 of 6" in ran.err
    assert "goodput " in ran.err
    assert (run_dir / "set_aside" / "after-step-3" / "6").is_dir()
    assert [json.loads(row)["step"] for row in (run_dir / "metrics.jsonl").read_text().splitlines()] == [*range(1, 7)]
    again = scmbert(*command, "--restore-step", "3")
    assert again.code == 0, again.err
    assert "this run went back to step 3 already" in again.err


@pytest.fixture
def other_space(tmp_path) -> Path:
    """The feature space of a corpus of other genes."""
    cells().write_h5ad(tmp_path / "cells.h5ad")
    scmbert_ok("corpus", "build", tmp_path / "other", tmp_path / "cells.h5ad", "--min-genes", "1")
    return tmp_path / "other" / "feature_space.parquet"


def test_a_model_with_another_feature_space_is_refused(pbmc_model, other_space, tmp_path):
    model = shutil.copytree(pbmc_model, tmp_path / "model")
    shutil.copy(other_space, model / "feature_space.parquet")
    ran = scmbert("embed", model, "example:pbmc_mosaic", "-o", tmp_path / "out.h5mu")
    refused(ran, CheckpointError, model / "feature_space.parquet", "is not what was written")
    assert not (tmp_path / "out.h5mu").exists()


def test_a_checkpoint_with_another_feature_space_is_not_exported(pbmc_run, other_space, tmp_path):
    run_dir = shutil.copytree(pbmc_run, tmp_path / "run")
    shutil.copy(other_space, run_dir / "feature_space.parquet")
    refused(scmbert("export", run_dir, tmp_path / "model"), CheckpointError, run_dir, "would mean other features")
    assert not (tmp_path / "model").exists()


def no_model(model):
    shutil.rmtree(model)
    model.mkdir()
    return "not a model folder", "scmbert export RUN_DIR MODEL_DIR"


def no_weights(model):
    shutil.rmtree(model / "weights")
    return model / "weights", "is missing", "make it again (scmbert export"


def cut_weights(model):
    largest = max((path for path in (model / "weights").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    return largest, "is not what was written", "make it again (scmbert export"


def newer_model(model):
    (model / "model.json").write_text('{"format_version": 99}')
    return "model format version 99", "this program reads 2", "Train the model again"


def half_a_model_json(model):
    (model / "model.json").write_text('{"format_version": 2, "step": 3}')
    return model / "model.json", "make it again (scmbert export"


def older_model(model):
    info = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**info, "format_version": 1}))
    commit = info["provenance"]["git_commit"]
    return "model format version 1", "Train the model again with this program", f"commit {commit}"


def a_list(model):
    (model / "model.json").write_text("[1, 2]")
    return "not a model folder", "holds list"


def field_of_another_version(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "moood": 1}))
    return model / "config.json", "is not what was written"


def other_sizes(model):
    config = json.loads((model / "config.json").read_text())
    config["model"]["mlp_dim"] = 128
    (model / "config.json").write_text(json.dumps(config))
    return model / "config.json", "is not what was written"


def edited_step(model):
    text = (model / "model.json").read_text()
    (model / "model.json").write_text(text.replace('"step": 6', '"step": 7'))
    return model / "model.json", "is not what was written"


def more_weights(model):
    (model / "weights" / "more").write_text("")
    return model / "weights" / "more", "is no part of what was written"


@pytest.mark.parametrize(
    "spoil",
    [
        no_model,
        no_weights,
        cut_weights,
        newer_model,
        older_model,
        a_list,
        half_a_model_json,
        field_of_another_version,
        other_sizes,
        edited_step,
        more_weights,
    ],
)
def test_a_model_folder_that_is_none_is_refused(spoil, pbmc_model, tmp_path):
    model = shutil.copytree(pbmc_model, tmp_path / "model")
    words = spoil(model)
    ran = scmbert("embed", model, "example:pbmc_mosaic", "-o", tmp_path / "out.h5mu")
    assert ran.code in (4, 5)
    for word in words:
        assert str(word) in ran.err
    assert not (tmp_path / "out.h5mu").exists()


def test_what_is_no_run_folder_is_not_exported(pbmc_run, pbmc_model, tmp_path):
    refused(scmbert("export", tmp_path, tmp_path / "model"), CheckpointError, tmp_path, "no config.json in it")
    missing = scmbert("export", pbmc_run, tmp_path / "model", "--step", "5")
    refused(missing, CheckpointError, pbmc_run, "no checkpoint of step 5; complete ones: [3, 6]")
    refused(scmbert("export", pbmc_run, pbmc_model), CheckpointError, pbmc_model, "is there already", "--overwrite")
    run_dir = shutil.copytree(pbmc_run, tmp_path / "run")
    (run_dir / "provenance.json").write_text('{"corpus_finger')
    refused(scmbert("export", run_dir, tmp_path / "model"), CheckpointError, run_dir / "provenance.json")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_run_that_is_not_done_is_exported_only_when_that_is_said(pbmc_run, tmp_path):
    run_dir, model = shutil.copytree(pbmc_run, tmp_path / "run"), tmp_path / "model"
    shutil.rmtree(run_dir / "checkpoints" / "6")
    refused(scmbert("export", run_dir, model), CheckpointError, run_dir, "checkpoint is of step 3 of 6", "--unfinished")
    assert not model.exists()
    assert "model of step 3 of 6 (unfinished)" in scmbert_ok("export", run_dir, model, "--unfinished")
    assert "| training | step 3 of 6 (unfinished), 16 cells each |" in (model / "MODEL_CARD.md").read_text()
    assert "model of step 3 of 6 (unfinished)" in scmbert_ok("export", pbmc_run, tmp_path / "asked", "--step", "3")


# --- places that cannot be written -----------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_with_room_for(size: int):
    """No file may grow beyond `size` bytes, here and in processes started meanwhile, as if the disk were full."""
    setting = "jax_persistent_cache_min_compile_time_secs"
    often = getattr(jax.config, setting)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update(setting, 1e9)  # or half a program would stay in the cache of compiled ones
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update(setting, often)
        gc.collect()  # Orbax leaves the errors of its other writes unheard; they are told of here, not in a later test


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_stops_the_run_which_continues_when_there_is_room(
    pbmc_corpus, pbmc_run, run_scmbert, tmp_path, monkeypatch
):
    run_dir = shutil.copytree(pbmc_run, tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoints" / "6")  # step 3 was the last
    options = ("--steps", "6", "--train.checkpoint-every", "3", "--train.log-every", "1")
    command = (*TINY, "--corpus", pbmc_corpus, "--run-dir", run_dir, *options)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1e9")
    with disk_with_room_for(20_000):
        ran = run_scmbert(*command)
    refused(ran, CheckpointError, run_dir, "the last good checkpoint is step 3", "run the same command again")
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]
    assert run_scmbert(*command).code == 0
    assert (run_dir / "checkpoints" / "6").is_dir()
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if not path.name.isdigit()] == []


@pytest.mark.slow
@pytest.mark.parametrize(("full_at", "words"), [("statistics", "cannot be written"), ("weights", "could not be saved")])
def test_a_disk_that_is_full_leaves_no_half_model(full_at, words, pbmc_run, tmp_path, monkeypatch):
    statistics = (pbmc_run / "feature_statistics.npz").stat().st_size

    def save_to_a_full_disk(folder, params):
        with disk_with_room_for(1000):
            save_weights(folder, params)

    if full_at == "weights":
        monkeypatch.setattr(pretrained, "save_weights", save_to_a_full_disk)
    with disk_with_room_for(statistics // 2) if full_at == "statistics" else contextlib.nullcontext():
        ran = scmbert("export", pbmc_run, tmp_path / "model")
    refused(ran, CheckpointError, "model", words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_no_half_embedding_and_the_file_of_before(pbmc_model, pbmc_few, tmp_path):
    old = tmp_path / "out.h5mu"
    old.write_bytes(b"of before")
    with disk_with_room_for(400_000):
        ran = scmbert("embed", pbmc_model, pbmc_few, "-o", old, "--overwrite")
    refused(ran, InputError, old, "cannot be written")
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"of before"


@pytest.mark.slow
def test_a_disk_that_is_full_while_the_embedding_is_added_leaves_nothing(pbmc_model, pbmc_few, tmp_path):
    """The copy of the file still fits, the embedding does not."""
    with disk_with_room_for(pbmc_few.stat().st_size + 1000):
        ran = scmbert("embed", pbmc_model, pbmc_few, "-o", tmp_path / "out.h5mu")
    refused(ran, InputError, tmp_path / "out.h5mu", "cannot be written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_no_half_translation_and_the_file_of_before(multimodal_model, pbmc_few, tmp_path):  # noqa: F811
    old = tmp_path / "out.h5mu"
    old.write_bytes(b"of before")
    with disk_with_room_for(400_000):
        options = ("--to", "protein", "-o", old, "--overwrite")
        ran = scmbert("translate", multimodal_model, pbmc_few, *options)
    refused(ran, InputError, old, "cannot be written", "File too large")
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"of before"


@pytest.mark.slow
@pytest.mark.parametrize("room", [20_000, 400_000, 2_000_000])
def test_hdf5_is_never_given_a_disk_that_fills_up(room, tmp_path):
    """It would crash the process, here or when it ends; so room is asked for before, and more than is needed."""
    from scmbert_jax.tasks.whole_file import size_in_file, written_whole

    mdata = mudata.read_h5mu(example_path("pbmc_mosaic"))
    for adata in mdata.mod.values():
        adata.layers["dense"] = adata.X.toarray()
    size = size_in_file(*mdata.mod.values(), mdata.obs)
    path = tmp_path / "out.h5mu"
    with disk_with_room_for(room), pytest.raises(InputError, match="cannot be written"):  # noqa: SIM117
        with written_whole(path, size):
            pytest.fail("HDF5 was allowed to begin")
    assert list(tmp_path.iterdir()) == []
    with written_whole(path, size) as partial:
        mdata.write(partial)
    assert path.stat().st_size <= size < 3 * path.stat().st_size


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("out.h5ad", "written as .h5mu"),
        ("no/such/folder/out.h5mu", "cannot be written"),
        ("folder.h5mu", "is a folder"),
        ("cells.h5mu", "is what is read"),
    ],
)
def test_an_output_that_cannot_be_a_translation_is_refused_before_the_work(place, words, tmp_path):
    """There is no model either, and nothing is said of it: the output is looked at first."""
    (tmp_path / "folder.h5mu").mkdir()
    shutil.copy(example_path("pbmc_mosaic"), tmp_path / "cells.h5mu")
    before = (tmp_path / "cells.h5mu").read_bytes()
    ran = scmbert("translate", "nowhere", tmp_path / "cells.h5mu", "--to", "protein", "-o", tmp_path / place)
    refused(ran, InputError, place, words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5mu", "folder.h5mu"]
    assert (tmp_path / "cells.h5mu").read_bytes() == before


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("out.h5ad", "the output of example:pbmc_mosaic is an .h5mu file"),
        ("no/such/folder/out.h5mu", "cannot be written"),
        ("folder.h5mu", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(place, words, pbmc_model, tmp_path, monkeypatch):
    from scmbert_jax.tasks import embed

    monkeypatch.setattr(embed, "embed_dataset", lambda *_, **__: pytest.fail("the cells were embedded before"))
    (tmp_path / "folder.h5mu").mkdir()
    refused(scmbert("embed", pbmc_model, "example:pbmc_mosaic", "-o", tmp_path / place), InputError, place, words)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.h5mu"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(pbmc_model, pbmc_run, pbmc_corpus, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    embed = scmbert("embed", pbmc_model, "example:pbmc_mosaic", "-o", locked / "out.h5mu")
    refused(embed, InputError, locked)
    refused(scmbert("export", pbmc_run, locked / "model"), CheckpointError, locked)
    refused(scmbert(*TINY, "--corpus", pbmc_corpus, "--run-dir", locked / "run"), CheckpointError, locked)
    refused(scmbert("corpus", "build", locked / "corpus", "example:pbmc_mosaic"), CorpusError, locked)


@pytest.mark.slow
def test_a_place_below_a_file_is_named(pbmc_run, pbmc_corpus, tmp_path):
    """What root meets as well: a folder cannot be made below a file."""
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    refused(scmbert("export", pbmc_run, below), CheckpointError, below)
    refused(scmbert(*TINY, "--corpus", pbmc_corpus, "--run-dir", below), CheckpointError, below)
    refused(scmbert("corpus", "build", below, "example:pbmc_mosaic"), CorpusError, below)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
