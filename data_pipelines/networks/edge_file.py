"""The lines of a file of edges as a table of text, whatever program wrote it.

    source,target[,weight]          decoupler (CollecTRI, DoRothEA), and any table with a header; the names of columns
                                    that are understood stand in `COLUMNS`. Commas, tabs, semicolons or spaces
    TF  target  Activation  PMIDs   TRRUST: four columns, no header
    symbol  id  symbol  id          RegNetwork: four columns, no header
    protein1 protein2 combined_score  STRING, with the file of names beside it (9606.protein.info.v12.0.txt.gz)
    name.h5ad                       geneRNIB: uns["prediction"] with source, target, weight

Lines at the top that begin with "# " are remarks; of these, `# licence: CC BY 4.0` tells the licence of all edges.
"""

import codecs
import gzip
import io
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.files.hdf5_file import open_hdf5
from data_pipelines.readers.stored_table import read_table
from scmbert_jax.errors import InputError

# Role -> names of its column, in small letters; the first that a file has is taken.
COLUMNS = {
    "source": ("source", "tf", "regulator", "regulator_symbol", "gene1", "protein1", "source_genesymbol"),
    "target": ("target", "target_symbol", "gene2", "protein2", "gene", "target_genesymbol"),
    "weight": ("weight", "importance", "edgeweight", "mor", "score"),
    "sign": ("sign", "mor", "mode", "effect"),
    "confidence": ("confidence", "combined_score"),
}
# What a table may say of each edge beside that, and goes with it.
ABOUT = {
    "licence": ("licence", "license"),
    "sources": ("sources", "resources", "databases"),
    "references": ("references", "pmid", "pmids"),
}
SIGNS = {
    **dict.fromkeys(("activation", "activates", "positive", "+", "1", "1.0", "+1"), 1),
    **dict.fromkeys(("repression", "represses", "inhibition", "negative", "-", "-1", "-1.0"), -1),
    **dict.fromkeys(("unknown", "", "?", "0", "0.0"), 0),
}
_TRRUST = ["source", "target", "sign", "references"]
_REGNETWORK = ["source", "source_id", "target", "target_id"]
EXPECTED = "expected a table with the columns source and target (docs/networks.md lists what else is understood)"
_MOST_BYTES = 2 << 30  # that a file unpacks to: all of human STRING is 0.6 GB
_GZIP, _ZIP, _HDF5 = b"\x1f\x8b", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
_HEAD = 1 << 16  # bytes in which the first line ends
_LICENCE = re.compile(r"# *licen[cs]e: *(.+)", re.IGNORECASE)


def read_edge_file(path: str | Path) -> pd.DataFrame:
    """Text, names of columns in small letters; the index numbers the lines. STRING's proteins have names of genes.

    Raises InputError where it cannot be read, naming the line where one is at fault.
    """
    raw = _read_text(Path(path))
    return _with_names_of_proteins(raw, Path(path)) if {"protein1", "combined_score"} <= set(raw) else raw


def refuse_lines(path: str | Path, raw: pd.DataFrame, column: str | None, bad: np.ndarray, why: str) -> None:
    """Raises InputError naming the first of the lines, which the index of `raw` numbers."""
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{path}, line {raw.index[row]:,}, column {column}: {str(raw[column].iloc[row])[:60]!r} {why} "
            f"({int(bad.sum()):,} of {len(raw):,} lines)"
        )


def _read_text(path: Path) -> pd.DataFrame:
    """The table, all of it text, with names of columns in small letters."""
    try:
        if path.is_dir():
            raise ValueError("a folder without BL--network.csv; of BEELINE's, give the one that has it")
        data = path.read_bytes()
        if data.startswith(_HDF5):
            return _prediction(path)
        if data.startswith(_GZIP):
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 30} GiB")
        if data.startswith(_ZIP):
            raise ValueError("a spreadsheet or a zip archive; save the sheet as .csv, or unpack it")
        data = data.removeprefix(codecs.BOM_UTF8)
        _require_utf8(data)
        remarks = _remarks(data[:_HEAD].decode(errors="ignore"))
        data = data[sum(len(line.encode()) for line in remarks) :]
        first = re.split(r"[\r\n]", data[:_HEAD].decode(errors="ignore"), maxsplit=1)[0].strip()
        separator = next((mark for mark in "\t,; " if mark in first), ",")
        cells = [cell.strip('" ').lower() for cell in first.split(separator)]
        names = None
        if not set(cells) & {name for role in COLUMNS.values() for name in role} and len(cells) == 4:
            names = _TRRUST if cells[2] in SIGNS else _REGNETWORK
        table = pd.read_csv(
            io.BytesIO(data),
            sep=r"\s+" if separator == " " else separator,
            dtype=str,
            keep_default_na=False,
            names=names,
            skip_blank_lines=False,
        )
        if not isinstance(table.index, pd.RangeIndex) and (table.iloc[:, -1] == "").all():
            raise ValueError("its lines end in a separator, its first line does not")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {EXPECTED}") from error
    # Numbers of lines, for who is to find one; names of rows, as R writes them, are not needed.
    table.index = pd.RangeIndex(len(table)) + len(remarks) + (1 if names is not None else 2)
    table = table.rename(columns=lambda name: str(name).strip().lower())
    table = table[(table != "").any(axis=1)]
    licence = next((found[1].strip() for line in remarks if (found := _LICENCE.match(line))), "")
    return table.assign(licence=licence) if licence and not set(ABOUT["licence"]) & set(table) else table


def _require_utf8(data: bytes) -> None:
    """Raises ValueError naming the line that is not."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line:,} is not UTF-8 (byte {data[error.start : error.start + 1]!r}); write it again as UTF-8, e.g. "
            "with iconv -f latin1 -t utf-8, or of a spreadsheet's Unicode text with -f utf-16"
        ) from error


def _remarks(text: str) -> list[str]:
    """The lines at the top that begin with "# ", with their ends."""
    found = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("# "):
            break
        found.append(line)
    return found


def _prediction(path: Path) -> pd.DataFrame:
    """geneRNIB's table of an h5ad, as text. Raises ValueError where there is none."""
    with open_hdf5(path) as file:
        if "uns/prediction" not in file:
            raise ValueError('no uns["prediction"] in it; a network in an h5ad is one of geneRNIB')
        table, _ = read_table(file["uns"], "prediction", str(path))
    return pd.DataFrame({str(name).lower(): table[name].astype(str).to_numpy(object) for name in table})


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
        refuse_lines(
            path, raw, column, of_genes.isna().to_numpy(), f"has no name in {found[0].name}; take both of a release"
        )
        raw[column] = of_genes
    return raw
