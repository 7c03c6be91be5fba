"""A corpus on disk: opened quickly or refused with the reason; every kind of damage is found and named."""

import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.describe import describe_corpus, describe_text
from data_pipelines.corpus import cell_block, tfrecord
from data_pipelines.corpus.corpus import balanced_block_sizes, open_corpus
from data_pipelines.corpus.manifest import DIGEST, FEATURE_SPACE, MANIFEST, MEASURED, OBS, manifest_digest
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import CorpusError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus of several shards, 13 blocks of 16 cells."""
    cells = synthetic_cells(208, 80, 10, 0, num_batches=4, seed=0)
    out = tmp_path_factory.mktemp("built") / "corpus"
    build_corpus(out, [cells.to_mudata()], min_genes=1, block_size=16, shard_bytes=1200)
    return out


@pytest.fixture
def copied(built, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(built, tmp_path / "corpus")


def edit_manifest(folder, **changes):
    """As somebody who knows that a manifest has a digest of itself."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps({**manifest, DIGEST: manifest_digest(manifest)}))


def entry_of(path):
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(bytes(data))


# --- sound -----------------------------------------------------------------------------------------------------------


def test_a_sound_corpus_opens_verifies_and_describes_itself(built):
    with open_corpus(built) as corpus:
        assert sum(corpus.read_block(index).num_cells for index in range(corpus.num_blocks)) == corpus.num_cells == 208
        np.testing.assert_array_equal(
            corpus.block_sizes, [corpus.read_block(index).num_cells for index in range(corpus.num_blocks)]
        )
    report = verify_corpus(built)
    assert report.ok
    assert (report.num_blocks, report.num_cells) == (corpus.num_blocks, 208)
    description = describe_corpus(built)
    json.dumps(description)
    text = describe_text(description)
    for part in ("208 cells", "80 features (gene:human)", "mudata", description["fingerprint"][:16]):
        assert part in text


def test_tensorflow_reads_our_shards(built):
    tf = pytest.importorskip("tensorflow")
    with open_corpus(built) as corpus:
        paths = [str(corpus.shard_path(shard)) for shard in range(len(corpus.manifest["shards"]))]
        assert len(paths) > 2
        form = {"block": tf.io.FixedLenFeature((), tf.string)}
        examples = [tf.io.parse_single_example(record, form) for record in tf.data.TFRecordDataset(paths)]
        assert len(examples) == corpus.num_blocks
        for index, example in enumerate(examples):
            record = example["block"].numpy()
            np.testing.assert_array_equal(cell_block.decode(record).cell_index, corpus.read_block(index).cell_index)


def test_many_threads_read_the_same_blocks(built):
    with open_corpus(built) as corpus:
        start = threading.Barrier(8)

        def read(seed: int) -> list[int]:
            start.wait()
            order = np.random.default_rng(seed).permutation(corpus.num_blocks)
            return sorted(int(corpus.read_block(int(index)).cell_index[0]) for index in order)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(read, range(8)))
        expected = sorted(int(corpus.read_block(index).cell_index[0]) for index in range(corpus.num_blocks))
        assert all(one == expected for one in found)


def test_a_modality_that_is_not_asked_for_is_not_read(built):
    with open_corpus(built) as corpus:
        assert list(corpus.read_block(0, ("protein",)).modalities) == ["protein"]


@pytest.mark.parametrize(("num_cells", "block_size"), [(1, 256), (256, 256), (257, 256), (1000, 7), (0, 5)])
def test_block_sizes_are_balanced(num_cells, block_size):
    sizes = balanced_block_sizes(num_cells, block_size)
    assert sizes.sum() == num_cells
    assert len(sizes) == -(-num_cells // block_size)
    if num_cells:
        assert sizes.max() - sizes.min() <= 1
        assert sizes.max() <= block_size


# --- refused when opened ---------------------------------------------------------------------------------------------


def test_a_folder_without_manifest_is_no_corpus(built, tmp_path):
    with pytest.raises(CorpusError, match="no such folder"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"no manifest\.json in it"):
        open_corpus(tmp_path)


def test_another_format_version_is_refused_by_number(copied):
    edit_manifest(copied, format_version=99)
    for use in (open_corpus, verify_corpus, describe_corpus):
        with pytest.raises(CorpusError, match=r"format version 99.*reads version 2"):
            use(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "something else"}'])
def test_a_manifest_that_is_none_is_refused(copied, text):
    (copied / MANIFEST).write_text(text)
    with pytest.raises(CorpusError, match=r"manifest\.json"):
        open_corpus(copied)


def test_a_manifest_with_a_field_missing_is_refused_by_name(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    del manifest["num_blocks"]
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match="'num_blocks' is missing"):
        open_corpus(copied)


@pytest.mark.parametrize("name", ["shard-00001.tfrecord", "shard-00001.offsets", FEATURE_SPACE, MEASURED, OBS])
def test_a_missing_or_truncated_file_is_refused_when_opened_and_named(copied, name):
    path = copied / name
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    with pytest.raises(CorpusError, match=rf"{name}: {len(data) - 7} bytes, the manifest says {len(data)}"):
        open_corpus(copied)
    path.unlink()
    with pytest.raises(CorpusError, match=rf"{name}: No such file"):
        open_corpus(copied)


def test_the_feature_space_of_another_corpus_is_refused(copied, tmp_path):
    other = synthetic_cells(60, 70, 0, 0, num_batches=2, seed=1, mosaic=False)
    build_corpus(tmp_path / "other", [other.to_mudata()], min_genes=5)
    shutil.copy(tmp_path / "other" / FEATURE_SPACE, copied / FEATURE_SPACE)
    files = json.loads((copied / MANIFEST).read_text())["files"]
    files[FEATURE_SPACE] = entry_of(copied / FEATURE_SPACE)
    edit_manifest(copied, files=files)
    with pytest.raises(CorpusError, match="do not belong together"):
        open_corpus(copied)


# --- damaged inside --------------------------------------------------------------------------------------------------

# Where in a record: the frame (length, its checksum, the data's checksum), the Example around the block, its header,
# its payload.
_BLOCK = tfrecord.frame(bytes(200)).find(bytes(100))
POSITIONS = {
    "length": 1,
    "length checksum": 9,
    "example": 12,
    "example's feature": _BLOCK - 3,
    "magic": _BLOCK,
    "version": _BLOCK + 4,
    "payload bytes": _BLOCK + 8,
    "payload": _BLOCK + 78,
}


@pytest.mark.parametrize("place", [*POSITIONS, "data checksum"])
def test_a_flipped_byte_is_found_and_its_shard_and_block_are_named(copied, place):
    with open_corpus(copied) as corpus:
        shard, within = 1, 1
        block = corpus.manifest["shards"][0]["blocks"] + within
        path = corpus.shard_path(shard)
        offsets = tfrecord.parse_offsets(tfrecord.offsets_path(path).read_bytes(), path.stat().st_size, path)
    flip(path, offsets[within] + POSITIONS[place] if place in POSITIONS else offsets[within + 1] - 2)
    with open_corpus(copied) as corpus:
        with pytest.raises(CorpusError, match=rf"{path.name}: block {block} \(record {within} of the shard\)"):
            corpus.read_block(block)
        corpus.read_block(block - 1)
        corpus.read_block(block + 1)
    report = verify_corpus(copied)
    assert not report.ok
    assert report.damaged_blocks == (block,)
    assert any(path.name in problem and f"block {block}" in problem for problem in report.problems)


def test_verify_names_every_damaged_shard_and_block(copied):
    with open_corpus(copied) as corpus:
        expected, first = [], 0
        for shard, entry in enumerate(corpus.manifest["shards"][:3]):
            flip(corpus.shard_path(shard), 70)
            expected.append(first)
            first += entry["blocks"]
    seen = []
    report = verify_corpus(copied, progress=lambda done, total: seen.append((done, total)))
    assert report.damaged_blocks == tuple(expected)
    assert report.num_blocks == corpus.num_blocks - 3
    for shard in range(3):
        assert sum(f"shard-0000{shard}" in problem for problem in report.problems) == 2  # its hash, and its block
    assert seen[-1] == (corpus.num_blocks, corpus.num_blocks)


def test_a_truncated_shard_is_found_by_verify_block_by_block(copied):
    path = copied / "shard-00001.tfrecord"
    path.write_bytes(path.read_bytes()[:100])
    report = verify_corpus(copied)
    with open_corpus_unchecked(copied) as corpus:
        before = corpus.manifest["shards"][0]["blocks"]
        assert report.damaged_blocks == tuple(range(before, before + corpus.manifest["shards"][1]["blocks"]))


def open_corpus_unchecked(folder):
    """Open although a shard has another size."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for shard in manifest["shards"]:
        shard["bytes"] = (folder / shard["file"]).stat().st_size
    edit_manifest(folder, shards=manifest["shards"])
    return open_corpus(folder)


@pytest.mark.parametrize("name", [FEATURE_SPACE, MEASURED, OBS, "shard-00000.offsets"])
def test_a_flipped_byte_in_a_side_file_is_found_by_verify(copied, name):
    flip(copied / name, (copied / name).stat().st_size // 2)
    report = verify_corpus(copied)
    assert any(name in problem for problem in report.problems)


def test_shards_in_the_wrong_place_are_noticed(copied):
    """Each block is sound and the sizes fit: only the cell numbers in the blocks tell."""
    manifest = json.loads((copied / MANIFEST).read_text())
    shards = manifest["shards"]
    edit_manifest(copied, shards=[shards[1], shards[0], *shards[2:]])
    with open_corpus(copied) as corpus, pytest.raises(CorpusError, match=r"cells \d+ to \d+, expected those from 0 on"):
        corpus.read_block(0)
    assert not verify_corpus(copied).ok


def test_a_vocabulary_that_was_edited_no_longer_fits_the_fingerprint(copied):
    vocabularies = json.loads((copied / MANIFEST).read_text())["vocabularies"]
    edit_manifest(copied, vocabularies={**vocabularies, "cell_type": vocabularies["cell_type"][::-1]})
    assert any("fingerprint" in problem for problem in verify_corpus(copied).problems)
    with pytest.raises(CorpusError, match=r"fingerprint .* the content gives"):  # training refuses it, too
        open_corpus(copied)
