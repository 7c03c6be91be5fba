"""Tables of feature embeddings: what a model's feature table may start from.

Two kinds of file are read: an .npz with `ids` (str [n]) and `vectors` (float32 [n, D]), as `scmbert corpus
gene-embeddings` writes it; and text, a feature per line, its name and its D numbers with spaces or tabs between them
(gene2vec's, word2vec's; a first line of two numbers is passed over). A name is an id of the feature space or a gene
symbol.
"""

import zipfile
from pathlib import Path

import numpy as np

from data_pipelines.features.feature_mapping import map_genes
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.files.bounded_npz import open_arrays
from scmbert_jax.errors import InputError


def save_feature_embeddings(path: Path, ids: np.ndarray, vectors: np.ndarray) -> None:
    """Writes an .npz of str [n] and float32 [n, D]. Raises `InputError` where it cannot be written."""
    try:
        np.savez_compressed(path, ids=np.asarray(ids, str), vectors=np.asarray(vectors, np.float32))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error


def load_feature_embeddings(path: Path, space: FeatureSpace, dim: int) -> np.ndarray:
    """float32 [F, dim], the rows of a feature space; nan where the table does not have the feature.

    Raises `InputError`: it cannot be read, has vectors of another width or twice a feature, or has none of the space's.
    """
    names, vectors = _read(path)
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise InputError(
            f"{path}: {len(names):,} names and vectors of shape {vectors.shape}; expected one row for each."
        )
    if vectors.shape[1] != dim:
        raise InputError(
            f"{path}: vectors of {vectors.shape[1]} numbers, but model.embed_dim is {dim}. Set --model.embed-dim "
            f"{vectors.shape[1]}, or make a table of {dim}."
        )
    if not np.isfinite(vectors).all():
        raise InputError(f"{path}: the vector of {str(names[~np.isfinite(vectors).all(axis=1)][0])!r} is not finite.")
    found = np.full((space.num_features, dim), np.nan, np.float32)
    taken = np.zeros(space.num_features, bool)
    for name, features in space.modalities.items():
        place = features.index_of(names)
        if name == "rna" and features.organism is not None:
            place = np.where(place < 0, features.index_of(map_genes(names, features.organism).ids), place)
        rows, columns = place[place >= 0] + space.slices[name][0], np.flatnonzero(place >= 0)
        twice = rows[np.bincount(rows, minlength=len(taken))[rows] > 1]
        if len(twice):
            same = names[columns[rows == twice[0]]]
            raise InputError(f"{path}: {', '.join(map(repr, same[:3].tolist()))} are one feature; keep one of them.")
        found[rows], taken[rows] = vectors[columns], True
    if not taken.any():
        raise InputError(
            f"{path}: none of its {len(names):,} names, such as {str(names[0])!r}, is a feature of {space!r}. Is it of "
            "another species?"
        )
    return found


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        if path.suffix == ".npz":
            with open_arrays(path) as arrays:
                return np.asarray(arrays["ids"], str), np.asarray(arrays["vectors"], np.float32)
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines and len(lines[0]) == 2:
            lines = lines[1:]
        names, numbers = [line[0] for line in lines], [line[1:] for line in lines]
        return np.array(names, str), np.array(numbers, np.float32)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a table of feature embeddings ({error}).") from error
