"""Reads sets of motifs; which format a file has, it says itself.

    JASPAR      >MA0139.1 CTCF, then four lines "A [ 87 167 ... ]" of counts
    PFM         >id [name], then four lines of a number per place, or a line of four numbers (A C G T) per place
    MEME        "MEME version 4", then "MOTIF id [name]", "letter-probability matrix: ... nsites= 20", a line per place
    TRANSFAC    "ID id", "P0 A C G T", then "01 4 16 0 0 ..." per place; "//" ends a motif

Plain or gzip. Everything that does not fit is refused by line: a motif that is silently cut scores as another one.
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.genome.motifs import MotifSet
from scmbert_jax.errors import InputError

_MOST_BYTES = 1 << 30
_EXPECTED = "expected JASPAR, PFM, MEME or TRANSFAC (docs/genome.md shows them)"
_JASPAR_ROW = re.compile(r"^([ACGTacgt])\s*\[?([^\]]*)\]?\s*$")
_MEME_SITES = 20.0  # what MEME takes where a file says none


class _Motif:
    """One that is being read."""

    def __init__(self, line: int, motif_id: str, name: str, sites: float | None = None):
        self.line, self.id, self.name, self.sites = line, motif_id, name, sites
        self.width: int | None = None
        self.by_place = sites is not None  # a line is a place, whatever the shape
        self.rows: list[list[float]] = []
        self.bases = ""  # of JASPAR's rows


def read_motifs(path: str | Path) -> MotifSet:
    """Reads a file of motifs.

    Raises InputError naming the line: another format, a matrix that is no matrix of counts or probabilities, an id
    twice, no motif.
    """
    lines = _lines(Path(path))
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    if first.startswith("MEME version"):
        found = [*_meme(path, lines)]
    elif first.startswith(">"):
        found = [*_with_heads(path, lines)]
    elif re.match(r"^(AC|ID|NA|XX|VV|DE|P0|PO)\b", first):
        found = [*_transfac(path, lines)]
    else:
        raise InputError(f"{path}: begins with {first[:40]!r}; {_EXPECTED}")
    if not found:
        raise InputError(f"{path}: no motif in it; {_EXPECTED}")
    matrices = _oriented(path, found)
    seen: dict[str, int] = {}
    for motif in found:
        if motif.id in seen:
            raise InputError(f"{path}, line {motif.line:,}: motif {motif.id} stands in line {seen[motif.id]:,}, too")
        seen[motif.id] = motif.line
    counts, sites = zip(*(_counts(path, *one) for one in zip(found, matrices, strict=True)), strict=True)
    ids, names = tuple(motif.id for motif in found), tuple(motif.name for motif in found)
    return MotifSet(ids, names, counts, np.array(sites, np.float64), str(path))


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES >> 30} GiB")
        return data.decode().splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_EXPECTED}") from error


def _numbers(path: str | Path, line: int, words: list[str]) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if not values or not all(0 <= value < float("inf") for value in values):
        raise InputError(
            f"{path}, line {line:,}: {' '.join(words)[:60]!r}; expected counts or probabilities, 0 or more"
        )
    return values


def _head(line: str) -> tuple[str, str]:
    words = line.split(maxsplit=1)
    return (words[0] if words else "", words[1].strip() if len(words) > 1 else "")


def _with_heads(path: str | Path, lines: list[str]) -> Iterator[_Motif]:
    """JASPAR and PFM."""
    motif: _Motif | None = None
    for number, line in enumerate(lines, start=1):
        if line.startswith(">"):
            if motif is not None:
                yield motif
            motif = _Motif(number, *_head(line[1:]))
            if not motif.id:
                raise InputError(f"{path}, line {number:,}: a motif without an id behind >")
        elif line.strip() and not line.startswith("#"):
            if motif is None:
                raise InputError(f"{path}, line {number:,}: {line[:40]!r} before the first motif; {_EXPECTED}")
            row = _JASPAR_ROW.match(line.strip())
            if row:
                motif.bases += row[1].upper()
            motif.rows.append(_numbers(path, number, (row[2] if row else line).split()))
    if motif is not None:
        yield motif


def _meme(path: str | Path, lines: list[str]) -> Iterator[_Motif]:
    motif: _Motif | None = None
    inside = False
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text.startswith("ALPHABET=") and "".join(text.split("=")[1].split()).upper() != "ACGT":
            raise InputError(f"{path}, line {number:,}: {text}; expected motifs of DNA, ALPHABET= ACGT")
        if text.startswith("MOTIF"):
            if motif is not None:
                yield motif
            motif, inside = _Motif(number, *_head(text[5:]), _MEME_SITES), False
        elif text.startswith("letter-probability matrix") and motif is not None:
            width = re.search(r"\bw=\s*(\d+)", text)
            sites = re.search(r"\bnsites=\s*([\d.]+)", text)
            inside = True
            motif.width = int(width[1]) if width else None
            motif.sites = float(sites[1]) if sites and float(sites[1]) > 0 else _MEME_SITES
        elif inside and motif is not None:
            if re.match(r"^[+-]?\.?\d", text):
                motif.rows.append(_numbers(path, number, text.split()))
            elif text:
                inside = False  # URL and the like
    if motif is not None:
        yield motif


def _transfac(path: str | Path, lines: list[str]) -> Iterator[_Motif]:
    motif: _Motif | None = None
    for number, line in enumerate(lines, start=1):
        key, _, rest = line.strip().partition(" ")
        if key in ("ID", "AC") and (motif is None or not motif.rows):
            if motif is None:
                motif = _Motif(number, "", "")
                motif.by_place = True
            motif.id = rest.strip() if key == "AC" or not motif.id else motif.id
            motif.name = rest.strip() if key == "ID" else motif.name
        elif key == "NA" and motif is not None:
            motif.name = rest.strip()
        elif key in ("P0", "PO"):
            if rest.split()[:4] != ["A", "C", "G", "T"]:
                raise InputError(f"{path}, line {number:,}: {line.strip()!r}; expected P0 A C G T")
            if motif is None:
                raise InputError(f"{path}, line {number:,}: a matrix without an ID")
        elif re.fullmatch(r"\d+", key) and motif is not None:
            if int(key) not in (len(motif.rows), len(motif.rows) + 1):  # from 0, or from 1
                raise InputError(
                    f"{path}, line {number:,}: place {key} of motif {motif.id} follows {len(motif.rows)} places"
                )
            motif.rows.append(_numbers(path, number, rest.split()[:4]))
        elif key == "//" and motif is not None:
            if motif.rows:
                yield motif
            motif = None
    if motif is not None:
        raise InputError(f"{path}, line {motif.line:,}: motif {motif.id} ends without //: the file was cut")


def _oriented(path: str | Path, motifs: list[_Motif]) -> list[np.ndarray]:
    """float64 [w, 4] each. Rows are places, or bases: all motifs of a file agree, so a 4 x 4 one does not decide."""
    for motif in motifs:
        lengths = {len(row) for row in motif.rows}
        if len(lengths) != 1 or (motif.bases and sorted(motif.bases) != ["A", "C", "G", "T"]):
            found = f"{len(motif.rows)} lines of {', '.join(map(str, sorted(lengths))) or 'no'} numbers"
            raise InputError(
                f"{path}, line {motif.line:,}: motif {motif.id} has {found}; expected a line for each of A, C, G and "
                "T, all as long, or a line of four for each place"
            )
        if motif.width is not None and motif.width != len(motif.rows):
            raise InputError(
                f"{path}, line {motif.line:,}: motif {motif.id} says w= {motif.width} but has {len(motif.rows)} lines"
            )
    matrices = [np.array(motif.rows, np.float64) for motif in motifs]
    if motifs[0].bases:
        orders = ([motif.bases.index(base) for base in "ACGT"] for motif in motifs)
        return [matrix[order].T for matrix, order in zip(matrices, orders, strict=True)]
    if all(matrix.shape[1] == 4 for matrix in matrices):
        if not motifs[0].by_place and all(matrix.shape[0] == 4 for matrix in matrices):
            raise InputError(
                f"{path}: all motifs are 4 by 4, so nothing says whether a line is a base or a place; write it as "
                "JASPAR"
            )
        return matrices
    for motif, matrix in zip(motifs, matrices, strict=True):
        if matrix.shape[0] != 4 or motif.by_place:
            raise InputError(
                f"{path}, line {motif.line:,}: motif {motif.id} has {len(matrix)} lines of {matrix.shape[1]} numbers; "
                "expected four lines, or lines of four"
            )
    return [matrix.T for matrix in matrices]


def _counts(path: str | Path, motif: _Motif, matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """(float64 [w, 4] counts, sites)."""
    sums = matrix.sum(1)
    if (sums <= 0).any():
        place = int(np.argmax(sums <= 0)) + 1
        raise InputError(f"{path}, line {motif.line:,}: motif {motif.id} has no sites at place {place}")
    probabilities = bool((np.abs(sums - 1) < 0.02).all())
    if probabilities:
        sites = motif.sites or _MEME_SITES
        return matrix / sums[:, None] * sites, sites
    if motif.sites is not None:
        place = int(np.argmax(np.abs(sums - 1) >= 0.02)) + 1
        raise InputError(
            f"{path}, line {motif.line:,}: motif {motif.id}: the probabilities of place {place} sum to "
            f"{sums[place - 1]:g}"
        )
    return matrix, float(sums.max())
