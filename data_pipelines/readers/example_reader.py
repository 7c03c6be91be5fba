"""The data sets that travel with the package: "example:pbmc_mosaic"."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

from data_pipelines.readers.dataset import Dataset
from data_pipelines.readers.hdf5_reader import read_hdf5
from data_pipelines.readers.reader import Reader, Request
from scmbert_jax.errors import InputError

_PREFIX = "example:"
# Name after "example:" -> file in data_pipelines/example, of which its README.md says more; what data cards say of it.
EXAMPLES = {"pbmc_mosaic": "pbmc_mosaic.h5mu"}
_STATEMENTS = {
    "pbmc_mosaic": {
        "title": "1,600 human blood cells in four technical batches, with RNA, surface proteins or both",
        "citation": "He Z. et al. Mosaic integration and knowledge transfer of single-cell multimodal data with MIDAS. "
        "Nature Biotechnology 42, 1594-1605 (2024)",
        "doi": "10.1038/s41587-023-02040-y",
        "licence": "MIT, as the Python package scmidas 0.3.0 that it is from",
    }
}


def is_example(place: str) -> bool:
    return place.startswith(_PREFIX)


def read_example(request: Request) -> list[Dataset]:
    """Raises InputError for a name that is none of `EXAMPLES`."""
    example = request.place.removeprefix(_PREFIX)
    if example not in EXAMPLES:
        known = ", ".join(_PREFIX + known for known in EXAMPLES)
        raise InputError(f"{request.place}: no such example; there is {known}")
    datasets = read_hdf5(replace(request, place=str(example_path(example)), name=request.name or example))
    for matrix in datasets[0].matrices:
        matrix.statements = _STATEMENTS[example]
    return datasets


def example_path(example: str) -> Path:
    """Where a built-in example lies. Packages are installed as folders, so the path stays valid."""
    return Path(str(resources.files("data_pipelines") / "example" / EXAMPLES[example]))


READER = Reader(is_example, read_example, ", ".join(_PREFIX + name for name in EXAMPLES))
