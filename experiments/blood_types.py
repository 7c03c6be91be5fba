"""`example:blood_types`, the annotator of human blood that comes with the package, made again from the shared data.

    python -m experiments.blood_types OUT    # from ../shared/data or $SCMBERT_SHARED_DATA; two minutes of one core

Principal components of the ranks of `NUM_GENES` genes within the cell, and a linear head. Whatever was chosen (genes,
ranks instead of log counts, components, how many cells) was chosen by leaving each labelled study out in turn.
`TEST` is a study that had no say, and is read here, for the first time, when all else is written.

With --pretrained (half an hour more), `config()` is pre-trained (`scmbert pretrain blood_types`) on the same studies
without their labels, and a linear probe of it scored beside: it named fewer cells right in every study, so the package
has no model.

Writes OUT/blood_types, which is scmbert_jax/annotation/blood_types, OUT/scores.json, and prints the table of the card.
"""

import argparse
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipelines.batches.model_counts import model_counts
from data_pipelines.files.hdf5_file import open_hdf5
from data_pipelines.readers.example_reader import example_path
from scmbert_jax.annotation.annotator import Annotator
from scmbert_jax.annotation.calibration import expected_calibration_error
from scmbert_jax.annotation.fit import FitOptions, fit
from scmbert_jax.annotation.label_tree import LabelTree, cell_ontology
from scmbert_jax.annotation.linear_head import Imbalance
from scmbert_jax.annotation.pca import reference_space
from scmbert_jax.annotation.predict import STATUSES, predict
from scmbert_jax.annotation.representation import Reading
from scmbert_jax.cli import main
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
from scmbert_jax.folder_digests import write_document
from scmbert_jax.pretrained import load_model
from scmbert_jax.text_table import markdown_table

NUM_GENES = 1_500
MOST_CELLS = 300  # of a type in a study: a study of many cells would else decide for all
OPTIONS = FitOptions(
    method="pca",
    ranks=True,
    components=64,
    label_key="type",
    donor_key="study",
    hierarchy="cell-ontology",
    imbalance=Imbalance(balance=0.5),
    novelty="energy",
    novelty_quantile=0.95,
)
FITTED = {
    "zheng": "Zheng 2017, 10x 3' v1, sorted by antibodies",
    "kang": "Kang 2018, 10x 3' v1, lupus, half with interferon beta",
    "citeseq": "10x Genomics, 10x 3' v3, types by surface proteins",
}
MOSAIC = "the built-in example, cut to 500 genes"
TEST = "OneK1K, 10x 3' v2, 40 donors, cut to 1,000 genes"

# What authors call a type -> its name in the Cell Ontology. Not learned: what one study alone has (CD34+ cells,
# megakaryocytes, plasmacytoid dendritic cells, erythrocytes), and Kang's "T activated", of either kind.
_B, _NK, _DC = "B cell", "natural killer cell", "conventional dendritic cell"
_CD4, _CD8 = "CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell"
_CLASSICAL, _NON_CLASSICAL = "classical monocyte", "non-classical monocyte"
TYPES = {
    **dict.fromkeys(("CD19+ B", "B", "B Activated", "bmem"), _B),
    **dict.fromkeys(("CD56+ NK", "NK"), _NK),
    **dict.fromkeys(("CD4+ T Helper2", "CD4+/CD45RO+ Memory", "CD4+/CD25 T Reg", "CD4+/CD45RA+/CD25- Naive T"), _CD4),
    **dict.fromkeys(("CD4 Naive T", "CD4 Memory T", "CD4 T", "cd4nc"), _CD4),
    **dict.fromkeys(("CD8+ Cytotoxic T", "CD8+/CD45RA+ Naive Cytotoxic", "CD8 T"), _CD8),
    **dict.fromkeys(("CD14+ Monocyte", "CD14 Mono", "monoc"), _CLASSICAL),
    **dict.fromkeys(("CD16 Mono", "mononc"), _NON_CLASSICAL),
    "cDC": _DC,
    "Mono": "monocyte",
    # "DC" is Kang's conventional ones beside his pDC, and the example's of all kinds.
    "DC": "dendritic cell",
}
# Surface proteins that a cell has and has not.
GATES = {
    "B": "CD19+ CD3- CD14- CD56-",
    "CD4 T": "CD3+ CD4+ CD8- CD19- CD14-",
    "CD8 T": "CD3+ CD8+ CD4- CD19- CD14-",
    "NK": "CD56+ CD3- CD19- CD14-",
    "CD14 Mono": "CD14+ CD16- CD3- CD19- CD56-",
    "CD16 Mono": "CD16+ CD11c+ CD14- CD3- CD19- CD56-",
    "cDC": "CD11c+ CD14- CD16- CD3- CD19- CD56-",
}


CARD = Path(__file__).with_suffix(".md")  # the card, with places for numbers


def config() -> ExperimentConfig:
    """The model whose probe is scored beside the annotator."""
    return ExperimentConfig(
        modalities=ModalitiesConfig(rna=ModalityConfig(num_tokens=256, value_encoding="ranks", num_bins=257)),
        data=DataConfig(global_batch_size=32, num_streams=4, window_blocks=8),
        model=ModelConfig(embed_dim=64, num_layers=2, num_heads=2, head_dim=32, mlp_dim=256),
        objectives=ObjectivesConfig(
            masked_modeling=MaskedModelingConfig(weight=0.0), whole_profile=WholeProfileConfig(weight=1.0)
        ),
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=50),
        train=TrainConfig(num_steps=600, log_every=50, checkpoint_every=600),
    )


def make(out: Path, data: Path, pretrained: bool) -> None:
    """Fits the annotator, scores it and its floors, and writes both."""
    out.mkdir(parents=True, exist_ok=True)
    studies = {name: _cells(name, data) for name in FITTED}
    scores = {}
    for name, title in FITTED.items():
        others = [cells for other, cells in studies.items() if other != name]
        fitted = {"annotator": fit(None, _labelled(others), OPTIONS, say=print)}
        if pretrained:
            fitted["probe of a pre-trained model"] = _probe(others, out / f"without_{name}")
        scores[title] = _scores(fitted, others, studies[name])
    everything = list(studies.values())
    labelled = _labelled(everything)
    fitted = {"annotator": fit(None, labelled, OPTIONS, say=print)}
    fitted["annotator"].info["data"] = f"{labelled.n_obs:,} cells of {len(FITTED)} studies (MODEL_CARD.md)"
    if pretrained:
        fitted["probe of a pre-trained model"] = _probe(everything, out / "all")
    for title, name in ((MOSAIC, "mosaic"), (TEST, "onek1k")):
        scores[title] = _scores(fitted, everything, _cells(name, data))
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    box = out / "blood_types"
    shutil.rmtree(box, ignore_errors=True)
    fitted["annotator"].save(box)
    (box / "MODEL_CARD.md").write_text(_card(fitted["annotator"], scores), encoding="utf-8")
    document = json.loads((box / "annotator.json").read_text(encoding="utf-8"))
    write_document(box, "annotator.json", document)  # with the digest of the card
    print(_table(scores))


def _probe(studies: list[anndata.AnnData], folder: Path) -> Annotator:
    """A linear probe of `config()`, pre-trained on all cells of the studies; what the folder has is not made again."""
    folder.mkdir(exist_ok=True)
    labelled = _labelled(studies)
    files = [folder / f"{cells.obs['study'].iloc[0]}.h5ad" for cells in studies]
    for cells, file in zip(studies, files, strict=True):
        bare = pd.DataFrame(index=cells.obs_names)
        anndata.AnnData(cells[:, labelled.var_names].X, bare, pd.DataFrame(index=labelled.var_names)).write_h5ad(file)
    corpus, run, model = folder / "corpus", folder / "run", folder / "model"
    for made, command in {
        corpus: ("corpus", "build", corpus, *files, "--block-size", "64", "--min-genes", "50"),
        run: ("pretrain", "blood_types", "--corpus", corpus, "--run-dir", run),
        model: ("export", run, model),
    }.items():
        words = [str(word) for word in command]
        print(f"$ scmbert {shlex.join(words)}", flush=True)
        if not made.is_dir() and (code := main(words)):
            raise SystemExit(code)
    options = replace(OPTIONS, method="probe", ranks=False, components=None)
    return fit(load_model(model), labelled, options, say=print)


def _labelled(studies: list[anndata.AnnData]) -> anndata.AnnData:
    """At most `MOST_CELLS` of each type of each study, with the genes of `_panel`."""
    panel = _panel(studies)
    chosen, rng = [], np.random.default_rng(0)
    for cells in studies:
        for name in sorted(set(cells.obs["type"]) - {""}):
            rows = np.flatnonzero(cells.obs["type"] == name)
            rows = np.sort(rng.permutation(rows)[:MOST_CELLS])
            chosen.append(cells[rows, panel])
    return anndata.concat(chosen)


def _panel(studies: list[anndata.AnnData]) -> list[str]:
    """The genes, of those all studies measure, whose counts vary most beside others of their mean, in one study.

    In one, not in all, since some types are in few. Labels say which cells are read, and nothing else."""
    shared = sorted(set.intersection(*(set(cells.var_names) for cells in studies)))
    best = np.full(len(shared), len(shared))
    for cells in studies:
        known = cells[cells.obs["type"] != "", shared].X.astype(np.float64)
        mean = np.asarray(known.mean(0)).ravel()
        variance = np.asarray(known.multiply(known).mean(0)).ravel() - mean**2
        enough = known.getnnz(0) >= 10
        excess = np.full(len(shared), -np.inf)
        x, y = np.log(mean[enough]), np.log(variance[enough])
        excess[enough] = y - np.polyval(np.polyfit(x, y, 2), x)
        best = np.minimum(best, np.argsort(np.argsort(-excess, kind="stable"), kind="stable"))
    return [shared[gene] for gene in np.sort(np.argsort(best, kind="stable")[:NUM_GENES])]


# --- cells -----------------------------------------------------------------------------------------------------------


def _cells(name: str, data: Path) -> anndata.AnnData:
    """Human genes by their Ensembl id; obs["type"], "" for cells without one, and obs["study"]."""
    if name == "citeseq":
        cells, labels = _gated(data / "citeseq_pbmc1k" / "1K_pbmc_citeseq.h5")
    elif name == "mosaic":
        both = mudata.read_h5mu(example_path("pbmc_mosaic"))
        cells = both["rna"].copy()
        labels = both.obs.loc[cells.obs_names, "celltype"]
    else:
        file, column = {
            "zheng": ("pbmc_facs/zheng_pbmc_facs.h5ad", "celltype"),
            "kang": ("cells/kang_pbmc_ifnb_13types.h5ad", "cell_type"),
            "onek1k": ("cells/onek1k_40donors.h5ad", "cell_type"),
        }[name]
        cells = anndata.read_h5ad(data / file)
        labels = cells.obs[column]
    types = labels.astype(str).map(TYPES).fillna("").to_numpy(str)
    if name == "kang":
        types = np.where(types == "dendritic cell", _DC, types)
    cells.obs_names_make_unique()
    space, mapped = reference_space(cells, "human", None)
    genes = space.modalities["rna"].ids
    chunks = model_counts(mapped.dataset, mapped.report, mapped.overlaps)
    counts = sp.vstack([chunk.counts["rna"] for chunk in chunks], format="csr")
    obs = pd.DataFrame({"type": types, "study": name}, index=[f"{name}-{barcode}" for barcode in cells.obs_names])
    return anndata.AnnData(counts, obs, pd.DataFrame(index=pd.Index(genes)))


def _gated(path: Path) -> tuple[anndata.AnnData, pd.Series]:
    """RNA of a 10x file, and the gate that each cell is in, or "".

    2-means of log1p counts say where a protein is and is not; the middle fifth of the way between them is neither."""
    from sklearn.cluster import KMeans

    with open_hdf5(path) as file:
        matrix = file["matrix"]
        shape = matrix["shape"][:][::-1]
        counts = sp.csr_matrix((matrix["data"][:], matrix["indices"][:], matrix["indptr"][:]), shape=shape)
        names, ids, kinds = (matrix["features"][key][:].astype(str) for key in ("name", "id", "feature_type"))
        barcodes = matrix["barcodes"][:].astype(str)
    is_rna = kinds == "Gene Expression"
    there = {}
    for column in np.flatnonzero(~is_rna):
        values = np.log1p(counts[:, [column]].toarray().astype(float))
        low, high = np.sort(KMeans(2, n_init=10, random_state=0).fit(values).cluster_centers_.ravel())
        there[names[column]] = (values.ravel() - low) / (high - low)
    labels = pd.Series("", index=barcodes)
    for name, gate in GATES.items():
        inside = [there[word[:-1]] > 0.6 if word[-1] == "+" else there[word[:-1]] < 0.4 for word in gate.split()]
        labels[np.all(inside, axis=0)] = name
    return anndata.AnnData(
        counts[:, is_rna].astype(np.float32), labels.to_frame("gate"), pd.DataFrame(index=ids[is_rna])
    ), labels


# --- scores ----------------------------------------------------------------------------------------------------------


def _scores(
    annotators: dict[str, Annotator], studies: list[anndata.AnnData], cells: anndata.AnnData
) -> dict[str, dict[str, float]]:
    """Method -> its scores, all on the cells of types that were learned; one that says nothing of a cell is wrong."""
    labelled = _labelled(studies)
    types = tuple(sorted(set(labelled.obs["type"])))
    cells = cells[_right_types(types, cells.obs["type"].to_numpy(str)).any(1)]
    truth = cells.obs["type"].to_numpy(str)
    scores = {}
    for method, annotator in annotators.items():
        found = predict(annotator, cells, reading=Reading(allow_low_coverage=True))
        right = _right_types(annotator.types, truth)
        scores[method] = _label_scores(annotator.types, found.probabilities, right, truth) | {
            "coverage of sets": float((found.sets & right).any(1).mean()),
            "types in a set": float(found.sets.sum(1).mean()),
            "genes, by expression": found.coverage["rna"],
            "cells": float(len(truth)),
            **{status: number / len(truth) for status, number in found.counts().items()},
        }
    for method, known, probabilities in _floors(labelled, cells):
        scores[method] = _label_scores(known, probabilities, _right_types(known, truth), truth)
    return scores


def _right_types(types: tuple[str, ...], truth: np.ndarray) -> np.ndarray:
    """bool [n, types]: the type is what the cell is, or a kind of it."""
    tree = LabelTree(types, cell_ontology())
    return np.stack([tree.is_right(np.full(len(truth), name), truth) for name in types], axis=1)


def _label_scores(
    types: tuple[str, ...], probabilities: np.ndarray, right: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Of cells of which each has a right type; all probabilities 0: nothing is said of the cell, which is wrong."""
    score, best = probabilities.max(1), probabilities.argmax(1)
    hit = right[np.arange(len(best)), best] & (score > 0)
    called = np.where(score > 0, np.array(types)[best], "")
    for name in sorted(set(truth)):  # a monocyte of any kind, where authors tell monocytes alone
        called[np.isin(called, np.array(types)[right[truth == name][0]])] = name
    f1 = [
        2 * (hit & (truth == name)).sum() / ((truth == name).sum() + (called == name).sum())
        for name in sorted(set(truth))
    ]
    return {
        "accuracy": float(hit.mean()),
        "macro-F1": float(np.mean(f1)),
        "calibration error": expected_calibration_error(score, hit),
    }


def _floors(labelled: anndata.AnnData, cells: anndata.AnnData) -> Iterator[tuple[str, tuple[str, ...], np.ndarray]]:
    """(name, types, probabilities) of the same labelled cells in log1p CP10k of the genes that the study measures."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.linear_model import LogisticRegression

    types, codes = np.unique(labelled.obs["type"].to_numpy(str), return_inverse=True)
    known = tuple(types.tolist())
    shared = [gene for gene in labelled.var_names if gene in cells.var_names]
    reference, query = _log_counts(labelled[:, shared].X), _log_counts(cells[:, shared].X)
    svd = TruncatedSVD(50, random_state=0).fit(reference)
    for name, x, y in (
        ("SVD + logistic regression", svd.transform(reference), svd.transform(query)),
        ("logistic regression on genes", reference.toarray(), query.toarray()),
    ):
        scale = np.sqrt(x.var(0).mean() * x.shape[1] / 50)
        head = LogisticRegression(max_iter=300, tol=1e-3).fit(x / scale, codes)
        yield name, known, head.predict_proba(y / scale)
    centres = np.stack([np.asarray(reference[codes == code].mean(0)).ravel() for code in range(len(types))])
    distance = ((query.toarray()[:, None] - centres) ** 2).sum(2)
    yield "nearest centroid", known, np.eye(len(types))[distance.argmin(1)]
    yield "the most common type", known, np.tile(np.bincount(codes) / len(codes), (cells.n_obs, 1))


def _log_counts(counts: sp.csr_matrix) -> sp.csr_matrix:
    values = sp.diags(1e4 / np.maximum(np.asarray(counts.sum(1)).ravel(), 1)) @ sp.csr_matrix(counts, dtype=np.float64)
    values.data = np.log1p(values.data)
    return values.tocsr()


def _card(annotator: Annotator, scores: dict[str, dict[str, dict[str, float]]]) -> str:
    cells, found = annotator.info["cells_per_type"], annotator.info["held_out"]["recall_per_type"]
    types = [[name, f"{cells[name]:,}", f"{found[name]:.0%}"] for name in annotator.types]
    parts = ("coverage of sets", "types in a set", "genes, by expression", *STATUSES)
    sets = [
        f"| {study} | "
        + " | ".join(f"{of_study['annotator'][name]:{'.2f' if name == 'types in a set' else '.0%'}}" for name in parts)
        + " |"
        for study, of_study in scores.items()
    ]
    return CARD.read_text(encoding="utf-8").format(
        number=len(annotator.types),
        genes=NUM_GENES,
        cells=annotator.info["num_cells"],
        most=MOST_CELLS,
        types=markdown_table(["type", "labelled cells", "found"], types),
        table=_table(scores),
        sets="\n".join(sets),
    )


def _table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    names = ("accuracy", "macro-F1", "calibration error")
    rows = [
        [study if method == "annotator" else "", method, *(f"{found[name]:.3f}" for name in names)]
        for study, of_study in scores.items()
        for method, found in of_study.items()
    ]
    return markdown_table(["cells of", "by", *names], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.blood_types", description=make.__doc__)
    parser.add_argument("out", type=Path, help="folder of the annotator and its scores")
    shared = os.environ.get("SCMBERT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(shared), help="folder of the shared data")
    parser.add_argument("--pretrained", action="store_true", help="score a probe of a pre-trained model beside")
    given = parser.parse_args()
    make(given.out, given.data, given.pretrained)
