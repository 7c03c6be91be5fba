"""Bytes per cell of the counts in a file: as a corpus, as gzip-compressed .h5ad, and as zarr.

All hold the same counts: those that the corpus keeps, float32 in the other two, as atlases store them; obs tables are
left out.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from data_pipelines.corpus.corpus import Corpus
from scmbert_jax.benchmarks.input_speed import bytes_of_counts
from scmbert_jax.text_table import markdown_table


@dataclass(frozen=True)
class StoredSize:
    """One file.

    Attributes:
      file: as it was named.
      cells: in the corpus.
      entries_per_cell: non-zero counts, of all modalities.
      corpus, raw_corpus, gzip_h5ad, zarr: bytes per cell; the corpus with codec zstd and none.
    """

    file: str
    cells: int
    entries_per_cell: float
    corpus: float
    raw_corpus: float
    gzip_h5ad: float
    zarr: float


@dataclass(frozen=True)
class StoredSizes:
    """All files of one call."""

    rows: tuple[StoredSize, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "settings": self.settings}

    def text(self) -> str:
        head = ["file", "cells", "entries per cell", "corpus", "corpus, raw", "h5ad, gzip", "zarr"]
        lines = [
            [
                row.file,
                f"{row.cells:,}",
                f"{row.entries_per_cell:,.0f}",
                *(f"{size:,.0f}" for size in (row.corpus, row.raw_corpus, row.gzip_h5ad, row.zarr)),
            ]
            for row in self.rows
        ]
        return markdown_table(head, lines)


def measure_sizes(files: tuple[str, ...], say: Callable[[str], None] = lambda message: None) -> StoredSizes:
    """Builds a corpus of each file by itself, all cells of it, and stores what it holds in the other ways.

    Raises:
      InputError: a file that cannot be used; `scmbert doctor` says more.
    """
    with tempfile.TemporaryDirectory(prefix="scmbert_sizes_") as folder:
        rows = tuple(_measure(file, Path(folder) / str(number), say) for number, file in enumerate(files))
    import anndata
    import zarr

    return StoredSizes(rows, {"unit": "bytes per cell", "anndata": anndata.__version__, "zarr": zarr.__version__})


def _measure(file: str, folder: Path, say: Callable[[str], None]) -> StoredSize:
    import anndata

    from data_pipelines.build.build_corpus import build_corpus

    say(f"storing {file}")
    folder.mkdir()
    sizes = {}
    for codec in ("zstd", "none"):
        with build_corpus(folder / codec, [file], codec=codec, min_genes=1) as corpus:
            sizes[codec] = bytes_of_counts(folder / codec)
            counts = counts_of(corpus) if codec == "none" else {}
            num_cells = corpus.num_cells
    gzip_bytes = zarr_bytes = 0
    for modality, matrix in counts.items():
        cells = anndata.AnnData(matrix)
        cells.write_h5ad(folder / f"{modality}.h5ad", compression="gzip")
        gzip_bytes += (folder / f"{modality}.h5ad").stat().st_size
        cells.write_zarr(folder / f"{modality}.zarr")
        zarr_bytes += sum(path.stat().st_size for path in (folder / f"{modality}.zarr" / "X").rglob("*"))
    return StoredSize(
        file,
        num_cells,
        sum(matrix.nnz for matrix in counts.values()) / num_cells,
        *(size / num_cells for size in (sizes["zstd"], sizes["none"], gzip_bytes, zarr_bytes)),
    )


def counts_of(corpus: Corpus) -> dict[str, scipy.sparse.csr_matrix]:
    """modality -> float32 CSR [measured cells, features], in corpus order."""
    matrices: dict[str, scipy.sparse.csr_matrix] = {}
    blocks = [corpus.read_block(number) for number in range(corpus.num_blocks)]
    for modality, features in corpus.feature_space.modalities.items():
        parts = [block.modalities[modality] for block in blocks if modality in block.modalities]
        lengths = np.concatenate([part.lengths[part.measured] for part in parts])
        matrices[modality] = scipy.sparse.csr_matrix(
            (
                np.concatenate([part.counts for part in parts]).astype(np.float32),
                np.concatenate([part.feature_ids for part in parts]),
                np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            ),
            shape=(len(lengths), len(features)),
        )
    return matrices
