"""The report: one file, nothing fetched, everything shown, nothing that data can break."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from scmbert_jax.errors import InputError
from scmbert_jax.evaluation.probe.figures import score_drawing
from scmbert_jax.evaluation.probe.probe import run_probe
from scmbert_jax.evaluation.probe.result import ProbeSettings
from scmbert_jax.evaluation.probe.tables import render_table
from scmbert_jax.evaluation.report.figures import category_styles, loss_panels, scatter
from scmbert_jax.evaluation.report.projection import compute_umap
from scmbert_jax.evaluation.report.report import write_report
from scmbert_jax.text_table import markdown_table
from scmbert_jax.training.goodput import CATEGORIES, Goodput

NASTY = '<script>alert("x")</script> & "CD4" $T_{reg}$'


class Page(HTMLParser):
    """Tags with their attributes, ids, text, and whether every element was closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.text, self.attributes, self._open = [], [], "", [], []
        self.feed(text)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    rng = np.random.default_rng(0)
    types = np.array([NASTY, *(f"type {i}" for i in range(14))])
    codes = rng.integers(0, 15, 450)
    coords = 6 * rng.normal(size=(15, 2))[codes] + rng.normal(size=(450, 2))
    batches = np.array(["b<1>", "b&2", "b3"])[np.arange(450) % 3]
    embedding = np.eye(15)[codes] + 0.1 * rng.normal(size=(450, 15))
    settings = ProbeSettings(num_seeds=2, c_grid=(1.0,), num_resamples=20)
    result = run_probe(
        {"trained": [embedding], "pca": [embedding]}, types[codes], batches, modality="rna", settings=settings
    )
    colours = {"cell type": types[codes], "technical batch": batches}
    return write_report(
        tmp_path_factory.mktemp("run") / "report.html",
        title=f"Report {NASTY}",
        run_info={"command": "scmbert evaluate probe", "commit": "abc123", "versions": {"numpy": NASTY}},
        loss_rows=[{"step": i, "loss": 3 / i, "rna_nll": 1 / i, "rna_cell_nll": 2 / i} for i in range(1, 60)],
        tables=[
            ("Probes", render_table(result)),
            ("Rows", [{"name": NASTY, "value": 0.25}]),
            ("Text", f"as is {NASTY}"),
        ],
        umaps=[(f"RNA, trained {NASTY}", coords, colours), ("RNA, PCA", coords[:, ::-1], colours)],
        notes=[f"Kang 2018, https://example.org/{NASTY}"],
        summary=["trained is better"],
        scores=[score_drawing(result)],
        goodput=Goodput(dict.fromkeys(CATEGORIES, 10.0), wall=70.0, starts=3, steps_again=12, idle=4.0),
    )


def test_the_page_holds_its_parts(report):
    page = Page(report.read_text())
    for heading in ("What was found", "Scores", "The embedding, seen with UMAP", "Pre-training loss", "Provenance"):
        assert heading in page.text
    assert "Where the time of training went" in page.text
    assert "Goodput 14.3% of 0:01:10; started 3x; 12 steps were done again" in page.text
    assert page.tags.count("table") == 3
    assert page.tags.count("figure") == 1 + 4 + 2  # scores; two embeddings x two colourings; loss and RNA
    assert "majority" in page.text
    assert "abc123" in page.text
    assert "linear accuracy" in page.text


def test_every_figure_has_a_picture_and_a_text_for_who_cannot_see_it(report):
    page = Page(report.read_text())
    spoken = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(spoken) == page.tags.count("figure") == len([a for a in page.attributes if a[1:] == ("role", "img")])
    assert any(f"450 cells, RNA, trained {NASTY}, coloured by cell type (15 values)" in text for text in spoken)
    assert any("3 at step 1, 0.0508 at step 59" in text for text in spoken)


def test_the_page_asks_for_nothing_from_anywhere(report):
    text = report.read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "audio", "video"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:image/", "#")), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
    # The only address is the citation in the notes, as plain text.
    assert set(re.findall(r"https?://[^\s<&\"]+", text)) == {"https://example.org/"}
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_text_from_data_is_escaped_wherever_it_goes(report):
    text = report.read_text()
    assert "<script" not in text
    page = Page(text)
    shown = page.text.count(NASTY)
    # twice the title, a row, a block of text, the legend, the notes; twice two captions and what is said of the figures
    assert shown >= 10
    assert "b<1>" in page.text


def test_ids_are_unique_and_references_lead_to_them(report):
    text = report.read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)} <= set(page.ids)


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(tmp_path):
    code = (
        "import sys, numpy as np; from scmbert_jax.evaluation.report.report import write_report;"
        "write_report(sys.argv[1], title='t', run_info={}, loss_rows=[{'step': i, 'loss': 1.0} for i in range(9)],"
        "umaps=[('a', np.random.default_rng(0).normal(size=(50, 2)), {'batch': ['x', 'y'] * 25})])"
    )
    pages = []
    for i in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": i}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / i)], check=True, env=environment)
        pages.append((tmp_path / i).read_bytes())
    assert pages[0] == pages[1]


def test_an_old_report_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="finite coordinates"):
        write_report(path, title="t", run_info={}, umaps=[("a", np.full((3, 2), np.nan), {"batch": ["x"] * 3})])
    assert path.read_text() == "old"
    write_report(path, title="t", run_info={})
    assert "<h1>t</h1>" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_fifteen_categories_differ_in_colour_or_marker_and_panels_share_them():
    styles = category_styles([np.array([f"c{i:02}" for i in range(15)]), np.array(["c03", "c20"])])
    assert len({(s.colour, s.marker) for s in styles.values()}) == len(styles) == 16
    assert [s.number for s in styles.values()] == list(range(1, 17))


def test_groups_carry_their_number_and_mixed_batches_do_not():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 400)
    coords = 20 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[codes] + rng.normal(size=(400, 2))
    groups, mixed = np.array(list("abcd"))[codes], np.array(list("xyz"))[rng.integers(0, 3, 400)]
    assert scatter(coords, groups, category_styles([groups]), alt="a").count("number-") == 4
    assert scatter(coords, mixed, category_styles([mixed]), alt="a").count("number-") == 0


def test_a_step_logged_twice_counts_once_and_non_finite_values_are_said():
    rows = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 5.0}, {"event": "resumed"}, {"step": 2, "loss": 4.0}]
    (panel,) = loss_panels([*rows, {"step": 3, "loss": float("nan")}])
    assert "9 at step 1, 4 at step 2 (1 not finite, left out)" in panel.svg


def test_each_modality_gets_its_own_panel():
    titles = [
        p.title for p in loss_panels([{"step": 1, "loss": 1.0, "rna_nll": 1.0, "rna_cell_nll": 2.0, "atac_nll": 1.0}])
    ]
    assert [title.split(":")[0] for title in titles] == ["Loss, all objectives", "rna", "atac"]


def test_each_objective_has_its_own_loss_and_panels():
    row = {"step": 1, "loss": 1.5, "masked_modeling/loss": 1.0, "masked_modeling/rna_nll": 1.0}
    alone, *_ = loss_panels([row])
    assert "masked modeling: " not in alone.svg
    panels = loss_panels([row, {"step": 2, "loss": None, "contrastive_alignment/steps": 1}])
    assert [panel.title.split(":")[0] for panel in panels] == ["Loss, all objectives", "masked modeling, rna"]
    both, *_ = loss_panels([{**row, "contrastive_alignment/loss": 2.0}])
    assert "masked modeling: 1 at step 1" in both.svg
    assert "contrastive alignment: 2 at step 1" in both.svg


def test_a_bar_in_a_cell_survives_the_way_through_markdown(tmp_path):
    table = markdown_table(["a", "b"], [["x|y", "1"]])
    path = write_report(tmp_path / "r.html", title="t", run_info={}, tables=[("h", table)])
    assert "<td>x|y</td>" in path.read_text()


def test_a_long_table_is_shown_like_any_other(tmp_path):
    rows = [["score", "verdict"], *([str(i), "worse"] for i in range(40))]
    path = write_report(tmp_path / "r.html", title="t", run_info={}, tables=[("Differences", rows)])
    assert "<details" not in path.read_text()


@pytest.mark.slow  # umap-learn compiles itself anew in each process
def test_umap_repeats_itself_separates_groups_and_refuses_what_it_cannot_draw():
    rng = np.random.default_rng(0)
    codes = np.arange(120) % 2
    embedding = 5 * np.eye(10)[codes] + 0.3 * rng.normal(size=(120, 10))
    first, second = compute_umap(embedding, 3), compute_umap(embedding, 3)
    assert first.shape == (120, 2)
    np.testing.assert_array_equal(first, second)
    centres = np.stack([first[codes == c].mean(0) for c in (0, 1)])
    spread = max(np.linalg.norm(first[codes == c] - centres[c], axis=1).mean() for c in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    with pytest.raises(InputError, match=r"expected \[n, d\] with n >= 17"):
        compute_umap(embedding[:10], 0)
    embedding[4] = np.inf
    with pytest.raises(InputError, match="first at row 4"):
        compute_umap(embedding, 0)


@pytest.mark.slow
def test_umap_is_imported_without_tensorflow_and_leaves_it_importable():
    code = (
        "import sys; from scmbert_jax.evaluation.report.projection import _import_umap; _import_umap();"
        "assert 'tensorflow' not in sys.modules, 'tensorflow was loaded or is still hidden'"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 480])
def test_a_browser_shows_the_page_without_scripts(report, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium found; the page was not looked at in a browser")
    import matplotlib.image

    picture = tmp_path / "page.png"
    common = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/p",
    ]
    shot = [*common, f"--screenshot={picture}", f"--window-size={width},3000", report.as_uri()]
    subprocess.run(shot, check=True, capture_output=True, timeout=120)
    pixels = matplotlib.image.imread(picture)[..., :3]  # [height, width, 3]
    assert pixels.shape == (3000, width, 3)
    # Not blank anywhere: each fifth of the page holds ink, and the page as a whole holds the palette's blue.
    for part in np.array_split(pixels, 5):
        assert (part.min(-1) < 0.5).mean() > 0.001
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (np.abs(pixels - blue).max(-1) < 0.02).sum() > 50
