"""The folder of a regulatory model, complete in itself.

regulatory.json       task, parts, how it was fitted and how well it does; SHA-256 of every file
regulatory.npz        the numbers of its parts, and the motifs that they read
REGULATORY_CARD.md    for people
"""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.config import ModelConfig
from scmbert_jax.dna_config import SequenceConfig
from scmbert_jax.errors import CheckpointError, UserError
from scmbert_jax.folder_digests import read_document, write_document
from scmbert_jax.outputs import REGULATORY, check_output_folder, partial_beside, put_folder
from scmbert_jax.plain_text import markdown
from scmbert_jax.regulation.labelled import Task
from scmbert_jax.regulation.linear_part import LinearDefinition, Part, scanner_of
from scmbert_jax.regulation.model import Combination, RegulatoryModel
from scmbert_jax.regulation.network import NetworkDefinition
from scmbert_jax.sequences.motif_scanner import MotifScanner
from scmbert_jax.text_table import markdown_table

Array = np.ndarray

FORMAT_VERSION = 1  # raised whenever the same folder would give other answers
_ARRAYS, _CARD, _COMMAND = "regulatory.npz", "REGULATORY_CARD.md", "scmbert regulate fit"


def save_regulatory(model: RegulatoryModel, folder: str | Path, overwrite: bool = False) -> None:
    """Writes the folder, whole or not at all. Raises `CheckpointError` where it cannot be written, or is there."""
    folder, partial = Path(folder), None
    check_output_folder(folder, REGULATORY, [], overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(folder)
        partial.mkdir()
        np.savez(partial / _ARRAYS, **_arrays(model))
        (partial / _CARD).write_text(regulatory_card(model), encoding="utf-8")
        write_document(partial, REGULATORY.mark, _document(model))
        put_folder(partial, folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: the regulatory model cannot be written ({error.strerror}).") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def load_regulatory(folder: str | Path) -> RegulatoryModel:
    """Reads a folder, every file of which is compared with its digest.

    Raises CheckpointError: something is missing, damaged, edited or of another version; the file is named.
    """
    folder = Path(folder)
    document = read_document(folder, REGULATORY, FORMAT_VERSION, _COMMAND, _other_version)
    try:
        with open_arrays(folder / _ARRAYS) as file:
            arrays = {name: file[name] for name in file.files}
        motifs = _motifs(arrays, document["motifs"])
        scanner = None if motifs is None else scanner_of(motifs)
        parts = tuple(_part(place, stored, arrays, scanner) for place, stored in enumerate(document["parts"]))
        has_linear = "linear_combination/weights" in arrays
        return RegulatoryModel(
            Task(document["task"]["kind"], tuple(document["task"]["names"])),
            int(document["length"]),
            parts,
            Combination(**_below("combination/", arrays)),
            Combination(**_below("linear_combination/", arrays)) if has_linear else None,
            motifs,
            document["info"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, UserError) as error:
        raise CheckpointError(
            f"{folder / _ARRAYS}: does not fit {REGULATORY.mark} ({type(error).__name__}: {error}); fit it again."
        ) from error


def _other_version(document: dict[str, Any]) -> str:
    return (
        f"regulatory model of format version {document.get('format_version')}; this program reads {FORMAT_VERSION}. "
        "Fit it again with this program."
    )


def _document(model: RegulatoryModel) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": model.name,
        "task": dataclasses.asdict(model.task),
        "length": model.length,
        "parts": [{**_stored(part.definition), "info": part.info} for part in model.parts],
        "motifs": None if model.motifs is None else model.motifs.where,
        "info": json.loads(json.dumps(model.info)),
    }


def _stored(definition: LinearDefinition | NetworkDefinition) -> dict[str, Any]:
    own = {
        field.name: getattr(definition, field.name)
        for field in dataclasses.fields(definition)
        if field.name != "scanner"
    }
    configs = {name: dataclasses.asdict(own.pop(name)) for name in ("encoder", "sequence") if own.get(name)}
    what = "linear" if isinstance(definition, LinearDefinition) else "network"
    return {"part": what, "reads_motifs": definition.scanner is not None, "definition": own | configs}


def _part(place: int, stored: dict[str, Any], arrays: dict[str, Array], scanner: MotifScanner | None) -> Part:
    own, numbers = _tupled(stored["definition"]), _below(f"part{place}/", arrays)
    if stored["reads_motifs"] and scanner is None:
        raise ValueError("a part reads motifs, and there are none")
    mine = scanner if stored["reads_motifs"] else None
    if stored["part"] == "linear":
        return Part(LinearDefinition(**own, scanner=mine), numbers, stored["info"])
    encoder, sequence = own.pop("encoder"), SequenceConfig(**own.pop("sequence"))
    encoder = None if encoder is None else ModelConfig(**encoder)
    definition = NetworkDefinition(encoder, sequence, **own, scanner=mine)
    abstract = definition.abstract_params()
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        found = numbers[f"network/{_name(path)}"]
        if found.shape != leaf.shape:
            raise ValueError(f"{_name(path)} is {list(found.shape)}, expected {list(leaf.shape)}")
        leaves.append(found)
    scales = {name: numbers[name] for name in ("mean", "scale") if name in numbers}
    network = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    return Part(definition, {"network": network, **scales}, stored["info"])


def _tupled(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {name: _tupled(own) for name, own in value.items()}
    return tuple(_tupled(own) for own in value) if isinstance(value, list) else value


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _below(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _arrays(model: RegulatoryModel) -> dict[str, Any]:
    found = {f"combination/{name}": values for name, values in model.combination.arrays.items()}
    if model.linear_combination is not None:
        found |= {f"linear_combination/{name}": own for name, own in model.linear_combination.arrays.items()}
    for place, part in enumerate(model.parts):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part.params):
            found[f"part{place}/{_name(path)}"] = np.asarray(leaf)
    if model.motifs is not None:
        found |= {
            "motifs/ids": np.array(model.motifs.ids, dtype=str),
            "motifs/names": np.array(model.motifs.names, dtype=str),
            "motifs/widths": model.motifs.widths,
            "motifs/counts": np.concatenate(model.motifs.counts),
            "motifs/sites": model.motifs.sites,
        }
    return found


def _motifs(arrays: dict[str, Array], where: str | None) -> MotifSet | None:
    if where is None:
        return None
    own = _below("motifs/", arrays)
    counts = np.split(own["counts"], np.cumsum(own["widths"])[:-1])
    return MotifSet(tuple(own["ids"].tolist()), tuple(own["names"].tolist()), tuple(counts), own["sites"], where)


def regulatory_card(model: RegulatoryModel) -> str:
    """REGULATORY_CARD.md: what it predicts, how well, and what its numbers do not mean."""
    info = model.info
    sections = []
    for part, of_part in info.get("scores", {}).items():
        names = list(next(iter(of_part.values()), {}))
        rows = [[markdown(who), *(_shown(found.get(name)) for name in names)] for who, found in of_part.items()]
        chose = ", by which everything was chosen" if part == "dev" else ""
        number = f"{info['sequences'].get(part, 0):,} sequences"
        chose = ", by which everything was chosen: too good" if part == "dev" else ""
        sections.append(f"### {part} ({number}{chose})\n\n" + markdown_table(["", *names], rows))
    parts = "\n".join(
        f"- {part.definition.name()}, weight {weight:.3f}"
        for part, weight in zip(model.parts, model.combination.weights.tolist(), strict=True)
    )
    counted = "\n".join(f"- {markdown(line)}" for line in info.get("said", []))
    scores = "\n\n".join(sections)
    return f"""# Regulatory model {model.name}

Predicts {markdown(", ".join(model.task.names[:20]))} ({model.task.kind}) of {model.length:,} bases.
Fitted by scmbert_jax to {info["sequences"]["train"]:,} sequences of
{markdown(str(info["data"]))}; {model.num_parameters:,} parameters.

## Parts
{parts}

## Scores, with 95% intervals of a bootstrap over sequences
{scores}

## What was found in the data
{counted}

## Use
`scmbert regulate predict MODEL_DIR table.csv -o out.csv`, or `scmbert_jax.load_regulatory("MODEL_DIR")`.

## Limits
Scores hold for sequences like those that were held out. What is predicted of a variant or of another cell type is not
measured by them. Overlapping or repeated sequences make intervals too narrow.
"""


def _shown(found: Any) -> str:
    return "" if found is None else f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"
