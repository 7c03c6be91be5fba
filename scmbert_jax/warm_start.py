"""A folder that a run starts from (--init-from): a model folder, or a run folder with a checkpoint."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batches.trained_cells import TRAINED_CELLS, TrainedCells, joined_cells, load_trained_cells
from data_pipelines.cells.cell_identity import NOT_MEASURED
from data_pipelines.features.feature_space import FeatureSpace
from scmbert_jax.config import ExperimentConfig, load_config
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.pretrained import read_features, read_model_info
from scmbert_jax.training.checkpoint import RunCheckpoints, load_weights
from scmbert_jax.training.init_from import SourceModel, check_fits
from scmbert_jax.training.run_folder import read_provenance


@dataclass(frozen=True)
class WarmStart:
    """What a run takes from the model it starts from: its weights (`model`) and the cells that it has seen."""

    model: SourceModel
    cells: TrainedCells | None

    def trained_cells(self, own: TrainedCells | None) -> TrainedCells | None:
        return joined_cells(own, self.cells)

    def knows(self, held_out: TrainedCells | None) -> list[str]:
        """What to say of the cells by which the run is judged; None: of an earlier version's corpus, or too many."""
        if held_out is None or self.cells is None:
            lacking = f"its {TRAINED_CELLS}" if self.cells is None else "the keys of the corpus"
            return [f"note: unknown whether the model of --init-from has trained on held-out cells, without {lacking}"]
        known = np.zeros(len(held_out.barcodes), bool)
        for name, keys in held_out.keys.items():
            known |= (keys != NOT_MEASURED) & np.isin(keys, self.cells.keys.get(name, []))
        if not known.any():
            return []
        return [
            f"note: the model of --init-from has trained on {known.sum():,} of the {len(known):,} held-out cells: the "
            "run is not judged by cells that it never saw"
        ]


def warm_start(
    folder: Path, config: ExperimentConfig, space: FeatureSpace, covariates: Mapping[str, list[str]]
) -> WarmStart:
    """Of a run of `config` over `space`, whose cells have `covariates` (name -> categories, by their codes).

    Raises:
      CheckpointError: no model and no run with a checkpoint, or one that is damaged.
      ConfigError: a model of another species or assembly, of another shape, or of none of the run's features.
    """
    if (folder / "model.json").is_file():
        info = read_model_info(folder)
        step, categories, provenance = info["step"], info["covariates"], info["provenance"]
        identity = info["sha256"]

        def read(placed: Any) -> Any:
            return load_weights(folder / "weights", placed)

    elif (folder / "config.json").is_file() and (folder / "provenance.json").is_file():
        provenance = read_provenance(folder)
        step, categories = _newest_checkpoint(folder), provenance["covariates"]
        written = [(folder / name).read_bytes() for name in ("config.json", "provenance.json")]
        identity = hashlib.sha256(b"".join(written) + str(step).encode()).hexdigest()

        def read(placed: Any) -> Any:
            checkpoints = RunCheckpoints(folder / "checkpoints", 1)
            try:
                return checkpoints.restore_params(step, placed)
            finally:
                checkpoints.close()

    else:
        found = "neither a model folder nor a run folder" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(
            f"--init-from {folder}: {found}. Give one that scmbert export or scmbert pretrain wrote. A run that has a "
            "checkpoint continues without the option."
        )
    there = load_config(folder / "config.json")
    check_fits(there, config, str(folder))
    known, definition = read_features(folder, there, categories, provenance["feature_space_hash"])
    rows = _rows(folder, space, known, there)
    codes = {
        name: np.array([_place(categories.get(name, []), category) for category in own], np.int64)
        for name, own in covariates.items()
    }
    model = SourceModel(str(folder.absolute()), identity, step, definition, rows, codes, read)
    return WarmStart(model, load_trained_cells(folder / TRAINED_CELLS))


def _newest_checkpoint(run_dir: Path) -> int:
    # By its name, not through Orbax, which would tidy up after a run that may be training there.
    names = [path.name for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal()]
    if not names:
        raise CheckpointError(f"--init-from {run_dir}: this run has no complete checkpoint yet.")
    return max(map(int, names))


def _rows(folder: Path, space: FeatureSpace, known: FeatureSpace, there: ExperimentConfig) -> np.ndarray:
    """int64 [F], of each feature of `space` its row among those of the model; -1 where it has none."""
    if None not in (space.organism, known.organism) and space.organism != known.organism:
        raise ConfigError(
            f"--init-from {folder}: a model of {known.organism}, and the corpus is of {space.organism}: genes are not "
            "the same. Give a model of the same species."
        )
    rows = np.full(space.num_features, -1, np.int64)
    for name in there.modalities.in_use():
        if name not in space.modalities:
            continue
        mine, theirs = space.modalities[name], known.modalities[name]
        if mine.space != theirs.space:
            raise ConfigError(
                f"--init-from {folder}: its {name} features are of {theirs.space}, those of the corpus of "
                f"{mine.space}. Give a model of the same assembly, or lift the regions over and build the corpus again."
            )
        places = theirs.index_of(mine.ids)
        rows[slice(*space.slices[name])] = np.where(places < 0, -1, places + known.slices[name][0])
    if not (rows >= 0).any():
        raise ConfigError(
            f"--init-from {folder}: the model knows none of the {space.num_features:,} features of the corpus. It "
            f"reads {', '.join(there.modalities.in_use())}; give another model, or train from the start."
        )
    return rows


def _place(categories: list[str], category: str) -> int:
    return categories.index(category) if category in categories else -1
