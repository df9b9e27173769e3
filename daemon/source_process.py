"""`KafkaSource` at arm's length: the Kafka client works in a process of its own.

    trainer                                        source_main, a child process
    poll, hold, logs, place, ...   -- a call -->   the same method of a KafkaSource
                                   <-- Reply --    records, what it returned or raised, and its Status

Client, poll loop and training would share one interpreter lock otherwise, and a step may wait for the lock after each
of its operations (docs/performance.md). What goes over the socket pair is pickled; nobody else can write to it, and
records travel as the bytes they are.

The child ends with its parent, however that ends. It also leaves the group when its parent has been silent for a
session: a trainer that is asleep must not keep the partitions from its successor. A child that is gone is an
`UnavailableError`; the next poll starts another, which finds its way by the positions in Redis like any new member.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

import structlog

from daemon.errors import UnavailableError
from daemon.kafka_client import POLL_LIMIT_S
from daemon.records import Log, Partition, Position, Record
from daemon.settings import Settings

log = structlog.get_logger()

CALL_RECORDS: Final = 16  # handed on by one call at most, once all of the call before are
CALL_BYTES: Final = 4 * 2**20  # or the first that makes as many bytes of values
_SLOWEST_CALLS: Final = 5  # of requests to the broker in one call, each of which may take the connect timeout
_SPARE_S: Final = 20.0
_END_S: Final = 3.0  # leaving the group takes up to two
_LAST_WORDS_S: Final = 1.0  # between its end and the kernel's word of how it ended


@dataclass(frozen=True, slots=True)
class Status:
    """A `KafkaSource` as it was at the end of a call; see there for each."""

    unsettled: bool = False
    waiting: bool = False
    placed: bool = False
    caught_up: bool = False
    elsewhere: str = ""
    lags: Mapping[Partition, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call has brought: records even where it failed, for those before a bad one must not be lost with it."""

    status: Status = Status()
    records: tuple[Record, ...] = ()
    value: Any = None
    error: BaseException | None = None


class SourceProcess:
    """The trainer's consumer, for one thread. Its process starts at once, which takes a while; `open` waits for it.

    Args:
        settings: of the trainer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._answer_s = _SPARE_S + _SLOWEST_CALLS * settings.connect_timeout_s * len(settings.topic)
        self._records: deque[Record] = deque()
        self._status = Status()
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # The same modules as here, from the same places.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            command = [sys.executable, "-P", "-m", "daemon.source_main", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()], env=environment
            )
        self._connection: Connection | None = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Of the child process."""
        return self._process.pid

    def open(self) -> None:
        """Have it make its consumer, and wait for that.

        Raises:
            StopError: as a `KafkaSource` that is made.
        """
        self._call("open", self._settings)

    # -- records

    def poll(self, timeout_s: float = POLL_LIMIT_S) -> None:
        """See `KafkaSource.poll`. Returns at once if there are records to hand on.

        Raises:
            UnavailableError: also if the process is gone; the next poll starts another.
        """
        if self._connection is None:
            self._start()
            log.warning("source.restarted", pid=self.pid)
            self.open()
        self._call("poll", 0.0 if self._records else min(timeout_s, POLL_LIMIT_S), not self._records)

    def next(self) -> Record | None:
        """The next record of all partitions; None if there is none yet, or the group has changed."""
        return self._records.popleft() if self._records and not self.unsettled else None

    @property
    def waiting(self) -> bool:
        """Whether records were fetched that `next` has not handed on."""
        return bool(self._records) or self._status.waiting

    # -- the group

    @property
    def unsettled(self) -> bool:
        """Whether the partitions have to be placed: `hold`, apply what was handed on, then `place`."""
        return self._status.unsettled

    def hold(self) -> None:
        """Hand on nothing until `place`, and forget what was fetched: the group has changed."""
        self._records.clear()
        self._call("hold")

    def logs(self) -> dict[Partition, Log]:
        """All assigned partitions as the broker has them; none while somebody else has some of our topics' partitions.

        Raises:
            UnavailableError: the broker does not say.
        """
        found: dict[Partition, Log] = self._call("logs")
        return found

    def place(self, positions: Mapping[Partition, int]) -> None:
        """Go on with these partitions at these offsets, unless the group has changed again meanwhile."""
        self._call("place", dict(positions))

    def settle_again(self) -> None:
        """What `hold` began could not be finished; `unsettled` says so again."""
        with contextlib.suppress(UnavailableError):  # a new process is unsettled once it has a partition
            self._call("settle_again")

    @property
    def placed(self) -> bool:
        """Whether there are partitions to read."""
        return self._status.placed

    @property
    def elsewhere(self) -> str:
        """Partitions that another member of the group has, for people; empty when there is none."""
        return self._status.elsewhere

    # -- how far it is

    def lags(self) -> dict[Partition, int | None]:
        """Records of each partition not handed on yet, as of the newest call; None where that is not known."""
        lags = dict(self._status.lags)
        for record in self._records:
            if (lag := lags.get(record.partition)) is not None:
                lags[record.partition] = lag + 1
        return lags

    @property
    def caught_up(self) -> bool:
        """Whether every partition is read to its end and nothing waits; False while none is placed."""
        return self._status.caught_up and not self._records

    def tell_group(self, positions: Mapping[Partition, Position]) -> None:
        """Write group offsets, for lag tools; nothing depends on it, so it is not waited for."""
        with contextlib.suppress(UnavailableError):
            self._call("tell_group", dict(positions))

    def close(self) -> None:
        """Leave the group, unless the broker does not answer soon, and end the process."""
        self._answer_s = _END_S
        with contextlib.suppress(UnavailableError):
            self._call("close")
        self._end(_END_S)

    # -- the process

    def _call(self, method: str, *arguments: Any) -> Any:
        """Have the method called there.

        Raises:
            UnavailableError: the process has ended, or does not answer.
            StopError: whatever the method raised.
        """
        if self._connection is None:
            raise UnavailableError("the Kafka client's process has ended; the next poll starts another")
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(self._answer_s):
                raise self._gone("does not answer", 0.0)
            reply: Reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._gone("has ended", _LAST_WORDS_S) from error
        self._status = reply.status
        self._records.extend(reply.records)
        if reply.error is not None:
            raise reply.error
        return reply.value

    def _gone(self, how: str, patience_s: float) -> UnavailableError:
        """Clear away what is left of the process and of what it has fetched."""
        self._end(patience_s)
        self._records.clear()
        self._status = Status()
        return UnavailableError(f"the Kafka client's process {how} (exit code {self._process.returncode})")

    def _end(self, patience_s: float) -> None:
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
