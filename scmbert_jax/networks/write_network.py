"""Networks as files that other programs read. A format: a function and a line.

edges        source, target, weight, [sign,] stability, [cell_type,] method: all networks in one file
adjacencies  TF, target, importance: pySCENIC's and GRNBoost2's
genernib     .h5ad with uns["prediction"]: source, target, weight as text
beeline      Gene1, Gene2, EdgeWeight between tabs: BEELINE's rankedEdges.csv

Of all but the first, each network is a file of its own. Beside OUT lies OUT.json, which says how it was made.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.networks.infer import Inference, Network, inference_document
from scmbert_jax.networks.methods import METHODS
from scmbert_jax.outputs import check_output_file
from scmbert_jax.tasks.whole_file import size_in_file, written_whole

GENERNIB_MOST = 50_000  # edges that geneRNIB reads


class NetworkFormat(NamedTuple):
    """Attributes:
    write: (partial file, table of one network, or of all, document of all).
    endings: of its files.
    together: whether all networks stand in one file.
    most: edges of a network that it takes.
    """

    write: Callable[[Path, pd.DataFrame, dict[str, Any]], None]
    endings: tuple[str, ...]
    together: bool = False
    most: int | None = None


def _write_edges(path: Path, table: pd.DataFrame, document: dict[str, Any]) -> None:
    table.to_csv(path, index=False, sep=_separator(path))


def _write_adjacencies(path: Path, table: pd.DataFrame, document: dict[str, Any]) -> None:
    named = table[["source", "target", "weight"]].set_axis(["TF", "target", "importance"], axis=1)
    named.to_csv(path, index=False, sep=_separator(path))


def _write_beeline(path: Path, table: pd.DataFrame, document: dict[str, Any]) -> None:
    named = table[["source", "target", "weight"]].set_axis(["Gene1", "Gene2", "EdgeWeight"], axis=1)
    named.to_csv(path, index=False, sep="\t")


def _write_genernib(path: Path, table: pd.DataFrame, document: dict[str, Any]) -> None:
    import anndata

    own = table[["source", "target", "weight"]].astype({"weight": str}).astype(object)
    own.index = own.index.astype(str)
    method = METHODS[table["method"].iloc[0]] if len(table) else None
    caution = f" ({method.caution})" if method is not None and method.caution else ""
    uns = {
        "method_id": f"scmbert {table['method'].iloc[0]}{caution}" if len(table) else "scmbert",
        "dataset_id": Path(document["data"]).stem,
        "prediction": own,
        "scmbert": json.dumps(document),
    }
    anndata.AnnData(X=None, uns=uns).write_h5ad(path)


FORMATS = {
    "edges": NetworkFormat(_write_edges, (".csv", ".tsv"), together=True),
    "adjacencies": NetworkFormat(_write_adjacencies, (".csv", ".tsv")),
    "genernib": NetworkFormat(_write_genernib, (".h5ad",), most=GENERNIB_MOST),
    "beeline": NetworkFormat(_write_beeline, (".csv", ".tsv")),
}


def _separator(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","


def check_format(output: Path, kind: str, top: int) -> None:
    """Raises ConfigError: no such format, another ending than its own, or more edges than it takes."""
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind}: there are {', '.join(FORMATS)}.")
    own = FORMATS[kind]
    if output.suffix not in own.endings:
        raise InputError(f"{output}: --format {kind} is written as {' or '.join(own.endings)}; name the output so.")
    if own.most is not None and top > own.most:
        raise ConfigError(f"--top {top:,}: --format {kind} holds at most {own.most:,} edges.")


def information_file(output: Path) -> Path:
    """OUT.json: how the networks of OUT were made."""
    return output.with_name(output.name + ".json")


def network_files(output: Path, kind: str, found: Inference) -> dict[tuple[str, str], Path]:
    """(method, cell type) -> the file of the network: OUT, or OUT with both in its name where there are several."""
    several = len(found.options.methods) > 1
    paths: dict[tuple[str, str], Path] = {}
    for population in found.populations:
        for method in found.options.methods:
            parts = [method] if several else []
            parts += [_file_name(population.name)] if population.name else []
            path = output.with_name(".".join([output.stem, *parts]) + output.suffix)
            if FORMATS[kind].together:
                path = output
            elif path in paths.values():
                raise InputError(f"{path}: two cell types would be written there; rename one of them in obs.")
            paths[method, population.name] = path
    return paths


def check_network_files(output: Path, kind: str, found: Inference, inputs: Sequence[object], overwrite: bool) -> None:
    """Raises InputError where one of the files may not be written (`check_output_file`); asked before the work."""
    for path in dict.fromkeys([*network_files(output, kind, found).values(), information_file(output)]):
        check_output_file(path, inputs, overwrite)


def write_networks(
    output: Path, kind: str, found: Inference, networks: Sequence[Network], overwrite: bool = False
) -> dict[str, Any]:
    """Writes all networks, each file whole or not at all, and OUT.json beside; returns what stands in that.

    Raises `InputError` where one cannot be written, or is there already (unless `overwrite`).
    """
    files = network_files(output, kind, found)
    check_network_files(output, kind, found, (), overwrite)
    document = inference_document(found, [(own, files[own.method, own.cell_type].name) for own in networks])
    document["format"] = kind
    tables: dict[Path, list[pd.DataFrame]] = {}
    for own in networks:
        table = own.table(found.names)
        if found.options.by is not None:
            table["cell_type"] = own.cell_type
        table["method"] = own.method
        tables.setdefault(files[own.method, own.cell_type], []).append(table)
    for path, parts in tables.items():
        whole = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
        if "sign" in whole:
            whole["sign"] = whole["sign"].astype("Int8")
        with written_whole(path, size_in_file(whole)) as partial:
            FORMATS[kind].write(partial, _labelled(whole) if FORMATS[kind].together else whole, document)
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with written_whole(information_file(output), len(text)) as partial:
        partial.write_text(text, encoding="utf-8")
    return document


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """With what everybody must know of a method behind its name."""
    names = {
        name: f"{name} ({METHODS[name].caution})" if METHODS[name].caution else name
        for name in table["method"].unique().tolist()
    }
    return table.assign(method=table["method"].map(names))


def _file_name(cell_type: str) -> str:
    return re.sub(r"[^\w+-]+", "_", cell_type).strip("_") or "unnamed"
