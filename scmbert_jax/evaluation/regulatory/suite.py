"""The suite `regulatory`: labelled sequences, zero-shot recipes and measured variants, each beside its floors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.genome.bigwig import signal_of_windows
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.interval import Interval
from data_pipelines.genome.interval_table import intervals_of, read_intervals
from data_pipelines.genome.motifs import MotifSet
from data_pipelines.genome.windows import Windows, cut_windows
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.evaluation.regulatory.baselines import BASELINES, Baseline
from scmbert_jax.evaluation.regulatory.labelled import score_task, sizes_of
from scmbert_jax.evaluation.regulatory.likelihoods import Score, simple_scores
from scmbert_jax.evaluation.regulatory.pictures import pictures_of
from scmbert_jax.evaluation.regulatory.result import NO_CONSERVATION, RegulatoryReport
from scmbert_jax.evaluation.regulatory.saturation import Element
from scmbert_jax.evaluation.regulatory.tasks import SequenceTask
from scmbert_jax.evaluation.regulatory.variant_effects import FEWEST_LOCI, Effects, Variants, variant_rows
from scmbert_jax.evaluation.regulatory.zero_shot import PairScore, element_pairs, motif_pairs, score_pairs
from scmbert_jax.evaluation.report.report import write_report
from scmbert_jax.regulation.linear_part import scanner_of

Array = np.ndarray
Say = Callable[[str], None]

ELEMENT_WIDTH = 350  # bases of an element, as in DART-Eval
NAMED = ("RET", "TERT-GBM", "TERT-HEK", "LDLR", "SORT1")
_NOTES = (
    "Every method is tuned on the sequences that choose, none on those that test. [low, high]: 95% of bootstraps over "
    "test sequences, which repeat and resemble each other, so that intervals are too narrow. ±: half of the 95% "
    "Student-t interval over seeds.",
    "A repeat is a test sequence that, or whose reverse complement, also learns or chooses.",
)
_PAIR_NOTE = (
    "Zero-shot: an element against its own dinucleotide shuffle, a motif against its letters in another order, both in "
    "the middle of shuffled elements. Chance is .5; Markov chains of the orders 0 and 1 cannot tell an element from "
    "its dinucleotide shuffle. Chains have read the sequence outside of what is sealed."
)
_VARIANT_NOTE = (
    "Variants: Spearman's correlation with the measured effect within each element. What is learned, is learned from "
    "elements of other loci only: those that share bases with the one that is judged are left out. ±: half of the 95% "
    "Student-t interval over loci."
)


@dataclass(frozen=True)
class Sealed:
    """A genome, elements in it, and which part of it nothing has learned from.

    Attributes:
      genome: FASTA. regions: tables of intervals.
      intervals: 0-based half-open, "chr8" (all of it) or "chr2:1500000-2333275". Elements whose windows lie inside
        are judged; the rest of the genome is what Markov chains read.
    """

    genome: str | Path
    regions: Sequence[str | Path]
    intervals: Sequence[str]


@dataclass(frozen=True)
class Zoo:
    """Models that are judged.

    Attributes:
      methods: that learn from labelled sequences. scores: of sequences, without labels. effects: of variants, from
        windows of `width` bases.
    """

    methods: Sequence[Baseline] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    effects: Mapping[str, Effects] = field(default_factory=dict)
    width: int = 200


def evaluate_regulatory(
    tasks: Sequence[SequenceTask] = (),
    *,
    motifs: MotifSet | None = None,
    zoo: Zoo | None = None,
    skip: Sequence[str] = (),
    fractions: Sequence[float] = (1.0,),
    num_seeds: int = 3,
    sealed: Sealed | None = None,
    elements: Sequence[Element] = (),
    conservation: str | Path | None = None,
    pictures: bool = False,
    say: Say = lambda message: None,
) -> RegulatoryReport:
    """Scores every method on whatever is given.

    Args:
      tasks: sets of labelled sequences (`tasks.read_task`).
      motifs: for the baselines of motifs.
      zoo: models beside the baselines.
      skip: names of methods of labelled sequences that are left out.
      fractions: of the labels that learn. num_seeds: of what is random.
      sealed: for the zero-shot recipes.
      elements: of saturation mutagenesis (`saturation.read_elements`).
      conservation: a bigWig track of the build of `elements`, for the baseline of conservation.
      pictures: also draw those of the report.

    Raises:
      ConfigError: nothing to judge, or an unknown method; InputError: files that cannot be used.
    """
    if not tasks and sealed is None and not elements:
        raise ConfigError(
            "nothing to judge: give sets of sequences, --genome with --regions and --sealed, or --variants"
        )
    zoo = zoo or Zoo()
    chosen, missing = _methods(zoo, skip, motifs)
    if not tasks:
        missing = {}
    notes = list(_NOTES) if tasks else []
    rows = []
    scanner = None if motifs is None else scanner_of(motifs)
    for task in tasks:
        rows += score_task(task, chosen, scanner, fractions=fractions, num_seeds=num_seeds, say=say)
    if tasks:
        notes.append(f"Sets of sequences without places in a genome: {NO_CONSERVATION}.")
    pairs: list[PairScore] = []
    if sealed is not None:
        pairs, said = _pair_rows(sealed, motifs, zoo.scores, say)
        notes += [*said, _PAIR_NOTE, f"Shuffles have no place in a genome: {NO_CONSERVATION}."]
    variants = []
    if elements:
        track = None if conservation is None else conservation_of(elements, conservation)
        measured = Variants(elements, motifs, track)
        variants = variant_rows(measured, zoo.effects, zoo.width, say)
        if measured.num_loci < FEWEST_LOCI:
            missing["learned from other loci"] = f"needs elements of {FEWEST_LOCI} loci, there are {measured.num_loci}"
        notes.append(_VARIANT_NOTE)
        notes.append(
            f"Variants: {NO_CONSERVATION} (no track was given)." if track is None else f"Track: {conservation}."
        )
        if motifs is None:
            missing["motif difference"] = "needs --motifs"
    found = RegulatoryReport(
        tuple(rows),
        tuple(pairs),
        tuple(variants),
        {task.name: sizes_of(task) for task in tasks},
        tuple(name for name in NAMED if any(name == element.name for element in elements)),
        missing,
        tuple(notes),
    )
    return found if not pictures else pictures_of(found)


def _methods(zoo: Zoo, skip: Sequence[str], motifs: MotifSet | None) -> tuple[list[Baseline], dict[str, str]]:
    """(those that have a row, name -> why another has none). Raises ConfigError: `skip` names none of them."""
    methods = [*BASELINES, *zoo.methods]
    names = [method.name for method in methods]
    if unknown := [name for name in skip if name not in names]:
        raise ConfigError(f"--skip {', '.join(map(repr, unknown))}: there are {', '.join(map(repr, names))}.")
    chosen: dict[str, Baseline] = {}
    missing: dict[str, str] = {}
    for method in methods:
        if method.name in skip:
            continue
        lacking = [name for name in method.of if name not in chosen]
        if method.needs == "motifs" and motifs is None:
            missing[method.name] = "needs --motifs"
        elif lacking:
            missing[method.name] = f"is made of {', '.join(lacking)}, which has no row"
        else:
            chosen[method.name] = method
    return [*chosen.values()], missing


def _pair_rows(
    sealed: Sealed, motifs: MotifSet | None, scores: Mapping[str, Score], say: Say
) -> tuple[list[PairScore], list[str]]:
    genome = Fasta(sealed.genome)
    intervals = [_interval(text, genome) for text in sealed.intervals]
    inside, said = _elements_inside(genome, sealed.regions, intervals)
    training = _outside(genome, intervals)
    say(f"zero-shot: {len(inside):,} elements on sealed sequence, chains read {training.size:,} bases")
    floors = dict(simple_scores(training, motifs))
    pairs = element_pairs(inside)
    rows = score_pairs(pairs, floors | dict(scores))
    if motifs is not None:
        floors.pop("motifs")  # it would be asked for the very motifs that it was given
        both, left_out = motif_pairs(motifs, inside)
        if left_out:
            said.append(f"{left_out:,} motifs are left out: they are too long, or their letters have no other order.")
        rows += score_pairs(both, floors | dict(scores))
    return rows, said


def _interval(text: str, genome: Fasta) -> Interval:
    """ "chr8", or "chr2:100-200". Raises InputError: a sequence that the genome has not, or beyond its end."""
    name = text.partition(":")[0]
    if name not in genome.lengths:
        raise InputError(
            f"--sealed {text}: {genome.name} has no sequence {name}; it has {', '.join([*genome.lengths][:5])}"
        )
    found = Interval.from_str(text) if ":" in text else Interval(name, 0, genome.lengths[name])
    if found.end > genome.lengths[name]:
        raise InputError(f"--sealed {text}: {name} has {genome.lengths[name]:,} bases")
    return found


def _elements_inside(
    genome: Fasta, regions: Sequence[str | Path], intervals: Sequence[Interval]
) -> tuple[Array, list[str]]:
    """uint8 [N, ELEMENT_WIDTH], each sequence once, and what was left out, in words."""
    parts, said = [], []
    for path in regions:
        # Only those of this genome are asked for: a part of one is as good as the whole.
        table = read_intervals(path, genome, most_left_out=1.0)
        windows: Windows = cut_windows(genome, table, ELEMENT_WIDTH, most_unknown=0.0, most_left_out=1.0)
        chromosome, start = table.chromosome[windows.rows], windows.start
        inside = np.zeros(len(windows), bool)
        for own in intervals:
            inside |= (chromosome == own.chromosome) & (start >= own.start) & (start + ELEMENT_WIDTH <= own.end)
        parts.append(windows.codes[inside])
        said.append(f"{path}: {inside.sum():,} elements on sealed sequence, of {len(windows):,} in {genome.name}.")
    return np.unique(np.concatenate(parts), axis=0), said


def _outside(genome: Fasta, intervals: Sequence[Interval]) -> Array:
    """uint8 [L]: all that is not sealed, stretches separated by N. Raises InputError where that is nothing."""
    parts = []
    for name, length in genome.lengths.items():
        codes = genome.codes(name, 0, length, 1.0).copy()
        for own in intervals:
            if own.chromosome == name:
                codes[own.start : own.end] = 4
        parts.append(codes)
        parts.append(np.array([4], np.uint8))
    found = np.concatenate(parts)
    if (found == 4).all():
        raise InputError(f"--sealed: nothing of {genome.name} is left to read for Markov chains; seal less")
    return found


def conservation_of(elements: Sequence[Element], path: str | Path) -> Array:
    """float64 [n]: the track at each variant; the mean of the element's where it says nothing.

    Raises: as `signal_of_windows`; InputError: it says nothing of an element (another build?).
    """
    places = [Interval(_ucsc(own.chromosome), own.start, own.end, name=own.name) for own in elements]
    table = intervals_of(places, str(path))
    found = []
    for number, own in enumerate(elements):
        one = table.take(np.array([number]))
        shape = np.array([len(own.codes)], np.int32), np.zeros(1, np.int64), np.array([own.start])
        signal = signal_of_windows(path, one, Windows(own.codes[None], *shape, {}))[0].astype(np.float64)
        if not np.isfinite(signal).any():
            raise InputError(f"{path}: no value for {own.name} ({places[number]}); is it of another build?")
        found.append(np.where(np.isfinite(signal), signal, np.nanmean(signal))[own.place])
    return np.concatenate(found)


def _ucsc(name: str) -> str:
    return name if name.startswith("chr") else f"chr{name}"


def write_regulatory_report(path: Path, report: RegulatoryReport, run_info: dict[str, Any]) -> None:
    """report.html."""
    write_report(
        path,
        title="Regulatory sequences",
        run_info=run_info,
        tables=[*report.tables(), *report.tables_of_elements()],
        figures=report.figures,
        notes=report.notes,
    )
