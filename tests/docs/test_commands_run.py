"""The commands of README.md and docs/ run: those of a page one after another, in one folder, on small files.

Nightly, as the tutorials are. What is not run here stands in `NOT_RUN`, with who runs it or why nobody does.
"""

import re
import shlex
from pathlib import Path

import mudata
import numpy as np
import pytest
from conftest import REPOSITORY, scmbert_ok
from planted_genome import write_planted_genome
from test_pages import commands_in

from data_pipelines.readers.example_reader import example_path

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# Not of this machine, or run by a test of its own; a page, or a part of a command.
NOT_RUN = {
    "rna.h5ad+fragments.tsv.gz": "tests/data_pipelines/readers/test_fragments_reader.py runs it",
    "rna.h5ad+atac.h5ad": "tests/data_pipelines/readers/test_open_dataset.py reads such pairs",
    "--runner beam -- --runner=FlinkRunner": "needs a Flink cluster; tests run Beam's local runner",
    "s3://bucket/train": "needs a bucket; tests/data_pipelines/corpus/test_remote_corpus.py runs it on one in memory",
    "census:2025-11-08": "needs the network; tests/data_pipelines/readers/test_soma_reader.py reads a local SOMA store",
    "evaluate purity": "tests/test_extending.py runs it",
    "scmbert depth": "tests/test_extending.py runs it",
    "scmbert plan": "compiles for minutes; tests/planning runs plans of smaller shapes",
    "scmbert bench": "measures for minutes; tests/benchmarks runs each at a smaller size",
    "scmbert perturb": "perturbs 50 genes for each; tests/interpretation/test_perturbation.py runs it on a few",
    "evaluate networks": "needs networks of genes; tests/evaluation/networks/test_network_suite.py makes some",
    "evaluate regulatory": "needs sets of sequences; tests/evaluation/regulatory makes some",
    "multiome.h5mu": "tests/data_pipelines/features/test_region_links.py builds from a table of links",
    "networks infer": "needs a list of regulators; tests/networks/test_infer.py makes one",
    "evaluate annotation": "fits for minutes; tests/evaluation/annotation/test_annotation_suite.py runs it",
    "--peer-python": "another Python; tests/evaluation/alignment/test_integration_baselines.py stands in for it",
    "docs/import.md": "needs a checkpoint of scBERT; tests/torch_models/test_scbert_import.py makes one and runs it",
    "--model my_scbert": "needs a model of scBERT's kind; tests/annotation/test_scbert_head.py fits one",
    "evaluate ladder": "needs three runs; tests/evaluation/pretraining/test_ladder.py runs it",
}
SMALL = shlex.split(
    "--train.num-steps 4 --train.checkpoint-every 2 --data.global-batch-size 16 --model.num-layers 1 "
    "--model.num-heads 2 --model.head-dim 16 --model.mlp-dim 32 --data.num-streams 2 --reader threads"
)


# What a page takes as known from the pages before it.
BEFORE = {
    "docs/corpora.md": ["scmbert corpus build blood a.h5ad", "scmbert corpus build brain held_out.h5ad"],
    "docs/explain.md": ["scmbert annotate fit cells.h5ad -o my_annotator --method pca"],
    "docs/training.md": ["scmbert corpus build my_corpus cells.h5ad"],
    "docs/validation.md": [
        "scmbert corpus build other other.h5ad",
        "scmbert corpus build my_corpus a.h5ad",
    ],
}


def shown(page: Path) -> list[str]:
    """Commands in a page's indented blocks; what stands in sentences is a name, not a step."""
    lines = re.findall(r"^ {4}(scmbert .*)$", re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8")), re.M)
    return [command for line in lines for command in commands_in(line)]


SHOWN = {str(page.relative_to(REPOSITORY)): shown(page) for page in PAGES}
COMMANDS = {
    page: [line for line in lines if not any(part in f"{page}: {line}" for part in NOT_RUN)]
    for page, lines in SHOWN.items()
}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The working folder, with the files that pages speak of: blood cells with the metadata that studies have."""
    mosaic = mudata.read_h5mu(example_path("pbmc_mosaic"))
    for cells in mosaic.mod.values():
        number = np.arange(cells.n_obs)
        kinds = mosaic.obs.loc[cells.obs_names, "celltype"].astype(str).to_numpy()
        cells.obs = cells.obs.drop(columns="celltype").assign(
            cell_type=np.where(kinds == "B", "B cell", kinds),
            louvain=kinds,
            donor=[f"donor{n % 8}" for n in number],
            technical_batch=[f"run{n % 3}" for n in number],
            is_primary_data=True,
            disease=np.where(number % 2, "COVID-19", "normal"),
            n_genes=600,
        )
    rna, protein = mosaic["rna"], mosaic["adt"]
    parts = {
        "cells": rna[:400],
        "a": rna[:300],
        "b": rna[300:600],
        "held_out": rna[550:700],
        "other_donors": rna[700:900],
        "other": rna[700:900],
        "labelled": rna[500:900],
        "study_1": rna[:200],
        "study_2": rna[150:350],
        "atlas": rna[:400],
        "studies/a": rna[:300],
        "studies/b": rna[300:600],
        "rna": rna[800:],
        "protein": protein[800:],
    }
    (tmp_path / "studies").mkdir()
    for name, cells in parts.items():
        cells.copy().write_h5ad(tmp_path / f"{name}.h5ad")
    write_planted_genome(tmp_path)
    mosaic.update()
    mosaic.write_h5mu(tmp_path / "cells.h5mu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expanded(command: str) -> list[str]:
    """As a shell gives it to the program, and a run short enough for a test, with a checkpoint of step 2."""
    command = command.replace("--restore-step 200", "--restore-step 2")
    words = [
        word
        for pattern in shlex.split(command, comments=True)[1:]
        for word in (sorted(map(str, Path().glob(pattern))) if "*" in pattern and "=" not in pattern else [pattern])
    ]
    return [*words, *SMALL] if words[0] == "pretrain" and "--fields" not in words else words


@pytest.mark.nightly
@pytest.mark.parametrize("page", [page for page, commands in COMMANDS.items() if commands])
def test_the_commands_of_a_page_run(page, files):
    for command in BEFORE.get(page, []) + COMMANDS[page]:
        scmbert_ok(*expanded(command))


def test_what_is_not_run_stands_on_a_page_and_its_tests_exist():
    text = "".join(f"{page.relative_to(REPOSITORY)}: {page.read_text(encoding='utf-8')}" for page in PAGES)
    for part, why in NOT_RUN.items():
        assert part in text, part
        for name in re.findall(r"tests/[\w/]+(?:\.py)?", why):
            assert (REPOSITORY / name).exists(), name
    assert sum(map(len, COMMANDS.values())) > 30
