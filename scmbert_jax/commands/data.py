"""Verbs from counts files to a corpus: doctor, corpus build, corpus info, corpus verify."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from scmbert_jax.commands.terminal import CorpusFolder, CountsFiles, Organism, print_json, progress, staged_progress
from scmbert_jax.errors import ConfigError, InputError

ObsFields = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=COLUMN")]


@dataclass(frozen=True)
class Doctor:
    """Check counts files: raw counts? known features? duplicates? A report; exit code 2 if one cannot be used.

    Example:  scmbert doctor cells.h5ad
              scmbert doctor filtered_feature_bc_matrix cells.zarr
              scmbert doctor rna.h5ad+atac.h5ad --assembly mm10 --json
    """

    files: tyro.conf.Positional[CountsFiles]
    """.h5ad, .h5mu, .zarr, 10x .h5, a 10x folder with matrix.mtx (or one of its .mtx files), A+B (files of the same
    cells), or example:pbmc_mosaic."""
    organism: Organism = None
    """Taken from the gene names when left out."""
    assembly: str | None = None
    """Genome build of regions (hg38, mm10, ...); needed for peaks unless the file names it."""
    min_genes: int = 200
    """Cells with fewer detected genes would be dropped."""
    obs_field: ObsFields = ()
    """Which column of obs holds cell_type, technical_batch, donor, ...; e.g. cell_type=my_labels. NAME= for none."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        import json

        from data_pipelines.input_check import check_dataset
        from data_pipelines.readers import ACCEPTED, open_dataset

        if not self.files:
            raise InputError(f"doctor: no files given; give at least one {ACCEPTED}.")
        obs_fields = _obs_fields(self.obs_field)
        reports = [
            check_dataset(
                open_dataset(file),
                organism=self.organism,
                assembly=self.assembly,
                min_genes=self.min_genes,
                obs_fields=obs_fields,
            )
            for file in self.files
        ]
        if self.json:
            documents = [json.loads(report.to_json()) for report in reports]
            print_json(documents[0] if len(documents) == 1 else documents)
        else:
            print("\n\n".join(report.to_text() for report in reports))
        return 0 if all(report.usable for report in reports) else 2


@dataclass(frozen=True)
class CorpusBuild:
    """Build a corpus: checked, mapped, globally shuffled blocks of cells. Written whole or not at all.

    Example:  scmbert corpus build my_corpus cells_1.h5ad cells_2.h5ad
              scmbert corpus build cortex rna.h5ad+atac.h5ad --assembly mm10
              scmbert corpus build train example:pbmc_mosaic --only technical_batch=p1_0,p3_0 --min-genes 1
              scmbert corpus build no_pairs example:pbmc_mosaic --unpaired --min-genes 1
    """

    out: tyro.conf.Positional[CorpusFolder]
    """Folder to write."""
    files: tyro.conf.Positional[CountsFiles]
    """One data set each, whatever scmbert doctor takes; A+B for files of the same cells."""
    organism: Organism = None
    """Taken from the gene names when left out."""
    assembly: str | None = None
    """Genome build of regions (hg38, mm10, ...)."""
    min_genes: int = 200
    """Drop cells with fewer detected genes."""
    min_coverage: float = 0.5
    """Refuse a file of which a smaller share of features is known."""
    block_size: int = 256
    """Cells per block; smaller for small corpora, so that there are enough blocks to shuffle."""
    codec: Literal["zstd", "none"] = "zstd"
    seed: int = 0
    """Of the global shuffle."""
    obs_field: ObsFields = ()
    """Which column of obs holds cell_type, technical_batch, donor, ...; e.g. cell_type=my_labels. NAME= for none."""
    unpaired: bool = False
    """Every modality of every file becomes cells of its own: none is joined to another by its id."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE,...")] = ()
    """Only cells that have one of the values; e.g. technical_batch=p1_0,p3_0. A value with a comma in double quotes."""
    exclude: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE,...")] = ()
    """No cells that have one of the values; e.g. 'cell_type=B cell,NK'."""
    overwrite: bool = False
    """Replace OUT if it is a corpus."""

    def run(self) -> int:
        from data_pipelines.build_corpus import build_corpus
        from data_pipelines.corpus_description import describe_corpus, describe_text

        build_corpus(
            self.out,
            list(self.files),
            organism=self.organism,
            assembly=self.assembly,
            min_genes=self.min_genes,
            min_coverage=self.min_coverage,
            block_size=self.block_size,
            codec=self.codec,
            seed=self.seed,
            obs_fields=_obs_fields(self.obs_field),
            unpaired=self.unpaired,
            only=field_values("--only", self.only),
            exclude=field_values("--exclude", self.exclude),
            overwrite=self.overwrite,
            progress=staged_progress(),
        )
        print(describe_text(describe_corpus(self.out)))
        return 0


def _obs_fields(given: tuple[str, ...]) -> dict[str, str | None] | None:
    """NAME=COLUMN ... -> standard name -> column of obs; None for `NAME=`; None in all where nothing was given."""
    pairs = [text.partition("=") for text in given]
    if any(not equals for _, equals, _ in pairs):
        raise ConfigError(f"--obs-field {' '.join(given)}: expected NAME=COLUMN, e.g. cell_type=labels.")
    return {name: column or None for name, _, column in pairs} or None


def field_values(option: str, given: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """FIELD=VALUE,VALUE or FIELD>=NUMBER ... -> field -> values or bounds; the same field twice adds to them."""
    import csv
    import re

    wanted: dict[str, tuple[str, ...]] = {}
    for text in given:
        parts = re.match(r"([^=<>]+)(=|[<>]=?)(.*)$", text, re.DOTALL)
        field, sign, values = parts.groups() if parts else ("", "", "")
        listed = tuple(next(csv.reader([values], skipinitialspace=True), ()))
        if sign not in ("", "="):
            listed = (sign + values.strip(),) if _is_number(values) else ()
        if not (field and listed and all(listed)):
            raise ConfigError(
                f"{option} {text}: expected FIELD=VALUE, FIELD=VALUE,VALUE or FIELD>=NUMBER, e.g. "
                "technical_batch=p1,p2 or 'n_genes>=500'."
            )
        wanted[field.strip()] = (*wanted.get(field.strip(), ()), *listed)
    return wanted


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class CorpusInfo:
    """Say what a corpus holds.

    Example:  scmbert corpus info my_corpus
    """

    folder: tyro.conf.Positional[CorpusFolder]
    """Written by scmbert corpus build."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from data_pipelines.corpus_description import describe_corpus, describe_text

        description = describe_corpus(self.folder)
        print_json(description) if self.json else print(describe_text(description))
        return 0


@dataclass(frozen=True)
class CorpusVerify:
    """Read every block of a corpus and check it; names each damaged shard and block.

    Example:  scmbert corpus verify my_corpus
    """

    folder: tyro.conf.Positional[CorpusFolder]
    """Written by scmbert corpus build."""
    json: bool = False
    """One JSON document on stdout."""

    def run(self) -> int:
        from data_pipelines.corpus import verify_corpus

        report = verify_corpus(self.folder, progress("verify"))
        if self.json:
            print_json({**report._asdict(), "path": str(report.path), "ok": report.ok})
        elif report.ok:
            print(f"{report.path}: {report.num_cells:,} cells in {report.num_blocks:,} blocks, all intact")
        else:
            print("\n".join(report.problems))
        return 0 if report.ok else 3
