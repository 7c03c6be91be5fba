"""Cells with a known truth, and batches for when there is no corpus. Importing it needs numpy, scipy and pandas only.

`synthetic_batch` makes a `CellBatch` straight from a `FeatureLayout` (smoke tests, benchmarks, `scmbert plan`);
`synthetic_cells` makes count matrices whose cell types, technical batches and true profiles are known.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse

from scmbert_jax.batch import CellBatch, CellProfile, ModalityTokens, panel_bits
from scmbert_jax.feature_layout import FeatureLayout
from scmbert_jax.modalities import MODALITIES

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

NUM_BATCH_CELL_TYPES = 8  # cell types of `synthetic_batch`: row r of a batch is of a type drawn per (seed, step)

# Mean count of an expressed feature, and how far profiles of two types differ (sd of the log), per modality. Chosen so
# that counts look like 10x data: few molecules of most genes, tens to hundreds of most antibodies, 0-2 cuts a region.
_MEAN_COUNT = {"rna": 2.0, "protein": 40.0, "atac": 0.5}
_TYPE_SPREAD = {"rna": 1.0, "protein": 0.8, "atac": 1.0}
_DISPERSION = 2.0  # inverse overdispersion of the negative binomial: variance = mean + mean² / dispersion


def synthetic_layout(
    num_genes: int, num_proteins: int = 0, num_regions: int = 0, covariate_sizes: dict[str, int] | None = None
) -> FeatureLayout:
    """A feature table of this many rows; every protein is linked to one gene, every region to its one or two nearest.

    Proteins and regions are spread evenly along the genes, so that the links are known without a table.
    """
    sizes = {"rna": num_genes, "protein": num_proteins, "atac": num_regions}
    slices: dict[str, tuple[int, int]] = {}
    start = 0
    for modality in MODALITIES:
        if sizes[modality]:
            slices[modality] = (start, start + sizes[modality])
            start += sizes[modality]
    links = {}
    for modality in ("protein", "atac"):
        if sizes[modality] and num_genes:
            rows, genes = linked_genes(sizes[modality], num_genes, max_links=1 if modality == "protein" else 2)
            links[modality] = (
                (rows + slices[modality][0]).astype(np.int32),
                (genes + slices["rna"][0]).astype(np.int32),
            )
    return FeatureLayout(slices=slices, links=links, covariate_sizes=dict(covariate_sizes or {}))


def linked_genes(num_features: int, num_genes: int, max_links: int) -> tuple[np.ndarray, np.ndarray]:
    """Feature i is linked to gene floor(i * num_genes / num_features) and, with `max_links` 2, every other one also to
    the next gene. Returns (int64 [E] features, int64 [E] genes)."""
    features = np.arange(num_features)
    genes = features * num_genes // num_features
    if max_links == 1:
        return features, genes
    second = features[(features % 2 == 1) & (genes + 1 < num_genes)]
    rows = np.concatenate([features, second])
    targets = np.concatenate([genes, genes[second] + 1])
    order = np.lexsort((targets, rows))
    return rows[order], targets[order]


@lru_cache(maxsize=8)
def _type_profiles(modality: str, num_features: int, seed: int) -> np.ndarray:
    """Mean counts of the features in each cell type: float32 [NUM_BATCH_CELL_TYPES, num_features]."""
    rng = np.random.default_rng([seed, MODALITIES.index(modality), num_features])
    spread = _TYPE_SPREAD[modality]
    log_profile = rng.normal(0, spread, (1, num_features)) + rng.normal(0, spread, (NUM_BATCH_CELL_TYPES, num_features))
    return (_MEAN_COUNT[modality] * np.exp(log_profile - spread**2)).astype(np.float32)


def synthetic_batch(
    layout: FeatureLayout,
    batch_size: int,
    tokens: dict[str, int],
    seed: int,
    step: int = 0,
    *,
    mosaic: bool = False,
    profile_tokens: int = 0,
) -> CellBatch:
    """A `CellBatch` of random cells of a few types: a pure function of its arguments.

    Args:
      layout: the feature table; covariates get codes below `layout.covariate_sizes`.
      batch_size: B, cells.
      tokens: modality -> L. Cells have between 3/4 L and L real tokens (never more than the modality has features), so
        that padding is exercised. 0 leaves the modality out.
      seed: fixes the profiles of the cell types, together with `layout`; with `step`, everything else.
      step: another step gives other cells of the same types.
      mosaic: if True, each cell lacks each modality with probability 1/4 (never all of them).
      profile_tokens: most expressed features of a `CellProfile`: those among the tokens, all others being zeros; 0: no
        profiles.

    Raises:
      ValueError: tokens for a modality that the layout has not.
    """
    read = [modality for modality in MODALITIES if tokens.get(modality, 0) > 0]
    unknown = sorted(set(tokens) - set(layout.slices))
    if unknown:
        raise ValueError(f"tokens for {unknown}, but the layout has only {sorted(layout.slices)}")
    rng = np.random.default_rng([seed, step, batch_size])
    cell_types = rng.integers(NUM_BATCH_CELL_TYPES, size=batch_size)  # [B]
    measured = np.ones((batch_size, len(read)), bool)
    if mosaic and len(read) > 1:
        measured = rng.random((batch_size, len(read))) < 0.75
        measured[np.arange(batch_size), rng.integers(len(read), size=batch_size)] = True

    modalities, profiles = {}, {}
    for column, modality in enumerate(read):
        first, stop = layout.slices[modality]
        length = tokens[modality]
        features, counts, lengths = _random_tokens(
            rng, _type_profiles(modality, stop - first, seed), cell_types, length, measured[:, column]
        )
        total = counts.sum(axis=1) * (stop - first) / np.maximum(lengths, 1)  # as if the unsampled features were alike
        is_real = np.arange(length) < lengths[:, None]  # [B, L]
        modalities[modality] = ModalityTokens(
            feature_ids=np.where(is_real, features + first, 0).astype(np.int32),
            counts=counts.astype(np.int32),
            lengths=lengths.astype(np.int32),
            library_size=total.astype(np.float32),
            measured=measured[:, column].copy(),
            num_expressed=np.round((counts > 0).mean(axis=1) * (stop - first) * length / np.maximum(lengths, 1)).astype(
                np.int32
            ),
            num_measured=np.where(measured[:, column], stop - first, 0).astype(np.int32),
            mean_log_count=(np.log1p(counts).sum(axis=1) / np.maximum(lengths, 1)).astype(np.float32),
        )
        if profile_tokens:
            profiles[modality] = profile_of_tokens(modalities[modality], profile_tokens, stop - first)
    return CellBatch(
        modalities=modalities,
        covariates={
            name: rng.integers(size, size=batch_size).astype(np.int32) for name, size in layout.covariate_sizes.items()
        },
        cell_index=(step * batch_size + np.arange(batch_size)).astype(np.int32),
        row=np.arange(batch_size, dtype=np.int32),
        profiles=profiles or None,
    )


def profile_of_tokens(tokens: ModalityTokens, profile_tokens: int, num_features: int) -> CellProfile:
    """The expressed features among the tokens as the profile of cells that measured all `num_features`."""
    width = min(profile_tokens, num_features)
    order = np.argsort(tokens.counts == 0, axis=1, kind="stable")[:, :width]
    lengths = np.minimum((tokens.counts > 0).sum(axis=1), width)

    def taken(x: np.ndarray) -> np.ndarray:
        real = np.arange(order.shape[1]) < lengths[:, None]
        return np.pad(np.where(real, np.take_along_axis(x, order, axis=1), 0), ((0, 0), (0, width - order.shape[1])))

    panel = np.broadcast_to(tokens.measured[:, None], (len(lengths), num_features))
    return CellProfile(taken(tokens.feature_ids), taken(tokens.counts), lengths.astype(np.int32), panel_bits(panel))


def _random_tokens(
    rng: np.random.Generator, profiles: np.ndarray, cell_types: np.ndarray, length: int, measured: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [B, L] (ascending, distinct), counts [B, L] (0 in padding) and numbers of real tokens [B].

    Features are drawn one from each of n equal stretches of the modality: distinct and ascending in O(B L), also when
    the modality has a million regions.
    """
    num_features = profiles.shape[1]
    batch_size = len(cell_types)
    longest = min(length, num_features)
    lengths = rng.integers(max(1, longest * 3 // 4), longest + 1, size=batch_size) * measured  # [B]
    position = np.arange(length)[None, :]  # [1, L]
    parts = np.maximum(lengths, 1)[:, None]  # [B, 1]
    start = np.minimum(position, parts - 1) * num_features // parts
    width = (np.minimum(position, parts - 1) + 1) * num_features // parts - start
    features = start + (rng.random((batch_size, length)) * width).astype(np.int64)  # [B, L]
    mean = profiles[cell_types[:, None], features]  # [B, L]
    counts = rng.poisson(mean * rng.gamma(_DISPERSION, 1 / _DISPERSION, mean.shape))
    return features, np.where(position < lengths[:, None], counts, 0), lengths


# --- cells with a known truth ----------------------------------------------------------------------------------------

_DEPTH_PER_FEATURE = {"rna": 1.5, "protein": 60.0, "atac": 0.3}  # mean counts of a cell / number of features
_DEPTH_SPREAD = 0.25  # sd of the log of a cell's depth
_BATCH_SPREAD = 0.15  # sd of the log of what a technical batch does to a feature
_MARKER_FRACTION = 0.15  # fraction of the genes whose expression a cell type changes
_CHUNK_CELLS = 512


@dataclass(frozen=True)
class SyntheticCells:
    """Cells whose truth is known.

    Attributes:
      counts: modality -> int32 CSR [N, features]; rows of cells that were not measured are empty.
      measured: modality -> bool [N].
      cell_ids: str [N].
      cell_type: str [N], "type0" ...
      technical_batch: str [N], "batch0" ...
      profiles: modality -> float64 [cell types, features], the true relative means (rows add up to 1).
      feature_ids: modality -> str [features].
      linked_gene: modality -> int64 [features], the gene whose expression drives a protein or a region.
    """

    counts: dict[str, scipy.sparse.csr_matrix]
    measured: dict[str, np.ndarray]
    cell_ids: np.ndarray
    cell_type: np.ndarray
    technical_batch: np.ndarray
    profiles: dict[str, np.ndarray]
    feature_ids: dict[str, np.ndarray]
    linked_gene: dict[str, np.ndarray]

    @property
    def obs(self) -> pd.DataFrame:
        """cell_type and technical_batch, indexed by cell id."""
        return pd.DataFrame(
            {"cell_type": self.cell_type, "technical_batch": self.technical_batch}, index=pd.Index(self.cell_ids)
        )

    def to_mudata(self) -> "MuData":
        """A MuData with one AnnData per modality, of the cells measured in it; obs stands in both. Needs mudata."""
        import anndata

        parts = {
            name: anndata.AnnData(
                self.counts[name][self.measured[name]].astype(np.float32),
                obs=self.obs[self.measured[name]],
                var=pd.DataFrame(index=pd.Index(self.feature_ids[name])),
            )
            for name in self.counts
        }
        joined = mudata_of(parts)
        for column in self.obs:
            joined.obs[column] = self.obs[column].reindex(joined.obs_names)
        if "atac" in joined.mod:
            joined.mod["atac"].uns["genome"] = "GRCh38"
        return joined


def mudata_of(parts: "dict[str, AnnData]") -> "MuData":
    """A MuData of AnnData by modality, whose metadata stay where they are. Needs mudata."""
    import mudata

    # The default since 0.4, which lacks the option.
    options = getattr(mudata, "set_options", None)
    with nullcontext() if options is None else options(pull_on_update=False):
        return mudata.MuData(parts)


def synthetic_cells(
    num_cells: int,
    num_genes: int,
    num_proteins: int = 0,
    num_regions: int = 0,
    num_cell_types: int = 4,
    num_batches: int = 4,
    seed: int = 0,
    mosaic: bool = True,
    feature_ids: dict[str, np.ndarray] | None = None,
) -> SyntheticCells:
    """Negative-binomial counts of cells of known types in known technical batches.

    A type changes the expression of some genes; a protein follows its coding gene, a region the gene it is linked to. A
    technical batch changes every feature a little and the depth.

    Args:
      num_cells: N.
      num_genes, num_proteins, num_regions: features; a modality of 0 is absent.
      num_cell_types, num_batches: every cell is of a random one of each.
      seed: fixes everything.
      mosaic: if True, the first batches measured one modality each, the others all of them.
      feature_ids: modality -> str [features]; absent: human names from the packaged tables (Ensembl ids, antibodies
        with their coding genes among the genes, regions beside the start sites of the genes).

    Raises:
      ValueError: a mosaic needs more batches than modalities; or more features than the packaged tables have.
    """
    sizes = {
        name: size
        for name, size in zip(MODALITIES, (num_genes, num_proteins, num_regions), strict=True)
        if size or name == "rna"
    }
    if mosaic and len(sizes) > 1 and num_batches <= len(sizes):
        raise ValueError(f"a mosaic of {len(sizes)} modalities needs more than {len(sizes)} batches, not {num_batches}")
    linked = {name: linked_genes(size, num_genes, max_links=1)[1] for name, size in sizes.items() if name != "rna"}
    if feature_ids is None:
        feature_ids = _packaged_names(sizes, linked)
    rng = np.random.default_rng([seed, num_cells, num_genes, num_proteins, num_regions])
    log_means = {"rna": rng.normal(0, 1.2, num_genes) + np.zeros((num_cell_types, 1))}
    is_marker = rng.random((num_cell_types, num_genes)) < _MARKER_FRACTION
    log_means["rna"] = log_means["rna"] + is_marker * rng.normal(0, 2.0, (num_cell_types, num_genes))
    for name, genes in linked.items():
        log_means[name] = 0.8 * log_means["rna"][:, genes] + rng.normal(0, 0.3, sizes[name])
    types = rng.integers(num_cell_types, size=num_cells)
    batches = rng.integers(num_batches, size=num_cells)
    counts, measured, profiles = {}, {}, {}
    for place, name in enumerate(sizes):
        profiles[name] = np.exp(log_means[name]) / np.exp(log_means[name]).sum(axis=1, keepdims=True)
        only_another = (batches < len(sizes)) & (batches != place) & (mosaic and len(sizes) > 1)
        measured[name] = ~only_another
        batch_effect = np.exp(rng.normal(0, _BATCH_SPREAD, (num_batches, sizes[name])))
        batch_depth = np.exp(rng.normal(0, _BATCH_SPREAD, num_batches))
        depth = _DEPTH_PER_FEATURE[name] * sizes[name] * np.exp(rng.normal(0, _DEPTH_SPREAD, num_cells))
        chunks = []
        for first in range(0, num_cells, _CHUNK_CELLS):
            part = slice(first, first + _CHUNK_CELLS)
            mean = profiles[name][types[part]] * batch_effect[batches[part]]
            mean *= (depth[part] * batch_depth[batches[part]] * measured[name][part])[:, None]  # [<= chunk, features]
            drawn = rng.poisson(mean * rng.gamma(_DISPERSION, 1 / _DISPERSION, mean.shape))
            chunks.append(scipy.sparse.csr_matrix(drawn.astype(np.int32)))
        counts[name] = scipy.sparse.vstack(chunks, format="csr")
    return SyntheticCells(
        counts=counts,
        measured=measured,
        cell_ids=np.array([f"cell{number:07d}" for number in range(num_cells)]),
        cell_type=np.char.add("type", types.astype(str)),
        technical_batch=np.char.add("batch", batches.astype(str)),
        profiles=profiles,
        feature_ids=feature_ids,
        linked_gene=linked,
    )


def _packaged_names(sizes: dict[str, int], linked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names that the input check knows: antibodies stand for the proteins of their linked genes."""
    from data_pipelines.features.antibodies import antibody_table
    from data_pipelines.features.gene_tables import load_gene_table

    table = load_gene_table("human")
    usable = np.flatnonzero(table.reference & np.char.startswith(table.chrom.astype(str), "chr") & (table.tss > 1000))
    gene_of = np.full(sizes["rna"], -1, np.int64)  # rows of the table
    names: dict[str, np.ndarray] = {}
    antibodies: list[str] = []
    taken: set[int] = set()
    if "protein" in sizes:
        known = set(usable.tolist())
        for antibody, symbols in antibody_table().items():
            rows = table.rows_of_symbol.get(symbols[0], ()) if len(symbols) == 1 else ()
            if len(antibodies) < sizes["protein"] and len(rows) == 1 and rows[0] in known and rows[0] not in taken:
                gene_of[linked["protein"][len(antibodies)]] = rows[0]
                taken.add(rows[0])
                antibodies.append(antibody)
        names["protein"] = np.array(antibodies)
    free = np.array([row for row in usable.tolist() if row not in taken])
    empty = np.flatnonzero(gene_of < 0)
    if len(antibodies) < sizes.get("protein", 0) or len(free) < len(empty):
        raise ValueError(
            f"the packaged tables name {len(antibodies)} of {sizes.get('protein', 0)} proteins and {len(usable)} genes "
            f"where {sizes['rna']} are wanted; ask for fewer, or pass feature_ids"
        )
    gene_of[empty] = free[np.linspace(0, len(free) - 1, len(empty)).astype(int)]
    names["rna"] = table.ids[gene_of]
    if "atac" in sizes:
        regions, used = [], set()
        for gene in gene_of[linked["atac"]].tolist():
            start = int(table.tss[gene]) - 250
            while (table.chrom[gene], start) in used:
                start += 600
            used.add((table.chrom[gene], start))
            regions.append(f"{table.chrom[gene]}:{start}-{start + 500}")
        names["atac"] = np.array(regions)
    return {name: names[name] for name in sizes}
