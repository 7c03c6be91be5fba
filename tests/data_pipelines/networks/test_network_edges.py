"""Networks over a feature space: whose rows, which part, and what is refused."""

import numpy as np
import pytest

from data_pipelines.features.feature_space import FeatureSpace, ModalityFeatures
from data_pipelines.features.gene_names import find_gene
from data_pipelines.features.gene_tables import load_gene_table
from data_pipelines.networks.edge_table import read_edge_table
from data_pipelines.networks.gene_network import network_of_genes
from data_pipelines.networks.network_edges import network_edges
from data_pipelines.networks.parts import SPLITS, parts_of_edges
from scmbert_jax.errors import InputError


def features(modality, space, ids, links=None):
    links = links or [()] * len(ids)
    return ModalityFeatures.sorted(modality, space, ids, ids, [""] * len(ids), [-1] * len(ids), [-1] * len(ids), links)


def ids_of(*symbols):
    genes = load_gene_table("human")
    return [find_gene(name, genes)[0] for name in symbols]


def network(tmp_path, lines, name="edges.csv", organism="human"):
    path = tmp_path / name
    path.write_text("source,target,weight\n" + "\n".join(lines) + "\n")
    return network_of_genes(read_edge_table(path), organism)


def test_edges_of_several_tables_and_of_links_stand_between_rows_of_one_table(tmp_path):
    myc, tert, spi1 = ids_of("MYC", "TERT", "SPI1")
    space = FeatureSpace(
        {
            "rna": features("rna", "gene:human", [myc, tert, spi1]),
            "protein": features("protein", "protein:human", ["P1"], [(tert,)]),
            "atac": features("atac", "region:hg38", ["chr1:1-9"], [(myc, "ENSG_not_here")]),
        }
    )
    row = dict(zip(sorted([myc, tert, spi1]), range(3), strict=True))
    found = network_edges(
        [
            network(tmp_path, ["MYC,TERT,1", "SPI1,MYC,1", "SPI1,GATA1,-1"]),
            network(tmp_path, ["MYC,TERT,-1", "GATA1,MYC,1"], "b.csv"),
        ],
        space,
        space.layout(),
    )
    rows = set(zip(*(own.tolist() for own in (found.source, found.target, found.kind, found.sign)), strict=True))
    assert rows == {(row[myc], row[tert], 0, 0), (row[spi1], row[myc], 0, 1), (4, row[myc], 1, 0), (row[tert], 3, 2, 0)}


def test_parts_depend_on_two_names_alone_and_both_leaves_no_gene_in_two_parts():
    names = np.array([f"G{number}" for number in range(400)])
    rng = np.random.default_rng(0)
    source, target = names[rng.integers(0, 100, 3000)], names[rng.integers(0, 400, 3000)]
    for split in SPLITS:
        parts = parts_of_edges(source, target, split, 3)
        assert 0.1 < (parts == 2).mean() / (parts >= 0).mean() < 0.4
        np.testing.assert_array_equal(parts[100:50:-1], parts_of_edges(source[100:50:-1], target[100:50:-1], split, 3))
        assert (parts != parts_of_edges(source, target, split, 4)).any()
    of = [{*source[parts == part], *target[parts == part]} for part in range(3)]
    assert not any(of[one] & of[other] for one, other in ((0, 1), (0, 2), (1, 2)))


def test_cells_without_genes_of_the_network_are_refused(tmp_path):
    own = network(tmp_path, ["MYC,TERT,1"])
    other = FeatureSpace({"rna": features("rna", "gene:human", ids_of("GAPDH", "ACTB"))})
    with pytest.raises(InputError, match=r"no edge lies between genes of the data .*ENSG.*the data ENSG"):
        network_edges([own], other, other.layout())
    mouse = FeatureSpace({"rna": features("rna", "gene:mouse", ["ENSMUSG1"])})
    with pytest.raises(InputError, match="a network of human, and the cells are of mouse"):
        network_edges([own], mouse, mouse.layout())
    proteins = FeatureSpace({"protein": features("protein", "protein:human", ["P1"])})
    with pytest.raises(InputError, match="the data have none"):
        network_edges([own], proteins, proteins.layout())
