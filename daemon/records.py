"""Where a record lies and what it holds: the words that source, merge, loop and checkpoint share."""

import json
from dataclasses import dataclass
from typing import Self


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


@dataclass(frozen=True, slots=True)
class AnswerMark:
    """How far the answers to a partition's records are known to have come on the predictions topic.

    Attributes:
        log: id of that topic.
        partition: which of its partitions.
        offset: behind the newest answer that a commit covers.
    """

    log: str
    partition: int
    offset: int

    def to_text(self) -> str:
        """As it is stored: JSON."""
        return json.dumps({"log": self.log, "partition": self.partition, "offset": self.offset})

    @classmethod
    def from_text(cls, text: str) -> Self:
        """From what `to_text` wrote.

        Raises:
            ValueError: it is damaged.
        """
        try:
            found = json.loads(text)
            log, partition, offset = found["log"], found["partition"], found["offset"]
        except (LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"{text[:80]!r} is no mark of answers") from error
        whole_numbers = all(type(n) is int and 0 <= n < 2**63 for n in (partition, offset))
        if type(log) is not str or not whole_numbers:
            raise ValueError(f"{text[:80]!r} is no mark of answers")
        return cls(log, partition, offset)


@dataclass(slots=True)
class Position:
    """How far a partition is applied: the next offset, the id of the log it counts in, and how far it is answered."""

    offset: int
    log: str = ""
    answers: AnswerMark | None = None


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


def whole(text: bytes | None) -> int | None:
    """A number of at most 18 digits; None for anything else."""
    return int(text) if text is not None and len(text) <= 18 and text.isdigit() else None
