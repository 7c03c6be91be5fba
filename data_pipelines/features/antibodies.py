"""Antibody names: one spelling for what vendors and labs write in many, and the genes that code for the antigen.

`CD3`, `cd3`, `Hu.CD3_UCHT1`, `CD3_TotalSeqB`, `CD3-CTCATTGTAACTCCT` and `anti-human CD3` are all "cd3". Two clones
against one antigen (`cd3.1`, `cd3.2`) stay two features and link to the same genes. What is counted beside antibodies
and is none (`no_antibody`) is told apart: hashtags, and the rows of reads that fitted nothing.
"""

import re
from functools import lru_cache
from importlib import resources

from data_pipelines.features.column_names import plain_name

# Greek letters of chain names; spelt-out ones are left as they are (the table knows both).
_GREEK = str.maketrans({"α": "a", "β": "b", "γ": "g", "δ": "d", "ε": "e", "κ": "k", "λ": "l"})
_TOTALSEQ = re.compile(r"[\s_.\-]*total[\s_.\-]?seq[\s_.\-™]*[abcd]?$")
_SPECIES_PREFIX = re.compile(r"^(hu|ms|humsrt|humsr|hums|mu)\.(?=\w)")
_WORD_PREFIX = re.compile(r"^(adt|ab|anti|prot|protein)[\s_\-:.]+|^anti(?=cd\d)|^(human|mouse)[\s_\-.]+(?!r?igg)")
_WORD_SUFFIX = re.compile(r"[\s_\-.]+(adt|prot|protein|antibody)$")
_CLONE = re.compile(r"_[a-z0-9.\-]+$")
_PARENTHESES = re.compile(r"\([^)]*\)")
_SEPARATORS = re.compile(r"[^a-z0-9.]+")
_REPLICATE = re.compile(r"\.\d$")
# The sequence of the tag that CITE-seq-Count writes behind a name.
_TAG = re.compile(r"[\s_\-.:][ACGT]{8,40}$")
# Longer ones are no names, and some of the patterns here take time with the square of a length.
_LONGEST = 200
_HASHTAG = re.compile(
    r"(^|[^a-z])(hash[\s_\-.]?tags?|hto|cmo|sample[\s_\-.]?tags?)[\s_\-.#]*(\d{1,4}|[a-z])?([^a-z0-9]|$)"
)
# Rows of CITE-seq-Count, and of others that count what fitted no tag.
_NO_TAG = frozenset(
    ("unmapped", "unassigned", "unknown", "nomatch", "badstruct", "totalreads", "ambiguous", "negative", "doublet")
)
_ISOTYPE = re.compile(
    r"isotype|(^|\.)(ctrl|control)(\.|$)|^((rat|mouse|armenian\.hamster|hamster|rabbit|goat)\.)?igg\d[a-c]?\b"
)


def normalise_antibody(name: str) -> str:
    """The stable id of an antibody, e.g. "cd3", "cd3.1", "hla.dr", "tcr.v.7.2"; "" for what can be no name."""
    if len(name) > _LONGEST:
        return ""
    text = without_tag(name).translate(_GREEK).lower()
    text = _TOTALSEQ.sub("", text)
    text, has_species_prefix = _SPECIES_PREFIX.subn("", text)
    for _ in range(3):  # "ADT_anti-human CD3"
        text = _WORD_PREFIX.sub("", text)
    text = _WORD_SUFFIX.sub("", text)
    without_clone = _dotted(_CLONE.sub("", text))
    if has_species_prefix:  # "Hu.CD3_UCHT1" always carries a clone
        return without_clone
    # "CD3_UCHT1" carries a clone, "CD279 (PD-1)" a synonym, only if leaving it out makes the name a known one.
    whole = _dotted(text)
    readings = (whole, without_clone, _dotted(_PARENTHESES.sub("", text)))
    return next((reading for reading in readings if is_known_antibody(reading)), whole)


def without_tag(name: str) -> str:
    """ "CD3-CTCATTGTAACTCCT" -> "CD3"."""
    return _TAG.sub("", name.strip())


def no_antibody(name: str) -> str | None:
    """ "hashtag" or "no tag" for a row that counts what is no antibody, as the file writes its name; else None."""
    if len(name) > _LONGEST:
        return None
    text = without_tag(name).lower()
    if plain_name(text) in _NO_TAG:
        return "no tag"
    return "hashtag" if _HASHTAG.search(text) else None


def is_isotype_control(antibody_id: str) -> bool:
    """Whether the (normalised) antibody binds nothing on purpose: `igg1`, `mouse.igg2a`, `igg1.control`."""
    return bool(_ISOTYPE.search(antibody_id))


def coding_genes(antibody_id: str) -> tuple[str, ...]:
    """Human symbols of the genes that code for the antigen of a normalised antibody; () where the table has none."""
    if is_isotype_control(antibody_id):
        return ()
    return _genes_or_none(antibody_id) or ()


def is_known_antibody(antibody_id: str) -> bool:
    return is_isotype_control(antibody_id) or _genes_or_none(antibody_id) is not None


def _dotted(text: str) -> str:
    return re.sub(r"\.{2,}", ".", _SEPARATORS.sub(".", text)).strip(".")


def _genes_or_none(antibody_id: str) -> tuple[str, ...] | None:
    # The whole name first: in "notch.1" or "siglec.8" the number is part of the name, in "cd3.1" it counts clones.
    table = antibody_table()
    return table.get(antibody_id) or table.get(_REPLICATE.sub("", antibody_id))


@lru_cache(maxsize=1)
def antibody_table() -> dict[str, tuple[str, ...]]:
    """Normalised antibody name -> human symbols of its coding genes, from `tables/protein_genes.tsv`."""
    text = (resources.files("data_pipelines") / "tables" / "protein_genes.tsv").read_text(encoding="utf-8")
    table = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            names, genes, _kind = line.split("\t")
            for name in names.split(","):
                table[name] = tuple(genes.split(","))
    return table
