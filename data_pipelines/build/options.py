"""What a corpus is built by: with its inputs, all that its bytes depend on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.build import external_shuffle, tasks
from data_pipelines.build.corpus_overlap import KnownCells
from data_pipelines.cells.cell_selection import CellSelection
from data_pipelines.cells.held_out import HeldOutRule
from data_pipelines.corpus import cell_block
from data_pipelines.readers.reading_options import DEFAULT_READING, ReadingOptions
from scmbert_jax.errors import CorpusError


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Which cells a corpus holds, and how it stores them.

    Attributes:
      organism, assembly, min_genes, min_coverage, obs_fields: see `check_dataset`.
      block_size: cells of a block, at most; sizes differ by at most one.
      codec: "zstd" or "none".
      seed: of the shuffle.
      shard_bytes: aim for the size of a shard; what it becomes depends on how well the counts compress.
      unpaired: every modality of every file becomes cells of its own; no cell is joined to another by its id.
      only, exclude: obs field -> values; only cells that have one of them, none that has one (`CellSelection`).
      held_out: rules such as "donor=0.2" (held_out.py): a run on this corpus does not train on these cells, and is
        judged by them.
      keep_duplicates: keep cells that are copies of others, in the same file or in an earlier one (`duplicate_cells`).
      disjoint_from: corpora, or what `open_dataset` takes, of which no cell may be in this corpus: held-out data, say.
      licences: data set -> its licence, for the data card, over what its files say.
      reading: what was decided about the files: regions, cells of fragments files, full-length assays.

    Raises:
      ConfigError: a text in `held_out` that is no rule.
      CorpusError: a codec or a block size that there is not.
      InputError: a field of `only` or `exclude` without a value.
    """

    organism: str | None = None
    assembly: str | None = None
    min_genes: int | None = None
    min_coverage: float = 0.5
    block_size: int = 256
    codec: str = "zstd"
    seed: int = 0
    shard_bytes: int = 512 << 20
    obs_fields: Mapping[str, str | None] | None = None
    unpaired: bool = False
    only: Mapping[str, Sequence[str]] | None = None
    exclude: Mapping[str, Sequence[str]] | None = None
    held_out: Sequence[str] = ()
    keep_duplicates: bool = False
    disjoint_from: Sequence[Any] = ()
    licences: Mapping[str, str] | None = None
    reading: ReadingOptions = DEFAULT_READING

    def __post_init__(self) -> None:
        if self.codec not in cell_block.CODECS:
            raise CorpusError(f"codec {self.codec!r}; known: {sorted(cell_block.CODECS)}")
        if self.block_size < 1:
            raise CorpusError(f"block size {self.block_size}; expected at least 1 (256 reads fastest)")
        for text in self.held_out:
            HeldOutRule.parse(text)
        CellSelection(self.only or {}, self.exclude or {})

    @property
    def files(self) -> ReadingOptions:
        """`reading`, of the assembly that these options name."""
        return dataclasses.replace(self.reading, assembly=self.assembly or self.reading.assembly)

    @property
    def selection(self) -> CellSelection:
        return CellSelection(self.only or {}, self.exclude or {})

    @property
    def check(self) -> dict[str, Any]:
        """Arguments of `check_dataset`."""
        names = ("organism", "assembly", "min_genes", "min_coverage")
        return {name: getattr(self, name) for name in names}

    def identity(self, known: Sequence[KnownCells]) -> dict[str, Any]:
        """What an unfinished build must have in common with this one to be continued. `known`: of `disjoint_from`."""
        return {
            **self.check,
            "selection": self.selection.to_dict(),
            "obs_fields": self.obs_fields,
            "unpaired": self.unpaired,
            "reading": dataclasses.asdict(self.files),
            "keep_duplicates": self.keep_duplicates,
            "disjoint_from": [of_other.identity for of_other in known],
            "licences": dict(self.licences or {}),
            "block_size": self.block_size,
            "codec": self.codec,
            "seed": self.seed,
            "shard_bytes": self.shard_bytes,
            "division": [tasks.MIN_TASK_ROWS, tasks.MAX_TASK_ROWS, external_shuffle.BUCKET_ENTRIES],
        }


DEFAULT_BUILD = BuildOptions()
