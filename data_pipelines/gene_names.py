"""The one gene that a name means: an Ensembl id, with or without version, or a symbol."""

import re

from data_pipelines.gene_tables import GeneTable

SPIKE_IN = "spike-in"

ERCC = re.compile(r"^ERCC-\d{5}$")
ENSEMBL_ID = re.compile(r"^ENS[A-Z]*G\d{11}")
_VERSION = re.compile(r"(\.\d+)?(_PAR_Y)?$")


def find_gene(name: str, genes: GeneTable) -> tuple[str, str]:
    """(unversioned Ensembl id, "id", "retired id", "symbol" or "alias"), or ("", why not)."""
    if ERCC.match(name):
        return "", SPIKE_IN
    if ENSEMBL_ID.match(name):
        row = genes.row_of_id.get(unversioned(name))
        if row is None:
            return "", "unknown"
        replaced = str(genes.replaced_by[row])
        return (replaced, "retired id") if replaced else (str(genes.ids[row]), "id")
    rows = genes.rows_of_symbol.get(name)
    if rows is None:
        return "", "unknown"
    gene_id = gene_of_symbol(name, genes)
    if not gene_id:
        return "", "ambiguous"
    return gene_id, "symbol" if any(genes.symbols[row] == name for row in rows) else "alias"


def gene_of_symbol(symbol: str, genes: GeneTable) -> str:
    """The one gene a symbol means, or "" where there is none or several."""
    found = {str(genes.replaced_by[row] or genes.ids[row]) for row in genes.rows_of_symbol.get(symbol, ())}
    return found.pop() if len(found) == 1 else ""


def unversioned(name: str) -> str:
    return _VERSION.sub("", name)
