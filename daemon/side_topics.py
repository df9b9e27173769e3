"""The way out for dead letters and overflow, sent at once and awaited before a commit; `answers` go by themselves."""

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from daemon.errors import StopError, UnavailableError
from daemon.kafka_client import KafkaSettings, answering, reachable

log = structlog.get_logger()

DEAD_LETTER, OVERFLOW, PREDICTIONS = ".dlq", ".overflow", ".predictions"
KEPT_OF_OVERSIZED: Final = 1024  # bytes of a value, or of a header, that is too large to be kept
_KEPT_HEADERS: Final = 16  # the newest: those that say where a record came from and why
_TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)

Headers = list[tuple[str, bytes]]


@dataclass(slots=True)
class _Outgoing:
    """A record on its way; without a future it has yet to be handed to the client."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    may_be_cut: bool
    future: Any = None


class SideTopics:
    """Sends records to dead-letter and overflow topics and waits for the broker before a commit.

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
        self._line: deque[_Outgoing] = deque()

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, may_be_cut: bool = False
    ) -> None:
        """Put a record in line; `wait` tells when the broker has it. A broker that is away is `wait`'s matter, too.

        Args:
            topic: where to.
            key: the record's key.
            value: the record's value.
            headers: the record's headers.
            may_be_cut: a record the broker refuses as too large is sent again with its beginning alone.
        """
        if key is None and value is None:
            value = b""  # Kafka takes a record of neither, kafka-python does not
        behind_unsent = bool(self._line) and self._line[-1].future is None
        self._line.append(_Outgoing(topic, key, value, headers, may_be_cut))
        if not behind_unsent:  # or it would arrive before those in front of it
            with contextlib.suppress(UnavailableError):
                self._hand_over(self._line[-1])

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return once everything in line is acknowledged, in its order.

        Raises:
            UnavailableError: the broker did not acknowledge; the commit must not happen. Called again, it sends what
                failed and everything behind it again.
            StopError: it refuses a record that must arrive whole.
        """
        for outgoing in self._line:
            if outgoing.future is None:
                self._hand_over(outgoing)
        while self._line:
            first = self._line[0]
            with answering():
                try:
                    first.future.get(timeout=timeout_s)
                except _TOO_LARGE:
                    self._send_beginning(first).get(timeout=timeout_s)
                except KafkaError:
                    if first.future.failed():  # else it is still on its way
                        for outgoing in self._line:
                            outgoing.future = None
                    raise
            self._line.popleft()

    def _hand_over(self, outgoing: _Outgoing) -> None:
        with answering():
            outgoing.future = self._producer.send(
                outgoing.topic, value=outgoing.value, key=outgoing.key, headers=outgoing.headers
            )

    def _send_beginning(self, outgoing: _Outgoing) -> Any:
        size = len(outgoing.value or b"")
        if not outgoing.may_be_cut:
            raise StopError(
                f"the broker refuses a record of {size} bytes for {outgoing.topic} as too large: raise "
                "max.message.bytes of that topic (kafka-configs --alter) and start again"
            )
        headers = [(name, value[:KEPT_OF_OVERSIZED]) for name, value in outgoing.headers[-_KEPT_HEADERS:]]
        headers.append(("truncated-from", str(size).encode()))
        log.warning("record.truncated", topic=outgoing.topic, bytes=size)
        return self._producer.send(outgoing.topic, value=(outgoing.value or b"")[:KEPT_OF_OVERSIZED], headers=headers)

    def close(self) -> None:
        """Close without waiting for what was not acknowledged: it is not committed either."""
        self._producer.close(timeout=1)
