"""Networks: every layout that is understood, and what is wrong with a file, by line and count."""

import gzip

import numpy as np
import pytest

from data_pipelines.networks.beeline import read_beeline_folder
from data_pipelines.networks.edge_table import read_edge_table
from data_pipelines.networks.gene_network import network_of_genes
from scmbert_jax.errors import InputError


def written(tmp_path, text, name="edges.csv"):
    path = tmp_path / name
    (gzip.open if name.endswith(".gz") else open)(path, "wb").write(text.encode())
    return path


LAYOUTS = {
    "decoupler": ('"source","target","weight"\n"MYC","TERT",1\n"SPI1","BGLAP",-1\n', "collectri.csv.gz"),
    "TRRUST": ("MYC\tTERT\tActivation\t1;2\nSPI1\tBGLAP\tRepression\t3\n", "trrust.tsv"),
    "STRING": ("protein1 protein2 combined_score\n9606.A 9606.B 900\n9606.C 9606.D 450\n", "9606.protein.links.txt.gz"),
    "DoRothEA": ("source\tconfidence\ttarget\tweight\nMYC\tA\tTERT\t1\nSPI1\tB\tBGLAP\t-1\n", "dorothea.tsv"),
    "RegNetwork": ("MYC\t4609\tTERT\t7015\nSPI1\t6688\tBGLAP\t632\n", "human.source"),
    "GRNBoost2": ("TF,target,importance\nMYC,TERT,30\nSPI1,BGLAP,15\n", "adj.csv"),
    "signs by name": ("Regulator,Target,Mode\nMYC,TERT,activation\nSPI1,BGLAP,repression\n", "mine.csv"),
}
SIGNS = {name: [1, -1] for name in LAYOUTS} | {name: [0, 0] for name in ("STRING", "RegNetwork", "GRNBoost2")}
CONFIDENCE = {name: [1, 1] for name in LAYOUTS} | {
    "STRING": [0.9, 0.45],
    "DoRothEA": [1, 0.5],
    "GRNBoost2": [1, 0.5],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_understood(layout, tmp_path):
    text, name = LAYOUTS[layout]
    written(
        tmp_path,
        "#string_protein_id\tpreferred_name\n9606.A\tMYC\n9606.B\tTERT\n9606.C\tSPI1\n9606.D\tBGLAP\n",
        "9606.protein.info.txt",
    )
    edges = read_edge_table(written(tmp_path, text, name))
    assert edges.source.tolist() == ["MYC", "SPI1"]
    assert edges.target.tolist() == ["TERT", "BGLAP"]
    assert edges.sign.tolist() == SIGNS[layout]
    np.testing.assert_allclose(edges.confidence, CONFIDENCE[layout], rtol=1e-6)
    assert edges.problems == {}


def test_lines_that_say_the_same_are_one_edge_and_contradictions_have_no_sign(tmp_path):
    lines = ["A,B,.5", "B,A,.5", "A,B,1", "A,A,1", "C,D,1", "C,D,-1", "C,B,0"]
    edges = read_edge_table(written(tmp_path, "source,target,weight\n" + "\n".join(lines) + "\n"))
    assert list(zip(edges.source.tolist(), edges.target.tolist(), edges.sign.tolist(), strict=True)) == [
        ("B", "A", 1),
        ("A", "B", 1),
        ("C", "D", 0),
        ("C", "B", 0),
    ]
    assert edges.confidence[1] == 1
    assert edges.problems == {
        "self-loops": 1,
        "lines that repeat an edge": 2,
        "edges with contradictory signs": 1,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source,target,weight\nA,B,1\nA,C,\n", r"line 3, column weight: '' is no number.*1 of 2"),
        ("source,target,weight\nA,B,nan\n", "line 2, column weight: 'nan' is no number"),
        ("source,target\nA,\n", "line 2, column target: '' is empty"),
        ("A\tB\tActivation\t1\nA\t\tActivation\t1\n", "line 2, column target"),
        ("source,target,mode\nA,B,perhaps\n", "column mode: 'perhaps' is no sign"),
        ("source,target,confidence\nA,B,7\n", "column confidence: '7' is no confidence"),
        ("from,to\nA,B\n", "columns from, to; expected a table with the columns source and target"),
        ("source,target\n", "no edge in it"),
        ("", "cannot be read"),
        ("protein1 protein2 combined_score\n9606.A 9606.B 900\n", "put STRING's file of names"),
    ],
)
def test_what_cannot_be_an_edge_is_refused_by_line(text, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read_edge_table(written(tmp_path, text))


def test_a_damaged_file_is_refused(tmp_path):
    path = written(tmp_path, LAYOUTS["decoupler"][0] * 50, "edges.csv.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="cannot be read"):
        read_edge_table(path)


@pytest.fixture
def network(tmp_path):
    text = "source,target,weight\nMYC,TERT,1\nENSG00000136997,TERT,-1\nSPI1,NOGENE,1\nSPI1,BGLAP,1\n"
    return network_of_genes(read_edge_table(written(tmp_path, text)))


def test_names_become_genes_and_unknown_ones_are_counted(network):
    assert network.edges.source.tolist() == ["ENSG00000136997", "ENSG00000066336"]
    assert network.edges.sign.tolist() == [0, 1]  # MYC by two names says both
    assert network.unknown == {"NOGENE": 1}
    assert network.problems == {
        "lines with unknown genes": 1,
        "lines that repeat an edge": 1,
        "edges with contradictory signs": 1,
    }


def test_coverage_is_told_by_side(network):
    genes = np.array(["ENSG00000164362", "ENSG00000136997", "ENSG00000242252"])  # TERT, MYC, BGLAP
    assert str(network.coverage(genes)) == "1 of 2 regulators, 2 of 2 targets, 1 of 2 edges"
    edges = network.indexed(genes)
    assert (edges.source.tolist(), edges.target.tolist()) == ([1], [0])
    with pytest.raises(
        InputError, match=r"no edge lies between genes of the data \(0 of 2 reg.*the data ENSG00000000001"
    ):
        network.indexed(np.array(["ENSG00000000001"]))


def test_a_network_of_another_species_is_refused(tmp_path):
    edges = read_edge_table(written(tmp_path, "source,target\nMyc,Tert\nSpi1,Bglap\nGata1,Klf1\n"))
    with pytest.raises(InputError, match="give a network of human, or cells of mouse"):
        network_of_genes(edges)
    assert len(network_of_genes(edges, "mouse")) >= 2


def test_a_beeline_folder_knows_regulators_without_targets(tmp_path):
    written(tmp_path, "Gene1,Gene2\nA,C\nA,B\n", "BL--network.csv")
    written(tmp_path, ",TF,index\n0,A,0\n1,B,1\n", "TF.csv")
    written(tmp_path, ",Gene,index\n0,A,0\n1,B,1\n2,C,2\n", "Target.csv")
    labels = read_beeline_folder(tmp_path)
    assert labels.without_targets == 1
    assert labels.genes.tolist() == ["A", "B", "C"]
    written(tmp_path, "Gene1,Gene2\nC,A\n", "BL--network.csv")
    with pytest.raises(InputError, match=r"column Gene1: 'C' is not in TF\.csv"):
        read_beeline_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "edges"), [("collectri_human.csv.gz", 42_716), ("trrust_rawdata.human.tsv.gz", 8_403)]
)
def test_the_real_networks_are_read(name, edges, shared_data):
    found = read_edge_table(shared_data / "networks" / name)
    assert len(found) == edges
    assert len(network_of_genes(found)) > 0.95 * edges
