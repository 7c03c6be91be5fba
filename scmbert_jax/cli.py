"""The command line: finds the verb of a command, and turns errors into messages and exit codes."""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro

from scmbert_jax import __version__
from scmbert_jax.commands.align import LabelTransfer, MakePseudoPairs, Match
from scmbert_jax.commands.bench import (
    BenchBuild,
    BenchFavor,
    BenchInput,
    BenchObjectives,
    BenchPadding,
    BenchStep,
    BenchStorage,
)
from scmbert_jax.commands.data import CorpusBuild, CorpusCopy, CorpusInfo, CorpusOverlap, CorpusVerify, Doctor
from scmbert_jax.commands.evaluate import EvaluateProbe, EvaluateTranslation
from scmbert_jax.commands.evaluate_alignment import EvaluateIntegration, EvaluateMatching
from scmbert_jax.commands.plan import MakePlan
from scmbert_jax.commands.terminal import say
from scmbert_jax.commands.train import Export, Pretrain
from scmbert_jax.commands.use import Embed, Translate
from scmbert_jax.compiled_programs import keep_compiled_programs
from scmbert_jax.errors import ConfigError, UserError

VERBS: dict[str, Any] = {
    "doctor": Doctor,
    "corpus": {
        "build": CorpusBuild,
        "info": CorpusInfo,
        "overlap": CorpusOverlap,
        "verify": CorpusVerify,
        "copy": CorpusCopy,
    },
    "pretrain": Pretrain,
    "plan": MakePlan,
    "export": Export,
    "embed": Embed,
    "translate": Translate,
    "match": Match,
    "label-transfer": LabelTransfer,
    "pseudo-pairs": MakePseudoPairs,
    "evaluate": {
        "probe": EvaluateProbe,
        "translation": EvaluateTranslation,
        "matching": EvaluateMatching,
        "integration": EvaluateIntegration,
    },
    "bench": {
        "step": BenchStep,
        "padding": BenchPadding,
        "objectives": BenchObjectives,
        "build": BenchBuild,
        "input": BenchInput,
        "storage": BenchStorage,
        "favor": BenchFavor,
    },
}


def _group_help(prog: str, group: dict[str, Any]) -> str:
    lines = [f"usage: {prog} VERB ...    ({prog} VERB --help says more, with an example)", ""]
    for name, verb in group.items():
        if isinstance(verb, dict):
            lines += [f"  {name + ' ' + inner:18} {_summary(cls)}" for inner, cls in verb.items()]
        else:
            lines.append(f"  {name:18} {_summary(verb)}")
    if prog == "scmbert":
        lines += ["", "  --debug            show the traceback of an error", "  --version", ""]
        lines += ["Compiled programs are kept for the next command below ~/.cache/scmbert/compiled, or where"]
        lines += ["$JAX_COMPILATION_CACHE_DIR says; SCMBERT_COMPILATION_CACHE=off keeps none."]
    return "\n".join(lines)


def _summary(verb: type) -> str:
    return (verb.__doc__ or "").splitlines()[0]


def _parse(arguments: list[str]) -> Any:
    """The verb with its arguments. Prints help and exits for --help; raises `ConfigError` for an unknown verb."""
    node, prog = VERBS, "scmbert"
    while isinstance(node, dict):
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_group_help(prog, node))
            raise SystemExit(0 if arguments else 2)
        word, *arguments = arguments
        if word not in node:
            near = difflib.get_close_matches(word, node, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{prog} {word}: no such verb; there are {', '.join(node)}.{hint}")
        node, prog = node[word], f"{prog} {word}"
    if node in (Pretrain, MakePlan):
        verb, overrides = tyro.cli(node, args=arguments, prog=prog, return_unknown_args=True)
        return replace(verb, overrides=tuple(overrides))
    if node is CorpusBuild and "--" in arguments:
        place = arguments.index("--")
        verb = tyro.cli(CorpusBuild, args=arguments[:place], prog=prog)
        return replace(verb, beam_options=tuple(arguments[place + 1 :]))
    return tyro.cli(node, args=arguments, prog=prog)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `scmbert`; the exit code. Errors a user can cause are printed without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(__version__)
        return 0
    debug = "--debug" in arguments
    keep_compiled_programs()
    try:
        return _parse([argument for argument in arguments if argument != "--debug"]).run()
    except UserError as error:
        if debug:
            raise
        say(f"scmbert: {error}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        say("scmbert: interrupted")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
