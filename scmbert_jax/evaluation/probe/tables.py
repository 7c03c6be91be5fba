"""The probe's results in words: markdown tables for a terminal, a README or a report, and plain sentences."""

import math
from collections.abc import Iterable, Sequence

from scmbert_jax.evaluation.baselines import LINEAR_PATH_ALONE
from scmbert_jax.evaluation.probe.result import AT_RANDOM, MEAN_OVER_BATCHES, DifferenceRow, ProbeResult, ProbeRow
from scmbert_jax.text_table import markdown_table, modality_name

_PROBE_NAMES = {"linear": "linear", "knn": "kNN"}
_METRIC_NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


def render_table(results: ProbeResult | Sequence[ProbeResult], *, by_batch: bool = False) -> str:
    """A markdown table, aligned for a terminal too: one line per modality and method.

    Args:
      results: one result, or several (one per modality).
      by_batch: one line per held-out batch too, not only their mean.

    Returns:
      Lines such as `| rna | trained | 0.930 ± 0.005 | ...`; figures are the mean over seeds ± half the 95% interval.
    """
    results = _several(results)
    columns = _columns(results[0].rows)
    header = ["cells", "held out", "method", *(_column_name(*c) for c in columns)]
    body = []
    for result in results:
        for held_out in _held_out(result) if by_batch else [MEAN_OVER_BATCHES]:
            for method in dict.fromkeys(row.method for row in result.rows):
                figures = [result.row(method, *column, held_out) for column in columns]
                body.append(
                    [modality_name(result.modality), _batch_name(result, held_out), method, *map(_figure, figures)]
                )
    return markdown_table(header, body)


def render_differences(results: ProbeResult | Sequence[ProbeResult]) -> str:
    """A markdown table of the paired differences: over seeds (±) and over test cells (the bracket), with a verdict.

    What is worse stands first.
    """
    header = ["cells", "difference", "score", "verdict", "over seeds", "over test cells"]
    rows = [
        (modality_name(result.modality), row)
        for result in _several(results)
        for row in result.differences
        if row.held_out == MEAN_OVER_BATCHES
    ]
    body = [
        [
            cells,
            f"{row.method} - {row.other}",
            _column_name(row.probe, row.metric),
            row.verdict,
            _signed(row),
            f"[{row.low:+.3f}, {row.high:+.3f}]",
        ]
        for cells, row in sorted(rows, key=lambda pair: list(_VERDICTS).index(pair[1].verdict))
    ]
    return markdown_table(header, body)


def summary_sentences(results: ProbeResult | Sequence[ProbeResult]) -> list[str]:
    """One plain sentence per comparison with its verdict on every score; those with something worse stand first."""
    sentences = []
    for result in _several(results):
        of_pair: dict[tuple[str, str], dict[str, list[str]]] = {}
        for row in result.differences:
            if row.held_out == MEAN_OVER_BATCHES:
                said = of_pair.setdefault((row.method, row.other), {verdict: [] for verdict in _VERDICTS})
                said[row.verdict].append(_score_in_words(result, row))
        for (method, other), said in of_pair.items():
            parts = [f"{_VERDICTS[verdict]} by {', '.join(scores)}" for verdict, scores in said.items() if scores]
            worst = next(place for place, scores in enumerate(said.values()) if scores)
            name = _capital(modality_name(result.modality))
            sentences.append((worst, f"{name} cells: compared with {other}, {method} is {'; '.join(parts)}."))
    return [sentence for _, sentence in sorted(sentences, key=lambda pair: pair[0])]


# verdict -> how a sentence says it; in the order of importance
_VERDICTS = {"worse": "worse", "no clear difference": "not clearly different", "better": "better"}


def _score_in_words(result: ProbeResult, row: DifferenceRow) -> str:
    first, second = (result.row(name, row.probe, row.metric).mean for name in (row.method, row.other))
    return f"{_column_name(row.probe, row.metric)} ({first:.3f} against {second:.3f})"


def method_notes(results: ProbeResult | Sequence[ProbeResult]) -> list[str]:
    """How the figures were made and what to keep in mind: protocol, absent classes, unlabelled cells, convergence."""
    results = _several(results)
    settings = results[0].settings
    notes = [
        f"Each held-out part is tested in turn; a probe trains on {settings.train_fraction:.0%} of the cells of "
        f"each class of the other parts, drawn anew for each of {settings.num_seeds} seeds, and is tested "
        "on all labelled cells of the held-out part. Means count each part equally.",
        "± is half the 95% Student-t interval over seeds. It holds the draw of training cells and of the embedding "
        "(token sampling, initialisation), not the pre-training run itself, which was done once.",
        "Differences are paired: same cells, same draws. The bracket is a 95% bootstrap interval over test cells. A "
        "verdict needs both intervals to leave zero out; with one seed, that over test cells.",
        f"{_capital(LINEAR_PATH_ALONE)}: the same model without its transformer, a projection of component scores. The "
        "difference to it is what the transformer adds.",
        "Linear probe: logistic regression, every embedding scaled by one number (not dimension by dimension), C from "
        f"{', '.join(f'{c:g}' for c in settings.c_grid)} by accuracy inside the training batches. kNN: "
        f"k = {settings.knn_neighbours}, cosine about the training mean, fixed.",
        "Macro-F1 averages over the classes that occur among the test cells.",
    ]
    for result in results:
        name = _capital(modality_name(result.modality))
        widths = ", ".join(f"{m} {d}" for m, d in result.dimensions.items())
        notes.append(f"{name}: {len(result.classes)} classes; dimensions: {widths}.")
        if result.split == AT_RANDOM:
            notes.append(
                f"{name}: these cells have no two technical batches, so {len(result.folds)} random parts of each class "
                "are held out. That is easier than a batch never seen: what a batch shares is on both sides."
            )
        if result.num_unlabelled:
            notes.append(f"{name}: {result.num_unlabelled} cells without a label were left out.")
        for fold in result.folds:
            if fold.absent_classes:
                absent = ", ".join(f"{label} ({number} cells)" for label, number in fold.absent_classes.items())
                notes.append(
                    f"{name}: {fold.held_out} holds classes that no other part has: {absent}. "
                    "They are counted as errors."
                )
        fits, highest = result.fits, settings.c_grid[-1]
        if fits.unconverged_choosing or fits.unconverged_final:
            notes.append(
                f"{name}: {fits.unconverged_choosing} of the fits that chose C and {fits.unconverged_final} "
                f"final fits, of {fits.total} in all, stopped at {settings.max_iter} iterations unconverged."
            )
        for method, chosen in result.chosen_c.items():
            at_edge = sum(c == highest for c in chosen)
            if at_edge > len(chosen) / 2:
                notes.append(
                    f"{name}: {method} chose the largest C ({highest:g}) in {at_edge} of {len(chosen)} fits"
                    "; less regularisation might suit it better still."
                )
    return notes


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _several(results: ProbeResult | Sequence[ProbeResult]) -> list[ProbeResult]:
    several = [results] if isinstance(results, ProbeResult) else list(results)
    if not several:
        raise ValueError("there is no probe result to write down")
    return several


def _columns(rows: Iterable[ProbeRow]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.probe, row.metric) for row in rows))


def _column_name(probe: str, metric: str) -> str:
    return f"{_PROBE_NAMES.get(probe, probe)} {_METRIC_NAMES.get(metric, metric)}"


def _held_out(result: ProbeResult) -> list[str]:
    return list(dict.fromkeys(row.held_out for row in result.rows))


def _batch_name(result: ProbeResult, held_out: str) -> str:
    parts = " random parts" if result.split == AT_RANDOM else ""
    return f"mean of {len(result.folds)}{parts}" if held_out == MEAN_OVER_BATCHES else held_out


def _figure(row: ProbeRow) -> str:
    return f"{row.mean:.3f}" if math.isnan(row.half_width) else f"{row.mean:.3f} ± {row.half_width:.3f}"


def _signed(row: DifferenceRow) -> str:
    spread = "(one seed)" if math.isnan(row.half_width) else f"± {row.half_width:.3f}"
    return f"{row.mean:+.3f} {spread}"
