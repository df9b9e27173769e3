"""Where a record lies and what it holds: the words that source, merge, loop and checkpoint share."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """A partition of a topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.number}"

    def stream(self, key: bytes | None) -> str:
        """Name of the stream a record with this key belongs to: keys name streams within their partition."""
        name = f"{self.topic}/{self.number}"
        return name if key is None else f"{name}/{key.decode('utf-8', errors='backslashreplace')}"


@dataclass(slots=True)
class Position:
    """How far a partition is applied: the next offset, and the id of the log it counts in."""

    offset: int
    log: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """A partition as the broker has it: the id of its log, and the first offset that it still holds."""

    identity: str
    start: int


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as the daemon sees it."""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int
