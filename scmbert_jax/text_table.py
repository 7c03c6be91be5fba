"""Tables as text that people and markdown both read."""

import re
from collections.abc import Iterable, Sequence

from scmbert_jax.modalities import TABLE


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A GitHub-flavoured markdown table whose columns also line up as plain text; `|` in a cell is escaped."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *body]]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def markdown_rows(text: str) -> list[list[str]] | None:
    """Cells of a markdown table, header first; None when the text is something else."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 2 or not re.fullmatch(r"\|[\s:|-]+\|", lines[1]) or not all(x.startswith("|") for x in lines):
        return None
    cells = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", x)[1:-1]] for x in [lines[0], *lines[2:]]]
    return cells if len({len(row) for row in cells}) == 1 else None


def modality_name(modality: str) -> str:
    """How modalities are written for people: "RNA" for "rna", "RNA+protein" for "rna+protein"."""
    return "+".join(TABLE[name].label if name in TABLE else name for name in modality.split("+"))
