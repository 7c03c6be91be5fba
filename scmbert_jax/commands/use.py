"""Verbs that ask a model: embed, translate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scmbert_jax.commands.terminal import (
    CountsFile,
    LowCoverage,
    ModelAssembly,
    ModelFolder,
    Organism,
    Output,
    Overwrite,
    progress,
    show,
)
from scmbert_jax.modalities import ModalityName
from scmbert_jax.plain_text import say

if TYPE_CHECKING:
    from data_pipelines.checks.input_report import InputReport
    from scmbert_jax.pretrained import PretrainedModel

_NAMED = 10  # features a message lists; the written file has all


RegionTable = Annotated[
    Path | None,
    tyro.conf.arg(
        help="Embeddings of the regions to read or to predict, those of training and others: the model's regions are "
        "then those of this table, embedded as those of training were (--model.region-embeddings)."
    ),
]


@dataclass(frozen=True)
class Embed:
    """Add cell embeddings to a copy of a file, as obsm["X_scmbert"].

    Example:  scmbert embed my_model cells.h5ad -o embedded.h5ad
              scmbert embed my_model cells.h5mu -o embedded.h5mu --joint
    """

    model_dir: tyro.conf.Positional[ModelFolder]
    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    output: Output
    """.h5ad (or .h5mu for an .h5mu). For a 10x or .zarr FILE it holds cells, metadata and embedding, no counts."""
    joint: bool = False
    """Also the space in which modalities are compared: obsm["X_scmbert_rna"], ... of each modality read alone, and
    their mean, obsm["X_scmbert_joint"]. For models trained with contrastive_alignment."""
    organism: Organism = None
    assembly: ModelAssembly = None
    batch_size: int = 64
    """Cells per device call, fewer where cells are long; changes speed and memory only."""
    num_tokens: int | None = None
    """Most tokens of a cell, for each modality. Default: 4,096, or what training had. If a cell has more expressed
    features, a message says which fraction is shown."""
    region_embeddings: RegionTable = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.tasks.embed import embed_dataset, embed_jointly
        from scmbert_jax.tasks.write_embedding import check_output, obsm_keys, write_embedding

        check_output(self.output, self.file, self.overwrite)
        model = _model(self.model_dir, self.region_embeddings, self.allow_low_coverage)
        result = (embed_jointly if self.joint else embed_dataset)(
            model,
            self.file,
            organism=self.organism,
            assembly=self.assembly,
            batch_size=self.batch_size,
            num_tokens=self.num_tokens,
            progress=progress("embed"),
        )
        for name, overlap in result.overlaps.items():
            say(f"{name}: {overlap.summary()}")
            _say_what_is_not_read(model, result.report, name)
        if result.num_empty:
            say(f"{result.num_empty:,} cells have no counts of the model's features: their embedding is nan")
        write_embedding(self.output, self.file, model, result, self.overwrite)
        for key, embeddings in obsm_keys(result).items():
            show(f"{self.output}: obsm['{key}'] of {len(embeddings):,} cells x {embeddings.shape[1]}")
        return 0


@dataclass(frozen=True)
class Translate:
    """Predict another modality of cells; write it beside the measured one.

    OUT.h5mu holds the modality that was read, as it is in FILE, and the predicted one: X are expected values,
    layers["std"] their standard deviations, uns["scmbert"] says in which unit and by which model.

    Example:  scmbert translate my_model cells.h5ad --to protein -o translated.h5mu
              scmbert translate my_model cells.h5mu --to rna --from protein --features CD3E MS4A1 -o translated.h5mu
    """

    model_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL_DIR")]]
    """Written by scmbert export, trained with cross_modal_translation."""
    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    target: Annotated[ModalityName, tyro.conf.arg(name="to")]
    """The modality to predict."""
    output: Output
    """.h5mu."""
    source: Annotated[ModalityName | None, tyro.conf.arg(name="from")] = None
    """The modality to read; may be left out where the file and the model share one other than the target."""
    features: tuple[str, ...] = ()
    """Names or ids of features to predict, as `A B` or `A,B`; by default all that the model knows."""
    draws: int = 1
    """Predictions are averaged over this many draws of a cell's tokens, if it has more features than tokens."""
    organism: Organism = None
    assembly: ModelAssembly = None
    batch_size: int = 64
    """Cells per device call, fewer where cells are long; changes speed and memory only."""
    num_tokens: int | None = None
    """Most tokens of a cell, for each modality. Default: 4,096, or what training had. If a cell has more expressed
    features, a message says which fraction is shown."""
    region_embeddings: RegionTable = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.tasks.translate import translate_dataset
        from scmbert_jax.tasks.write_translation import check_translation_output, write_translation

        check_translation_output(self.output, self.file, self.overwrite)
        model = _model(self.model_dir, self.region_embeddings, self.allow_low_coverage)
        asked = [name.strip() for words in self.features for name in words.split(",") if name.strip()]
        result = translate_dataset(
            model,
            self.file,
            target=self.target,
            source=self.source,
            features=asked if self.features else None,
            organism=self.organism,
            assembly=self.assembly,
            batch_size=self.batch_size,
            num_tokens=self.num_tokens,
            num_draws=self.draws,
            progress=progress("translate"),
        )
        say(f"{result.source}: {result.overlap.summary()}")
        _say_what_is_not_read(model, result.report, result.source)
        if self.target in result.report.modalities:
            say(f"{self.target}: what {self.file} has of it is not read, and not in the output")
        left_out = int((~result.predicted).sum())
        if left_out:
            say(f"{left_out:,} cells have no {result.source} counts of the model's features: nothing is predicted")
        write_translation(self.output, self.file, model, result, self.overwrite)
        show(
            f"{self.output}: mod['{self.target}'] of {int(result.predicted.sum()):,} cells x "
            f"{len(result.feature_ids):,} features, predicted from {result.source} ({result.scale})"
        )
        return 0


def _model(folder: Path, region_embeddings: Path | None, allow_low_coverage: bool) -> "PretrainedModel":
    from scmbert_jax.pretrained import load_model

    model = load_model(folder, allow_low_coverage=allow_low_coverage)
    if region_embeddings is None:
        return model
    from scmbert_jax.tasks.new_regions import with_regions

    model = with_regions(model, region_embeddings)
    told = model.info["region_embeddings"]
    say(f"{told['regions']:,} regions by {region_embeddings}, of which training had {told['of_training']:,}")
    return model


def _say_what_is_not_read(model: "PretrainedModel", report: "InputReport", modality: str) -> None:
    from scmbert_jax.tasks.embed import features_not_read

    names = features_not_read(model, report, modality)
    if names:
        listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
        say(f"{modality}: {len(names):,} features of the file are not read: {listed} (all in uns['scmbert'])")
