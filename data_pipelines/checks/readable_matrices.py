"""Which matrices of a data set are read: what is of no modality is named and left, and nothing that looks like one."""

from data_pipelines.checks.input_report import InputReport
from data_pipelines.features.antibodies import no_antibody
from data_pipelines.features.feature_mapping import antibody_coverage, choose_names, gene_coverage
from data_pipelines.features.gene_tables import ORGANISMS
from data_pipelines.features.modality_names import is_other_assay, types_not_understood
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from scmbert_jax.modalities import MODALITIES

_EXAMPLES = 3


def readable_matrices(dataset: Dataset, report: InputReport) -> list[CountsMatrix]:
    """The matrices of known, distinct modality, in the order of MODALITIES."""
    known: dict[str, CountsMatrix] = {}
    unknown: list[CountsMatrix] = []
    for matrix in dataset.matrices:
        if matrix.modality in known:
            report.problems.append(
                f"{matrix.where}: a second matrix of {matrix.modality} beside {known[matrix.modality].field}; "
                "keep one of them in the file"
            )
        elif matrix.modality not in MODALITIES:
            unknown.append(matrix)
        elif matrix.modality == "protein" and len(dataset.matrices) > 1 and _all_tags(matrix):
            report.warnings.append(
                f"{matrix.where}: its {matrix.shape[1]:,} features are no antibodies ("
                f"{', '.join(matrix.feature_names[:_EXAMPLES].tolist())}: hashtags and the like), and are not read"
            )
        else:
            known[matrix.modality] = matrix
            said = types_not_understood(matrix.feature_table)
            if said:
                report.warnings.append(
                    f"{matrix.where}: {said}, which is not understood: all features are taken as {matrix.modality} "
                    f"({matrix.modality_evidence}). If they are of several kinds, write Gene Expression, Antibody "
                    "Capture or Peaks there"
                )
    for matrix in unknown:
        fits = _fits(matrix)
        said = (
            f"{matrix.where}: cannot tell the modality ({matrix.modality_evidence}; best known: "
            f"{', '.join(f'{fraction:.0%} as {kind}' for kind, fraction in fits.items())}). "
        )
        remedy = (
            "var['feature_types'] (Gene Expression, Antibody Capture or Peaks), or name the MuData modality rna, "
            "protein or atac"
        )
        # What nothing here has a name for is nobody's counts; what looks like genes or antibodies would be missed.
        if any(is_other_assay(word) for word in matrix.modality_evidence.split("'")[1::2]):
            report.warnings.append(
                f"{matrix.where}: {matrix.shape[1]:,} features are not read ({matrix.modality_evidence})"
            )
        elif known and max(fits.values()) < report.min_coverage:
            examples = ", ".join(matrix.feature_names[:_EXAMPLES].tolist())
            report.warnings.append(
                f"{said}Its {matrix.shape[1]:,} features ({examples}) are not read. To have them, say it in {remedy}"
            )
        else:
            report.problems.append(f"{said}Say it in {remedy}")
    if not known and not report.problems:
        report.problems.append(f"{dataset.path}: no matrix of {', '.join(MODALITIES)}")
    return [known[name] for name in MODALITIES if name in known]


def _all_tags(matrix: CountsMatrix) -> bool:
    _, names = choose_names(matrix.feature_table, matrix.feature_names, antibody_coverage)
    return all(no_antibody(name) for name in names.tolist())


def _fits(matrix: CountsMatrix) -> dict[str, float]:
    fits = {f"{organism} genes": gene_coverage(matrix.feature_names, organism) for organism in ORGANISMS}
    fits["antibodies"] = antibody_coverage(matrix.feature_names)
    return fits
