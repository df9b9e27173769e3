"""How long work shows where it is."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(*more: ProgressColumn, console: Console | None = None, **options: Any) -> Progress:
    """A bar on standard error: what is done, of how much, since when, until when.

    Args:
        more: columns between the count and the times.
        console: where to; standard error unless given.
        options: of `rich.progress.Progress`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more)
    console = console or Console(stderr=True)
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, **options)
