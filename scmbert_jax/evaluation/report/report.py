"""One HTML file that shows a run: scores, pictures of the embedding, the loss, and where it all came from.

Self-contained: figures and style are inside, there is no script, and a content security policy forbids the page to
fetch anything. All text that comes from data (cell types, batches, paths) is escaped.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from scmbert_jax.evaluation.report.figures import NUMBER_ID, Style, category_styles, loss_panels, scatter
from scmbert_jax.evaluation.report.style import STYLE
from scmbert_jax.tasks.whole_file import written_whole
from scmbert_jax.text_table import markdown_rows
from scmbert_jax.training.goodput import Goodput

Umap = tuple[str, np.ndarray, Mapping[str, Sequence[str]]]
Drawing = tuple[str, str, str]
Table = tuple[str, str | Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]]]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    run_info: Mapping[str, Any],
    loss_rows: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[Table] = (),
    umaps: Sequence[Umap] = (),
    figures: Sequence[Drawing] = (),
    notes: Sequence[str] = (),
    summary: Sequence[str] = (),
    scores: Sequence[Drawing] = (),
    log_steps: bool = False,
    goodput: Goodput | None = None,
) -> Path:
    """Writes the report; an older one at `path` is replaced only when the new one is whole.

    Args:
      path: the .html file; its folder exists.
      title: heading of the page.
      run_info: provenance, name -> value (versions, commit, corpus fingerprint, command). A dict or a list as value
        becomes a fold-out block of JSON.
      loss_rows: rows of metrics.jsonl (`step`, `loss`, `rna_nll`, ...); rows without a loss are passed over.
      tables: (heading, table): a markdown table as text, other text (kept as it is), a list of dicts, or a list of
        rows of which the first is the header.
      umaps: (title, float [n, 2], {colour name: str [n]}). Give the model and its baseline one after the other: they
        stand side by side and share the legend of each colour name.
      figures: (heading, inline SVG, caption); figures of one heading stand side by side.
      notes: sentences on what to keep in mind.
      summary: sentences on top of the page.
      scores: figures as `figures`, above the tables.
      log_steps: logarithmic step axis.
      goodput: where the time of training went.

    Returns:
      The path of the file.
    """
    path = Path(path)
    sections = [
        _list_section("What was found", summary),
        _scores_section(tables, scores),
        _umap_section(umaps),
        _drawings_section(figures),
        _loss_section(loss_rows, log_steps),
        _time_section(goodput),
        _list_section("How to read this", notes),
        _provenance_section(run_info),
    ]
    page = _PAGE.format(title=escape(title), style=STYLE, body="\n".join(s for s in sections if s))
    text = page.encode("utf-8", "replace")  # names from files may hold halves of characters
    with written_whole(path, len(text)) as partial:
        partial.write_bytes(text)
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1></header>
{body}
</main>
</body>
</html>
"""


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def _list_section(heading: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return _section(heading, f"<ul>\n{items}\n</ul>")


def _scores_section(tables: Sequence[Table], scores: Sequence[Drawing]) -> str:
    parts = [f"<h3>{escape(heading)}</h3>\n{_figure(svg, caption)}" for heading, svg, caption in scores]
    parts += [f"<h3>{escape(heading)}</h3>\n{_table(content)}" for heading, content in tables]
    return _section("Scores", "\n".join(parts)) if parts else ""


def _umap_section(umaps: Sequence[Umap]) -> str:
    colour_names = list(dict.fromkeys(name for _, _, colourings in umaps for name in colourings))
    parts = []
    for colour_name in colour_names:
        shown = [(title, coords, c[colour_name]) for title, coords, c in umaps if colour_name in c]
        styles = category_styles([np.asarray(labels) for _, _, labels in shown])
        cards = "\n".join(
            _figure(
                scatter(
                    coords,
                    np.asarray(labels),
                    styles,
                    alt=f"UMAP of {len(labels)} cells, {title}, coloured by {colour_name} ({len(set(labels))} values)",
                ),
                title,
            )
            for title, coords, labels in shown
        )
        numbered = NUMBER_ID in cards
        legend = _legend(styles, [labels for _, _, labels in shown], numbered)
        body = f'{legend}\n<div class="pair">\n{cards}\n</div>'
        parts.append(f"<h3>Coloured by {escape(colour_name)}</h3>\n{body}")
    if not parts:
        return ""
    lead = "<p>Each point is a cell; cells with similar embeddings lie close. Axes and far distances mean nothing.</p>"
    return _section("The embedding, seen with UMAP", lead + "\n" + "\n".join(parts))


def _drawings_section(drawings: Sequence[Drawing]) -> str:
    parts = []
    for heading in dict.fromkeys(heading for heading, _, _ in drawings):
        cards = "\n".join(_figure(svg, caption) for title, svg, caption in drawings if title == heading)
        parts.append(f'<h3>{escape(heading)}</h3>\n<div class="pair">\n{cards}\n</div>')
    return _section("Figures", "\n".join(parts)) if parts else ""


def _legend(styles: Mapping[str, Style], shown: Sequence[Sequence[str]], numbered: bool) -> str:
    """Swatch, number (where the panels show numbers) and name of each category, with its cells in the fullest panel."""
    most = {name: max(sum(str(v) == name for v in labels) for labels in shown) for name in styles}
    items = "\n".join(
        f"<li>{style.swatch()}{f'<b>{style.number}</b> ' if numbered else ''}{escape(name)} "
        f'<span class="count">{most[name]:,}</span></li>'
        for name, style in styles.items()
    )
    return f'<ul class="legend" aria-label="legend: name and number of cells">\n{items}\n</ul>'


def _loss_section(loss_rows: Sequence[Mapping[str, Any]], log_steps: bool) -> str:
    panels = loss_panels(loss_rows, log_steps=log_steps)
    if not panels:
        return ""
    cards = "\n".join(_figure(panel.svg, panel.title) for panel in panels)
    lead = "<p>Thin: as logged. Thick: running mean. Lower is better; modalities have scales of their own.</p>"
    return _section("Pre-training loss", f'{lead}\n<div class="pair">\n{cards}\n</div>')


def _time_section(goodput: Goodput | None) -> str:
    if goodput is None:
        return ""
    sentence = goodput.sentence()
    lead = f"<p>{escape(sentence[0].upper() + sentence[1:])}.</p>"
    return _section("Where the time of training went", f"{lead}\n{_table(goodput.table())}")


def _provenance_section(run_info: Mapping[str, Any]) -> str:
    if not run_info:
        return ""
    items = []
    for name, value in run_info.items():
        if isinstance(value, Mapping | list | tuple):
            block = escape(json.dumps(value, indent=2, default=str, ensure_ascii=False))
            shown = f"<details><summary>show</summary><pre>{block}</pre></details>"
        else:
            shown = f"<code>{escape(str(value))}</code>"
        items.append(f"<dt>{escape(str(name))}</dt><dd>{shown}</dd>")
    return _section("Provenance", "<dl>\n" + "\n".join(items) + "\n</dl>")


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _rows(content: Sequence[Any]) -> list[list[str]]:
    """A list of dicts or of rows as text, header first."""
    if not all(isinstance(row, Mapping) for row in content):
        return [[_cell(value) for value in row] for row in content]
    header = list(dict.fromkeys(key for row in content for key in row))
    return [header, *([_cell(row.get(key, "")) for key in header] for row in content)]


def _table(content: str | Sequence[Any]) -> str:
    rows = markdown_rows(content) if isinstance(content, str) else _rows(content)
    if rows is None:
        return f"<pre>{escape(str(content))}</pre>"
    if len(rows) < 2:
        return "<p>No rows.</p>"
    header, body = rows[0], rows[1:]
    numeric = [all(_is_number(row[i]) for row in body) for i in range(len(header))]
    # A line where the first column changes keeps the groups apart.
    groups = [row[0] != before[0] for before, row in zip([body[0], *body], body, strict=False)]
    lines = [_table_row("td", row, numeric, starts) for row, starts in zip(body, groups, strict=True)]
    head = _table_row("th", header, numeric)
    inner = f"<thead>{head}</thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>"
    return f'<div class="scroll" tabindex="0"><table>\n{inner}\n</table></div>'


def _table_row(tag: str, cells: Sequence[Any], numeric: Sequence[bool], starts_group: bool = False) -> str:
    marks = [' class="number"' if is_number else "" for is_number in numeric]
    inside = "".join(f"<{tag}{m}>{escape(str(c))}</{tag}>" for c, m in zip(cells, marks, strict=True))
    return f'<tr class="group">{inside}</tr>' if starts_group else f"<tr>{inside}</tr>"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(cell: str) -> bool:
    """Whether a cell begins as a number does: `0.93 ± 0.01`, `+0.1`, `[-0.1, 0.2]`, `1,200`, `-`."""
    # Of 60 characters at most: the pattern takes the square of a length.
    number = r"\[?[-+]?(\d[\d,]*\.?\d*|\.\d+|nan)(e[-+]?\d+)?[^A-Za-z]*|-|"
    return len(cell) <= 60 and re.fullmatch(number, cell) is not None
