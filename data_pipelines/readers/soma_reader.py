"""TileDB-SOMA experiments, and CELLxGENE Census, which is a collection of them -> data sets. Needs tiledbsoma.

    soma:PLACE?organism=human&measurement=RNA&layer=raw&obs_value_filter=FILTER
        PLACE: a folder or URI of an experiment, or of a Census (then `organism` says which experiment)
    census:VERSION?organism=human&obs_value_filter=is_primary_data == True and tissue_general == 'blood'
        the public Census by anonymous S3; VERSION: a build date such as 2025-11-08, or stable or latest

Only the cells that the filter selects are read, and of those a chunk at a time. An experiment that joins several data
sets (obs has `dataset_id`) becomes as many data sets here, for what a data set measured is known of each: the presence
matrix (`feature_dataset_presence_matrix`) tells a gene that was not measured from a zero, and only its genes are
features of the data set. Where there is no presence matrix all genes count as measured, and a note says so.

Memory: the metadata of the selected cells, and one chunk of cells in a buffer of 64 MiB a column.
"""

import functools
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.features.modality_names import modality_of_name
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.reader import Reader, Request
from data_pipelines.readers.stored_matrix import canonical
from data_pipelines.readers.stored_names import as_names
from data_pipelines.readers.whole_counts import widened
from scmbert_jax.errors import InputError
from scmbert_jax.plain_text import without_secrets

PREFIXES = ("soma:", "census:")
OPTIONS = ("organism", "measurement", "layer", "obs_value_filter")
PRESENCE = "feature_dataset_presence_matrix"

# https://chanzuckerberg.github.io/cellxgene-census/cellxgene_census_aws_open_data.html
CENSUS_URI = "s3://cellxgene-census-public-us-west-2/cell-census/{version}/soma/"
CENSUS_RELEASES = "https://census.cellxgene.cziscience.com/cellxgene-census/v1/release.json"
_S3 = {
    "vfs.s3.region": "us-west-2",
    "vfs.s3.no_sign_request": "true",
    "vfs.s3.connect_timeout_ms": "10000",
    "vfs.s3.connect_max_tries": "3",
}
_BUFFER_BYTES = 64 << 20
_TIMEOUT = 30  # seconds
_ORGANISMS = {"human": "homo_sapiens", "mouse": "mus_musculus"}
# Columns of obs and var that hold names; else the join id is the name.
_CELL_NAMES, _FEATURE_NAMES = ("obs_id", "cell_id", "barcode"), ("feature_id", "var_id", "gene_id")


class _Store(NamedTuple):
    """An open experiment and what is read of it: ms[kind].X[layer] is `values`."""

    root: Any  # tiledbsoma closes what is in it when nobody holds it any more
    experiment: Any
    measurement: Any
    values: Any
    kind: str
    layer: str
    datasets: pd.DataFrame | None  # the Census's table: soma_joinid and dataset_id
    place: str
    about: dict[str, Any]  # for the manifest


def is_soma(place: str) -> bool:
    return place.startswith(PREFIXES)


def read_soma(request: Request) -> list[Dataset]:
    """The data sets of an experiment, in the order of their first cells.

    Of several data sets, `request.name` stands before their ids; without it they are called by id, or by the folder.

    Raises InputError when tiledbsoma is not installed, nothing can be opened there, or nothing is selected.
    """
    place, options, name = request.place, request.options, request.name
    _open.cache_clear()  # what another process has changed since is seen
    frozen = tuple(options.items())
    store = _open(place, frozen)
    kind, layer, measurement = store.kind, store.layer, store.measurement
    obs = _read_obs(store, options.get("obs_value_filter"))
    var = measurement.var.read().concat().to_pandas().sort_values("soma_joinid", ignore_index=True)
    names = _names(var, _FEATURE_NAMES, store.place)
    table = var.set_axis(pd.Index(names, dtype=object))
    where = f"ms[{kind!r}].X[{layer!r}]"
    presence = _Presence(store, measurement, var["soma_joinid"].to_numpy())
    datasets = []
    for dataset_id, rows in _by_dataset(obs):
        part = obs.iloc[rows].reset_index(drop=True)
        columns = presence.of(dataset_id)
        place = without_secrets(store.place)
        path = f"{place} (data set {dataset_id})" if dataset_id else place
        about = {**store.about, "measurement": kind, "layer": layer}
        about |= {"obs_value_filter": options.get("obs_value_filter"), "dataset_id": dataset_id}
        about |= {"genes_by_presence_matrix": presence.is_there}
        cells, features = part["soma_joinid"].to_numpy(), var["soma_joinid"].to_numpy()
        stored = SomaMatrix(place, frozen, cells, features, columns, f"{path}, {where}")
        cell_ids = _names(part, _CELL_NAMES, store.place)
        part = part.set_axis(pd.Index(cell_ids, dtype=object))
        matrix = CountsMatrix(
            path=path,
            field=where,
            modality=modality_of_name(kind) or "",
            modality_evidence=f"the name {kind!r} of the measurement",
            feature_names=names[columns],
            feature_table=table.iloc[columns],
            cell_ids=cell_ids,
            obs=part,
            genome=None,
            stored=stored,
            derivation={"soma": about},
        )
        known_as = "/".join(text for text in (name, dataset_id) if text) or _base_name(store.place)
        notes = presence.notes(path) if dataset_id else []
        datasets.append(Dataset(known_as, [matrix], cell_ids, part, notes))
    return datasets


class SomaMatrix:
    """Some cells and genes of a sparse X layer, read chunk by chunk; another process opens the store for itself.

    Args:
      place, options: of the store.
      cells: int64 [cells], join ids, ascending.
      features: int64 [all features], join ids, ascending.
      columns: int64, which of the features are read; a value in another one is a contradiction.
    """

    any_row = True

    def __init__(
        self,
        place: str,
        options: tuple[tuple[str, str], ...],
        cells: np.ndarray,
        features: np.ndarray,
        columns: np.ndarray,
        where: str,
    ):
        self.shape = (len(cells), len(columns))
        self.dtype = np.dtype(_open(place, options).values.schema.field("soma_data").type.to_pandas_dtype())
        self._place, self._options = place, options
        self._cells, self._features, self._where = cells, features, where
        self._column_of = np.full(len(features), -1, np.int64)
        self._column_of[columns] = np.arange(len(columns))

    def chunks(self, rows: int, first: int = 0, last: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        end = self.shape[0] if last is None else last
        for start in range(first, end, rows):
            cells = self._cells[start : min(start + rows, end)]
            store = _open(self._place, self._options)
            try:
                found = list(store.values.read((cells, slice(None))).tables())
            except Exception as error:  # tiledbsoma raises types of its own for every backend
                raise InputError(
                    f"{self._where}: cells {cells[0]:,} to {cells[-1]:,} cannot be read ({_first_line(error)}); the "
                    "store is damaged or out of reach"
                ) from error
            row, feature, data = (
                np.concatenate([part[name].to_numpy() for part in found])
                for name in ("soma_dim_0", "soma_dim_1", "soma_data")
            )
            place = np.minimum(np.searchsorted(self._features, feature), len(self._features) - 1)
            column = np.where(self._features[place] == feature, self._column_of[place], -1)
            if (column < 0).any():
                wrong = int(feature[np.argmax(column < 0)])
                raise InputError(
                    f"{self._where}: a count of feature {wrong} (soma_joinid), which var does not have or the presence "
                    "matrix says was not measured in this data set; the store contradicts itself"
                )
            shape = (len(cells), self.shape[1])
            data = widened(data, self._where)  # SciPy sums what stands in one place twice
            yield start, canonical(sp.csr_matrix((data, (np.searchsorted(cells, row), column)), shape=shape))


class _Presence:
    """Which genes each data set measured."""

    def __init__(self, store: _Store, measurement: Any, features: np.ndarray):
        self._everything = np.arange(len(features))
        self.is_there = PRESENCE in measurement
        if not self.is_there:
            return
        if store.datasets is None:
            raise InputError(
                f"{store.place}: has a {PRESENCE}, but not the table of data sets that says which row is whose. Name "
                "the folder of the whole Census (with census_info and census_data), and ?organism=human"
            )
        self._joinid = dict(zip(store.datasets["dataset_id"], store.datasets["soma_joinid"], strict=True))
        self._matrix, self._features, self._place = measurement[PRESENCE], features, store.place

    def of(self, dataset_id: str | None) -> np.ndarray:
        """int64: columns of var that the data set measured."""
        if not self.is_there:
            return self._everything
        joinid = self._joinid.get(dataset_id)
        present = np.zeros(0, np.int64)
        if joinid is not None:
            table = self._matrix.read((int(joinid), slice(None))).tables().concat()
            present = table["soma_dim_1"].to_numpy()[table["soma_data"].to_numpy() != 0]
        if not len(present):
            raise InputError(
                f"{self._place}: the {PRESENCE} knows no gene of the data set {dataset_id}; it is incomplete"
            )
        return np.flatnonzero(np.isin(self._features, present))

    def notes(self, path: str) -> list[str]:
        if self.is_there:
            return []
        return [f"{path}: without a {PRESENCE}: every gene is taken as measured in every data set of the store"]


@functools.lru_cache(maxsize=4)
def _open(place: str, frozen: tuple[tuple[str, str], ...]) -> _Store:
    """Open once for all data sets of a store, and kept open."""
    options = dict(frozen)
    prefix, _, where = place.partition(":")
    for name in options:
        if name not in OPTIONS:
            raise InputError(f"{place}: no option {name!r}; there is {', '.join(OPTIONS)}")
    if not where:
        raise InputError(f"{place}: {prefix} of what? Write {'soma:FOLDER' if prefix == 'soma' else 'census:stable'}")
    try:
        import tiledbsoma
    except ImportError as error:
        raise InputError(f"{place}: needs the package tiledbsoma: pip install 'scmbert_jax[census]'") from error
    about: dict[str, Any] = {}
    if prefix == "census":
        about["census_version"] = where = _census_version(where)
        where = CENSUS_URI.format(version=where)
    about["store"] = _base_name(where) if "://" not in where else without_secrets(where)
    config: dict[str, Any] = {"soma.init_buffer_bytes": str(_BUFFER_BYTES), **(_S3 if prefix == "census" else {})}
    if "://" not in where and not Path(where).is_dir():
        raise InputError(f"{place}: no such folder; expected a TileDB-SOMA experiment, or a Census")
    try:
        context = tiledbsoma.SOMATileDBContext(tiledb_config=config)
        root = tiledbsoma.open(where, context=context)
    except Exception as error:  # tiledbsoma raises types of its own for every backend
        remedy = (
            "the public Census needs the network (S3, us-west-2, anonymous). Without it, copy a build and give "
            "soma:FOLDER"
            if prefix == "census"
            else "expected a TileDB-SOMA experiment, or a Census"
        )
        raise InputError(f"{place}: cannot be opened ({_first_line(error)}); {remedy}") from error
    experiment: Any = root
    datasets: pd.DataFrame | None = None
    if not isinstance(root, tiledbsoma.Experiment):
        experiment, datasets = _of_census(root, place, options.get("organism"))
        about["organism"] = options["organism"]
    kind, layer = options.get("measurement", "RNA"), options.get("layer", "raw")
    measurement = _member(experiment.ms, kind, f"{place}, ms")
    values = _member(measurement.X, layer, f"{place}, ms[{kind!r}].X")
    return _Store(root, experiment, measurement, values, kind, layer, datasets, place, about)


def _of_census(root: Any, place: str, organism: str | None) -> tuple[Any, pd.DataFrame]:
    """(the experiment of an organism, the table of data sets)."""
    import tiledbsoma

    if not isinstance(root, tiledbsoma.Collection) or "census_data" not in root:
        raise InputError(f"{place}: a SOMA {type(root).__name__}; expected an Experiment, or a Census with census_data")
    known = list(root["census_data"])
    if organism is None:
        raise InputError(f"{place}: a Census of several organisms ({', '.join(known)}); write {place}?organism=human")
    experiment = _member(root["census_data"], _ORGANISMS.get(organism, organism), f"{place}, census_data")
    datasets = root["census_info"]["datasets"].read(column_names=["soma_joinid", "dataset_id"]).concat().to_pandas()
    return experiment, datasets


def _census_version(version: str) -> str:
    """The build date that "stable" or "latest" stands for."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", version):
        return version
    try:
        with urllib.request.urlopen(CENSUS_RELEASES, timeout=_TIMEOUT) as answer:
            releases = json.load(answer)
    except (OSError, ValueError) as error:
        raise InputError(
            f"census:{version}: the list of releases cannot be read ({error}); the public Census needs the network. "
            "With it, a build can also be named by its date (census:2025-11-08); without it, copy a build and give "
            "soma:FOLDER"
        ) from error
    found = releases.get(version)
    while isinstance(found, str):
        version, found = found, releases.get(found)
    if found is None:
        raise InputError(f"census:{version}: no such release; there is {', '.join(sorted(releases))}")
    return str(found.get("release_build", version))


def _member(collection: Any, name: str, where: str) -> Any:
    if name not in collection:
        raise InputError(f"{where}: no {name!r}; there is {', '.join(collection) or 'nothing'}")
    return collection[name]


def _read_obs(store: _Store, value_filter: str | None) -> pd.DataFrame:
    """Metadata of the selected cells, by join id."""
    try:
        obs = store.experiment.obs.read(value_filter=value_filter).concat().to_pandas()
    except Exception as error:  # tiledbsoma raises types of its own for a filter it cannot parse
        fields = ", ".join(sorted(store.experiment.obs.keys()))
        raise InputError(
            f"{store.place}: obs_value_filter={value_filter}: {_first_line(error)}. Write e.g. cell_type == 'B cell' "
            f"and is_primary_data == True; obs has {fields}"
        ) from error
    if obs.empty:
        raise InputError(f"{store.place}: obs_value_filter={value_filter} selects no cell")
    return obs.sort_values("soma_joinid", ignore_index=True)


def _by_dataset(obs: pd.DataFrame) -> list[tuple[str | None, np.ndarray]]:
    """(dataset_id, its rows), by first row; (None, all rows) where obs has no `dataset_id`."""
    if "dataset_id" not in obs:
        return [(None, np.arange(len(obs)))]
    ids = obs["dataset_id"].astype(str).to_numpy(dtype=object)
    codes, names = pd.factorize(ids)
    order = np.argsort(codes, kind="stable")
    return list(zip(names.tolist(), np.split(order, np.cumsum(np.bincount(codes))[:-1]), strict=True))


def _names(table: pd.DataFrame, columns: tuple[str, ...], place: str) -> np.ndarray:
    column = next((column for column in columns if column in table and table[column].is_unique), "soma_joinid")
    return as_names(table[column], f"{place}, {column}")


def _base_name(place: str) -> str:
    return Path(place.removeprefix("soma:").rstrip("/")).name.removesuffix(".soma")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


READER = Reader(is_soma, read_soma, ", ".join(PREFIXES), OPTIONS)
