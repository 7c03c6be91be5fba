"""What was done to counts before they were checked, for people: `CountsMatrix.derivation` as lines of text."""

from collections.abc import Mapping
from typing import Any


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
