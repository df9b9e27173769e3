"""A topic read from start to end, outside of any group: nothing is committed and nobody is disturbed."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaConsumer, TopicPartition

from daemon.errors import UnavailableError
from daemon.kafka_client import POLL_LIMIT_S, KafkaSettings, answering, reachable

_POLL_RECORDS: Final = 500


class TopicReader:
    """Reads a topic as far as it goes when it is asked; a context manager."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self.topic = topic
        self._patience_s = max(settings.connect_timeout_s, 2 * POLL_LIMIT_S)
        with reachable(settings):
            self._consumer = KafkaConsumer(
                **settings.client,
                bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_poll_records=_POLL_RECORDS,
                receive_message_max_bytes=2**31 - 1,  # letters may be as large as the records were
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._consumer.close(autocommit=False)

    def partitions(self) -> list[int]:
        """Its partitions; empty where there is no such topic, which is not created by asking."""
        with answering():
            exists = self.topic in self._consumer.topics()
            return sorted(self._consumer.partitions_for_topic(self.topic) or ()) if exists else []

    def records(self) -> Iterator[Any]:
        """All records up to the end of each partition as it is now, in order within a partition.

        Raises:
            UnavailableError: the broker is away or does not answer.
        """
        with answering():
            yield from self._up_to_the_end([TopicPartition(self.topic, number) for number in self.partitions()])

    def tail(self, partition: int, start: int) -> Iterator[Any]:
        """The records of one partition to its end as it is now, from an offset on, or from its start if that is later.

        Raises:
            UnavailableError: the broker is away or does not answer.
        """
        if partition in self.partitions():
            with answering():
                yield from self._up_to_the_end([TopicPartition(self.topic, partition)], start)

    def record(self, partition: int, offset: int) -> Any | None:
        """The record at a place; None where there is none.

        Raises:
            UnavailableError: the broker is away or does not answer.
        """
        where = TopicPartition(self.topic, partition)
        if partition not in self.partitions():
            return None
        with answering():
            if offset < self._consumer.beginning_offsets([where])[where]:
                return None
            first = next(self._up_to_the_end([where], start=offset), None)
        return first if first is not None and first.offset == offset else None

    def _up_to_the_end(self, partitions: Iterable[TopicPartition], start: int | None = None) -> Iterator[Any]:
        places = list(partitions)
        begin, end = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        # Only whether a partition is empty: after a large batch the embedded broker says that it ends too early.
        pending = {place for place in places if end[place] > begin[place]}
        self._consumer.assign(sorted(pending))
        for place in pending:
            self._consumer.seek(place, begin[place] if start is None else max(start, begin[place]))
        ends: dict[TopicPartition, int] = {}
        heard = time.monotonic()
        while pending:
            fetched = self._consumer.poll(timeout_ms=int(POLL_LIMIT_S * 1000))
            for place in pending - ends.keys():
                if (found := self._consumer.highwater(place)) is not None:
                    ends[place] = found
            for place, records in fetched.items():
                yield from (record for record in records if record.offset < ends[place])
            done = {place for place in pending & ends.keys() if self._consumer.position(place) >= ends[place]}
            self._consumer.pause(*done)
            heard = time.monotonic() if fetched or done else heard
            if time.monotonic() - heard > self._patience_s:
                raise UnavailableError(f"Kafka sends nothing of {self.topic}, though there is more to read")
            pending -= done
