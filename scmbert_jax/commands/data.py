"""Verbs from counts files to a corpus: doctor, corpus build, info, overlap, verify and copy."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from data_pipelines.readers.reading_options import DEFAULT_READING, ReadingOptions
from scmbert_jax.commands.terminal import (
    BuiltCorpus,
    CorpusFolder,
    CountsFiles,
    Json,
    ObsFields,
    Organism,
    Overwrite,
    obs_fields_of,
    print_json,
    progress,
    require_positive,
    show,
    staged_progress,
)
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.plain_text import say

if TYPE_CHECKING:
    from data_pipelines.cells.cell_selection import CellSelection

Only = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="FIELD=VALUE,...",
        help="Only cells that have one of the values of this field of obs, or meet a bound; e.g. "
        "technical_batch=p1_0,p3_0 is_primary_data=True 'n_genes>=500'. A value with a comma in double quotes.",
    ),
]
Exclude = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="FIELD=VALUE,...", help="No cells that have one of the values; e.g. 'cell_type=B cell,NK'."),
]
CorpusOrCopy = Annotated[
    str,
    tyro.conf.arg(
        metavar="CORPUS", help="Written by scmbert corpus build; or the URL of a copy (s3://, gs://, https://)."
    ),
]


@dataclass(frozen=True)
class Doctor:
    """Check counts files: raw counts? known features? duplicates? A report; exit code 2 if one cannot be used.

    Several files are also compared: a cell that is in an earlier file as well is counted as a copy.

    Example:  scmbert doctor cells.h5ad
              scmbert doctor study_1.h5ad study_2.h5ad --only is_primary_data=True
              scmbert doctor filtered_feature_bc_matrix cells.zarr
              scmbert doctor rna.h5ad+atac.h5ad --assembly mm10 --json
              scmbert doctor fragments.tsv.gz --regions windows:5000 --assembly hg38 --barcodes barcodes.tsv
              scmbert doctor cells.h5ad --full-length length-normalise --gene-lengths lengths.tsv
              scmbert doctor 'soma:census_copy?organism=human&obs_value_filter=tissue_general == "blood"'
    """

    files: tyro.conf.Positional[CountsFiles]
    """.h5ad, .h5mu, .zarr, 10x .h5, a 10x folder with matrix.mtx (or one of its .mtx files), a fragments file
    (.tsv.gz), soma:PLACE, census:VERSION?organism=human, A+B (files of the same cells), or example:pbmc_mosaic.
    Options for one file follow its name: 'FILE?assay=Smart-seq2&full_length=length-normalise'."""
    organism: Organism = None
    min_genes: int | None = None
    """Cells with fewer detected genes would be dropped. Default: 200, or 1% of the genes of a panel."""
    min_coverage: float = 0.5
    """Least fraction of its features that must be known; a file with less would be refused."""
    obs_field: ObsFields = ()
    """Which column of obs holds cell_type, technical_batch, donor, ...; e.g. cell_type=my_labels. NAME= means none."""
    only: Only = ()
    exclude: Exclude = ()
    keep_duplicates: bool = False
    """Do not look for cells that have the barcode and the counts of another, in one file or in several."""
    reading: tyro.conf.OmitArgPrefixes[ReadingOptions] = DEFAULT_READING
    json: Json = False

    def run(self) -> int:
        import json

        from data_pipelines.build.sources import check_files
        from data_pipelines.readers.open_dataset import accepted

        if not self.files:
            raise InputError(f"doctor: no files given; give at least one {accepted()}.")
        options = {
            "organism": self.organism,
            "assembly": self.reading.assembly,
            "min_genes": self.min_genes,
            "min_coverage": self.min_coverage,
        }
        selection = _selection(self.only, self.exclude)
        reports = check_files(
            self.files, options, obs_fields_of(self.obs_field), selection, self.reading, self.keep_duplicates
        )
        if self.json:
            documents = [json.loads(report.to_json()) for report in reports]
            print_json(documents[0] if len(documents) == 1 else documents)
        else:
            show("\n\n".join(report.to_text() for report in reports))
        return 0 if all(report.usable for report in reports) else 2


@dataclass(frozen=True)
class CorpusBuild:
    """Build a corpus: checked, mapped, globally shuffled blocks of cells. Written whole or not at all.

    Example:  scmbert corpus build my_corpus cells_1.h5ad cells_2.h5ad
              scmbert corpus build cortex rna.h5ad+atac.h5ad --assembly mm10
              scmbert corpus build train example:pbmc_mosaic --only technical_batch=p1_0,p3_0
              scmbert corpus build lung atlas.h5ad --only is_primary_data=True 'disease=COVID-19,normal' 'n_genes>=500'
              scmbert corpus build train study_1.h5ad study_2.h5ad --disjoint-from held_out.h5ad
              scmbert corpus build blood study_1.h5ad study_2.h5ad --held-out donor=0.2
              scmbert corpus build no_pairs example:pbmc_mosaic --unpaired
              scmbert corpus build multiome rna.h5ad+fragments.tsv.gz --regions ccre.bed.gz --assembly hg38
              scmbert corpus build peaks atac.h5ad --regions ccre.bed.gz --region-links links.tsv --assembly hg38
              scmbert corpus build blood 'census:2025-11-08?organism=human&obs_value_filter=tissue_general == "blood"'
              scmbert corpus build atlas shared/*.h5ad --runner beam -- --runner=FlinkRunner --flink_master=host:8081

    A build that was stopped or killed continues when the same command is given again.
    """

    out: tyro.conf.Positional[CorpusFolder]
    """Folder to write."""
    files: tyro.conf.Positional[CountsFiles]
    """One data set each, whatever scmbert doctor takes; A+B for files of the same cells."""
    organism: Organism = None
    min_genes: int | None = None
    """Drop cells with fewer detected genes. Default: 200, or 1% of the genes of a panel."""
    min_coverage: float = 0.5
    """Least fraction of its features that must be known; a file with less is refused."""
    block_size: int = 256
    """Cells per block; smaller for small corpora, so that there are enough blocks to shuffle."""
    codec: Literal["zstd", "none"] = "zstd"
    seed: int = 0
    """Of the global shuffle."""
    obs_field: ObsFields = ()
    """Which column of obs holds cell_type, technical_batch, donor, ...; e.g. cell_type=my_labels. NAME= means none."""
    unpaired: bool = False
    """Each modality of each file becomes separate cells; they are never joined by their ids."""
    only: Only = ()
    exclude: Exclude = ()
    held_out: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=FRACTION")] = ()
    """Cells that no run on this corpus trains on, and by which runs are judged: cell=0.05 or donor=0.2 (decided by a
    hash of the barcode or the name, so the same in every corpus), or donor=NAME,NAME. FIELD is cell or a field of
    obs."""
    keep_duplicates: bool = False
    """Keep cells that have the barcode and the counts of another, in the same file or in one given before it."""
    disjoint_from: Annotated[tuple[str, ...], tyro.conf.arg(metavar="OTHER...")] = ()
    """Corpora or counts files, such as held-out data: copies of their cells are dropped from this corpus."""
    licence: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=TEXT")] = ()
    """The licence of a data set, for DATA_CARD.md, where its file does not state it; e.g. 'cells=CC BY 4.0'."""
    reading: tyro.conf.OmitArgPrefixes[ReadingOptions] = DEFAULT_READING
    overwrite: bool = False
    """Replace OUT if it is a corpus."""
    workers: int | None = None
    """Processes. Default: one for each CPU, or a single one if there are few cells. The bytes are the same."""
    runner: Literal["local", "beam"] = "local"
    """beam: as Apache Beam pipelines, in this process or where the options after -- say."""
    beam_options: tyro.conf.Suppress[tuple[str, ...]] = ()
    """What stands after --."""

    def run(self) -> int:
        from data_pipelines.build.build_corpus import build_corpus
        from data_pipelines.build.describe import describe_corpus, describe_text
        from data_pipelines.build.options import BuildOptions

        if self.beam_options and self.runner != "beam":
            raise ConfigError(f"-- {' '.join(self.beam_options)}: options of Beam, but --runner beam is not given.")
        require_positive(workers=self.workers)
        if self.workers is not None and self.runner == "beam":
            raise ConfigError("--workers is for --runner local; give Beam its own option after --.")
        options = BuildOptions(
            organism=self.organism,
            reading=self.reading,
            min_genes=self.min_genes,
            min_coverage=self.min_coverage,
            block_size=self.block_size,
            codec=self.codec,
            seed=self.seed,
            obs_fields=obs_fields_of(self.obs_field),
            unpaired=self.unpaired,
            only=field_values("--only", self.only),
            exclude=field_values("--exclude", self.exclude),
            held_out=self.held_out,
            keep_duplicates=self.keep_duplicates,
            disjoint_from=self.disjoint_from,
            licences=_licences(self.licence),
        )
        build_corpus(
            self.out,
            list(self.files),
            options,
            overwrite=self.overwrite,
            workers=self.workers,
            beam_options=self.beam_options if self.runner == "beam" else None,
            progress=staged_progress(),
            notice=say,
        )
        show(describe_text(describe_corpus(self.out)))
        return 0


def _licences(given: tuple[str, ...]) -> dict[str, str]:
    """NAME=TEXT ... -> data set -> licence."""
    pairs = [text.partition("=") for text in given]
    if any(not (name and licence.strip()) for name, _, licence in pairs):
        raise ConfigError(f"--licence {' '.join(given)}: expected NAME=TEXT, e.g. 'cells=CC BY 4.0'.")
    return {name: licence.strip() for name, _, licence in pairs}


def _selection(only: tuple[str, ...], exclude: tuple[str, ...]) -> "CellSelection":
    from data_pipelines.cells.cell_selection import CellSelection

    return CellSelection(field_values("--only", only), field_values("--exclude", exclude))


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
              scmbert corpus info s3://bucket/my_corpus
    """

    folder: tyro.conf.Positional[CorpusOrCopy]
    json: Json = False

    def run(self) -> int:
        from data_pipelines.build.describe import describe_corpus, describe_text

        description = describe_corpus(self.folder)
        print_json(description) if self.json else show(describe_text(description))
        return 0


@dataclass(frozen=True)
class CorpusOverlap:
    """Count the cells of other data that are in a corpus (same barcode, same counts); list shared donors, files, ...

    Example:  scmbert corpus overlap my_corpus held_out.h5ad
              scmbert corpus overlap my_corpus held_out_corpus --json
    """

    folder: tyro.conf.Positional[BuiltCorpus]
    other: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="OTHER")]]
    """Another corpus, or whatever scmbert doctor takes."""
    organism: Literal["human", "mouse"] | None = None
    """Of a file. Default: taken from the gene names."""
    assembly: str | None = None
    """Of a file: genome build of regions (hg38, mm10, ...)."""
    obs_field: ObsFields = ()
    """Of a file: which column of obs holds donor, technical_batch, ...; e.g. donor=patient. NAME= means none."""
    json: Json = False

    def run(self) -> int:
        from data_pipelines.build.corpus_overlap import cells_of_corpus, open_known_cells, overlap, overlap_text
        from data_pipelines.corpus.corpus import open_corpus

        with open_corpus(self.folder) as corpus:
            known = cells_of_corpus(corpus)
        obs_fields = obs_fields_of(self.obs_field)
        other = open_known_cells(self.other, organism=self.organism, assembly=self.assembly, obs_fields=obs_fields)
        found = overlap(known, other)
        print_json(found) if self.json else show(overlap_text(found))
        return 0


@dataclass(frozen=True)
class CorpusVerify:
    """Read every block of a corpus and check it; names each damaged shard and block.

    Example:  scmbert corpus verify my_corpus
              scmbert corpus verify s3://bucket/my_corpus
    """

    folder: tyro.conf.Positional[CorpusOrCopy]
    json: Json = False

    def run(self) -> int:
        from data_pipelines.corpus.verify import verify_corpus

        report = verify_corpus(self.folder, progress("verify"))
        if self.json:
            print_json({**report._asdict(), "path": str(report.path), "ok": report.ok})
        elif report.ok:
            show(f"{report.path}: {report.num_cells:,} cells in {report.num_blocks:,} blocks, all intact")
        else:
            show("\n".join(report.problems))
        return 0 if report.ok else 3


@dataclass(frozen=True)
class CorpusCopy:
    """Copy a corpus between a folder and object storage; every file is read back and compared.

    A copy that was interrupted is completed by the same command; until then the target is no corpus.

    Example:  scmbert corpus copy my_corpus s3://bucket/my_corpus
              scmbert corpus copy gs://bucket/my_corpus my_corpus
    """

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """Folder or URL of a corpus."""
    target: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TARGET")]]
    """Folder or URL to copy it to."""

    def run(self) -> int:
        from data_pipelines.corpus.copy import copy_corpus

        report = copy_corpus(self.source, self.target, progress("copy"))
        show(
            f"{self.target}: {report.copied} files copied, {report.found} were there; {report.bytes / 1e6:,.1f} MB, "
            "all compared"
        )
        return 0


@dataclass(frozen=True)
class CorpusGeneEmbeddings:
    """Embed the genes of a corpus by which cells express them together.

    A model starts from the table with --model.feature-embeddings, and keeps it with --model.feature-rows frozen.

    Example:  scmbert corpus gene-embeddings my_corpus -o genes.npz --dim 200
              scmbert pretrain scbert --corpus my_corpus --run-dir runs/1 --model.feature-embeddings genes.npz
    """

    corpus: tyro.conf.Positional[CorpusFolder]
    """Written by scmbert corpus build; or the URL of a copy. Cells that it holds out are not read."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """.npz: ids (str) and vectors (float32 [genes, dim])."""
    dim: int = 200
    """Numbers per gene: model.embed_dim of the model."""
    max_cells: int = 10_000
    """Cells that are read, of all over the corpus."""
    min_cells: int = 10
    """Genes that fewer of these cells express are left out."""
    overwrite: Overwrite = False

    def run(self) -> int:
        from data_pipelines.build.gene_embeddings import gene_embeddings
        from data_pipelines.corpus.corpus import open_corpus
        from scmbert_jax.outputs import check_output_file

        for name, value in (("--dim", self.dim), ("--max-cells", self.max_cells), ("--min-cells", self.min_cells)):
            if value < 1:
                raise ConfigError(f"{name} {value}: expected 1 or more.")
        if self.output.suffix != ".npz":
            raise ConfigError(f"{self.output}: expected a name that ends in .npz.")
        check_output_file(self.output, (self.corpus,), self.overwrite)
        with open_corpus(self.corpus) as corpus:
            cells, genes, all_genes = gene_embeddings(
                corpus,
                self.output,
                dim=self.dim,
                max_cells=self.max_cells,
                min_cells=self.min_cells,
                progress=progress("gene embeddings"),
            )
        show(f"{self.output}: {genes:,} of {all_genes:,} genes, {self.dim} numbers each, of {cells:,} cells")
        return 0
