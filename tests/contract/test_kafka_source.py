"""What `KafkaSource` and `SideTopics` promise, held against a real broker."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, MessageSizeTooLargeError

from daemon import kafka_source
from daemon.errors import StopError, UnavailableError
from daemon.kafka_client import KafkaSettings, create_topics, log_id
from daemon.kafka_source import KafkaSource
from daemon.records import Log, Partition, Position, Record
from daemon.side_topics import SideTopics
from servers import create_topic, delete_topics
from stage import SESSION_S
from streams import Outgoing, publish, read

pytestmark = pytest.mark.integration


@dataclass
class Reader:
    """A source and the loop around it, as far as the source needs one: it settles, polls and takes what comes."""

    source: KafkaSource
    offsets: dict[int, int] = field(default_factory=dict)
    placed: list[dict[int, Log]] = field(default_factory=list)

    def settle(self) -> None:
        """Go on at `offsets`, or where the log starts."""
        self.source.hold()
        try:
            logs = self.source.logs()
        except UnavailableError:
            self.source.settle_again()
            raise
        self.source.place({p: self.offsets.get(p.number, log.start) for p, log in logs.items()})
        if logs:
            self.placed.append({partition.number: log for partition, log in logs.items()})

    def round(self, timeout_s: float = 0.5) -> list[Record]:
        """One round; what fails for the moment is tried again in the next, as the loop does."""
        try:
            if self.source.unsettled:
                self.settle()
            self.source.poll(timeout_s)
            found = list(iter(self.source.next, None))
        except UnavailableError:
            return []
        self.offsets |= {record.partition.number: record.offset + 1 for record in found}
        return found

    def read_until(self, enough: Callable[[list[Record]], bool]) -> list[Record]:
        """Go round until the records are enough."""
        records: list[Record] = []
        deadline = time.monotonic() + 30
        while not enough(records):
            assert time.monotonic() < deadline, f"only {len(records)} records: {self}"
            records += self.round()
        return records


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
def reader_of(kafka: str, topic: str, **offsets: int) -> Iterator[Reader]:
    """A reader that goes on at `p0=...`."""
    source = KafkaSource(settings(kafka, topic))
    try:
        yield Reader(source, {int(name[1:]): offset for name, offset in offsets.items()})
    finally:
        source.close()


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
    with reader_of(kafka, topic, p0=4) as reader:
        records = reader.read_until(lambda found: len(found) == 6)
        assert [record.offset for record in records] == list(range(4, 10))
        assert [record.value for record in records] == [b"0:%d" % i for i in range(4, 10)]
        assert {record.partition for record in records} == {Partition(topic, 0)}
        assert reader.placed == [{0: Log(log_id(settings(kafka, topic), topic), 0)}]
        assert reader.round(timeout_s=0.1) == []
        assert reader.source.caught_up


def test_the_lag_is_what_lies_behind_the_position(kafka: str, topic: str) -> None:
    publish(kafka, topic, values(200))
    here = Partition(topic, 0)
    with reader_of(kafka, topic, p0=50) as reader:
        assert reader.source.lags() == {}, "no partition yet"
        first = reader.read_until(bool)
        assert reader.source.lags() == {here: 150 - len(first)}
        reader.read_until(lambda found: len(found) == 150 - len(first))
        assert reader.source.lags() == {here: 0}


def test_the_groups_own_offsets_are_never_believed(kafka: str, topic: str) -> None:
    publish(kafka, topic, values(10))
    with reader_of(kafka, topic) as reader:
        reader.read_until(lambda found: len(found) == 10)
        reader.source.tell_group({Partition(topic, 0): Position(10)})
        time.sleep(0.5)
    with reader_of(kafka, topic, p0=2) as reader:
        records = reader.read_until(lambda found: len(found) >= 8)
    assert [record.offset for record in records] == list(range(2, 10))


def read_in_turn(kafka: str, topic: str, order: list[int]) -> list[int]:
    """Publish one record after the other, each to the next partition of `order`; the numbers as they are read."""
    publish(kafka, topic, [Outgoing(b"%d" % i, [], partition=p, timestamp_ms=1000 + i) for i, p in enumerate(order)])
    with reader_of(kafka, topic) as reader:
        records = reader.read_until(lambda found: len(found) == len(order))
    return [int(record.value or b"") for record in records]


def test_several_partitions_are_read_in_the_order_of_their_timestamps(kafka: str, two_partitions: str) -> None:
    order = [0, 0, 1, 0, 1, 1, 1, 0] * 25
    assert read_in_turn(kafka, two_partitions, order) == list(range(len(order)))


def test_a_partition_far_ahead_of_the_others_is_paused_and_resumed_and_nothing_is_left_out(
    kafka: str, two_partitions: str
) -> None:
    # The first partition waits for the second, then the second for the first, each for longer than a fetch ahead.
    order = [0] * 100 + [1] * 400 + [0] * 400
    assert read_in_turn(kafka, two_partitions, order) == list(range(len(order)))


def test_a_source_that_knows_no_partition_is_not_caught_up(kafka: str, topic: str) -> None:
    with reader_of(kafka, topic) as reader:
        assert not reader.source.caught_up
        reader.read_until(lambda _: bool(reader.placed))
        reader.read_until(lambda _: reader.source.caught_up)


@pytest.mark.skipif(
    "SUPSUP_TEST_KAFKA" not in os.environ, reason="the embedded broker takes half a minute to rebalance"
)
def test_while_a_second_member_has_a_partition_nothing_is_read_and_afterwards_nothing_is_lost(
    kafka: str, two_partitions: str
) -> None:
    for partition in (0, 1):
        publish(kafka, two_partitions, values(30, partition))
    with reader_of(kafka, two_partitions) as reader:
        records = reader.read_until(lambda found: len(found) == 60)
        with reader_of(kafka, two_partitions) as intruder:
            deadline = time.monotonic() + 40
            while not (reader.source.elsewhere and intruder.source.elsewhere):
                assert time.monotonic() < deadline, (reader, intruder)
                records += reader.round(0.05)
                intruder.round(0.05)
            for partition in (0, 1):
                publish(kafka, two_partitions, values(30, partition))
            for _ in range(20):
                assert reader.round(0.05) == []
        records += reader.read_until(lambda found: len(found) == 60)
    for partition in (0, 1):
        assert [r.offset for r in records if r.partition.number == partition] == list(range(60))


@pytest.mark.skipif(
    "SUPSUP_TEST_KAFKA" not in os.environ, reason="the embedded broker takes half a minute to rebalance"
)
def test_a_group_in_which_somebody_else_keeps_partitions_is_done_without(
    kafka: str, two_partitions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for partition in (0, 1):
        publish(kafka, two_partitions, values(30, partition))
    with reader_of(kafka, two_partitions) as reader, reader_of(kafka, two_partitions) as intruder:
        deadline = time.monotonic() + 40
        records = []
        while not (reader.source.elsewhere and intruder.source.elsewhere):
            assert time.monotonic() < deadline, (reader, intruder)
            records += reader.round(0.05)
            intruder.round(0.05)
        monkeypatch.setattr(kafka_source, "_JOIN_S", 1.0)
        monkeypatch.setattr(kafka_source, "_JOIN_SESSIONS", 0)
        while len(records) < 60:
            assert time.monotonic() < deadline, reader
            records += reader.round(0.05)
        assert intruder.source.elsewhere  # it stayed
        publish(kafka, two_partitions, values(5))
        records += reader.read_until(lambda found: len(found) == 5)
    assert [r.offset for r in records if r.partition.number == 0] == list(range(35))
    assert [r.offset for r in records if r.partition.number == 1] == list(range(30))


@pytest.mark.skipif("SUPSUP_TEST_KAFKA" in os.environ, reason="this broker does not lose members")
def test_a_group_whose_coordinator_has_lost_us_is_done_without(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded broker never finishes a join during which another member leaves.
    monkeypatch.setattr(kafka_source, "_JOIN_S", 3.0)
    monkeypatch.setattr(kafka_source, "_JOIN_SESSIONS", 3)
    publish(kafka, topic, values(10))
    with reader_of(kafka, topic) as first:
        first.read_until(lambda found: len(found) == 10)
        with reader_of(kafka, topic) as second:
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                first.round(0.02)
                second.round(0.02)
            first.source.close()
            records = second.read_until(lambda found: len(found) == 10)
            second.source.tell_group({Partition(topic, 0): Position(10)})
            publish(kafka, topic, values(5))
            records += second.read_until(lambda found: len(found) == 5)
            second.read_until(lambda _: second.source.caught_up)
    assert [record.offset for record in records] == list(range(15))


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
    with reader_of(kafka, topic) as reader:
        records = reader.read_until(lambda found: len(found) == 3)
        assert [record.value for record in records] == [b"0", b"1", b"2"]
        reader.read_until(lambda _: reader.source.caught_up)


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
