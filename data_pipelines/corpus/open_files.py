"""The files of a corpus at a place: a folder of this machine, or a URL."""

from pathlib import Path

from data_pipelines.corpus.storage import CorpusFiles, LocalFiles, Location, is_url


def open_files(location: Location) -> CorpusFiles:
    """The files at a folder or a URL; nothing is read yet. Raises CorpusError: no program here reads such URLs."""
    if is_url(location):
        from data_pipelines.corpus.remote_files import RemoteFiles

        return RemoteFiles(str(location))
    return LocalFiles(Path(location))
