"""Loaders of other projects, for `scmbert bench input`; loaded by a Python of its own that has them.

Each takes settings and gives (epochs, versions): an iterator without end, which goes through an epoch whenever the next
number of cells is asked for; and what is measured. This file imports nothing of the package, which those Pythons do not
have. The package's loader_process.py runs and times it.
"""

import os
from collections.abc import Iterator
from typing import Any

Epochs = Iterator[int]


def annbatch_batches(settings: dict[str, Any]) -> tuple[Epochs, dict[str, str]]:
    """annbatch on its own sharded zarr store, as its documentation says: through zarrs, with the obs columns needed.
    Settings: files, store (made of the files where it is not there), batch_size, chunk_size, preload_nchunks."""
    import annbatch
    import anndata
    import numpy as np
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    if not os.path.exists(settings["store"]):
        collection = annbatch.DatasetCollection(settings["store"])
        collection.add_adatas(settings["files"], shuffle=True, rng=np.random.default_rng(0))

    def load(group: Any) -> anndata.AnnData:
        counts = anndata.io.sparse_dataset(group["X"])
        return anndata.AnnData(X=counts, obs=anndata.io.read_elem(group["obs"])[["cell_type"]])

    def epochs() -> Epochs:
        loader = annbatch.Loader(
            batch_size=settings["batch_size"],
            chunk_size=settings["chunk_size"],
            preload_nchunks=settings["preload_nchunks"],
            shuffle=True,
            rng=np.random.default_rng(0),
            to=None,
        ).use_collection(annbatch.DatasetCollection(settings["store"], mode="r"), load_adata=load)
        while True:
            yield sum(batch["X"].shape[0] for batch in loader)

    versions = {"annbatch": annbatch.__version__, "zarr": zarr.__version__, "anndata": anndata.__version__}
    return epochs(), versions


def scdataset_batches(settings: dict[str, Any]) -> tuple[Epochs, dict[str, str]]:
    """scDataset on one .h5ad. Settings: file, batch_size, block_size, fetch_factor."""
    from importlib.metadata import version

    import anndata
    from scdataset import BlockShuffling, scDataset

    counts = anndata.read_h5ad(settings["file"], backed="r").X

    class Rows:  # scDataset asks for a length, which counts on disk have not
        def __len__(self) -> int:
            return counts.shape[0]

        def __getitem__(self, rows: Any) -> Any:
            return counts[rows]

    def epochs() -> Epochs:
        dataset = scDataset(
            Rows(),
            BlockShuffling(block_size=settings["block_size"]),
            batch_size=settings["batch_size"],
            fetch_factor=settings["fetch_factor"],
        )
        while True:
            yield sum(batch.shape[0] for batch in dataset)

    return epochs(), {"scdataset": version("scdataset"), "anndata": anndata.__version__}


LOADERS = {"annbatch": annbatch_batches, "scdataset": scdataset_batches}
