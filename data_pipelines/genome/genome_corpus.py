"""A corpus of sequences: the windows of some regions, with matrices of these regions, and its sealed chromosomes.

One .npz file that is read into memory: a million windows of 200 bases are 0.2 GB.
"""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from data_pipelines.features.genome_assembly import ucsc_name
from data_pipelines.files.atomic_files import growing_file
from data_pipelines.files.bounded_npz import open_arrays
from data_pipelines.genome.interval_table import IntervalTable
from data_pipelines.genome.region_matrix import RegionMatrix
from data_pipelines.genome.sealed_chromosomes import USUAL_PARTS, Part, SealedChromosomes
from data_pipelines.genome.windows import Windows
from scmbert_jax.errors import CorpusError, InputError

_FORMAT = "scmbert_jax.genome.1"
_MATRICES = ("regulators", "accessibility")


@dataclass(frozen=True)
class GenomeCorpus:
    """n regions.

    Attributes:
      codes: uint8 [n, L]; lengths: int32 [n]: the sequences (`Windows`).
      chromosome: str [n]; start: int64 [n], of each window, 0-based.
      regions: str [n], ids of the intervals, 0-based half-open, that the windows were cut for.
      chromosomes: which of them train, choose and test.
      assembly: "hg38", ...; "" where it was not said.
      regulators: float32, of the same regions in the same order, or None.
      accessibility: likewise.

    Raises InputError: a matrix whose rows are other regions, or the same in another order; parts that call a chromosome
    otherwise than the regions do.
    """

    codes: np.ndarray
    lengths: np.ndarray
    chromosome: np.ndarray
    start: np.ndarray
    regions: np.ndarray
    chromosomes: SealedChromosomes
    assembly: str = ""
    regulators: RegionMatrix | None = None
    accessibility: RegionMatrix | None = None

    def __post_init__(self) -> None:
        for name in _MATRICES:
            matrix = getattr(self, name)
            if matrix is not None:
                matrix.check_order(self.regions, "the corpus")
        self._check_names()

    def _check_names(self) -> None:
        """ "chr8" in the parts would seal nothing where the corpus calls it "8"."""
        parts = self.chromosomes
        sealed = {*parts.train, *parts.validation, *parts.test}
        known = {ucsc_name(name): name for name in sealed}
        for name in np.unique(self.chromosome).tolist():
            if name not in sealed and ucsc_name(name) in known:
                raise InputError(
                    f"the parts name chromosome {known[ucsc_name(name)]!r}, the corpus calls it {name!r}: give "
                    "SealedChromosomes the names of the corpus, or read all files with ucsc_names=True "
                    "(--ucsc-names)"
                )

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, part: Part) -> np.ndarray:
        """int64 [m] ascending, of a part. Raises InputError where it has none."""
        found = self.chromosomes.rows(self.chromosome, part)
        if not len(found):
            names = np.unique(self.chromosome).tolist()
            raise InputError(f"no region is on a chromosome of the part {part}; there are {', '.join(names[:8])}")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Of everything in it, for the record of a run."""
        arrays = self._arrays()
        shapes = {name: array.shape for name, array in arrays.items()}
        digest = hashlib.sha256(json.dumps([asdict(self.chromosomes), self.assembly, shapes]).encode())
        for array in arrays.values():
            data = array if array.dtype.kind != "U" else np.array("\n".join(array.tolist()).encode())
            digest.update(np.ascontiguousarray(data).tobytes())
        return digest.hexdigest()

    def neighbours(self, rows: np.ndarray, number: int) -> np.ndarray:
        """int32 [m, K]: rows of the `number` regions around each of `rows` on its chromosome, by position, itself at
        K // 2; -1 where there is none. A chromosome is of one part, so they are of the same."""
        rank = self._rank[rows][:, None] + np.arange(number)[None] - number // 2
        inside = (rank >= 0) & (rank < len(self))
        found = self._order[np.where(inside, rank, 0)]
        same = inside & (self.chromosome[found] == self.chromosome[rows][:, None])
        return np.where(same, found, -1).astype(np.int32)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.lexsort((self.start, self.chromosome))

    @cached_property
    def _rank(self) -> np.ndarray:
        return np.argsort(self._order)

    def _arrays(self) -> dict[str, np.ndarray]:
        own = {name: getattr(self, name) for name in ("codes", "lengths", "chromosome", "start", "regions")}
        for name in _MATRICES:
            matrix: RegionMatrix | None = getattr(self, name)
            if matrix is not None:
                values = {part: getattr(matrix.values, part) for part in ("data", "indices", "indptr")}
                own |= {f"{name}.{part}": array for part, array in {"columns": matrix.columns, **values}.items()}
        return own

    def save(self, path: str | Path) -> None:
        """Writes one file. Raises CorpusError when the disk refuses."""
        said = {"format": _FORMAT, "assembly": self.assembly, "chromosomes": asdict(self.chromosomes)}
        about = {"about": np.array(json.dumps(said | {"fingerprint": self.fingerprint}))}
        with growing_file(Path(path)) as file:
            np.savez_compressed(file, **(about | self._arrays()))  # type: ignore[arg-type]


def genome_corpus(
    table: IntervalTable,
    windows: Windows,
    chromosomes: SealedChromosomes = USUAL_PARTS,
    assembly: str = "",
    regulators: RegionMatrix | None = None,
    accessibility: RegionMatrix | None = None,
) -> GenomeCorpus:
    """A corpus of the windows of a table of intervals (0-based half-open); matrices are joined by the regions' ids.

    Raises InputError: a region twice, or one that a matrix has not.
    """
    ids = table.ids[windows.rows]
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"{table.where}: {len(ids) - len(np.unique(ids)):,} regions are there twice; remove them")

    def joined(matrix: RegionMatrix | None) -> RegionMatrix | None:
        if matrix is None:
            return None
        return RegionMatrix(ids, matrix.columns, matrix.joined(ids)[0], matrix.where)

    return GenomeCorpus(
        windows.codes,
        windows.lengths,
        table.chromosome[windows.rows],
        windows.start,
        ids,
        chromosomes,
        assembly,
        joined(regulators),
        joined(accessibility),
    )


def open_genome_corpus(path: str | Path) -> GenomeCorpus:
    """Reads what `GenomeCorpus.save` wrote, and compares it with its digest. Raises CorpusError: something else."""
    try:
        with open_arrays(Path(path)) as stored:
            arrays = {name: stored[name] for name in stored.files}
        said = json.loads(str(arrays.pop("about")))
        if said["format"] != _FORMAT:
            raise ValueError(f"its format is {said['format']}")
        matrices: dict[str, RegionMatrix] = {}
        for name in _MATRICES:
            if f"{name}.columns" in arrays:
                columns, *parts = (arrays.pop(f"{name}.{part}") for part in ("columns", "data", "indices", "indptr"))
                shape = (len(arrays["regions"]), len(columns))
                values = sp.csr_array(tuple(parts), shape=shape)
                matrices[name] = RegionMatrix(arrays["regions"], columns, values, f"{path}, {name}")
        parts_of = {part: tuple(names) for part, names in said["chromosomes"].items()}
        found = GenomeCorpus(
            arrays["codes"],
            arrays["lengths"],
            arrays["chromosome"],
            arrays["start"],
            arrays["regions"],
            SealedChromosomes(**parts_of),
            said["assembly"],
            matrices.get("regulators"),
            matrices.get("accessibility"),
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, InputError) as error:
        raise CorpusError(f"{path}: no corpus of sequences that can be read ({error}); build it again") from error
    if found.fingerprint != said["fingerprint"]:
        raise CorpusError(f"{path}: damaged: what is in it is not what was written; copy or build it again")
    return found
