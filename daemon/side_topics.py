"""The way out: dead letters, overflow and answers, sent at once and awaited before a commit."""

from dataclasses import dataclass
from typing import Any, Final

import structlog
from kafka import KafkaProducer
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from daemon.errors import StopError
from daemon.kafka_source import KafkaSettings, answering, reachable

log = structlog.get_logger()

KEPT_OF_OVERSIZED: Final = 1024  # bytes of a value, or of a header, that is too large to be kept
_KEPT_HEADERS: Final = 16  # the newest: those that say where a record came from and why
_TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A record on its way."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    may_be_cut: bool
    future: Any


class SideTopics:
    """Sends records to dead-letter, overflow and prediction topics and waits for the broker before a commit.

    A record that came in compressed may be more than the broker takes when it goes out, so it is compressed again.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        with reachable(settings):
            self._producer = KafkaProducer(
                **settings.client,
                acks="all",
                compression_type="gzip",
                # To an idempotent producer one record that is too large is the end. Copies are possible anyway: whoever
                # dies between sending and committing sends again.
                enable_idempotence=False,
                max_in_flight_requests_per_connection=1,
                max_request_size=2**31 - 1,  # the broker's own limit counts
                max_block_ms=int(settings.connect_timeout_s * 1000),
                bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000),
            )
        self._sent: list[_Sent] = []

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, may_be_cut: bool = False
    ) -> None:
        """Hand a record to the producer; `wait` tells when the broker has it.

        Args:
            topic: where to.
            key: the record's key.
            value: the record's value.
            headers: the record's headers.
            may_be_cut: a record the broker refuses as too large is sent again with its beginning alone.
        """
        if key is None and value is None:
            value = b""  # Kafka takes a record of neither, kafka-python does not
        with answering():
            future = self._producer.send(topic, value=value, key=key, headers=headers)
        self._sent.append(_Sent(topic, key, value, headers, may_be_cut, future))

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return once everything sent is acknowledged.

        Raises:
            UnavailableError: the broker did not acknowledge; the commit must not happen.
            StopError: it refuses a record that must arrive whole.
        """
        if not self._sent:
            return
        with answering():
            self._producer.flush(timeout=timeout_s)
            for sent in self._sent:
                try:
                    sent.future.get(timeout=timeout_s)
                except _TOO_LARGE:
                    self._send_beginning(sent).get(timeout=timeout_s)
        self._sent.clear()

    def _send_beginning(self, sent: _Sent) -> Any:
        size = len(sent.value or b"")
        if not sent.may_be_cut:
            raise StopError(
                f"the broker refuses a record of {size} bytes for {sent.topic} as too large: raise max.message.bytes "
                "of that topic (kafka-configs --alter) and start again"
            )
        headers = [(name, value[:KEPT_OF_OVERSIZED]) for name, value in sent.headers[-_KEPT_HEADERS:]]
        headers.append(("truncated-from", str(size).encode()))
        log.warning("record.truncated", topic=sent.topic, bytes=size)
        return self._producer.send(sent.topic, value=(sent.value or b"")[:KEPT_OF_OVERSIZED], headers=headers)

    def close(self) -> None:
        """Close without waiting for what was not acknowledged: it is not committed either."""
        self._producer.close(timeout=1)
