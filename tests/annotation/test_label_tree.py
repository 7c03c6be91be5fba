import csv
from importlib.resources import files

import numpy as np
import pytest

from scmbert_jax.annotation.label_tree import LabelTree, cell_ontology, plain_label, read_hierarchy
from scmbert_jax.errors import InputError

TABLE = "child,parent\nT cell,lymphocyte\nB cell,lymphocyte\nCD4 T cell,T cell\nCD8 T cell,T cell\nTreg,CD4 T cell\n"


@pytest.fixture
def hierarchy(tmp_path):
    (tmp_path / "types.csv").write_text(TABLE)
    return read_hierarchy(tmp_path / "types.csv")


def test_without_a_hierarchy_every_label_is_a_leaf():
    tree = LabelTree.of(["b", "a", "", "b"])
    assert tree.leaves == ("a", "b")
    assert tree.membership(np.array(["b", "", "other"])).tolist() == [[False, True], [False, False], [False, False]]


def test_a_coarse_label_covers_the_leaves_below_it(hierarchy):
    tree = LabelTree.of(["T cell", "CD4 T cell", "CD8 T cell", "B cell"], hierarchy)
    assert tree.leaves == ("B cell", "CD4 T cell", "CD8 T cell")
    found = tree.membership(np.array(["T cell", "CD8 T cell", "lymphocyte", "Treg"]))
    # A label below a leaf is none of its own cells' labels: a classifier of these leaves cannot learn from it.
    assert found.tolist() == [[False, True, True], [False, False, True], [True, True, True], [False, False, False]]


def test_a_coarse_label_with_nothing_below_it_is_a_leaf(hierarchy):
    assert LabelTree.of(["T cell", "B cell"], hierarchy).leaves == ("B cell", "T cell")


def test_right_is_the_same_type_or_one_below_it_never_one_above(hierarchy):
    tree = LabelTree.of(["Treg", "B cell"], hierarchy)
    predicted = np.array(["Treg", "T cell", "T cell", "B cell", "x", ""])
    truth = np.array(["T cell", "Treg", "T cell", "T cell", "x", ""])
    assert tree.is_right(predicted, truth).tolist() == [True, False, True, False, True, False]


def test_names_differ_in_more_than_capitals_blanks_plurals_and_signs():
    same = ["CD14+ Monocytes", "CD14-positive monocyte", "cd14+_monocyte"]
    assert len(set(map(plain_label, same))) == 1
    assert plain_label("CD4+/CD25- T") != plain_label("CD4+/CD25+ T")
    assert plain_label("CD14+CD16- mono") == plain_label("CD14+ CD16-negative Mono")
    assert plain_label("NK-T") == plain_label("NK T")


def test_a_label_that_the_hierarchy_lacks_is_named_with_the_nearest(hierarchy):
    tree = LabelTree.of(["T cel", "B cell", "ghost"], hierarchy)
    assert tree.leaves == ("B cell", "T cel", "ghost")
    assert tree.unplaced(tree.leaves) == {"T cel": "T cell", "ghost": ""}
    assert LabelTree.of(["ghost"]).unplaced(["ghost"]) == {}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a,b\nb,c\nc,a\n", "a < b < c < a: a type cannot stand above itself"),
        ("a,a\n", "a < a: a type cannot"),
        ("a,b\na,c\n", "line 3: 'a' has two parents, 'b' and 'c'"),
        ("a,b\n,c\n", "line 3 has no child"),
    ],
)
def test_a_hierarchy_that_contradicts_itself_is_refused(tmp_path, lines, said):
    (tmp_path / "types.csv").write_text("child,parent\n" + lines)
    with pytest.raises(InputError) as refused:
        read_hierarchy(tmp_path / "types.csv")
    assert said in str(refused.value)
    assert str(tmp_path / "types.csv") in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"), [("type,above\na,b\n", "found type, above"), ("", "no lines"), (None, "No such")]
)
def test_what_is_no_hierarchy_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "types.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_hierarchy(tmp_path / "types.csv")


def test_two_names_of_one_type_are_refused():
    with pytest.raises(InputError, match="labels 'B' and 'B cells': both are 'B cell' of the Cell Ontology"):
        LabelTree.of(["B", "B cells"], cell_ontology())


def test_the_cell_ontology_places_the_names_that_data_sets_use():
    labels = {
        "CD4+/CD45RA+/CD25- Naive T": "naive thymus-derived CD4-positive, alpha-beta T cell",
        "CD14+ Monocytes": "classical monocyte",
        "FCGR3A+ Monocytes": "non-classical monocyte",
        "CD8 T cells": "CD8-positive, alpha-beta T cell",
        "NK cells": "natural killer cell",
        "Megakaryocytes": "megakaryocyte",
        "pDC": "plasmacytoid dendritic cell",
    }
    ontology = cell_ontology()
    assert {label: ontology.type_of(label) for label in labels} == labels
    tree = LabelTree.of([*labels, "T cell", "Mono"], ontology)
    assert set(tree.leaves) == set(labels)
    assert tree.is_right(np.array(["CD8 T cells", "pDC", "NK cells"]), np.array(["T", "DC", "T"])).tolist() == [
        True,
        True,
        False,
    ]


def test_the_cell_ontology_has_no_circle_and_no_name_of_two_types():
    ontology = cell_ontology()
    assert len(ontology.parents) > 180
    for name in ontology.parents:
        LabelTree((name,), ontology).is_right(np.array([name]), np.array(["leukocyte"]))
        assert not _above(ontology, name, name)
    text = files("scmbert_jax.annotation").joinpath("cell_ontology.csv").read_text()
    assert "CC BY 4.0" in text
    owners: dict[str, set[str]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        for name in (row["name"], *row["synonyms"].split("|")):
            owners.setdefault(plain_label(name), set()).add(row["name"])
    assert {name: found for name, found in owners.items() if name and len(found) > 1} == {}


def _above(ontology, name, wanted):
    return any(parent == wanted or _above(ontology, parent, wanted) for parent in ontology.parents[name])
