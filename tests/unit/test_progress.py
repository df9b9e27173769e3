"""Long work shows where it is, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from daemon import progress
from daemon.progress import progress_bar


def shown(*, terminal: bool, every_s: float, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(progress, "TELL_EVERY_S", every_s)
    file = io.StringIO()
    with progress_bar(console=Console(file=file, force_terminal=terminal, width=120)) as bar:
        row = bar.add_task("figures", total=4)
        bar.advance(row, 1)
        bar.update(row, completed=3)
    return file.getvalue()


def test_a_log_gets_a_line_every_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(terminal=False, every_s=0.0, monkeypatch=monkeypatch).splitlines()
    assert lines[0].startswith("figures: 1 of 4, 0:00:00 since it began")
    assert lines[1].startswith("figures: 3 of 4, ")
    assert lines[1].endswith(" left")


def test_short_work_leaves_a_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(terminal=False, every_s=60.0, monkeypatch=monkeypatch).splitlines()
    assert not any(" of 4" in line for line in lines)


def test_a_terminal_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert " of 4" not in shown(terminal=True, every_s=0.0, monkeypatch=monkeypatch)
