"""manifest.json of a corpus: what is there, and what it may say.

A corpus may come from a stranger, so nothing in its manifest is believed before it was looked at: every field has the
form that this program writes, every name is that of a file in the folder itself, numbers agree with one another, and
the document with the digest of itself.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.corpus import cell_block, tfrecord
from data_pipelines.corpus.storage import CorpusFiles
from scmbert_jax.errors import CorpusError
from scmbert_jax.modalities import MODALITIES

FORMAT = "scmbert-corpus"
FORMAT_VERSION = 2

MANIFEST = "manifest.json"
FEATURE_SPACE = "feature_space.parquet"
MEASURED = "measured.npz"
OBS = "obs.parquet"
TFDS_INFO = "dataset_info.json"
TFDS_FEATURES = "features.json"
SIDE_FILES = (FEATURE_SPACE, MEASURED, OBS, TFDS_INFO, TFDS_FEATURES)
DATA_CARD = "DATA_CARD.md"
# sha256 of all other fields; corpora built before it was written have none.
DIGEST = "manifest_sha256"

_MAX_BYTES = 64 << 20  # of the manifest: 100,000 technical batches are 10 MB
_MAX_NUMBER = 1 << 53  # what JSON carries everywhere
_SHARD = re.compile(r"shard-\d{1,12}\.tfrecord")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def building_path(path: Path) -> Path:
    """Where a corpus grows before it is renamed to `path`."""
    return path.with_name(path.name + ".building")


def read_manifest(files: CorpusFiles) -> dict[str, Any]:
    """manifest.json, of a version that this program reads, in the form that it writes. Raises CorpusError."""
    manifest_path = files.path(MANIFEST)
    if isinstance(manifest_path, Path) and not manifest_path.is_file():
        raise CorpusError(_no_corpus(manifest_path.parent))
    if (size := files.size(MANIFEST)) > _MAX_BYTES:
        raise CorpusError(f"{manifest_path}: {size:,} bytes; the manifest of a corpus has at most {_MAX_BYTES:,}")
    try:
        with files.open(MANIFEST) as file:
            manifest = json.loads(file.read().decode())
    except (OSError, ValueError) as error:
        raise CorpusError(f"{manifest_path}: cannot be read ({error}); rebuild the corpus") from error
    except RecursionError as error:
        raise CorpusError(f"{manifest_path}: nested too deeply for a manifest; rebuild the corpus") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorpusError(f"{manifest_path}: not the manifest of a corpus (its 'format' is not {FORMAT!r})")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CorpusError(
            f"{manifest_path}: corpus of format version {manifest.get('format_version')}; this program reads version "
            f"{FORMAT_VERSION}: rebuild the corpus from its source files, or use the version that wrote it"
        )
    if problem := _problem(manifest):
        raise CorpusError(f"{manifest_path}: {problem}; rebuild the corpus, or copy it again")
    return manifest


def _no_corpus(path: Path) -> str:
    message = f"{path}: no corpus here ({'no manifest.json in it' if path.is_dir() else 'no such folder'})"
    if building_path(path).exists():
        return message + f"; an unfinished build lies at {building_path(path)}: run the same `corpus build` again"
    return message + "; make one with `scmbert corpus build OUT FILE...`"


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of all fields but the digest itself, in whatever order they stand."""
    others = {name: value for name, value in manifest.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(others, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def file_sizes(manifest: dict[str, Any]) -> dict[str, int]:
    """Bytes of every file of a corpus but the manifest itself."""
    sizes = {}
    for shard in manifest["shards"]:
        sizes[shard["file"]] = shard["bytes"]
        sizes[tfrecord.offsets_path(Path(shard["file"])).name] = tfrecord.offsets_bytes(shard["blocks"])
    return sizes | {name: entry["bytes"] for name, entry in manifest["files"].items()}


# --- the form --------------------------------------------------------------------------------------------------------
# A form is a class, a function that says whether a value will do, [form] for a list, {EACH: form} for any names, or
# {name: form} for these names and any others; a name with "?" may be missing.

EACH = "*"


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _or_none(form: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or _misfit(value, form, "") is None


_FILE = {"bytes": _count, "sha256": _digest}
_COUNTS = {EACH: _count}
_MODALITY_OF_DATASET = {
    "counts_field?": str,
    "cells": _count,
    "cells_dropped": _COUNTS,
    "features": _count,
    "linked?": _count,
    "coverage": _or_none(_number),
    "derivation?": _or_none({EACH: dict}),
    "regions?": _or_none(dict),
}
_DATASET = {
    "name": str,
    "files": [{"file": str, **_FILE}],
    "statements?": {EACH: str},
    "organism?": _or_none(str),
    "assembly?": _or_none(str),
    "min_genes?": _or_none(_count),
    **dict.fromkeys(("cells_read?", "cells_not_selected?", "cells", "cells_dropped?", "known_cells_dropped?"), _count),
    "cells_not_primary?": _count,
    "copies_dropped?": _COUNTS,
    "combinations?": _COUNTS,
    "pseudo_pairs?": _or_none(dict),
    "modalities": {EACH: _MODALITY_OF_DATASET},
}
_COMPOSITION = {"values": _count, "cells": _COUNTS, "cells_of_others": _count, "cells_unknown": _count}
_KNOWN = {"name": str, "identity": str, "cells": _count, "cells_dropped": _count, "shared": {EACH: _or_none([str])}}
_FORM = {
    "feature_space_hash": _digest,
    "block_size": lambda value: _count(value) and 0 < value <= cell_block.MAX_CELLS,
    "codec": lambda value: isinstance(value, str) and value in cell_block.CODECS,
    "num_cells": _count,
    "num_blocks": _count,
    "shards": [{"file": lambda v: isinstance(v, str) and bool(_SHARD.fullmatch(v)), "blocks": _count, **_FILE}],
    "files": {EACH: _FILE},
    "modalities": {EACH: {"space": str, "features": _count, "cells": _count, "mean_expressed": _number}},
    "datasets": [_DATASET],
    "vocabularies": {EACH: [str]},
    "content_sha256": _digest,
    "fingerprint": _digest,
    f"{DIGEST}?": _digest,
    "seed?": _number,
    "min_genes?": _or_none(_number),
    "unpaired?": bool,
    "keep_duplicates?": bool,
    "cell_selection?": {EACH: {EACH: [str]}},
    "held_out?": [str],
    "cells_by_modalities?": {EACH: _COUNTS},
    "composition?": {EACH: _COMPOSITION},
    "disjoint_from?": [_KNOWN],
    "versions?": {EACH: str},
    "data_card?": {"file": lambda value: value == DATA_CARD, **_FILE},
}


# Of fields that earlier versions did not write, those that came together.
_TOGETHER = {"cells_by_modalities": {"unpaired"}, "data_card": {"composition", "disjoint_from"}}


def _misfit(value: Any, form: Any, where: str) -> str | None:
    """Where a value is not of a form, and what stands there; None: nowhere."""
    if isinstance(form, list):
        if not isinstance(value, list):
            return _found(where, value)
        parts = ((inner, form[0], f"{where}[{place}]") for place, inner in enumerate(value))
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            return _found(where, value)
        if EACH in form:
            parts = ((inner, form[EACH], f"{where}[{name!r}]") for name, inner in value.items())
        else:
            for name in form:
                if not name.endswith("?") and name not in value:
                    return f"field {name!r} is missing" + (f" in {where}" if where else "")
            named = {name.rstrip("?"): inner for name, inner in form.items()}
            parts = (
                (value[name], inner, f"{where}[{name!r}]" if where else name)
                for name, inner in named.items()
                if name in value
            )
    else:
        fits = isinstance(value, form) if isinstance(form, type) else form(value)
        return None if fits else _found(where, value)
    return next((found for part in parts if (found := _misfit(*part))), None)


def _found(where: str, value: Any) -> str:
    text = json.dumps(value)
    return f"{where} is {text[:60]}{'...' if len(text) > 60 else ''}, which it cannot be"


def _problem(manifest: dict[str, Any]) -> str | None:
    """What is wrong with a manifest, if anything is."""
    misfit = _misfit(manifest, _FORM, "")
    if misfit is not None:
        return misfit
    if DIGEST in manifest and manifest[DIGEST] != (found := manifest_digest(manifest)):
        return f"it was changed: its {DIGEST} is {manifest[DIGEST][:12]}..., its content gives {found[:12]}..."
    if {*manifest["files"]} != {*SIDE_FILES}:
        return f"files names {', '.join(sorted(manifest['files']))}; expected {', '.join(sorted(SIDE_FILES))}"
    if unknown := {*manifest["modalities"]} - {*MODALITIES}:
        return f"modalities names {sorted(unknown)[0]!r}; there are {', '.join(MODALITIES)}"
    missing = [field for whole, fields in _TOGETHER.items() if whole in manifest for field in fields - {*manifest}]
    if missing:
        return f"field {missing[0]!r} is missing"
    return _disagreement(manifest) or _unknown_names(manifest)


def _disagreement(manifest: dict[str, Any]) -> str | None:
    """Numbers of blocks and cells that are not those of the others."""
    shards, num_blocks, num_cells = manifest["shards"], manifest["num_blocks"], manifest["num_cells"]
    if len({shard["file"] for shard in shards}) != len(shards):
        return "shards names a file twice"
    for shard in shards:
        if shard["bytes"] < shard["blocks"] * tfrecord.FRAME_BYTES:
            return f"{shard['file']} has {shard['blocks']:,} blocks in {shard['bytes']:,} bytes"
    if (of_shards := sum(shard["blocks"] for shard in shards)) != num_blocks:
        return f"num_blocks is {num_blocks:,}, its shards have {of_shards:,}"
    if (blocks := -(-num_cells // manifest["block_size"])) != num_blocks:
        return (
            f"num_blocks is {num_blocks:,}, but {num_cells:,} cells are {blocks:,} blocks of {manifest['block_size']}"
        )
    if (of_datasets := sum(entry["cells"] for entry in manifest["datasets"])) != num_cells:
        return f"num_cells is {num_cells:,}, its data sets have {of_datasets:,}"
    return None


def _unknown_names(manifest: dict[str, Any]) -> str | None:
    """Data sets that are named and not listed, and values that stand twice in a vocabulary."""
    names = [entry["name"] for entry in manifest["datasets"]]
    vocabularies = manifest["vocabularies"]
    if vocabularies.get("dataset") != names or len({*names}) != len(names):
        return "vocabularies['dataset'] does not name its data sets, each once and in their order"
    for field, values in vocabularies.items():
        if len({*values}) != len(values):
            return f"vocabularies[{field!r}] has a value twice"
    groups = [*(manifest.get("cells_by_modalities") or ())]
    groups += [value for field in ("technical_batch", "donor") for value in vocabularies.get(field, ())]
    for group in groups:
        if group.partition("/")[0] not in names:
            return f"{group!r} is of no data set that it lists"
    for combination in (key for counts in (manifest.get("cells_by_modalities") or {}).values() for key in counts):
        if not {*combination.split("+")} <= {*MODALITIES, ""}:
            return f"cells_by_modalities names {combination!r}"
    return None
