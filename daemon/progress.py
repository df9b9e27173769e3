"""How long work shows where it is."""

import time
from datetime import timedelta
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

TELL_EVERY_S: Final = 60.0


class TellingProgress(Progress):
    """A bar on a terminal; anywhere else, a log file for one, a line every minute."""

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._told = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Note that so much more is done."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Note what is done by now, or what else has changed."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if not self.console.is_terminal and now - self._told >= TELL_EVERY_S:
            self._told = now
            self.console.print(_line(self._tasks[task_id]), highlight=False)


def _line(task: Task) -> str:
    done = f"{task.description}: {task.completed:.0f} of {task.total or 0:.0f}"
    parts = [done, f"{_seconds(task.elapsed)} since it began", f"{_seconds(task.time_remaining)} left"]
    return ", ".join(part for part in parts if not part.startswith("?"))


def _seconds(value: float | None) -> str:
    return "?" if value is None else str(timedelta(seconds=round(value)))


def progress_bar(*more: ProgressColumn, console: Console | None = None, **options: Any) -> TellingProgress:
    """A bar on standard error: what is done, of how much, since when, until when.

    Args:
        more: columns between the count and the times.
        console: where to; standard error unless given.
        options: of `rich.progress.Progress`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more)
    console = console or Console(stderr=True)
    return TellingProgress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, **options)
