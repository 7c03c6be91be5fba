"""Networks by name, with a stand-in for the package that fetches them."""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from data_pipelines.networks.named_networks import read_network
from scmbert_jax.errors import InputError


@pytest.fixture
def calls(monkeypatch):
    """What decoupler 2 is asked for; it has two networks."""
    asked = []

    def collectri(organism, license):
        asked.append(("collectri", organism, license))
        return pd.DataFrame({"source": ["MYC"], "target": ["TERT"], "weight": [-1], "resources": ["ExTRI"]})

    def dorothea(organism, license):
        asked.append(("dorothea", organism, license))
        return pd.DataFrame({"source": ["MYC"], "target": ["TERT"], "weight": [0.5], "confidence": ["B"]})

    operations = SimpleNamespace(collectri=collectri, dorothea=dorothea)
    monkeypatch.setitem(sys.modules, "decoupler", SimpleNamespace(op=operations))
    monkeypatch.delenv("SCMBERT_NETWORKS", raising=False)
    return asked


def test_a_network_comes_by_name_with_its_licence(calls):
    edges = read_network("network:collectri", "mouse")
    assert (edges.source.tolist(), edges.target.tolist(), edges.sign.tolist()) == (["MYC"], ["TERT"], [-1])
    assert edges.about["sources"].tolist() == ["ExTRI"]
    assert "academic use" in edges.licence
    assert read_network("network:dorothea:commercial").confidence.tolist() == [0.5]
    assert calls == [("collectri", "mouse", "academic"), ("dorothea", "human", "commercial")]


def test_a_network_that_was_fetched_once_is_read_from_the_folder(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("SCMBERT_NETWORKS", str(tmp_path / "networks"))
    first = read_network("network:collectri")
    monkeypatch.setitem(sys.modules, "decoupler", None)
    again = read_network("network:collectri")
    assert again.source.tolist() == first.source.tolist()
    assert again.licence == first.licence
    assert [path.name for path in (tmp_path / "networks").iterdir()] == ["collectri_human_academic.csv.gz"]
    with pytest.raises(InputError, match="network:dorothea: decoupler 2"):
        read_network("network:dorothea")


def test_what_to_do_is_said_where_a_name_cannot_be_resolved(calls, monkeypatch):
    with pytest.raises(InputError, match=r"network:trrust: expected network:collectri, network:dorothea.*path of that"):
        read_network("network:trrust")

    def fails(organism, license):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["decoupler"].op, "collectri", fails)
    with pytest.raises(InputError, match=r"cannot fetch it \(ConnectionError: no route.*collectri_human_academic"):
        read_network("network:collectri")
    monkeypatch.setitem(sys.modules, "decoupler", None)
    with pytest.raises(InputError, match=r"pip install 'scmbert_jax\[networks\]', or save its edges as a table"):
        read_network("network:collectri")
