"""Copies of cells: found whatever the file calls and orders its features, never lost, and only true copies."""

import time
import tracemalloc

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import scmbert, scmbert_ok
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_counts import ANTIBODIES, GENE_IDS

from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.build.duplicate_cells import STAYS, cells_in, copies_among
from data_pipelines.cells.cell_identity import NOT_MEASURED, barcode_keys, barcode_of, cell_keys, counts_hashes
from data_pipelines.cells.cell_metadata import KEY_COLUMNS
from data_pipelines.checks import shared_counts
from data_pipelines.checks.input_check import check_dataset
from data_pipelines.checks.shared_counts import CellSet, cells_of_dataset, comparable_keys
from data_pipelines.corpus.verify import verify_corpus
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.readers.open_dataset import open_dataset
from scmbert_jax.errors import InputError

SMALL = {"min_genes": 1, "block_size": 16}
RNG = np.random.default_rng(0)
BARCODES = ["".join(letters) for letters in RNG.choice(list("ACGT"), (60, 16))]
COUNTS = RNG.poisson(2.0, (60, 40))
PROTEIN = RNG.poisson(20.0, (60, 5)) + 1


def rna(cells=slice(None), name="{}-1", genes=slice(None)) -> anndata.AnnData:
    """Some of sixty cells; `name` is what is written around their barcodes."""
    ids = [name.format(barcode) for barcode in BARCODES[cells]]
    obs, var = pd.DataFrame(index=ids), pd.DataFrame(index=GENE_IDS[genes])
    return anndata.AnnData(sp.csr_matrix(COUNTS[cells][:, genes].astype(np.float32)), obs, var)


def protein(cells=slice(None), name="{}-1") -> anndata.AnnData:
    ids = [name.format(barcode) for barcode in BARCODES[cells]]
    counts = sp.csr_matrix(PROTEIN[cells].astype(np.float32))
    return anndata.AnnData(counts, pd.DataFrame(index=ids), pd.DataFrame(index=ANTIBODIES))


def one_more(data: anndata.AnnData, cells=slice(None), feature: int = 0) -> anndata.AnnData:
    """The same with another count of one feature."""
    counts = data.X.toarray()
    counts[cells, feature] += 1
    data.X = sp.csr_matrix(counts)
    return data


def opened(data: anndata.AnnData) -> CellSet:
    dataset = open_dataset(data)
    return cells_of_dataset("adata", dataset, check_dataset(dataset, min_genes=1))


def both(rna_cells=slice(None), protein_cells=slice(None), name="{}-1") -> mudata.MuData:
    return mudata.MuData({"rna": rna(rna_cells, name), "prot": protein(protein_cells, name)})


def copies_of(corpus) -> list[dict[str, int]]:
    assert verify_corpus(corpus.path).ok
    return [entry["copies_dropped"] for entry in corpus.datasets]


# --- barcodes and hashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell_id", "barcode"),
    [
        ("AAACCTGAGAAACCAT-1", "AAACCTGAGAAACCAT"),
        ("AAACCTGAGAAACCAT", "AAACCTGAGAAACCAT"),
        ("AAACCTGAGAAACCAT-1-0", "AAACCTGAGAAACCAT"),
        ("sample_A1_AAACCTGAGAAACCAT-1", "AAACCTGAGAAACCAT"),
        ("AAACCTGAGAAACCAT-1_TAG", "AAACCTGAGAAACCAT"),
        ("run:AAACCTGAGAAACCATx", "AAACCTGAGAAACCAT"),  # velocyto
        ("donor2#AAACCTGAGAAACCAT-1", "AAACCTGAGAAACCAT"),  # ArchR
        ("AAACCTGAGAAACCAT-1:rna", "AAACCTGAGAAACCAT"),  # --unpaired
        ("s1.ACGTACGT.TTGGCCAA", "ACGTACGT-TTGGCCAA"),
        ("GATTACA-1", "GATTACA-1"),  # too short for a barcode: the id stands for itself
        ("cell_17", "cell_17"),
        ("cell_17:protein", "cell_17"),
        ("PLATEACGTACGT", "PLATEACGTACGT"),
        ("bcellsAAACGTTGATTCCT-1", "AAACGTTGATTCCT"),  # of FACS-sorted PBMC
        ("CD4AAACGTTGATTCCT.1", "AAACGTTGATTCCT"),
        ("SRR1:ACGGGCTCACCAGGTC-1_3_ACGGGCTCACCAGGTC-1", "ACGGGCTCACCAGGTC"),
        ("ACGTACGT_AAACCTGAGAAACCAT-1", "AAACCTGAGAAACCAT"),  # behind the index of a sample
    ],
)
def test_the_barcode_is_what_is_left_without_what_studies_put_around_it(cell_id, barcode):
    assert barcode_of(cell_id) == barcode


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=6, max_size=6), min_size=1, max_size=5),
    st.permutations(range(6)),
)
def test_a_hash_of_counts_knows_neither_the_order_of_columns_nor_how_they_were_summed(counts, order):
    weights = np.random.default_rng(1).integers(0, 2**64, 6, dtype=np.uint64)
    table = sp.csr_matrix(np.array(counts, np.int64))
    hashes = counts_hashes(table.indptr, weights[table.indices], table.data)
    turned = sp.csr_matrix(table.toarray()[:, order])
    np.testing.assert_array_equal(counts_hashes(turned.indptr, weights[order][turned.indices], turned.data), hashes)
    # each count as two columns of one feature
    halves = sp.csr_matrix(np.hstack([table.toarray() // 2, table.toarray() - table.toarray() // 2]))
    np.testing.assert_array_equal(
        counts_hashes(halves.indptr, np.tile(weights, 2)[halves.indices], halves.data), hashes
    )
    exact = [sum(int(w) * count for w, count in zip(weights, row, strict=True)) % 2**64 for row in counts]
    assert hashes.tolist() == exact


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
@given(st.lists(st.integers(0, 4), min_size=8, max_size=8), st.integers(0, 7), st.integers(1, 1000))
def test_one_count_more_is_another_hash(counts, place, more):
    weights = np.random.default_rng(1).integers(0, 2**64, 8, dtype=np.uint64) | np.uint64(1)
    changed = list(counts)
    changed[place] += more
    rows = sp.csr_matrix([counts, changed])
    first, second = counts_hashes(rows.indptr, weights[rows.indices], rows.data)
    assert first != second


def test_keys_never_say_not_measured_and_stay_the_same_for_ever():
    """What stands in corpora: a change here makes every corpus that was ever built incomparable."""
    keys = cell_keys(barcode_keys(np.array(["AAACCTGAGAAACCAT-1", "x"])), np.array([0, 12345], np.uint64))
    assert keys.tolist() == [5105645202324531361, 2713463638241678126]


# --- which cells go ---------------------------------------------------------------------------------------------------


def test_the_first_file_keeps_a_cell_whatever_the_second_calls_and_orders(tmp_path):
    second = rna(slice(20, 60), "study2_{}-1-0")[:, ::-1].copy()
    second.var["gene_ids"] = second.var_names
    genes = load_gene_table("human")
    symbol_of = dict(zip(genes.ids.tolist(), genes.symbols.tolist(), strict=True))
    second.var_names = [symbol_of[name] for name in second.var_names]
    second.var = second.var[[]]
    corpus = build_corpus(tmp_path / "corpus", [rna(slice(0, 40)), second], **SMALL)
    assert copies_of(corpus) == [{}, {"adata": 20}]
    assert sorted(barcode_of(cell) for cell in corpus.obs()["cell_id"]) == sorted(BARCODES)
    assert corpus.obs()["dataset"].value_counts().to_dict() == {"adata": 40, "adata_2": 20}
    assert corpus.datasets[1]["modalities"]["rna"]["cells_dropped"] == {"that are copies of cells of adata": 20}
    assert corpus.datasets[1]["cells_dropped"] == 20
    everything = build_corpus(tmp_path / "all", [rna(slice(0, 40)), second], **SMALL, keep_duplicates=True)
    assert everything.num_cells == 80
    assert everything.manifest["keep_duplicates"]


def test_the_same_barcode_with_other_counts_is_another_cell(tmp_path):
    corpus = build_corpus(tmp_path / "corpus", [rna(), one_more(rna())], **SMALL)
    assert corpus.num_cells == 120


def test_the_same_counts_with_another_barcode_are_another_cell(tmp_path):
    other = rna(name="{}-1")
    other.obs_names = np.roll(other.obs_names, 1)
    assert build_corpus(tmp_path / "corpus", [rna(), other], **SMALL).num_cells == 120


def test_copies_within_one_file_are_found(tmp_path):
    twice = anndata.concat([rna(name="a_{}-1"), rna(slice(0, 25), "b_{}-1")])
    corpus = build_corpus(tmp_path / "corpus", [twice], **SMALL)
    assert copies_of(corpus) == [{"adata": 25}]
    assert all(cell.startswith("a_") for cell in corpus.obs()["cell_id"])


def test_files_of_different_features_are_compared_on_those_of_both(tmp_path):
    """Gene 0 is only in the first file and gene 39 only in the second; nearly every cell has counts of both."""
    first, second = rna(genes=slice(0, 39)), rna(slice(0, 50), "again_{}", genes=slice(1, 40))
    corpus = build_corpus(tmp_path / "corpus", [first, second], **SMALL, keep_duplicates=True)
    keys = corpus.obs()[KEY_COLUMNS["rna"]]
    assert keys.nunique() > 100  # over all features of each file, the keys differ
    other = rna(slice(50, 60), "new_{}", genes=slice(1, 40))
    other.X = sp.csr_matrix(other.X.toarray() + 1)
    corpus = build_corpus(tmp_path / "one", [first, anndata.concat([second, other])], **SMALL)
    assert copies_of(corpus) == [{}, {"adata": 50}]
    # however few of the features that is, and however few of the cells; the file with more features keeps them
    few = anndata.concat([rna(slice(0, 2), "again_{}", genes=slice(25, 40)), rna(name="{}", genes=slice(25, 40))])
    few = one_more(few, slice(2, None), 3)
    for files, copies in (([first, few], [{}, {"adata": 2}]), ([few, first], [{"adata_2": 2}, {}])):
        corpus = build_corpus(tmp_path / f"few{len(copies[0])}", files, **SMALL)
        assert copies_of(corpus) == copies
        assert corpus.num_cells == 120


def test_the_same_barcode_in_files_of_different_features_is_no_copy_for_that(tmp_path):
    """All sixty barcodes are in both files, and of each cell most counts are its own."""
    first, second = rna(genes=slice(0, 39)), rna(name="again_{}", genes=slice(1, 40))
    second.obs_names = np.roll(second.obs_names, 1)
    assert build_corpus(tmp_path / "corpus", [first, second], **SMALL).num_cells == 120


def test_one_gene_that_is_named_otherwise_does_not_hide_a_copy_and_one_antibody_does(tmp_path):
    """Counts of 200 genes: a group of them disagrees, the others agree. A panel is compared as a whole."""
    genes = load_gene_table("human").ids[:200]
    counts = RNG.poisson(2.0, (60, 200))
    whole = anndata.AnnData(sp.csr_matrix(counts), pd.DataFrame(index=BARCODES), pd.DataFrame(index=genes))
    first, second = whole[:50].copy(), whole[10:, 1:].copy()
    second.obs_names = [f"again_{name}" for name in second.obs_names]
    assert copies_of(build_corpus(tmp_path / "rna", [first, one_more(second)], **SMALL)) == [{}, {"adata": 40}]
    panel, changed = protein(), one_more(protein(slice(0, 40), "again_{}")[:, 1:].copy())
    assert build_corpus(tmp_path / "protein", [panel, changed], organism="human", **SMALL).num_cells == 100


def test_every_file_is_read_once_more_for_all_that_it_is_compared_with(monkeypatch):
    sets = [opened(rna(genes=slice(first, first + 36))) for first in range(4)]
    passes = []
    read = type(sets[0].reader).group_sums

    def counted(reader, wanted):
        passes.append(([cells.reader for cells in sets].index(reader), len(wanted)))
        return read(reader, wanted)

    monkeypatch.setattr(type(sets[0].reader), "group_sums", counted)
    kept_by = copies_among(comparable_keys(sets))
    assert sorted(passes) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [np.count_nonzero(part == STAYS) for part in kept_by] == [60, 0, 0, 0]
    passes.clear()
    monkeypatch.setattr(shared_counts, "_MOST_CELLS", 300)  # two comparisons of 120 candidates at a time
    again = copies_among(comparable_keys(sets))
    assert sum(asked for _, asked in passes) == 12
    assert len(passes) > 4
    assert [part.tolist() for part in again] == [part.tolist() for part in kept_by]


def test_a_file_of_which_nothing_is_left_is_refused(tmp_path):
    with pytest.raises(InputError, match="every cell of adata_2 is in the other files already") as refused:
        build_corpus(tmp_path / "corpus", [rna(), rna(slice(0, 30), "a_{}"), rna(slice(30, 60), "b_{}")], **SMALL)
    assert "every cell of adata_3 is in the other files already" in str(refused.value)  # all of them at once


# --- mosaics ----------------------------------------------------------------------------------------------------------


def test_a_cell_with_more_modalities_stays_wherever_it_comes(tmp_path):
    """RNA alone is a copy of the same RNA with protein; the first cell that has the protein is not dropped for it."""
    corpus = build_corpus(tmp_path / "corpus", [rna(slice(0, 30)), both(slice(20, 60), slice(20, 60))], **SMALL)
    assert copies_of(corpus) == [{"mudata": 10}, {}]
    assert corpus.num_cells == 60
    assert corpus.manifest["cells_by_modalities"] == {"adata": {"rna": 20}, "mudata": {"rna+protein": 40}}


def test_a_cell_of_which_something_is_new_stays(tmp_path):
    """The same RNA beside another protein count: no copy. The same RNA and the same protein: one."""
    changed = both(slice(0, 40), slice(0, 40))
    one_more(changed.mod["prot"], slice(0, 10))
    corpus = build_corpus(tmp_path / "corpus", [both(), changed], **SMALL)
    assert copies_of(corpus) == [{}, {"mudata": 30}]


def test_a_mosaic_of_other_features_is_compared_by_cell_and_not_by_row(tmp_path):
    """The first rows of its RNA are not the first of its cells."""
    mosaic = mudata.MuData({"prot": protein(slice(0, 30)), "rna": rna(slice(20, 60), genes=slice(1, 40))})
    corpus = build_corpus(tmp_path / "corpus", [rna(genes=slice(0, 39)), mosaic], **SMALL)
    assert copies_of(corpus) == [{"mudata": 10}, {"adata": 30}]


def test_cells_that_both_lack_a_modality_are_not_the_same_for_it():
    mine = {"rna": np.array([5, 6, 0], np.uint64), "protein": np.array([0, 0, 9], np.uint64)}
    others = [{"rna": np.array([7, 0], np.uint64), "protein": np.array([0, 9], np.uint64)}]
    assert cells_in(mine, others).tolist() == [False, False, True]


def test_a_modality_of_which_every_cell_is_a_copy_leaves_the_others(tmp_path):
    apart = mudata.MuData({"rna": rna(slice(0, 30)), "prot": protein(slice(30, 60))})
    corpus = build_corpus(tmp_path / "corpus", [rna(), apart], **SMALL)
    assert copies_of(corpus) == [{}, {"adata": 30}]
    assert corpus.manifest["cells_by_modalities"]["mudata"] == {"protein": 30}


def test_modalities_taken_apart_are_copies_of_themselves_together():
    paired = {"rna": np.array([5, 6, 7], np.uint64), "protein": np.array([8, 9, 0], np.uint64)}
    apart = {"rna": np.array([5, 0, 7, 0, 4], np.uint64), "protein": np.array([0, 9, 0, 3, 0], np.uint64)}
    for order, expected in (((paired, apart), [[-1] * 3, [0, 0, 0, -1, -1]]), ((apart, paired), None)):
        kept_by = copies_among(order)
        if expected is not None:
            assert [part.tolist() for part in kept_by] == expected
    # the other way round: cells 0 and 1 of `paired` have more modalities; its third is the RNA that came first
    assert [part.tolist() for part in kept_by] == [[1, 1, -1, -1, -1], [-1, -1, 0]]


_KEY = st.integers(0, 6)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
@given(st.lists(st.lists(st.tuples(_KEY, _KEY), max_size=12), min_size=1, max_size=4))
def test_dropping_copies_loses_no_key_and_keeps_no_cell_that_adds_nothing(sets):
    keys = [
        {"rna": np.array([a for a, _ in cells], np.uint64), "protein": np.array([b for _, b in cells], np.uint64)}
        for cells in sets
    ]
    kept_by = copies_among(keys)
    cells = [cell for of_set in sets for cell in of_set]
    stays = [owner == STAYS for part in kept_by for owner in part.tolist()]

    def parts(cell: tuple[int, int]) -> set[tuple[int, int]]:
        return {(place, key) for place, key in enumerate(cell) if key != NOT_MEASURED}

    kept = [parts(cell) for cell, stay in zip(cells, stays, strict=True) if stay]
    assert set().union(*kept) == set().union(*map(parts, cells))
    for cell, stay in zip(cells, stays, strict=True):
        assert stay or parts(cell) <= set().union(*kept)
    once = {(place, key) for part in kept for place, key in part}
    assert len(kept) <= len(once) + sum(not part for part in kept)


def test_two_million_cells_are_compared_in_seconds_within_24_bytes_a_cell():
    """Two data sets of a million, of which a fifth is in both. Their keys, given here, take 8 of the 24 bytes."""
    cells = 1_000_000
    first = np.random.default_rng(0).integers(1, 2**64, cells, dtype=np.uint64)
    second = np.random.default_rng(1).integers(1, 2**64, cells, dtype=np.uint64)
    second[: cells // 5] = first[::-1][: cells // 5]
    tracemalloc.start()
    before = time.process_time()
    kept_by = copies_among([{"rna": first}, {"rna": second}])
    seconds, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [np.count_nonzero(part != STAYS) for part in kept_by] == [0, cells // 5]
    assert peak / (2 * cells) < 24 - 8
    assert seconds < 20


# --- real cells, and the command line ---------------------------------------------------------------------------------


def test_real_cells_with_symbols_are_those_with_ids(shared_data, tmp_path):
    """PBMC of Zheng 2017: its Ensembl ids in one file, its symbols in another, of which some are unknown."""
    whole = anndata.read_h5ad(shared_data / "pbmc_facs" / "zheng_pbmc_facs.h5ad")
    first, second = whole[:300].copy(), whole[100:400, ::-1].copy()
    second.var_names = second.var["symbol"].astype(str).to_numpy()
    second = second[:, ~second.var_names.duplicated()].copy()
    second.var = second.var[[]]
    second.obs_names = [f"again_{name}" for name in second.obs_names]
    corpus = build_corpus(tmp_path / "corpus", [first, second], block_size=64)
    (of_first, of_second) = corpus.datasets
    assert of_first["modalities"]["rna"]["coverage"] != of_second["modalities"]["rna"]["coverage"]
    assert copies_of(corpus) == [{}, {"adata": 200}]


def test_doctor_and_build_say_how_many_copies_there_are(tmp_path):
    rna(slice(0, 40)).write_h5ad(tmp_path / "first.h5ad")
    rna(slice(20, 60), "other_{}").write_h5ad(tmp_path / "second.h5ad")
    files = (tmp_path / "first.h5ad", tmp_path / "second.h5ad")
    text = scmbert_ok("doctor", *files, "--min-genes", "1")
    assert "20 cells that are copies of cells of first: same barcode, same counts; dropped, unless" in text
    assert "40, kept 20" in text
    out = scmbert_ok("corpus", "build", tmp_path / "corpus", *files, "--min-genes", "1")
    assert "data set second: 20 cells (dropped: rna: 20 that are copies of cells of first)" in out
    kept = scmbert_ok("corpus", "build", tmp_path / "kept", *files, "--min-genes", "1", "--keep-duplicates")
    assert "data set second: 40 cells" in kept
    assert scmbert("doctor", *files, "--min-genes", "1", "--keep-duplicates").out.count("kept 40") == 2
