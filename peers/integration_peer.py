"""Other projects' embeddings of cells with the technical batches mixed: Harmony (harmonypy) and scVI (scvi-tools).

    PYTHON integration_peer.py FOLDER
        says which of the two it has: {"Harmony": VERSION or null, "scVI": VERSION or null}; then, for each line
        {"method": "Harmony" or "scVI", "seed": NUMBER} on standard input, reads FOLDER/cells.npz and writes
        FOLDER/embedding.npy, float32 [n, d]

cells.npz: scores float64 [n, d], batches str [n], and the sparse counts as data, indices, indptr, shape.
Both run with the settings that their pages show first. PYTHON is one that has harmonypy, scvi-tools or both; this file
imports nothing of the package.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def harmony(cells, seed: int) -> np.ndarray:
    import harmonypy
    import pandas as pd

    table = pd.DataFrame({"batch": cells["batches"]})
    found = harmonypy.run_harmony(cells["scores"], table, ["batch"], random_state=seed)
    corrected = np.asarray(found.Z_corr)
    return corrected if len(corrected) == len(table) else corrected.T


def scvi(cells, seed: int) -> np.ndarray:
    import anndata
    import scipy.sparse as sp
    import scvi as package

    counts = sp.csr_matrix((cells["data"], cells["indices"], cells["indptr"]), tuple(cells["shape"]))
    adata = anndata.AnnData(counts.astype(np.float32))
    adata.obs["batch"] = cells["batches"]
    package.settings.seed = seed
    package.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = package.model.SCVI(adata)
    model.train(accelerator="cpu", devices=1, enable_progress_bar=False, logger=False)
    return model.get_latent_representation()


def main() -> None:
    folder, answers = Path(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # what the packages print is no answer
    print(json.dumps({"Harmony": version("harmonypy"), "scVI": version("scvi-tools")}), file=answers, flush=True)
    for line in sys.stdin:
        asked, start = json.loads(line), time.perf_counter()
        try:
            method = {"Harmony": harmony, "scVI": scvi}[asked["method"]]
            with np.load(folder / "cells.npz") as cells:
                found = method({name: cells[name] for name in cells.files}, asked["seed"])
            np.save(folder / "embedding.npy", np.asarray(found, np.float32))
            answer: dict[str, object] = {"seconds": time.perf_counter() - start}
        except Exception as error:  # its message must reach who asked
            answer = {"error": f"{asked['method']}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
