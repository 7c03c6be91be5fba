"""Where a command may write: nothing is replaced unasked, and an input, a link or a folder of another kind never."""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import scmbert

from scmbert_jax.errors import CheckpointError, CorpusError, InputError
from scmbert_jax.outputs import (
    CORPUS,
    MODEL,
    check_output_file,
    check_output_folder,
    check_run_folder,
    partial_beside,
    put_folder,
)

MARKS = {
    "corpus": ("manifest.json", {"format": "scmbert-corpus", "format_version": 2, "shards": [], "fingerprint": "ab"}),
    "model": ("model.json", {"format_version": 1, "step": 3, "provenance": {}}),
    "build": ("plan.json", {"versions": [], "options": {}, "inputs": []}),
    "run": ("provenance.json", {"corpus_fingerprint": "ab", "feature_space_hash": "cd"}),
}


def folder(path, kind, **others):
    """A folder of a kind; `others`: name -> text of more files in it."""
    path.mkdir()
    name, document = MARKS[kind]
    (path / name).write_text(json.dumps(document))
    for other, text in others.items():
        (path / other).write_text(text)
    return path


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path):
    out = tmp_path / "out.h5ad"
    check_output_file(out)
    out.write_text("of before")
    with pytest.raises(InputError, match=r"out\.h5ad: is there already; .*--overwrite"):
        check_output_file(out)
    check_output_file(out, overwrite=True)


@pytest.mark.parametrize("named", ["{}", "{}?assay=10x", "{}+other.h5ad", "soma:{}?organism=human"])
def test_what_is_read_is_never_replaced_however_it_is_named(named, tmp_path):
    cells = tmp_path / "cells.h5ad"
    cells.write_text("counts")
    os.link(cells, tmp_path / "same.h5ad")
    for out in (cells, tmp_path / "same.h5ad", tmp_path / "." / "cells.h5ad"):
        with pytest.raises(InputError, match="is what is read"):
            check_output_file(out, [named.format(cells)], overwrite=True)
    store = tmp_path / "cells.zarr"
    store.mkdir()
    with pytest.raises(InputError, match=r"lies inside .*cells\.zarr, which is read"):
        check_output_file(store / "out.h5ad", [store], overwrite=True)


def test_links_folders_and_what_is_no_ordinary_file_are_refused_even_when_asked(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "link.csv").symlink_to(tmp_path / "precious")
    (tmp_path / "nowhere.csv").symlink_to(tmp_path / "not-there")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, words in {
        "link.csv": "is a link",
        "nowhere.csv": "is a link",
        "pipe.csv": "no ordinary file",
        "folder.csv": "is a folder",
        "no/such/out.csv": "is no folder",
    }.items():
        with pytest.raises(InputError, match=words):
            check_output_file(tmp_path / name, overwrite=True)


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "mark"), [(CORPUS, "corpus"), (MODEL, "model")])
def test_only_a_folder_of_the_same_kind_with_nothing_else_in_it_is_replaced(kind, mark, tmp_path):
    check_output_folder(tmp_path / "new", kind)
    (tmp_path / "empty").mkdir()
    check_output_folder(tmp_path / "empty", kind)
    same = folder(tmp_path / "same", mark)
    with pytest.raises(kind.error, match=r"is there already; .*--overwrite"):
        check_output_folder(same, kind)
    check_output_folder(same, kind, overwrite=True)
    noted = folder(tmp_path / "noted", mark, **{"notes.txt": "mine"})
    with pytest.raises(kind.error, match=r"holds 'notes\.txt', which is none of its files"):
        check_output_folder(noted, kind, overwrite=True)
    for other in set(MARKS) - {mark}:
        with pytest.raises(kind.error, match=f"is there and is not {kind.name}"):
            check_output_folder(folder(tmp_path / other, other), kind, overwrite=True)
    with pytest.raises(kind.error, match=r"same: holds .*cells\.h5ad, which is read|same: is what is read"):
        check_output_folder(same, kind, [same], overwrite=True)
    (tmp_path / "link").symlink_to(same)
    with pytest.raises(kind.error, match="is a link"):
        check_output_folder(tmp_path / "link", kind, overwrite=True)


@pytest.mark.parametrize("text", ['{"name": "an extension of a browser"}', "[]", "{", "\ufeff[" + "[" * 100_000])
def test_a_manifest_that_is_not_ours_makes_no_corpus(text, tmp_path):
    """Any folder with a file `manifest.json` was emptied by `corpus build --overwrite`."""
    other = tmp_path / "site"
    other.mkdir()
    (other / "manifest.json").write_text(text)
    (other / "index.html").write_text("precious")
    ran = scmbert("corpus", "build", other, "example:pbmc_mosaic", "--overwrite")
    assert ran.code == CorpusError.exit_code
    assert "site: is there and is not a corpus" in ran.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["index.html", "manifest.json", "site"]


@pytest.mark.parametrize("also", ["OUT.building", "OUT.replaced"])
def test_what_lies_where_a_build_works_and_is_not_its_own_is_not_touched(also, tmp_path):
    other = tmp_path / also.replace("OUT", "corpus")
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    ran = scmbert("corpus", "build", tmp_path / "corpus", tmp_path / "no-such-file.h5ad")
    assert ran.code == CorpusError.exit_code, ran.err
    assert f"{other}: is " in ran.err
    assert (other / "thesis.tex").read_text() == "precious"


def test_a_run_goes_into_a_folder_of_its_own(tmp_path):
    check_run_folder(tmp_path / "new")
    check_run_folder(folder(tmp_path / "run", "run", **{"my_notes.txt": "beside it, and not in the way"}))
    started = tmp_path / "started"  # killed before `config.json` was written
    started.mkdir()
    for name in ("lock", "feature_space.parquet", "provenance.json.partial"):
        (started / name).write_text("")
    check_run_folder(started)
    for kind in ("corpus", "model", "build"):
        with pytest.raises(CheckpointError, match="not a run folder"):
            check_run_folder(folder(tmp_path / kind, kind))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"holds 'chapter\.tex' and is no run folder"):
        check_run_folder(tmp_path / "thesis")


# --- what grows beside its place -------------------------------------------------------------------------------------


def test_what_killed_processes_left_goes_and_what_others_write_stays(tmp_path):
    path = tmp_path / "out.h5ad"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, others = (tmp_path / f".out.partial-{socket.gethostname()}-{pid}.h5ad" for pid in (gone.pid, os.getppid()))
    for leftover in (left, others):
        leftover.write_text("half")
    folder_left = tmp_path / f".model.partial-{socket.gethostname()}-{gone.pid}"
    folder_left.mkdir()
    assert partial_beside(path).parent == tmp_path
    partial_beside(tmp_path / "model")
    assert list(tmp_path.iterdir()) == [others]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for text in ("first", "second"):
        partial = tmp_path / "partial"
        partial.mkdir()
        (partial / "model.json").write_text(text)
        put_folder(partial, tmp_path / "model")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert (tmp_path / "model" / "model.json").read_text() == text
