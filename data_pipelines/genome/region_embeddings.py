"""Embeddings of regions: what a model is told of each region beside its counts, so that it reads regions that no cell
of its training had.

Two kinds of file are read: an .npz with `ids` (str [n]) and `vectors` (float32 [n, W]), as `scmbert regulate
embed-regions` writes it; and whatever `read_region_matrix` reads (regions by regulators, motif scores, ...), a row of
which is the region's vector. Rows are found by the region's id, never by their place.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.features.feature_embeddings import save_feature_embeddings
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.features.genome_assembly import outside_assembly, parse_regions
from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.genome.interval_table import interval_ids
from data_pipelines.genome.region_matrix import read_region_matrix
from scmbert_jax.errors import InputError

REGION_EMBEDDINGS = "region_embeddings.npz"  # of a run or model folder: the vectors of its own regions


@dataclass(frozen=True)
class RegionEmbeddings:
    """n regions.

    Attributes:
      regions: str [n], ids, "chr1:100-200", 0-based half-open; no two are the same.
      vectors: float32 [n, W].
      where: the file.

    Raises InputError: another number of vectors, a region twice, numbers that are not finite, nothing at all.
    """

    regions: np.ndarray
    vectors: np.ndarray
    where: str = "a table of region embeddings"

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.regions) or not self.vectors.size:
            raise InputError(
                f"{self.where}: {len(self.regions):,} regions and vectors of shape {self.vectors.shape}; expected a "
                "vector of one number or more for each of one region or more"
            )
        unique, counts = np.unique(self.regions, return_counts=True)
        if len(unique) < len(self.regions):
            twice = unique[counts > 1]
            raise InputError(f"{self.where}: region {twice[0]} is there twice ({len(twice):,} are); keep one of them")
        finite = np.isfinite(self.vectors).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{self.where}: the vector of {self.regions[np.argmin(finite)]} is not finite ({(~finite).sum():,} are "
                "not); leave such regions out"
            )

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    def check_assembly(self, assembly: str) -> None:
        """Raises InputError where a region does not lie in the assembly: the table is of another one."""
        lacking, beyond = outside_assembly(parse_regions(self.regions), assembly)
        bad = lacking | beyond
        if bad.any():
            raise InputError(
                f"{self.where}: {bad.sum():,} of {len(self):,} regions, such as {self.regions[np.argmax(bad)]}, do not "
                f"lie in {assembly}, which the model's regions are of. Is the table of another assembly?"
            )

    def of_space(self, space: FeatureSpace) -> np.ndarray:
        """float32 [M, W], the vectors of a feature space's M regions; nan where the table lacks the region.

        Raises InputError: the space has no regions, the table is of another assembly or has none of them.
        """
        features = space.modalities.get("atac")
        if features is None:
            raise InputError(f"{self.where}: embeddings of regions, and the data have none ({space!r})")
        self.check_assembly(features.space.partition(":")[2])
        place = features.index_of(self.regions)
        if not (place >= 0).any():
            raise InputError(
                f"{self.where}: none of its {len(self):,} regions, such as {self.regions[0]}, is among the "
                f"{len(features):,} of the data, such as {features.ids[0]}. Embed the very intervals of the data."
            )
        found = np.full((len(features), self.width), np.nan, np.float32)
        found[place[place >= 0]] = self.vectors[place >= 0]
        return found


def read_region_embeddings(path: str | Path) -> RegionEmbeddings:
    """Reads a table of region embeddings.

    Raises InputError: it cannot be read, has names that are no regions, or what `RegionEmbeddings` refuses.
    """
    path = Path(path)
    if path.suffix == ".npz" and (stored := _stored(path)) is not None:
        names, vectors = stored
        regions = parse_regions(names)
        if not regions.valid.all():
            raise InputError(
                f"{path}: {str(names[np.argmin(regions.valid)])!r} is no region such as chr1:100-200 "
                f"({(~regions.valid).sum():,} of {len(names):,} are none)"
            )
        return RegionEmbeddings(interval_ids(regions.chrom, regions.start, regions.end), vectors, str(path))
    matrix = read_region_matrix(path)
    return RegionEmbeddings(matrix.regions, matrix.values.toarray(), str(path))


def save_region_vectors(folder: Path, space: FeatureSpace, vectors: np.ndarray) -> None:
    """Writes the file `REGION_EMBEDDINGS` of a folder: those of `of_space` that are there."""
    has = np.isfinite(vectors).all(axis=1)
    save_feature_embeddings(folder / REGION_EMBEDDINGS, space.modalities["atac"].ids[has], vectors[has])


def _stored(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """None: an .npz of another kind."""
    try:
        with open_arrays(path) as arrays:
            if "ids" not in arrays.files:
                return None
            return np.asarray(arrays["ids"], str), np.asarray(arrays["vectors"], np.float32)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a table of region embeddings ({error}).") from error
