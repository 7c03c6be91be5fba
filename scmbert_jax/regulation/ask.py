"""What a regulatory model is asked: predictions, effects of variants, embeddings of regions, attributions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from data_pipelines.genome.bases import one_hot
from data_pipelines.genome.fasta import Fasta
from data_pipelines.genome.left_out import LeftOut, added_up
from data_pipelines.genome.variant_file import VariantTable, read_variants
from data_pipelines.genome.variant_windows import variant_windows
from scmbert_jax.errors import ConfigError, InputError
from scmbert_jax.regulation.labelled import padded
from scmbert_jax.regulation.losses import probabilities
from scmbert_jax.regulation.model import RegulatoryModel
from scmbert_jax.regulation.read import Reading, read_table, read_windows
from scmbert_jax.sequences.changes import variant_effects
from scmbert_jax.sequences.gradients import integrated_gradients, saliency
from scmbert_jax.sequences.mutagenesis import mutagenesis
from scmbert_jax.sequences.sequence_function import both_strands, select_outputs

Array = np.ndarray
Method = Literal["integrated_gradients", "saliency", "mutagenesis"]


@dataclass(frozen=True)
class Asked:
    """Sequences to be asked about.

    Attributes:
      codes: uint8 [N, L].
      keys: DataFrame of N rows that says which: `region, chromosome, start, end`, or `line, key` of a table.
      left_out: reason -> rows that were not taken.
    """

    codes: Array
    keys: pd.DataFrame
    left_out: dict[str, int]


def sequences_of(path: str | Path, reading: Reading, length: int, fasta: Fasta | None = None) -> Asked:
    """Sequences of a table, or of regions of a genome.

    Args:
      length: bases that the model reads: regions are cut to windows of that (`reading.width` says another).
      fasta: of the regions; None: `path` is a table of sequences.

    Raises InputError: what the readers refuse, or sequences that are longer.
    """
    if fasta is None:
        found = read_table(path, reading)
        keys = pd.DataFrame({"line": found.rows + 2, "key": found.keys})
        return Asked(padded(found.codes, length), keys, found.left_out)
    table, windows = read_windows(path, fasta, reading)
    rows = windows.rows
    places = {"chromosome": table.chromosome[rows], "start": table.start[rows], "end": table.end[rows]}
    keys = pd.DataFrame({"region": table.ids[rows], **places})
    return Asked(padded(windows.codes, length), keys, added_up(table.left_out, windows.left_out))


def predicted(model: RegulatoryModel, asked: Asked, batch_size: int = 512) -> pd.DataFrame:
    """The keys, then `predicted` (of classes) and a column for each output: probabilities, or values."""
    outputs = model.outputs(asked.codes, batch_size)
    found = probabilities(model.task, outputs)
    columns: dict[str, Any] = {}
    if model.task.kind in ("binary", "classes"):
        columns["predicted"] = np.array(model.task.names)[found.argmax(1)]
    columns |= {name: found[:, place] for place, name in enumerate(model.task.names)}
    return _joined(asked.keys, columns)


@dataclass(frozen=True)
class VariantScores:
    """Attributes:
    table: a row per variant: chromosome, position (1-based), reference_bases, alternate_bases, name, line; for each
      output `effect_NAME` (alternate minus reference: log-odds, logits or values), `reference_NAME`, `alternate_NAME`.
    left_out: reason -> variants that were not scored, of the file.
    """

    table: pd.DataFrame
    left_out: dict[str, int]


def score_variants(
    model: RegulatoryModel,
    path: str | Path,
    fasta: Fasta,
    reading: Reading,
    *,
    keep_repeated: bool = False,
    turned: bool = True,
    batch_size: int = 256,
) -> VariantScores:
    """The effect of every variant of a VCF file or a table: f with the alternate allele minus f with the reference.

    Args:
      reading: its `most_left_out` and `ucsc_names` count.
      keep_repeated: see `read_variants`.
      turned: the mean over both strands, also where the model reads one.

    Raises InputError: what `read_variants` refuses; more variants without a score than `most_left_out`.
    """
    variants = read_variants(
        path,
        fasta,
        ucsc_names=reading.ucsc_names,
        keep_repeated=keep_repeated,
        assembly=reading.assembly,
        most_left_out=reading.most_left_out,
    )
    width = model.length if reading.width is None else reading.width
    left_out = LeftOut(str(path), len(variants))
    variants = _fitting(variants, width, left_out)
    left_out.refuse(reading.most_left_out, f"The model reads {width:,} bases, the variant in the middle.")
    reference, alternate = variant_windows(fasta, (variants[row] for row in range(len(variants))), width)
    same = (reference == alternate).all(1)
    kept = left_out.drop(np.ones(len(same), bool), same, "that change nothing in their window", _names(variants))
    left_out.refuse(reading.most_left_out)
    variants = variants.take(kept)
    before, after = (one_hot(padded(codes[kept], model.length)) for codes in (reference, alternate))
    found = variant_effects(both_strands(model.f) if turned else model.f, before, after, batch_size)
    columns: dict[str, Any] = {
        name: getattr(variants, name)
        for name in ("chromosome", "position", "reference_bases", "alternate_bases", "name", "line")
    }
    for what, values in (("effect", found.effect), ("reference", found.before), ("alternate", found.after)):
        columns |= {f"{what}_{name}": values[:, place] for place, name in enumerate(model.task.output_names)}
    counted = dict(variants.left_out)
    for reason, number in left_out.counts.items():
        counted[reason] = counted.get(reason, 0) + number
    return VariantScores(pd.DataFrame(columns), counted)


def _names(variants: VariantTable) -> Array:
    return np.array([str(variants[row]) for row in range(len(variants))], dtype=str)


def _fitting(variants: VariantTable, width: int, left_out: LeftOut) -> VariantTable:
    longest = np.maximum(np.char.str_len(variants.reference_bases), np.char.str_len(variants.alternate_bases))
    long = longest > width - width // 2
    return variants.take(left_out.drop(np.ones(len(long), bool), long, "whose alleles do not fit in", _names(variants)))


@dataclass(frozen=True)
class Attributions:
    """Attributes:
    one_hot: float32 [N, L, 4]; hypothetical: float32 [N, L, 4], contributions of all four bases (`gradients`).
    outputs: float32 [N], of the output that is explained.
    said: lines: completeness, and what else there is to know.
    """

    one_hot: Array
    hypothetical: Array
    outputs: Array
    said: tuple[str, ...]


def attributed(
    model: RegulatoryModel,
    codes: Array,
    method: Method = "integrated_gradients",
    output: str | None = None,
    *,
    baseline: Literal["zeros", "uniform", "shuffles"] = "shuffles",
    num_shuffles: int = 10,
    steps: int = 32,
    seed: int = 0,
    batch_size: int = 64,
) -> Attributions:
    """What each base contributes to an output.

    Args:
      codes: uint8 [N, L].
      output: its name; None: the only one.
      baseline, num_shuffles, steps, seed: of integrated gradients.

    Raises ConfigError: no such output, or one of several must be chosen.
    """
    names = model.task.output_names
    if output is None and len(names) > 1:
        raise ConfigError(f"the model has {len(names)} outputs ({', '.join(names[:8])}): choose one (--of)")
    if output is not None and output not in names:
        raise ConfigError(f"output {output!r}: the model has {', '.join(names[:8])}")
    function = select_outputs(model.f, 0 if output is None else names.index(output))
    values, said = one_hot(padded(codes, model.length)), []
    if method == "integrated_gradients":
        explained = integrated_gradients(
            function, values, baseline, num_shuffles=num_shuffles, seed=seed, steps=steps, batch_size=batch_size
        )
        hypothetical = explained.hypothetical
        said.append(explained.in_words())
    elif method == "saliency":
        hypothetical = saliency(function, values, batch_size=batch_size)
    else:
        hypothetical = mutagenesis(function, values, batch_size=batch_size).hypothetical()
    outputs = model.outputs(codes)[:, 0 if output is None else names.index(output)]
    return Attributions(values, hypothetical, outputs, tuple(said))


def _joined(keys: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    twice = [name for name in columns if name in keys]
    if twice:
        raise InputError(f"an output of the model is called {twice[0]!r}, as a column of the result; rename that label")
    return pd.concat([keys.reset_index(drop=True), pd.DataFrame(columns)], axis=1)


def embedded(embed: Callable[[Array], Array], asked: Asked) -> tuple[Array, Array]:
    """(ids str [n], vectors float32 [n, W]) of regions, each once: what a feature space is given.

    Args:
      embed: codes uint8 [n, L] -> float32 [n, W] (`pretrained_encoder.embedder_of`).

    Raises InputError: sequences without regions; a region twice.
    """
    if "region" not in asked.keys:
        raise InputError("embeddings are of regions: give intervals and a FASTA file (--fasta)")
    ids = asked.keys["region"].to_numpy(str)
    if len(np.unique(ids)) < len(ids):
        unique, counts = np.unique(ids, return_counts=True)
        raise InputError(f"region {unique[counts > 1][0]} is there twice ({int((counts > 1).sum()):,} are); remove one")
    return ids, embed(asked.codes)
