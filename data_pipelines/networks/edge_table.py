"""Edges between genes, by name, as a file has them.

`edge_file` reads the lines. Signs are told by a column of signs, or by weights of which some are below 0; else they are
unknown. Confidence is told by a column of its own (0 to 1, STRING's 0 to 1,000, or DoRothEA's A to E, which count 1,
1/2, 1/3, 1/4 and 1/5 as in decoupler), or by the size of the weight as a fraction of the largest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from data_pipelines.networks.edge_file import ABOUT, COLUMNS, EXPECTED, SIGNS, read_edge_file, refuse_lines
from scmbert_jax.errors import InputError

_LEVELS = {"A": 1.0, "B": 1 / 2, "C": 1 / 3, "D": 1 / 4, "E": 1 / 5}
_LONGEST_NAME = 100
_SEVERAL = ("cell_type", "method")  # columns by which `scmbert networks infer` puts several networks into a file


@dataclass(frozen=True)
class EdgeTable:
    """E edges; no two have the same source and target, and none leads from a gene to itself.

    Attributes:
      source, target: str [E], names as the file has them, in its order.
      sign: int8 [E]; 1: activates, -1: represses, 0: unknown.
      confidence: float32 [E], above 0, at most 1.
      weight: float64 [E], as the file has it; 1 where it has none.
      name: of the file.
      problems: what was found -> how many lines, of those that were merged or left out.
      about: "licence", "sources", "references" -> str [E], where the file has them.
    """

    source: np.ndarray
    target: np.ndarray
    sign: np.ndarray
    confidence: np.ndarray
    weight: np.ndarray
    name: str
    problems: dict[str, int]
    about: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def licence(self) -> str:
        """Of all edges, several with semicolons between them; "" where the file tells none."""
        return "; ".join(sorted({*self.about.get("licence", np.array([])).tolist()} - {""}))

    def among(self, kept: np.ndarray) -> "EdgeTable":
        """The edges that bool [E] says."""
        return EdgeTable(
            self.source[kept],
            self.target[kept],
            self.sign[kept],
            self.confidence[kept],
            self.weight[kept],
            self.name,
            self.problems,
            {what: values[kept] for what, values in self.about.items()},
        )


def read_edge_table(path: str | Path) -> EdgeTable:
    """Reads a file of edges.

    Raises InputError naming file, line and column: no edges, no such columns, a name that is missing, a weight that is
    no number, a sign or a confidence that nobody knows.
    """
    return edges_of(read_edge_file(path), str(path))


def read_edge_tables(path: str | Path) -> list[EdgeTable]:
    """As `read_edge_table`; of a file of `scmbert networks infer`, a table for each method and cell type in it."""
    raw = read_edge_file(path)
    columns = [name for name in ("method", "cell_type") if name in raw]
    if not {"method", "stability"} <= set(raw):
        return [edges_of(raw, str(path))]
    groups = raw.groupby(columns, sort=False)
    # The name of a table ends like a path, so that "B/plasma" would be one.
    names = [", ".join(str(value).replace("/", "_") for value in named) for named, _ in groups]
    return [
        edges_of(own, f"{path}, {name}" if len(groups) > 1 else str(path))
        for name, (_, own) in zip(names, groups, strict=True)
    ]


def edges_of(raw: pd.DataFrame, path: str) -> EdgeTable:
    """The edges of a table of text, names of columns in small letters. Raises InputError as `read_edge_table`."""
    roles = {role: next((name for name in names if name in raw), None) for role, names in COLUMNS.items()}
    if roles["source"] is None or roles["target"] is None:
        raise InputError(
            f"{path}: columns {', '.join(str(name)[:40] for name in raw.columns[:6])}; {EXPECTED}. A table without "
            "names of columns needs a first line such as source,target,weight"
        )
    if raw.empty:
        raise InputError(f"{path}: no edge in it; {EXPECTED}")
    source, target = (raw[roles[side]].str.strip().to_numpy(str) for side in ("source", "target"))
    for side, names in (("source", source), ("target", target)):
        refuse_lines(path, raw, roles[side], names == "", "is empty; give every edge both genes, or remove the line")
        # A quote that is never closed takes the lines after it into a name.
        odd = (np.char.str_len(names) > _LONGEST_NAME) | (np.char.find(names, "\n") >= 0)
        refuse_lines(
            path, raw, roles[side], odd, "is no name of a gene; is a quote not closed, or the separator another?"
        )
    signs, weights = _text(raw, roles["sign"]), _numbers(path, raw, roles["weight"])
    if signs is not None and roles["sign"] != roles["weight"]:
        known = signs.str.lower()
        refuse_lines(
            path, raw, roles["sign"], ~known.isin(SIGNS).to_numpy(), f"is no sign; expected {', '.join(SIGNS)}"
        )
        sign = known.map(SIGNS).to_numpy(np.int8)
    else:
        sign = np.zeros(len(raw), np.int8)
        if weights is not None and (roles["sign"] is not None or (weights < 0).any()):
            sign = np.sign(weights).astype(np.int8)
    sizes = np.abs(weights) if weights is not None and np.any(weights) else np.ones(len(raw))
    confidence = _confidence(path, raw, roles["confidence"])
    if confidence is None:
        confidence = np.maximum(sizes / sizes.max(), np.finfo(np.float32).tiny)
    weight = np.ones(len(raw)) if weights is None else weights
    columns = {what: next((name for name in names if name in raw), None) for what, names in ABOUT.items()}
    about = {what: raw[name].str.strip().to_numpy(str) for what, name in columns.items() if name is not None}
    several = {name: raw[name].nunique() for name in _SEVERAL if name in raw}
    problems = {f"networks of another {name} in one file, joined": own for name, own in several.items() if own > 1}
    return merged_edges(source, target, sign, confidence, weight, path, problems, about)


def merged_edges(
    source: np.ndarray,
    target: np.ndarray,
    sign: np.ndarray,
    confidence: np.ndarray,
    weight: np.ndarray,
    name: str,
    problems: Mapping[str, int] = MappingProxyType({}),
    about: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> EdgeTable:
    """An `EdgeTable` of lines that may say the same twice, or contradict each other.

    Of lines with the same source and target the one of the highest confidence stays, the first of equals. Where some
    say that it activates, and others that it represses, the sign is unknown. `problems`: found before, are added to;
    `about` goes with the lines that stay.
    """
    loops = source == target
    lines = pd.DataFrame(
        {"source": source, "target": target, "sign": sign, "confidence": confidence, "weight": weight}
    )[~loops]
    signs = lines.groupby(["source", "target"], sort=False)["sign"]
    highest, lowest = signs.transform("max"), signs.transform("min")
    contradicted = (highest > 0) & (lowest < 0)
    lines["sign"] = np.where(contradicted, 0, highest + lowest).clip(-1, 1)
    best = lines.sort_values("confidence", ascending=False, kind="stable").drop_duplicates(["source", "target"])
    kept = lines.loc[best.index.sort_values()]
    found = {
        "self-loops": int(loops.sum()),
        "lines that repeat an edge": len(lines) - len(kept),
        "edges with contradictory signs": int(contradicted[kept.index].sum()),
    }
    return EdgeTable(
        kept["source"].to_numpy(str),
        kept["target"].to_numpy(str),
        kept["sign"].to_numpy(np.int8),
        kept["confidence"].to_numpy(np.float32),
        kept["weight"].to_numpy(np.float64),
        name,
        {
            what: total
            for what in dict.fromkeys([*problems, *found])
            if (total := found.get(what, 0) + problems.get(what, 0))
        },
        {what: values[kept.index] for what, values in about.items()},
    )


def _text(raw: pd.DataFrame, column: str | None) -> pd.Series | None:
    return None if column is None else raw[column].str.strip()


def _numbers(path: str, raw: pd.DataFrame, column: str | None) -> np.ndarray | None:
    """float64 [n] of a column, all of them finite; None where there is none."""
    if column is None:
        return None
    values = pd.to_numeric(raw[column], errors="coerce").to_numpy(np.float64)
    refuse_lines(path, raw, column, ~np.isfinite(values), "is no number; remove these lines, or give them a weight")
    return values


def _confidence(path: str, raw: pd.DataFrame, column: str | None) -> np.ndarray | None:
    levels = _text(raw, column)
    if levels is None:
        return None
    if levels.isin(_LEVELS).all():
        return levels.map(_LEVELS).to_numpy(np.float64)
    values = _numbers(path, raw, column)
    assert values is not None
    most = 1000.0 if column == "combined_score" else 1.0
    refuse_lines(
        path, raw, column, (values <= 0) | (values > most), f"is no confidence: expected above 0, at most {most:g}"
    )
    return values / most
