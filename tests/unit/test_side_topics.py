"""The order on the way out while a broker fails; the rest is in tests/contract/test_kafka_source.py."""

from typing import Any

import pytest
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.future import Future

from daemon import side_topics
from daemon.errors import UnavailableError
from daemon.kafka_client import KafkaSettings
from daemon.side_topics import SideTopics

SETTINGS = KafkaSettings(("k:1",), ("t",), "g", 2**20, 10.0, 60.0, 1.0)


class Sent(Future):
    """What a producer gives; it can be waited for."""

    def get(self, **_: float | None) -> Any:
        """The outcome."""
        if not self.is_done:
            raise KafkaTimeoutError("still on its way")
        if self.exception is not None:
            raise self.exception
        return self.value


class FakeProducer:
    """Notes what is sent; everything arrives but what is to fail."""

    def __init__(self, **_: object) -> None:
        self.sent: list[bytes] = []
        self.refusals: list[KafkaError] = []
        self.failures: dict[bytes, list[KafkaError | None]] = {}

    def send(self, _topic: str, *, value: bytes, **_: object) -> Sent:
        """Take it, unless refused."""
        if self.refusals:
            raise self.refusals.pop(0)
        self.sent.append(value)
        future = Sent()
        outcomes = self.failures.get(value)
        outcome = outcomes.pop(0) if outcomes else "arrived"
        if isinstance(outcome, KafkaError):
            future.failure(outcome)
        elif outcome is not None:
            future.success(outcome)
        return future


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> SideTopics:
    monkeypatch.setattr(side_topics, "KafkaProducer", FakeProducer)
    return SideTopics(SETTINGS)


def send(side: SideTopics, *values: bytes) -> None:
    for value in values:
        side.send("t.dlq", None, value, [])


def test_what_is_acknowledged_is_sent_once(side: SideTopics) -> None:
    send(side, b"1", b"2")
    side.wait()
    side.wait()
    assert side._producer.sent == [b"1", b"2"]


def test_a_record_that_failed_is_sent_again_with_everything_behind_it(side: SideTopics) -> None:
    side._producer.failures = {b"2": [KafkaTimeoutError("expired")]}
    send(side, b"1", b"2", b"3")
    with pytest.raises(UnavailableError):
        side.wait()
    side.wait()
    assert side._producer.sent == [b"1", b"2", b"3", b"2", b"3"], "the order of the last copies is kept"


def test_a_record_still_on_its_way_is_not_sent_again(side: SideTopics) -> None:
    side._producer.failures = {b"1": [None]}
    send(side, b"1")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            side.wait()
    side._line[0].future.success("at last")
    side.wait()
    assert side._producer.sent == [b"1"]


def test_a_broker_that_is_away_while_sending_is_told_by_wait_alone(side: SideTopics) -> None:
    side._producer.refusals = [KafkaTimeoutError("no metadata"), KafkaTimeoutError("no metadata")]
    send(side, b"1", b"2")
    with pytest.raises(UnavailableError):
        side.wait()
    send(side, b"3")
    side.wait()
    assert side._producer.sent == [b"1", b"2", b"3"]
