"""How the documentation is built: `make docs`, or `sphinx-build -W -n docs build/docs`. Nothing is downloaded."""

import contextlib
import io
import os
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

# Before anything of it is imported: no accelerator is needed, and help texts are as wide as a page.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["COLUMNS"] = "96"

from scmbert_jax import __version__, cli

HERE = Path(__file__).parent

project = "scmbert_jax"
author = "the authors of scmbert_jax"
project_copyright = author
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"scmbert_jax {release}"
html_static_path = ["static"]
html_css_files = ["wide_tables.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False

myst_heading_anchors = 3
# Notebooks are stored with their outputs, and a test runs them (tests/docs): a build runs none of them.
nb_execution_mode = "off"
nb_merge_streams = True

# Docstrings are plain text: what stands between backticks is code.
default_role = "code"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

# A reference that a page makes must resolve. Types and exceptions of signatures need no entry of their own.
nitpicky = True
nitpick_ignore_regex = [(r"py:(class|exc)", r".*"), (r"py:obj", r"typing\..*")]


def _apart(found: re.Match) -> str:
    """`Corpus`es: for docutils, what follows a backtick at once is no end of a word."""
    return found[1] + (f"\\ {found[2]}" if found[2] else "")


def _plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings as docutils reads them: what is indented below a sentence is an example, to be shown as it is."""
    lines[:] = [re.sub(r"(`[^`]+`)(\w?)", _apart, line) for line in lines]
    for place in range(len(lines) - 1, -1, -1):
        starts = re.match(r"    \S", lines[place]) and place > 0 and not lines[place - 1].strip()
        before = next((line for line in reversed(lines[:place]) if line.strip()), "")
        if starts and before[:1].strip() and not re.fullmatch(r"[A-Z]\w+:", before):
            lines[place:place] = ["::", ""]


class CommandHelp(Directive):
    """`{scmbert-help} corpus build`: what `scmbert corpus build --help` prints."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main([*self.arguments[0].split(), "--help"])
        plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
        return [nodes.literal_block(plain, plain, language="text")]


def setup(app) -> None:
    # Before napoleon, which has the priority 500.
    app.connect("autodoc-process-docstring", _plain_text, priority=400)
    app.add_directive("scmbert-help", CommandHelp)
