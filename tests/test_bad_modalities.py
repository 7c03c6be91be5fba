"""Bad input where modalities meet: one that is missing, other species and genome builds, antibodies, pairs, targets.

Through the command line, as in test_bad_input.py; what the parts do in every variant stands in their own tests.
"""

import json

import mudata
import pytest
from conftest import TINY, scmbert, scmbert_ok
from multimodal_model import multimodal_model  # noqa: F401
from test_bad_input import cells, refused

from data_pipelines.readers.example_reader import example_path
from scmbert_jax.errors import ConfigError, InputError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def paired(num_cells: int = 40) -> mudata.MuData:
    """Paired cells of the example, to be spoilt."""
    return mudata.read_h5mu(example_path("pbmc_mosaic"))[800 : 800 + num_cells].copy()


def test_a_modality_that_is_missing_when_predicting_is_named(multimodal_model, tmp_path):  # noqa: F811
    file = tmp_path / "protein.h5ad"
    paired().mod["adt"].write_h5ad(file)
    ran = scmbert("translate", multimodal_model, file, "--to", "protein", "-o", tmp_path / "out.h5mu")
    refused(
        ran, InputError, file, "has protein; protein is predicted from rna", "Give a file in which rna was measured"
    )
    for options in (("--to", "atac"), ("--to", "protein", "--from", "atac")):
        ran = scmbert("translate", multimodal_model, file, *options, "-o", tmp_path / "out.h5mu")
        refused(ran, InputError, "atac", "rna")
    assert list(tmp_path.iterdir()) == [file]


def test_a_modality_that_is_missing_when_training_is_named(tmp_path):
    file, corpus = tmp_path / "rna.h5ad", tmp_path / "corpus"
    paired().mod["rna"].write_h5ad(file)
    scmbert_ok("corpus", "build", corpus, file, "--min-genes", "1", "--block-size", "8")
    for objective in ("cross-modal-translation", "contrastive-alignment"):
        arguments = (*TINY, "--corpus", corpus, "--run-dir", tmp_path / "run", f"--objectives.{objective}.weight", "1")
        ran = scmbert(*arguments)  # what the corpus lacks is left out with a word, and then nothing is left to compare
        refused(ran, ConfigError, f"protein: not in {corpus}", "there is only rna")
        ran = scmbert(*arguments, "--modalities.protein.num-tokens", "16")
        refused(ran, ConfigError, corpus, "protein")
        ran = scmbert(*arguments, "--modalities.protein.num-tokens", "0")
        refused(ran, ConfigError, f"objectives.{objective.replace('-', '_')}.weight", "there is only rna")
    assert not (tmp_path / "run").exists()


def test_a_model_that_has_not_learned_to_translate_or_to_compare_is_not_asked(pbmc_model, tmp_path):
    translate = scmbert("translate", pbmc_model, "example:pbmc_mosaic", "--to", "protein", "-o", tmp_path / "out.h5mu")
    refused(translate, InputError, "not trained with cross_modal_translation")
    embed = scmbert("embed", pbmc_model, "example:pbmc_mosaic", "--joint", "-o", tmp_path / "out.h5mu")
    refused(embed, InputError, "not trained with contrastive_alignment")
    assert list(tmp_path.iterdir()) == []


def test_another_species_or_genome_build_is_refused_by_a_model_that_translates(multimodal_model, tmp_path):  # noqa: F811
    file, out = tmp_path / "mouse.h5ad", tmp_path / "out.h5mu"
    cells("mouse").write_h5ad(file)
    ran = scmbert("translate", multimodal_model, file, "--to", "protein", "-o", out)
    refused(ran, InputError, file, "gene:mouse", "gene:human", "use a model of that space")
    example = ("translate", multimodal_model, "example:pbmc_mosaic", "--to", "protein", "-o", out)
    refused(scmbert(*example, "--organism", "mouse"), InputError, "organism mouse", "protein:human")
    refused(scmbert(*example, "--assembly", "mm10"), InputError, "assembly mm10 is mouse, but the organism is human")
    assert list(tmp_path.iterdir()) == [file]


def test_antibodies_without_a_gene_are_named_and_counted_and_become_features_all_the_same(tmp_path):
    mdata = paired()
    names = mdata.mod["adt"].var_names.tolist()
    mdata.mod["adt"].var_names = ["my_panel_1", "my_panel_2", *names[2:]]
    file = tmp_path / "cells.h5mu"
    mdata.write(file)
    doctor = scmbert_ok("doctor", file, "--min-genes", "1")
    for text in (doctor, " ".join(doctor.split())):
        assert "my_panel_1" in text
    assert "antibodies have no coding gene in the table and stand without a link" in " ".join(doctor.split())
    scmbert_ok("corpus", "build", tmp_path / "corpus", file, "--min-genes", "1", "--block-size", "8")
    info = json.loads(scmbert_ok("corpus", "info", tmp_path / "corpus", "--json"))
    assert info["modalities"]["protein"]["features"] == 224


def test_a_panel_of_unknown_antibodies_is_refused(tmp_path):
    mdata = paired()
    mdata.mod["adt"].var_names = [f"my_panel_{place}" for place in range(224)]
    file = tmp_path / "cells.h5mu"
    mdata.write(file)
    for ran in (
        scmbert("doctor", file, "--min-genes", "1"),
        scmbert("corpus", "build", tmp_path / "corpus", file, "--min-genes", "1"),
    ):
        assert ran.code == InputError.exit_code
        said = " ".join((ran.out + ran.err).split())
        assert "only 0% of the names are known antibodies (e.g. my_panel_0, my_panel_1" in said
        assert "Rename them after their antigen" in said
    assert list(tmp_path.iterdir()) == [file]


def test_antibodies_that_a_model_does_not_know_are_named_counted_and_written_down(multimodal_model, tmp_path):  # noqa: F811
    cells = paired(20).mod["adt"]
    names = [f"my_panel_{place}" for place in range(12)]
    cells.var_names = [*names, *cells.var_names[12:]]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    options = ("--to", "rna", "--features", "MS4A1", "-o", tmp_path / "out.h5mu")
    ran = scmbert("translate", multimodal_model, tmp_path / "cells.h5ad", *options)
    assert ran.code == 0, ran.err
    assert "the file measures 212 of the model's 224 features" in ran.err
    assert f"protein: 12 features of the file are not read: {', '.join(names[:10])} and 2 more" in ran.err
    said = mudata.read_h5mu(tmp_path / "out.h5mu").uns["scmbert"]
    assert said["features_not_read"]["protein"].tolist() == names


def test_features_that_a_model_does_not_know_are_not_promised(multimodal_model, tmp_path):  # noqa: F811
    options = ("--to", "protein", "--features", "CD3,not_an_antibody,CD19x", "-o", tmp_path / "out.h5mu")
    ran = scmbert("translate", multimodal_model, "example:pbmc_mosaic", *options)
    refused(ran, InputError, "2 of the 3 protein features", "not_an_antibody, CD19x", "224 of protein:human")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["ids", "donors"])
def test_pairs_that_do_not_match_are_refused(how, tmp_path):
    """Two files said to be of the same cells: other barcodes, or the same barcodes of other donors."""
    mdata = paired()
    rna, protein = mdata.mod["rna"].copy(), mdata.mod["adt"].copy()
    rna.obs["donor"], protein.obs["donor"] = "A", "A" if how == "ids" else "B"
    if how == "ids":
        protein.obs_names = [f"other_{name}" for name in protein.obs_names]
    rna.write_h5ad(tmp_path / "rna.h5ad")
    protein.write_h5ad(tmp_path / "protein.h5ad")
    spec = f"{tmp_path / 'rna.h5ad'}+{tmp_path / 'protein.h5ad'}"
    word = "donor" if how == "donors" else "Make the names of the same cells equal"
    refused(scmbert("corpus", "build", tmp_path / "corpus", spec, "--min-genes", "1"), InputError, word)
    assert not (tmp_path / "corpus").exists()
