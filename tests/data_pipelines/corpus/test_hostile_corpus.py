"""A corpus from a stranger: whatever its manifest and its files claim, it is refused by name, in little time and
memory, and nothing outside its folder is read or written."""

import copy
import hashlib
import io
import json
import re
import shutil
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import zstandard

from data_pipelines.batches.mixture_information import information_of_mixture
from data_pipelines.batches.trained_cells import load_trained_cells
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.data_card import data_card
from data_pipelines.build.describe import describe_corpus, describe_text
from data_pipelines.corpus import cell_block, tfrecord
from data_pipelines.corpus.copy import copy_corpus
from data_pipelines.corpus.corpus import fingerprint_of, open_corpus
from data_pipelines.corpus.manifest import DATA_CARD, DIGEST, MANIFEST, MEASURED, OBS, manifest_digest
from data_pipelines.corpus.remote_files import RemoteFiles
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.files import bounded_npz
from data_pipelines.files.bounded_npz import read_arrays
from data_pipelines.sampling.mixture import Mixture
from data_pipelines.statistics.feature_statistics import load_statistics
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import CheckpointError, CorpusError, InputError, UserError

SECRET = "what nobody may read"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "corpus"
    cells = synthetic_cells(48, 80, 10, 0, num_batches=4, seed=0)
    build_corpus(out, [cells.to_mudata()], min_genes=1, block_size=16, shard_bytes=1200)
    return out


@pytest.fixture
def copied(built, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "in").mkdir()
    return shutil.copytree(built, tmp_path / "in" / "corpus")


def edit(folder, change):
    """`change` alters the manifest; the digest is made anew, as by a stranger who knows of it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest[DIGEST] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def train(folder):
    """All that a run reads of a corpus before its first step, and a block."""
    with open_corpus(folder) as corpus:
        mixture = Mixture([corpus])
        information_of_mixture(mixture, mixture.joined.modalities)
        corpus.obs()
        for index in range(corpus.num_blocks):
            corpus.read_block(index)


def verify(folder):
    report = verify_corpus(folder)
    if not report.ok:
        raise CorpusError("; ".join(report.problems))


def info(folder):
    describe_text(describe_corpus(folder))


def copy_away(folder):
    target = folder.parent / "copy"
    shutil.rmtree(target, ignore_errors=True)
    copy_corpus(folder, target)


USES = (train, verify, info, copy_away)


def refused_by_all(folder, match, uses=USES):
    for use in uses:
        with pytest.raises(CorpusError, match=match):
            use(folder)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/passwd", "a/../../../secret", ".bashrc", "..", "", "manifest.json"]
)
def test_names_that_lead_out_of_the_folder_are_refused(name, copied):
    def card(manifest):
        manifest["data_card"]["file"] = name

    def shard(manifest):
        manifest["shards"][0]["file"] = name

    def side_file(manifest):
        manifest["files"][name] = manifest["files"][OBS]

    def digest(manifest):
        manifest["shards"][0]["sha256"] = name

    sound = (copied / MANIFEST).read_text()
    for change in (card, shard, side_file, digest):
        edit(copied, change)
        refused_by_all(copied, r"manifest\.json: .*(cannot be|files names)")
        (copied / MANIFEST).write_text(sound)
    assert not any(SECRET in path.read_text("latin-1") for path in copied.parent.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", [OBS, "shard-00000.tfrecord", "shard-00000.offsets"])
def test_links_out_of_the_folder_are_not_followed(name, copied):
    shutil.move(copied / name, copied.parent / "elsewhere")
    (copied / name).symlink_to(copied.parent / "elsewhere")
    refused_by_all(copied, rf"{name}: leads out of the corpus")


def test_a_data_card_that_is_a_link_is_not_copied(copied):
    (copied / DATA_CARD).unlink()
    (copied / DATA_CARD).symlink_to(copied.parent.parent / "secret")
    copy_away(copied)
    assert not (copied.parent / "copy" / DATA_CARD).exists()


def test_a_copy_goes_where_nothing_else_lies(copied, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(CorpusError, match=r"holds 'thesis\.tex', which is no file of a corpus"):
        copy_corpus(copied, target)
    (target / "thesis.tex").unlink()
    (target / OBS).write_text("mine")
    with pytest.raises(CorpusError, match=rf"{OBS}: is there already and is another file"):
        copy_corpus(copied, target)
    assert (target / OBS).read_text() == "mine"
    with pytest.raises(CorpusError, match="is the corpus itself"):
        copy_corpus(copied, copied)


# --- content ---------------------------------------------------------------------------------------------------------


def test_a_corpus_that_claims_the_shards_of_another_puts_nothing_into_its_cache(built, copied, tmp_path):
    with open_corpus(copied, cache_dir=tmp_path / "cache") as corpus:
        train(copied)
        framed = corpus.read_frame(0)
    kept = [path for path in (tmp_path / "cache").rglob("*-*") if path.is_file()]
    assert kept
    # A sound record of the same length, as a shard there might have had.
    other = next(record for size in range(len(framed)) if len(record := tfrecord.frame(bytes(size))) == len(framed))
    for path in kept:
        path.write_bytes(other)
    with open_corpus(built, cache_dir=tmp_path / "cache") as corpus:
        assert corpus.read_frame(0) == framed


def test_vocabularies_that_fit_the_fingerprint_and_not_the_cells_are_found(copied):
    def swap(manifest):
        values = manifest["vocabularies"]["cell_type"]
        values[0], values[1] = values[1], values[0]
        with open_corpus(copied) as corpus:
            parts = (corpus.feature_space.content_hash, manifest["vocabularies"], manifest["content_sha256"])
            from data_pipelines.corpus.corpus import measured_digest, read_measured

            measured = measured_digest(read_measured(corpus.files, corpus.manifest, corpus.feature_space))
        manifest["fingerprint"] = fingerprint_of(parts[0], measured, *parts[1:])

    edit(copied, swap)
    with pytest.raises(CorpusError, match=r"vocabularies\['cell_type'\] is not that of the cells"):
        verify(copied)


@pytest.mark.parametrize(("field", "value"), [("num_blocks", 2), ("num_cells", 47), ("block_size", 24)])
def test_numbers_that_contradict_each_other_are_refused(field, value, copied):
    edit(copied, lambda manifest: manifest.update({field: value}))
    refused_by_all(copied, f"{field if field != 'block_size' else 'num_blocks'} is ")


def test_a_manifest_that_was_edited_is_refused(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["datasets"][0]["statements"] = {"licence": "CC0"}
    (copied / MANIFEST).write_text(json.dumps(manifest))
    refused_by_all(copied, f"it was changed: its {DIGEST} is")


@pytest.mark.parametrize("name", [OBS, MEASURED])
def test_training_compares_small_files_with_their_hashes(name, copied):
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    refused_by_all(copied, rf"{name}: sha256", (train, verify))


def replace(folder, name, content):
    (folder / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(folder, lambda manifest: manifest["files"].update({name: entry}))


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_a_payload_of_64_gib_is_refused_by_its_header():
    stored = zstandard.ZstdCompressor().compress(b"\0" * 1000)
    for claimed in (64 << 30, 2 << 30):
        record = struct.pack("<4sHBBQQ", b"SCMB", cell_block.BLOCK_VERSION, 1, 0, claimed, len(stored)) + stored
        with pytest.raises(CorpusError, match=f"claims a payload of {claimed:,} bytes; it can have at most"):
            cell_block.decode(record)
    plain = cell_block.pack(b"\0" * 1000, "zstd")
    with pytest.raises(CorpusError, match="1,000 bytes; it can have at most 999"):
        cell_block.unpack(plain, 999)


def test_an_array_of_terabytes_is_refused_by_its_header(copied):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1, 1 << 42)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rna.npy", header.getvalue() + bytes(1 << 20))
    with pytest.raises(ValueError, match=r"rna claims uint8 \[1, 4398046511104\], expected uint8 \[1, 10\]"):
        read_arrays(packed, {"rna": ((1, 10), np.uint8)})
    replace(copied, MEASURED, packed.getvalue())
    refused_by_all(copied, "measured.npz: cannot be read .rna claims", (train, verify, info))


def test_an_array_whose_shape_is_not_known_before_has_the_bytes_it_claims(tmp_path, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("share.npy", header.getvalue() + bytes(100))
    with pytest.raises(InputError, match=r"a\.npz: cannot be read .*share\.npy claims float32 \[1099511627776\]"):
        load_statistics(tmp_path / "a.npz", 3, linear_path=True)
    with pytest.raises(CheckpointError, match=r"a\.npz: damaged \(share\.npy claims"):
        load_trained_cells(tmp_path / "a.npz")
    monkeypatch.setattr(bounded_npz, "MOST_BYTES", 200)
    with pytest.raises(InputError, match="it unpacks to 228 bytes, at most 200 are read"):
        load_statistics(tmp_path / "a.npz", 3, linear_path=True)


def test_a_table_of_more_rows_than_cells_is_refused_before_it_is_read(copied):
    packed = io.BytesIO()
    pd.DataFrame({"cell_id": np.zeros(10_000_000, np.int8)}).to_parquet(packed)
    replace(copied, OBS, packed.getvalue())
    refused_by_all(copied, r"obs\.parquet: .*10,000,000 rows, expected at most 48", (train, verify))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 200_000, "nested too deeply|cannot be read"),
        ('{"format": "scmbert-corpus"}'.encode("utf-16"), "cannot be read"),
        ('{"format": "é"}'.encode("latin-1"), "cannot be read"),
        (b"3", "not the manifest of a corpus"),
        (b'{"format": "scmbert-corpus", "format_version": 2, "block_size": ' + b"9" * 5000 + b"}", "cannot be read"),
    ],
)
def test_json_of_other_types_and_encodings_is_a_named_error(text, words, copied):
    (copied / MANIFEST).write_bytes(text)
    refused_by_all(copied, rf"manifest\.json: .*({words})")


def test_a_manifest_of_gigabytes_is_refused_by_its_size(copied):
    with open(copied / MANIFEST, "ab") as file:
        file.truncate(3 << 30)  # no disk is used
    refused_by_all(copied, r"manifest\.json: 3,221,225,472 bytes; .* at most 67,108,864")


# --- every field -----------------------------------------------------------------------------------------------------

ODD = ("../../secret", -1, 1 << 62, float("nan"), None, [], {"a": {"b": [1]}}, "\x1b]0;owned\x07\u202e<b>|", "\ud800")


def places(value, path=()):
    """Every field of a document; of lists the first entry."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in inner:
        yield from places(part, (*path, name))


@pytest.mark.slow
def test_no_field_of_a_manifest_brings_a_traceback_or_a_file_elsewhere(copied):
    good = json.loads((copied / MANIFEST).read_text())
    rng = np.random.default_rng(0)
    outside = {path for path in copied.parent.parent.rglob("*") if not path.is_relative_to(copied.parent)}
    for path in places(good):
        manifest = copy.deepcopy(good)
        holder = manifest
        for name in path[:-1]:
            holder = holder[name]
        choice = int(rng.integers(len(ODD) + 1))
        if choice == len(ODD):
            del holder[path[-1]]
        else:
            holder[path[-1]] = ODD[choice]
        manifest[DIGEST] = manifest_digest(manifest)
        (copied / MANIFEST).write_text(json.dumps(manifest))
        accepted = set()
        for use in USES:
            try:
                use(copied)
                accepted.add(use)
            except UserError:
                continue
        assert verify in accepted or train not in accepted, f"{path}: training takes what verify refuses"
    assert {path for path in copied.parent.parent.rglob("*") if not path.is_relative_to(copied.parent)} == outside


# --- what is written and said ----------------------------------------------------------------------------------------


def test_a_data_card_holds_no_markup_of_strangers(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    evil = "<script>x()</script>|`*a*`](http://evil)\n# Title\x1b[2J\u202e"
    entry = manifest["datasets"][0]
    entry["statements"] = {"title": evil, "li|<b>": evil}
    entry["name"] = entry["organism"] = evil
    entry["modalities"]["rna"]["counts_field"] = entry["modalities"]["rna"]["cells_dropped"] = evil
    entry["modalities"]["rna"]["cells_dropped"] = {evil: 3}
    manifest["composition"] = {evil: {"values": 1, "cells": {evil: 5}, "cells_of_others": 0, "cells_unknown": 0}}
    manifest["cell_selection"] = {"only": {evil: [evil]}, "exclude": {}}
    manifest["versions"] = {evil: evil}
    shared = {"donor": [evil]}
    manifest["disjoint_from"] = [{"name": evil, "identity": evil, "cells": 1, "cells_dropped": 0, "shared": shared}]
    text = re.sub(r"(?<!\\)`[^`]*`", "", data_card(manifest))  # between backticks nothing is markup
    for part in ("<script", "<b>", "\x1b", "\u202e", "\n# Title", " *a*"):
        assert part not in text, part
    assert not re.search(r"(?<!\\)\]\(http", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} <= {3, 4, 8}


def test_a_url_is_said_and_remembered_without_its_secrets():
    files = RemoteFiles("https://user:pa55@host/corpus?X-Amz-Signature=s1gned")
    for said in (str(files.root), str(files.path(MANIFEST)), str(CorpusError(f"{files.location}: gone"))):
        assert "pa55" not in said
        assert "s1gned" not in said
        assert "https://***@host/corpus?X-Amz-Signature=***" in said
