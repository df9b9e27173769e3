"""Dead letters as they lie in `<topic>.dlq`: read from start to end, or one by its place.

Whatever a letter holds is untrusted: the record in it was bad enough to be put aside. Headers may be missing, doubled
or no text; nothing here fails for that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from daemon.errors import ConfigError
from daemon.kafka_client import KafkaSettings
from daemon.records import whole
from daemon.topic_reader import TopicReader

SUFFIX: Final = ".dlq"
REPLAYED_FROM: Final = "replayed-from"

# The trainer writes these behind a record's own headers, this one first.
_FIRST_NOTE: Final = "source-topic"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was put aside, and what the trainer noted about it.

    Attributes:
        topic: the dead-letter topic.
        partition, offset: its place there.
        timestamp_ms: when the broker got it, milliseconds since the epoch.
        key, value: of the record; the value may have been cut, see `truncated_from`.
        own: the record's own headers.
        notes: the trainer's headers; empty where this was no trainer.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    own: tuple[tuple[str, bytes], ...]
    notes: dict[str, bytes]

    @classmethod
    def of(cls, raw: Any) -> "DeadLetter":
        """From a consumer's record."""
        headers = [(name, value or b"") for name, value in raw.headers]
        starts = [i for i, (name, _) in enumerate(headers) if name == _FIRST_NOTE]
        cut = starts[-1] if starts else len(headers)  # a record may have headers of these names itself
        return cls(
            topic=raw.topic,
            partition=raw.partition,
            offset=raw.offset,
            timestamp_ms=raw.timestamp,
            key=raw.key,
            value=raw.value,
            own=tuple(headers[:cut]),
            notes=dict(headers[cut:]),
        )

    @property
    def place(self) -> str:
        """`PARTITION:OFFSET` in the dead-letter topic."""
        return f"{self.partition}:{self.offset}"

    @property
    def reason(self) -> bytes:
        """The short word; empty where there is none."""
        return self.notes.get("reason", b"")

    @property
    def failed_ms(self) -> int:
        """When it was put aside, milliseconds since the epoch."""
        noted = whole(self.notes.get("failed-at"))
        return self.timestamp_ms if noted is None else noted

    @property
    def source_partition(self) -> int | None:
        """The partition it was read from; None where that is not noted."""
        return whole(self.notes.get("source-partition"))

    @property
    def origin(self) -> tuple[bytes | None, ...] | None:
        """What is the same in all letters of one record; None where it is not noted.

        With the time, because a topic that was made anew has other records at the same offsets.
        """
        names = ("source-topic", "source-partition", "source-offset", "source-timestamp")
        return tuple(self.notes.get(name) for name in names) if names[2] in self.notes else None

    @property
    def truncated_from(self) -> int | None:
        """Bytes its value had, where only the beginning was kept; else None."""
        if "truncated-from" not in self.notes:
            return None
        return whole(self.notes["truncated-from"]) or 0

    @property
    def replayed_from(self) -> bytes | None:
        """Place of the dead letter this record had been replayed from: it has failed again."""
        return dict(self.own).get(REPLAYED_FROM)


class DeadLetters:
    """The dead letters of one topic; a context manager."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self.source, self.topic = topic, topic + SUFFIX
        self._reader = TopicReader(settings, self.topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.__exit__(kind, error, at)

    def partitions(self) -> list[int]:
        """The partitions of the dead-letter topic.

        Raises:
            ConfigError: there is no such topic.
        """
        if not (found := self._reader.partitions()):
            raise ConfigError(
                f"there is no topic {self.topic}: nothing of {self.source} was ever put aside, or --topic (the topic "
                "that is trained from, without .dlq) or --kafka is wrong"
            )
        return found

    def all(self) -> Iterator[DeadLetter]:
        """Every letter there is now, in order within a partition.

        Raises:
            ConfigError: there is no such topic.
            UnavailableError: the broker is away or does not answer.
        """
        self.partitions()
        return map(DeadLetter.of, self._reader.records())

    def at(self, partition: int, offset: int) -> DeadLetter:
        """The letter at a place.

        Raises:
            ConfigError: there is none.
            UnavailableError: the broker is away or does not answer.
        """
        self.partitions()
        raw = self._reader.record(partition, offset)
        if raw is None:
            raise ConfigError(
                f"{self.topic} has no record at {partition}:{offset}: see `supsup-daemon dlq list`; it may have been "
                "removed by retention"
            )
        return DeadLetter.of(raw)
