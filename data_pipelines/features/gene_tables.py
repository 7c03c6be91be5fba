"""The genes of an organism: stable ids, the names people use for them, and where they lie.

One row per unversioned Ensembl id. Two tables travel with the package (`tables/human_genes.parquet`,
`tables/mouse_genes.parquet`; origin in `tables/README.md`). Both are made by this file:

    python -m data_pipelines.features.gene_tables from-tables FOLDER OUT_FOLDER    the packaged tables, from raw tables
    python -m data_pipelines.features.gene_tables from-gtf GTF OUT.parquet         another release (.gtf or .gtf.gz)
"""

import argparse
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines.files.parquet_file import read_parquet_frame
from scmbert_jax.errors import InputError

ORGANISMS = ("human", "mouse")
COLUMNS = (
    "gene_id",
    "symbol",
    "aliases",
    "chrom",
    "start",
    "end",
    "strand",
    "tss",
    "biotype",
    "reference",
    "replaced_by",
    "assembly",
)
PRIMARY_CHROMOSOME = re.compile(r"chr(\d{1,2}|X|Y|M)$")
ASSEMBLY_OF = {"human": "hg38", "mouse": "mm10"}
ORGANISM_OF_ID = (("human", re.compile(r"ENSG\d{11}$")), ("mouse", re.compile(r"ENSMUSG\d{11}$")))

# The symbol a gene is shown with: the newest source that names it.
_SYMBOL_SOURCES = ("ensembl_biomart", "10x_GRCh38_2020A", "10x_hg19_v1")


@dataclass(frozen=True)
class GeneTable:
    """The genes of one organism on one assembly; every array has one entry per gene, sorted by id.

    Attributes:
      organism: "human" or "mouse".
      assembly: "hg38", "mm10", ...: the one the positions refer to.
      ids: str [G], unversioned Ensembl ids.
      symbols: str [G], the preferred symbol.
      aliases: tuple of str [G], other symbols of the same id (older releases).
      chrom: str [G], "chr1" ...; "" where the position is unknown.
      start, end: int64 [G], 0-based half-open; -1 where unknown.
      strand: str [G], "+", "-" or "".
      tss: int64 [G], 0-based transcription start site; -1 where unknown.
      biotype: str [G], "" where unknown.
      reference: bool [G], True where the id belongs to the primary assembly's reference annotation: it settles
        which of several ids with one symbol (alternate haplotypes, retired ids) is meant.
      replaced_by: str [G], the reference id of the same gene for a retired or alternate-haplotype id; else "".
    """

    organism: str
    assembly: str
    ids: np.ndarray
    symbols: np.ndarray
    aliases: tuple[tuple[str, ...], ...]
    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    strand: np.ndarray
    tss: np.ndarray
    biotype: np.ndarray
    reference: np.ndarray
    replaced_by: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def row_of_id(self) -> dict[str, int]:
        return {gene_id: row for row, gene_id in enumerate(self.ids.tolist())}

    @cached_property
    def rows_of_symbol(self) -> dict[str, tuple[int, ...]]:
        """Symbol -> the rows it may mean: one row, or several that nothing tells apart (ambiguous).

        A row is preferred in this order: primary symbol in the reference annotation, primary symbol on a primary
        chromosome, primary symbol without a position, alias in the reference, any alias.
        """
        primary_rank = np.where(self.reference, 0, np.where(self.chrom != "", 1, 2))
        best: dict[str, tuple[int, list[int]]] = {}

        def offer(symbol: str, rank: int, row: int) -> None:
            held = best.get(symbol)
            if held is None or rank < held[0]:
                best[symbol] = (rank, [row])
            elif rank == held[0]:
                held[1].append(row)

        for row, (symbol, rank) in enumerate(zip(self.symbols.tolist(), primary_rank.tolist(), strict=True)):
            if symbol:
                offer(symbol, rank, row)
            for alias in self.aliases[row]:
                offer(alias, 3 if self.reference[row] else 4, row)
        return {symbol: tuple(rows) for symbol, (_, rows) in best.items()}

    @cached_property
    def symbol_of_folded(self) -> dict[str, str]:
        """Upper-cased symbol -> the symbol as written, only where upper-casing joins no two symbols."""
        folded: dict[str, str | None] = {}
        for symbol in self.rows_of_symbol:
            key = symbol.upper()
            folded[key] = None if key in folded else symbol
        return {key: symbol for key, symbol in folded.items() if symbol is not None}

    @cached_property
    def tss_by_chromosome(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Chromosome -> (sorted TSS positions int64 [K], their table rows int64 [K]); genes of the reference only."""
        found = {}
        usable = (self.tss >= 0) & (self.replaced_by == "") & self.reference
        for chrom in np.unique(self.chrom[usable]).tolist():
            rows = np.flatnonzero(usable & (self.chrom == chrom))
            rows = rows[np.argsort(self.tss[rows], kind="stable")]
            found[chrom] = (self.tss[rows], rows)
        return found


@lru_cache(maxsize=4)
def load_gene_table(organism: str) -> GeneTable:
    """The packaged table of "human" (hg38) or "mouse" (mm10)."""
    if organism not in ORGANISMS:
        raise InputError(f"organism {organism!r}: no gene table; the package knows {' and '.join(ORGANISMS)}")
    source = resources.files("data_pipelines") / "tables" / f"{organism}_genes.parquet"
    with resources.as_file(source) as path:
        return read_gene_table(path)


def read_gene_table(path: str | Path) -> GeneTable:
    """Reads a table written by this file. Raises InputError when it is missing or lacks columns."""
    try:
        frame = read_parquet_frame(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a gene table ({error}); make one with: {_USAGE}") from error
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise InputError(f"{path}: gene table lacks the columns {', '.join(missing)}; make one with: {_USAGE}")
    ids = frame["gene_id"].to_numpy(dtype=str)
    organism = organism_of_ids(ids[:1000].tolist())
    if organism is None:
        raise InputError(f"{path}: gene ids such as {ids[:3].tolist()} are neither human (ENSG) nor mouse (ENSMUSG)")
    return GeneTable(
        organism=organism,
        assembly=str(frame["assembly"].iloc[0]),
        ids=ids,
        symbols=frame["symbol"].to_numpy(dtype=str),
        aliases=tuple(tuple(text.split("|")) if text else () for text in frame["aliases"]),
        chrom=frame["chrom"].to_numpy(dtype=str),
        start=frame["start"].to_numpy(np.int64),
        end=frame["end"].to_numpy(np.int64),
        strand=frame["strand"].to_numpy(dtype=str),
        tss=frame["tss"].to_numpy(np.int64),
        biotype=frame["biotype"].to_numpy(dtype=str),
        reference=frame["reference"].to_numpy(bool),
        replaced_by=frame["replaced_by"].to_numpy(dtype=str),
    )


def organism_of_ids(ids: list[str]) -> str | None:
    """The organism most of these (unversioned) ids belong to, or None when fewer than half have a known form."""
    counts = {organism: sum(bool(form.match(i)) for i in ids) for organism, form in ORGANISM_OF_ID}
    organism, count = max(counts.items(), key=lambda item: item[1])
    return organism if ids and count * 2 >= len(ids) else None


# ---------------------------------------------------------------------------------------------- builders


def build_human_table(folder: Path, reference_ids: set[str]) -> pd.DataFrame:
    """`human_gene_ids.tsv.gz` (several sources, several rows per id) -> one row per id.

    Args:
      folder: holds the raw table. Its positions are 1-based inclusive (GENCODE, hg38).
      reference_ids: ids of the GRCh38 2020-A reference (GENCODE v32, primary assembly).
    """
    raw = pd.read_csv(folder / "human_gene_ids.tsv.gz", sep="\t", low_memory=False, keep_default_na=False, dtype=str)
    rank = {source: position for position, source in enumerate(_SYMBOL_SOURCES)}
    raw["rank"] = raw["source"].map(rank)
    raw = raw.sort_values(["ensembl_id", "rank"], kind="stable")
    symbols: dict[str, list[str]] = {}
    # A position stands in any row of the id: the newest source often has the symbol but not the place.
    places: dict[str, tuple[str, int, int, str, str]] = {}
    for row in raw.itertuples():
        symbols.setdefault(row.ensembl_id, []).append(row.symbol)
        if row.chrom and row.start and row.ensembl_id not in places:
            start, end = int(float(row.start)) - 1, int(float(row.end))
            places[row.ensembl_id] = (row.chrom, start, end, row.strand, row.biotype)
    rows = []
    for gene_id, named in symbols.items():
        named = list(dict.fromkeys(symbol for symbol in named if symbol))
        chrom, start, end, strand, biotype = places.get(gene_id, ("", -1, -1, "", ""))
        rows.append(
            {
                "gene_id": gene_id,
                "symbol": named[0] if named else "",
                "aliases": "|".join(named[1:]),
                "chrom": chrom,
                "start": start,
                "end": end,
                "strand": strand,
                "tss": end - 1 if strand == "-" else start,
                "biotype": biotype,
                "reference": gene_id in reference_ids,
                "assembly": "hg38",
            }
        )
    return _with_replacements(pd.DataFrame(rows))


def build_mouse_table(folder: Path) -> pd.DataFrame:
    """`mouse_gene_ids.tsv.gz` (id, symbol) + `mm10_tss_info.bed.gz` (promoter windows by symbol) -> one row per id.

    The windows give the distance of their centre from the TSS (negative = upstream), so TSS = centre - distance along
    the strand: exact for Gapdh and Ptprc, within about 100 bp where a window was cut. Several windows of one gene: its
    most upstream TSS. Only the TSS of a mouse gene is known, so start = TSS and end = TSS + 1.
    """
    names = pd.read_csv(folder / "mouse_gene_ids.tsv.gz", sep="\t", keep_default_na=False, dtype=str)
    windows = pd.read_csv(
        folder / "mm10_tss_info.bed.gz",
        sep="\t",
        header=None,
        names=["chrom", "start", "end", "symbol", "distance", "strand"],
        dtype={"chrom": str, "symbol": str, "strand": str},
        keep_default_na=False,
    )
    windows = windows[windows["chrom"].map(lambda chrom: bool(PRIMARY_CHROMOSOME.match(chrom)))]
    direction = np.where(windows["strand"] == "-", -1, 1)
    centre = (windows["start"] + windows["end"]) // 2
    windows = windows.assign(tss=centre - direction * windows["distance"], upstream=0)
    windows["upstream"] = windows["tss"] * direction
    windows = windows.sort_values(["symbol", "upstream"]).drop_duplicates("symbol")
    frame = names.merge(windows[["symbol", "chrom", "strand", "tss"]], on="symbol", how="left")
    known = frame["chrom"].notna()
    tss = frame["tss"].fillna(-1).astype(np.int64)
    frame = pd.DataFrame(
        {
            "gene_id": frame["ensembl_id"],
            "symbol": frame["symbol"],
            "aliases": "",
            "chrom": frame["chrom"].fillna(""),
            "start": tss,
            "end": np.where(known, tss + 1, -1),
            "strand": frame["strand"].fillna(""),
            "tss": tss,
            "biotype": "",
            # No list of the reference annotation here: every placed gene stands for itself.
            "reference": known,
            "assembly": "mm10",
        }
    )
    return _with_replacements(frame)


_GTF_ATTRIBUTE = re.compile(r'(?<!\w)(\w+) "([^"]*)"')


def build_table_from_gtf(path: str | Path, assembly: str | None = None) -> pd.DataFrame:
    """The `gene` features of an Ensembl or GENCODE GTF (.gz too) -> one row per id. Versions are stripped."""
    rows = []
    for number, line in enumerate(_lines(Path(path)), start=1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.rstrip("\n").split("\t")
        if len(fields) != 9:
            raise InputError(f"{path}, line {number}: {len(fields)} tab-separated fields; a GTF line has 9")
        if fields[2] != "gene":
            continue
        attributes = dict(_GTF_ATTRIBUTE.findall(fields[8]))
        if "gene_id" not in attributes:
            raise InputError(f"{path}, line {number}: a gene without gene_id")
        if attributes["gene_id"].endswith("_PAR_Y"):
            continue  # the copy of an X gene on the pseudo-autosomal part of Y carries the same gene
        chrom = fields[0] if fields[0].startswith("chr") else "chr" + {"MT": "M"}.get(fields[0], fields[0])
        start, end, strand = int(fields[3]) - 1, int(fields[4]), fields[6] if fields[6] in "+-" else ""
        rows.append(
            {
                "gene_id": attributes["gene_id"].split(".")[0],
                "symbol": attributes.get("gene_name", ""),
                "aliases": "",
                "chrom": chrom,
                "start": start,
                "end": end,
                "strand": strand,
                "tss": end - 1 if strand == "-" else start,
                "biotype": attributes.get("gene_biotype", attributes.get("gene_type", "")),
                "reference": bool(PRIMARY_CHROMOSOME.match(chrom)),
            }
        )
    if not rows:
        raise InputError(f"{path}: no line whose third field is `gene`; expected an Ensembl or GENCODE GTF")
    frame = pd.DataFrame(rows).drop_duplicates("gene_id")
    organism = organism_of_ids(frame["gene_id"].tolist())
    if organism is None:
        raise InputError(f"{path}: gene ids such as {frame['gene_id'].iloc[0]!r} are neither ENSG nor ENSMUSG")
    return _with_replacements(frame.assign(assembly=assembly or ASSEMBLY_OF[organism]))


def write_gene_table(frame: pd.DataFrame, path: str | Path) -> None:
    frame = frame.sort_values("gene_id")[list(COLUMNS)].reset_index(drop=True)
    integers = dict.fromkeys(("start", "end", "tss"), np.int32)
    frame.astype(integers).to_parquet(path, compression="zstd", compression_level=19, index=False)


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as stream:
            yield from stream
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as a GTF ({error})") from error


def _with_replacements(frame: pd.DataFrame) -> pd.DataFrame:
    """Fills `replaced_by`: a non-reference id whose preferred symbol belongs to exactly one reference id.

    Ensembl gives every alternate haplotype of HLA, KIR or CCL genes its own id and retires ids between releases;
    without this, CCL3 of an hg19 file and CCL3 of an hg38 file would be two features. Clone names (AC004381.6) are
    excepted: they were handed to other genes between releases.
    """
    in_reference = frame[frame["reference"] & (frame["symbol"] != "")]
    unique = in_reference[~in_reference.duplicated("symbol", keep=False)]
    reference_id = dict(zip(unique["symbol"], unique["gene_id"], strict=True))
    clone = frame["symbol"].str.match(r"^[A-Z]{1,2}[0-9]{5,6}\.[0-9]+$|^RP\d+-")
    replaced = frame["symbol"].map(reference_id).where(~frame["reference"] & ~clone).fillna("")
    return frame.assign(replaced_by=replaced)


_USAGE = "python -m data_pipelines.features.gene_tables from-gtf GTF OUT.parquet"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.features.gene_tables", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    tables = verbs.add_parser("from-tables", help="the packaged tables from a folder of raw tables")
    tables.add_argument("folder", type=Path)
    tables.add_argument("out_folder", type=Path)
    tables.add_argument("--reference", type=Path, required=True, help="a 10x .h5 counted on GRCh38-2020-A")
    gtf = verbs.add_parser("from-gtf", help="a table from an Ensembl or GENCODE GTF")
    gtf.add_argument("gtf", type=Path)
    gtf.add_argument("out", type=Path)
    gtf.add_argument("--assembly", help="what the positions refer to; default hg38 or mm10, after the ids")
    parsed = parser.parse_args(arguments)
    if parsed.verb == "from-gtf":
        write_gene_table(build_table_from_gtf(parsed.gtf, parsed.assembly), parsed.out)
        return
    from data_pipelines.files.hdf5_file import open_hdf5

    with open_hdf5(parsed.reference) as file:
        reference_ids = {gene_id.decode() for gene_id in file["matrix/features/id"][:]}
    write_gene_table(build_human_table(parsed.folder, reference_ids), parsed.out_folder / "human_genes.parquet")
    write_gene_table(build_mouse_table(parsed.folder), parsed.out_folder / "mouse_genes.parquet")


if __name__ == "__main__":
    main()
