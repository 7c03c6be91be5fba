"""What is wrong with files of edges in practice: each is read for what it means, or refused, with line and count."""

import gzip

import anndata
import numpy as np
import pandas as pd
import pytest

from data_pipelines.networks.edge_table import read_edge_table
from data_pipelines.networks.gene_network import network_of_genes
from scmbert_jax.errors import InputError

GOOD = b"source,target,weight\nMYC,TERT,1\nSPI1,BGLAP,-1\n"


def written(tmp_path, data, name="edges.csv"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data",
    {
        "as it should be": GOOD,
        "a byte order mark": b"\xef\xbb\xbf" + GOOD,
        "line ends of Windows": GOOD.replace(b"\n", b"\r\n"),
        "line ends of old Macs": GOOD.replace(b"\n", b"\r"),
        "quoted names": b'"source","target","weight"\n"MYC","TERT","1"\n"SPI1","BGLAP","-1"\n',
        "blanks around names": b"source, target ,weight\n MYC,TERT ,1\nSPI1,BGLAP, -1\n",
        "blank lines": GOOD.replace(b"\nSPI1", b"\n\nSPI1") + b"\n\n",
        "semicolons": GOOD.replace(b",", b";"),
        "aligned by several blanks": GOOD.replace(b",", b"   "),
        "names of rows, as R writes them": b'"source" "target" "weight"\n"1" "MYC" "TERT" 1\n"2" "SPI1" "BGLAP" -1\n',
        "remarks": b"\xef\xbb\xbf# made by somebody\r\n# Licence: CC BY 4.0\r\n" + GOOD,
        "compressed": gzip.compress(GOOD),
        "no header, but TRRUST": b"\xef\xbb\xbfMYC\tTERT\tActivation\t1\r\nSPI1\tBGLAP\tRepression\t2\r\n",
        "BEELINE's ranked edges": b"Gene1\tGene2\tEdgeWeight\nMYC\tTERT\t1\nSPI1\tBGLAP\t-1\n",
    }.values(),
    ids=lambda data: "",
)
def test_the_same_edges_are_read_however_they_are_written(data, tmp_path):
    edges = read_edge_table(written(tmp_path, data))
    assert edges.source.tolist() == ["MYC", "SPI1"]
    assert edges.target.tolist() == ["TERT", "BGLAP"]
    assert edges.sign.tolist() == [1, -1]
    assert edges.licence == ("CC BY 4.0" if b"Licence" in data else "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (b"source,target,weight\n", "no edge in it"),
        (b"\n\n\n", "columns .*expected a table with the columns source and target|cannot be read"),
        (b"source\nMYC\nSPI1\n", "columns source; expected a table with the columns source and target"),
        (b"MYC,TERT,1\nSPI1,BGLAP,1\n", "columns myc, tert, 1; .*needs a first line such as source,target,weight"),
        (b"source,target\nMYC\nSPI1,TERT\n", r"line 2, column target: '' is empty.*1 of 2 lines"),
        (b"# by me\n# twice\nsource,target\nMYC,\n", "line 4, column target"),
        (b"source,target\nMYC,TERT\n\nSPI1,\n", "line 4, column target"),
        (b"source\ttarget\nMYC,TERT\nSPI1,BGLAP\n", r"column target: '' is empty.*2 of 2 lines"),
        (b"source,target,weight\nMYC,TERT,1,\nSPI1,TERT,1,\n", "lines end in a separator, its first line does not"),
        (b'source,target\nMYC,"TERT\nSPI1,BGLAP\nA,B"\nC,D\n', "line 2, column target: .*is no name of a gene"),
        (b'source,target\nMYC,"TERT\nSPI1,BGLAP\n', "cannot be read"),
        (b"source,target\nMYC,TERT\nM\xfcller,TERT\n", "line 3 is not UTF-8 .*iconv"),
        ("source,target\nMYC,TERT\n".encode("utf-16"), "not UTF-8 .*-f utf-16"),
        (b"PK\x03\x04" + bytes(50), "a spreadsheet or a zip archive; save the sheet as .csv"),
        (gzip.compress(GOOD * 200)[:-20], "cannot be read"),
        (gzip.compress(GOOD)[:8], "cannot be read"),
        (b"source,target,weight\nMYC,TERT,NaN\nSPI1,TERT,inf\n", "column weight: 'NaN' is no number.*2 of 2"),
        (b"source;target;weight\nMYC;TERT;0,5\n", "column weight: '0,5' is no number"),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_used_is_refused_with_what_to_do(data, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read_edge_table(written(tmp_path, data))


def test_a_folder_and_a_file_that_is_not_there_are_told(tmp_path):
    with pytest.raises(InputError, match=r"a folder without BL--network\.csv"):
        read_edge_table(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_edge_table(tmp_path / "edges.csv")


def test_the_h5ad_that_generrib_takes_is_read_and_another_one_is_not(tmp_path):
    table = pd.DataFrame({"source": ["MYC", "SPI1"], "target": ["TERT", "BGLAP"], "weight": ["0.5", "-0.25"]})
    anndata.AnnData(uns={"prediction": table}).write_h5ad(tmp_path / "net.h5ad")
    edges = read_edge_table(tmp_path / "net.h5ad")
    assert (edges.source.tolist(), edges.weight.tolist()) == (["MYC", "SPI1"], [0.5, -0.25])
    anndata.AnnData(np.ones((2, 2))).write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match=r'no uns\["prediction"\] in it'):
        read_edge_table(tmp_path / "cells.h5ad")


def test_why_names_are_no_genes_is_told_by_kind(tmp_path):
    lines = [
        "MYC,TERT",
        "SPI1,BGLAP",
        "GATA1,KLF1",
        "MYC,1-Mar",
        "MYC,NOGENE",
        "NOGENE,ALSONONE",
        "MYC,ENSMUSG00000029568",
    ]
    lines += ["ENSG00000136997.19,ENSG00000164362.18"]
    network = network_of_genes(read_edge_table(written(tmp_path, b"source,target\n" + "\n".join(lines).encode())))
    assert len(network) == 3  # the versioned ids are MYC -> TERT once more
    assert network.problems == {
        "lines with unknown genes": 2,
        "lines with genes that a spreadsheet made a date (1-Mar was MARCHF1 or MTARC1)": 1,
        "lines with genes of another species": 1,
        "lines that repeat an edge": 1,
    }
    assert network.unknown == {"NOGENE": 2, "ALSONONE": 1, "1-Mar": 1, "ENSMUSG00000029568": 1}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("7157,1026\n4609,7015\n", "0 of 4 names are human genes.*numbers, such as those of NCBI Gene"),
        ("ENSMUSG00000021611,ENSMUSG00000022346\n", "2 are mouse genes: give a network of human"),
        ("ENSMUSG00000999998,ENSMUSG00000999999\n", "some are ids of another species"),
        ("xq,zq\n", "give Ensembl ids or official symbols"),
    ],
)
def test_names_that_are_no_genes_of_the_organism_are_refused(lines, said, tmp_path):
    with pytest.raises(InputError, match=said):
        network_of_genes(read_edge_table(written(tmp_path, f"source,target\n{lines}".encode())))


def test_several_networks_in_one_file_are_joined_and_told(tmp_path):
    lines = b"source,target,weight,cell_type\nMYC,TERT,1,B cell\nMYC,TERT,3,T cell\nSPI1,BGLAP,2,T cell\n"
    edges = read_edge_table(written(tmp_path, lines))
    assert edges.weight.tolist() == [3, 2]
    assert edges.problems == {"networks of another cell_type in one file, joined": 2, "lines that repeat an edge": 1}


def test_licence_sources_and_references_go_with_each_edge(tmp_path):
    lines = [b"source,target,weight,license,resources,PMID", b"MYC,TERT,.5,CC0,A,1", b"SPI1,BGLAP,1,CC BY,B;C,2"]
    lines += [b"MYC,TERT,1,CC BY-SA,D,3", b"NOGENE,TERT,1,secret,E,4"]
    network = network_of_genes(read_edge_table(written(tmp_path, b"\n".join(lines))))
    about = {what: values.tolist() for what, values in network.edges.about.items()}
    # The line of the higher confidence stays, and what it says.
    assert about == {"licence": ["CC BY", "CC BY-SA"], "sources": ["B;C", "D"], "references": ["2", "3"]}
    assert network.edges.licence == "CC BY; CC BY-SA"
    assert network.indexed(np.array(["ENSG00000164362", "ENSG00000136997"])).source.tolist() == [1]
