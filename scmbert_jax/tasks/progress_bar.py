"""A progress bar, in a terminal and in a notebook."""

from collections.abc import Callable


def progress_of(wanted: bool | Callable[[int, int], None], what: str) -> Callable[[int, int], None] | None:
    """False: None; True: a bar; a function of (done, in all): itself."""
    if isinstance(wanted, bool):
        return progress_bar(what) if wanted else None
    return wanted


def progress_bar(what: str) -> Callable[[int, int], None]:
    """A bar on stderr, drawn by rich, which knows notebooks; call it with (done, in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    task = progress.add_task(what, total=None)
    progress.start()

    def update(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)
        if done >= total:
            progress.stop()

    return update
