"""The verb that says what an annotator's calls come from: explain."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from scmbert_jax.commands.annotate import AnnotatorFolder, ReadingArguments
from scmbert_jax.commands.terminal import CountsFile, Output, Overwrite, print_tables, show, staged_progress
from scmbert_jax.plain_text import say


@dataclass(frozen=True)
class Explain:
    """Which features a type is called by, and whether to believe that.

    Writes mean attributions for each type beside Wilcoxon markers, mean expression, variance and detection rate;
    the same for an untrained model and for permuted labels; and what deleting the first features does.

    Example:  scmbert explain my_annotator cells.h5ad -o explained
              scmbert explain my_annotator cells.h5ad -o explained --types B NK --method integrated_gradients
    """

    annotator_dir: tyro.conf.Positional[AnnotatorFolder]
    """Written by scmbert annotate fit."""
    file: tyro.conf.Positional[CountsFile]
    """Raw counts; whatever scmbert doctor takes."""
    output: Output
    """Folder of the tables and report.html."""
    types: tuple[str, ...] = ()
    """Types to explain. Default: all of which there are cells."""
    method: tuple[Literal["integrated_gradients", "gradient_x_input", "attention_rollout"], ...] = ()
    """The first is that of the heat map. Default: all. Rollout is not evidence of regulation. An annotator of principal
    components has an exact answer and needs none of these."""
    steps: int = 32
    """Points of integrated gradients, at which the gradient is taken; more make the sum more exact."""
    label_key: str | None = None
    """Column of obs that says which cells are of a type. Default: the annotator does."""
    cells_per_type: int = 100
    """Cells of each type that are explained, at most."""
    deletion_cells: int = 200
    """Cells whose features are deleted, at most."""
    seed: int = 0
    """Of what is drawn, of the untrained model and of permuted labels."""
    read: Annotated[ReadingArguments, tyro.conf.arg(name="")] = field(default=ReadingArguments())
    overwrite: Overwrite = False

    def run(self) -> int:
        from scmbert_jax.annotation.representation import Reading
        from scmbert_jax.interpretation.explain import ExplainOptions, explain
        from scmbert_jax.interpretation.write_explanation import printed, write_explanation
        from scmbert_jax.outputs import EXPLANATION, check_output_folder

        check_output_folder(self.output, EXPLANATION, [self.annotator_dir, self.file], self.overwrite)
        options = ExplainOptions(
            methods=self.method or None,
            types=self.types or None,
            label_key=self.label_key,
            steps=self.steps,
            cells_per_type=self.cells_per_type,
            deletion_cells=self.deletion_cells,
            seed=self.seed,
        )
        read = self.read
        reading = Reading(read.organism, read.assembly, read.allow_low_coverage, read.num_tokens, read.batch_size)
        found = explain(self.annotator_dir, self.file, options, reading=reading, progress=staged_progress(), say=say)
        write_explanation(self.output, found, self.overwrite)
        print_tables(printed(found))
        show(f"{self.output}: report.html, markers.csv, attributions.parquet, deletion.csv, sanity.csv")
        return 0
