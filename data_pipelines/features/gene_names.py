"""The one gene that a name means: an Ensembl id, with or without version, or a symbol."""

import re

from data_pipelines.features.gene_tables import ORGANISM_OF_ID, GeneTable
from data_pipelines.features.genome_assembly import organism_of_genome, without_genome

SPIKE_IN = "spike-in"
ANOTHER_SPECIES = "another species"

ERCC = re.compile(r"^ERCC-\d{5}$")
# After a genome or a symbol ("GRCh38_ENSG...", "CD4_ENSG..."), but at the end: "ENSG...-I" may count introns only.
_ENSEMBL_ID = re.compile(r"(?:^|[_|:;, -])(?P<id>ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?$", re.IGNORECASE)
_LONGEST_ID = 100
# MARCH1, SEPT1 and DEC1 in a spreadsheet: 1-Mar, Sep-01, 2021-12-01.
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_DATE = re.compile(
    rf"\d{{1,2}}-({_MONTHS})(-\d{{2,4}})?|({_MONTHS})-\d{{1,4}}|\d{{4}}-\d\d-\d\d( 00:00:00)?", re.IGNORECASE
)


def find_gene(name: str, genes: GeneTable) -> tuple[str, str]:
    """(unversioned Ensembl id, "id", "retired id", "symbol" or "alias"), or ("", why not)."""
    if not name:
        return "", "no name"
    if ERCC.match(name):
        return "", SPIKE_IN
    found = ensembl_id(name)
    if found:
        row = genes.row_of_id.get(found)
        if row is None:
            return "", "unknown" if organism_of_id(found) in (None, genes.organism) else ANOTHER_SPECIES
        replaced = str(genes.replaced_by[row])
        return (replaced, "retired id") if replaced else (found, "id")
    symbol = _symbol(name, genes.organism)
    if not symbol:
        return "", ANOTHER_SPECIES
    rows = genes.rows_of_symbol.get(symbol)
    if rows is None:
        return "", "a date" if _DATE.fullmatch(symbol) else "unknown"
    gene_id = gene_of_symbol(symbol, genes)
    if not gene_id:
        return "", "ambiguous"
    return gene_id, "symbol" if any(genes.symbols[row] == symbol for row in rows) else "alias"


def is_known(name: str, genes: GeneTable) -> bool:
    """Whether the name is an id or a symbol of the organism, in exactly this spelling; it may mean several genes."""
    found = ensembl_id(name)
    return found in genes.row_of_id if found else _symbol(name, genes.organism) in genes.rows_of_symbol


def _symbol(name: str, organism: str) -> str:
    """The name without the genome before it; "" where that is not the organism's."""
    genome, symbol = without_genome(name)
    return symbol if not genome or organism_of_genome(genome) == organism else ""


def gene_of_symbol(symbol: str, genes: GeneTable) -> str:
    """The one gene a symbol means, or "" where there is none or several."""
    found = {str(genes.replaced_by[row] or genes.ids[row]) for row in genes.rows_of_symbol.get(symbol, ())}
    return found.pop() if len(found) == 1 else ""


def ensembl_id(name: str) -> str:
    """The Ensembl gene id that a name is, or ends in, without version and in capitals; "" where it is none."""
    match = _ENSEMBL_ID.search(name) if len(name) <= _LONGEST_ID else None
    return match["id"].upper() if match else ""


def unversioned(name: str) -> str:
    """An Ensembl id without version; another name as it is."""
    return ensembl_id(name) or name


def organism_of_id(gene_id: str) -> str | None:
    """ "human" or "mouse"; None for an id of another species."""
    return next((organism for organism, form in ORGANISM_OF_ID if form.match(gene_id)), None)
