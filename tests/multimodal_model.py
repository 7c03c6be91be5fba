"""A model of RNA and protein that can translate and compare modalities, made once for all tests that import it.

Use as `from multimodal_model import multimodal_model`, which is a fixture.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Ran, made_once, scmbert_ok

# Both objectives that need two modalities; sizes that compile in seconds.
OPTIONS = (
    *("--objectives.masked-modeling.weight", "0", "--objectives.cross-modal-translation.weight", "1"),
    *("--objectives.contrastive-alignment.weight", "1", "--objectives.contrastive-alignment.projection-dim", "8"),
)


@pytest.fixture(scope="session")
def multimodal_model(folder_of_all, run_scmbert) -> Path:
    """The model folder of a run of one step on batches p1, p2 and p3 of the example: 400 pairs, p4 is unseen."""
    folder = folder_of_all / "multimodal"
    with made_once(folder) as missing:  # each module that imports a fixture would make it, too
        if missing:
            _train(folder, run_scmbert)
    return folder / "model"


def _train(folder: Path, run_scmbert: Callable[..., Ran]) -> None:
    folder.mkdir()
    corpus, run_dir = folder / "corpus", folder / "run"
    only = ("--only", "technical_batch=p1_0,p2_0,p3_0")
    scmbert_ok("corpus", "build", corpus, "example:pbmc_mosaic", *only, "--block-size", "64")
    ran = run_scmbert(*TINY, *OPTIONS, "--corpus", corpus, "--run-dir", run_dir, "--steps", "1")
    assert ran.code == 0, ran.err
    scmbert_ok("export", run_dir, folder / "model")
