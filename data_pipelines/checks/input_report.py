"""What the input check found, for people (`to_text`) and for programs (`to_json`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.features.feature_mapping import NO_FEATURES, UNMAPPED, FeatureMapping
from data_pipelines.features.feature_space import ModalityFeatures

# Measured on 10x RNA (1,635 non-zeros a cell): 1.55 kB a cell with delta-coded ids and zstd.
CORPUS_BYTES_PER_VALUE = 0.95
# CSR with int32 values and int32 indices.
MEMORY_BYTES_PER_VALUE = 8


@dataclass
class ModalityReport:
    """One matrix after the check.

    Attributes:
      mapping: None where the modality, organism or assembly is not known (then there is a problem that says so).
      column_to_feature: int64 [columns], index into `features.ids` of the modality, -1 = unmapped.
      keep: bool [cells of the matrix], the rows that are kept; the others are counted in `dropped`.
      dropped: reason -> number of cells.
      examples: reason -> first few cell ids.
      total_counts: float64 [cells of the matrix], over the mapped features.
      counts_hashes: uint64 [cells of the matrix], of the counts over the mapped features (`cell_identity`).
      derivation: how the counts were made, where they are not simply what the file holds (`CountsMatrix`).
      regions: of ATAC, which regions its counts go to, and what that loses (`region_check.region_facts`).
    """

    modality: str
    path: str
    counts_field: str
    evidence: str
    considered: dict[str, str]
    genome: str | None
    num_cells: int
    num_columns: int
    column_to_feature: np.ndarray
    keep: np.ndarray
    mapping: FeatureMapping | None = None
    total_counts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    storage: str = ""
    are_counts: bool = False
    num_values: int = 0
    num_mapped_values: int = 0
    mapped_count_fraction: float = 0.0
    max_value: float = 0.0
    median_library_size: float = 0.0
    median_detected: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    derivation: dict[str, Any] = field(default_factory=dict)
    regions: dict[str, Any] | None = None

    @property
    def num_kept(self) -> int:
        return int(np.count_nonzero(self.keep))

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the file's matrix."""
        return 1.0 - self.num_values / max(1, self.num_cells * self.num_columns)

    @property
    def memory_bytes(self) -> int:
        return MEMORY_BYTES_PER_VALUE * self.num_values + 8 * self.num_cells

    def to_dict(self) -> dict[str, Any]:
        mapping = self.mapping
        features: dict[str, Any] = {"columns": self.num_columns}
        if mapping is not None:
            features |= {
                "space": mapping.space,
                "names_from": mapping.source,
                "coverage": round(mapping.coverage, 6),
                "features": len(mapping.features),
                "measured": int(mapping.measured.sum()),
                "linked": sum(bool(linked) for linked in mapping.features.links),
                "status": mapping.status_counts,
                "examples": {status: mapping.examples(status) for status in mapping.status_counts},
                "summed_columns": mapping.num_summed,
                "summed_examples": mapping.summed_examples(),
            }
        return {
            "path": self.path,
            "counts_field": self.counts_field,
            "other_fields": self.considered,
            "recognised_by": self.evidence,
            "genome": self.genome,
            "are_counts": self.are_counts,
            "storage": self.storage,
            "cells": self.num_cells,
            "cells_kept": self.num_kept,
            "cells_dropped": self.dropped,
            "dropped_examples": self.examples,
            "features": features,
            "values": self.num_values,
            "sparsity": round(self.sparsity, 6),
            "max_value": self.max_value,
            "median_library_size": self.median_library_size,
            "median_detected_features": self.median_detected,
            "mapped_count_share": round(self.mapped_count_fraction, 6),
            "derivation": self.derivation,
            "regions": self.regions,
            "memory_bytes": self.memory_bytes,
        }


@dataclass
class InputReport:
    """The result of `check_dataset`. Usable when it has no problems; warnings are for the person to judge.

    Attributes:
      min_genes: fewest genes of a cell that is kept; None where there are no genes, and nobody stated it.
      features: modality -> mapped features that are present.
      modalities: modality -> its report ("" holds a matrix whose modality is not known).
      combinations: "rna+protein" -> number of kept cells measured in exactly these modalities.
      obs_fields: standard name -> column of obs.
      copies: data set -> number of cells that were dropped because it holds copies of them (`duplicate_cells`).
    """

    name: str
    path: str
    organism: str | None
    assembly: str | None
    min_genes: int | None
    min_coverage: float
    num_cells: int = 0
    num_cells_kept: int = 0
    modalities: dict[str, ModalityReport] = field(default_factory=dict)
    combinations: dict[str, int] = field(default_factory=dict)
    obs_fields: dict[str, str] = field(default_factory=dict)
    obs_categories: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.problems

    @property
    def features(self) -> dict[str, ModalityFeatures]:
        return {name: part.mapping.features for name, part in self.modalities.items() if part.mapping is not None}

    def count_kept(self, rows: Mapping[str, np.ndarray]) -> None:
        """Fills `num_cells_kept` and `combinations` from what each modality keeps.

        Args:
          rows: modality -> int64 [cells of its matrix], the place of each in the data set.
        """
        code = np.zeros(self.num_cells, np.int64)
        for place, (name, places) in enumerate(rows.items()):
            code[places[self.modalities[name].keep]] |= 1 << place
        values, counts = np.unique(code[code > 0], return_counts=True)
        self.num_cells_kept = int(counts.sum())
        self.combinations = {
            "+".join(name for place, name in enumerate(rows) if value >> place & 1): count
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        }

    @property
    def memory_bytes(self) -> int:
        return sum(part.memory_bytes for part in self.modalities.values())

    @property
    def corpus_bytes(self) -> int:
        return int(sum(part.num_mapped_values for part in self.modalities.values()) * CORPUS_BYTES_PER_VALUE)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "usable": self.usable,
            "problems": self.problems,
            "warnings": self.warnings,
            "organism": self.organism,
            "assembly": self.assembly,
            "min_genes": self.min_genes,
            "min_coverage": self.min_coverage,
            "cells": self.num_cells,
            "cells_kept": self.num_cells_kept,
            "copies_dropped": self.copies,
            "cells_by_modalities": self.combinations,
            "obs_fields": self.obs_fields,
            "obs_categories": self.obs_categories,
            "memory_bytes_estimate": self.memory_bytes,
            "corpus_bytes_estimate": self.corpus_bytes,
            "modalities": {name or "unknown": part.to_dict() for name, part in self.modalities.items()},
        }

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps(self.to_dict(), indent=2, default=_plain, allow_nan=False)

    def to_text(self) -> str:
        """Aligned plain text, some thirty lines."""
        verdict = "can be used" if self.usable else f"CANNOT be used: {_plural(len(self.problems), 'problem')}"
        lines = [f"{self.name}: {verdict}"]
        _row(lines, "file", self.path)
        species = self.organism or "not known"
        _row(lines, "organism", species + (f", assembly {self.assembly}" if self.assembly else ""))
        _row(lines, "cells", f"{self.num_cells:,}, kept {self.num_cells_kept:,}")
        for combination, count in self.combinations.items():
            _row(lines, "", f"{count:,} measured in {combination}")
        if self.obs_fields:
            fields = [f"{name} = obs[{column!r}]" for name, column in self.obs_fields.items()]
            counts = [f" ({self.obs_categories[name]} values)" for name in self.obs_fields]
            _row(lines, "cell metadata", ", ".join(a + b for a, b in zip(fields, counts, strict=True)))
        else:
            _row(lines, "cell metadata", "no standard field recognised")
        size = f"about {_bytes(self.memory_bytes)} in memory, {_bytes(self.corpus_bytes)} as a corpus"
        _row(lines, "size", size)
        for part in self.modalities.values():
            lines += ["", *_modality_lines(part)]
        for title, messages in (("problems", self.problems), ("warnings", self.warnings)):
            if messages:
                lines += ["", title, *(f"  - {message}" for message in messages)]
        return "\n".join(lines)


def _modality_lines(part: ModalityReport) -> list[str]:
    lines = [part.modality or "unknown modality"]
    _row(lines, "recognised by", part.evidence)
    kind = f"raw counts ({part.storage})" if part.are_counts else f"NOT usable counts ({part.storage or 'not read'})"
    _row(lines, "counts in", f"{part.counts_field}: {kind}")
    for line in derivation_lines(part.derivation):
        _row(lines, "", line)
    for other, seen in part.considered.items():
        _row(lines, "", f"not {other}: {seen}")
    _row(lines, "matrix", f"{part.num_cells:,} cells x {part.num_columns:,} features, {part.sparsity:.1%} zeros")
    mapping = part.mapping
    if mapping is not None:
        _row(
            lines,
            "features",
            f"{mapping.num_mapped:,} of {mapping.num_eligible:,} columns map to {mapping.space} "
            f"({mapping.coverage:.1%}; {part.mapped_count_fraction:.1%} of the counts), names from {mapping.source}",
        )
        for status, count in mapping.status_counts.items():
            examples = ", ".join(mapping.examples(status)[:3])
            shown = f": {examples}" if status in (*UNMAPPED, *NO_FEATURES, "no coding gene known") else ""
            _row(lines, "", f"{count:,} {status}{shown}")
        if mapping.num_summed:
            _row(lines, "", f"{mapping.num_summed:,} columns summed into others: {mapping.summed_examples()[0]} ...")
        if part.regions is not None:
            _row(lines, "regions", regions_text(part.regions))
        linked = sum(bool(genes) for genes in mapping.features.links)
        if part.modality != "rna":
            _row(lines, "linked to genes", f"{linked:,} of {len(mapping.features):,}")
    _row(
        lines,
        "per cell",
        f"median {part.median_library_size:,.0f} counts over {part.median_detected:,.0f} features; "
        f"largest count {part.max_value:,.6g}",
    )
    for reason, count in part.dropped.items():
        _row(lines, "cells dropped", f"{count:,} {reason}: {', '.join(part.examples.get(reason, []))}")
    return lines


def regions_text(facts: dict[str, Any]) -> str:
    """`region_facts` for people."""
    size = f" ({facts['regions']:,} regions)" if "regions" in facts else ""
    if not facts["lossy"]:
        return f"{facts['source']}{size}"
    return (
        f"{facts['source']}{size}; LOSSY: {facts['by_overlap']:,} peaks mapped by overlap, {facts['in_no_region']:,} "
        "left out, overlapping none"
    )


def _row(lines: list[str], label: str, text: str) -> None:
    lines.append(f"  {label:<16}{text}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _plain(value: Any) -> Any:
    """numpy scalars and arrays for json."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a report")


def derivation_lines(derivation: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each thing done, in the order it was done. Reports and manifests hold the same entries."""
    return [_TEXT[kind](facts) for kind, facts in derivation.items()]


def _soma(about: Mapping[str, Any]) -> str:
    genes = "genes of its presence matrix" if about["genes_by_presence_matrix"] else "no presence matrix"
    cells = f"cells with {about['obs_value_filter']}" if about["obs_value_filter"] else "all cells"
    return f"SOMA {about['store']}, data set {about['dataset_id'] or '(not stated)'}: {cells}; {genes}"


def _fragments(counted: Mapping[str, Any]) -> str:
    return (
        f"{counted['counted']} of cells ({counted['cells_are']}) on {counted['regions']}: {counted['fragments']:,} in "
        f"the file, {counted['fragments_of_cells']:,} of cells, {counted['fragments_of_cells_in_regions']:,} of those "
        "in regions"
    )


def _length_normalisation(done: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{count:,} cells of {assay}" for assay, count in done["assays"].items())
    return f"NORMALISED by length, {listed}: counts / {done['lengths_from']}, at the cell's total, rounded"


_TEXT = {"soma": _soma, "fragments": _fragments, "length normalisation": _length_normalisation}
