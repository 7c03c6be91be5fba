"""AnnData and MuData, on disk (.h5ad, .h5mu, .zarr) and in memory -> `CountsMatrix` and `Dataset`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_metadata import OBS_FIELDS
from data_pipelines.features.column_names import plain_name
from data_pipelines.features.genome_assembly import GENOME_COLUMNS, genomes_text
from data_pipelines.features.modality_names import (
    NAME_COLUMNS,
    TYPE_COLUMNS,
    is_other_assay,
    kinds_of_features,
    modality_of_name,
    modality_of_table,
)
from data_pipelines.readers.counts_field import choose_counts_field, first_problem, layers_of_counts, obsm_notes
from data_pipelines.readers.dataset import CountsMatrix, Dataset, join_matrices
from data_pipelines.readers.source_statements import (
    pseudo_pairs_of,
    pseudo_pairs_of_file,
    statements_of,
    statements_of_file,
)
from data_pipelines.readers.stored_matrix import ColumnsOf, MatrixInMemory, StoredMatrix, open_stored_matrix
from data_pipelines.readers.stored_nodes import StoredGroup, is_array, is_group, is_null
from data_pipelines.readers.stored_table import read_table, table_in_memory
from scmbert_jax.errors import InputError

_GENOME_KEYS = ("genome", "assembly")
# What is read of a table that has too many columns to be read whole.
_WANTED_OBS = frozenset(plain_name(name) for names in OBS_FIELDS.values() for name in (*names, "is_primary_data"))
_WANTED_VAR = frozenset((*NAME_COLUMNS, *TYPE_COLUMNS, *GENOME_COLUMNS, "featurelength", "genelength", "exoniclength"))
_ROWS_OF_OBSM = 256


class _Fields(dict[str, tuple[Any, Any]]):
    """ "X", "raw.X", "layers['counts']" ... -> (the matrix, the table of its features).

    Args:
      layers: name -> matrix.
      features: their table.
    """

    def __init__(self, layers: Mapping[str, Any], features: Any):
        super().__init__({_layer(name): (matrix, features) for name, matrix in layers.items()})
        self.layers = dict(layers)


class _NoCounts(InputError):
    """A modality that has nothing to read."""


def read_stored_anndata(file: StoredGroup, path: str, name: str, layer: str | None = None) -> Dataset:
    """`file`: the root of an .h5ad or of a zarr store; `layer`: as in `ReadingOptions`."""
    notes: list[str] = []
    dataset = join_matrices(name, _matrices_of_group(file, path, "", None, layer, notes))
    dataset.notes += notes
    return dataset


def read_stored_mudata(file: StoredGroup, path: str, name: str, layer: str | None = None) -> Dataset:
    """A MuData file or store whose modalities share cells (axis 0); cells missing from a modality are allowed."""
    axis = file.attrs.get("axis", 0)
    if axis != 0:
        raise InputError(f"{path}: a MuData that joins features (axis {axis}); expected one that joins cells (axis 0)")
    if not is_group(file["mod"]):
        raise InputError(f"{path}: mod is no group of modalities; not a complete MuData file")
    modalities = sorted(file["mod"].keys())  # zarr gives them in the order of the disk
    ordered = [str(key) for key in np.atleast_1d(file["mod"].attrs.get("mod-order", modalities))]
    ordered = [*[k for k in ordered if k in modalities], *[k for k in modalities if k not in ordered]]
    notes: list[str] = []
    obs, obs_notes = read_table(file, "obs", path, _WANTED_OBS) if "obs" in file else (None, [])
    matrices = _of_modalities(
        path,
        {key: file["mod"][key] for key in ordered},
        lambda key, group: _matrices_of_group(group, path, f"mod/{key}/", key, layer, notes),
        layer,
        notes,
    )
    for matrix in matrices:
        matrix.statements = {**statements_of_file(file), **matrix.statements}
    dataset = join_matrices(name, matrices, _index(obs), obs)
    dataset.notes += obs_notes + notes
    dataset.pseudo_pairs = pseudo_pairs_of_file(file, path)
    return dataset


def read_anndata(adata: Any, name: str, layer: str | None = None) -> Dataset:
    notes: list[str] = []
    dataset = join_matrices(name, _matrices_of_object(adata, "AnnData in memory", "", None, layer, notes))
    dataset.notes += notes
    return dataset


def read_mudata(mdata: Any, name: str, layer: str | None = None) -> Dataset:
    path = "MuData in memory"
    notes: list[str] = []
    matrices = _of_modalities(
        path,
        mdata.mod,
        lambda key, adata: _matrices_of_object(adata, path, f"mod/{key}/", key, layer, notes),
        layer,
        notes,
    )
    # MuData repeats its modalities' columns as "rna:batch"; the modalities bring them themselves.
    own = [column for column in mdata.obs.columns if str(column).split(":")[0] not in mdata.mod]
    obs, obs_notes = table_in_memory(mdata.obs[own], f"{path}: obs", _WANTED_OBS)
    for matrix in matrices:
        matrix.statements = {**statements_of(mdata.uns), **matrix.statements}
    dataset = join_matrices(name, matrices, _index(obs), obs)
    dataset.notes += obs_notes + notes
    dataset.pseudo_pairs = pseudo_pairs_of(mdata.uns, path)
    return dataset


def _of_modalities(
    path: str,
    parts: Mapping[str, Any],
    read: Callable[[str, Any], list[CountsMatrix]],
    layer: str | None,
    notes: list[str],
) -> list[CountsMatrix]:
    """The matrices of a MuData's modalities; those of other assays, and without counts, are left out with a note."""
    matrices: list[CountsMatrix] = []
    for key, part in parts.items():
        if is_other_assay(key):
            notes.append(f"{path}: modality {key!r} is not read: it is of another assay")
            continue
        try:
            matrices += read(key, part)
        except _NoCounts as error:
            notes.append(f"modality {key!r} is not read: {error}")
    if not matrices:
        raise InputError(f"{path}: no modality with counts; {'; '.join(notes) or 'there is none'}")
    if layer is not None and all(_field_of(layer) != matrix.field.rpartition("/")[2] for matrix in matrices):
        raise InputError(f"{path}: no modality has layers[{layer!r}]; leave the option layer out, or name another")
    return matrices


def _matrices_of_group(
    group: StoredGroup, path: str, prefix: str, declared: str | None, layer: str | None, notes: list[str]
) -> list[CountsMatrix]:
    obs, obs_notes = read_table(group, "obs", path, _WANTED_OBS)
    fields = _fields_of_group(group)
    field, considered, offered, stored = _choose(fields, open_stored_matrix, path, prefix, len(obs), declared, layer)
    var, var_notes = read_table(group, fields[field][1], path, _WANTED_VAR, TYPE_COLUMNS)
    notes += [*obs_notes, *var_notes, *obsm_notes(_first_of_obsm(group), path, prefix)]
    uns = group.get("uns")
    named = {key: uns[key][()] for key in _GENOME_KEYS if is_group(uns) and getattr(uns.get(key), "shape", 0) == ()}
    statements = statements_of_file(group)
    matrices = _split(path, prefix + field, declared, var, obs, _genome(named), stored, considered, statements)
    for matrix in matrices:
        matrix.offered = offered
    return matrices


def _fields_of_group(group: StoredGroup) -> _Fields:
    """Newer AnnData writes an absent element as an empty dataset, not as a missing one; 0.6 had flat names."""
    layers = group["layers"] if is_group(group.get("layers")) else {}
    fields = _Fields({name: layers[name] for name in sorted(layers.keys()) if not is_null(layers[name])}, "var")
    if is_group(group.get("raw")):
        fields["raw.X"] = (group["raw"].get("X"), "raw/var")
    elif "raw.X" in group:
        fields["raw.X"] = (group["raw.X"], "raw.var")
    fields["X"] = (group.get("X"), "var")
    for field in ("raw.X", "X"):
        if field in fields and (fields[field][0] is None or is_null(fields[field][0])):
            del fields[field]
    return fields


def _first_of_obsm(group: StoredGroup) -> Iterator[tuple[str, Any]]:
    from anndata.io import read_elem

    obsm = group.get("obsm")
    for key in obsm if is_group(obsm) else ():
        try:
            node = obsm[key]
            if is_array(node):
                yield key, node[:_ROWS_OF_OBSM]
            elif is_group(node) and "column-order" in node.attrs:
                yield key, read_elem(node)
        except Exception:
            continue


def _matrices_of_object(
    adata: Any, path: str, prefix: str, declared: str | None, layer: str | None, notes: list[str]
) -> list[CountsMatrix]:
    # Since anndata 0.13 X is among the layers, too: under None.
    fields = _Fields({name: adata.layers[name] for name in adata.layers if name is not None}, adata.var)
    if adata.raw is not None:
        fields["raw.X"] = (adata.raw.X, adata.raw.var)
    if adata.X is not None:
        fields["X"] = (adata.X, adata.var)
    obs, obs_notes = table_in_memory(adata.obs, f"{path}: {prefix}obs", _WANTED_OBS)
    field, considered, offered, stored = _choose(fields, MatrixInMemory, path, prefix, len(obs), declared, layer)
    var, var_notes = table_in_memory(fields[field][1], f"{path}: {prefix}var", _WANTED_VAR)
    notes += [*obs_notes, *var_notes, *obsm_notes(adata.obsm.items(), path, prefix)]
    genome = _genome({key: adata.uns[key] for key in _GENOME_KEYS if key in adata.uns})
    statements = statements_of(adata.uns)
    matrices = _split(path, prefix + field, declared, var, obs, genome, stored, considered, statements)
    for matrix in matrices:
        matrix.offered = offered
    return matrices


def _layer(name: str) -> str:
    return f"layers[{name!r}]"


def _field_of(layer: str) -> str:
    """What the reading option says, as the name of a field."""
    return layer if layer in ("X", "raw.X") else _layer(layer)


def _choose(
    fields: _Fields, opened: Any, path: str, prefix: str, num_cells: int, declared: str | None, layer: str | None
) -> tuple[str, dict[str, str], tuple[str, ...], StoredMatrix]:
    """(field, what was seen in the others of the usual ones, layers offered instead, the matrix)."""
    if layer is not None and (_field_of(layer) in fields or declared is None):
        if _field_of(layer) not in fields:
            raise InputError(f"{path}: no {_field_of(layer)}; there is {', '.join(fields) or 'no matrix at all'}")
        usual = {_field_of(layer)}
    else:
        usual = {"layers['counts']", "raw.X", "X"}
    where = f"{path}, {prefix}"
    stored = {field: opened(part[0], f"{where}{field}") for field, part in fields.items() if field in usual}
    others = {name: matrix for name, matrix in fields.layers.items() if _layer(name) not in usual}
    if not stored:
        has = f"; of its layers ({', '.join(others)}) name the one of raw counts: FILE?layer=NAME" if others else ""
        raise _NoCounts(f"{where.rstrip('/, ')}: no X, raw.X or layers['counts']{has or '; write the counts into X'}")
    if any(0 in matrix.shape for matrix in stored.values()):
        shapes = ", ".join(f"{field} {m.shape[0]} x {m.shape[1]}" for field, m in stored.items())
        raise _NoCounts(f"{path}: empty matrix ({prefix}{shapes}, cells x features); there is nothing to read")
    for name, matrix in stored.items():
        if matrix.shape[0] != num_cells:
            raise InputError(
                f"{where}{name}: {matrix.shape[0]:,} rows of values for {num_cells:,} cells of obs; the file "
                "contradicts itself, write it again"
            )
    field, considered = choose_counts_field(stored)
    offered: tuple[str, ...] = ()
    if others and first_problem(stored[field]) is not None:
        offered = tuple(layers_of_counts(others, opened))
    return field, considered, offered, stored[field]


def _split(
    path: str,
    field: str,
    declared: str | None,
    var: pd.DataFrame,
    obs: pd.DataFrame,
    genome: str | None,
    stored: StoredMatrix,
    considered: dict[str, str],
    statements: dict[str, str],
) -> list[CountsMatrix]:
    """One `CountsMatrix` per modality: several where var tells features of several types apart."""
    names = np.asarray(var.index, dtype=str)
    cell_ids = np.asarray(obs.index, dtype=str)

    def matrix(modality: str | None, evidence: str, columns: np.ndarray | None = None) -> CountsMatrix:
        table = var if columns is None else var.iloc[columns]
        return CountsMatrix(
            path=path,
            field=field,
            modality=modality or "",
            modality_evidence=evidence,
            feature_names=names if columns is None else names[columns],
            feature_table=table,
            cell_ids=cell_ids,
            obs=obs,
            genome=genomes_text(table) or genome,
            stored=stored if columns is None else ColumnsOf(stored, columns),
            considered=considered,
            statements=statements,
        )

    kinds = kinds_of_features(var, names)
    if len(kinds) == 1:
        return [matrix(kinds[0].modality, kinds[0].evidence)]
    if kinds:
        return [matrix(*kind) for kind in kinds]
    if declared is not None and modality_of_name(declared):
        return [matrix(modality_of_name(declared), f"the name {declared!r} of the modality")]
    found, evidence = modality_of_table(var, names)
    called = f"the modality is called {declared!r}; " if declared and not found else ""
    return [matrix(found, called + evidence)]


def _index(obs: pd.DataFrame | None) -> np.ndarray | None:
    return None if obs is None else np.asarray(obs.index, dtype=str)


def _genome(uns: Mapping[str, Any]) -> str | None:
    """The reference that the file names for all its features, or None."""
    texts = [
        value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value) for value in uns.values()
    ]
    return next((text for text in texts if text), None)
