"""One harness for all methods and scenarios: learn task after task, ask on the way, score what is answered.

A *cell* is one method on one stream of tasks. A *reading* is one way of asking it: the task told or not, one image or
a batch deciding, a way of finding the task. One training serves all readings of a cell, so GG, GNs and GNu are the same
masks with different knowledge in inference.

Scores are counts per task, so that any mean can be taken of them later:

    right label            the paper's lenient score, that of GNs: whichever mask said so
    right task             the task inference alone
    right task and label   the strict score, that of GNu
"""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from supsup_online.datasets import Dataset
from supsup_online.errors import DataError
from supsup_online.paper.methods import Answers, Method, Scope, Setup, State
from supsup_online.paper.results import Run
from supsup_online.scenarios import Kind, Scenario

Images = tuple[NDArray[np.generic], NDArray[np.int64]]

_STRIDE: Final = 7919
TEST_ROWS: Final = 128  # of a batch in the test, as in the paper


class Answerer(Protocol):
    """What can be asked."""

    def answer(self, x: NDArray[np.generic], task: int | None, scope: Scope = "row") -> Answers:
        """As `methods.Method.answer`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way of asking a method.

    Attributes:
        name: in tables and pictures, for instance `GNu, H`.
        told: whether the task is told (GG).
        scope: who decides which task it is: `row`, `first` or `batch`, as in `methods.Method.answer`.
        images: test images per task, spread over the test set; None: all.
        ask: what is asked, made from the method; by default the method itself.
    """

    name: str
    told: bool = False
    scope: Scope = "row"
    images: int | None = None
    ask: Callable[[Any], Answerer] = field(default=lambda method: method)


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one stream of tasks.

    Attributes:
        name: in tables, pictures and file names.
        setup: what all methods share; it has the number of tasks and the seed.
        make: the method.
        readings: how it is asked.
        batches: of each task in training.
        checkpoints: numbers of tasks learnt after which all tasks so far are tested.
        kind: of tasks.
        rows: of a training batch.
        step_degrees: between two rotated tasks.
        classes_per_task: of split tasks.
    """

    name: str
    setup: Setup
    make: Callable[[Setup], Method]
    readings: tuple[Reading, ...]
    batches: int
    checkpoints: tuple[int, ...]
    kind: Kind = "permuted"
    rows: int = 128
    step_degrees: float = 10.0
    classes_per_task: int = 2

    def scenario(self, dataset: Dataset) -> Scenario:
        """Its tasks, made from a data set."""
        tasks, seed = self.setup.tasks, self.setup.seed
        return Scenario(dataset, self.kind, tasks, seed, self.step_degrees, self.classes_per_task)

    def record(self) -> dict[str, Any]:
        """Everything that decides the outcome, as plain values; equal records have equal outcomes."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("make", "readings", "setup")}
        readings = [[r.name, r.told, r.scope, r.images] for r in self.readings]
        named |= {"method": _described(self.make), "checkpoints": list(self.checkpoints)}
        # What is not set is left out: a setting that comes later leaves records of before it as they are.
        setup = {name: value for name, value in asdict(self.setup).items() if value is not None}
        return named | {"setup": setup, "readings": readings}


def _described(make: object) -> str:
    """A method by name and options, defaults too, `SupSup(masks=...)`; what decides an outcome is in their `repr`s."""
    if not callable(make):
        return repr(make)
    called, given = (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    _setup, *options = inspect.signature(called).parameters.values()
    values = {option.name: given.get(option.name, option.default) for option in options}
    return f"{called.__name__}({', '.join(f'{name}={_described(value)}' for name, value in sorted(values.items()))})"


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of one task under one reading.

    Attributes:
        reading: its name.
        learnt: tasks that had been learnt.
        task: which of them was asked about.
        images: how many were asked.
        right_label, right_task, right_both: of those; None where the method knows no tasks.
    """

    reading: str
    learnt: int
    task: int
    images: int
    right_label: int
    right_task: int | None
    right_both: int | None


def run_cell(cell: Cell, scenario: Scenario, run: Run, progress: Callable[[int], None]) -> None:
    """Learn and ask from where the run stands to the end.

    Args:
        cell: what to do.
        scenario: its tasks.
        run: where outcome and state are kept; a finished one is left as it is.
        progress: told how many batches were learnt, as they are.

    Raises:
        DataError: the state of a killed run does not fit the method.
    """
    if run.finished:
        return
    method = cell.make(cell.setup)
    if run.learnt:
        _restore(method, run.state)
    for task in range(run.learnt, cell.setup.tasks):
        begun, cpu = time.perf_counter(), time.process_time()
        method.learn(task, _batches(cell, scenario, task, progress))
        training, cpu, begun = time.perf_counter() - begun, time.process_time() - cpu, time.perf_counter()
        scores = evaluate(cell, scenario, method, task + 1) if task + 1 in cell.checkpoints else []
        run.add(scores, training_s=training, training_cpu_s=cpu, asking_s=time.perf_counter() - begun)
        run.save_when_due(method)
    run.finish(method.storage())


def _restore(method: Method, state: State) -> None:
    """What a killed run had learnt.

    Raises:
        DataError: the arrays are not those of this method.
    """
    try:
        method.restore(state)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"a state does not fit its method ({error!r}): begin anew with --fresh") from error


def _batches(cell: Cell, scenario: Scenario, task: int, progress: Callable[[int], None]) -> Iterator[Images]:
    for position in range(cell.batches):
        yield scenario.batch(task, position, cell.rows)
        progress(1)


def evaluate(cell: Cell, scenario: Scenario, method: Method, learnt: int) -> list[Score]:
    """Scores of all tasks learnt so far under every reading of the cell."""
    scores = []
    for task in range(learnt):
        x, y = scenario.test_set(task)
        for reading in cell.readings:
            chosen = _spread(len(y), reading.images, task)
            scores.append(_score(reading, method, learnt, task, (x[chosen], y[chosen])))
    return scores


def _spread(available: int, wanted: int | None, task: int) -> NDArray[np.int64]:
    """Places of so many images, evenly over the test set, others for each task: all together they are typical of it."""
    if wanted is None or wanted >= available:
        return np.arange(available)
    return (np.arange(wanted) * available // wanted + task * _STRIDE) % available


def _score(reading: Reading, method: Method, learnt: int, task: int, images: Images) -> Score:
    asked, (x, y) = reading.ask(method), images
    right = np.zeros(3, dtype=np.int64)
    knows_tasks = True
    for start in range(0, len(y), TEST_ROWS):
        rows = slice(start, start + TEST_ROWS)
        answers = asked.answer(x[rows], task if reading.told else None, reading.scope)
        label = answers.labels == y[rows]
        found = np.ones(len(label), dtype=bool) if reading.told else answers.tasks
        if found is None:
            knows_tasks, found = False, np.zeros(len(label), dtype=bool)
        elif not reading.told:
            found = found == task
        right += [label.sum(), found.sum(), (label & found).sum()]
    counts = right.tolist()
    of_task, both = (counts[1], counts[2]) if knows_tasks else (None, None)
    return Score(reading.name, learnt, task, len(y), counts[0], of_task, both)


def checkpoints(tasks: int, wanted: Sequence[int] = (1, 5, 10, 25, 50, 100, 150, 200, 250)) -> tuple[int, ...]:
    """Those of some numbers of tasks that come up, and the last."""
    return tuple(sorted({count for count in wanted if count < tasks} | {tasks}))
