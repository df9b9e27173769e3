"""Streams of tasks made from one data set: what the tasks are, and in which order their batches arrive.

Everything is a function of a written-down seed, the same bytes on every machine. numpy promises stable *raw* words
of its Philox generator and nothing about the distributions built on them, so `RawDraws` builds the few draws needed
here from raw words, and rotation is done in whole numbers.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np

from supsup_online.datasets import Dataset
from supsup_online.errors import SpecError

__all__ = ["Kind", "Order", "RawDraws", "Scenario", "ScheduledBatch", "Task", "iter_stream", "pixel_order", "schedule"]

Kind = Literal["permuted", "rotated", "split", "label-permuted"]
Order = Literal["sequential", "recurring", "random", "interleaved"]

_WORD = 2**64
_SUBPIXELS = 256  # positions told apart between two neighbouring pixels when rotating


class _Stream(IntEnum):
    """First stream word of every draw made here: no two purposes share random words.

    All are below 2**48, where the keys of `draws` begin: data and weights of equal seeds share nothing either.
    """

    PIXELS = 1
    LABELS = 2
    BATCH = 3
    SCHEDULE = 4


class RawDraws:
    """Whole random numbers from raw Philox words.

    The seed and the stream words go into the generator's key and counter as they are, so two different combinations
    never share a word: no hashing, no chance of a collision.

    Args:
        seed: 0 <= seed < 2**64.
        stream: up to four words of the same range that name what is drawn; missing ones are 0.

    Raises:
        SpecError: a word is out of range, or there are too many.
    """

    def __init__(self, seed: int, *stream: int) -> None:
        if len(stream) > 4 or not all(0 <= word < _WORD for word in (seed, *stream)):
            raise SpecError(f"seed and up to four stream words must be from 0 to 2**64 - 1, got {(seed, *stream)}")
        first, *rest = (*stream, *[0] * (4 - len(stream)))
        # Counter word 0 counts the words drawn; the three others tell streams apart.
        self._philox = np.random.Philox(
            key=np.array([seed, first], dtype=np.uint64), counter=np.array([0, *rest], dtype=np.uint64)
        )

    def words(self, count: int) -> np.ndarray:
        """The next `count` raw words, uint64."""
        words: np.ndarray = self._philox.random_raw(count)
        return words

    def below(self, bound: int) -> int:
        """One number, uniform in 0 .. bound - 1."""
        return int(self.many_below(bound, 1)[0])

    def many_below(self, bound: int | np.ndarray, count: int) -> np.ndarray:
        """`count` independent numbers, int64, the i-th uniform in 0 .. bound - 1 (or bound[i] - 1).

        Exactly uniform: words from the incomplete last stretch of `bound` numbers below 2**64 are drawn again.

        Raises:
            SpecError: a bound is not from 1 to 2**63 - 1.
        """
        bounds = np.broadcast_to(np.asarray(bound), (count,))
        if bounds.dtype.kind != "i" or (count and bounds.min() < 1):
            raise SpecError(f"a bound must be from 1 to 2**63 - 1, got {bound}")
        bounds = bounds.astype(np.uint64)
        # (2**64 - 1) % bound + 1 is 2**64 % bound, or bound itself where that is 0.
        incomplete = (np.uint64(_WORD - 1) % bounds + np.uint64(1)) % bounds
        last_accepted = np.uint64(_WORD - 1) - incomplete
        words = self.words(count)
        while (again := np.flatnonzero(words > last_accepted)).size:
            words[again] = self.words(again.size)
        numbers: np.ndarray = (words % bounds).astype(np.int64)
        return numbers

    def permutation(self, n: int) -> np.ndarray:
        """A uniform permutation of 0 .. n - 1, int64 (Fisher and Yates, from the end)."""
        order = list(range(n))
        partners = self.many_below(np.arange(n, 1, -1), max(n - 1, 0)).tolist()
        for last, partner in zip(range(n - 1, 0, -1), partners, strict=True):
            order[last], order[partner] = order[partner], order[last]
        return np.array(order, dtype=np.int64)


class Task(Protocol):
    """What one task makes of images and labels."""

    def apply(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (n, ...) and labels int64 (n,) as the task shows them; new arrays, same shapes."""


def pixel_order(seed: int, task: int, pixels: int) -> np.ndarray:
    """Which pixel of an image each pixel of a permuted task shows, int64 (pixels,)."""
    return RawDraws(seed, _Stream.PIXELS, task).permutation(pixels)


@dataclass(frozen=True, eq=False)
class _Permuted:
    pixels: np.ndarray

    def apply(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # take, unlike an index, returns rows that are contiguous in memory
        return x.reshape(len(x), -1).take(self.pixels, axis=1).reshape(x.shape), y.copy()


@dataclass(frozen=True, eq=False)
class _LabelPermuted:
    labels: np.ndarray

    def apply(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.copy(), self.labels[y]


class _AsIs:
    def apply(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.copy(), y.copy()


class _Rotated:
    """Counter-clockwise rotation about the centre, bilinear, black outside.

    Where each pixel comes from is found once and rounded to 1/256 pixel; the four neighbours' weights are then whole
    numbers that add up to 65536, and no floating point touches a pixel.
    """

    def __init__(self, shape: tuple[int, int], degrees: float) -> None:
        height, width = shape
        # Rounded, so that the last bit of a machine's sine moves nothing and 90 degrees hits pixels exactly.
        cosine = round(math.cos(math.radians(degrees)), 12)
        sine = round(math.sin(math.radians(degrees)), 12)
        row = np.arange(height)[:, None] - (height - 1) / 2
        column = np.arange(width)[None, :] - (width - 1) / 2
        from_row = np.rint((cosine * row + sine * column + (height - 1) / 2) * _SUBPIXELS).astype(np.int64)
        from_column = np.rint((cosine * column - sine * row + (width - 1) / 2) * _SUBPIXELS).astype(np.int64)
        self._corners = []
        for down in (0, 1):
            for right in (0, 1):
                r, c = from_row // _SUBPIXELS + down, from_column // _SUBPIXELS + right
                weight = _overlap(from_row, down) * _overlap(from_column, right)
                inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
                index = np.where(inside, r * width + c, 0).reshape(-1)
                self._corners.append((index, np.where(inside, weight, 0).reshape(-1).astype(np.uint32)))

    def apply(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = x.reshape(len(x), -1)
        total = np.full(flat.shape, _SUBPIXELS**2 // 2, dtype=np.uint32)  # a half, to round to nearest
        for index, weight in self._corners:
            total += flat[:, index] * weight
        return (total >> 16).astype(np.uint8).reshape(x.shape), y.copy()


def _overlap(position: np.ndarray, neighbour: int) -> np.ndarray:
    fraction = position % _SUBPIXELS
    return fraction if neighbour else _SUBPIXELS - fraction


@dataclass(frozen=True, eq=False)
class Scenario:
    """Tasks made from one data set.

    Attributes:
        dataset: where images and labels come from; images uint8.
        kind: `permuted`: each task shuffles the pixels its own way. `rotated`: task i turns images by
            i * step_degrees. `split`: task i shows the next `classes_per_task` classes under their own labels.
            `label-permuted`: the same images, each task with its own permutation of the labels.
        tasks: number of tasks, from 0 to tasks - 1.
        seed: seed of permutations and of batches. The word pair (seed, task) is the key of a permutation, so two
            seeds share no task.
        step_degrees: for `rotated`.
        classes_per_task: for `split`.

    Raises:
        SpecError: fewer than one task, a split of more classes than there are, rotations that come round to the same
            angle, or rotated images that are not (N, height, width).
    """

    dataset: Dataset
    kind: Kind
    tasks: int
    seed: int
    step_degrees: float = 10.0
    classes_per_task: int = 2
    _made: dict[int, Task] = field(default_factory=dict, init=False, repr=False)
    _training_rows: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise SpecError(f"a scenario needs at least one task, got {self.tasks}")
        each = self.classes_per_task
        if self.kind == "split" and not 0 < each * self.tasks <= self.dataset.classes:
            raise SpecError(
                f"{self.tasks} tasks of {each} classes, but the data set has {self.dataset.classes} classes"
            )
        if self.kind == "rotated":
            if self.dataset.train_x.ndim != 3:
                raise SpecError(f"rotation needs images (N, height, width), got {self.dataset.train_x.shape}")
            angles = {round(task * self.step_degrees % 360.0, 6) for task in range(self.tasks)}
            if len(angles) < self.tasks:
                raise SpecError(f"{self.tasks} tasks of {self.step_degrees} degrees each come round to the same angle")

    def task(self, task: int) -> Task:
        """The task of that number.

        Raises:
            SpecError: there is no such task, or no such kind.
        """
        if not 0 <= task < self.tasks:
            raise SpecError(f"task {task} of {self.tasks}")
        if task not in self._made:
            self._made[task] = self._make_task(task)
        return self._made[task]

    def classes(self, task: int) -> tuple[int, ...]:
        """Classes of the data set whose images the task shows."""
        each = self.classes_per_task
        shown = range(task * each, task * each + each) if self.kind == "split" else range(self.dataset.classes)
        return tuple(shown)

    def batch(self, task: int, position: int, rows: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """The batch at `position` of the task's endless training stream.

        Rows are drawn independently from the task's training images, so any batch can be made without those before.

        Returns:
            x uint8 (rows, ...) and y int64 (rows,), new arrays.
        """
        transform, classes = self.task(task), self.classes(task)
        if classes not in self._training_rows:
            self._training_rows[classes] = np.flatnonzero(np.isin(self.dataset.train_y, classes))
        candidates = self._training_rows[classes]
        drawn = RawDraws(self.seed, _Stream.BATCH, task, position).many_below(len(candidates), rows)
        chosen = candidates[drawn]
        return transform.apply(self.dataset.train_x[chosen], self.dataset.train_y[chosen])

    def test_set(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        """All test images of the task in the data set's order: x uint8 (m, ...) and y int64 (m,), new arrays."""
        chosen = np.isin(self.dataset.test_y, self.classes(task))
        return self.task(task).apply(self.dataset.test_x[chosen], self.dataset.test_y[chosen])

    def _make_task(self, task: int) -> Task:
        shape = self.dataset.train_x.shape[1:]
        match self.kind:
            case "permuted":
                return _Permuted(pixel_order(self.seed, task, math.prod(shape)))
            case "rotated":
                return _Rotated((shape[0], shape[1]), task * self.step_degrees)
            case "split":
                return _AsIs()
            case "label-permuted":
                return _LabelPermuted(RawDraws(self.seed, _Stream.LABELS, task).permutation(self.dataset.classes))


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One place in the stream.

    Attributes:
        index: place in the whole stream, from 0.
        task: the true task, which the learner is not told.
        stream: key of the record; batches of one key arrive in order.
        position: how many batches of the same task came before.
    """

    index: int
    task: int
    stream: str
    position: int


def schedule(
    order: Order,
    tasks: int,
    batches: int,
    seed: int,
    *,
    dwell: int = 100,
    min_dwell: int = 30,
    max_dwell: int = 100,
) -> list[ScheduledBatch]:
    """Which task each of `batches` batches belongs to; every task appears.

    Args:
        order: `sequential`: one task after the other, in shares as equal as they can be. `recurring`: round robin,
            `dwell` batches each. `random`: stay for min_dwell to max_dwell batches, then go to any other task.
            `interleaved`: each task is a stream of its own with an equal share, in a shuffled order.
        tasks: number of tasks.
        batches: length of the whole stream.
        seed: of the orders `random` and `interleaved`.
        dwell: batches per visit, for `recurring`.
        min_dwell: shortest visit, for `random`.
        max_dwell: longest visit, for `random`. The last visit is cut where the stream ends.

    Raises:
        SpecError: the stream is too short to visit every task, or a length is not positive.
    """
    if min(tasks, dwell, min_dwell) < 1 or min_dwell > max_dwell:
        raise SpecError(f"tasks and dwells must be at least 1: {tasks=}, {dwell=}, {min_dwell=}, {max_dwell=}")
    # Every task but the last needs a full visit before the stream ends.
    visit = {"recurring": dwell, "random": max_dwell}.get(order, 1)
    enough = visit * (tasks - 1) + 1
    if batches < enough:
        raise SpecError(
            f"{batches} batches are too few for {tasks} tasks with visits of up to {visit} batches: ask for {enough} "
            "batches or more, or for fewer tasks or shorter visits"
        )
    draws = RawDraws(seed, _Stream.SCHEDULE)
    match order:
        case "sequential":
            visited: list[int] = [index * tasks // batches for index in range(batches)]
        case "recurring":
            visited = [index // dwell % tasks for index in range(batches)]
        case "random":
            visited = _random_visits(tasks, batches, draws, min_dwell, max_dwell)
        case "interleaved":
            visited = [index % tasks for index in draws.permutation(batches).tolist()]
    seen = [0] * tasks
    plan = []
    for index, task in enumerate(visited):
        stream = f"stream-{task}" if order == "interleaved" else "stream-0"
        plan.append(ScheduledBatch(index, task, stream, position=seen[task]))
        seen[task] += 1
    return plan


def iter_stream(
    scenario: Scenario, plan: Iterable[ScheduledBatch], rows: int = 128
) -> Iterator[tuple[ScheduledBatch, np.ndarray, np.ndarray]]:
    """Each scheduled batch with its x uint8 (rows, ...) and y int64 (rows,), made when it is asked for."""
    for place in plan:
        x, y = scenario.batch(place.task, place.position, rows)
        yield place, x, y


def _random_visits(tasks: int, batches: int, draws: RawDraws, min_dwell: int, max_dwell: int) -> list[int]:
    visited: list[int] = []
    unseen = set(range(tasks))
    while len(visited) < batches:
        # Any other task will do as long as the longest visits to it and then to all unseen ones fit in the stream.
        roam = batches - len(visited) > max_dwell * len(unseen)
        options = sorted((set(range(tasks)) if roam else unseen) - set(visited[-1:])) or [0]
        task = options[draws.below(len(options))]
        unseen.discard(task)
        visited += [task] * (min_dwell + draws.below(max_dwell - min_dwell + 1))
    return visited[:batches]
