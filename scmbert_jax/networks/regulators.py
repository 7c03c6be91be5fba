"""Which genes may regulate: a list that the user brings, as places among the genes of a model."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.features.feature_space import ModalityFeatures
from data_pipelines.features.gene_names import find_gene
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.networks.edge_file import COLUMNS
from data_pipelines.networks.gene_network import another_organism
from data_pipelines.networks.named_networks import PREFIX, read_network
from scmbert_jax.errors import InputError

Array = np.ndarray

_SHOWN = 3
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Regulators:
    """Attributes:
    places: int64 [R], among the model's RNA features, ascending.
    names: how many the file has.
    unknown: of them, those that are no gene of the model's organism; not_in_model: genes that the model lacks.
    """

    places: Array
    names: int
    unknown: tuple[str, ...]
    not_in_model: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.places):,} of {self.names:,} regulators are genes of the model"
        for what, names in (("no genes", self.unknown), ("not in the model", self.not_in_model)):
            if names:
                text += f"; {len(names):,} are {what} ({', '.join(names[:_SHOWN])})"
        return text


def read_regulators(path: str | Path, features: ModalityFeatures) -> Regulators:
    """Of a list with a name per line, or a network (`read_network`), whose sources are taken.

    Raises InputError: no such file, no name in it, or none that is a gene of the model; the message has names of both.
    """
    organism = features.organism or "human"
    names = list(dict.fromkeys(_names(path, organism)))
    genes = load_gene_table(organism)
    ids = {name: find_gene(name, genes)[0] for name in names}
    place = dict(zip(names, features.index_of([ids[name] for name in names]).tolist(), strict=True))
    unknown = tuple(name for name in names if not ids[name])
    missing = tuple(name for name in names if ids[name] and place[name] < 0)
    found = np.unique([number for number in place.values() if number >= 0]).astype(np.int64)
    if len(found):
        return Regulators(found, len(names), unknown, missing)
    text = (
        f"{path}: none of its {len(names):,} names ({', '.join(names[:_SHOWN])}) is among the model's "
        f"{len(features):,} {organism} genes ({', '.join(features.names[:_SHOWN].tolist())})"
    )
    if another := another_organism(np.array(names), organism):
        raise InputError(text + another.replace("a network", "regulators"))
    raise InputError(f"{text}; give symbols or Ensembl ids, one per line, or a table of edges.")


def _names(path: str | Path, organism: str) -> list[str]:
    if str(path).startswith(PREFIX):
        return read_network(path, organism).source.tolist()
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        lines = data[:_MOST_BYTES].decode("utf-8-sig").splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: regulators cannot be read ({reason}); expected one name per line.") from error
    lines = [line.strip().strip('"') for line in lines if line.strip() and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: no regulator in it; expected one name per line, or a table of edges.")
    if any(mark in line for line in lines[:10] for mark in "\t,; "):
        return read_network(path, organism).source.tolist()
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path}: more than {_MOST_BYTES >> 20} MiB of names; expected one regulator per line.")
    # A heading that is a symbol, too (TF, transferrin), would be a regulator that nobody named.
    names = lines[1:] if lines[0].lower() in COLUMNS["source"] else lines
    if not names:
        raise InputError(f"{path}: no regulator in it but the heading {lines[0]}; expected one name per line.")
    return names
