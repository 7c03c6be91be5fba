"""The regions of a matrix: do they lie in the assembly, which regions of the corpus are they, how much is lost by
that?"""

from collections.abc import Sequence
from typing import Any

from data_pipelines.checks.input_report import InputReport
from data_pipelines.checks.species_check import report_species
from data_pipelines.features.feature_mapping import FeatureMapping, map_regions
from data_pipelines.features.gene_tables import ASSEMBLY_OF
from data_pipelines.features.genome_assembly import CHROMOSOME_LENGTHS
from data_pipelines.features.modality_names import region_names
from data_pipelines.features.region_links import LinksOfFile, NearestGenes, region_links
from data_pipelines.features.region_space import HOW_TO_LIFT, region_space
from data_pipelines.readers.dataset import CountsMatrix, Dataset
from scmbert_jax.errors import InputError


def map_atac(matrix: CountsMatrix, report: InputReport) -> FeatureMapping | None:
    """The mapping, or None with a problem reported; problems and warnings go to the report."""
    if report.assembly is None:
        said = f"its genome field says {matrix.genome!r}" if matrix.genome else "the file names no genome"
        if not any("assembl" in problem.replace(report.path, "") for problem in report.problems):
            report.problems.append(
                f"{matrix.where}: the assembly of the regions must be stated ({said}); "
                f"state --assembly with one of {', '.join(CHROMOSOME_LENGTHS)}"
            )
        return None
    reading = matrix.reading
    try:
        space = region_space(reading.regions, report.assembly) if reading.regions is not None else None
        links = region_links(reading.region_links, report.assembly)
    except InputError as error:
        report.problems.append(str(error))
        return None
    source, names = region_names(matrix.feature_table, matrix.feature_names)
    mapping = map_regions(names, report.assembly, source, space=space, links=links)
    if report_species(matrix, mapping, report):
        return mapping
    _report_positions(matrix, mapping, report)
    _report_overlap(matrix, mapping, report)
    if isinstance(links, LinksOfFile):
        _report_links(matrix, mapping, links, report)
    elif isinstance(links, NearestGenes) and report.assembly not in ASSEMBLY_OF.values():
        report.warnings.append(
            f"{matrix.where}: regions of {report.assembly} stand without links to genes; gene positions are known "
            f"for {' and '.join(ASSEMBLY_OF.values())} only"
        )
    return mapping


def _report_positions(matrix: CountsMatrix, mapping: FeatureMapping, report: InputReport) -> None:
    assembly, counts = report.assembly, mapping.status_counts
    for status, why in (
        ("no such chromosome", f"lie on a chromosome that {assembly} does not have"),
        ("beyond the chromosome", f"end beyond their chromosome in {assembly}"),
    ):
        if status in counts:
            report.problems.append(
                f"{matrix.where}: {counts[status]:,} of {len(mapping.names):,} regions {why}, e.g. "
                f"{', '.join(mapping.examples(status))}; the assembly is probably another one. "
                + HOW_TO_LIFT.format(of="theirs", to=assembly)
            )
    if mapping.coverage < report.min_coverage:
        where = (
            f"are or overlap regions of {matrix.reading.regions}"
            if matrix.reading.regions
            else f"are regions of {assembly}"
        )
        status = max(("not a region", "in no region"), key=lambda status: counts.get(status, 0))
        report.problems.append(
            f"{matrix.where}: only {mapping.coverage:.0%} of the names {where}, at least {report.min_coverage:.0%} "
            f"are asked for; {status} e.g. {', '.join(mapping.examples(status))}. Expected chr1:100-200, chr1_100_200 "
            "or chr1-100-200"
        )
    elif "not a region" in counts:
        report.warnings.append(
            f"{matrix.where}: {counts['not a region']:,} names are no regions and are left out: "
            f"{', '.join(mapping.examples('not a region'))}"
        )


def _report_overlap(matrix: CountsMatrix, mapping: FeatureMapping, report: InputReport) -> None:
    facts = region_facts(matrix, mapping)
    if facts is not None and facts["lossy"]:
        report.warnings.append(
            f"{matrix.where}: {facts['by_overlap']:,} of {len(mapping.names):,} regions are mapped to "
            f"{facts['source']} by overlap, each to the region it overlaps most, and {facts['in_no_region']:,} "
            "overlap none and are left out: that loses information. Counting the fragments on these regions does not "
            "(fragments.tsv.gz)"
        )


def _report_links(matrix: CountsMatrix, mapping: FeatureMapping, links: LinksOfFile, report: InputReport) -> None:
    linked = sum(bool(genes) for genes in mapping.features.links)
    if linked == 0:
        report.problems.append(
            f"{matrix.where}: none of its {len(mapping.features):,} regions is in {links.source} (there e.g. "
            f"{', '.join(list(links.genes_of)[:2])}; here {', '.join(mapping.features.ids[:2].tolist())}); links are "
            "for exactly these regions: write them for the regions of the corpus"
        )
    if linked < len(links.genes_of):
        report.warnings.append(
            f"{matrix.where}: {len(links.genes_of) - linked:,} of the {len(links.genes_of):,} regions that "
            f"{links.source} links are not among its regions"
        )
    if links.unknown_genes:
        report.warnings.append(
            f"{links.source}: {links.unknown_genes:,} pairs are left out, for their genes are not known or ambiguous"
        )


def region_facts(matrix: CountsMatrix, mapping: FeatureMapping | None) -> dict[str, Any] | None:
    """What reports and manifests say of the regions of a matrix; None for another modality, or where nothing is mapped.

    `source`: "own peaks", "windows:5000" or a BED file; `by_overlap`, `in_no_region`: columns of the matrix; `lossy`:
    some were not counted on these regions; `links`: where those to genes are from.
    """
    if mapping is None or matrix.modality != "atac":
        return None
    assembly = mapping.space.partition(":")[2]
    spec = matrix.reading.regions
    about = (
        region_space(spec, assembly).to_dict() if spec is not None else {"source": "own peaks", "assembly": assembly}
    )
    by_overlap, in_none = (mapping.status_counts.get(status, 0) for status in ("by overlap", "in no region"))
    return {
        **about,
        "by_overlap": by_overlap,
        "in_no_region": in_none,
        "lossy": bool(by_overlap or in_none),
        "links": region_links(matrix.reading.region_links, assembly).to_dict(),
    }


def refuse_several_region_spaces(datasets: Sequence[Dataset]) -> None:
    """Raises InputError where the files of one corpus were told different regions or links."""
    matrices = [matrix for dataset in datasets for matrix in dataset.matrices if matrix.modality == "atac"]
    for option in ("regions", "region_links"):
        told = {getattr(matrix.reading, option): matrix.path for matrix in matrices}
        if len(told) > 1:
            listed = ", ".join(f"{value or 'its own peaks'} ({path})" for value, path in told.items())
            raise InputError(
                f"{option}: {listed}: a corpus has one set of regions; give it for all files with "
                f"--{option.replace('_', '-')}"
            )
