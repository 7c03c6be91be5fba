"""Small files of labelled cells with planted types."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from data_pipelines.features.gene_tables import load_gene_table

NUM_GENES = 80
TYPES = ("B", "NK", "T")


def genes(number: int = NUM_GENES) -> list[str]:
    return sorted(load_gene_table("human").ids.tolist())[:number]


def counts_of(codes: np.ndarray, rng: np.random.Generator, strength: float = 4.0) -> np.ndarray:
    """float32 [n, NUM_GENES]: every type has ten genes of its own."""
    rates = np.full((len(TYPES), NUM_GENES), 1.0)
    for code in range(len(TYPES)):
        rates[code, 10 * code : 10 * code + 10] = strength
    return rng.poisson(rates[codes]).astype(np.float32)


def write_cells(path: Path, *, number: int = 180, seed: int = 0, copies: int = 0, **columns: object) -> Path:
    """180 cells of three types and six donors; `copies` of the first ones, under the same barcode, at the end."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(TYPES), number)
    barcodes = ["".join(rng.choice(list("ACGT"), 16)) for _ in range(number)]
    obs = pd.DataFrame(
        {"cell_type": np.array(TYPES)[codes], "donor": [f"d{i % 6}" for i in range(number)], **columns},
        index=[f"{barcode}-1" for barcode in barcodes],
    )
    counts = counts_of(codes, rng)
    if copies:
        again = obs.iloc[:copies].set_axis([f"{name[:-2]}-2" for name in obs.index[:copies]])
        obs, counts = pd.concat([obs, again]), np.concatenate([counts, counts[:copies]])
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes())).write_h5ad(path)
    return path
