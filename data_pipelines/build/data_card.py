"""DATA_CARD.md of a corpus: where its cells come from, which they are, what was left out and why.

All that it says stands in the manifest (`composition`, `versions`, `disjoint_from`, and the entry of each data set), so
that programs read it there. It has no time and no path of this machine: the same build gives the same bytes.
"""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from data_pipelines.build.corpus_overlap import shared_lines
from data_pipelines.cells.cell_metadata import CODED_FIELDS, LOCAL_FIELDS, local_categories
from data_pipelines.corpus.manifest import DATA_CARD as DATA_CARD
from scmbert_jax.plain_text import code, markdown

NOT_STATED = "not stated"
# Fields of the obs table that are counted: those that a model may be told, and what else CELLxGENE asks of everyone.
DESCRIBED_FIELDS = (*CODED_FIELDS, "sex", "development_stage")
_MOST = 20  # values of a field that are listed
_PACKAGES = ("scmbert_jax", "numpy", "scipy", "pandas", "pyarrow", "anndata", "h5py")


def composition(obs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Field -> how many cells have which of its values.

    Args:
      obs: the obs table of a corpus.

    Returns:
      Per field that is known of any cell: `values`, how many there are; `cells`, value -> number of cells, of the most
      frequent; `cells_of_others`, those with other values; `cells_unknown`. Donors and technical batches are named with
      their data set.
    """
    described = {}
    for field in DESCRIBED_FIELDS:
        if field not in obs:
            continue
        values = local_categories(obs, field) if field in LOCAL_FIELDS else obs[field]
        counts = values.dropna().astype(str).value_counts()
        if counts.empty:
            continue
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))  # of equals in the order of the alphabet
        described[field] = {
            "values": len(ordered),
            "cells": {str(value): int(count) for value, count in ordered[:_MOST]},
            "cells_of_others": int(sum(count for _, count in ordered[_MOST:])),
            "cells_unknown": int(len(obs) - counts.sum()),
        }
    return described


def software_versions() -> dict[str, str]:
    """Of this package, Python and the libraries that read files and write the corpus."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def data_card(manifest: Mapping[str, Any]) -> str:
    """The text of DATA_CARD.md. `manifest`: of the corpus, complete but for the card's own entry."""
    datasets, organisms = manifest["datasets"], sorted({str(entry["organism"]) for entry in manifest["datasets"]})
    assemblies = sorted({entry["assembly"] for entry in datasets if entry["assembly"]})
    parts = [
        "# Data card",
        f"A corpus of {manifest['num_cells']:,} cells of {_words(organisms)} for pre-training with scmbert_jax, from "
        f"{_number(len(datasets), 'data set')}. `manifest.json` says the same to programs.",
        _table(
            ("", ""),
            [
                ("fingerprint", f"`{manifest['fingerprint']}`"),
                ("feature space", f"`{manifest['feature_space_hash']}`"),
                ("organism", _words(organisms)),
                ("assembly", _words(assemblies) or NOT_STATED),
            ],
        ),
        "## Sources",
        *[_source(entry) for entry in datasets],
        "## Cells",
        _cells(datasets),
        *_dropped(datasets),
        "## What was measured",
        _measured(datasets),
        "## What the cells are",
        *[_field(name, counts) for name, counts in manifest["composition"].items()],
        *["Nothing is known of them beside their data set."] * (not manifest["composition"]),
        "## How they were chosen",
        _list(_choices(manifest)),
        "## In common with other data",
        _overlaps(manifest["disjoint_from"]),
        "## How it was made",
        _list(
            [
                f"seed {manifest['seed']}, blocks of {manifest['block_size']} cells, codec {manifest['codec']}, format "
                f"version {manifest['format_version']}",
                markdown(", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _source(entry: Mapping[str, Any]) -> str:
    files = [(markdown(file["file"]), f"{file['bytes']:,}", code(file["sha256"])) for file in entry["files"]]
    lines = [
        f"### {markdown(entry['name'])}",
        "",
        _table(("file", "bytes", "sha256"), files) if files else "In memory.",
    ]
    stated = {"title": NOT_STATED, "citation": NOT_STATED, "licence": NOT_STATED, **entry["statements"]}
    lines += ["", _list([f"{markdown(name.replace('_', ' '))}: {markdown(value)}" for name, value in stated.items()])]
    if entry["pseudo_pairs"]:
        how = ", ".join(f"{key} {value}" for key, value in entry["pseudo_pairs"].items())
        lines.append(f"- its pairs were made by a program, not by an assay: {markdown(how)}")
    return "\n".join(lines)


def _cells(datasets: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in datasets:
        copies, known = sum(entry["copies_dropped"].values()), entry["known_cells_dropped"]
        checked = entry["cells_dropped"] - copies - known
        figures = (entry["cells_read"], entry["cells_not_selected"], checked, copies, known, entry["cells"])
        rows.append((markdown(entry["name"]), *(f"{figure:,}" for figure in figures)))
    head = ("data set", "in the files", "not selected", "dropped by the check", "copies", "in other data", "here")
    return _table(head, rows)


def _dropped(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why cells were dropped, and what was kept that a reader may wonder about."""
    lines = []
    for entry in datasets:
        for modality, part in entry["modalities"].items():
            lines += [
                f"{markdown(entry['name'])}, {modality}: {count:,} cells {markdown(reason)}"
                for reason, count in part["cells_dropped"].items()
            ]
        if entry["cells_not_primary"]:
            lines.append(
                f"{markdown(entry['name'])}: {entry['cells_not_primary']:,} cells are here that are not primary data "
                "(`is_primary_data` is False: another data set holds them too)"
            )
    return ["Dropped, and why:\n\n" + _list(lines)] if lines else []


def _measured(datasets: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in datasets:
        for modality, part in entry["modalities"].items():
            coverage = NOT_STATED if part["coverage"] is None else f"{part['coverage']:.1%}"
            figures = (f"{part['cells']:,}", f"{part['features']:,}", coverage, f"{part['linked']:,}")
            rows.append((markdown(entry["name"]), modality, code(part["counts_field"]), *figures))
    head = ("data set", "modality", "counts in", "cells", "features", "of its columns known", "linked to genes")
    return _table(head, rows)


def _field(name: str, counts: Mapping[str, Any]) -> str:
    rows = [(markdown(value), f"{cells:,}") for value, cells in counts["cells"].items()]
    others = counts["values"] - len(rows)
    rows += [(f"{others:,} others", f"{counts['cells_of_others']:,}")] * bool(others)
    rows += [("not known", f"{counts['cells_unknown']:,}")] * bool(counts["cells_unknown"])
    return f"### {markdown(name.replace('_', ' '))}: {_number(counts['values'], 'value')}\n\n" + _table(
        ("", "cells"), rows
    )


def _choices(manifest: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{markdown(option)} the cells with {markdown(field)} {markdown(', '.join(values))}"
        for option, fields in manifest["cell_selection"].items()
        for field, values in fields.items()
    ]
    lines += [
        f"held out of training, and what runs are judged by: {markdown(rule)}" for rule in manifest.get("held_out", ())
    ]
    fewest = {entry["min_genes"] for entry in manifest["datasets"]} - {None}
    limits = f"cells whose RNA has fewer than {' or '.join(f'{limit:,}' for limit in sorted(fewest))} genes, and "
    lines.append(f"{limits if fewest else ''}rows without counts are left out")
    if manifest["keep_duplicates"]:
        lines.append("copies of cells (the same barcode, the same counts) were not looked for: some may be here twice")
    else:
        copies = sum(sum(entry["copies_dropped"].values()) for entry in manifest["datasets"])
        lines.append(f"copies of cells (the same barcode, the same counts) are here once; {copies:,} were dropped")
    if manifest["unpaired"]:
        lines.append("no cell was joined to another by its id: every cell has one modality")
    return lines


def _overlaps(entries: Sequence[Mapping[str, Any]]) -> str:
    if not entries:
        return (
            "It was not compared with held-out data when it was built. `scmbert corpus overlap CORPUS OTHER` compares, "
            "and `scmbert corpus build --disjoint-from OTHER` leaves out the cells of OTHER."
        )
    texts = []
    for entry in entries:
        head = (
            f"{code(entry['name'])} ({entry['cells']:,} cells, {code(entry['identity'])}): {entry['cells_dropped']:,} "
            "cells of the files are cells of it (the same barcode, the same counts) and are left out; none of them is "
            "here."
        )
        texts.append(head + "\n\n" + _list([markdown(line) for line in shared_lines(entry["shared"])]))
    return "\n\n".join(texts)


# --- Markdown --------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _words(texts: Sequence[str]) -> str:
    return " and ".join(map(markdown, texts))


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
