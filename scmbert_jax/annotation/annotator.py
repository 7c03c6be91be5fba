"""The annotator: what tells the types of cells, as a folder complete in itself.

annotator.json            types, calibration, how it was fitted and how well it does; SHA-256 of every file
annotator.npz             head, conformal thresholds, novelty score; of `pca` its components
labelled_cells.npz        keys of the cells it was fitted to
model/                    the model folder, with the weights it was fitted with; of `pca` feature_space.parquet instead
ANNOTATOR_CARD.md         for people
"""

import shutil
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batches.trained_cells import TrainedCells, load_trained_cells, save_trained_cells
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.files.bounded_npz import open_arrays
from scmbert_jax.annotation.calibration import ConformalSets, probabilities_of
from scmbert_jax.annotation.label_tree import Hierarchy, LabelTree
from scmbert_jax.annotation.linear_head import LinearHead
from scmbert_jax.annotation.novelty import Novelty
from scmbert_jax.annotation.pca import Pca
from scmbert_jax.annotation.representation import ModelRepresentation, PcaRepresentation, Representation
from scmbert_jax.errors import CheckpointError, ConfigError
from scmbert_jax.folder_digests import read_document, write_document
from scmbert_jax.outputs import ANNOTATOR, check_output_folder, partial_beside, put_folder
from scmbert_jax.plain_text import markdown
from scmbert_jax.pretrained import load_model, write_model_files
from scmbert_jax.tasks.label_transfer import OneScale
from scmbert_jax.text_table import markdown_table

Array = np.ndarray

EXAMPLES = ("blood_types",)  # folders beside this file, which come with the package as "example:NAME"
FORMAT_VERSION = 1  # raised whenever the same folder would give other answers
_DOCUMENT, _LABELLED = ANNOTATOR.mark, "labelled_cells.npz"


@dataclass(frozen=True)
class Annotator:
    """What `fit` gives and `predict` takes.

    Attributes:
      method: "pca", "probe", "full", "last:N", "lora:R" or "scbert".
      representation: cells -> vectors [n, D].
      tree: its L leaves are the types it tells apart.
      head: vectors -> logits [n, L].
      temperature: logits are divided by it.
      sets: conformal sets of types.
      novelty: of `OneScale` vectors and calibrated logits.
      measured: the sets of modalities that the labelled cells had ("rna+protein"); others it has not learned from.
      least_expressed: a cell with fewer expressed features is not annotated.
      labelled: keys of the cells it was fitted to.
      info: the rest of annotator.json: options, cells per type, scores of held-out cells, provenance.
    """

    method: str
    representation: Representation
    tree: LabelTree
    head: LinearHead
    temperature: float
    sets: ConformalSets
    novelty: Novelty
    measured: tuple[str, ...]
    least_expressed: int
    labelled: TrainedCells
    info: dict[str, Any]

    @property
    def types(self) -> tuple[str, ...]:
        return self.tree.leaves

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that the labelled cells had."""
        return tuple(dict.fromkeys(name for measured in self.measured for name in measured.split("+")))

    @property
    def name(self) -> str:
        """16 digits by which results name it: of its types and of the numbers of its head."""
        text = "\0".join([self.method, *self.types]).encode()
        numbers = np.concatenate([self.head.weight.ravel(), self.head.bias, [self.temperature]]).astype("<f8")
        return sha256(text + numbers.tobytes()).hexdigest()[:16]

    def __repr__(self) -> str:
        held = self.info.get("held_out", {})
        scores = ", ".join(f"{name} {value:.3f}" for name, value in held.items() if isinstance(value, float))
        return f"scmbert_jax annotator {self.name}: {self.method}, {len(self.types)} types\n  held-out cells: {scores}"

    def calibrated(self, vectors: Array) -> tuple[Array, Array]:
        """(probabilities, novelty) float64 [n, L], [n] of vectors float [n, D]."""
        logits = self.head.logits(vectors) / self.temperature
        return probabilities_of(logits), self.novelty(self.head.scale(np.asarray(vectors, np.float64)), logits)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes the folder, whole or not at all. Raises `CheckpointError` where it cannot be written, or is there."""
        folder = Path(folder)
        check_output_folder(folder, ANNOTATOR, [_model_folder(self.representation)], overwrite)
        partial = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = partial_beside(folder)
            partial.mkdir()
            self._write_files(partial)
            put_folder(partial, folder)
        except OSError as error:
            raise CheckpointError(f"{folder}: the annotator cannot be written ({error.strerror}).") from error
        finally:
            if partial is not None and partial.exists():
                shutil.rmtree(partial, ignore_errors=True)

    def _write_files(self, folder: Path) -> None:
        arrays: dict[str, Any] = {
            "head/weight": self.head.weight,
            "head/bias": self.head.bias,
            "head/mean": self.head.scale.mean,
            "sets/thresholds": self.sets.thresholds,
            "sets/pooled": self.sets.pooled,
            **{f"novelty/{name}": values for name, values in self.novelty.arrays().items()},
        }
        if isinstance(self.representation, PcaRepresentation):
            pca = self.representation.pca
            pca.space.save(folder / "feature_space.parquet")
            arrays |= {f"pca/{name}": values for name, values in pca.arrays().items()}
        else:
            model = self.representation.model
            assert model.folder is not None  # or it would have been refused (`_model_folder`)
            (folder / "model").mkdir()
            write_model_files(folder / "model", model, model.folder)
        np.savez(folder / "annotator.npz", **arrays)
        save_trained_cells(self.labelled, folder / _LABELLED)
        (folder / "ANNOTATOR_CARD.md").write_text(annotator_card(self), encoding="utf-8")
        write_document(folder, _DOCUMENT, self._document())

    def _document(self) -> dict[str, Any]:
        hierarchy = self.tree.hierarchy
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "method": self.method,
            "types": list(self.types),
            "hierarchy": {
                "name": hierarchy.name,
                "parents": {child: list(above) for child, above in hierarchy.parents.items()},
                "synonyms": dict(hierarchy.synonyms),
            },
            "scale": self.head.scale.scale,
            "temperature": self.temperature,
            "coverage": self.sets.coverage,
            "types_with_pooled_threshold": [
                name for name, pooled in zip(self.types, self.sets.pooled.tolist(), strict=True) if pooled
            ],
            "novelty": {
                "score": self.novelty.name,
                "threshold": self.novelty.threshold,
                "spread": self.novelty.spread,
            },
            "measured": list(self.measured),
            "least_expressed": self.least_expressed,
            **self.info,
        }


def load_annotator(folder: str | Path) -> Annotator:
    """Reads an annotator folder, every file of which is compared with its digest; "example:blood_types" is built in.

    Raises:
      CheckpointError: something is missing, damaged, edited or of another version; the file is named.
      ConfigError: there is no such example.
    """
    folder = _place(folder)
    document = read_document(folder, ANNOTATOR, FORMAT_VERSION, "scmbert annotate fit", _other_version)
    try:
        labelled = load_trained_cells(folder / _LABELLED)
        assert labelled is not None  # its digest was compared
        with open_arrays(folder / "annotator.npz") as file:
            arrays = {name: file[name] for name in file.files}
        scale = OneScale(arrays["head/mean"], float(document["scale"]))
        found = document["novelty"]
        hierarchy = document["hierarchy"]
        own = (
            *("format_version", "name", "method", "types", "hierarchy", "scale", "temperature", "coverage", "novelty"),
            *("types_with_pooled_threshold", "measured", "least_expressed", "files", "sha256"),
        )
        return Annotator(
            method=document["method"],
            representation=_representation(folder, document["method"], arrays),
            tree=LabelTree(
                tuple(document["types"]),
                Hierarchy(
                    {child: tuple(above) for child, above in hierarchy["parents"].items()},
                    hierarchy["synonyms"],
                    hierarchy["name"],
                ),
            ),
            head=LinearHead(arrays["head/weight"], arrays["head/bias"], scale),
            temperature=float(document["temperature"]),
            sets=ConformalSets(float(document["coverage"]), arrays["sets/thresholds"], arrays["sets/pooled"]),
            novelty=Novelty.from_arrays(
                found["score"], _below("novelty/", arrays), float(found["threshold"]), float(found["spread"])
            ),
            measured=tuple(document["measured"]),
            least_expressed=int(document["least_expressed"]),
            labelled=labelled,
            info={key: value for key, value in document.items() if key not in own},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{folder / 'annotator.npz'}: does not fit {_DOCUMENT} ({type(error).__name__}: {error}); fit it again."
        ) from error


def is_annotator(folder: str | Path) -> bool:
    """Whether there is a folder with an annotator.json. Raises `ConfigError` for an example that there is not."""
    return (_place(folder) / _DOCUMENT).is_file()


def _place(folder: str | Path) -> Path:
    prefix, colon, example = str(folder).partition(":")
    if prefix != "example" or not colon:
        return Path(folder)
    if example not in EXAMPLES:
        known = ", ".join(f"example:{name}" for name in EXAMPLES)
        raise ConfigError(f"{folder}: no such annotator; there is {known}.")
    return Path(__file__).parent / example


def _other_version(document: dict[str, Any]) -> str:
    return (
        f"annotator format version {document.get('format_version')}; this program reads {FORMAT_VERSION}. Fit it again "
        "with this program."
    )


def _representation(folder: Path, method: str, arrays: dict[str, Array]) -> Representation:
    if method == "pca":
        space = FeatureSpace.load(folder / "feature_space.parquet")
        return PcaRepresentation(Pca.from_arrays(space, _below("pca/", arrays)))
    return ModelRepresentation(load_model(folder / "model"))


def _below(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _model_folder(representation: Representation) -> Path | None:
    if isinstance(representation, PcaRepresentation):
        return None
    if representation.model.folder is None:
        raise CheckpointError(
            "the annotator's model was not loaded from a folder, so what it starts from cannot be copied; export it "
            "(scmbert_jax.export), load that, and fit again."
        )
    return representation.model.folder


def annotator_card(annotator: Annotator) -> str:
    """ANNOTATOR_CARD.md: what it tells apart, how well, and what its answers do not mean."""
    info, held = annotator.info, annotator.info["held_out"]
    pooled = dict(zip(annotator.types, annotator.sets.pooled.tolist(), strict=True))
    rows = [
        [
            markdown(name),
            f"{info['cells_per_type'][name]:,}",
            f"{held['recall_per_type'][name]:.2f}",
            "of all types" if pooled[name] else "own",
        ]
        for name in annotator.types
    ]
    table = markdown_table(["type", "cells", "recall", "threshold of sets"], rows)
    scores = "\n".join(
        f"- {name.replace('_', ' ')}: {held[name]:.3f}" for name in held if isinstance(held[name], float)
    )
    return f"""# Annotator {annotator.name}

Tells {len(annotator.types)} types of cells apart, by `{annotator.method}`. Fitted by scmbert_jax to
{info["num_cells"]:,} labelled cells of {markdown(str(info["data"]))} ({markdown(str(info["labels"]))}).

## On cells that were held out ({markdown(held["by"])})
{scores}

{table}

## Use
`scmbert annotate predict ANNOTATOR_DIR cells.h5ad -o out.h5ad`, or `scmbert_jax.annotate(adata, "ANNOTATOR_DIR")`.

## Limits
labelled_cells.npz holds hashes of the labelled cells (barcode and counts, 64 bits): whoever has a cell can tell whether
it was among them.
It knows these types alone. Cells of others are called novel where they look unlike all of these, and not all do.
Calibration and sets hold for cells like the labelled ones: other tissues, assays and diseases are outside of that.
"""
