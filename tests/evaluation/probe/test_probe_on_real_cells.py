"""The suite on the PBMC mosaic: the PCA baseline reaches what it is known to reach."""

import numpy as np
import pytest

from scmbert_jax.evaluation.baselines import pca_embedding
from scmbert_jax.evaluation.probe.probe import run_probe
from scmbert_jax.evaluation.probe.result import ProbeSettings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "field", "held_out", "accuracy", "macro_f1"),
    [
        ("rna", "mod/rna", ["p1_0", "p3_0", "p4_0"], 0.934, 0.855),
        ("protein", "mod/adt", ["p2_0", "p3_0", "p4_0"], 0.972, 0.914),
    ],
)
def test_pca_of_pbmc_reads_cell_types_across_batches(shared_data, modality, field, held_out, accuracy, macro_f1):
    h5py = pytest.importorskip("h5py")
    anndata = pytest.importorskip("anndata")
    with h5py.File(shared_data / "pbmc_mosaic" / "quickstart_pbmc_mosaic.h5mu") as file:
        counts, obs = anndata.io.read_elem(file[field]["X"]), anndata.io.read_elem(file[field]["obs"])
    result = run_probe(
        {"pca": [pca_embedding(counts, modality, 64)]},
        np.asarray(obs["celltype"]),
        np.asarray(obs["batch"]),
        modality=modality,
        settings=ProbeSettings(num_resamples=100),
    )
    assert [fold.held_out for fold in result.folds] == held_out
    assert result.fits.unconverged_final == 0
    # Measured values; the tolerance is the interval over seeds (of macro-F1 twice). Each component by itself gives
    # .924 and .964.
    assert result.row("pca", "linear", "accuracy").mean == pytest.approx(accuracy, abs=0.007)
    assert result.row("pca", "linear", "macro_f1").mean == pytest.approx(macro_f1, abs=0.04)
    assert result.row("majority", "linear", "accuracy").mean < 0.35
