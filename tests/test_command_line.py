"""The command line as a surface: help, unknown words, JSON on stdout, exit codes, tracebacks only when asked for."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, scmbert, scmbert_ok

from scmbert_jax import __version__, cli
from scmbert_jax.commands.terminal import fitted
from scmbert_jax.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    EvaluationError,
    InputError,
    OutputError,
    TrainingError,
)
from scmbert_jax.text_table import markdown_table
from scmbert_jax.training import loop

VERBS = [
    *("doctor", "corpus build", "corpus info", "corpus overlap", "corpus verify", "corpus copy"),
    *("corpus gene-embeddings", "corpus genome", "pretrain", "plan", "export", "import", "export-torch"),
    *("embed", "translate", "match", "label-transfer", "pseudo-pairs", "integrate"),
    *("annotate fit", "annotate predict", "annotate once", "explain", "perturb", "networks infer"),
    *("regulate fit", "regulate predict", "regulate score-variants", "regulate embed-regions", "regulate attribute"),
    *("evaluate pretraining", "evaluate probe", "evaluate annotation", "evaluate translation", "evaluate matching"),
    *("evaluate integration", "evaluate networks", "evaluate regulatory", "evaluate ladder"),
    *("bench step", "bench padding", "bench objectives", "bench build", "bench input", "bench storage", "bench favor"),
    *("bench annotation", "bench motifs", "bench sequence", "bench graph"),
]


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_list_of_verbs_here_is_that_of_the_program():
    def words(group, prefix=""):
        for name, verb in group.items():
            yield from words(verb, f"{prefix}{name} ") if isinstance(verb, dict) else [prefix + name]

    assert list(words(cli.VERBS)) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb):
    text = scmbert_ok(*verb.split(), "--help")
    assert f"Example:  scmbert {verb}" in text
    needs_no_file = verb.startswith("bench ")  # synthetic cells
    assert needs_no_file or "(required)" in text or "FILE..." in text or re.search(r"default:[│\s]*example:", text)


def test_the_first_help_lists_every_verb():
    text = scmbert_ok("--help")
    assert all(verb in text for verb in VERBS)
    assert scmbert().code == 2  # nothing asked for is no success, but help is shown
    assert scmbert().out == text


def test_the_version_is_that_of_the_package():
    assert scmbert_ok("--version").strip() == __version__


def test_the_fields_of_an_experiment_are_listed_with_their_values():
    text = scmbert_ok("pretrain", "tiny", "--fields")
    assert "--model.embed-dim" in text
    assert "(default: 32)" in text


# --- what does not exist ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [(("pretrian", "tiny"), "pretrain"), (("corpus", "biuld"), "build"), (("evaluate", "prob"), "probe")],
)
def test_a_mistyped_verb_is_answered_with_the_nearest(arguments, suggested):
    ran = scmbert(*arguments)
    assert ran.code == ConfigError.exit_code
    assert "no such verb; there are " in ran.err
    assert f"Did you mean {suggested!r}?" in ran.err
    assert ran.out == ""


def test_an_unknown_option_is_named():
    ran = scmbert("doctor", "example:pbmc_mosaic", "--min-gnes", "3")
    assert ran.code == 2
    assert "--min-gnes" in ran.err
    assert "--min-genes" in ran.err


@pytest.mark.parametrize("arguments", [("bench", "favor", "--turns", "2"), ("pretrain", "tiny", "--max-share=0.5")])
def test_an_option_that_was_called_otherwise_is_answered_with_its_name(arguments):
    ran = scmbert(*arguments)
    assert ran.code == ConfigError.exit_code
    assert f"this option is called {'--rounds' if 'bench' in arguments else '--max-fraction'} now" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--model.embed-dmi", "8"), ("--model.embed-dmi", "--model.embed-dim")),  # and what was probably meant
        (("--corpsu", "c"), ("--corpsu",)),
        (("--model.embed-dim", "wide"), ("--model.embed-dim", "wide")),
        (("--model.embed-dim", "0"), ("model.embed_dim is 0; expected 1 or more",)),
        (("--data.num-streams", "5"), ("data.num_streams is 5", "a divisor of data.global_batch_size (16)")),
        (("--modalities.rna.likelihood", "poisson"), ("--modalities.rna.likelihood", "negative_binomial")),
        (("--steps", "0"), ("train.num_steps is 0",)),
        (("--model.attention", "flashy"), ("flashy", "xla")),
        (("--model.attention", "cudnn"), ("'cudnn'", "needs an NVIDIA GPU", "on cpu", "xla_chunked", "favor")),
        (("--model.attention", "splash"), ("'splash'", "needs a TPU", "on cpu", "xla_chunked")),
        (("--mesh.fsdp", "3"), ("fsdp=3", "does not fit 8 device(s)", "one of them may be -1")),
        (("--data.global-batch-size", "12"), ("data.global_batch_size is 12; 8 device(s)", "need a multiple of 8")),
        (("--train.num-microbatches", "4"), ("global_batch_size is 16; 8 device(s) x 4", "a multiple of 32")),
        (("--train.keep-every", "7"), ("train.keep_every is 7", "a multiple of train.checkpoint_every")),
        (("--model.embed-dim", "12"), ("dimension 'embed' of size 12 cannot be split over 8 devices",)),
        (("--model.covariates", "mood"), ("mood", "technical_batch")),
        (("--modalities.atac.num-tokens", "8"), ("atac", "rna", "protein", "num_tokens to 0")),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_field_or_value_that_cannot_be_is_named_before_anything_is_written(pbmc_corpus, tmp_path, option, words):
    ran = scmbert(*TINY, "--corpus", pbmc_corpus, "--run-dir", tmp_path / "run", *option)
    assert ran.code in (2, ConfigError.exit_code)
    for word in words:
        assert word in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert not (tmp_path / "run").exists()


def test_an_experiment_that_does_not_exist_is_answered_with_those_there_are(tmp_path):
    ran = scmbert("pretrain", "tinny", "--corpus", tmp_path, "--run-dir", tmp_path / "run")
    assert ran.code == ConfigError.exit_code
    assert "experiment 'tinny' does not exist" in ran.err
    assert "tiny" in ran.err
    assert "pbmc_demo" in ran.err
    assert not (tmp_path / "run").exists()


def test_an_experiment_may_be_a_file_of_ones_own(tmp_path):
    own = tmp_path / "mine.py"
    shutil.copy(REPOSITORY / "experiments" / "tiny.py", own)
    assert "(default: 32)" in scmbert_ok("pretrain", own, "--fields")
    own.write_text("def config():\n    return 3\n")
    assert "config() gave int" in scmbert("pretrain", own, "--fields").err
    own.write_text("x = 1\n")
    assert f"{own}: no function config()" in scmbert("pretrain", own, "--fields").err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("doctor",), 2, "no files given"),
        (("corpus", "build", "out"), 2, "no input files"),
        (("corpus", "build", "out", "example:pbmc_mosaic", "--block-size", "0"), 3, "block size 0"),
        (("corpus", "build", "out", "example:pbmc_mosaic", "--obs-field", "mood"), 4, "NAME=COLUMN"),
        (("pretrain", "tiny"), 4, "--corpus DIR and --run-dir DIR"),
        (("translate", "m", "example:pbmc_mosaic", "-o", "out.h5mu"), 2, "--to"),
        (("translate", "m", "example:pbmc_mosaic", "--to", "methylation", "-o", "out.h5mu"), 2, "methylation"),
        (("doctor", "example:pbmc_mosaic", "--obs-field", "mood"), 4, "NAME=COLUMN"),
        (("evaluate", "probe", "--model", "m", "--num-seeds", "0"), 4, "--num-seeds 0"),
        (("evaluate", "probe", "--model", "m", "--report", "no/such/r.html"), 4, "no/such is no folder"),
        (("evaluate", "probe", "--model", "m", "--run-dir", "nowhere"), 5, "nowhere: not a run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_left_out_or_cannot_be_is_asked_for(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = scmbert(*arguments)
    assert ran.code == code
    assert words in ran.err
    assert list(tmp_path.iterdir()) == []


# --- programs read stdout --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_doctor_prints_one_json_document_and_nothing_else():
    done = subprocess.run(
        [sys.executable, "-m", "scmbert_jax.cli", "doctor", "example:pbmc_mosaic", "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert document["usable"] is True
    assert document["modalities"]["rna"]["features"]["space"] == "gene:human"


def test_doctor_of_several_files_prints_a_list_and_fails_if_one_is_unusable():
    # This panel has 500 genes and cells of 41.
    ran = scmbert("doctor", "example:pbmc_mosaic", "example:pbmc_mosaic", "--min-genes", "200", "--json")
    assert ran.code == InputError.exit_code
    documents = json.loads(ran.out)
    assert [document["usable"] for document in documents] == [False, False]
    assert "--min-genes" in documents[0]["problems"][0]


def test_doctor_reads_the_columns_of_obs_that_it_is_told_as_corpus_build_does():
    command = ("doctor", "example:pbmc_mosaic", "--json")
    assert json.loads(scmbert_ok(*command))["obs_fields"] == {"cell_type": "celltype", "technical_batch": "batch"}
    told = json.loads(scmbert_ok(*command, "--obs-field", "donor=batch", "technical_batch="))
    assert told["obs_fields"] == {"cell_type": "celltype", "donor": "batch"}
    ran = scmbert(*command, "--obs-field", "donor=mood")
    assert ran.code == InputError.exit_code
    assert "obs has no column 'mood' for donor" in ran.out


def test_doctor_tells_people_in_text():
    text = scmbert_ok("doctor", "example:pbmc_mosaic")
    for words in ("rna", "protein", "human", "cell_type", "raw"):
        assert words in text


def test_corpus_info_and_verify_print_one_json_document(pbmc_corpus):
    info = json.loads(scmbert_ok("corpus", "info", pbmc_corpus, "--json"))
    verified = json.loads(scmbert_ok("corpus", "verify", pbmc_corpus, "--json"))
    assert info["num_cells"] == verified["num_cells"] == 1600
    assert verified["ok"] is True
    text = scmbert_ok("corpus", "info", pbmc_corpus)
    assert "1,600 cells" in text
    assert "all intact" in scmbert_ok("corpus", "verify", pbmc_corpus)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_each_kind_of_error_has_its_own_exit_code():
    codes = [kind.exit_code for kind in (InputError, CorpusError, ConfigError, CheckpointError, TrainingError)]
    assert codes == [2, 3, 4, 5, 6]


def test_debug_shows_the_traceback_and_nothing_else_does():
    quiet = scmbert("corpus", "info", "nowhere")
    assert quiet.code == CorpusError.exit_code
    assert quiet.err.startswith("scmbert: nowhere: ")
    assert len(quiet.err.splitlines()) == 1
    for arguments in (["--debug", "corpus", "info", "nowhere"], ["corpus", "info", "nowhere", "--debug"]):
        with pytest.raises(CorpusError):
            scmbert(*arguments)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.csv"), 9, "out.csv: No space left on device. Make room"),
        (OSError(errno.ENOSPC, "No space left on device"), 9, "standard output: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", b"caf\xe9.csv"), 9, ".csv: Permission denied"),
        (MemoryError("Unable to allocate 7.00 TiB for an array"), 10, "(Unable to allocate 7.00 TiB for an array)"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore"), 10, "allocating 99 bytes.)"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deep"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_machine_refuses_is_told_without_a_traceback(monkeypatch, error, code, words):
    def run(self):
        raise error

    monkeypatch.setattr(cli.Doctor, "run", run)
    ran = scmbert("doctor", "example:pbmc_mosaic")
    assert ran.code == code
    assert ran.err.startswith("scmbert: ")
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1
    with pytest.raises(type(error)):
        scmbert("--debug", "doctor", "example:pbmc_mosaic")


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), BrokenPipeError(errno.EPIPE, "of a worker")])
def test_a_fault_of_ours_is_shown_whole(monkeypatch, error):
    def run(self):
        raise error

    monkeypatch.setattr(cli.Doctor, "run", run)
    with open(os.devnull, "w") as out, contextlib.redirect_stdout(out), pytest.raises(type(error)):
        cli.main(["doctor", "example:pbmc_mosaic"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_standard_output_that_is_full_is_an_error(capsys):
    with open("/dev/full", "w") as out, contextlib.redirect_stdout(out):
        code = cli.main(["--help"])
    assert code == OutputError.exit_code
    assert "standard output: No space left on device" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_standard_error_that_is_full_changes_no_exit_code():
    nowhere = open("/dev/full", "w")  # noqa: SIM115  closing it fails, too
    with contextlib.redirect_stderr(nowhere):
        assert cli.main(["corpus", "info", "nowhere"]) == CorpusError.exit_code
    with contextlib.suppress(OSError):
        nowhere.close()


def test_a_run_of_which_evaluations_failed_ends_with_their_exit_code(pbmc_corpus, tmp_path, monkeypatch):
    ended = loop.Outcome(6, failed_evaluations=2)
    monkeypatch.setattr(loop, "pretrain", lambda *arguments, **options: ended)
    ran = scmbert(*TINY, "--corpus", pbmc_corpus, "--run-dir", tmp_path / "run", "--steps", "6")
    assert ran.code == EvaluationError.exit_code == 11
    assert "2 evaluations failed; metrics.jsonl says which and why" in ran.err


def test_a_package_of_an_extra_that_is_missing_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    ran = scmbert("evaluate", "integration")
    assert ran.code == ConfigError.exit_code
    assert "pip install 'scmbert_jax[integration]'" in ran.err


def test_a_name_that_is_not_utf8_is_shown_and_refused():
    ran = scmbert("doctor", os.fsdecode(b"caf\xe9.h5ad"))
    assert ran.code == ConfigError.exit_code
    assert "caf\\xe9.h5ad: this name is not UTF-8" in ran.err


def test_a_reader_that_has_seen_enough_of_a_pipe_is_no_error():
    command = f"{sys.executable} -m scmbert_jax.cli pretrain tiny --fields | head -1"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


def test_a_table_wider_than_the_terminal_is_printed_in_parts():
    header = ["cells", "method", *(f"score {i} of a table" for i in range(6))]
    body = [["RNA", name, *(f"0.{i}00 ± 0.010" for i in range(6))] for name in ("trained", "pca")]
    text = f"before\n\n{markdown_table(header, body)}\n\nafter"
    assert fitted(text, 300) == text
    narrow = fitted(text, 80)
    lines = narrow.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert sum(line.startswith("| RNA   | trained |") for line in lines) == sum("method" in line for line in lines) > 1
    for name in header[2:]:
        assert narrow.count(name) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("embed", "nowhere", "cells.h5ad", "-o", "out.h5ad", "--batch-size", "1000000000"),
        ("translate", "nowhere", "cells.h5ad", "--to", "rna", "-o", "out.h5mu", "--draws", "1000000000"),
        ("match", "nowhere", "c.h5mu", "--source", "rna", "--target", "protein", "-o", "o.csv", "--k", "1000000000"),
        ("corpus", "build", "out", "example:pbmc_mosaic", "--block-size", "1000000000"),
        ("corpus", "build", "out", "example:pbmc_mosaic", "--workers", "1000000000"),
        ("evaluate", "matching", "--num-seeds", "1000000000"),
        ("bench", "step", "--peer-rounds", "1000000000"),
        ("pretrain", "tiny", "--data.global-batch-size", "1000000000"),
        ("pretrain", "tiny", "--model.embed-dim", "1000000000"),
        ("pretrain", "tiny", "--modalities.rna.num-tokens", "1000000000"),
    ],
)
def test_a_number_that_no_machine_has_is_refused_at_once_with_its_option(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = scmbert(*command)
    assert ran.code == ConfigError.exit_code, ran.err
    option = command[-2].lstrip("-").replace("-", "_") if command[0] == "pretrain" else command[-2]
    assert option in ran.err
    assert "at most" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_what_strangers_wrote_is_printed_harmless(capsys):
    from scmbert_jax.commands.terminal import show
    from scmbert_jax.plain_text import say

    evil = "\x1b]0;owned\x07 \u202ekcab \ud800 https://me:pa55@host/c?sig=s1gned\n\ttwo"
    show(evil)
    say(evil)
    for said in capsys.readouterr():
        assert said == "\\x1b]0;owned\\x07 \\u202ekcab \\ud800 https://***@host/c?sig=***\n\ttwo\n"
