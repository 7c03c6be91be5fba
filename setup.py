"""The only declaration of the package. Tool settings live in pyproject.toml; tested pins in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
BEAM = ["apache-beam>=2.77"]
S3 = ["s3fs>=2025.3"]
GCS = ["gcsfs>=2025.3"]
CENSUS = ["tiledbsoma>=2.3"]  # has no pandas 3 yet
GRAIN = ["grain>=0.2.18"]
# tf.data, and TensorFlow Datasets, which can read a corpus.
LINUX = "platform_machine == 'x86_64' and sys_platform == 'linux'"
TENSORFLOW = {
    "tensorflow-cpu>=2.21": LINUX,
    "tensorflow>=2.21": "platform_machine != 'x86_64' or sys_platform != 'linux'",
    "tensorflow-datasets>=4.9.10": "python_version >= '3'",
}
INTEGRATION = ["scib-metrics>=0.5.10"]
DOCS = ["sphinx>=8.2", "myst-nb>=1.3", "furo>=2025.7.19"]

setup(
    name="scmbert_jax",
    version=(HERE / "scmbert_jax" / "VERSION").read_text().strip(),
    description="Pre-training of multi-omic single-cell transformers in JAX, from a laptop to a TPU pod",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.15",
    # Experiments are no modules: they lie in a folder of the package, which in the repository stands beside it.
    packages=[*find_packages(include=["scmbert_jax*", "data_pipelines*"]), "scmbert_jax.experiments"],
    package_dir={"scmbert_jax.experiments": "experiments"},
    package_data={
        "scmbert_jax": ["VERSION", "py.typed", "annotation/cell_ontology.csv", "annotation/blood_types/*"],
        "data_pipelines": ["tables/*", "example/*", "py.typed"],
    },
    install_requires=[
        # the model and the training
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "chex>=0.1.92",
        "numpy>=2.0",
        # the corpus and the input pipeline
        *(f"{package}; ({where}) and python_version < '3.14'" for package, where in TENSORFLOW.items()),
        "anndata>=0.12",
        "mudata>=0.3.8",
        "h5py>=3.12.1",
        "zarr>=3.1.3",
        "numcodecs>=0.16.1",
        "numba>=0.63",
        "pandas>=2.2.2",
        "pyarrow>=18",
        "scipy>=1.15",
        "zstandard>=0.23",
        "google-crc32c>=1.6",
        "fsspec>=2025.3",
        # what people see
        "tyro>=1.0",
        "cattrs>=25.1",
        "rich>=14",
        "tensorboardX>=2.6.4",
        "matplotlib>=3.10",
        "scikit-learn>=1.6",
        "threadpoolctl>=3.5",
        "umap-learn>=0.5.9.post2",
        "ott-jax>=0.6",
    ],
    extras_require={
        # corpora on object storage
        "s3": S3,
        "gcs": GCS,
        # CELLxGENE Census and other TileDB-SOMA experiments
        "census": CENSUS,
        # building on a cluster
        "beam": BEAM,
        # on Python 3.14, of which it has no release yet; batches are read by threads where it is not installed
        "tensorflow": [f"{package}; {where}" for package, where in TENSORFLOW.items()],
        # another way to read ahead
        "grain": GRAIN,
        # `scmbert pretrain --log-to`
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow>=3.17"],
        # values per base out of bigWig files (data_pipelines/genome)
        "bigwig": ["pyBigWig>=0.3.24"],
        # scores of `scmbert evaluate integration`; brings igraph, which is under the GPL
        "integration": INTEGRATION,
        # networks of genes by name (network:collectri), over the network
        "networks": ["decoupler>=2.2"],
        # the JAX of an accelerator (tpu_scripts/setup_host.sh); also its compiler, for `scmbert plan` without one
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        # what builds docs/ (`make docs`), and runs its notebooks
        "docs": DOCS,
        # with [census] (it would keep pandas below 3), all that the tests need
        "test": [
            *("pytest>=9", "pytest-xdist>=3.8", "hypothesis>=6.150", "ruff>=0.14", "mypy>=1.18", "setuptools>=77"),
            *(*S3, *GCS, *BEAM, *GRAIN, *INTEGRATION, *DOCS),
            *("moto[server]>=5", "jsonschema>=4.23", "PyYAML>=6", "pysam>=0.23"),
            # The compiler for TPUs that are not there (213 MB): two plans are compared with their goldens.
            f"jax[tpu]>=0.10.2; {LINUX}",
        ],
    },
    entry_points={"console_scripts": ["scmbert=scmbert_jax.cli:main"]},
)
