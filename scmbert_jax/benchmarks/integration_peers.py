"""Harmony and scVI as rows of the `integration` suite, by a Python that has them (peers/integration_peer.py).

harmonypy is under the GPL and scvi-tools brings PyTorch: neither is a dependency of this package, nor an extra.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from scmbert_jax.benchmarks.peer_process import PeerProcess
from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.alignment.baselines import Baseline
from scmbert_jax.evaluation.alignment.integration_baselines import AllCells, most_variable, pca, several_batches

Array = np.ndarray

PACKAGES = {"Harmony": "harmonypy", "scVI": "scvi-tools"}
_OPTION = "--peer-python"


def integration_peers(python: Path | None) -> list[Baseline[AllCells, Array]]:
    """A baseline for each project; one that cannot be run raises `InputError` with the reason, which the suite tells.

    Args:
      python: that has one of them or both; None: there is none.
    """
    return [Baseline(name, "technical batches", _Peer(name, python).fitted, several_batches) for name in PACKAGES]


class _Peer:
    def __init__(self, name: str, python: Path | None):
        self.name, self.python = name, python
        self._made: dict[int, Array] = {}

    def fitted(self, cells: AllCells, seed: int | None) -> Array:
        """float32 [n, d]; seed None is seed 0: it needs all cells whatever the seed."""
        if self.python is None:
            raise InputError(f"it runs in a Python of its own; name one that has {PACKAGES[self.name]}: {_OPTION}.")
        if self.name == "scVI" and [side.modality for side in cells.sides] != ["rna"]:
            raise InputError("it reads RNA alone, and other modalities were measured.")
        seed = seed or 0
        if seed not in self._made:
            with tempfile.TemporaryDirectory(prefix="scmbert-peer-") as folder:
                self._made[seed] = self._embedded(Path(folder), self.python, cells, seed)
        return self._made[seed]

    def _embedded(self, folder: Path, python: Path, cells: AllCells, seed: int) -> Array:
        # Harmony corrects the PCs; scVI reads counts of the most variable genes, as its authors advise.
        side = cells.sides[0]
        counts = side.counts[:, most_variable(side)].tocsr()
        parts = {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr, "shape": counts.shape}
        batches = cells.batches if self.name == "Harmony" else side.technical_batches
        np.savez(folder / "cells.npz", scores=pca(cells, None), batches=batches.astype(str), **parts)
        peer = PeerProcess(python, "integration_peer.py", [str(folder)], _OPTION, " ".join(PACKAGES.values()))
        try:
            if peer.hello[self.name] is None:
                raise InputError(f"{python} has no {PACKAGES[self.name]}.")
            peer.ask(json.dumps({"method": self.name, "seed": seed}))
        finally:
            peer.close()
        found = np.load(folder / "embedding.npy")
        if self.name == "Harmony":
            return found
        embedding = np.zeros((len(cells.ids), found.shape[1]), np.float32)
        embedding[np.searchsorted(cells.ids, side.cell_ids)] = found
        return embedding
