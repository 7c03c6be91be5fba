"""A genome with planted motifs, regions on it, and cell types that open them by which regulators are active. No file.

A region r is open in a cell of type k with the probability

    p_rk = sigmoid(base + own_r + sum_m copies_rm x activity_mk + noise_rk)     own, noise ~ normal

Motifs also occur by chance, in regions and between them, and copies are drawn from their matrices: who scans the
sequence finds about what a scan of real DNA finds. One regulator is active in all types; each type has its own few
besides, some of which it shares; others are active in none.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from data_pipelines.genome.bases import decode, reverse_complement
from data_pipelines.genome.interval_table import IntervalTable
from data_pipelines.genome.motifs import MotifSet
from data_pipelines.genome.region_matrix import RegionMatrix, write_region_matrix
from scmbert_jax.errors import ConfigError

_CHROMOSOMES = tuple(f"chr{number}" for number in range(1, 10))  # chr7 to chr9 are the sealed ones of most readers
_GAP = 100  # bases between regions
_WIDTHS = (8, 12)  # of motifs, least and most
_MAIN_BASE = (0.85, 0.97)  # probability of a motif's base at each of its places
_SITES = 200.0  # a motif is of so many
_COPIES = 1.5  # planted in a region, on average
_SLOT = 16  # bases, of which a copy has one to itself
_BASE, _OWN_SPREAD, _NOISE = -1.5, 0.7, 0.3  # of the log odds of being open
_ACTIVITY = (1.2, 2.2)  # that a copy of an active regulator's motif adds to them
_DEPTH_SPREAD = 0.4  # of the log of a cell's depth


@dataclass(frozen=True)
class PlantedAccessibility:
    """R regions, M motifs, K cell types, and the truth about them.

    Attributes:
      genome: chromosome -> uint8 [bases], codes of `data_pipelines.genome.bases`.
      regions: 0-based half-open, all of one width L; none overlap.
      codes: uint8 [R, L], their sequences.
      motifs: "M01", ...; of regulators "TF01", ...
      copies: int8 [R, M], planted copies, on either strand.
      activity: float32 [M, K]; 0: not active. Column k is cell type k.
      accessibility: float32 [R, K], p of the formula above; columns "type1", ...
    """

    genome: dict[str, np.ndarray] = field(repr=False)
    regions: IntervalTable = field(repr=False)
    codes: np.ndarray = field(repr=False)
    motifs: MotifSet = field(repr=False)
    copies: np.ndarray = field(repr=False)
    activity: np.ndarray
    accessibility: RegionMatrix = field(repr=False)

    def cells(self, num_cells: int, depth: float = 0.3, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
        """Cells of random types.

        Args:
          num_cells: n.
          depth: fraction of its open regions in which a cell has a fragment, on average over cells.
          seed: of what is drawn.

        Returns:
          (int32 CSR [n, R], 1 where a cell has a fragment; int64 [n], its type).
        """
        rng = np.random.default_rng([seed, 23])
        of_cell = rng.integers(0, self.activity.shape[1], num_cells)
        depths = np.minimum(depth * np.exp(rng.normal(-(_DEPTH_SPREAD**2) / 2, _DEPTH_SPREAD, num_cells)), 1.0)
        open_in = self.accessibility.values.toarray().T
        rows = [
            np.flatnonzero(rng.random(len(self.codes)) < depths[cell] * open_in[of_cell[cell]])
            for cell in range(num_cells)
        ]
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        columns = np.concatenate([*rows, np.zeros(0, np.int64)])
        counts = sp.csr_matrix((np.ones(len(columns), np.int32), columns, starts), (num_cells, len(self.codes)))
        return counts, of_cell

    def write(self, folder: Path) -> dict[str, Path]:
        """Files as users have them: genome.fa, regions.bed, motifs.jaspar, accessibility.npz (`read_region_matrix`).

        Returns their paths by "genome", "regions", "motifs", "accessibility".
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = {"genome": "genome.fa", "regions": "regions.bed", "motifs": "motifs.jaspar"}
        paths = {what: folder / name for what, name in names.items()}
        paths["genome"].write_text("".join(f">{name}\n{decode(codes)}\n" for name, codes in self.genome.items()))
        table = self.regions
        columns = zip(table.chromosome.tolist(), table.start.tolist(), table.end.tolist(), strict=True)
        paths["regions"].write_text("".join(f"{name}\t{start}\t{end}\n" for name, start, end in columns))
        lines = []
        for motif, name, counts in zip(self.motifs.ids, self.motifs.names, self.motifs.counts, strict=True):
            rows = [
                f"{base} [ {' '.join(f'{number:g}' for number in row)} ]"
                for base, row in zip("ACGT", counts.T, strict=True)
            ]
            lines += [f">{motif} {name}", *rows]
        paths["motifs"].write_text("\n".join(lines) + "\n")
        paths["accessibility"] = folder / "accessibility.npz"
        write_region_matrix(self.accessibility, paths["accessibility"])
        return paths


def planted_accessibility(
    num_regions: int = 1800,
    num_motifs: int = 24,
    num_types: int = 6,
    *,
    num_active: int = 4,
    length: int = 200,
    seed: int = 0,
) -> PlantedAccessibility:
    """Regions on nine chromosomes, chr1 to chr9, as many on each; the same for the same arguments.

    Args:
      num_active: regulators of each type, beside the one that is active in all.
      length: bases of a region, 32 or more.

    Raises `ConfigError`: fewer than nine regions, shorter ones, or more active regulators than motifs.
    """
    if num_regions < len(_CHROMOSOMES) or length < 2 * _SLOT or not 0 < num_active < num_motifs:
        raise ConfigError(
            f"{num_regions} regions of {length} bases, {num_active} of {num_motifs} regulators active: expected "
            f"{len(_CHROMOSOMES)} regions or more, {2 * _SLOT} bases or more, and fewer active regulators than motifs"
        )
    rng = np.random.default_rng([seed, 19])
    motifs = _motifs(num_motifs, rng)
    copies = _copies(num_regions, num_motifs, length, rng)
    codes = rng.integers(0, 4, (num_regions, length)).astype(np.uint8)
    _plant(codes, copies, motifs, rng)
    genome, regions = _genome(codes, rng)
    activity = _activity(num_motifs, num_types, num_active, rng)
    log_odds = _BASE + rng.normal(0, _OWN_SPREAD, (num_regions, 1)) + copies @ activity
    log_odds = log_odds + rng.normal(0, _NOISE, log_odds.shape)
    types = np.array([f"type{number}" for number in range(1, num_types + 1)])
    opened = (1 / (1 + np.exp(-log_odds))).astype(np.float32)
    accessibility = RegionMatrix(regions.ids, types, sp.csr_array(opened), "planted accessibility")
    return PlantedAccessibility(genome, regions, codes, motifs, copies, activity, accessibility)


def _motifs(number: int, rng: np.random.Generator) -> MotifSet:
    counts = []
    for width in rng.integers(_WIDTHS[0], _WIDTHS[1] + 1, number).tolist():
        main = rng.uniform(*_MAIN_BASE, width)
        matrix = np.repeat((1 - main)[:, None] / 3, 4, axis=1)
        matrix[np.arange(width), rng.integers(0, 4, width)] = main
        counts.append(np.round(matrix * _SITES))
    names = tuple(f"TF{place:02d}" for place in range(1, number + 1))
    ids = tuple(f"M{place:02d}" for place in range(1, number + 1))
    return MotifSet(ids, names, tuple(counts), np.array([matrix[0].sum() for matrix in counts]), "planted motifs")


def _copies(num_regions: int, num_motifs: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """int8 [R, M], no more in a region than it has slots."""
    numbers = np.minimum(rng.poisson(_COPIES, num_regions), length // _SLOT)
    copies = np.zeros((num_regions, num_motifs), np.int8)
    np.add.at(copies, (np.repeat(np.arange(num_regions), numbers), rng.integers(0, num_motifs, numbers.sum())), 1)
    return copies


def _plant(codes: np.ndarray, copies: np.ndarray, motifs: MotifSet, rng: np.random.Generator) -> None:
    probabilities = motifs.probabilities(0.0)
    for row in np.flatnonzero(copies.any(axis=1)).tolist():
        planted = np.repeat(np.arange(copies.shape[1]), copies[row])
        slots = rng.permutation(codes.shape[1] // _SLOT)[: len(planted)] * _SLOT
        for motif, first in zip(planted.tolist(), slots.tolist(), strict=True):
            own = probabilities[motif]
            site = (rng.random(len(own))[:, None] > own.cumsum(axis=1)).sum(axis=1).clip(0, 3).astype(np.uint8)
            place = first + int(rng.integers(0, _SLOT - len(own) + 1))
            codes[row, place : place + len(own)] = reverse_complement(site) if rng.random() < 0.5 else site


def _genome(codes: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], IntervalTable]:
    number, length = codes.shape
    of_chromosome = np.sort(np.arange(number) % len(_CHROMOSOMES))
    place = np.arange(number) - np.searchsorted(of_chromosome, of_chromosome)
    start = (_GAP + place * (length + _GAP)).astype(np.int64)
    genome = {}
    for which, name in enumerate(_CHROMOSOMES):
        mine = np.flatnonzero(of_chromosome == which)
        bases = rng.integers(0, 4, int(start[mine[-1]]) + length + _GAP).astype(np.uint8)
        bases[start[mine][:, None] + np.arange(length)] = codes[mine]
        genome[name] = bases
    chromosome, nowhere = np.array(_CHROMOSOMES)[of_chromosome], np.full(number, -1, np.int64)
    strand, names = np.full(number, "."), np.full(number, "")
    return genome, IntervalTable(chromosome, start, start + length, strand, names, nowhere, "planted regions")


def _activity(num_motifs: int, num_types: int, num_active: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [M, K]: the first regulator is active in all types; a third, at least, in none."""
    activity = np.zeros((num_motifs, num_types))
    activity[0] = rng.uniform(*_ACTIVITY)
    among = np.arange(1, max(num_motifs * 2 // 3, num_active + 1))
    for column in range(num_types):
        chosen = rng.permutation(among)[:num_active]
        activity[chosen, column] = rng.uniform(*_ACTIVITY, len(chosen))
    return activity.astype(np.float32)
