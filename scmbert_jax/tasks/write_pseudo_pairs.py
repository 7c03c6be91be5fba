"""Pseudo-paired cells as an .h5mu that says so: `scmbert corpus build` carries the declaration into the manifest."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scmbert_jax.errors import InputError
from scmbert_jax.outputs import check_output_file
from scmbert_jax.tasks.modality_cells import ModalityCells
from scmbert_jax.tasks.pseudo_pairs import PseudoPairs
from scmbert_jax.tasks.whole_file import size_in_file, written_whole

Array = np.ndarray

KEY = "scmbert_pseudo_pairs"  # of uns; `data_pipelines.readers.pseudo_pairs` reads it


def pseudo_paired_mudata(
    first: ModalityCells, second: ModalityCells, pairs: PseudoPairs, *, keep_fraction: float = 1.0
) -> Any:
    """A MuData: pseudo-paired cells first, then the cells that found no partner, with their own modality alone.

    Every cell keeps its raw counts. A pseudo-paired cell is named `A|B` after its two cells; `obs` holds these two, the
    probability of the pair, and the technical batch (`a+b` where they differ). Cell types are not carried: a pair was
    made without them and must not look labelled.

    Args:
      keep_fraction: the fraction of pairs, most probable first, that become one cell; the others stay two cells.

    Raises `InputError` where keep_fraction is not in (0, 1].
    """
    import anndata
    import mudata

    if not 0 < keep_fraction <= 1:
        raise InputError(f"keep_fraction {keep_fraction}: expected a fraction of the pairs above 0, at most 1.")
    order = np.argsort(-pairs.probabilities, kind="stable")[: max(1, round(keep_fraction * len(pairs.probabilities)))]
    rows, others, probabilities = pairs.first_rows[order], pairs.second_rows[order], pairs.probabilities[order]
    names = np.array([f"{a}|{b}" for a, b in zip(first.cell_ids[rows], second.cell_ids[others], strict=True)])
    frames, parts = [], {}
    batches = _joined(first.technical_batches[rows], second.technical_batches[others])
    frames.append(pd.DataFrame({"technical_batch": batches, "pseudo_pair_probability": probabilities}, index=names))
    frames[0][f"{first.modality}_cell"] = first.cell_ids[rows]
    frames[0][f"{second.modality}_cell"] = second.cell_ids[others]
    for cells, used in ((first, rows), (second, others)):
        alone = np.setdiff1d(np.arange(len(cells)), used)
        own = np.array([f"{cell}:{cells.modality}" for cell in cells.cell_ids[alone]], dtype=str)
        obs = pd.DataFrame({"technical_batch": cells.technical_batches[alone]}, index=own)
        obs[f"{cells.modality}_cell"] = cells.cell_ids[alone]
        frames.append(obs)
        index = pd.Index(np.concatenate([names, own]))
        var = pd.DataFrame({"name": cells.features.names}, index=pd.Index(cells.features.ids))
        counts = cells.counts[np.concatenate([used, alone])]
        parts[cells.modality] = anndata.AnnData(X=counts, obs=pd.DataFrame(index=index), var=var)
    with _quietly():
        result = mudata.MuData(parts)
        obs = pd.concat(frames).reindex(result.obs_names)
        for column in obs.columns:
            values = obs[column]
            result.obs[column] = values.to_numpy() if values.dtype.kind == "f" else values.fillna("").astype(str)
    result.uns[KEY] = declaration(first, second, pairs, len(order))
    return result


def declaration(first: ModalityCells, second: ModalityCells, pairs: PseudoPairs, num_pairs: int) -> dict[str, Any]:
    """What stands in `uns`: by what the cells were paired, so that every report of a model can say it."""
    settings = pairs.settings
    return {
        "method": "entropic optimal transport on linked features, refined by CCA on all features",
        "modalities": f"{first.modality}+{second.modality}",
        "links": pairs.num_links,
        "rounds": settings.rounds,
        "epsilon": settings.epsilon,
        "link_share": settings.link_weight,
        "smoothing_dimensions": settings.smoothing_dimensions,
        "cca_dimensions": settings.cca_dimensions,
        "pairs": num_pairs,
        "blocks": pairs.num_blocks,
        "blocks_converged": pairs.num_converged,
        "median_probability": float(np.median(pairs.probabilities)),
        "measured_pairs_used": 0,
        "labels_used": False,
    }


def write_pseudo_pairs(path: Path, mdata: Any, overwrite: bool = False) -> None:
    """Writes an .h5mu, whole or not at all. Raises `InputError` for another ending or where it cannot be written."""
    check_h5mu_path(path, overwrite=overwrite)
    with written_whole(path, size_in_file(*mdata.mod.values(), mdata.obs)) as partial, _quietly():
        mdata.write(partial)


def check_h5mu_path(path: Path, inputs: Sequence[object] = (), overwrite: bool = False) -> None:
    """Raises `InputError` when no .h5mu can be written there (`check_output_file`); asked before the work, too."""
    if path.suffix != ".h5mu":
        raise InputError(f"{path}: pseudo-paired cells are written as .h5mu; give the output this ending.")
    check_output_file(path, inputs, overwrite)


@contextmanager
def _quietly() -> Iterator[None]:
    """MuData announces a coming default at every update; nothing here depends on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*will not pull obs/var columns.*")
        yield


def _joined(a: Array, b: Array) -> Array:
    return np.array([x if x == y else f"{x}+{y}" for x, y in zip(a, b, strict=True)])
