"""Networks by name, `network:collectri`: fetched by decoupler where there is a connection, or out of a folder.

    network:collectri              CollecTRI
    network:dorothea               DoRothEA, levels A to C
    network:dorothea:commercial    what may be used so; academic, the default, is everything

`$SCMBERT_NETWORKS` names a folder of such tables (collectri_human_academic.csv.gz): a network that lies there is read
and not fetched, one that is fetched is put there. So a run on machines without a connection gets the same edges again.
"""

import importlib
import os
import re
from pathlib import Path
from typing import Literal

import pandas as pd

from data_pipelines.networks.edge_table import EdgeTable, edges_of, read_edge_table, read_edge_tables
from scmbert_jax.errors import InputError

PREFIX = "network:"
FOLDER = "SCMBERT_NETWORKS"
NAMES = ("collectri", "dorothea")
_USES = ("academic", "commercial")
_NAME = re.compile(rf"{PREFIX}(?P<name>{'|'.join(NAMES)})(:(?P<use>{'|'.join(_USES)}))?")
_LICENCE = "resources of OmniPath for {use} use, each under its own licence"
_ELSE = "or save its edges as a table (source, target, weight) and give the path of that"


def read_network(spec: str | Path, organism: Literal["human", "mouse"] | str = "human") -> EdgeTable:
    """The edges of a file, or of a network by name.

    Raises InputError as `read_edge_table`; where a name is none, decoupler is not installed, or it gets no table.
    """
    if not str(spec).startswith(PREFIX):
        return read_edge_table(spec)
    match = _NAME.fullmatch(str(spec))
    if match is None:
        known = ", ".join(PREFIX + name for name in NAMES)
        raise InputError(f"{spec}: expected {known}, with :{', :'.join(_USES)} or nothing after it; {_ELSE}")
    name, use = match["name"], match["use"] or _USES[0]
    folder = os.environ.get(FOLDER)
    kept = Path(folder) / f"{name}_{organism}_{use}.csv.gz" if folder else None
    if kept is not None and kept.is_file():
        return read_edge_table(kept)
    table = _fetched(str(spec), name, use, organism).assign(licence=_LICENCE.format(use=use))
    edges = edges_of(table, str(spec))
    if kept is not None:
        _write(table, kept)
    return edges


def read_networks(spec: str | Path, organism: Literal["human", "mouse"] | str = "human") -> list[EdgeTable]:
    """As `read_network`; of a file of `scmbert networks infer`, a table for each method and cell type in it."""
    return [read_network(spec, organism)] if str(spec).startswith(PREFIX) else read_edge_tables(spec)


def _fetched(spec: str, name: str, use: str, organism: str) -> pd.DataFrame:
    """Text, names of columns in small letters."""
    try:
        operations = importlib.import_module("decoupler").op
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{spec}: decoupler 2, which fetches it, is missing ({error}): pip install 'scmbert_jax[networks]', {_ELSE}"
        ) from error
    try:
        found = getattr(operations, name)(organism=organism, license=use)
    except Exception as error:  # requests, pandas and decoupler raise many types where an answer is not what they await
        raise InputError(
            f"{spec}: decoupler cannot fetch it ({type(error).__name__}: {str(error)[:200]}). Try again with a "
            f"connection, put {name}_{organism}_{use}.csv.gz into the folder that ${FOLDER} names, {_ELSE}"
        ) from error
    return pd.DataFrame({str(column).lower(): found[column].astype(str).to_numpy(object) for column in found})


def _write(table: pd.DataFrame, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        table.to_csv(partial, index=False)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}); unset ${FOLDER}, or name another folder") from error
