"""README.md and docs/: every command can be given, every Python example refers to what exists, the tutorials run.

Commands are parsed, not run, but for those of the tutorials; a test runs those notebooks. What cannot be parsed,
because it stands for something else, is listed here with its reason.
"""

import ast
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from conftest import REPOSITORY, scmbert_ok

import scmbert_jax
from scmbert_jax import cli
from scmbert_jax.commands.plan import MakePlan
from scmbert_jax.commands.train import Pretrain
from scmbert_jax.errors import ConfigError
from scmbert_jax.experiment_files import experiment_names, load_any_experiment

NOTEBOOKS = sorted((REPOSITORY / "docs" / "tutorials").glob("*.ipynb"))
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "tpu_scripts" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *NOTEBOOKS,
]
NO_COMMAND = {
    "scmbert VERB --help": "stands for every verb",
    "scmbert corpus build --unpaired": "an option in a sentence, without the files it is given with",
    "scmbert pretrain --multihost": "an option in a sentence, without the experiment it is given with",
    "scmbert evaluate purity --data example:pbmc_mosaic --modality rna": "docs/extending.md adds it as an example",
    "scmbert depth cells.h5ad -o depth.csv": "docs/extending.md adds it as an example",
    "scmbert pretrain --log-to": "an option in a sentence, without its value",
}
# Words that stand for one of the reader's own.
STAND_FOR = {"EXPERIMENT": "tiny", "blood:$rung": "blood:small", "$PROCESS_INDEX": "0", "$NUM_PROCESSES": "2"}


def text_of(page: Path) -> str:
    """Of a notebook its cells, without what they print."""
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(page.read_text(encoding="utf-8"))["cells"])


def commands_in(text: str) -> Iterator[str]:
    """Command lines of `scmbert` in a text: lines of their own, after others, or between backticks."""
    whole = re.sub(r"\\\n\s*", "", text)
    for line in whole.splitlines():
        found = re.match(r"\s*(?:Example:\s+|.*? -- '?|.*?&& )??(?:\S*/)?scmbert (?=[a-z])(.*)", line)
        if found and "`" not in line[: found.start(1)]:
            for part in re.split(r"\s(?:&&|\|)\s", "scmbert " + found[1]):
                if part.startswith("scmbert "):
                    yield part
    yield from re.findall(r"(?<!`)`(scmbert [^`\n]+)`(?!`)", whole)


def arguments_of(command: str) -> list[str]:
    words = shlex.split(command.rstrip("'") if command.count("'") % 2 else command, comments=True)
    return [STAND_FOR.get(word, word) for word in words[1:]]


def parse(arguments: list[str]) -> None:
    """As the program does before it runs; whatever it refuses fails the test. A verb alone is a name, not a command."""
    node = cli.VERBS
    for word in arguments:
        node = node.get(word) if isinstance(node, dict) else None
    if node is not None:
        return
    try:
        verb = cli._parse(arguments)
        if isinstance(verb, Pretrain | MakePlan):
            default = load_any_experiment(verb.experiment)
            tyro.cli(type(default), default=default, args=["--help"] if "--help" in arguments else verb.overrides)
    except SystemExit as stop:  # after help, or a refusal
        if stop.code != 0:
            raise ConfigError(f"scmbert {shlex.join(arguments)} is refused") from stop


def verbs(group: dict[str, Any], prefix: str = "scmbert ") -> Iterator[tuple[str, str]]:
    """Each verb and its docstring."""
    for name, verb in group.items():
        if isinstance(verb, dict):
            yield from verbs(verb, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", verb.__doc__


def docstrings() -> Iterator[tuple[str, str]]:
    """The help of every verb and the docstring of every experiment, both of which have commands."""
    yield from verbs(cli.VERBS)
    for name in experiment_names():
        path = REPOSITORY / "experiments" / f"{name}.py"
        yield f"experiments/{name}.py", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@pytest.mark.slow
def test_every_command_on_a_page_or_in_a_help_text_can_be_given():
    texts = {str(page.relative_to(REPOSITORY)): text_of(page) for page in PAGES} | dict(docstrings())
    commands: dict[str, str] = {}
    for where, text in texts.items():
        # A command in a docstring may go over two lines: the second is indented more.
        joined = re.sub(r"(scmbert [^\n]*)\n {10,}(?=--)", r"\1 ", text)
        commands |= {command: where for command in commands_in(joined) if command not in NO_COMMAND}
    assert len(commands) > 100
    refused = []
    for command, where in commands.items():
        try:
            parse(arguments_of(command))
        except Exception as error:  # all that are wrong, in one run
            refused.append(f"{where}: {command}: {error}")
    assert not refused, "\n".join(refused)
    pages = "".join(texts.values())
    assert [command for command in NO_COMMAND if command not in pages] == []


def test_a_command_that_does_not_exist_would_be_found():
    page = "    scmbert corpus build a b.h5ad && scmbert exprot run model\nor `scmbert pretrain tiny --model.embed 8`"
    right, wrong_verb, wrong_field = commands_in(page)
    assert right == "scmbert corpus build a b.h5ad"
    assert (wrong_verb, wrong_field) == ("scmbert exprot run model", "scmbert pretrain tiny --model.embed 8")
    for command in (wrong_verb, wrong_field):
        with pytest.raises(ConfigError):
            parse(arguments_of(command))


def test_every_verb_has_its_help_on_a_page_and_every_public_name_its_entry():
    sections = re.findall(r"^```\{scmbert-help\} (.+)$", (REPOSITORY / "docs" / "commands.md").read_text(), re.M)
    assert [f"scmbert {verb}" for verb in sections] == [verb for verb, _ in verbs(cli.VERBS)]
    entries = re.findall(r"^\.\. auto\w+:: scmbert_jax\.(\w+)$", (REPOSITORY / "docs" / "api.md").read_text(), re.M)
    assert {*scmbert_jax.__all__} - {*entries} == {"__version__"}


def test_every_target_of_make_on_a_page_exists():
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for page in [*PAGES, REPOSITORY / "AGENTS.md"]:
        asked = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", text_of(page), re.M))
        assert asked <= targets, page


def test_every_python_example_on_a_page_uses_what_exists():
    number = 0
    for page in PAGES:
        for example in re.findall(r"^```python\n(.*?)^```", text_of(page), re.M | re.S):
            number += 1
            for node in ast.walk(ast.parse(example)):
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "scmbert_jax":
                    assert hasattr(scmbert_jax, node.attr), f"{page}: scmbert_jax.{node.attr}"
    assert number >= 3


def test_every_link_of_a_page_leads_to_a_file():
    for page in [*PAGES, REPOSITORY / "AGENTS.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", text_of(page)):
            if "://" not in target:
                found = [page.parent / (target + ending) for ending in ("", ".md", ".ipynb")]
                assert any(path.exists() for path in found), f"{page}: {target}"


def test_pages_and_help_texts_have_none_of_the_phrases_at_which_a_stranger_stops():
    phrases = re.compile(r"by turns|\bgoes on\b|\bgo on\b|journey|manieth|for ever\b|worked off|broken off|\blanes?\b")
    sources = [*(REPOSITORY / "scmbert_jax" / "commands").glob("*.py"), REPOSITORY / "scmbert_jax" / "config.py"]
    for page in [*PAGES, *sources]:
        assert phrases.findall(text_of(page)) == [], page


def test_the_first_page_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < 120


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_is_stored_with_its_outputs_and_without_traces_of_a_machine(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run: make notebooks"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt)/\S*", json.dumps(outputs)) == []
    assert all("execution" not in cell["metadata"] for cell in cells), "times of a run: make notebooks leaves them out"


@pytest.mark.nightly
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs(notebook, tmp_path, monkeypatch):
    """Its cells one after another in this process; commands by the entry point of the program."""
    import matplotlib as mpl

    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):  # which a tutorial sets: they are as before afterwards
        monkeypatch.setenv(name, os.environ.get(name, ""))
    namespace: dict = {"__name__": "tutorial"}
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("%%bash"):
            for command in commands_in(source):
                scmbert_ok(*shlex.split(command)[1:])
        elif cell["cell_type"] == "code":
            exec(compile(source, notebook.name, "exec"), namespace)
