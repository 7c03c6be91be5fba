"""Verbs that bring two modalities together: match, label-transfer, pseudo-pairs."""

from dataclasses import dataclass
from typing import Literal

import tyro

from scmbert_jax.commands.terminal import (
    Assembly,
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
from scmbert_jax.errors import InputError
from scmbert_jax.modalities import ModalityName
from scmbert_jax.plain_text import say


@dataclass(frozen=True)
class Match:
    """Find for each cell of one modality its most probable partners in another.

    Example:  scmbert match my_model cells.h5mu --source rna --target protein -o partners.csv
    """

    model_dir: tyro.conf.Positional[ModelFolder]
    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    source: ModalityName
    """Each of its cells gets partners."""
    target: ModalityName
    """Where partners are looked for."""
    output: Output
    """.csv or .parquet: cell, technical_batch, rank, partner, probability, why_not (why a partner is missing)."""
    target_file: str | None = None
    """Cells of the target modality, where they are in another file."""
    k: int = 5
    """Partners per cell."""
    method: Literal["sinkhorn", "cosine"] = "sinkhorn"
    """Optimal transport within technical batches, or the nearest for each cell by itself."""
    epsilon: float = 0.05
    """Entropic regularisation, in units of the cosine: smaller spreads a cell over fewer partners."""
    space: Literal["cell", "aligned"] | None = None
    """Embeddings that are compared. Default: the contrastive (aligned) ones if the model has them."""
    organism: Organism = None
    assembly: ModelAssembly = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.pretrained import load_model
        from scmbert_jax.tasks.match import check_table_path, match_dataset, write_matching

        check_table_path(self.output, [self.file, self.target_file], self.overwrite)
        result = match_dataset(
            load_model(self.model_dir, allow_low_coverage=self.allow_low_coverage),
            self.file,
            source=self.source,
            target=self.target,
            target_cells=self.target_file,
            k=self.k,
            method=self.method,
            epsilon=self.epsilon,
            organism=self.organism,
            assembly=self.assembly,
            space=self.space,
            progress=progress("embed"),
        )
        write_matching(self.output, result, self.overwrite)
        if not result.within_batches:
            say("technical batches are not known of all cells: partners were looked for among all of them")
        for batch in result.matching.not_converged:
            say(f"technical batch {batch}: transport did not reach its marginals; raise --epsilon")
        for modality, ids in result.without_embedding.items():
            if len(ids):
                say(f"{len(ids):,} {modality} cells have no counts of the model's features and were left out")
        matched = len(result.source_ids) - len(result.matching.unmatched)
        show(f"{self.output}: partners of {matched:,} of {len(result.source_ids):,} {self.source} cells")
        return 0


@dataclass(frozen=True)
class LabelTransfer:
    """Give cells of one modality the cell types known in another.

    Example:  scmbert label-transfer my_model rna.h5ad protein.h5ad --source rna --target protein -o types.csv
    """

    model_dir: tyro.conf.Positional[ModelFolder]
    labelled_file: tyro.conf.Positional[CountsFile]
    """Cells of the source modality, with cell types in obs."""
    file: tyro.conf.Positional[CountsFile]
    """Cells of the target modality, to be labelled. May be the same file."""
    source: ModalityName
    """The modality whose cells have labels."""
    target: ModalityName
    """The modality whose cells get them."""
    output: Output
    """.csv or .parquet: cell, cell_type, confidence."""
    method: Literal["knn", "logistic"] = "knn"
    """Fraction of the 15 nearest neighbours, or a logistic regression."""
    space: Literal["cell", "aligned"] | None = None
    """Embeddings that are compared. Default: the contrastive (aligned) ones if the model has them."""
    organism: Organism = None
    assembly: ModelAssembly = None
    allow_low_coverage: LowCoverage = False
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.pretrained import load_model
        from scmbert_jax.tasks.label_transfer import class_report
        from scmbert_jax.tasks.match import check_table_path, write_table
        from scmbert_jax.tasks.transfer_dataset import transfer_dataset

        check_table_path(self.output, [self.labelled_file, self.file], self.overwrite)
        result = transfer_dataset(
            load_model(self.model_dir, allow_low_coverage=self.allow_low_coverage),
            self.labelled_file,
            self.file,
            source=self.source,
            target=self.target,
            method=self.method,
            space=self.space,
            organism=self.organism,
            assembly=self.assembly,
        )
        write_table(self.output, result.table(), self.overwrite)
        for score in class_report(result.known_types, result.transferred.labels) if result.known_types.any() else ():
            say(
                f"{score.cell_type}: precision {score.precision:.3f}, recall {score.recall:.3f}, F1 {score.f1:.3f} "
                f"({score.num_cells:,} cells)"
            )
        show(f"{self.output}: cell types of {len(result.target_ids):,} {self.target} cells")
        return 0


@dataclass(frozen=True)
class MakePseudoPairs:
    """Pair cells of two modalities that were never measured together, by linked features and optimal transport.

    No barcodes are compared and no labels are read. The .h5mu says in uns["scmbert_pseudo_pairs"] how its pairs were
    made; scmbert corpus build carries that into the corpus and the reports.

    Example:  scmbert pseudo-pairs example:pbmc_mosaic --modalities rna protein -o pseudo.h5mu --check-links
    """

    file: tyro.conf.Positional[CountsFile]
    """Raw counts with both modalities; FILE+FILE is allowed."""
    output: Output
    """.h5mu: pseudo-paired cells, and cells that found no partner with their own modality alone."""
    modalities: tuple[ModalityName, ModalityName] = ("rna", "protein")
    """The two modalities."""
    second_file: str | None = None
    """The second modality, where it is in another file."""
    only: tuple[str, ...] = ()
    """Technical batches to use. Default: all."""
    keep_fraction: float = 1.0
    """Fraction of the pairs, the most probable first, that become one cell."""
    rounds: int = 3
    """Rounds of CCA and transport; 0: links alone."""
    epsilon: float = 0.05
    """Entropic regularisation, in units of the cosine cost."""
    check_links: bool = False
    """Also match with four fifths of the links and print how well the others are predicted: choose settings by it."""
    organism: Organism = None
    assembly: Assembly = None
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.tasks.modality_cells import in_batches, read_modalities, require_modality
        from scmbert_jax.tasks.pseudo_pairs import PseudoPairSettings, held_out_link_correlation, match_unpaired
        from scmbert_jax.tasks.write_pseudo_pairs import check_h5mu_path, pseudo_paired_mudata, write_pseudo_pairs

        check_h5mu_path(self.output, [self.file, self.second_file], self.overwrite)
        if not 0 < self.keep_fraction <= 1:
            raise InputError(f"--keep-fraction {self.keep_fraction}: expected a fraction above 0, at most 1.")
        settings = PseudoPairSettings(rounds=self.rounds, epsilon=self.epsilon)
        known = read_modalities(self.file, organism=self.organism, assembly=self.assembly)
        other = known
        if self.second_file is not None:
            other = read_modalities(self.second_file, organism=self.organism, assembly=self.assembly)
        first = in_batches(require_modality(known, self.modalities[0]), self.only)
        second = in_batches(require_modality(other, self.modalities[1]), self.only)
        if self.check_links:
            found = held_out_link_correlation(first, second, settings=settings)
            say(f"links left out of the matching are predicted with a correlation of {found:.3f} (0: it knows nothing)")
        pairs = match_unpaired(first, second, settings=settings)
        if pairs.num_converged < pairs.num_blocks:
            say(f"{pairs.num_blocks - pairs.num_converged} of {pairs.num_blocks} transports did not converge")
        mdata = pseudo_paired_mudata(first, second, pairs, keep_fraction=self.keep_fraction)
        write_pseudo_pairs(self.output, mdata, self.overwrite)
        show(
            f"{self.output}: {mdata.uns['scmbert_pseudo_pairs']['pairs']:,} pseudo-pairs of {len(first):,} "
            f"{first.modality} and {len(second):,} {second.modality} cells, by {pairs.num_links} links"
        )
        return 0
