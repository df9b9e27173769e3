"""What `KafkaSource` and `SideTopics` promise, held against a real broker."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, MessageSizeTooLargeError

from daemon.checkpoint import Partition, Position
from daemon.errors import StopError, UnavailableError
from daemon.kafka_source import KafkaSettings, KafkaSource, Record, create_topics, log_id
from daemon.side_topics import SideTopics
from servers import create_topic, delete_topics
from stage import SESSION_S
from streams import Outgoing, publish, read

pytestmark = pytest.mark.integration


@dataclass
class Notes:
    """Someone who knows how far the partitions were read, and writes down what it is asked."""

    offsets: dict[int, int] = field(default_factory=dict)
    failures: int = 0
    asked: list[tuple[int, str, int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def assigned(self, partition: Partition, log_identity: str, start: int) -> int:
        """Where to go on; fails as often as it should."""
        if self.failures:
            self.failures -= 1
            raise UnavailableError("Redis is away for a moment")
        self.asked.append((partition.number, log_identity, start))
        return self.offsets.get(partition.number, start)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Write it down."""
        self.taken += [partition.number for partition in partitions]


def settings(kafka: str, topic: str, **changed: object) -> KafkaSettings:
    values: dict[str, object] = {
        "servers": (kafka,),
        "topics": (topic,),
        "group": topic,
        "max_record_bytes": 2**20,
        "session_timeout_s": SESSION_S,
        "max_poll_interval_s": 60.0,
        "connect_timeout_s": 10.0,
    }
    return KafkaSettings(**(values | changed))


@contextmanager
def source_of(kafka: str, topic: str) -> Iterator[KafkaSource]:
    source = KafkaSource(settings(kafka, topic))
    try:
        yield source
    finally:
        source.close()


def read_until(source: KafkaSource, notes: Notes, enough: Callable[[list[Record]], bool]) -> list[Record]:
    """Poll until the records are enough; what fails for the moment is tried again, as the loop does."""
    records: list[Record] = []
    deadline = time.monotonic() + 30
    while not enough(records):
        assert time.monotonic() < deadline, f"only {len(records)} records: {notes}"
        try:
            records += source.poll(notes)
        except UnavailableError:
            continue
    return records


def values(count: int, partition: int = 0) -> list[Outgoing]:
    return [Outgoing(b"%d:%d" % (partition, i), [], partition=partition) for i in range(count)]


@pytest.fixture
def two_partitions(kafka: str, topic: str) -> Iterator[str]:
    """A topic with two partitions."""
    name = f"{topic}-two"
    create_topic(kafka, name, partitions=2)
    yield name
    delete_topics(kafka, name)


def test_records_are_read_from_the_given_position_on(kafka: str, topic: str) -> None:
    publish(kafka, topic, values(10))
    notes = Notes({0: 4})
    with source_of(kafka, topic) as source:
        records = read_until(source, notes, lambda found: len(found) == 6)
        assert [record.offset for record in records] == list(range(4, 10))
        assert [record.value for record in records] == [b"0:%d" % i for i in range(4, 10)]
        assert {record.partition for record in records} == {Partition(topic, 0)}
        assert notes.asked == [(0, log_id(settings(kafka, topic), topic), 0)]
        assert source.poll(notes, timeout_s=0.1) == []
        assert source.caught_up


def test_the_lag_is_what_lies_behind_the_position(kafka: str, topic: str) -> None:
    publish(kafka, topic, values(200))
    notes, here = Notes({0: 50}), Partition(topic, 0)
    with source_of(kafka, topic) as source:
        assert source.lags() == {}, "no partition yet"
        first = read_until(source, notes, bool)
        assert source.lags() == {here: 150 - len(first)}
        read_until(source, notes, lambda found: len(found) == 150 - len(first))
        assert source.lags() == {here: 0}


def test_the_groups_own_offsets_are_never_believed(kafka: str, topic: str) -> None:
    publish(kafka, topic, values(10))
    with source_of(kafka, topic) as source:
        read_until(source, Notes(), lambda found: len(found) == 10)
        source.tell_group({Partition(topic, 0): Position(10)})
        time.sleep(0.5)
    with source_of(kafka, topic) as source:
        records = read_until(source, Notes({0: 2}), lambda found: len(found) >= 8)
    assert [record.offset for record in records] == list(range(2, 10))


@pytest.mark.parametrize("failures", [1, 3])
def test_an_assignment_that_fails_is_tried_again_and_loses_nothing(
    kafka: str, two_partitions: str, failures: int
) -> None:
    for partition in (0, 1):
        publish(kafka, two_partitions, values(20, partition))
    notes = Notes(failures=failures)
    with source_of(kafka, two_partitions) as source:
        records = read_until(source, notes, lambda found: len(found) >= 40)
        assert source.poll(notes, timeout_s=0.1) == []
    for partition in (0, 1):
        assert [r.offset for r in records if r.partition.number == partition] == list(range(20))
    assert notes.failures == 0


def test_a_source_that_knows_no_partition_is_not_caught_up(kafka: str, topic: str) -> None:
    with source_of(kafka, topic) as source:
        assert not source.caught_up
        read_until(source, notes := Notes(), lambda _: bool(notes.asked))
        read_until(source, notes, lambda _: source.caught_up)


@pytest.mark.skipif(
    "SUPSUP_TEST_KAFKA" not in os.environ, reason="the embedded broker takes half a minute to rebalance"
)
def test_partitions_wander_to_a_second_member_and_no_record_is_lost(kafka: str, two_partitions: str) -> None:
    first_notes, second_notes = Notes(), Notes()
    applied: dict[int, int] = {0: 0, 1: 0}

    def apply(records: list[Record]) -> None:
        for record in records:
            assert record.offset == applied[record.partition.number], "in order, without gap or repetition"
            applied[record.partition.number] += 1
        first_notes.offsets |= applied
        second_notes.offsets |= applied

    with ExitStack() as stack:
        first = stack.enter_context(source_of(kafka, two_partitions))
        for partition in (0, 1):
            publish(kafka, two_partitions, values(30, partition))
        read_until(first, first_notes, lambda found: len(found) >= 60 and not apply(found))
        second = stack.enter_context(source_of(kafka, two_partitions))
        deadline = time.monotonic() + 40
        while not second_notes.asked or len(first_notes.asked) < 3:
            assert time.monotonic() < deadline, (first_notes, second_notes)
            apply(first.poll(first_notes, timeout_s=0.05))
            apply(second.poll(second_notes, timeout_s=0.05))
        for partition in (0, 1):
            publish(kafka, two_partitions, values(30, partition))
        while applied != {0: 60, 1: 60}:
            assert time.monotonic() < deadline, (applied, first_notes, second_notes)
            apply(first.poll(first_notes, timeout_s=0.05))
            apply(second.poll(second_notes, timeout_s=0.05))
    assert sorted(first_notes.taken) == [0, 1]


def test_a_log_that_ends_with_the_mark_of_a_transaction_is_read_to_its_end(kafka: str, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topic, max_block_ms=5000)
    try:
        producer.init_transactions()
        for i in range(3):
            producer.begin_transaction()
            producer.send(topic, b"%d" % i)
            producer.commit_transaction()
    except KafkaError as error:
        pytest.skip(f"this broker has no transactions: {error!r}")
    finally:
        producer.close(timeout=1)
    with source_of(kafka, topic) as source:
        records = read_until(source, notes := Notes(), lambda found: len(found) == 3)
        assert [record.value for record in records] == [b"0", b"1", b"2"]
        read_until(source, notes, lambda _: source.caught_up)


# -- side topics


def test_what_was_sent_is_there_once_waited_for(kafka: str, topic: str, side: SideTopics) -> None:
    side.wait()
    for i in range(3):
        side.send(topic, b"key", b"%d" % i, [("reason", b"test")])
    side.wait()
    found = read(kafka, topic, 3)
    assert [(r.key, r.value, r.headers) for r in found] == [
        (b"key", b"%d" % i, [("reason", b"test")]) for i in range(3)
    ]


def test_a_record_with_neither_key_nor_value_can_be_put_aside(kafka: str, topic: str, side: SideTopics) -> None:
    # Kafka allows it, kafka-python refuses to send it: one such record must not stop the trainer for good.
    side.send(topic, None, None, [("reason", b"empty")])
    side.wait()
    [found] = read(kafka, topic, 1)
    assert (found.key, found.value) == (None, b"")


@pytest.fixture
def narrow_topic(kafka: str, topic: str) -> Iterator[str]:
    """A topic that takes records of 10 kB at most."""
    name = f"{topic}-narrow"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": "10000"})])
    admin.close()
    noise = Outgoing(np.random.default_rng(0).bytes(20_000))
    try:
        publish(kafka, name, [noise])
    except MessageSizeTooLargeError:
        yield name
    else:
        pytest.skip("this broker does not mind how large a record is")
    finally:
        delete_topics(kafka, name)


@pytest.fixture
def side(kafka: str, topic: str) -> Iterator[SideTopics]:
    """Side topics of the test's broker."""
    found = SideTopics(settings(kafka, topic))
    yield found
    found.close()


def test_a_dead_letter_that_the_broker_finds_too_large_arrives_with_its_beginning(
    kafka: str, narrow_topic: str, side: SideTopics
) -> None:
    value = np.random.default_rng(1).bytes(30_000)
    headers = [("own", b"h" * 5000), ("reason", b"malformed")]
    side.send(narrow_topic, None, b"before", [])
    side.send(narrow_topic, b"k" * 2000, value, headers, may_be_cut=True)
    side.wait()
    _, found = read(kafka, narrow_topic, 2)
    assert found.value == value[:1024]
    assert found.headers == [("own", b"h" * 1024), ("reason", b"malformed"), ("truncated-from", b"30000")]


def test_what_must_arrive_whole_stops_the_trainer_and_says_why(narrow_topic: str, side: SideTopics) -> None:
    side.send(narrow_topic, None, np.random.default_rng(1).bytes(30_000), [])
    with pytest.raises(StopError, match=f"a record of 30000 bytes for {narrow_topic} as too large: raise max.message"):
        side.wait()


def test_what_fits_when_compressed_is_sent_compressed(kafka: str, narrow_topic: str, side: SideTopics) -> None:
    side.send(narrow_topic, None, b"0" * 100_000, [])
    side.wait()
    [found] = read(kafka, narrow_topic, 1)
    assert found.value == b"0" * 100_000


# -- topics


def test_topics_that_exist_are_left_alone(kafka: str, topic: str, two_partitions: str) -> None:
    before = log_id(settings(kafka, topic), two_partitions)
    create_topics(settings(kafka, topic), [two_partitions, topic, topic])
    assert log_id(settings(kafka, topic), two_partitions) == before != ""


def test_a_topic_made_anew_is_another_log(kafka: str, topic: str) -> None:
    before = log_id(settings(kafka, topic), topic)
    delete_topics(kafka, topic)
    deadline = time.monotonic() + 10
    while True:
        try:
            create_topic(kafka, topic)
            break
        except KafkaError:  # still being deleted
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert log_id(settings(kafka, topic), topic) not in {before, ""}
