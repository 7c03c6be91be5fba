"""The command line: finds the verb of a command, and turns errors into messages and exit codes."""

import contextlib
import difflib
import io
import os
import select
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import tyro

from scmbert_jax.commands.align import LabelTransfer, MakePseudoPairs, Match
from scmbert_jax.commands.annotate import AnnotateFit, AnnotateOnce, AnnotatePredict
from scmbert_jax.commands.bench import (
    BenchAnnotation,
    BenchBuild,
    BenchFavor,
    BenchGraph,
    BenchInput,
    BenchMotifs,
    BenchObjectives,
    BenchPadding,
    BenchSequence,
    BenchStep,
    BenchStorage,
)
from scmbert_jax.commands.data import (
    CorpusBuild,
    CorpusCopy,
    CorpusGeneEmbeddings,
    CorpusInfo,
    CorpusOverlap,
    CorpusVerify,
    Doctor,
)
from scmbert_jax.commands.evaluate import EvaluateLadder, EvaluatePretraining, EvaluateProbe, EvaluateTranslation
from scmbert_jax.commands.evaluate_alignment import EvaluateIntegration, EvaluateMatching
from scmbert_jax.commands.evaluate_annotation import EvaluateAnnotation
from scmbert_jax.commands.evaluate_networks import EvaluateNetworks
from scmbert_jax.commands.evaluate_regulatory import EvaluateRegulatory
from scmbert_jax.commands.exchange import ExportTorch, ImportModel
from scmbert_jax.commands.explain import Explain
from scmbert_jax.commands.failures_told_once import tell_failures_once
from scmbert_jax.commands.genome import CorpusGenome
from scmbert_jax.commands.integrate import Integrate
from scmbert_jax.commands.networks import NetworksInfer
from scmbert_jax.commands.number_limits import check_numbers
from scmbert_jax.commands.perturb import Perturb
from scmbert_jax.commands.plan import MakePlan
from scmbert_jax.commands.regulate import (
    RegulateAttribute,
    RegulateEmbedRegions,
    RegulateFit,
    RegulatePredict,
    RegulateScoreVariants,
)
from scmbert_jax.commands.train import Export, Pretrain
from scmbert_jax.commands.use import Embed, Translate
from scmbert_jax.compiled_programs import keep_compiled_programs
from scmbert_jax.errors import ConfigError, ScmbertWarning, UserError, as_user_error
from scmbert_jax.plain_text import say
from scmbert_jax.version import VERSION

VERBS: dict[str, Any] = {
    "doctor": Doctor,
    "corpus": {
        "build": CorpusBuild,
        "info": CorpusInfo,
        "overlap": CorpusOverlap,
        "verify": CorpusVerify,
        "copy": CorpusCopy,
        "gene-embeddings": CorpusGeneEmbeddings,
        "genome": CorpusGenome,
    },
    "pretrain": Pretrain,
    "plan": MakePlan,
    "export": Export,
    "import": ImportModel,
    "export-torch": ExportTorch,
    "embed": Embed,
    "translate": Translate,
    "match": Match,
    "label-transfer": LabelTransfer,
    "pseudo-pairs": MakePseudoPairs,
    "integrate": Integrate,
    "annotate": {"fit": AnnotateFit, "predict": AnnotatePredict, "once": AnnotateOnce},
    "explain": Explain,
    "perturb": Perturb,
    "networks": {"infer": NetworksInfer},
    "regulate": {
        "fit": RegulateFit,
        "predict": RegulatePredict,
        "score-variants": RegulateScoreVariants,
        "embed-regions": RegulateEmbedRegions,
        "attribute": RegulateAttribute,
    },
    "evaluate": {
        "pretraining": EvaluatePretraining,
        "probe": EvaluateProbe,
        "annotation": EvaluateAnnotation,
        "translation": EvaluateTranslation,
        "matching": EvaluateMatching,
        "integration": EvaluateIntegration,
        "networks": EvaluateNetworks,
        "regulatory": EvaluateRegulatory,
        "ladder": EvaluateLadder,
    },
    "bench": {
        "step": BenchStep,
        "padding": BenchPadding,
        "objectives": BenchObjectives,
        "build": BenchBuild,
        "input": BenchInput,
        "storage": BenchStorage,
        "favor": BenchFavor,
        "annotation": BenchAnnotation,
        "motifs": BenchMotifs,
        "sequence": BenchSequence,
        "graph": BenchGraph,
    },
}

# An option as it was called before -> its name.
RENAMED = {
    "--turns": "--rounds",
    "--steps-per-turn": "--steps-per-round",
    "--peer-turns": "--peer-rounds",
    "--max-share": "--max-fraction",
    "--keep-share": "--keep-fraction",
}

# What a group does where options follow its name instead of a verb.
WITHOUT_A_VERB = {"scmbert annotate": "once"}


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
        if word.startswith("-") and prog in WITHOUT_A_VERB:
            word, arguments = WITHOUT_A_VERB[prog], [word, *arguments]
        if word not in node:
            near = difflib.get_close_matches(word, node, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{prog} {word}: no such verb; there are {', '.join(node)}.{hint}")
        node, prog = node[word], f"{prog} {word}"
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if option in RENAMED:
            raise ConfigError(f"{prog} {option}: this option is called {RENAMED[option]} now.")
    if node in (Pretrain, MakePlan):
        verb, overrides = tyro.cli(node, args=arguments, prog=prog, return_unknown_args=True)
        return replace(verb, overrides=tuple(overrides))
    if node is CorpusBuild and "--" in arguments:
        place = arguments.index("--")
        verb = tyro.cli(CorpusBuild, args=arguments[:place], prog=prog)
        return replace(verb, beam_options=tuple(arguments[place + 1 :]))
    return tyro.cli(node, args=arguments, prog=prog)


def _say_warning(
    said: set[str], otherwise: Callable[..., None], message: Any, category: type[Warning], *where: Any
) -> None:
    """A `ScmbertWarning` as a line, once; any other as before."""
    if not issubclass(category, ScmbertWarning):
        otherwise(message, category, *where)
    elif str(message) not in said:
        said.add(str(message))
        say(f"scmbert: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `scmbert`; the exit code. Errors a user can cause are printed without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(VERSION)
        return 0
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not of UTF-8 shows what it can
    keep_compiled_programs()
    tell_failures_once()
    try:
        _check_encoding(arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", ScmbertWarning)
                warnings.showwarning = partial(_say_warning, set(), warnings.showwarning)
                verb = _parse([argument for argument in arguments if argument != "--debug"])
                check_numbers(verb)
                return verb.run()
        finally:
            sys.stdout.flush()  # what is still to be written fails here, where it is told, not while Python exits
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # The reader of a pipe (head, less) has seen enough. Python would complain once more while it exits.
        _discard_output()
        return 141
    except KeyboardInterrupt:
        say("scmbert: interrupted")
        return 130
    except Exception as error:
        told = error if isinstance(error, UserError) else as_user_error(error)
        if debug or told is None:
            raise
        say(f"scmbert: {told}")
        if isinstance(error, OSError):
            _discard_output()
        return told.exit_code


def _check_encoding(arguments: list[str]) -> None:
    """Raises `ConfigError` for an argument that is not UTF-8: it could not be written into a corpus or a report."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            raise ConfigError(
                f"{shown}: this name is not UTF-8; rename the file or folder (mv), then repeat."
            ) from None


def _reader_is_gone() -> bool:
    """Whether it is the reader of standard output that closed a pipe, and not a process that this one talks to."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, ValueError):  # no file, as in tests
        return True
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_output() -> None:
    """What standard output could not take is thrown away, so that Python does not try again while it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
