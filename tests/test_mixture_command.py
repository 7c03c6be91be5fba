"""`scmbert pretrain` on mixtures: trained, recorded, exported; continued with the same data and with no other."""

import json
from pathlib import Path

import pytest
from conftest import TINY, Ran, scmbert, scmbert_ok

import scmbert_jax
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import CheckpointError, ConfigError, InputError
from scmbert_jax.pretraining import _lonely
from scmbert_jax.training.run_folder import read_metrics


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[Path]:
    """One of RNA and protein, one of RNA alone."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, batches in (("pairs", "p3_0,p4_0"), ("rna", "p1_0")):
        options = ("--min-genes", "1", "--block-size", "32", "--only", f"technical_batch={batches}")
        scmbert_ok("corpus", "build", folder / name, "example:pbmc_mosaic", *options)
    return [folder / "pairs", folder / "rna"]


@pytest.fixture(scope="module")
def cell_types(corpora) -> list[str]:
    from data_pipelines.corpus.corpus import open_corpus

    return open_corpus(corpora[0]).vocabularies["cell_type"]


def pretrain(run_dir: Path, *options: str | Path) -> tuple[str | Path, ...]:
    return (*TINY, "--run-dir", run_dir, "--steps", "4", "--train.log-every", "1", *options)


def test_a_contrast_of_cells_that_are_alone_in_their_technical_batch_is_refused(tmp_path):
    cells = synthetic_cells(64, 60, 12, num_batches=1, mosaic=False).to_mudata()
    for part in (cells, *cells.mod.values()):
        part.obs["technical_batch"] = [f"b{i}" for i in range(part.n_obs)]
    build_corpus(tmp_path / "corpus", [cells], min_genes=1, block_size=16)
    options = ("--objectives.contrastive-alignment.weight", "1", "--data.global-batch-size", "16")
    ran = scmbert(*pretrain(tmp_path / "run", "--corpus", tmp_path / "corpus", *options))
    assert ran.code == ConfigError.exit_code
    assert "0.0% meet one: nothing would be learned; raise --data.window-blocks" in ran.err


def test_a_contrast_of_cells_of_which_few_meet_another_starts_with_a_note():
    (note,) = _lonely(0.125)
    assert "12.5% meet one: the others weigh nothing; raise --data.window-blocks" in note
    assert _lonely(0.9) == _lonely(None) == []


@pytest.fixture(scope="module")
def run(corpora, cell_types, run_scmbert) -> tuple[Path, Ran, tuple]:
    options = ("--corpus", *corpora, "--corpus-weights", "3,1", "--exclude", f"cell_type={cell_types[0]}")
    run_dir = corpora[0].parent / "run"
    return run_dir, run_scmbert(*pretrain(run_dir, *options, "--reader", "grain")), options


@pytest.mark.slow
def test_a_mixture_is_trained_on_recorded_and_exported(run, corpora, cell_types, tmp_path):
    run_dir, ran, _ = run
    assert ran.code == 0, ran.err
    assert "75.00% from" in ran.err
    assert f"is in {corpora[0]} and in {corpora[1]}: a cell that is in both is drawn from both" in ran.err
    assert [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")] == [1, 2, 3, 4]
    provenance = json.loads((run_dir / "provenance.json").read_text())
    assert [Path(corpus["path"]) for corpus in provenance["data"]["corpora"]] == corpora
    assert provenance["data"]["options"] == {"corpus_weights": [3.0, 1.0], "exclude": {"cell_type": [cell_types[0]]}}
    assert provenance["information"]["paired_cells"] < 800
    assert all(
        batch.startswith(("pbmc_mosaic/p", "pbmc_mosaic_2/p1_0")) for batch in provenance["information"]["cells"]
    )
    scmbert_ok("export", run_dir, tmp_path / "model")
    model = scmbert_jax.load(tmp_path / "model")
    assert model.pretrained.feature_space.content_hash == provenance["feature_space_hash"]


@pytest.mark.slow
def test_a_run_continues_with_the_same_mixture_and_no_other(run, corpora, cell_types):
    run_dir, _, options = run
    assert scmbert(*pretrain(run_dir, *options)).code == 0  # there is nothing left to do; another reader is no matter
    for others in (
        ("--corpus", *corpora, "--corpus-weights", "2,1", "--exclude", f"cell_type={cell_types[0]}"),
        ("--corpus", *corpora, "--corpus-weights", "3,1"),
    ):
        ran = scmbert(*pretrain(run_dir, *others))
        assert ran.code == CheckpointError.exit_code
        assert "was started on another" in ran.err
        assert (
            f'It was started with {corpora[0]}, {corpora[1]} (exclude {{"cell_type": ["{cell_types[0]}"]}}' in ran.err
        )
        assert "now it is given" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--corpus-weights", "1,2,3"), ConfigError, "--corpus-weights: 3 weights for 2 corpora"),
        (("--corpus-weights", "1,-2"), ConfigError, "weight -2; expected positive numbers"),
        (("--corpus-weights", "1;2"), ConfigError, "--corpus-weights 1;2: expected numbers with commas"),
        (("--only", "planet=mars"), InputError, "planet"),
        (("--only", "cell_type=martian"), InputError, "martian"),
        (("--only", "cell_type"), ConfigError, "--only cell_type: expected FIELD=VALUE"),
        (("--balance-by", "planet"), ConfigError, "--balance-by planet: it is known of no cell"),
        (("--max-fraction", "0.2"), ConfigError, "--max-fraction 0.2: the 2 groups may have 0.4 of the draws"),
        (("--data.global-batch-size", "2000", "--data.num-streams", "2"), ConfigError, "fewer than one batch of 2000"),
    ],
)
def test_options_that_do_not_fit_leave_no_run_folder(corpora, tmp_path, options, code, words):
    ran = scmbert(*pretrain(tmp_path / "run", "--corpus", *corpora, *options))
    assert ran.code == code.exit_code, ran.err
    assert words in ran.err
    assert not (tmp_path / "run").exists()


def test_the_same_corpus_twice_is_refused(corpora, tmp_path):
    ran = scmbert(*pretrain(tmp_path / "run", "--corpus", corpora[0], corpora[0]))
    assert ran.code == ConfigError.exit_code
    assert "are the same corpus: give it once" in ran.err
