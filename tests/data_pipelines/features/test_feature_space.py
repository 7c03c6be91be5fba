"""The feature space: canonical order, one hash, safe storage."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.features import feature_space
from data_pipelines.features.feature_space import FeatureSpace, ModalityFeatures
from scmbert_jax.errors import InputError


def genes(ids, space="gene:human"):
    n = len(ids)
    return ModalityFeatures.sorted("rna", space, ids, [f"n{i}" for i in ids], ["chr1"] * n, [1] * n, [2] * n, [()] * n)


def proteins(links: dict[str, tuple[str, ...]], names=None, space="protein:human"):
    ids = list(links)
    n = len(ids)
    return ModalityFeatures.sorted(
        "protein", space, ids, names or ids, [""] * n, [-1] * n, [-1] * n, list(links.values())
    )


def test_the_space_does_not_depend_on_the_order_in_which_features_were_seen():
    one = FeatureSpace({"rna": genes(["B", "A", "C"]), "protein": proteins({"cd4": ("A",), "cd3": ("B",)})})
    other = FeatureSpace({"protein": proteins({"cd3": ("B",), "cd4": ("A",)}), "rna": genes(["C", "B", "A"])})
    assert one.content_hash == other.content_hash
    assert list(one.modalities) == ["rna", "protein"]
    assert one.modalities["rna"].ids.tolist() == ["A", "B", "C"]


def test_union_is_commutative_and_associative():
    a, b, c = (FeatureSpace({"rna": genes(ids)}) for ids in (["A", "B"], ["C", "B"], ["D"]))
    assert a.union(b).union(c) == c.union(b.union(a))
    assert a.union(b).modalities["rna"].ids.tolist() == ["A", "B", "C"]


@pytest.mark.parametrize("change", ["id", "link", "space", "position"])
def test_the_hash_changes_with_everything_the_weights_depend_on(change):
    base = FeatureSpace({"rna": genes(["A", "B"]), "protein": proteins({"cd4": ("A",)})})
    changed = {
        "id": FeatureSpace({"rna": genes(["A", "X"]), "protein": proteins({"cd4": ("A",)})}),
        "link": FeatureSpace({"rna": genes(["A", "B"]), "protein": proteins({"cd4": ("B",)})}),
        "space": FeatureSpace(
            {"rna": genes(["A", "B"], "gene:mouse"), "protein": proteins({"cd4": ("A",)}, space="protein:mouse")}
        ),
        "position": FeatureSpace(
            {
                "rna": ModalityFeatures.sorted(
                    "rna", "gene:human", ["A", "B"], ["nA", "nB"], ["chr1"] * 2, [7, 1], [9, 2], [(), ()]
                ),
                "protein": proteins({"cd4": ("A",)}),
            }
        ),
    }[change]
    assert changed.content_hash != base.content_hash


def test_the_hash_ignores_how_an_antibody_is_written():
    one = FeatureSpace({"protein": proteins({"cd4": ("A",)}, names=["CD4"])})
    other = FeatureSpace({"protein": proteins({"cd4": ("A",)}, names=["Hu.CD4"])})
    assert one.content_hash == other.content_hash


def test_layout_keeps_only_links_whose_two_ends_are_rows():
    space = FeatureSpace({"rna": genes(["A", "B"]), "protein": proteins({"cd3": ("B", "Z"), "cd4": ("A",), "x": ()})})
    layout = space.layout({"donor": 3})
    assert layout.slices == {"rna": (0, 2), "protein": (2, 5)}
    rows, linked = layout.links["protein"]
    assert list(zip(rows.tolist(), linked.tolist(), strict=True)) == [(2, 1), (3, 0)]
    assert rows.dtype == np.int32
    assert layout.covariate_sizes == {"donor": 3}
    assert layout.num_features == space.num_features == 5


def test_save_and_load_give_back_the_same_space(tmp_path):
    space = FeatureSpace({"rna": genes(["A", "B"]), "protein": proteins({"cd3": ("B", "Z"), "x": ()})})
    space.save(tmp_path / "space.parquet")
    loaded = FeatureSpace.load(tmp_path / "space.parquet")
    assert loaded == space
    assert loaded.modalities["protein"].links == space.modalities["protein"].links
    assert loaded.modalities["rna"].names.tolist() == ["nA", "nB"]


def test_every_flipped_byte_of_a_saved_space_is_noticed(tmp_path):
    space = FeatureSpace({"rna": genes([f"ENSG{i:011d}" for i in range(50)])})
    path = tmp_path / "space.parquet"
    space.save(path)
    good = path.read_bytes()
    noticed = 0
    for position in range(0, len(good), 37):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            loaded = FeatureSpace.load(path)
        except InputError as error:
            noticed += "space.parquet" in str(error)
        else:  # a byte of parquet's own statistics may be flipped without touching the content
            assert loaded._digest(True) == space._digest(True)
    assert noticed > len(good) // 37 // 3


@pytest.mark.parametrize(
    "change", [{"file_hash": None}, {"content_hash": None}, {"spaces": []}, {"spaces": {"rna": 1}}, {"spaces": None}]
)
def test_what_a_file_says_of_itself_may_lack_a_field_or_be_of_another_type(tmp_path, change):
    path = tmp_path / "space.parquet"
    FeatureSpace({"rna": genes(["ENSG00000000001"])}).save(path)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"scmbert_feature_space"]) | change
    about = {name: value for name, value in about.items() if value is not None}
    pq.write_table(table.replace_schema_metadata({"scmbert_feature_space": json.dumps(about)}), path)
    with pytest.raises(InputError, match=r"space\.parquet"):
        FeatureSpace.load(path)


def test_a_missing_or_foreign_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no feature space there"):
        FeatureSpace.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match=r"text\.parquet"):
        FeatureSpace.load(tmp_path / "text.parquet")


def test_two_organisms_or_two_assemblies_never_share_a_space():
    with pytest.raises(InputError, match="one corpus per organism"):
        FeatureSpace({"rna": genes(["A"])}).union(FeatureSpace({"rna": genes(["A"], "gene:mouse")}))
    with pytest.raises(InputError, match="one organism"):
        FeatureSpace({"rna": genes(["A"], "gene:mouse"), "protein": proteins({"cd3": ()})})


@pytest.mark.slow
@given(st.text(), st.text(), st.integers(-1, 2**40), st.lists(st.text(), max_size=3).map(tuple), st.text())
def test_the_text_that_is_hashed_is_that_of_json(feature_id, chrom, start, links, name):
    row = (feature_id, chrom, start, start + 1, links, name)
    assert feature_space._row_text(*row) == json.dumps(row)
