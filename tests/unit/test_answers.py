"""What `Answers` does when a request fails for good; the rest is in tests/contract/test_answers.py."""

from collections.abc import Iterator
from typing import Any, Self

import pytest
from kafka.errors import KafkaError, MessageSizeTooLargeError, TopicAuthorizationFailedError, UnknownError

from daemon import answers as module
from daemon.answers import Answers
from daemon.errors import DeniedError, StopError, UnavailableError
from daemon.records import AnswerMark, Partition, Record
from unit.test_side_topics import SETTINGS, Sent

HERE = Partition("t", 0)


class Topic:
    """A predictions topic of one partition, its producers, and what is to go wrong."""

    def __init__(self) -> None:
        self.log: list[tuple[int, list[tuple[str, bytes]]]] = []
        self.failures: dict[int, list[tuple[KafkaError, bool]]] = {}  # source offset -> error, whether it arrives
        self.producers = 0

    def producer(self, **_: object) -> "FakeProducer":
        """A new one."""
        self.producers += 1
        return FakeProducer(self)


class FakeProducer:
    """Appends to the topic, unless it is to fail."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    def partitions_for(self, _topic: str) -> set[int]:
        """One."""
        return {0}

    def send(self, _topic: str, *, headers: list[tuple[str, bytes]], **_: object) -> Sent:
        """Take it."""
        future, offset = Sent(), int(dict(headers)["source-offset"])
        planned = self._topic.failures.get(offset)
        error, arrives = planned.pop(0) if planned else (None, True)
        if arrives:
            self._topic.log.append((len(self._topic.log), headers))
        if error is not None:
            future.failure(error)
        else:
            future.success(Placed(len(self._topic.log) - 1))
        return future

    def close(self, **_: object) -> None:
        """Nothing to close."""


class Placed:
    """What the broker tells of a record."""

    partition = 0

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.headers: list[tuple[str, bytes]] = []


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    topic = Topic()

    class Reader:
        """Reads it."""

        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...
        def partitions(self) -> list[int]:
            return [0]

        def tail(self, _partition: int, start: int) -> Iterator[Any]:
            for offset, headers in topic.log[start:]:
                raw = Placed(offset)
                raw.headers = headers
                yield raw

    monkeypatch.setattr(module, "KafkaProducer", topic.producer)
    monkeypatch.setattr(module, "TopicReader", Reader)
    monkeypatch.setattr(module, "log_id", lambda *_: "log")
    return topic


def send(answers: Answers, *offsets: int) -> None:
    for offset in offsets:
        origin = {"source-topic": b"t", "source-partition": b"0", "source-offset": b"%d" % offset}
        headers = [*origin.items(), ("source-timestamp", b"7"), ("bank", b"b")]
        answers.send(Record(HERE, offset, None, b"", (), 7), b"{}", headers, None)


def sent(topic: Topic) -> list[int]:
    return [int(dict(headers)["source-offset"]) for _, headers in topic.log]


@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "arrived all the same"])
def test_after_a_failure_only_what_is_not_there_is_sent_again(topic: Topic, *, arrives: bool) -> None:
    answers = Answers(SETTINGS, "b")
    topic.failures = {2: [(UnknownError("who knows"), arrives)], 3: [(UnknownError("who knows"), arrives)]}
    send(answers, 1, 2, 3)
    with pytest.raises(UnavailableError):
        answers.wait()
    assert answers.wait() == {HERE: AnswerMark("log", 0, 3)}
    assert sent(topic) == [1, 2, 3]
    assert topic.producers == (1 if arrives else 2)


def test_what_comes_after_a_failure_goes_behind_it(topic: Topic) -> None:
    answers = Answers(SETTINGS, "b")
    topic.failures = {1: [(UnknownError("who knows"), False)], 2: [(UnknownError("who knows"), False)]}
    send(answers, 1, 2)
    with pytest.raises(UnavailableError):
        answers.wait()
    send(answers, 3)
    assert answers.wait()[HERE].offset == 3
    assert sent(topic) == [1, 2, 3]


def test_an_answer_that_is_too_large_stops_the_trainer_and_says_why(topic: Topic) -> None:
    answers = Answers(SETTINGS, "b")
    topic.failures = {1: [(MessageSizeTooLargeError("no"), False)]}
    send(answers, 1)
    with pytest.raises(StopError, match=r"an answer of 2 bytes as too large: raise max.message.bytes of t.predictions"):
        answers.wait()


def test_a_right_that_is_missing_is_named(topic: Topic) -> None:
    answers = Answers(SETTINGS, "b")
    topic.failures = {1: [(TopicAuthorizationFailedError("t.predictions"), False)]}
    send(answers, 1)
    with pytest.raises(DeniedError, match=r"Kafka forbids us topic"):
        answers.wait()


def test_nobody_who_asks_nothing_pays_for_a_producer(topic: Topic) -> None:
    answers = Answers(SETTINGS, "b")
    answers.wait()
    answers.close()
    assert topic.producers == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "[]",
        "{}",
        '{"log": 1, "partition": 0, "offset": 0}',
        '{"log": "l", "partition": true, "offset": 0}',
        '{"log": "l", "partition": 0, "offset": -1}',
        '{"log": "l", "partition": 0.5, "offset": 0}',
        "[" * 10_000,
    ],
)
def test_a_damaged_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        AnswerMark.from_text(text)


def test_a_mark_survives_being_stored() -> None:
    mark = AnswerMark("log", 3, 2**40)
    assert AnswerMark.from_text(mark.to_text()) == mark
