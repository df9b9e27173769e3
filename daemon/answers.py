"""Answers to unlabelled records: each is on the predictions topic once, in the order of the source partition.

An answer goes out before the commit that moves on past its record, so a crash in between leaves it there and its record
to be read again. Whoever comes next looks: each commit says how far the answers had come on the predictions topic, and
what lies behind that mark was sent by a trainer that did not live to commit it. Those answers are not sent again; on a
CPU they would be the same bytes.

The producer is idempotent, so the client's own repetitions make no copies. If a request fails for good all the same, it
is not known what arrived: then the topic is looked at again. All answers to one source partition go to one partition of
the predictions topic, whatever their keys, so they stay in order.
"""

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from daemon.errors import StopError, UnavailableError
from daemon.kafka_client import KafkaSettings, answering, log_id, reachable
from daemon.records import AnswerMark, Partition, Record, whole
from daemon.side_topics import PREDICTIONS, Headers
from daemon.topic_reader import TopicReader

log = structlog.get_logger()

_NEVER_MS: Final = 2**31 - 1  # whoever waits has less patience; a batch given up alone would lose its place in the line


@dataclass(slots=True)
class _Outgoing:
    """An answer on its way; without a future it has yet to be handed to the client."""

    record: Record
    value: bytes
    headers: Headers
    mark: AnswerMark | None  # from where on it might be there already
    future: Any = None


class Answers:
    """The way out for answers.

    Args:
        settings: how to reach Kafka.
        bank: whose answers these are; several banks may read one topic.
    """

    def __init__(self, settings: KafkaSettings, bank: str) -> None:
        self._settings = settings
        self._bank = bank.encode()
        self._producer: Any = None  # there are streams in which nobody ever asks
        self._line: deque[_Outgoing] = deque()
        self._found: dict[Partition, dict[int, tuple[int, AnswerMark]]] = {}  # offset -> its timestamp, mark behind it
        self._reached: dict[Partition, AnswerMark] = {}
        self._logs: dict[str, str] = {}  # topic -> id of its log
        self._in_doubt = False

    def send(self, record: Record, value: bytes, headers: Headers, mark: AnswerMark | None) -> bool:
        """Put an answer in line, unless it is there already; `wait` tells when the broker has it.

        Args:
            record: what is answered.
            value: the answer.
            headers: the answer's headers; source and bank among them, by which it is recognised.
            mark: of the newest commit.

        Returns:
            False when it was there already.

        Raises:
            UnavailableError: Kafka does not say what is there; nothing was put in line.
        """
        if record.partition not in self._found:
            self._found[record.partition] = self._look(record.partition, record.offset, mark)
        if self._is_there(record):
            return False
        behind_unsent = bool(self._line) and self._line[-1].future is None
        self._line.append(_Outgoing(record, value, headers, mark))
        if not behind_unsent:  # or it would arrive before those in front of it
            with contextlib.suppress(UnavailableError):
                self._hand_over(self._line[-1])
        return True

    def wait(self, timeout_s: float = 60.0) -> dict[Partition, AnswerMark]:
        """Return once everything in line is acknowledged: how far the answers have come where that has changed.

        Raises:
            UnavailableError: the broker did not acknowledge; the commit must not happen. Call again.
            StopError: it refuses an answer as too large.
        """
        if self._in_doubt:
            self._look_again()
        for outgoing in self._line:
            if outgoing.future is None:
                self._hand_over(outgoing)
        while self._line:
            first = self._line[0]
            metadata = self._outcome(first, timeout_s)
            mark = AnswerMark(self._log(first.record.partition), metadata.partition, metadata.offset + 1)
            self._reached[first.record.partition] = mark
            self._line.popleft()
        reached, self._reached = self._reached, {}
        return reached

    def close(self) -> None:
        """Close without waiting for what was not acknowledged: it is not committed either."""
        if self._producer is not None:
            self._producer.close(timeout=1)

    # -- what is there

    def _is_there(self, record: Record) -> bool:
        found = self._found[record.partition].pop(record.offset, None)
        # A topic that was made anew has other records at the same offsets.
        if found is None or found[0] != record.timestamp_ms:
            return False
        self._reached[record.partition] = found[1]
        log.info("answer.found", topic=record.partition.topic, partition=record.partition.number, offset=record.offset)
        return True

    def _look(self, partition: Partition, first: int, mark: AnswerMark | None) -> dict[int, tuple[int, AnswerMark]]:
        """This bank's answers to records of a partition from offset `first` on, that lie behind a mark."""
        found: dict[int, tuple[int, AnswerMark]] = {}
        with TopicReader(self._settings, partition.topic + PREDICTIONS) as reader:
            if not (places := reader.partitions()):
                return found
            identity = self._log(partition)
            if mark is None or mark.log != identity:
                mark = AnswerMark(identity, partition.number % len(places), 0)
            for raw in reader.tail(mark.partition, mark.offset):
                headers = dict(raw.headers)
                offset, timestamp_ms = whole(headers.get("source-offset")), whole(headers.get("source-timestamp"))
                if offset is None or timestamp_ms is None or offset < first or not self._answers(headers, partition):
                    continue
                found.setdefault(offset, (timestamp_ms, AnswerMark(identity, raw.partition, raw.offset + 1)))
        return found

    def _answers(self, headers: dict[str, bytes], partition: Partition) -> bool:
        """Whether an answer is this bank's, to a record of this partition."""
        source = headers.get("source-topic"), headers.get("source-partition"), headers.get("bank")
        return source == (partition.topic.encode(), str(partition.number).encode(), self._bank)

    def _look_again(self) -> None:
        """After a failure: leave out what has arrived."""
        firsts: dict[Partition, _Outgoing] = {}
        for outgoing in self._line:
            firsts.setdefault(outgoing.record.partition, outgoing)
        for partition, first in firsts.items():
            self._found[partition] = self._look(partition, first.record.offset, first.mark)
        self._line = deque(outgoing for outgoing in self._line if not self._is_there(outgoing.record))
        self._in_doubt = False

    def _log(self, partition: Partition) -> str:
        topic = partition.topic + PREDICTIONS
        if topic not in self._logs:
            with answering():
                self._logs[topic] = log_id(self._settings, topic)
        return self._logs[topic]

    # -- out

    def _hand_over(self, outgoing: _Outgoing) -> None:
        if self._producer is None:
            self._producer = self._new_producer()
        record = outgoing.record
        topic = record.partition.topic + PREDICTIONS
        with answering():
            partitions = self._producer.partitions_for(topic)
            outgoing.future = self._producer.send(
                topic,
                partition=record.partition.number % len(partitions),
                key=record.key,
                value=outgoing.value,
                headers=outgoing.headers,
            )

    def _new_producer(self) -> Any:
        with reachable(self._settings):
            return KafkaProducer(
                **self._settings.client,
                acks="all",
                compression_type="gzip",
                enable_idempotence=True,
                max_in_flight_requests_per_connection=1,
                delivery_timeout_ms=_NEVER_MS,
                max_request_size=2**31 - 1,  # the broker's own limit counts
                max_block_ms=int(self._settings.connect_timeout_s * 1000),
                bootstrap_timeout_ms=int(self._settings.connect_timeout_s * 1000),
            )

    def _outcome(self, outgoing: _Outgoing, timeout_s: float) -> Any:
        with answering():
            try:
                return outgoing.future.get(timeout=timeout_s)
            except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
                raise StopError(
                    f"the broker refuses an answer of {len(outgoing.value)} bytes as too large: raise "
                    f"max.message.bytes of {outgoing.record.partition.topic}{PREDICTIONS} (kafka-configs --alter), or "
                    "ask for fewer rows in one record, and start again"
                ) from error
            except KafkaError:
                if outgoing.future.failed():  # else it is still on its way
                    self._give_up_producer()
                raise

    def _give_up_producer(self) -> None:
        """Nobody knows which of the others have arrived: they are looked for before they are sent again."""
        self._producer.close(timeout=1)
        self._producer = None
        self._in_doubt = True
        self._logs.clear()
        for outgoing in self._line:
            outgoing.future = None
