"""What `Answers` promises, held against a real broker: every record is answered once, in order."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from daemon.answers import Answers
from daemon.kafka_client import KafkaSettings
from daemon.records import AnswerMark, Partition, Record
from daemon.side_topics import PREDICTIONS, Headers
from servers import create_topic, delete_topics
from streams import read

pytestmark = pytest.mark.integration

BANK = "digits"


@pytest.fixture
def topic(kafka: str, topic: str) -> Iterator[str]:
    """A topic with a predictions topic of one partition."""
    create_topic(kafka, topic + PREDICTIONS)
    yield topic
    delete_topics(kafka, topic + PREDICTIONS)


@contextmanager
def trainer(kafka: str, topic: str, bank: str = BANK) -> Iterator[Answers]:
    """What one life of a trainer sends its answers with."""
    answers = Answers(KafkaSettings((kafka,), (topic,), "g", 2**20, 10.0, 60.0, 10.0), bank)
    try:
        yield answers
    finally:
        answers.close()


def record(topic: str, offset: int, *, partition: int = 0, timestamp_ms: int = 0, key: bytes | None = None) -> Record:
    """A record to be answered."""
    return Record(Partition(topic, partition), offset, key, b"", (), timestamp_ms or 1000 + offset)


def send(answers: Answers, asked: Record, mark: AnswerMark | None = None, bank: str = BANK) -> bool:
    """Answer a record as the trainer does."""
    headers: Headers = [
        ("source-topic", asked.partition.topic.encode()),
        ("source-partition", str(asked.partition.number).encode()),
        ("source-offset", str(asked.offset).encode()),
        ("source-timestamp", str(asked.timestamp_ms).encode()),
        ("bank", bank.encode()),
    ]
    return answers.send(asked, json.dumps({"task": asked.offset}).encode(), headers, mark)


def answered(kafka: str, topic: str, count: int) -> list[tuple[int, int]]:
    """(source partition, source offset) of all answers, which are to be so many."""
    found = [dict(r.headers) for r in read(kafka, topic + PREDICTIONS, count)]
    return [(int(headers["source-partition"]), int(headers["source-offset"])) for headers in found]


def test_answers_arrive_in_order_and_the_mark_lies_behind_the_last(kafka: str, topic: str) -> None:
    with trainer(kafka, topic) as answers:
        assert answers.wait() == {}
        for offset in (3, 5, 8):
            assert send(answers, record(topic, offset))
        mark = answers.wait()[Partition(topic, 0)]
        assert (mark.partition, mark.offset) == (0, 3)
        assert answers.wait() == {}, "it is told once"
    assert answered(kafka, topic, 3) == [(0, 3), (0, 5), (0, 8)]


@pytest.mark.parametrize("committed", [0, 1, 2, 3])
def test_who_died_before_the_commit_is_not_repeated_by_the_next(kafka: str, topic: str, committed: int) -> None:
    mark = None
    with trainer(kafka, topic) as first:
        for offset in range(3):
            send(first, record(topic, offset))
            reached = first.wait()
            mark = reached[Partition(topic, 0)] if offset < committed else mark
    with trainer(kafka, topic) as second:
        sent = [send(second, record(topic, offset), mark) for offset in range(committed, 5)]
        assert sent == [False] * (3 - committed) + [True, True]
        assert second.wait()[Partition(topic, 0)].offset == 5
    assert answered(kafka, topic, 5) == [(0, offset) for offset in range(5)]


def test_an_answer_found_moves_the_mark_no_further_than_itself(kafka: str, topic: str) -> None:
    with trainer(kafka, topic) as first:
        for offset in range(3):
            send(first, record(topic, offset))
        first.wait()
    with trainer(kafka, topic) as second:
        send(second, record(topic, 0))
        mark = second.wait()[Partition(topic, 0)]
        assert mark.offset == 1
    with trainer(kafka, topic) as third:
        assert not send(third, record(topic, 1), mark)
        assert not send(third, record(topic, 2), mark)
        assert third.wait()[Partition(topic, 0)].offset == 3


def test_other_banks_partitions_and_topics_of_the_same_name_are_told_apart(kafka: str, topic: str) -> None:
    with trainer(kafka, topic) as first:
        send(first, record(topic, 0))
        send(first, record(topic, 1, partition=1))
        first.wait()
    with trainer(kafka, topic, "letters") as other:
        assert send(other, record(topic, 0), bank="letters"), "another bank has not answered it"
        other.wait()
    with trainer(kafka, topic) as second:
        assert send(second, record(topic, 1)), "another partition's record"
        assert send(second, record(topic, 0, partition=1)), "another offset"
        assert not send(second, record(topic, 1, partition=1))
    with trainer(kafka, topic) as anew:
        assert send(anew, record(topic, 0, timestamp_ms=77)), "the topic was made anew and holds another record here"


def test_a_mark_in_a_predictions_topic_that_is_gone_means_nothing(kafka: str, topic: str) -> None:
    with trainer(kafka, topic) as first:
        send(first, record(topic, 0))
        first.wait()
    with trainer(kafka, topic) as second:
        assert not send(second, record(topic, 0), AnswerMark("another log", 0, 1000))


def test_without_a_predictions_topic_nothing_was_answered(kafka: str, topic: str) -> None:
    with trainer(kafka, f"{topic}-bare") as answers:
        try:
            assert send(answers, record(f"{topic}-bare", 0))
        finally:
            delete_topics(kafka, f"{topic}-bare{PREDICTIONS}")


def test_answers_of_one_partition_lie_in_one_partition_whatever_their_keys(kafka: str, topic: str) -> None:
    wide = f"{topic}-wide"
    create_topic(kafka, wide + PREDICTIONS, partitions=3)
    try:
        with trainer(kafka, wide) as first:
            for offset in range(6):
                send(first, record(wide, offset, partition=4, key=None if offset % 2 else b"k%d" % offset))
            assert {mark.partition for mark in first.wait().values()} == {4 % 3}
        with trainer(kafka, wide) as second:
            assert not send(second, record(wide, 5, partition=4))
    finally:
        delete_topics(kafka, wide + PREDICTIONS)
