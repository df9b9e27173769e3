"""Requests in line, answered by one thread: it takes what waits together and answers it in one pass.

While one pass runs, the next requests gather, so a batch is as large as the load makes it and nobody waits for a batch
to fill, unless `wait_s` says so. Rows that each have their own task can share a pass with others that are asked in the
same way; a request whose rows are one task, or of a named stream, is answered by itself.

Whoever answers takes the newest snapshot when a pass begins and keeps it to the end: every answer is of one version.
"""

import queue
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from supsup_online.answering import Answer, Inquiry, answer, answer_told
from supsup_online.errors import BadBatchError, NothingLearntError, SupsupError
from supsup_online.snapshot import Snapshot

_STOP_S: Final = 10.0


class BusyError(SupsupError):
    """As many rows wait as may; try again later."""


class ClosedError(SupsupError):
    """This replica is about to end."""


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """One request.

    Attributes:
        x: raw inputs, uint8 or float32 (n, *input_shape).
        inquiry: how to infer the task.
        tasks: the mask of each row, int64 (n,), where it is told; else None.
        stream: its last mask is tried first; empty: no stream.
    """

    x: NDArray[np.generic]
    inquiry: Inquiry
    tasks: NDArray[np.int64] | None = None
    stream: str = ""

    @property
    def alone(self) -> bool:
        """Whether it cannot share a pass."""
        return bool(self.stream) or (self.tasks is None and self.inquiry.scope == "batch")

    def goes_with(self, other: "Question") -> bool:
        """Whether both can be answered in one pass."""
        told = (self.tasks is None) == (other.tasks is None)
        return told and self.inquiry == other.inquiry and not self.alone and not other.alone


@dataclass(frozen=True, eq=False, slots=True)
class Answered:
    """An answer and the bank version it is of."""

    version: int
    answer: Answer


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    question: Question
    done: "Future[Answered]"


@dataclass(slots=True)
class Answerer:
    """Answers between `__enter__` and `__exit__`; `ask` may be called from any thread.

    Memory: `queue_rows` rows of raw inputs at most wait; a pass holds one prepared copy of its rows as float32.

    Attributes:
        newest: the snapshot to answer with; None before there is one.
        batch_rows: most rows of several requests in one pass.
        queue_rows: rows that may wait.
        wait_s: how long a first request waits for others.
        max_sticky: streams remembered; the one unused for longest is forgotten first.
        passed: told of every pass: its first question, and the answers to all.
    """

    newest: Callable[[], Snapshot | None]
    batch_rows: int = 128
    queue_rows: int = 4096
    wait_s: float = 0.0
    max_sticky: int = 10_000
    passed: Callable[[Question, Answered], None] = lambda *_: None
    _line: "queue.SimpleQueue[_Waiting | None]" = field(default_factory=queue.SimpleQueue)
    _lock: Lock = field(default_factory=Lock)
    _rows: int = 0
    _closed: bool = False
    _next: _Waiting | None = None
    _thread: Thread | None = None
    _sticky: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._run, name="answerer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer what waits, then end."""
        with self._lock:
            self._closed = True
            self._line.put(None)
        if self._thread is not None:
            self._thread.join(_STOP_S)

    @property
    def waiting(self) -> int:
        """Rows that wait or are being answered."""
        with self._lock:
            return self._rows

    def ask(self, question: Question) -> "Future[Answered]":
        """Put a question in line; one that is cancelled before its turn is not answered.

        Raises:
            BusyError: too many rows wait. A request of more rows than may wait is taken when nobody else waits.
            ClosedError: this replica is about to end.
        """
        rows = len(question.x)
        with self._lock:
            if self._closed:
                raise ClosedError("this replica is about to end: ask another one")
            if self._rows and self._rows + rows > self.queue_rows:
                raise BusyError(f"{self._rows} rows wait already, at most {self.queue_rows} may: try again later")
            self._rows += rows
            waiting = _Waiting(question, Future())
            self._line.put(waiting)  # before the lock is given back: nobody may stand behind the end
        return waiting.done

    # -- the thread

    def _run(self) -> None:
        while True:
            first = self._next or self._line.get()
            self._next = None
            if first is None:
                return
            together = self._gather(first)
            try:
                self._answer([waiting for waiting in together if waiting.done.set_running_or_notify_cancel()])
            finally:
                with self._lock:
                    self._rows -= sum(len(waiting.question.x) for waiting in together)

    def _gather(self, first: _Waiting) -> list[_Waiting]:
        """The first in line and those behind it that can share its pass; the one that cannot is next."""
        together, rows = [first], len(first.question.x)
        until = time.monotonic() + self.wait_s
        while not first.question.alone and rows < self.batch_rows:
            left = until - time.monotonic()
            try:
                another = self._line.get(timeout=left) if left > 0 else self._line.get_nowait()
            except queue.Empty:
                break
            if another is None:
                self._line.put(None)
                break
            if not first.question.goes_with(another.question) or rows + len(another.question.x) > self.batch_rows:
                self._next = another
                break
            together.append(another)
            rows += len(another.question.x)
        return together

    def _answer(self, together: list[_Waiting]) -> None:
        if not together:
            return
        try:
            answered = self._pass([waiting.question for waiting in together])
        except BadBatchError as error:
            if len(together) > 1:  # one of them names a mask that is not there; the others need not suffer
                for waiting in together:
                    self._answer([waiting])
            else:
                together[0].done.set_exception(error)
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and raises it
            for waiting in together:
                waiting.done.set_exception(error)
        else:
            for waiting, found in zip(together, answered, strict=True):
                waiting.done.set_result(found)

    def _pass(self, questions: list[Question]) -> list[Answered]:
        snapshot = self.newest()
        if snapshot is None:
            raise NothingLearntError
        first = questions[0]
        pieces = [snapshot.network.inputs(question.x) for question in questions]
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if first.tasks is not None:
            tasks = np.concatenate([question.tasks for question in questions if question.tasks is not None])
            whole = answer_told(snapshot, x, tasks, first.inquiry)
        else:
            whole = answer(snapshot, x, first.inquiry, self._sticky.get(first.stream))
        if first.stream:
            self._stick(first.stream, int(whole.mask_ids[-1]))
        answered = Answered(snapshot.version, whole)
        self.passed(first, answered)
        if len(questions) == 1:
            return [answered]
        ends = np.cumsum([len(question.x) for question in questions])
        return [
            Answered(snapshot.version, whole.rows(end - len(question.x), end))
            for question, end in zip(questions, ends.tolist(), strict=True)
        ]

    def _stick(self, stream: str, mask_id: int) -> None:
        self._sticky[stream] = mask_id
        self._sticky.move_to_end(stream)
        while len(self._sticky) > self.max_sticky:
            self._sticky.popitem(last=False)
