"""Human blood cells of seven studies, and a ladder of three model sizes on them.

    python -m experiments.blood blood                     # three corpora from ../shared/data or $SCMBERT_SHARED_DATA
    for rung in small medium large; do
        scmbert pretrain blood:$rung --corpus blood/training --run-dir runs/$rung
    done

`blood/training` has 29,260 cells of every file in `TRAINING`. Held out, and free of copies of training cells:
`blood/donors`, three of the eight donors of Kang et al. 2018; `blood/zheng`, the two files of Zheng et al. 2017, whose
donor and chemistry no training file has. What is left out, and why, stands beside the names below. `--zheng-trains`
puts those two into training: fair beside a PCA that is fitted on their cells without labels.

All rungs read 128 of a cell's genes a step, in the same order, and learn by one rule of the learning rate (`_rung`).
RNA alone; the corpus has protein of 2,490 cells as well (--modalities.protein.num-tokens 64).
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from scmbert_jax.config import (
    DataConfig,
    ExperimentConfig,
    MaskedModelingConfig,
    ModalitiesConfig,
    ModalityConfig,
    ModelConfig,
    ObjectivesConfig,
    OptimizerConfig,
    TrainConfig,
    WholeProfileConfig,
)
from scmbert_jax.errors import ConfigError

# --- the cells -------------------------------------------------------------------------------------------------------

# Files below the folder of shared data; the richest in genes first.
TRAINING = (
    "citeseq_pbmc1k/1K_pbmc_citeseq.h5",  # 36,601 genes and 10 proteins
    "cells/pbmc_4studies.h5ad",
    "cells/pbmc1k_v2.h5ad",
    # Cut to some genes: their library size is that of these genes. The model is told what was measured, not what it was
    # cut from, so values are relative to the panel. Left out, two thirds of the donors would be gone.
    "cells/pbmc5k_citeseq.h5ad",  # 3,000 genes
    "cells/kang_pbmc_8donors.h5ad",  # 1,287 genes
    "cells/onek1k_40donors.h5ad",  # 1,000 genes
    "cells/onek1k_bcells.h5ad",  # 817 genes; 533 of its cells are in onek1k_40donors, and dropped as copies
)
EXAMPLE = "example:pbmc_mosaic"  # 500 genes and 224 proteins
KANG = "cells/kang_pbmc_8donors.h5ad"
HELD_OUT_DONORS = "1256,101,107"
# One donor (A) and chemistry, so that both are on one side: pbmc_facs was sorted from the blood of the frozen cells.
ZHENG = ("pbmc_facs/zheng_pbmc_facs.h5ad", "pbmc_donor_a/pbmc_donor_a.h5ad")
# Left out: pbmc_ifnb and kang_pbmc_ifnb_13types, of Kang's eight donors, which do not say of which donor a cell is: it
# may be one that is held out; hashed_4lines and k562_gasperini_crispri, which are cell lines.


def build(out: Path, data: Path, zheng_trains: bool = False) -> int:
    """Builds the corpora that `out` lacks; the exit code. Commands are shown as a user would type them."""
    files = {name: str(data / name) for name in (*TRAINING, *ZHENG)}
    held_out = {"donors": [files[KANG], "--only", f"donor={HELD_OUT_DONORS}"]}
    trained = [files[name] for name in TRAINING]
    if zheng_trains:
        trained += [files[name] for name in ZHENG]
    else:
        held_out["zheng"] = [files[name] for name in ZHENG]
    kept_apart = ["--disjoint-from", *(str(out / name) for name in held_out)]
    corpora = {**held_out, "training": [*trained, EXAMPLE, "--exclude", f"donor={HELD_OUT_DONORS}", *kept_apart]}
    out.mkdir(parents=True, exist_ok=True)
    for name, arguments in corpora.items():
        if not (out / name).is_dir():
            code = _scmbert("corpus", "build", str(out / name), *arguments, "--block-size", "64")
            if code:
                return code
    return 0


def _scmbert(*arguments: str) -> int:
    from scmbert_jax.cli import main

    print(f"\n$ scmbert {shlex.join(arguments)}", flush=True)
    return main(arguments)


# --- the ladder ------------------------------------------------------------------------------------------------------

# Width and layers; 12 * width^2 * layers parameters pass each token.
RUNGS = {"small": (64, 2), "medium": (128, 2), "large": (192, 3)}


def config(rung: str = "medium") -> ExperimentConfig:
    """Raises `ConfigError` where there is no such rung."""
    if rung not in RUNGS:
        raise ConfigError(f"blood:{rung} does not exist. There are: {', '.join(f'blood:{name}' for name in RUNGS)}.")
    return _rung(*RUNGS[rung])


def _rung(width: int, layers: int) -> ExperimentConfig:
    return ExperimentConfig(
        # A fifth to a half of what a cell expresses; another sample the next time.
        modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=128, zero_fraction=0.25)),
        data=DataConfig(global_batch_size=32, num_streams=4, window_blocks=8),
        # No principal components: what is measured is what the transformer learns.
        model=ModelConfig(
            embed_dim=width,
            num_layers=layers,
            num_heads=width // 32,
            head_dim=32,
            mlp_dim=4 * width,
            linear_path=False,
        ),
        # The cell embedding learns more from it than from masked modelling of as many passes (the ledger).
        objectives=ObjectivesConfig(
            masked_modeling=MaskedModelingConfig(weight=0.0, mask_fraction=0.5),
            whole_profile=WholeProfileConfig(weight=1.0),
        ),
        # The rule: 3e-3 at a width of 64, as `rna`, and falling with its square root.
        optimizer=OptimizerConfig(peak_learning_rate=3e-3 * (64 / width) ** 0.5, warmup_steps=50),
        train=TrainConfig(num_steps=1_000, log_every=10, checkpoint_every=100),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.blood", description=build.__doc__)
    parser.add_argument("out", type=Path, help="folder of the three corpora")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SCMBERT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")),
        help="folder of the shared data; $SCMBERT_SHARED_DATA, or ../shared/data beside the repository",
    )
    parser.add_argument("--zheng-trains", action="store_true", help="pbmc_facs and pbmc_donor_a train, too")
    given = parser.parse_args()
    sys.exit(build(given.out, given.data, given.zheng_trains))
