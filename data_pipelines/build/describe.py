"""What `scmbert corpus info` says of a corpus, for programs and for people."""

from typing import Any

from data_pipelines.cells.supervision import CellCounts
from data_pipelines.checks.input_report import derivation_lines, regions_text
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.corpus.storage import Location
from scmbert_jax.errors import CorpusError

NOT_RECORDED = "not recorded: the corpus was built by an earlier version; build it again to know"
_MAX_VALUES = 3  # of a field listed in the text
_MAX_BATCHES = 20  # technical batches listed in the text


def describe_corpus(path: Location) -> dict[str, Any]:
    """What `scmbert corpus info` prints: sizes, modalities, data sets, vocabularies, bytes per cell, pairs.

    `cells_by_modalities`, `cell_selection`, `unpaired`, `data_card`, `composition`, `disjoint_from` and what
    `information` says of cells are None where the corpus, built by an earlier version, does not record them.
    """
    with open_corpus(path) as corpus:
        manifest = corpus.manifest
        data_bytes = sum(shard["bytes"] for shard in manifest["shards"])
        return {
            "path": str(corpus.path),
            "format_version": manifest["format_version"],
            "fingerprint": corpus.fingerprint,
            "num_cells": corpus.num_cells,
            "num_blocks": corpus.num_blocks,
            "block_size": manifest["block_size"],
            "codec": manifest["codec"],
            "num_shards": len(manifest["shards"]),
            "shard_bytes": data_bytes,
            "bytes_per_cell": round(data_bytes / max(corpus.num_cells, 1), 1),
            "feature_space_hash": manifest["feature_space_hash"],
            "organism": corpus.feature_space.organism,
            "modalities": manifest["modalities"],
            "datasets": corpus.datasets,
            "cells_by_modalities": manifest.get("cells_by_modalities"),
            "cell_selection": manifest.get("cell_selection"),
            "held_out": manifest.get("held_out", []),
            "unpaired": manifest.get("unpaired"),
            "data_card": manifest["data_card"]["file"] if "data_card" in manifest else None,
            "composition": manifest.get("composition"),
            "disjoint_from": manifest.get("disjoint_from"),
            "information": corpus.information(),
            "vocabularies": {name: len(values) for name, values in corpus.vocabularies.items()},
        }


def describe_text(description: dict[str, Any]) -> str:
    """`describe_corpus` for people. Raises CorpusError where it has a form that nobody can make out."""
    try:
        return _text(description)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorpusError(
            f"{description['path']}/manifest.json: says in a form that this program does not know how its counts were "
            f"made ({type(error).__name__}: {error}); rebuild the corpus, or use the version that wrote it"
        ) from error


def _text(description: dict[str, Any]) -> str:
    lines = [
        f"{description['path']}",
        f"  {description['num_cells']:,} cells in {description['num_blocks']:,} blocks of up to "
        f"{description['block_size']}, {description['num_shards']} shard(s), "
        f"{description['shard_bytes'] / 1e6:,.1f} MB ({description['bytes_per_cell']:,} bytes per cell, "
        f"codec {description['codec']})",
        f"  fingerprint {description['fingerprint'][:16]}  feature space {description['feature_space_hash'][:16]}",
    ]
    for name, entry in description["modalities"].items():
        links = description["information"]["links"]
        linked = f", {links[name]:,} links to genes" if name in links else ""
        lines.append(
            f"  {name:8s}{entry['features']:,} features ({entry['space']}){linked}, measured in {entry['cells']:,} "
            f"cells, {entry['mean_expressed']:,.0f} expressed per cell"
        )
    for entry in description["datasets"]:
        reasons = [
            f"{name}: {count:,} {why}"
            for name, part in entry["modalities"].items()
            for why, count in part["cells_dropped"].items()
        ]
        dropped = "; ".join(reasons)
        unasked = entry.get("cells_not_selected")
        lines.append(
            f"  data set {entry['name']}: {entry['cells']:,} cells"
            + (f", {unasked:,} not selected" if unasked else "")
            + (f" (dropped: {dropped})" * bool(dropped))
            + (f"; {elsewhere:,} of them are not primary data" if (elsewhere := entry.get("cells_not_primary")) else "")
        )
        lines += _coverage_lines(entry)
    lines += [*_selection_lines(description["cell_selection"]), *_pair_lines(description)]
    lines += [f"  held out of training: {rule}" for rule in description["held_out"]]
    known = ", ".join(f"{name} {size}" for name, size in description["vocabularies"].items())
    lines.append(f"  known of the cells: {known}")
    return "\n".join([*lines, *_card_lines(description)])


def _card_lines(description: dict[str, Any]) -> list[str]:
    """The main lines of the data card, and where it is."""
    if description["data_card"] is None:
        return [f"  data card: {NOT_RECORDED}"]
    lines = []
    for field, counts in description["composition"].items():
        listed = ", ".join(f"{value} {cells:,}" for value, cells in list(counts["cells"].items())[:_MAX_VALUES])
        more = f" and {counts['values'] - _MAX_VALUES:,} more" if counts["values"] > _MAX_VALUES else ""
        lines.append(f"  {field}: {listed}{more}")
    for entry in description["datasets"]:
        stated = [f"{name} {entry.get('statements', {}).get(name, 'not stated')}" for name in ("title", "licence")]
        lines.append(f"  of data set {entry['name']}: {', '.join(stated)}")
    for entry in description["disjoint_from"]:
        lines.append(f"  without the cells of {entry['name']}: {entry['cells_dropped']:,} were dropped")
    return [*lines, f"  data card: {description['path']}/{description['data_card']}"]


def _coverage_lines(entry: dict[str, Any]) -> list[str]:
    """How much of what a data set measures is known; an antibody without a coding gene has no link to learn from."""
    lines = []
    for name, part in entry["modalities"].items():
        known = [f"{part['coverage']:.1%} of its features are known"] if part["coverage"] is not None else []
        if name != "rna" and "linked" in part:
            known.append(f"{part['linked']:,} of {part['features']:,} are linked to genes")
        lines += [f"    {name}: {', '.join(known)}"] if known else []
        lines += [f"    {name}: {line}" for line in derivation_lines(part.get("derivation") or {})]
        if part.get("regions"):
            lines.append(f"    {name}: regions: {regions_text(part['regions'])}")
    return lines


def _selection_lines(selection: dict[str, dict[str, list[str]]] | None) -> list[str]:
    return [
        f"  {option} the cells with {field} {', '.join(values)}"
        for option, fields in (selection or {}).items()
        for field, values in fields.items()
    ]


def _pair_lines(description: dict[str, Any]) -> list[str]:
    cells: CellCounts | None = description["cells_by_modalities"]
    if cells is None:
        return [f"  which cells have which modalities, and who paired them: {NOT_RECORDED}"]
    lines = []
    information = description["information"]
    if description["unpaired"]:
        lines.append("  unpaired: cells were not joined by id; every cell has one modality, and no pair can be learned")
    else:
        lines.append(f"  {information['paired_cells']:,} cells measured in several modalities at once (pairs)")
    for name, how in information["pseudo_pairs"].items():
        stated = ", ".join(f"{key} {value}" for key, value in how.items())
        lines.append(f"  pseudo-pairs, made by a program and not by an assay: data set {name} ({stated})")
    if information["pseudo_pairs"]:
        lines.append(f"  {information['pseudo_paired_cells']:,} cells are such pseudo-pairs")
    for group, counts in list(cells.items())[:_MAX_BATCHES]:
        listed = ", ".join(f"{number:,} {combination}" for combination, number in counts.items())
        lines.append(f"    {group}: {listed}")
    if len(cells) > _MAX_BATCHES:
        lines.append(f"    and {len(cells) - _MAX_BATCHES:,} more technical batches (--json lists all)")
    return lines
