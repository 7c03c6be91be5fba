"""Mixtures: which cells are drawn and how often, what identifies them, and what cannot be mixed."""

from dataclasses import replace

import numpy as np
import pytest
from mixed_corpora import Made, made, two_corpora

from data_pipelines.batches.batch_reader import BatchReader
from data_pipelines.batches.collate import TokenSampling
from data_pipelines.batches.mixture_information import information_of_mixture
from data_pipelines.build.build_corpus import build_corpus
from data_pipelines.cells.cell_selection import CellSelection
from data_pipelines.corpus.corpus import Corpus, open_corpus
from data_pipelines.features.feature_space import FeatureSpace
from data_pipelines.sampling.drawn_together import fraction_with_another
from data_pipelines.sampling.mixture import UNKNOWN_CLASS, Mixture, MixtureOptions
from data_pipelines.synthetic.cells import synthetic_cells
from scmbert_jax.errors import ConfigError, InputError

SAMPLING = {
    "rna": TokenSampling(40, 0.25, profile_tokens=100),
    "protein": TokenSampling(12, 0.5, profile_tokens=100),
}
SETTINGS = {"seed": 3, "global_batch_size": 24, "num_streams": 4, "window_blocks": 2}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Made, Made]:
    return two_corpora(tmp_path_factory.mktemp("mixed"))


@pytest.fixture
def corpora(both) -> list[Corpus]:
    return [open_corpus(one.path) for one in both]


def only(**fields: str) -> CellSelection:
    return CellSelection({name: tuple(values.split(",")) for name, values in fields.items()})


# --- what a batch holds ----------------------------------------------------------------------------------------------


def test_every_token_of_a_mixture_is_a_count_of_the_cell_it_names(both, corpora):
    mixture = Mixture(corpora, MixtureOptions(corpus_weights=(1, 2)))
    joined = mixture.joined
    assert len(joined.feature_space.modalities["rna"]) == 100
    reader = BatchReader(mixture, SAMPLING, **SETTINGS, covariates=("technical_batch", "cell_type", "dataset"))
    obs = [corpus.obs() for corpus in corpora]
    rows = [{cell: row for row, cell in enumerate(one.cells.cell_ids)} for one in both]
    seen = [0, 0]
    for step in range(30):
        batch = reader.batch_at(step)
        for row, index in enumerate(batch.cell_index):
            which = int(index >= corpora[0].num_cells)
            seen[which] += 1
            about = obs[which].iloc[index - joined.translations[which].first_cell]
            cell = rows[which][about["cell_id"]]
            for name, tokens in batch.modalities.items():
                columns = both[which].columns[name]
                counts = both[which].cells.counts[name].toarray()[cell]
                ids = joined.feature_space.modalities[name].ids
                place = {feature: column for column, feature in enumerate(both[which].cells.feature_ids[name])}
                assert tokens.measured[row] == both[which].cells.measured[name][cell]
                assert tokens.library_size[row] == counts[columns].sum()
                assert tokens.num_measured[row] == len(columns) * tokens.measured[row]
                first = joined.feature_space.slices[name][0]
                for feature, count in zip(
                    tokens.feature_ids[row, : tokens.lengths[row]] - first, tokens.counts[row], strict=False
                ):
                    assert place[ids[feature]] in columns
                    assert counts[place[ids[feature]]] == count
                profile = batch.profiles[name]
                there = slice(0, profile.lengths[row])
                asked = [place[ids[feature]] for feature in profile.feature_ids[row, there] - first]
                assert set(asked) == set(columns[counts[columns] > 0].tolist())
                np.testing.assert_array_equal(profile.counts[row, there], counts[asked])
                panel = np.unpackbits(profile.panel[row], count=len(ids), bitorder="little").astype(bool)
                assert {place.get(feature) for feature in ids[panel]} == set(columns if tokens.measured[row] else ())
            known = {name: joined.vocabularies[name][codes[row]] for name, codes in batch.covariates.items()}
            dataset = ("mudata", "mudata_2")[which]
            assert known == {
                "dataset": dataset,
                "cell_type": about["cell_type"],
                "technical_batch": f"{dataset}/{about['technical_batch']}",
            }
    assert seen == [240, 480]


def test_a_cell_that_comes_again_shows_other_tokens(both, corpora):
    """90 cells with half of the draws come again and again while the 300 are not through once."""
    reader = BatchReader(Mixture(corpora, MixtureOptions(corpus_weights=(1, 1))), SAMPLING, **SETTINGS)
    shown: dict[int, list[tuple[int, ...]]] = {}
    for step in range(40):
        batch = reader.batch_at(step)
        rna = batch.modalities["rna"]
        for row, cell in enumerate(batch.cell_index.tolist()):
            if rna.measured[row]:
                shown.setdefault(cell, []).append(tuple(rna.feature_ids[row].tolist()))
    repeated = [found for found in shown.values() if len(found) > 2]
    assert len(repeated) > 50
    assert all(len(set(found)) == len(found) for found in repeated)


def test_cells_of_equal_number_in_two_corpora_are_shown_by_randomness_of_their_own(tmp_path):
    """The same cells under other labels: two corpora, in which the same cell has the same number."""
    corpora = []
    for name in ("first", "second"):
        data = synthetic_cells(64, 100, num_batches=2, mosaic=False).to_mudata().mod["rna"]
        data.obs["cell_type"] = [f"{name} {label}" for label in data.obs["cell_type"]]
        corpora.append(build_corpus(tmp_path / name, [data], min_genes=5, block_size=8))
    np.testing.assert_array_equal(*(corpus.obs()["cell_id"] for corpus in corpora))
    reader = BatchReader(Mixture(corpora, modalities=["rna"]), {"rna": TokenSampling(20)}, **SETTINGS)
    shown = {}
    for step in range(3):
        batch = reader.batch_at(step)
        shown |= dict(zip(batch.cell_index.tolist(), batch.modalities["rna"].feature_ids.tolist(), strict=True))
    twice = [cell for cell in shown if cell < 64 and cell + 64 in shown]
    assert len(twice) > 10
    assert not any(shown[cell] == shown[cell + 64] for cell in twice)


def test_the_fraction_of_cells_that_meet_another_of_their_technical_batch_is_that_of_the_batches(corpora):
    reader = BatchReader(
        Mixture(corpora, MixtureOptions(together="technical_batch")),
        SAMPLING,
        **{**SETTINGS, "global_batch_size": 8},
        covariates=("technical_batch",),
    )
    steps = np.unique(np.linspace(0, reader.steps_per_epoch - 1, 16).astype(int)).tolist()
    fractions = [fraction_with_another(reader.batch_at(step).covariates["technical_batch"]) for step in steps]
    assert reader.fraction_together() == pytest.approx(np.mean(fractions))
    assert 0.5 < np.mean(fractions) < 1
    assert BatchReader(Mixture(corpora), SAMPLING, **SETTINGS).fraction_together() is None


def test_a_filter_draws_its_cells_and_no_others_each_once_an_epoch(corpora):
    corpus = corpora[0]
    wanted = np.flatnonzero(corpus.obs()["cell_type"].isin(["type1", "type2"]))
    mixture = Mixture([corpus], MixtureOptions(only(cell_type="type1,type2")))
    reader = BatchReader(mixture, SAMPLING, **SETTINGS)
    assert mixture.num_cells == len(wanted) < corpus.num_cells
    for epoch in range(3):
        steps = range(epoch * reader.steps_per_epoch, (epoch + 1) * reader.steps_per_epoch)
        seen = np.concatenate([reader.batch_at(step).cell_index for step in steps])
        assert len(np.unique(seen)) == len(seen)
        assert set(seen) <= set(wanted.tolist())
        assert len(wanted) - len(seen) < SETTINGS["global_batch_size"] + len(reader.order.source_orders[0].block_sizes)


def test_the_cells_of_a_filter_are_what_they_are_in_the_whole_corpus(corpora):
    sampling = {"rna": TokenSampling(100), "protein": TokenSampling(12, 0.5)}  # all expressed: no choice of tokens
    whole = BatchReader(corpora[0], sampling, **SETTINGS)
    some = BatchReader(Mixture(corpora[:1], MixtureOptions(only(cell_type="type1"))), sampling, **SETTINGS)

    def cells(reader):
        found = {}
        for step in range(reader.steps_per_epoch):
            batch = reader.batch_at(step)
            for row, cell in enumerate(batch.cell_index.tolist()):
                found[cell] = [np.array(x[row]).tolist() for t in batch.modalities.values() for x in t]
        return found

    left, right = cells(whole), cells(some)
    shared = set(left) & set(right)
    assert len(shared) > 30
    assert all(left[cell] == right[cell] for cell in shared)


# --- how often -------------------------------------------------------------------------------------------------------


def drawn(mixture: Mixture, steps: int = 60, **settings) -> np.ndarray:
    reader = BatchReader(mixture, SAMPLING, **{**SETTINGS, **settings})
    return np.concatenate([reader.batch_at(step).cell_index for step in range(steps)])


def test_classes_are_drawn_equally_over_all_corpora(corpora):
    mixture = Mixture(corpora, MixtureOptions(balance_by="cell_type"))
    types = np.concatenate([corpus.obs()["cell_type"].to_numpy(str) for corpus in corpora])
    cells = drawn(mixture, 80)
    names, counts = np.unique(types[cells], return_counts=True)
    assert names.tolist() == [f"type{n}" for n in range(4)]
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.01)
    for name in names:  # within a class each cell of either corpus as often as every other
        fraction = np.mean(cells[types[cells] == name] >= corpora[0].num_cells)
        assert fraction == pytest.approx(np.mean(np.flatnonzero(types == name) >= corpora[0].num_cells), abs=0.03)


def test_classes_of_corpora_with_weights_are_balanced_within_each(corpora):
    mixture = Mixture(corpora, MixtureOptions(corpus_weights=(1, 3), balance_by="cell_type"))
    types = np.concatenate([corpus.obs()["cell_type"].to_numpy(str) for corpus in corpora])
    cells = drawn(mixture, 80)
    of_right = cells >= corpora[0].num_cells
    assert of_right.mean() == pytest.approx(0.75, abs=0.01)
    for part in (cells[of_right], cells[~of_right]):
        _, counts = np.unique(types[part], return_counts=True)
        np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.02)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (300, 90)),
        ({"corpus_temperature": float("inf")}, (1, 1)),
        ({"corpus_temperature": 2.0}, (300**0.5, 90**0.5)),
        ({"corpus_weights": (2.0, 5.0)}, (2, 5)),
        ({"corpus_weights": (1.0, 9.0), "max_fraction": 0.6}, (4, 6)),
        ({"corpus_weights": (1.0, 1.0), "max_repeats": 1.5}, (390 - 135, 135)),
    ],
)
def test_the_fractions_of_corpora(corpora, options, expected):
    draws = Mixture(corpora, MixtureOptions(**options)).draws
    np.testing.assert_allclose(draws / draws.sum(), np.array(expected) / sum(expected), atol=1 / 2048)


def test_cells_without_a_class_are_a_class_of_their_own(tmp_path):
    data = synthetic_cells(120, 60, num_batches=2, mosaic=False).to_mudata().mod["rna"]
    data.obs["cell_type"] = data.obs["cell_type"].astype(object).where(data.obs["cell_type"] != "type0", None)
    unknown = int(data.obs["cell_type"].isna().sum())
    corpus = build_corpus(tmp_path / "corpus", [data], min_genes=5, block_size=8)
    sources = {
        source.group: source.num_cells for source in Mixture([corpus], MixtureOptions(balance_by="cell_type")).sources
    }
    assert list(sources) == [UNKNOWN_CLASS, "type1", "type2", "type3"]
    assert sources[UNKNOWN_CLASS] == unknown > 0


def test_the_classes_of_technical_batches_are_those_of_the_vocabulary(corpora):
    mixture = Mixture(corpora, MixtureOptions(balance_by="technical_batch"))
    assert sorted({source.group for source in mixture.sources}) == mixture.joined.vocabularies["technical_batch"]


def test_what_is_drawn_is_told_and_nothing_is_said_of_a_corpus_as_it_is(corpora):
    assert Mixture(corpora[:1]).in_words() == []
    first, *lines = Mixture(corpora, MixtureOptions(only(cell_type="type0"), corpus_weights=(3, 1))).in_words()
    assert " of 390 cells are drawn" in first
    assert lines[0].startswith("   75.00% from")
    assert str(corpora[1].path) in lines[1]


# --- identity --------------------------------------------------------------------------------------------------------


def test_a_corpus_as_it_is_has_its_own_fingerprint_and_anything_else_another(corpora):
    left = corpora[:1]
    prints = [
        Mixture(left).fingerprint,
        Mixture(left, MixtureOptions(only(cell_type="type1"))).fingerprint,
        Mixture(left, MixtureOptions(only(cell_type="type2"))).fingerprint,
        Mixture(left, MixtureOptions(balance_by="cell_type")).fingerprint,
        Mixture(left, MixtureOptions(balance_by="cell_type", balance_temperature=2)).fingerprint,
        Mixture(corpora).fingerprint,
        Mixture(corpora[::-1]).fingerprint,
        Mixture(corpora, MixtureOptions(corpus_weights=(2, 1))).fingerprint,
        Mixture(left, MixtureOptions(together="technical_batch")).fingerprint,
        Mixture(corpora, MixtureOptions(together="technical_batch")).fingerprint,
    ]
    assert prints[0] == corpora[0].fingerprint
    assert len(set(prints)) == len(prints)
    everything = MixtureOptions(only(cell_type="type0,type1,type2,type3"))
    assert Mixture(left, everything).fingerprint == prints[0]  # the same cells, asked for in other words


def test_the_same_options_give_the_same_batches_and_fingerprint(both, corpora):
    options = MixtureOptions(only(cell_type="type0,type1"), corpus_weights=(1, 2))
    again = [open_corpus(one.path) for one in both]
    one, other = (Mixture(parts, options) for parts in (corpora, again))
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(drawn(one, 5), drawn(other, 5))


def test_a_description_says_what_was_asked_for_in_json(corpora):
    import json

    options = MixtureOptions(only(cell_type="type0"), corpus_temperature=float("inf"), max_fraction=0.7)
    description = json.loads(json.dumps(Mixture(corpora, options).describe(), allow_nan=False))
    assert description["options"] == {
        "only": {"cell_type": ["type0"]},
        "corpus_temperature": "inf",
        "max_fraction": 0.7,
    }
    assert [corpus["num_cells"] for corpus in description["corpora"]] == [300, 90]
    assert [source["draws"] for source in description["sources"]] == [2048, 2048]


def test_the_information_of_a_mixture_counts_the_cells_that_are_drawn(both, corpora):
    """By reading blocks where a batch has cells of several kinds, by the manifest elsewhere: as counted here."""
    for options in (MixtureOptions(), MixtureOptions(only(cell_type="type1")), MixtureOptions(balance_by="cell_type")):
        information = information_of_mixture(Mixture(corpora, options), ["rna", "protein"])
        paired, cells = 0, {}
        for number, one in enumerate(both):
            kept = np.isin(one.cells.cell_type, options.selection.only.get("cell_type", one.cells.cell_type))
            rna, protein = (one.cells.measured[name] for name in ("rna", "protein"))
            paired += int((kept & rna & protein).sum())
            for batch in np.unique(one.cells.technical_batch[kept]):
                here = kept & (one.cells.technical_batch == batch)
                cells[f"mudata{'_2' * number}/{batch}"] = int(here.sum())
        assert information["paired_cells"] == paired
        assert {batch: sum(counts.values()) for batch, counts in information["cells"].items()} == cells
        assert information["unpaired"] is False


def test_cells_are_counted_from_their_blocks_where_a_batch_has_several_kinds(tmp_path):
    """A batch half of whose cells have protein: the manifest cannot know which of them a filter keeps."""
    data = synthetic_cells(120, 60, 12, num_batches=1, mosaic=False).to_mudata()
    data.mod["protein"] = data.mod["protein"][::2].copy()
    corpus = build_corpus(tmp_path / "corpus", [type(data)(dict(data.mod))], min_genes=5, block_size=8)
    types = data.mod["rna"].obs["cell_type"].to_numpy(str)
    mixture = Mixture([corpus], MixtureOptions(only(cell_type="type1")))
    information = information_of_mixture(mixture, ["rna", "protein"])
    assert information["cells"] == {
        "mudata/batch0": {
            "rna": int((types[1::2] == "type1").sum()),
            "rna+protein": int((types[::2] == "type1").sum()),
        }
    }


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus_weights": (1.0, 2.0, 3.0)}, "3 weights for 2 corpora"),
        ({"corpus_weights": (1.0, -2.0)}, "weight -2; expected positive"),
        ({"corpus_weights": (1.0, 2.0), "corpus_temperature": 2.0}, "both say how often"),
        ({"corpus_temperature": -1.0}, "temperature -1"),
        ({"balance_by": "tissue"}, "--balance-by tissue: it is known of no cell of .*left.*right"),
        ({"balance_temperature": 2.0}, "needs the field"),
        ({"max_fraction": 0.3}, r"--max-fraction 0.3: the 2 groups may have 0.6 of the draws"),
        ({"max_fraction": -0.1}, "max_fraction is -0.1"),
        ({"max_repeats": 0.5}, "max_repeats is 0.5; expected 1 or more"),
        ({"selection": only(dataset="mudata")}, r"right: none of its 90 cells is left by --only dataset=mudata"),
    ],
)
def test_options_that_do_not_fit_are_refused(corpora, options, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(corpora, MixtureOptions(**options))


@pytest.mark.parametrize("selection", [only(donor="1"), only(cell_type="neuron"), CellSelection({}, {"donor": ("1",)})])
def test_a_field_or_value_that_no_cell_has_is_refused(corpora, selection):
    with pytest.raises(InputError, match=r"donor|neuron"):
        Mixture(corpora, MixtureOptions(selection))


def test_a_filter_that_leaves_less_than_a_batch_is_refused(corpora):
    with pytest.raises(ConfigError, match=r"left.*--only cell_type=type1 .*96"):
        BatchReader(
            Mixture(corpora[:1], MixtureOptions(only(cell_type="type1"))),
            SAMPLING,
            **{**SETTINGS, "global_batch_size": 96},
        )


def test_the_same_corpus_twice_is_refused(both, corpora):
    with pytest.raises(ConfigError, match="are the same corpus: give it once"):
        Mixture([corpora[0], open_corpus(both[0].path)])


def test_corpora_without_a_common_feature_are_refused_where_it_is_read(tmp_path):
    one = made(tmp_path / "one", 60, {"rna": range(60), "protein": range(6)}, seed=0)
    other = made(tmp_path / "other", 60, {"rna": range(40, 100), "protein": range(6, 12)}, seed=1)
    corpora = [open_corpus(part.path) for part in (one, other)]
    with pytest.raises(ConfigError, match=r"protein: .*one .*other.*num_tokens of protein"):
        Mixture(corpora)
    assert Mixture(corpora, modalities=["rna"]).joined.num_cells == 120


def test_another_organism_or_assembly_is_refused_with_the_reason(corpora):
    def told(corpus: Corpus, changes: dict[str, str]) -> Corpus:
        modalities = {
            name: replace(features, space=changes[name]) for name, features in corpus.feature_space.modalities.items()
        }
        corpus.feature_space = FeatureSpace(modalities)
        return corpus

    mouse = told(corpora[1], {"rna": "gene:mouse", "protein": "protein:mouse"})
    with pytest.raises(ConfigError, match=r"right .*left: rna: .*gene:human .*gene:mo"):
        Mixture([corpora[0], mouse])


def test_features_that_other_versions_place_elsewhere_are_refused(corpora):
    rna = corpora[1].feature_space.modalities["rna"]
    moved = replace(rna, start=rna.start + 7)
    corpora[1].feature_space = FeatureSpace({**corpora[1].feature_space.modalities, "rna": moved})
    with pytest.raises(ConfigError, match=r"right: 60 features of rna, .*ENSG\d+"):
        Mixture(corpora)
