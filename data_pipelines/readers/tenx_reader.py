"""10x Genomics .h5 (Cell Ranger 2 and later) -> `Dataset`.

The stored matrix is features x barcodes compressed by barcode, so its arrays are a cells x features CSR as they are.
"""

from collections.abc import Iterable

import h5py
import numpy as np
import pandas as pd

from data_pipelines.features.modality_names import modality_of_features, modality_of_name
from data_pipelines.readers.dataset import CountsMatrix, Dataset, join_matrices
from data_pipelines.readers.stored_matrix import ColumnsOf, CsrFile, StoredMatrix, matrix_shape
from data_pipelines.readers.stored_names import read_names
from data_pipelines.readers.stored_nodes import read_values
from scmbert_jax.errors import InputError

_PARTS = ("barcodes", "data", "indices", "indptr", "shape")


def is_tenx(file: h5py.File) -> bool:
    return "matrix" in file or bool(_genome_groups(file))


def read_tenx(file: h5py.File, path: str, name: str) -> Dataset:
    if "matrix" in file:
        return _read_v3(file["matrix"], path, name)
    groups = _genome_groups(file)
    if len(groups) > 1:
        raise InputError(
            f"{path}: counts on several genomes ({', '.join(groups)}), a mixture of species; "
            "write the cells of one species to a file of their own"
        )
    return _read_v2(file[groups[0]], groups[0], path, name)


def _read_v3(group: h5py.Group, path: str, name: str) -> Dataset:
    """Cell Ranger >= 3: one group `matrix`; `features/feature_type` tells the modalities apart."""
    missing = [part for part in (*_PARTS, "features") if part not in group]
    missing += [f"features/{part}" for part in ("id", "name", "feature_type") if part not in group.get("features", ())]
    _require(not missing, path, "matrix", missing)
    features = group["features"]
    columns = [key for key in features if isinstance(features[key], h5py.Dataset) and key != "_all_tag_keys"]
    texts = {key: read_names(features[key], f"{path}, matrix/features/{key}").astype(object) for key in columns}
    sizes = {key: len(text) for key, text in texts.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"{path}: features of unequal length {sizes}; the file is damaged: copy or download it again")
    table = pd.DataFrame(texts, index=pd.Index(texts["id"], dtype=object))
    stored, cell_ids = _stored(group, path, "matrix")
    return join_matrices(name, split_by_feature_type(path, table, stored, cell_ids))


def split_by_feature_type(
    path: str, table: pd.DataFrame, stored: StoredMatrix, cell_ids: np.ndarray
) -> list[CountsMatrix]:
    """One `CountsMatrix` per `feature_type`, in the order of the file.

    Args:
      table: one row per feature, indexed by `id`; may have `genome` and `interval` ("chr1:100-200").
      stored: cells x features.
    """
    kinds = table["feature_type"].to_numpy(dtype=str)
    matrices = []
    for kind in dict.fromkeys(kinds.tolist()):
        columns = np.flatnonzero(kinds == kind)
        part, evidence = table.iloc[columns], f"feature_type {kind!r}"
        modality = modality_of_name(kind) or ""
        places = part["interval"] if modality == "atac" and "interval" in part else ()
        if len(places) and not _are_regions(part.index) and _are_regions(places):
            part = part.set_axis(pd.Index(places, dtype=object, name=None))
            evidence += ", regions from interval"
        genomes = sorted(set(part["genome"]) - {""}) if "genome" in part else []
        matrices.append(
            CountsMatrix(
                path=path,
                field=f"matrix[{kind}]",
                modality=modality,
                modality_evidence=evidence,
                feature_names=part.index.to_numpy(dtype=str),
                feature_table=part,
                cell_ids=cell_ids,
                obs=pd.DataFrame(index=pd.Index(cell_ids, dtype=object)),
                genome="+".join(genomes) or None,
                stored=stored if len(columns) == len(table) else ColumnsOf(stored, columns),
            )
        )
    return matrices


def _are_regions(names: Iterable[str]) -> bool:
    """Whether most are; peaks may be numbered instead, and have their place in `interval`."""
    return modality_of_features(np.asarray(list(names), dtype=str)) == "atac"


def _read_v2(group: h5py.Group, genome: str, path: str, name: str) -> Dataset:
    """Cell Ranger 2: one group per genome, genes only."""
    ids = read_names(group["genes"], f"{path}, {genome}/genes").astype(object)
    symbols = read_names(group["gene_names"], f"{path}, {genome}/gene_names") if "gene_names" in group else ids
    if len(ids) != len(symbols):
        raise InputError(f"{path}: {len(ids):,} genes and {len(symbols):,} gene_names; the file contradicts itself")
    table = pd.DataFrame({"id": ids, "name": symbols.astype(object)}, index=pd.Index(ids, dtype=object))
    stored, cell_ids = _stored(group, path, genome)
    matrix = CountsMatrix(
        path=path,
        field=genome,
        modality="rna",
        modality_evidence="the layout of Cell Ranger 2, which holds genes only",
        feature_names=np.asarray(ids, dtype=str),
        feature_table=table,
        cell_ids=cell_ids,
        obs=pd.DataFrame(index=pd.Index(cell_ids, dtype=object)),
        genome=genome,
        stored=stored,
    )
    return join_matrices(name, [matrix])


def _stored(group: h5py.Group, path: str, where: str) -> tuple[StoredMatrix, np.ndarray]:
    num_features, num_cells = matrix_shape(read_values(group["shape"], slice(None), f"{path}, {where}/shape"), where)
    if 0 in (num_features, num_cells):
        raise InputError(f"{path}: empty matrix ({num_cells} cells x {num_features} features); nothing to read")
    cell_ids = read_names(group["barcodes"], f"{path}, {where}/barcodes")
    return CsrFile(group, (num_cells, num_features), f"{path}, {where}"), cell_ids


def _genome_groups(file: h5py.File) -> list[str]:
    wanted = {*_PARTS, "genes"}
    return [key for key in file if isinstance(file[key], h5py.Group) and wanted <= set(file[key].keys())]


def _require(sound: bool, path: str, group: str, missing: list[str]) -> None:
    if not sound:
        raise InputError(f"{path}: {group} lacks {', '.join(missing)}; expected a Cell Ranger feature-barcode matrix")
