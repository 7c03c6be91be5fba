"""Is this data set fit to train on? Counts, known features, unique names, enough cells: a report, or a clear error."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from data_pipelines.cells.cell_identity import column_weights, feature_weights
from data_pipelines.cells.cell_metadata import recognise_obs_fields
from data_pipelines.cells.cell_selection import PRIMARY, not_primary
from data_pipelines.checks.counts_scan import scan_counts
from data_pipelines.checks.input_report import InputReport, ModalityReport
from data_pipelines.checks.readable_matrices import readable_matrices
from data_pipelines.checks.region_check import map_atac, region_facts
from data_pipelines.checks.species_check import report_species
from data_pipelines.features.feature_mapping import (
    NO_FEATURES,
    FeatureMapping,
    antibody_coverage,
    choose_names,
    gene_coverage,
    map_genes,
    map_proteins,
)
from data_pipelines.features.gene_tables import ORGANISMS
from data_pipelines.features.genome_assembly import (
    CHROMOSOME_LENGTHS,
    ORGANISM_OF_ASSEMBLY,
    assembly_of_genome,
    organisms_of_features,
)
from data_pipelines.features.region_space import HOW_TO_LIFT
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from data_pipelines.readers.full_length import full_length_problem
from data_pipelines.readers.pair_check import pair_problems
from scmbert_jax.errors import InputError

__all__ = ["InputReport", "ModalityReport", "check_dataset", "require_usable"]

_EXAMPLES = 3


def check_dataset(
    dataset: Dataset,
    *,
    organism: str | None = None,
    assembly: str | None = None,
    min_genes: int | None = None,
    min_coverage: float = 0.5,
    obs_fields: Mapping[str, str | None] | None = None,
) -> InputReport:
    """Checks everything in one streaming pass per matrix; collects problems, never raises for bad content.

    What was decided when the data set was opened (`ReadingOptions` of its matrices: assembly, regions, links,
    full-length assays) holds here.

    Which cells are kept (`ModalityReport.keep`): a row without counts is dropped from its modality (the assay failed
    there, which is not a zero); a cell whose RNA has fewer than `min_genes` genes is dropped from all modalities.

    Args:
      organism: "human" or "mouse"; None: taken from the gene names or the assembly.
      assembly: of the regions, "hg38", "mm10", ...; None: the one decided at opening, else the genome the file names.
      min_genes: fewest mapped genes with a count for a cell to be kept; None: `usual_min_genes`.
      min_coverage: smallest fraction of a modality's features that must be known.
      obs_fields: standard name -> column of obs, overriding what is recognised.
    """
    if assembly is None:
        assembly = next((matrix.reading.assembly for matrix in dataset.matrices if matrix.reading.assembly), None)
    report = InputReport(dataset.name, dataset.path, organism, assembly, min_genes, min_coverage)
    report.warnings += dataset.notes
    if organism is not None and organism not in ORGANISMS:
        report.problems.append(f"organism {organism!r}: not known; state {' or '.join(ORGANISMS)}")
        report.organism = None
    if assembly is not None:
        report.assembly = assembly_of_genome(assembly)
        if report.assembly is None:
            known = ", ".join(CHROMOSOME_LENGTHS)
            report.problems.append(f"assembly {assembly!r}: not known; state one of {known}")
    matrices = readable_matrices(dataset, report)
    gene_names = {
        id(matrix): choose_names(matrix.feature_table, matrix.feature_names, _best_coverage)
        for matrix in matrices
        if matrix.modality == "rna"
    }
    _settle_organism(report, matrices, gene_names, assembly_stated=assembly is not None)
    for matrix in matrices:
        report.modalities[matrix.modality] = _check_matrix(matrix, report, gene_names.get(id(matrix)))
    if dataset.pseudo_pairs is None:
        report.problems += pair_problems(matrices, obs_fields)
    else:  # cells of other batches or donors, put together on purpose
        report.warnings.append(f"{report.path}: its pairs were made by a program and not by an assay; a model says so")
    problems = [full_length_problem(dataset, matrix, obs_fields) for matrix in matrices if matrix.modality == "rna"]
    report.problems += [problem for problem in problems if problem]
    _check_cells(dataset, matrices, report)
    _check_obs(dataset, report, obs_fields)
    return report


def usual_min_genes(num_measured: int) -> int:
    """The fewest genes of a cell that is kept, where nobody says it: 200 of a whole transcriptome, as is usual, and of
    a panel as many of its genes in a hundred."""
    return min(200, max(1, num_measured // 100))


def require_usable(*reports: InputReport) -> None:
    """Raises InputError listing every problem of all reports that have some."""
    listed = [
        "\n".join([f"{report.path}: cannot be used", *(f"  - {problem}" for problem in report.problems)])
        for report in reports
        if not report.usable
    ]
    if listed:
        raise InputError("\n".join(listed))


def _best_coverage(names: np.ndarray) -> float:
    return max(gene_coverage(names, organism) for organism in ORGANISMS)


# ---------------------------------------------------------------------------------------------- organism, assembly


def _settle_organism(
    report: InputReport,
    matrices: list[CountsMatrix],
    gene_names: dict[int, tuple[str, np.ndarray]],
    assembly_stated: bool,
) -> None:
    """Fills `report.organism` and `.assembly` from what was stated, then from the file; reports contradictions."""
    genomes = {assembly_of_genome(matrix.genome): matrix for matrix in matrices if assembly_of_genome(matrix.genome)}
    regions = next((matrix for matrix in matrices if matrix.modality == "atac"), None)
    if report.assembly is not None and regions is not None:
        of_file = {assembly_of_genome(genome) for genome in (regions.genome or "").split("+")} - {None}
        for other in sorted(str(name) for name in of_file - {report.assembly}):
            remedy = (
                f"write the regions of {report.assembly} to a file of their own"
                if report.assembly in of_file
                else f"state --assembly {other}"
            )
            report.problems.append(
                f"{regions.where}: its genome field says {regions.genome!r}, but the assembly was given as "
                f"{report.assembly}. {HOW_TO_LIFT.format(of=other, to=report.assembly)}, or {remedy}"
            )
    if report.assembly is None and not assembly_stated:
        if len(genomes) == 1:
            report.assembly = next(iter(genomes))
        elif len(genomes) > 1:
            named = ", ".join(f"{assembly} ({matrix.field})" for assembly, matrix in genomes.items())
            report.problems.append(f"{report.path}: the file names several assemblies: {named}; state --assembly")
    of_assembly = ORGANISM_OF_ASSEMBLY.get(report.assembly or "")
    names = next(iter(gene_names.values()), None)
    if report.organism is None:
        if names is not None:
            fits = {organism: gene_coverage(names[1], organism) for organism in ORGANISMS}
            if max(fits.values()) == 0:
                where = next(matrix.where for matrix in matrices if matrix.modality == "rna")
                report.problems.append(
                    f"{where}: no name in {names[0]} is a gene of {' or '.join(ORGANISMS)} (e.g. "
                    f"{', '.join(names[1][:_EXAMPLES].tolist())}); give Ensembl ids or official symbols in var_names "
                    "or var['gene_ids']"
                )
                return
            report.organism = max(fits, key=lambda organism: fits[organism])
        else:
            report.organism = of_assembly
    if report.organism and of_assembly and report.organism != of_assembly:
        report.problems.append(
            f"{report.path}: assembly {report.assembly} is {of_assembly}, but the organism is {report.organism}; "
            "one of the two is wrong"
        )
    if report.organism is None and matrices:
        report.problems.append(
            f"{report.path}: the organism is neither stated nor evident from the file; state --organism human or mouse"
        )


# ---------------------------------------------------------------------------------------------- one matrix


def _check_matrix(
    matrix: CountsMatrix, report: InputReport, gene_names: tuple[str, np.ndarray] | None
) -> ModalityReport:
    mapping = _map_features(matrix, report, gene_names)
    num_cells, num_columns = matrix.shape
    columns = mapping.column_to_feature if mapping is not None else np.full(num_columns, -1, np.int64)
    part = ModalityReport(
        modality=matrix.modality,
        path=matrix.path,
        counts_field=matrix.field,
        evidence=matrix.modality_evidence,
        considered=matrix.considered,
        genome=matrix.genome,
        num_cells=num_cells,
        num_columns=num_columns,
        column_to_feature=columns,
        keep=np.ones(num_cells, bool),
        mapping=mapping,
        derivation=matrix.derivation,
        regions=region_facts(matrix, mapping),
    )
    _check_names(matrix, mapping, report)
    weights = feature_weights(mapping.space, mapping.features.ids) if mapping is not None else np.zeros(0, np.uint64)
    try:
        scan = scan_counts(matrix, columns, column_weights(weights, columns))
    except InputError as error:
        report.problems.append(str(error))
        return part
    report.problems += [f"{matrix.where}: {fault}" for fault in scan.faults]
    part.are_counts = not scan.faults
    part.storage, part.num_values, part.num_mapped_values = scan.storage, scan.num_values, scan.num_mapped_values
    part.max_value, part.total_counts, part.counts_hashes = scan.max_value, scan.totals, scan.hashes
    if scan.totals_all > 0:
        part.mapped_count_fraction = float(scan.totals.sum()) / scan.totals_all
    if mapping is None or not part.are_counts or mapping.coverage < report.min_coverage:
        return part  # which cells to drop means nothing before these problems are solved
    if matrix.modality == "rna" and report.min_genes is None:
        report.min_genes = usual_min_genes(int(np.count_nonzero(mapping.measured)))
    part.median_library_size = float(np.median(scan.totals))
    part.median_detected = float(np.median(scan.detected))
    _drop_cells(part, matrix, report, empty=scan.detected == 0, detected=scan.detected)
    return part


def _map_features(
    matrix: CountsMatrix, report: InputReport, gene_names: tuple[str, np.ndarray] | None
) -> FeatureMapping | None:
    """The mapping, or None with a problem reported. Reports low coverage and impossible coordinates."""
    if matrix.modality == "atac":
        return map_atac(matrix, report)
    if report.organism is None:
        return None
    if matrix.modality == "protein":
        source, names = choose_names(matrix.feature_table, matrix.feature_names, antibody_coverage)
        mapping = map_proteins(names, report.organism, source)
        known = antibody_coverage(names)
        left_out = mapping.names[np.isin(mapping.status, NO_FEATURES)]
        if len(left_out):
            report.warnings.append(
                f"{matrix.where}: {len(left_out):,} of {len(names):,} features are hashtags, or reads without a tag, "
                f"no antibodies, and left out: {', '.join(left_out[:_EXAMPLES].tolist())}"
            )
        unlinked = mapping.examples("no coding gene known")
        if unlinked:
            count = mapping.status_counts["no coding gene known"]
            report.warnings.append(
                f"{matrix.where}: {count:,} of {len(mapping.names):,} antibodies have no coding gene in the table and "
                f"stand without a link: {', '.join(unlinked)} ({known:.1%} of the names are known)"
            )
        if known < report.min_coverage:
            report.problems.append(
                f"{matrix.where}: only {known:.0%} of the names are known antibodies "
                f"(e.g. {', '.join(unlinked)}); at least {report.min_coverage:.0%} are asked for. Rename them after "
                "their antigen (CD3, HLA-DR), or lower --min-coverage"
            )
        return mapping
    assert gene_names is not None
    source, names = gene_names
    mapping = map_genes(names, report.organism, source, organisms_of_features(matrix.feature_table))
    if report_species(matrix, mapping, report):
        return mapping
    if mapping.coverage < report.min_coverage:
        fits = {organism: gene_coverage(names, organism) for organism in ORGANISMS}
        listed = ", ".join(f"{organism} {fraction:.0%}" for organism, fraction in fits.items())
        better = max(fits, key=lambda organism: fits[organism])
        advice = (
            f"the genes are {better}, not {report.organism}: state --organism {better}"
            if better != report.organism and fits[better] >= report.min_coverage
            else "give Ensembl ids or official symbols (var_names or var['gene_ids']), or lower --min-coverage"
        )
        report.problems.append(
            f"{matrix.where}: only {mapping.coverage:.0%} of the genes are known ({listed}), at least "
            f"{report.min_coverage:.0%} are asked for; not known e.g. {', '.join(mapping.examples('unknown'))}. "
            f"{advice[0].upper()}{advice[1:]}"
        )
    elif mapping.examples("ambiguous"):
        report.warnings.append(
            f"{matrix.where}: {mapping.status_counts['ambiguous']:,} symbols mean several genes and are left out: "
            f"{', '.join(mapping.examples('ambiguous'))}. Ensembl ids are never ambiguous"
        )
    return mapping


def _check_names(matrix: CountsMatrix, mapping: FeatureMapping | None, report: InputReport) -> None:
    cells = pd.Index(matrix.cell_ids)
    if not cells.is_unique:
        repeated = cells[cells.duplicated()].unique()
        report.problems.append(
            f"{matrix.where}: {len(repeated):,} cell ids occur more than once: {_some(repeated)}. Make them unique, "
            "e.g. by putting the sample's name in front"
        )
    if mapping is None:
        return
    # What maps to nothing may well be repeated ("Y_RNA", or no name at all): it is left out.
    features = pd.Index(mapping.names[mapping.column_to_feature >= 0])
    if not features.is_unique:
        repeated = features[features.duplicated()].unique()
        report.problems.append(
            f"{matrix.where}: {len(repeated):,} feature ids occur more than once in {mapping.source}: "
            f"{_some(repeated)}. Use unique ids (Ensembl ids in var_names or var['gene_ids']), or sum the repeated "
            "columns"
        )


def _drop_cells(
    part: ModalityReport, matrix: CountsMatrix, report: InputReport, *, empty: np.ndarray, detected: np.ndarray
) -> None:
    """Marks the rows that are not kept. Dropping more than half is a problem, not a filter."""
    reasons = {"without counts": empty}
    if part.modality == "rna":
        assert report.min_genes is not None  # settled by now
        few = ~empty & (detected < report.min_genes)
        reasons[f"with fewer than {report.min_genes} genes"] = few
        if np.count_nonzero(few) > len(few) / 2:
            # What keeps nearly every cell of a targeted or down-sampled panel.
            enough = max(1, int(np.quantile(detected[~empty], 0.05)))
            report.problems.append(
                f"{matrix.where}: {np.count_nonzero(few):,} of {len(few):,} cells have fewer than {report.min_genes} "
                f"detected genes (median {np.median(detected):,.0f}; the file measures {matrix.shape[1]:,}) and would "
                f"be dropped. If the data are meant to be so, state a lower limit, e.g. --min-genes {enough}"
            )
    if np.count_nonzero(empty) > len(empty) / 2:
        report.problems.append(
            f"{matrix.where}: {np.count_nonzero(empty):,} of {len(empty):,} cells have no counts; "
            "write only the cells that were measured"
        )
    for reason, rows in reasons.items():
        if rows.any():
            part.dropped[reason] = int(np.count_nonzero(rows))
            part.examples[reason] = matrix.cell_ids[rows][:_EXAMPLES].tolist()
            part.keep &= ~rows
            count = "1 cell" if part.dropped[reason] == 1 else f"{part.dropped[reason]:,} cells"
            report.warnings.append(f"{matrix.where}: {count} {reason} dropped")


# ---------------------------------------------------------------------------------------------- all cells


def _check_cells(dataset: Dataset, matrices: list[CountsMatrix], report: InputReport) -> None:
    """Carries the drop of a poor RNA profile over to the cell's other modalities; counts cells by modalities."""
    report.num_cells = len(dataset.cell_ids)
    rows = {matrix.modality: dataset.rows_of(matrix) for matrix in matrices}
    poor = np.zeros(report.num_cells, bool)
    rna = report.modalities.get("rna")
    if rna is not None and len(rna.total_counts):
        poor[rows["rna"][~rna.keep & (rna.total_counts > 0)]] = True
    for matrix in matrices:
        part = report.modalities[matrix.modality]
        follows = part.keep & poor[rows[matrix.modality]]
        if follows.any():
            reason = f"whose RNA has fewer than {report.min_genes} genes"
            part.dropped[reason] = int(np.count_nonzero(follows))
            part.examples[reason] = matrix.cell_ids[follows][:_EXAMPLES].tolist()
            part.keep &= ~follows
    report.count_kept(rows)
    if matrices and report.num_cells_kept == 0 and report.usable:
        report.problems.append(f"{report.path}: no cell is left; see why cells are dropped above")


def _check_obs(dataset: Dataset, report: InputReport, chosen: Mapping[str, str | None] | None) -> None:
    report.obs_fields, problems, notes = recognise_obs_fields(dataset.obs.columns, chosen)
    report.problems += [f"{report.path}: {problem}" for problem in problems]
    report.warnings += [f"{report.path}: {note}" for note in notes]
    elsewhere = np.count_nonzero(not_primary(dataset.obs))
    if elsewhere:
        report.warnings.append(
            f"{report.path}: {elsewhere:,} of {len(dataset.obs):,} cells are not primary data (obs[{PRIMARY!r}] is "
            f"False: another data set of CELLxGENE holds them too) and are kept; --only {PRIMARY}=True leaves them out"
        )
    for name, column in report.obs_fields.items():
        values = dataset.obs[column]
        report.obs_categories[name] = int(values.nunique(dropna=True))
        missing = int(values.isna().sum())
        if missing:
            report.warnings.append(f"{report.path}: obs[{column!r}] ({name}) is missing in {missing:,} cells")


def _some(names: pd.Index) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:_EXAMPLES])
    return shown + (" ..." if len(names) > _EXAMPLES else "")
