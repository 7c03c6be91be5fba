"""Edges between genes, by name, as a file has them.

    source,target[,weight]          decoupler (CollecTRI, DoRothEA), and any table with a header; the names of columns
                                    that are understood stand in `COLUMNS`. Separated by commas, tabs or spaces
    TF  target  Activation  PMIDs   TRRUST: four columns, no header
    symbol  id  symbol  id          RegNetwork: four columns, no header
    protein1 protein2 combined_score  STRING, with the file of names beside it (9606.protein.info.v12.0.txt.gz)

Signs are told by a column of signs, or by weights of which some are below 0; else they are unknown. Confidence is told
by a column of its own (0 to 1, STRING's 0 to 1,000, or DoRothEA's A to E, which count 1, 1/2, 1/3, 1/4 and 1/5 as in
decoupler), or by the size of the weight as a fraction of the largest.
"""

import gzip
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from scmbert_jax.errors import InputError

# Role -> names of its column, in small letters; the first that a file has is taken.
COLUMNS = {
    "source": ("source", "tf", "regulator", "regulator_symbol", "gene1", "protein1", "source_genesymbol"),
    "target": ("target", "target_symbol", "gene2", "protein2", "gene", "target_genesymbol"),
    "weight": ("weight", "importance", "edgeweight", "mor", "score"),
    "sign": ("sign", "mor", "mode", "effect"),
    "confidence": ("confidence", "combined_score"),
}
_SIGNS = {
    **dict.fromkeys(("activation", "activates", "positive", "+", "1", "1.0", "+1"), 1),
    **dict.fromkeys(("repression", "represses", "inhibition", "negative", "-", "-1", "-1.0"), -1),
    **dict.fromkeys(("unknown", "", "?", "0", "0.0"), 0),
}
_LEVELS = {"A": 1.0, "B": 1 / 2, "C": 1 / 3, "D": 1 / 4, "E": 1 / 5}
_TRRUST = ["source", "target", "sign", "references"]
_REGNETWORK = ["source", "source_id", "target", "target_id"]
_EXPECTED = "expected a table with the columns source and target (docs/networks.md lists what else is understood)"
_MOST_BYTES = 2 << 30  # that a file unpacks to: all of human STRING is 0.6 GB


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
    """

    source: np.ndarray
    target: np.ndarray
    sign: np.ndarray
    confidence: np.ndarray
    weight: np.ndarray
    name: str
    problems: dict[str, int]

    def __len__(self) -> int:
        return len(self.source)


def read_edge_table(path: str | Path) -> EdgeTable:
    """Reads a file of edges.

    Raises InputError naming file, line and column: no edges, no such columns, a name that is missing, a weight that is
    no number, a sign or a confidence that nobody knows.
    """
    path = Path(path)
    raw = _read_text(path)
    if "protein1" in raw and "combined_score" in raw:
        raw = _with_names_of_proteins(raw, path)
    roles = {role: next((name for name in names if name in raw), None) for role, names in COLUMNS.items()}
    if roles["source"] is None or roles["target"] is None:
        raise InputError(f"{path}: columns {', '.join(map(str, raw.columns[:6]))}; {_EXPECTED}")
    if raw.empty:
        raise InputError(f"{path}: no edge in it; {_EXPECTED}")
    source, target = (raw[roles[side]].str.strip().to_numpy(str) for side in ("source", "target"))
    for side, names in (("source", source), ("target", target)):
        _refuse(path, raw, roles[side], names == "", "is empty; give every edge both genes, or remove the line")
    signs, weights = _text(raw, roles["sign"]), _numbers(path, raw, roles["weight"])
    if signs is not None and roles["sign"] != roles["weight"]:
        known = signs.str.lower()
        _refuse(path, raw, roles["sign"], ~known.isin(_SIGNS).to_numpy(), f"is no sign; expected {', '.join(_SIGNS)}")
        sign = known.map(_SIGNS).to_numpy(np.int8)
    else:
        sign = np.zeros(len(raw), np.int8)
        if weights is not None and (roles["sign"] is not None or (weights < 0).any()):
            sign = np.sign(weights).astype(np.int8)
    sizes = np.abs(weights) if weights is not None and np.any(weights) else np.ones(len(raw))
    confidence = _confidence(path, raw, roles["confidence"])
    if confidence is None:
        confidence = np.maximum(sizes / sizes.max(), np.finfo(np.float32).tiny)
    weight = np.ones(len(raw)) if weights is None else weights
    return merged_edges(source, target, sign, confidence, weight, str(path))


def merged_edges(
    source: np.ndarray,
    target: np.ndarray,
    sign: np.ndarray,
    confidence: np.ndarray,
    weight: np.ndarray,
    name: str,
    problems: Mapping[str, int] = MappingProxyType({}),
) -> EdgeTable:
    """An `EdgeTable` of lines that may say the same twice, or contradict each other.

    Of lines with the same source and target the one of the highest confidence stays, the first of equals. Where some
    say that it activates, and others that it represses, the sign is unknown. `problems`: found before, are added to.
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
        {what: total for what, own in found.items() if (total := own + problems.get(what, 0))},
    )


def _read_text(path: Path) -> pd.DataFrame:
    """The table, all of it text, with names of columns in small letters."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 30} GiB")
        first = data[: 1 << 16].split(b"\n", 1)[0].decode().strip().lstrip("\ufeff")
        separator = next((mark for mark in "\t,; " if mark in first), ",")
        cells = [cell.strip('" ').lower() for cell in first.split(separator)]
        names = None
        if not set(cells) & {name for role in COLUMNS.values() for name in role} and len(cells) == 4:
            names = _TRRUST if cells[2] in _SIGNS else _REGNETWORK
        table = pd.read_csv(
            io.BytesIO(data), sep=separator, dtype=str, keep_default_na=False, names=names, skip_blank_lines=False
        )
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_EXPECTED}") from error
    return table.rename(columns=lambda name: str(name).strip().lower())


def _with_names_of_proteins(raw: pd.DataFrame, path: Path) -> pd.DataFrame:
    """STRING's table with gene symbols in place of its ids, out of the file that lies beside it."""
    found = sorted(path.parent.glob("*protein.info*"))
    if not found:
        raise InputError(
            f"{path}: names proteins by STRING's ids ({raw['protein1'].iloc[0] if len(raw) else ''}); put STRING's "
            "file of names (NCBI-TAXON.protein.info.VERSION.txt.gz) into the same folder"
        )
    info = _read_text(found[0])
    if not {"#string_protein_id", "preferred_name"} <= set(info):
        raise InputError(f"{found[0]}: columns {', '.join(info.columns[:4])}; expected STRING's protein.info")
    names = dict(zip(info["#string_protein_id"], info["preferred_name"], strict=True))
    raw = raw.copy()
    for column in ("protein1", "protein2"):
        of_genes = raw[column].map(names)
        _refuse(
            path, raw, column, of_genes.isna().to_numpy(), f"has no name in {found[0].name}; take both of a release"
        )
        raw[column] = of_genes
    return raw


def _text(raw: pd.DataFrame, column: str | None) -> pd.Series | None:
    return None if column is None else raw[column].str.strip()


def _numbers(path: Path, raw: pd.DataFrame, column: str | None) -> np.ndarray | None:
    """float64 [n] of a column, all of them finite; None where there is none."""
    if column is None:
        return None
    values = pd.to_numeric(raw[column], errors="coerce").to_numpy(np.float64)
    _refuse(path, raw, column, ~np.isfinite(values), "is no number; remove these lines, or give them a weight")
    return values


def _confidence(path: Path, raw: pd.DataFrame, column: str | None) -> np.ndarray | None:
    levels = _text(raw, column)
    if levels is None:
        return None
    if levels.isin(_LEVELS).all():
        return levels.map(_LEVELS).to_numpy(np.float64)
    values = _numbers(path, raw, column)
    assert values is not None
    most = 1000.0 if column == "combined_score" else 1.0
    _refuse(path, raw, column, (values <= 0) | (values > most), f"is no confidence: expected above 0, at most {most:g}")
    return values / most


def _refuse(path: Path, raw: pd.DataFrame, column: str | None, bad: np.ndarray, why: str) -> None:
    """Raises InputError naming the first of the lines, the first row of `raw` being line 2 (line 1 has the names)."""
    if bad.any():
        row = int(np.argmax(bad))
        line = row + 2 - (set(raw.columns) >= set(_TRRUST) or set(raw.columns) >= set(_REGNETWORK))
        raise InputError(
            f"{path}, line {line:,}, column {column}: {str(raw[column].iloc[row])!r} {why} ({int(bad.sum()):,} of "
            f"{len(raw):,} lines)"
        )
