"""Cells with a known link between modalities: three types, genes, their proteins and the peaks beside them."""

import numpy as np
import scipy.sparse as sp

from scmbert_jax.evaluation.data.measured_cells import FeatureColumns, MeasuredCells

NUM_GENES, PEAKS_PER_GENE = 12, 10
NUM_PEAKS = NUM_GENES * PEAKS_PER_GENE


def random_cells(num_cells: int = 200, seed: int = 0) -> MeasuredCells:
    """All cells measured in rna (12), protein (12, one per gene) and atac (120, ten per gene); batches x, y, z.

    What the modalities share is the activity of each gene in each cell: that of its type, and some of its own.
    """
    rng = np.random.default_rng(seed)
    types = np.arange(num_cells) % 3
    activity = rng.normal(size=(3, NUM_GENES))[types] + 0.5 * rng.normal(size=(num_cells, NUM_GENES))
    rate = np.exp(activity)
    counts = {
        "rna": rng.poisson(3 * rate * rng.lognormal(0, 0.2, size=(num_cells, 1))),
        "protein": rng.poisson(10 * rate * rng.lognormal(0, 0.4, size=(num_cells, 1))),
        "atac": rng.random((num_cells, NUM_PEAKS)) < np.minimum(0.03 * np.repeat(rate, PEAKS_PER_GENE, axis=1), 0.9),
    }
    genes = np.array([f"ENSG{i:011d}" for i in range(NUM_GENES)])
    peaks = np.array([f"chr{1 + i % 3}:{1000 * i}-{1000 * i + 500}" for i in range(NUM_PEAKS)])
    own = tuple((gene,) for gene in genes.tolist())
    nothing = np.full(NUM_GENES, "")
    features = {
        "rna": FeatureColumns(genes, genes, nothing, own),
        "protein": FeatureColumns(np.char.add("p", genes), np.char.add("p", genes), nothing, own),
        "atac": FeatureColumns(
            peaks,
            peaks,
            np.array([name.split(":")[0] for name in peaks]),
            tuple(own[i // PEAKS_PER_GENE] for i in range(NUM_PEAKS)),
        ),
    }
    return MeasuredCells(
        "random cells",
        "random",
        np.array([f"cell{i}" for i in range(num_cells)]),
        np.array(["B", "NK", "T"])[types],
        np.array(["x", "y", "z"])[np.arange(num_cells) // 3 % 3],
        {name: sp.csr_matrix(values.astype(np.int32)) for name, values in counts.items()},
        {name: np.ones(num_cells, bool) for name in counts},
        features,
        "human",
        "hg38",
    )
