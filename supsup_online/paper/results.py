"""Where the outcome of a run is kept while it goes on, so that it can be killed at any time.

Of every run (a cell and a seed) these files lie in the figure's directory, each replaced in one move:

    <cell>.<seed>.csv     scores so far, one line per reading, number of tasks learnt, and task
    <cell>.<seed>.json    its record: settings, machine, tasks learnt, seconds; and whether it is finished
    <cell>.<seed>.npz     until it is finished: all of that once more, and what was learnt

A killed run goes on from the last alone, for only what lies in one file is of one moment.
"""

import csv
import io
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from supsup_online.errors import DataError
from supsup_online.numpy_files import read_npz
from supsup_online.paper.methods import Method, State, Storage

if TYPE_CHECKING:
    from supsup_online.paper.harness import Score

_SAVING_SHARE: Final = 0.05  # of the time, at most
_OUTCOME: Final = "outcome"
COLUMNS: Final = ("reading", "learnt", "task", "images", "right_label", "right_task", "right_both")


class Run:
    """Outcome and state of one run.

    Args:
        directory: of the figure; made when missing.
        cell: its name.
        seed: of the run.
        record: everything that decides the outcome (`harness.Cell.record`).
        fresh: begin anew whatever lies there.

    Attributes:
        state: what was learnt when a killed run was saved last; empty at the very beginning.

    Raises:
        DataError: what lies there was made with other settings, or is damaged.
    """

    def __init__(
        self, directory: Path, cell: str, seed: int, record: Mapping[str, Any], *, fresh: bool = False
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._stem = directory / f"{re.sub(r'[^A-Za-z0-9]+', '-', cell).strip('-').lower()}.{seed}"
        self._about: dict[str, Any] = {"cell": cell, "seed": seed, "record": dict(record), "machine": machine()}
        self._about |= {"learnt": 0, "finished": False, "training_s": 0.0, "training_cpu_s": 0.0, "asking_s": 0.0}
        self._lines: list[dict[str, Any]] = []
        self._due = time.monotonic()
        self.state: State = {}
        if fresh:
            self._forget()
        else:
            self._take_up()

    def _path(self, ending: str) -> Path:
        return self._stem.with_name(self._stem.name + ending)

    def _forget(self) -> None:
        """Remove what lies there: a new run that is killed early must not come back as the old one."""
        for ending in (".npz", ".json", ".csv"):
            self._path(ending).unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Go on where a run with the same settings was finished or killed."""
        if self._path(".npz").exists():
            about, lines, state = _read_state(self._path(".npz"))
            self._check(about, ".npz")
            self._about, self._lines, self.state = about, lines, state
        elif self._path(".json").exists():
            about = _read_record(self._path(".json"))
            self._check(about, ".json")
            if about["finished"]:
                self._about, self._lines = about, read_scores(self._path(".csv"))

    def _check(self, about: Mapping[str, Any], ending: str) -> None:
        if about["record"] != json.loads(json.dumps(self._about["record"])):
            raise DataError(
                f"{self._path(ending)} is from a run with other settings: choose another output, or --fresh"
            )

    @property
    def learnt(self) -> int:
        """Tasks that are learnt."""
        return int(self._about["learnt"])

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self._about["finished"])

    def add(self, scores: "Iterable[Score]", **seconds: float) -> None:
        """One more task was learnt; `training_s`, `training_cpu_s` and `asking_s` went into it."""
        self._lines += [asdict(score) for score in scores]
        self._about["learnt"] += 1
        for name, spent in seconds.items():
            self._about[name] += spent

    def save_when_due(self, method: Method) -> None:
        """Save, unless too much time goes into that: what was learnt may be hundreds of megabytes."""
        begun = time.monotonic()
        if begun < self._due:
            return
        outcome = json.dumps({"about": self._about, "lines": self._lines}).encode()
        arrays: dict[str, NDArray[Any]] = {**method.state(), _OUTCOME: np.frombuffer(outcome, dtype=np.uint8)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        _replace(self._path(".npz"), buffer.getvalue())
        self._publish()
        ended = time.monotonic()
        self._due = ended + (ended - begun) / _SAVING_SHARE

    def finish(self, storage: Storage) -> None:
        """Note that the run is over; what was learnt is not needed any more."""
        self._about |= {"finished": True, "bytes_shared": storage.shared, "bytes_per_task": storage.per_task}
        self._publish()
        self._path(".npz").unlink(missing_ok=True)

    def _publish(self) -> None:
        """Scores and record, for people and for `read_runs`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._lines)
        _replace(self._path(".csv"), text.getvalue().encode())
        _replace(self._path(".json"), (json.dumps(self._about, indent=1) + "\n").encode())


def _read_state(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], State]:
    """Record, scores, and what was learnt.

    Raises:
        DataError: the file is damaged, or another.
    """
    try:
        arrays = read_npz(path)
        kept = json.loads(arrays.pop(_OUTCOME).tobytes())
        lines = [{name: line[name] for name in COLUMNS} for line in kept["lines"]]
        return _checked(kept["about"]), lines, arrays
    except (DataError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error!r}): begin anew with --fresh") from error


def _read_record(path: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        DataError: the file is damaged, or another.
    """
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error!r}): begin anew with --fresh") from error


def _checked(about: dict[str, Any]) -> dict[str, Any]:
    """What a record must hold, as what it must be.

    Raises:
        KeyError, TypeError: it does not.
    """
    wanted: dict[str, type | tuple[type, ...]] = {"cell": str, "seed": int, "record": dict, "learnt": int}
    wanted |= {"finished": bool, "training_s": (int, float), "asking_s": (int, float)}
    if about["finished"]:
        wanted |= {"bytes_shared": (int, float), "bytes_per_task": (int, float)}
    for name, kind in wanted.items():
        if not isinstance(about[name], kind):
            raise TypeError(f"{name} is {about[name]!r}")
    return about


def _replace(path: Path, content: bytes) -> None:
    """The whole file or the old one, whatever happens."""
    unfinished = path.with_name(path.name + ".new")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Lines of a file of scores; counts as numbers, None where there are none.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        return [{name: _parsed(name, line[name]) for name in COLUMNS} for line in lines]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error!r}") from error


def _parsed(name: str, text: str) -> str | int | None:
    if name == "reading":
        return text
    return int(text) if text else None


def read_runs(directory: Path) -> list[dict[str, Any]]:
    """All runs of a figure, finished or not, by cell and seed: their records with their `scores`.

    Raises:
        DataError: a file is damaged.
    """
    runs = []
    for path in sorted(directory.glob("*.json")):
        about = _read_record(path)
        runs.append(about | {"scores": read_scores(path.with_suffix(".csv"))})
    return runs


def machine() -> dict[str, Any]:
    """What a run was made on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
