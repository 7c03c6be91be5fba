"""What can be measured: the stable features of every modality, their places and links, and one hash that names it all.

The rows of the model's feature table are the features of a `FeatureSpace`, modality after modality in the order of
`MODALITIES`, sorted by id within a modality: the space depends on what was measured, never on the order of files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.files.parquet_file import read_parquet_table
from scmbert_jax.errors import InputError
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.modalities import MODALITIES

FORMAT_VERSION = 1
_quoted = json.encoder.encode_basestring_ascii


class _OtherVersion(InputError):
    """A sound file that another version of the program wrote; not to be reported as damage."""


@dataclass(frozen=True)
class ModalityFeatures:
    """The features of one modality; every array has one entry per feature, sorted by id, ids unique.

    Attributes:
      modality: "rna", "protein" or "atac".
      space: what the ids refer to: "gene:human", "protein:human", "region:hg38", "region:mm10", ...
      ids: str [M], unversioned Ensembl id, normalised antibody name, or "chr1:100-200" (0-based half-open).
      names: str [M], the symbol, the antibody name as people write it, or the region.
      chrom: str [M], "" where unknown.
      start, end: int64 [M], 0-based half-open; -1 where unknown.
      links: tuple [M] of tuples of unversioned Ensembl gene ids: coding genes of a protein, genes near a region;
        empty for genes.
    """

    modality: str
    space: str
    ids: np.ndarray
    names: np.ndarray
    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    links: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise InputError(f"modality {self.modality!r}: expected one of {', '.join(MODALITIES)}")
        sizes = {name: len(getattr(self, name)) for name in ("ids", "names", "chrom", "start", "end", "links")}
        if len(set(sizes.values())) != 1:
            raise InputError(f"features of {self.modality}: columns of unequal length {sizes}")
        if len(self.ids) > 1 and not np.all(self.ids[:-1] < self.ids[1:]):
            raise InputError(f"features of {self.modality}: ids must be unique and sorted; use ModalityFeatures.sorted")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def sorted(cls, modality, space, ids, names, chrom, start, end, links) -> "ModalityFeatures":
        """Builds from columns in any order; of features with equal ids the one with the smallest name stays."""
        order = sorted(range(len(ids)), key=lambda row: (str(ids[row]), str(names[row])))
        order = [row for place, row in enumerate(order) if place == 0 or ids[row] != ids[order[place - 1]]]
        return cls(
            modality=modality,
            space=space,
            ids=np.array([str(ids[row]) for row in order], dtype=str),
            names=np.array([str(names[row]) for row in order], dtype=str),
            chrom=np.array([str(chrom[row]) for row in order], dtype=str),
            start=np.array([start[row] for row in order], dtype=np.int64),
            end=np.array([end[row] for row in order], dtype=np.int64),
            links=tuple(tuple(links[row]) for row in order),
        )

    @property
    def organism(self) -> str | None:
        """ "human" or "mouse", or None for the regions of an assembly the package knows no organism of."""
        kind, _, where = self.space.partition(":")
        if kind != "region":
            return where
        return {"hg38": "human", "hg19": "human", "mm10": "mouse", "mm39": "mouse"}.get(where)

    def index_of(self, ids) -> np.ndarray:
        """int64 [n]: the place of each id here, -1 where it is not a feature of this space."""
        wanted = np.asarray(ids, dtype=str)
        if not len(self.ids):
            return np.full(len(wanted), -1, np.int64)
        place = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[place] == wanted, place, -1).astype(np.int64)

    def union(self, other: "ModalityFeatures") -> "ModalityFeatures":
        same_ids = self.space == other.space and np.array_equal(self.ids, other.ids)
        if same_ids and np.array_equal(self.names, other.names) and self.links == other.links:
            return self  # the regions of a catalogue, of which there may be millions
        if self.space != other.space:
            raise InputError(
                f"{self.modality}: features of {self.space} and of {other.space} cannot share one feature space; "
                "build one corpus per organism and assembly (or lift the regions over first)"
            )
        return ModalityFeatures.sorted(
            self.modality,
            self.space,
            *(
                [*getattr(self, column), *getattr(other, column)]
                for column in ("ids", "names", "chrom", "start", "end", "links")
            ),
        )


class FeatureSpace:
    """The features of all modalities: the rows of one global feature table.

    Attributes:
      modalities: modality -> its features, in the order of `MODALITIES`.
      slices: modality -> (first row, one past the last row) of the global table.
      num_features: rows of the global table.
      organism: "human" or "mouse"; None when only regions of an unknown assembly are there.
      content_hash: sha256 hex of all that a model's weights depend on: spaces, ids, positions, links. Display names
        are left out: the same antibodies spelt differently are the same space.
    """

    def __init__(self, modalities: Mapping[str, ModalityFeatures]):
        for name, features in modalities.items():
            if name != features.modality:
                raise InputError(f"features of {features.modality} were given under the name {name!r}")
        self.modalities = {name: modalities[name] for name in MODALITIES if name in modalities}
        organisms = {features.organism for features in self.modalities.values()} - {None}
        if len(organisms) > 1:
            spaces = ", ".join(features.space for features in self.modalities.values())
            raise InputError(f"a feature space holds one organism; found {spaces}. Build one corpus per organism")
        self.organism: str | None = next(iter(organisms), None)

    @property
    def num_features(self) -> int:
        return sum(len(features) for features in self.modalities.values())

    @cached_property
    def slices(self) -> dict[str, tuple[int, int]]:
        slices, first = {}, 0
        for name, features in self.modalities.items():
            slices[name] = (first, first + len(features))
            first += len(features)
        return slices

    @cached_property
    def content_hash(self) -> str:
        return self._digest(with_names=False)

    def _digest(self, with_names: bool) -> str:
        digest = hashlib.sha256(f"scmbert feature space {FORMAT_VERSION}\n".encode())
        for name, features in self.modalities.items():
            digest.update(f"{name}\t{features.space}\t{len(features)}\n".encode())
            columns = zip(
                features.ids.tolist(),
                features.chrom.tolist(),
                features.start.tolist(),
                features.end.tolist(),
                features.links,
                features.names.tolist() if with_names else [""] * len(features),
                strict=True,
            )
            digest.update("\n".join(_row_text(*row) for row in columns).encode())
        return digest.hexdigest()

    def layout(self, covariate_sizes: Mapping[str, int] | None = None) -> FeatureLayout:
        """What the model needs: row ranges, and links whose two ends are both rows of this space."""
        links = {}
        genes = self.modalities.get("rna")
        for name, features in self.modalities.items():
            if genes is None or name == "rna":
                continue
            source = np.repeat(np.arange(len(features)), [len(linked) for linked in features.links])
            target = genes.index_of([gene for linked in features.links for gene in linked])
            inside = target >= 0
            first, first_gene = self.slices[name][0], self.slices["rna"][0]
            links[name] = (
                (source[inside] + first).astype(np.int32),
                (target[inside] + first_gene).astype(np.int32),
            )
        return FeatureLayout(slices=dict(self.slices), links=links, covariate_sizes=dict(covariate_sizes or {}))

    def union(self, other: "FeatureSpace") -> "FeatureSpace":
        """Every feature of either; raises InputError when they differ in organism or assembly."""
        merged = dict(self.modalities)
        for name, features in other.modalities.items():
            merged[name] = merged[name].union(features) if name in merged else features
        return FeatureSpace(merged)

    def save(self, path: str | Path) -> None:
        """Writes one parquet file; spaces and hashes stand in its metadata."""
        features = list(self.modalities.values())

        def joined(column: str) -> list:
            return [value for part in features for value in list(getattr(part, column))]

        table = pa.table(
            {
                "modality": pa.array([part.modality for part in features for _ in range(len(part))], pa.string()),
                "id": pa.array(joined("ids"), pa.string()),
                "name": pa.array(joined("names"), pa.string()),
                "chrom": pa.array(joined("chrom"), pa.string()),
                "start": pa.array(joined("start"), pa.int64()),
                "end": pa.array(joined("end"), pa.int64()),
                "links": pa.array(joined("links"), pa.list_(pa.string())),
            }
        )
        about = {
            "format_version": FORMAT_VERSION,
            "spaces": {name: part.space for name, part in self.modalities.items()},
            "content_hash": self.content_hash,
            "file_hash": self._digest(with_names=True),
        }
        pq.write_table(
            table.replace_schema_metadata({"scmbert_feature_space": json.dumps(about)}), path, compression="zstd"
        )

    @classmethod
    def load(cls, path: str | Path, file: BinaryIO | None = None) -> "FeatureSpace":
        """Reads what `save` wrote; out of `file` where it was opened before. Raises InputError when it is missing,
        damaged, or of another format version."""
        remedy = "restore the file, or rebuild the corpus or the model folder it belongs to"
        try:
            size = os.path.getsize(path) if file is None else file.seek(0, os.SEEK_END)
            # ids are unique, so that a feature takes more than a byte however well the file is compressed
            table = read_parquet_table(path if file is None else file, max_rows=size)
            about = json.loads((table.schema.metadata or {})[b"scmbert_feature_space"])
            version = about["format_version"]
            if version != FORMAT_VERSION:
                raise _OtherVersion(
                    f"{path}: feature space of format version {version}; this program reads {FORMAT_VERSION}. "
                    "Use the version of scmbert_jax that wrote it, or rebuild"
                )
            modalities = {}
            of_row = np.array(table["modality"].to_pylist(), dtype=str)
            for name, space in about["spaces"].items():
                part = table.filter(pa.array(of_row == name))
                modalities[name] = ModalityFeatures(
                    modality=name,
                    space=space,
                    ids=np.array(part["id"].to_pylist(), dtype=str),
                    names=np.array(part["name"].to_pylist(), dtype=str),
                    chrom=np.array(part["chrom"].to_pylist(), dtype=str),
                    start=part["start"].to_numpy().astype(np.int64),
                    end=part["end"].to_numpy().astype(np.int64),
                    links=tuple(tuple(linked) for linked in part["links"].to_pylist()),
                )
            found = cls(modalities)
            written = about["file_hash"], about["content_hash"]
        except FileNotFoundError as error:
            raise InputError(f"{path}: no feature space there; {remedy}") from error
        except _OtherVersion:
            raise
        except (InputError, OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a feature space, or damaged ({error}); {remedy}") from error
        if (found._digest(with_names=True), found.content_hash) != written:
            raise InputError(f"{path}: the content does not match the hash written with it: damaged; {remedy}")
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpace) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __repr__(self) -> str:
        parts = ", ".join(f"{f.space}: {len(f)}" for f in self.modalities.values())
        return f"FeatureSpace({parts}; {self.content_hash[:12]})"


def _row_text(feature_id: str, chrom: str, start: int, end: int, links: tuple[str, ...], name: str) -> str:
    """What `json.dumps` makes of the row, in a quarter of the time: every start of a run waits for it. Quoted, so that
    no two spaces can have the same text."""
    linked = ", ".join([_quoted(gene) for gene in links])
    return f"[{_quoted(feature_id)}, {_quoted(chrom)}, {start}, {end}, [{linked}], {_quoted(name)}]"
