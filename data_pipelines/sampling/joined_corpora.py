"""Several corpora as one: features joined by id, vocabularies by name, cells one corpus after another.

What is read of a corpus has its own numbers; a `Translation` says which numbers they are of all. Nothing of one corpus
alone changes. Data sets of the same name in several corpora stay apart (`name_2`), and so do their technical batches
and donors.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.cells.cell_metadata import LOCAL_FIELDS
from data_pipelines.corpus.corpus import Corpus
from data_pipelines.corpus.storage import Location
from data_pipelines.features.feature_space import FeatureSpace, ModalityFeatures
from scmbert_jax.errors import ConfigError, InputError


class Translation(NamedTuple):
    """From the numbers of one corpus to those of all.

    Attributes:
      features: modality -> int32 [features there], their rows of the joint feature table, ascending.
      codes: obs field of the corpus -> int32 [categories + 1], their codes; the last one is for -1.
      first_cell: the number of its first cell.
    """

    features: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]
    first_cell: int


class JoinedCorpora:
    """Corpora as one. Threads may share it.

    Args:
      corpora: open ones.
      onto: None, or corpora in whose numbers these are read (a model that was trained on those is shown these): their
        feature space and vocabularies are taken. A category that they have not is not known (-1).

    Attributes:
      corpora: as given.
      feature_space: every feature of any of them.
      vocabularies: obs field -> its categories in all of them, sorted (data sets: in the order of the corpora).
      dataset_names: per corpus, old name of a data set -> its name here.
      num_cells: of all.
      translations: one per corpus.
      datasets: the manifests' entries of all data sets, under their names here.

    Raises:
      ConfigError: the same corpus twice, other organisms or assemblies, features of the same id that are not the same,
        or that `onto` has not.
    """

    def __init__(self, corpora: Sequence[Corpus], onto: "JoinedCorpora | None" = None):
        self.corpora = tuple(corpora)
        _refuse_the_same_twice(self.corpora)
        if onto is not None:
            _check_features_known(self.corpora, onto)
        self.feature_space: FeatureSpace = _joint_space(self.corpora) if onto is None else onto.feature_space
        self.num_cells = sum(corpus.num_cells for corpus in self.corpora)
        if self.num_cells > np.iinfo(np.int32).max:
            raise ConfigError(f"{self.num_cells:,} cells in all; a run can number {np.iinfo(np.int32).max:,} of them")
        self.dataset_names = _unique_dataset_names(self.corpora)
        self.datasets: list[dict[str, Any]] = [
            {**entry, "name": names[entry["name"]]}
            for corpus, names in zip(self.corpora, self.dataset_names, strict=True)
            for entry in corpus.datasets
        ]
        own = [_vocabularies(corpus, names) for corpus, names in zip(self.corpora, self.dataset_names, strict=True)]
        self.vocabularies: dict[str, list[str]] = _joint_vocabularies(own) if onto is None else onto.vocabularies
        first_cells = np.cumsum([0, *(corpus.num_cells for corpus in self.corpora)]).tolist()
        self.translations = [
            self._translation(corpus, mine, first)
            for corpus, mine, first in zip(self.corpora, own, first_cells, strict=False)
        ]

    def _translation(self, corpus: Corpus, vocabularies: dict[str, list[str]], first_cell: int) -> Translation:
        features = {
            name: (self.feature_space.slices[name][0] + self.feature_space.modalities[name].index_of(own.ids)).astype(
                np.int32
            )
            for name, own in corpus.feature_space.modalities.items()
        }
        codes = {}
        for field, values in vocabularies.items():
            code_of = {value: code for code, value in enumerate(self.vocabularies.get(field, ()))}
            codes[field] = np.array([*(code_of.get(value, -1) for value in values), -1], np.int32)
        return Translation(features, codes, first_cell)

    @property
    def modalities(self) -> list[str]:
        """In the order of the feature table."""
        return list(self.feature_space.modalities)

    @property
    def where(self) -> str:
        return ", ".join(str(corpus.path) for corpus in self.corpora)

    def check_shared_features(self, modalities: Sequence[str]) -> None:
        """Raises ConfigError: a corpus measures one of these modalities, but no feature of it that another does."""
        for name in modalities:
            having = [corpus for corpus in self.corpora if name in corpus.feature_space.modalities]
            ids = [corpus.feature_space.modalities[name].ids for corpus in having]
            for place, (corpus, own) in enumerate(zip(having, ids, strict=True)):
                others = np.concatenate([*ids[:place], *ids[place + 1 :], own[:0]])
                if len(having) > 1 and not np.isin(own, others).any():
                    other = having[0 if place else 1]
                    raise ConfigError(
                        f"{name}: {corpus.path} has no feature in common with {other.path} or another corpus of the "
                        f"mixture ({len(own):,} such as {own[0]} here, {others[0]} there): nothing learned of one "
                        f"could serve the other. Build them on the same features, or set num_tokens of {name} to 0"
                    )

    def shared_files(self) -> dict[str, list[str]]:
        """Source file -> the corpora that were built from it, where they are several."""
        found: dict[str, tuple[str, list[str]]] = {}  # sha256 -> (file, corpora)
        for corpus in self.corpora:
            for digest, name in {f["sha256"]: f["file"] for entry in corpus.datasets for f in entry["files"]}.items():
                found.setdefault(digest, (name, []))[1].append(str(corpus.path))
        return {name: paths for name, paths in found.values() if len(paths) > 1}


def _check_features_known(corpora: Sequence[Corpus], onto: JoinedCorpora) -> None:
    """Raises ConfigError: features that the corpora of a run have not, or that are something else there."""
    joint = _joint_space([*onto.corpora, *corpora])
    for name, features in joint.modalities.items():
        known = onto.feature_space.modalities.get(name)
        unknown = features.ids if known is None else features.ids[known.index_of(features.ids) < 0]
        if len(unknown):
            where = ", ".join(str(corpus.path) for corpus in corpora)
            raise ConfigError(
                f"{where}: {len(unknown):,} features of {name}, such as {unknown[0]}, are not among the "
                f"{0 if known is None else len(known):,} of the run ({onto.where}): its cells cannot be shown to the "
                "run's model. Build one corpus of both, and hold these cells out: scmbert corpus build OUT FILE... "
                "--held-out dataset=NAME"
            )


def _refuse_the_same_twice(corpora: Sequence[Corpus]) -> None:
    seen: dict[str, Location] = {}
    for corpus in corpora:
        if corpus.fingerprint in seen:
            raise ConfigError(
                f"{corpus.path} and {seen[corpus.fingerprint]} are the same corpus: give it once; how often it is "
                "drawn is said by --corpus-weights"
            )
        seen[corpus.fingerprint] = corpus.path


def _joint_space(corpora: Sequence[Corpus]) -> FeatureSpace:
    first = corpora[0]
    space = first.feature_space
    for corpus in corpora[1:]:
        if corpus.feature_space == space:
            continue
        try:
            space = space.union(corpus.feature_space)
        except InputError as error:
            raise ConfigError(f"{corpus.path} cannot be mixed with {first.path}: {error}") from error
    for corpus in corpora:
        for name, features in corpus.feature_space.modalities.items():
            _check_same_features(corpus, features, space.modalities[name])
    return space


def _check_same_features(corpus: Corpus, own: ModalityFeatures, joint: ModalityFeatures) -> None:
    """Positions and links come from tables of the package: they differ only between its versions."""
    places = joint.index_of(own.ids)
    same = (own.chrom == joint.chrom[places]) & (own.start == joint.start[places]) & (own.end == joint.end[places])
    same &= np.array([links == joint.links[place] for links, place in zip(own.links, places, strict=True)], bool)
    if not same.all():
        raise ConfigError(
            f"{corpus.path}: {np.count_nonzero(~same):,} features of {own.modality}, the first is "
            f"{own.ids[np.flatnonzero(~same)[0]]}, have another position or other links than in another corpus of the "
            "mixture: they were built by different versions; build them again with one"
        )


def _unique_dataset_names(corpora: Sequence[Corpus]) -> list[dict[str, str]]:
    taken: set[str] = set()
    names: list[dict[str, str]] = []
    for corpus in corpora:
        names.append({})
        for entry in corpus.datasets:
            name, number = entry["name"], 1
            while name in taken:
                number += 1
                name = f"{entry['name']}_{number}"
            taken.add(name)
            names[-1][entry["name"]] = name
    return names


def _vocabularies(corpus: Corpus, names: dict[str, str]) -> dict[str, list[str]]:
    """Those of a corpus, with the new names of its data sets."""

    def renamed(category: str) -> str:
        dataset, _, value = category.partition("/")
        return f"{names[dataset]}/{value}"

    return {
        field: [names[value] for value in values]
        if field == "dataset"
        else [renamed(value) for value in values]
        if field in LOCAL_FIELDS
        else list(values)
        for field, values in corpus.vocabularies.items()
    }


def _joint_vocabularies(own: Sequence[dict[str, list[str]]]) -> dict[str, list[str]]:
    if len(own) == 1:
        return own[0]
    joint = {}
    for field in dict.fromkeys(field for vocabularies in own for field in vocabularies):
        values = [value for vocabularies in own for value in vocabularies.get(field, ())]
        joint[field] = values if field == "dataset" else sorted(set(values))
    return joint
