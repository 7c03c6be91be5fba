"""Options behind the name of a file: read as written, or refused; they hold for that file."""

import pytest

from data_pipelines.readers.reading_options import ReadingOptions, split_query
from scmbert_jax.errors import InputError


def test_options_stand_behind_the_name():
    text = "census:stable?organism=human&obs_value_filter=cell_type == 'IgG%2B %26 x' and is_primary_data == True"
    place, options = split_query(text)
    assert place == "census:stable"
    assert options == {
        "organism": "human",
        "obs_value_filter": "cell_type == 'IgG+ & x' and is_primary_data == True",
    }
    assert split_query("a.h5ad") == ("a.h5ad", {})


def test_a_file_whose_name_has_a_question_mark_is_a_file(tmp_path):
    path = tmp_path / "what?a=b"
    path.write_text("")
    assert split_query(str(path)) == (str(path), {})


@pytest.mark.parametrize("query", ["", "a", "a=", "=b", "a=b&", "a=b&a=c"])
def test_what_is_no_query_is_refused(query):
    with pytest.raises(InputError, match="expected NAME=VALUE"):
        split_query(f"x.h5ad?{query}")


def test_the_options_of_one_file_stand_before_those_of_all():
    everyone = ReadingOptions(assembly="hg38", min_fragments=1000)
    one = everyone.replaced({"barcodes": "list.tsv", "fragment_counts": "cut-sites"}, "x")
    assert one == ReadingOptions(assembly="hg38", barcodes="list.tsv", fragment_counts="cut-sites")
    assert everyone.replaced({"min_fragments": "7"}, "x").min_fragments == 7


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"colour": "red"}, "x: no option 'colour'; there is assembly, regions"),
        ({"min_fragments": "many"}, "min_fragments=many is not a whole number"),
        ({"min_fragments": "0"}, "expected at least 1"),
        ({"min_fragments": "3", "barcodes": "a"}, "not both"),
        ({"fragment_counts": "reads"}, "expected fragments or cut-sites"),
        ({"full_length": "yes"}, "expected refuse or length-normalise"),
        ({"gene_lengths": "l.tsv"}, "only used by full_length length-normalise"),
    ],
)
def test_impossible_options_are_refused(query, message):
    with pytest.raises(InputError, match=message):
        ReadingOptions().replaced(query, "x")
