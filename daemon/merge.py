"""One order for the records of several partitions, so that what the trainer learns depends on the logs alone.

Of all partitions' next records the one with the smallest (timestamp, topic, partition) comes first. That is a function
of the logs and of the positions in them, so a trainer that starts again anywhere goes on in the same order. It needs
the next record of *every* partition: a partition that has more records is waited for; one that is read to its end is
waited for only while its newest record came less than `wait_s` ago, or one idle partition would hold up the others.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from daemon.records import Partition, Record


@dataclass(slots=True)
class _Waiting:
    """Records of one partition that were fetched and not handed on."""

    records: deque[Record] = field(default_factory=deque)
    size: int = 0  # bytes of their values
    arrived: float = float("-inf")  # when the newest came


class RecordMerge:
    """Holds what was fetched and hands it on in order.

    Args:
        wait_s: how long after its newest record an exhausted partition is waited for, in seconds.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._waiting: dict[Partition, _Waiting] = {}

    def start(self, partitions: Iterable[Partition]) -> None:
        """Begin anew with these partitions and nothing fetched."""
        self._waiting = {partition: _Waiting() for partition in partitions}

    def add(self, partition: Partition, records: Iterable[Record], now: float) -> None:
        """Take in records of one partition, behind those it gave before; `now` in seconds of a monotonic clock."""
        waiting = self._waiting[partition]
        for record in records:
            waiting.records.append(record)
            waiting.size += len(record.value or b"")
            waiting.arrived = now

    def amount(self, partition: Partition) -> tuple[int, int]:
        """Records waiting of this partition, and the bytes of their values."""
        waiting = self._waiting[partition]
        return len(waiting.records), waiting.size

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not any(waiting.records for waiting in self._waiting.values())

    def blocked_by(self, now: float, exhausted: Callable[[Partition], bool]) -> list[Partition]:
        """The partitions whose next record has to be known first."""
        return [
            partition
            for partition, waiting in self._waiting.items()
            if not waiting.records and (not exhausted(partition) or now - waiting.arrived < self._wait_s)
        ]

    def pop(self, now: float, exhausted: Callable[[Partition], bool]) -> Record | None:
        """The next record of all; None when there is none, or another partition has to be waited for.

        Args:
            now: seconds of a monotonic clock.
            exhausted: whether a partition without waiting records is read to its end.
        """
        heads = [waiting for waiting in self._waiting.values() if waiting.records]
        if not heads or (len(heads) < len(self._waiting) and self.blocked_by(now, exhausted)):
            return None
        first = min(heads, key=lambda waiting: (waiting.records[0].timestamp_ms, waiting.records[0].partition))
        record = first.records.popleft()
        first.size -= len(record.value or b"")
        return record
