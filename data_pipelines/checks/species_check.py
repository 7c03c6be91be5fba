"""Is a file of one species? Cells of another would come in as poor cells of this one, and nobody would notice."""

from data_pipelines.checks.input_report import InputReport
from data_pipelines.features.feature_mapping import MIXTURE, FeatureMapping
from data_pipelines.features.gene_names import ANOTHER_SPECIES
from data_pipelines.readers.dataset import CountsMatrix

_EXAMPLES = 3


def report_species(matrix: CountsMatrix, mapping: FeatureMapping, report: InputReport) -> bool:
    """Whether it is a mixture, which is a problem of the report; a few features of another species are a warning."""
    count = mapping.status_counts.get(ANOTHER_SPECIES, 0)
    examples = ", ".join(mapping.examples(ANOTHER_SPECIES)[:_EXAMPLES])
    few = MIXTURE * mapping.num_eligible
    if count > few and mapping.num_mapped > few:
        report.problems.append(
            f"{matrix.where}: a mixture of species: {mapping.num_mapped:,} features are of {report.organism}, "
            f"{count:,} of another species (e.g. {examples}). Write the cells of one species to a file of their own, "
            "with its features only: its cells are those with, say, nine in ten of their counts on its features. To "
            "leave out features alone would leave the cells of the other species in"
        )
        return True
    if 0 < count <= few:
        report.warnings.append(f"{matrix.where}: {count:,} features of another species are left out: {examples}")
    return False
