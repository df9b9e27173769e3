"""The training thread: applies decoded records one after the other while the poll loop keeps the group happy.

Only this thread touches learner, checkpoint and store. The poll loop hands over a few decoded records ahead, and asks
for anything else (`call`) in the same line, so that it happens between two records. A full line is filled up again only
once it has nearly run out: the two threads share an interpreter lock, and each change between them delays a step.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Final, TypeVar

from daemon.apply import Applier, Decoded

T = TypeVar("T")

AHEAD: Final = 16  # decoded records that wait at most
AHEAD_BYTES: Final = 4 * 2**20  # or as many bytes of their values, but two records in any case
_REFILL: Final = 4  # records left when the poll loop is woken
_IDLE_S: Final = 0.1  # how often a commit that is due by time is looked for


class TrainingThread:
    """Runs an `Applier` in a thread of its own."""

    def __init__(self, applier: Applier) -> None:
        self._applier = applier
        self._changed = Condition()
        self._line: deque[Decoded | Callable[[], None]] = deque()
        self._busy = False
        self._ending = False
        self._abandoned = False
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="training", daemon=True)

    # -- for the poll loop

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def offer(self, decoded: Decoded, timeout_s: float) -> bool:
        """Hand over a record; False when for so many seconds there was no room."""
        with self._changed:
            if self._full():
                self._changed.wait_for(self._wants_more, timeout_s)
            if self._full() or self._failure is not None:
                return False
            self._line.append(decoded)
            self._changed.notify_all()
            return True

    def call(self, action: Callable[[], T]) -> "Future[T]":
        """Have something done behind what is in line; an error it raises is the future's, and the thread goes on."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except Exception as error:  # noqa: BLE001 - whoever asked raises it
                future.set_exception(error)

        with self._changed:
            self._line.append(run)
            self._changed.notify_all()
        return future

    def drop(self) -> None:
        """Take back what was handed over and not begun; it will be read again."""
        with self._changed:
            self._line.clear()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what the thread died of, if it did."""
        if self._failure is not None:
            raise self._failure

    @property
    def idle(self) -> bool:
        """Whether nothing is in line and nothing is being done."""
        with self._changed:
            return not self._line and not self._busy

    def end(self) -> None:
        """Have it do what is in line, commit, and end."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def abandon(self, timeout_s: float) -> None:
        """Have it end without another commit, once what it is doing is done; waits for that for so many seconds."""
        with self._changed:
            self._line.clear()
            self._abandoned = self._ending = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def ended(self, timeout_s: float) -> bool:
        """Whether it has ended within so many seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the thread

    def _full(self) -> bool:
        size = sum(len(item.record.value or b"") for item in self._line if isinstance(item, Decoded))
        return len(self._line) >= AHEAD or (len(self._line) > 1 and size >= AHEAD_BYTES)

    def _wants_more(self) -> bool:
        return self._failure is not None or (len(self._line) <= _REFILL and not self._full())

    def _run(self) -> None:
        try:
            while (item := self._take()) is not None:
                self._do(item)
                with self._changed:
                    self._busy = False
                    if self._wants_more():
                        self._changed.notify_all()
            if not self._abandoned:
                self._applier.commit()
        except BaseException as error:  # noqa: BLE001 - the poll loop raises it in the main thread
            with self._changed:
                self._failure = error
                self._busy = False
                self._changed.notify_all()

    def _take(self) -> Decoded | Callable[[], None] | None:
        """The next in line; None at the end. While there is none, what is due is committed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._ending, _IDLE_S)
                if self._line:
                    self._busy = True
                    return self._line.popleft()
                if self._ending:
                    return None
            self._applier.commit_if_due()

    def _do(self, item: Decoded | Callable[[], None]) -> None:
        if isinstance(item, Decoded):
            self._applier.apply(item)
            self._applier.commit_if_due()
        else:
            item()
