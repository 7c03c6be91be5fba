import anndata
import chex
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from data_pipelines.batches import training_data
from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.read_ahead import ReadAhead
from data_pipelines.batches.training_data import MixtureData
from data_pipelines.batches.whole_cells import drawn_cells, first_cells
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.corpus.corpus import open_corpus
from data_pipelines.sampling.mixture import Mixture, MixtureOptions
from data_pipelines.statistics import feature_statistics as module
from data_pipelines.statistics.cell_counts import CellCounts, WholeCells
from data_pipelines.statistics.feature_statistics import as_arrays, feature_statistics, load_statistics, save_statistics
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.batch import CellBatch, ModalityTokens
from scmbert_jax.errors import InputError
from scmbert_jax.feature_layout import NUM_COMPONENTS, FeatureLayout, fold_of
from scmbert_jax.modalities import MODALITIES

LAYOUT = FeatureLayout(slices={"rna": (0, 3)})


def batches(theta: float, num_cells: int = 4000):
    """Cells of library 1,000 whose features 0 and 1 take 1% and 5% of it; feature 2 is never a token."""
    counts = counts_of(theta, num_cells)
    ids = np.broadcast_to(np.arange(2, dtype=np.int32), counts.shape)
    padded = [np.pad(x, ((0, 0), (0, 1))) for x in (ids, counts)]  # padding must not count
    of_cells = {
        "library_size": np.full(num_cells, 1000.0, np.float32),
        "measured": np.ones(num_cells, bool),
        "num_expressed": (counts > 0).sum(1).astype(np.int32),
        "num_measured": np.full(num_cells, 2, np.int32),
        "mean_log_count": np.log1p(counts).mean(1).astype(np.float32),
    }
    tokens = ModalityTokens(*padded, lengths=np.full(num_cells, 2, np.int32), **of_cells)
    yield CellBatch({"rna": tokens}, {}, np.arange(num_cells), np.arange(num_cells))


def counts_of(theta: float, num_cells: int = 4000) -> np.ndarray:
    mean = np.array([10.0, 50.0])
    return np.random.default_rng(0).negative_binomial(theta, theta / (theta + mean), (num_cells, 2)).astype(np.int32)


def cells(theta: float, num_cells: int = 4000) -> WholeCells:
    """The same cells whole; no cell measured feature 2."""
    counts = counts_of(theta, num_cells)
    own = CellCounts(
        cells=np.arange(num_cells),
        counts=sp.csr_matrix(np.pad(counts, ((0, 0), (0, 1))).astype(float)),
        library_size=np.full(num_cells, 1000.0),
        mean_log_count=np.log1p(counts).mean(1),
        panel_of=np.zeros(num_cells, int),
        panels=np.array([[True, True, False]]),
    )
    return WholeCells({"rna": own}, np.ones(num_cells, int), np.full(num_cells, -1))


def statistics(theta: float):
    return feature_statistics(batches(theta), LAYOUT, {"rna": 1e4}, cells(theta))


@pytest.mark.parametrize("theta", [0.5, 5.0])
def test_fraction_dispersion_and_detection_are_found_again(theta):
    found = statistics(theta)
    detected = (counts_of(theta) > 0).mean(0)
    for name in ("", "cell_"):
        np.testing.assert_allclose(getattr(found, f"{name}fraction")[:2], [0.01, 0.05], rtol=0.1)
        # the grid of log theta has steps of 0.5
        assert np.abs(getattr(found, f"{name}log_dispersion")[:2] - np.log(theta)).max() < 0.5
        np.testing.assert_allclose(getattr(found, f"{name}detection")[:2], detected, atol=0.001)


def test_values_are_those_the_model_sees():
    found = statistics(5.0)
    values = np.log1p(counts_of(5.0) / 1000 * 1e4)
    np.testing.assert_allclose(found.value_centre[:2], values.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.value_std[:2], values.std(0), rtol=0.01)


def test_a_feature_that_nobody_measured_is_like_the_others_and_finite():
    found = statistics(5.0)
    assert all(np.isfinite(array).all() for array in as_arrays(found).values())
    assert 0 < found.fraction[2] < found.fraction[0]
    assert found.value_std[2] == pytest.approx(np.median(found.value_std[:2]))


def test_features_of_a_modality_that_is_not_read_do_not_scale_what_they_never_have():
    with_more = FeatureLayout(slices={"rna": (0, 3), "protein": (3, 5)})
    found = feature_statistics(batches(5.0), with_more, {"rna": 1e4}, cells(5.0))
    for name in ("value", "log1p", "clr", "linear"):
        assert (getattr(found, f"{name}_std")[3:] == 1.0).all()  # which a model divides by


def test_without_a_linear_path_all_else_is_the_same_and_no_component_is_made(monkeypatch):
    whole = statistics(5.0)
    monkeypatch.delattr(module, "PrincipalComponents")
    found = feature_statistics(batches(5.0), LAYOUT, {"rna": 1e4}, cells(5.0), linear_path=False)
    chex.assert_trees_all_equal(found, whole._replace(linear=None))


def test_maps_between_modalities_are_of_the_cells_of_all_parts():
    """40 paired cells are too few for maps; those of five more parts make them, as if all had been in memory."""
    rng = np.random.default_rng(0)
    amounts = np.exp(rng.normal(size=(240, 3)) @ rng.normal(size=(3, 42)))
    counts, folds = rng.poisson(amounts).astype(float), fold_of(np.arange(240))
    layout = FeatureLayout(slices={"rna": (0, 30), "protein": (30, 42)})

    def part(first: int, stop: int) -> WholeCells:
        modalities = {}
        for name, (start, end) in layout.slices.items():
            own = counts[first:stop, start:end]
            number, panels = np.arange(stop - first), np.ones((1, end - start), bool)
            library, logs = own.sum(1), np.log1p(own).mean(1)
            modalities[name] = CellCounts(number, sp.csr_matrix(own), library, logs, number * 0, panels)
        return WholeCells(modalities, folds[first:stop], np.zeros(stop - first, int))

    def linear(first: WholeCells, *others: WholeCells):
        found = feature_statistics(batches(5.0), layout, {"rna": 1e4}, first, more_cells=lambda: others)
        assert found.linear is not None
        return found.linear

    parts = [part(first, first + 40) for first in range(0, 240, 40)]
    assert np.abs(linear(parts[0]).translation_maps).max() == 0
    of_parts, of_all = linear(*parts), linear(part(0, 240))
    assert of_parts.memory_scores.shape == of_all.memory_scores.shape == (240, len(MODALITIES), NUM_COMPONENTS)
    np.testing.assert_array_equal(of_parts.memory_folds, folds)
    assert np.abs(of_parts.translation_maps[:, 0, 1]).max() > 0.1
    # What protein is expected of each cell, by its RNA.
    translated = [
        own.memory_scores[:, 0] @ own.translation_maps[0, 0, 1] @ own.loadings[30:].T for own in (of_parts, of_all)
    ]
    assert np.corrcoef(*(values.ravel() for values in translated))[0, 1] > 0.95


def test_no_more_batches_are_read_than_are_wanted():
    def endless():
        while True:
            yield from batches(5.0, num_cells=10)

    found = feature_statistics(endless(), LAYOUT, {"rna": 1e4}, cells(5.0), max_tokens=100)
    assert found.fraction.shape == (3,)


# --- of a corpus -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_panels(tmp_path_factory):
    """A corpus of two data sets, the second of which measures half of the genes; and the counts of each."""
    path = tmp_path_factory.mktemp("corpus") / "two"
    whole, half = (synthetic_cells(90, 60, 0, 0, seed=seed).to_mudata().mod["rna"] for seed in (0, 1))
    half = half[:, ::2].copy()
    for adata, name in ((whole, "whole"), (half, "half")):
        adata.obs_names = [f"{name}{i}" for i in range(adata.n_obs)]
    build_corpus(path, [whole, half], min_genes=1, block_size=12)
    return path, whole, half


def test_statistics_are_of_whole_cells_whatever_is_shown_of_them(two_panels):
    """8 of some 40 expressed genes are tokens; means, spreads and detection are exact, each over who measured it."""
    path, whole, half = two_panels
    reader = BatchReader(
        open_corpus(path),
        {"rna": TokenSampling(8, 0.25)},
        seed=0,
        global_batch_size=12,
        num_streams=2,
        window_blocks=2,
    )
    space = reader.mixture.joined.feature_space
    everything = first_cells(reader, 10**9)
    own = everything.modalities["rna"]
    assert own.counts.shape == (180, 60)
    assert own.counts.sum() == whole.X.sum() + half.X.sum()
    tokens = (reader.batch_at(step) for step in range(8))
    found = feature_statistics(tokens, space.layout(), {"rna": 1e4}, everything)

    names = space.modalities["rna"].ids.tolist()
    ids = [names.index(gene) for gene in whole.var_names], [names.index(gene) for gene in half.var_names]
    values = np.full((180, 60), np.nan)
    for rows, columns, adata in ((slice(0, 90), ids[0], whole), (slice(90, 180), ids[1], half)):
        counts = adata.X.toarray().astype(float)
        scaled = np.full((90, 60), np.nan)
        scaled[:, columns] = counts / counts.sum(1, keepdims=True)
        values[rows] = scaled
    np.testing.assert_allclose(
        found.cell_detection, (np.nansum(values > 0, 0) + 0.5) / ((~np.isnan(values)).sum(0) + 1)
    )
    libraries = np.concatenate([np.asarray(adata.X.sum(1)).ravel() for adata in (whole, half)])
    log1p = np.log1p(values * np.median(libraries))
    np.testing.assert_allclose(found.log1p_mean, np.nanmean(log1p, 0), rtol=1e-5)
    np.testing.assert_allclose(found.linear_mean, np.nanmean(log1p, 0), rtol=1e-5)
    squares = np.nansum((log1p - np.nanmean(log1p, 0)) ** 2, 0)
    number = (~np.isnan(log1p)).sum(0)
    np.testing.assert_allclose(
        found.log1p_std, np.sqrt((squares + 2 * squares.sum() / number.sum()) / (number + 2) + 1e-4), rtol=1e-5
    )


def test_a_linear_path_starts_from_cells_of_the_whole_corpus_and_of_none_that_is_held_out(two_panels, monkeypatch):
    """The second data set is held out; the 90 cells of the first come in parts, each once."""
    path, whole, _ = two_panels
    reader = BatchReader(
        Mixture([open_corpus(path)], MixtureOptions(held_out=("dataset=adata_2",))),
        {"rna": TokenSampling(8, 0.25)},
        seed=0,
        global_batch_size=12,
        num_streams=2,
        window_blocks=2,
    )
    parts = [part.modalities["rna"] for part in drawn_cells(reader, 500, 1000)]
    assert len(parts) > 2
    (alone,) = drawn_cells(reader, 10**9, 1000)
    together, everything = sp.vstack([part.counts for part in parts]), alone.modalities["rna"].counts
    assert everything.shape == (90, 60)
    assert everything.sum() == whole.X.sum()
    assert together.shape[0] >= 84, "all but what an epoch leaves out"
    assert abs(together - everything[: together.shape[0]]).sum() == 0
    assert len(list(drawn_cells(reader, 500, 30))) == 2, "there are no more after 30 cells"
    # A run starts from components of all of them, though statistics are of the first.
    found = {}
    for max_counts in (500, 10**9):
        monkeypatch.setattr(training_data, "MAX_COUNTS", max_counts)
        found[max_counts] = MixtureData(reader, ReadAhead("threads"), {"rna": 1e4}).layout.statistics
    streamed, exact = found[500], found[10**9]
    typical = np.median(parts[0].library_size)
    counts = together.toarray() / np.asarray(together.sum(1)) * typical
    np.testing.assert_allclose(streamed.linear_mean, np.log1p(counts).mean(0), rtol=1e-5)
    assert np.abs(streamed.cell_fraction - exact.cell_fraction).max() > 1e-4
    basis = np.linalg.qr(streamed.linear.loadings[:, :8].astype(float))[0]
    wanted = np.linalg.qr(exact.linear.loadings[:, :3].astype(float))[0]
    assert np.linalg.norm(wanted.T @ basis, axis=1).min() > 0.95


def test_the_dispersion_over_cells_counts_every_zero(two_panels):
    """Held to the likelihood written out over cells and genes."""
    _, whole, _ = two_panels
    counts = whole.X.toarray().astype(float)
    library = counts.sum(1)
    number = len(counts)
    own = CellCounts(
        np.arange(number), sp.csr_matrix(counts), library, library, np.zeros(number, int), np.ones((1, 60), bool)
    )
    fraction = (counts.sum(0) + 0.5) / (library.sum() + library.mean())
    mean = library[:, None] * fraction
    grid = module._LOG_DISPERSIONS
    nll = [module._nll(counts, mean, np.exp(log_theta)).sum(0) for log_theta in grid]
    of_cell = np.repeat(np.arange(number), np.diff(own.counts.indptr))
    found = module._dispersion_of_cells(own, of_cell, fraction)
    assert (
        found == grid[np.argmin(nll, 0)]
    ).mean() > 0.95  # two neighbours may be as likely, and sums are interpolated


@pytest.mark.slow
def test_components_are_those_of_a_pca_of_the_same_counts(tmp_path):
    """A whole transcriptome of which a step shows 16 tokens: one gene has a tenth of all counts, as MALAT1 has."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 4, 300)
    profiles = rng.gamma(0.3, size=(4, 1500)) * np.where(rng.random((4, 1500)) < 0.1, 8.0, 1.0)
    profiles[:, 0] = profiles[:, 1:].sum(1) / 9
    counts = rng.poisson(profiles[types] / profiles[types].sum(1, keepdims=True) * rng.uniform(1000, 3000, (300, 1)))
    genes = synthetic_cells(2, 1500, 0, 0, seed=0).to_mudata().mod["rna"].var
    adata = anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), var=genes)
    build_corpus(tmp_path / "corpus", [adata], min_genes=1, block_size=32)
    reader = BatchReader(
        open_corpus(tmp_path / "corpus"),
        {"rna": TokenSampling(16, 0.25)},
        seed=0,
        global_batch_size=16,
        num_streams=2,
        window_blocks=2,
    )
    data = MixtureData(reader, ReadAhead("threads"), {"rna": 1e4})
    linear, names = data.layout.statistics.linear, reader.mixture.joined.feature_space.modalities["rna"].ids.tolist()
    order = [names.index(gene) for gene in adata.var_names]
    loadings = linear.loadings[order].astype(np.float64)

    library = counts.sum(1, keepdims=True)
    values = np.log1p(counts / library * np.median(library))
    pca = PCA(20, svd_solver="full").fit(values)
    scores = (values - values.mean(0)) @ loadings
    wanted = pca.transform(values)
    for component in range(3):  # those of four types; the rest is noise of like size, whose axes turn freely
        assert abs(np.corrcoef(scores[:, component], wanted[:, component])[0, 1]) > 0.9999
    fractions = (scores[:, :20] ** 2).sum(0) / (scores**2).sum()
    of_pca = pca.explained_variance_[:20]
    np.testing.assert_allclose(fractions / fractions[0], of_pca / of_pca[0], rtol=0.01)
    assert np.abs(loadings[0, 0]) / np.linalg.norm(loadings[:, 0]) < 0.5


def test_statistics_are_saved_and_refused_where_they_do_not_fit(tmp_path):
    found = statistics(5.0)
    save_statistics(found, tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:  # files of earlier versions are read, and these by earlier versions
        assert {"share", "cell_share", "neighbour_shares"} <= {*arrays}
    read = load_statistics(tmp_path / "s.npz", 3, linear_path=True)
    chex.assert_trees_all_equal(found, read)
    without = load_statistics(tmp_path / "s.npz", 3, linear_path=False)
    chex.assert_trees_all_equal(without, found._replace(linear=None))
    save_statistics(without, tmp_path / "s.npz")
    with pytest.raises(InputError, match=r"s\.npz: cannot be read .*loadings"):
        load_statistics(tmp_path / "s.npz", 3, linear_path=True)
    save_statistics(found, tmp_path / "s.npz")
    assert load_statistics(tmp_path / "s.npz", 3, linear_path=True, regions=True) is not None
    earlier = {name: array for name, array in np.load(tmp_path / "s.npz").items() if name != "atac_values"}
    np.savez(tmp_path / "earlier.npz", **earlier)
    load_statistics(tmp_path / "earlier.npz", 3, linear_path=True)
    with pytest.raises(InputError, match=r"earlier\.npz: ATAC counts became log\(TF x IDF\).*Train the model again"):
        load_statistics(tmp_path / "earlier.npz", 3, linear_path=True, regions=True)
    with pytest.raises(InputError, match="is of 3 features, expected 4"):
        load_statistics(tmp_path / "s.npz", 4, linear_path=True)
    (tmp_path / "s.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"s\.npz: cannot be read"):
        load_statistics(tmp_path / "s.npz", 3, linear_path=True)
