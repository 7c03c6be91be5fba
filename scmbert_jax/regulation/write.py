"""Writes what a regulatory model was asked for: each file whole or not at all."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.features.feature_embeddings import save_feature_embeddings
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.outputs import ATTRIBUTIONS, check_output_file, partial_beside, put_folder
from scmbert_jax.regulation.ask import Attributions
from scmbert_jax.sequences.modisco_files import ModiscoReport, write_modisco
from scmbert_jax.tasks.whole_file import size_in_file, written_whole

Array = np.ndarray

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_EMBEDDINGS = (".npz", ".parquet", ".h5ad")


def check_table(path: Path, inputs: Sequence[object], overwrite: bool) -> None:
    """Raises InputError where no table can be written to `path`; to be asked before the work."""
    if path.suffix not in _SEPARATORS:
        raise InputError(f"{path}: a table is written as .csv or .tsv; give the file one of these endings.")
    check_output_file(path, inputs, overwrite)


def check_embeddings(path: Path, inputs: Sequence[object], overwrite: bool) -> None:
    """As `check_table`, of embeddings."""
    if path.suffix not in _EMBEDDINGS:
        raise InputError(f"{path}: embeddings are written as {', '.join(_EMBEDDINGS)}; give the file one of these.")
    check_output_file(path, inputs, overwrite)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """.csv or .tsv, six digits."""
    text = table.to_csv(index=False, sep=_SEPARATORS[path.suffix], float_format="%.6g").encode()
    with written_whole(path, len(text)) as partial:
        partial.write_bytes(text)


def left_out_path(path: Path) -> Path:
    """Where it stands what was left out of a table: beside it."""
    return path.with_name(f"{path.stem}.left_out{path.suffix}")


def write_left_out(path: Path, left_out: Mapping[str, int]) -> None:
    """A row for each reason; also where nothing was left out."""
    write_table(path, pd.DataFrame({"reason": list(left_out), "number": list(left_out.values())}))


def write_embeddings(path: Path, ids: Array, vectors: Array) -> None:
    """.npz (`ids`, `vectors`: what a feature space reads), .parquet (region, 0, 1, ...) or .h5ad (regions in obs)."""
    with written_whole(path, vectors.nbytes + size_in_file(ids.astype(object))) as partial:
        if path.suffix == ".npz":
            save_feature_embeddings(partial, ids, vectors)
        elif path.suffix == ".parquet":
            columns = {f"d{place}": vectors[:, place] for place in range(vectors.shape[1])}
            pd.DataFrame({"region": ids, **columns}).to_parquet(partial, index=False)
        else:
            import anndata

            anndata.AnnData(vectors, obs=pd.DataFrame(index=pd.Index(ids, dtype=object))).write_h5ad(partial)


def write_attributions(
    folder: Path, found: Attributions, keys: pd.DataFrame, about: dict[str, Any], window: int | None = None
) -> ModiscoReport:
    """ohe.npz and shap.npz as TF-MoDISco reads them, sequences.csv (keys and outputs), attributions.json; whole or not.

    Raises ConfigError where it cannot be written, and what `write_modisco` refuses.
    """
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(folder)
        report = write_modisco(partial, found.one_hot, found.hypothetical, window)
        contributions = (found.hypothetical * found.one_hot).sum(2)
        table = keys.assign(output=found.outputs, sum_of_contributions=contributions.sum(1))
        write_table(partial / "sequences.csv", table)
        document = {"format_version": 1, **about, "said": list(found.said)}
        (partial / ATTRIBUTIONS.mark).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        put_folder(partial, folder)
    except OSError as error:
        raise ConfigError(f"{folder}: the attributions cannot be written ({error.strerror}).") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
    places = {"sequences": folder / "ohe.npz", "attributions": folder / "shap.npz"}
    return ModiscoReport(**{**vars(report), **places})
