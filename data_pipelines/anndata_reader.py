"""AnnData and MuData, on disk (.h5ad, .h5mu, .zarr) and in memory -> `CountsMatrix` and `Dataset`."""

from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.counts_field import choose_counts_field
from data_pipelines.counts_matrix import CountsMatrix, Dataset, join_matrices
from data_pipelines.modality_names import modality_of_features, modality_of_name
from data_pipelines.pseudo_pairs import pseudo_pairs_of, pseudo_pairs_of_file
from data_pipelines.source_statements import statements_of, statements_of_file
from data_pipelines.stored_matrix import ColumnsOf, MatrixInMemory, StoredMatrix, open_stored_matrix
from data_pipelines.stored_nodes import StoredArray, StoredGroup, is_group, is_null
from scmbert_jax.errors import InputError

_FEATURE_TYPE_COLUMNS = ("feature_types", "feature_type", "modality")
_GENOME_COLUMNS = ("genome", "assembly")


def read_stored_anndata(file: StoredGroup, path: str, name: str) -> Dataset:
    """`file`: the root of an .h5ad or of a zarr store."""
    return join_matrices(name, _matrices_of_group(file, path, prefix="", declared=None))


def read_stored_mudata(file: StoredGroup, path: str, name: str) -> Dataset:
    """A MuData file or store whose modalities share cells (axis 0); cells missing from a modality are allowed."""
    if int(file.attrs.get("axis", 0)) != 0:
        raise InputError(
            f"{path}: a MuData that joins features (axis {file.attrs['axis']}); expected one that joins cells (axis 0)"
        )
    modalities = sorted(file["mod"].keys())  # zarr gives them in the order of the disk
    ordered = [str(key) for key in file["mod"].attrs.get("mod-order", modalities)]
    matrices = []
    for key in [*[k for k in ordered if k in modalities], *[k for k in modalities if k not in ordered]]:
        matrices += _matrices_of_group(file["mod"][key], path, prefix=f"mod/{key}/", declared=key)
    obs = _frame(file, "obs", path) if "obs" in file else None
    for matrix in matrices:
        matrix.statements = {**statements_of_file(file), **matrix.statements}
    dataset = join_matrices(name, matrices, _index(obs), obs)
    dataset.pseudo_pairs = pseudo_pairs_of_file(file, path)
    return dataset


def read_anndata(adata: Any, name: str) -> Dataset:
    return join_matrices(name, _matrices_of_object(adata, "AnnData in memory", "", None))


def read_mudata(mdata: Any, name: str) -> Dataset:
    matrices = []
    for key, adata in mdata.mod.items():
        matrices += _matrices_of_object(adata, "MuData in memory", f"mod/{key}/", key)
    # MuData repeats its modalities' columns as "rna:batch"; the modalities bring them themselves.
    own = [column for column in mdata.obs.columns if str(column).split(":")[0] not in mdata.mod]
    obs = _with_text_index(mdata.obs[own])
    for matrix in matrices:
        matrix.statements = {**statements_of(mdata.uns), **matrix.statements}
    dataset = join_matrices(name, matrices, _index(obs), obs)
    dataset.pseudo_pairs = pseudo_pairs_of(mdata.uns, "MuData in memory")
    return dataset


def _matrices_of_group(group: StoredGroup, path: str, prefix: str, declared: str | None) -> list[CountsMatrix]:
    candidates: dict[str, tuple[StoredGroup | StoredArray, str]] = {}
    # Newer AnnData writes an absent element as an empty dataset, not as a missing one.
    if is_group(group.get("layers")) and "counts" in group["layers"]:
        candidates["layers['counts']"] = (group["layers/counts"], "var")
    if is_group(group.get("raw")) and "X" in group["raw"]:
        candidates["raw.X"] = (group["raw/X"], "raw/var")
    if "X" in group:
        candidates["X"] = (group["X"], "var")
    if not candidates:
        raise InputError(f"{path}: {prefix or 'the file'} has no X, raw.X or layers['counts']; write the counts into X")
    obs = _frame(group, "obs", path)
    stored = {
        field: open_stored_matrix(node, f"{path}, {prefix}{field}")
        for field, (node, _) in candidates.items()
        if not is_null(node)
    }
    if not stored:
        raise InputError(f"{path}: {prefix}X is empty (None); write the counts into X or layers['counts']")
    field, considered = _choose(stored, path, prefix)
    var = _frame(group, candidates[field][1], path)
    uns = group.get("uns", {})
    genome = _genome(
        var, {key: uns[key][()] for key in _GENOME_COLUMNS if key in uns and getattr(uns[key], "shape", None) == ()}
    )
    statements = statements_of_file(group)
    return _split(path, prefix + field, declared, var, obs, genome, stored[field], considered, statements)


def _matrices_of_object(adata: Any, path: str, prefix: str, declared: str | None) -> list[CountsMatrix]:
    candidates: dict[str, tuple[Any, pd.DataFrame]] = {}
    if "counts" in adata.layers:
        candidates["layers['counts']"] = (adata.layers["counts"], adata.var)
    if adata.raw is not None:
        candidates["raw.X"] = (adata.raw.X, adata.raw.var)
    if adata.X is not None:
        candidates["X"] = (adata.X, adata.var)
    if not candidates:
        raise InputError(f"{path}: {prefix or 'it'} has no X, raw.X or layers['counts']; put the counts into X")
    stored: dict[str, StoredMatrix] = {
        field: MatrixInMemory(matrix, f"{path}, {prefix}{field}") for field, (matrix, _) in candidates.items()
    }
    field, considered = _choose(stored, path, prefix)
    var = _with_text_index(candidates[field][1])
    genome = _genome(var, {key: adata.uns[key] for key in _GENOME_COLUMNS if key in adata.uns})
    obs = _with_text_index(adata.obs)
    statements = statements_of(adata.uns)
    return _split(path, prefix + field, declared, var, obs, genome, stored[field], considered, statements)


def _choose(stored: dict[str, StoredMatrix], path: str, prefix: str) -> tuple[str, dict[str, str]]:
    if any(0 in matrix.shape for matrix in stored.values()):
        shapes = ", ".join(f"{field} {m.shape[0]} x {m.shape[1]}" for field, m in stored.items())
        raise InputError(f"{path}: empty matrix ({prefix}{shapes}, cells x features); there is nothing to read")
    return choose_counts_field(stored)


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
    column = next((column for column in _FEATURE_TYPE_COLUMNS if column in var.columns), None)
    types = var[column].astype(str).to_numpy() if column else None
    kinds = list(dict.fromkeys(types.tolist())) if types is not None else []
    common = {"path": path, "field": field, "cell_ids": np.asarray(obs.index, dtype=str), "obs": obs, "genome": genome}

    def matrix(modality: str | None, evidence: str, columns: np.ndarray | None = None) -> CountsMatrix:
        return CountsMatrix(
            **common,
            modality=modality or "",
            modality_evidence=evidence,
            feature_names=names if columns is None else names[columns],
            feature_table=var if columns is None else var.iloc[columns],
            stored=stored if columns is None else ColumnsOf(stored, columns),
            considered=considered,
            statements=statements,
        )

    if types is not None and len(kinds) > 1 and any(modality_of_name(kind) for kind in kinds):
        return [
            matrix(modality_of_name(kind), f"var[{column!r}] = {kind!r}", np.flatnonzero(types == kind))
            for kind in kinds
        ]
    if len(kinds) == 1 and modality_of_name(kinds[0]):
        return [matrix(modality_of_name(kinds[0]), f"var[{column!r}] = {kinds[0]!r}")]
    if declared is not None and modality_of_name(declared):
        return [matrix(modality_of_name(declared), f"the name {declared!r} of the modality")]
    found = modality_of_features(names)
    if found:
        return [matrix(found, "its feature names")]
    called = f"the modality is called {declared!r}; " if declared else ""
    return [matrix(None, f"{called}feature names such as {', '.join(names[:3])} are no genes, antibodies or regions")]


def _frame(group: StoredGroup, key: str, path: str) -> pd.DataFrame:
    from anndata.io import read_elem

    if key not in group:
        raise InputError(f"{path}: {group.name.rstrip('/')}/{key} is missing; not a complete AnnData file")
    try:
        frame = read_elem(group[key])
    except Exception as error:  # anndata raises many types on damaged tables; all of them mean the same to a user
        raise InputError(
            f"{path}: {group.name.rstrip('/')}/{key} cannot be read ({type(error).__name__}: {error}); "
            "the file is damaged or was written by an incompatible program"
        ) from error
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"{path}: {group.name.rstrip('/')}/{key} is a {type(frame).__name__}; expected a table")
    return _with_text_index(frame)


def _with_text_index(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy(deep=False)
    frame.index = pd.Index(frame.index.astype(str), dtype=object)
    return frame


def _index(obs: pd.DataFrame | None) -> np.ndarray | None:
    return None if obs is None else np.asarray(obs.index, dtype=str)


def _genome(var: pd.DataFrame, uns: dict[str, Any]) -> str | None:
    """The one reference the file names, or None; several (a two-species mixture) are joined by "+"."""
    for column in _GENOME_COLUMNS:
        if column in var.columns:
            named = sorted({str(value) for value in var[column].dropna().unique()} - {"", "nan", "unknown"})
            if named:
                return "+".join(named)
    for value in uns.values():
        text = value.decode() if isinstance(value, bytes) else str(value)
        if text:
            return text
    return None
