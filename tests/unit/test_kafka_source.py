"""`KafkaSource` where a real broker cannot be made to misbehave; the rest is in tests/contract/test_kafka_source.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import CorruptRecordError, KafkaConnectionError, KafkaError

from daemon import kafka_source
from daemon.checkpoint import Partition
from daemon.errors import LostGroundError, UnavailableError, UnreadableError
from daemon.kafka_source import KafkaSettings, KafkaSource, Record

SETTINGS = KafkaSettings(("k:1",), ("t",), "g", 2**20, 10.0, 60.0, 1.0)
P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)


class FakeConsumer:
    """Serves partitions from lists of offsets, from wherever it was told to seek."""

    def __init__(self, **_: object) -> None:
        self.logs: dict[TopicPartition, list[int]] = {P0: list(range(100)), P1: list(range(100))}
        self.starts = {P0: 0, P1: 0}
        self.at: dict[TopicPartition, int] = {}
        self.polls_that_fail: list[KafkaError] = []
        self.starts_that_fail: list[KafkaError] = []

    def subscribe(self, *, listener: Any, **_: object) -> None:
        """Remember whom to tell."""
        self.listener = listener

    def assign(self, *partitions: TopicPartition) -> None:
        """What the group would do: give partitions, fetching from their beginning until told otherwise."""
        self.at |= dict.fromkeys(partitions, 0)
        self.listener.on_partitions_assigned(partitions)

    def assignment(self) -> set[TopicPartition]:
        """All partitions given."""
        return set(self.at)

    def poll(self, **_: object) -> dict[TopicPartition, list[Any]]:
        """Two records of each partition."""
        if self.polls_that_fail:
            raise self.polls_that_fail.pop(0)
        found = {p: [o for o in log if o >= self.at[p]][:2] for p, log in self.logs.items() if p in self.at}
        self.at |= {p: offsets[-1] + 1 for p, offsets in found.items() if offsets}
        return {p: [raw(p, offset) for offset in offsets] for p, offsets in found.items() if offsets}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go there."""
        self.at[partition] = offset

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the logs start."""
        if self.starts_that_fail:
            raise self.starts_that_fail.pop(0)
        return {p: self.starts[p] for p in partitions}

    def position(self, partition: TopicPartition, **_: object) -> int:
        """Where it stands."""
        return self.at[partition]

    def highwater(self, partition: TopicPartition) -> int | None:
        """The end of the log."""
        return self.logs[partition][-1] + 1


def raw(partition: TopicPartition, offset: int, **changed: object) -> SimpleNamespace:
    """A record as kafka-python gives it."""
    values = {"key": None, "value": b"v", "headers": [], "timestamp": 0} | changed
    return SimpleNamespace(topic=partition.topic, partition=partition.partition, offset=offset, **values)


@dataclass
class Notes:
    """Knows positions; may be unable to say them."""

    offsets: dict[int, int] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    revocations_that_fail: int = 0
    taken: list[int] = field(default_factory=list)

    def assigned(self, partition: Partition, _log: str, start: int) -> int:
        """Say the position, or fail."""
        if self.failures.get(partition.number, 0):
            self.failures[partition.number] -= 1
            raise UnavailableError("Redis is away")
        return self.offsets.get(partition.number, start)

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Note it, or fail."""
        if self.revocations_that_fail:
            self.revocations_that_fail -= 1
            raise UnavailableError("Redis is away")
        self.taken += [partition.number for partition in partitions]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> KafkaSource:
    monkeypatch.setattr(kafka_source, "KafkaConsumer", FakeConsumer)
    monkeypatch.setattr(kafka_source, "log_id", lambda *_: "log")
    return KafkaSource(SETTINGS)


def offsets(records: list[Record], partition: int = 0) -> list[int]:
    return [record.offset for record in records if record.partition.number == partition]


def test_records_fetched_before_the_position_is_known_are_dropped(source: KafkaSource) -> None:
    notes = Notes({0: 7})
    source._consumer.assign(P0)
    assert source.poll(notes) == []
    assert offsets(source.poll(notes)) == [7, 8]


def test_a_new_partition_that_cannot_be_placed_costs_the_others_no_record(source: KafkaSource) -> None:
    notes = Notes({0: 0, 1: 5})
    source._consumer.assign(P0)
    source.poll(notes)
    assert offsets(source.poll(notes)) == [0, 1]
    source._consumer.assign(P1)
    notes.failures = {1: 2}
    for _ in range(2):
        with pytest.raises(UnavailableError):
            source.poll(notes)
    records = [record for _ in range(3) for record in source.poll(notes)]
    assert offsets(records, 0) == list(range(2, 8))
    assert offsets(records, 1) == list(range(5, 9)), "placed at the third try"


def test_a_broker_that_fails_while_placing_is_asked_again(source: KafkaSource) -> None:
    notes = Notes({0: 3})
    source._consumer.assign(P0)
    source._consumer.starts_that_fail = [KafkaConnectionError()]
    with pytest.raises(UnavailableError):
        source.poll(notes)
    source.poll(notes)
    assert offsets(source.poll(notes)) == [3, 4]


def test_a_revocation_that_cannot_be_committed_is_told_again(source: KafkaSource) -> None:
    notes = Notes()
    source._consumer.assign(P0, P1)
    source.poll(notes)
    source.poll(notes)
    source._consumer.listener.on_partitions_revoked([P1])
    del source._consumer.at[P1]
    notes.revocations_that_fail = 1
    with pytest.raises(UnavailableError):
        source.poll(notes)
    assert notes.taken == []
    records = source.poll(notes)
    assert notes.taken == [1]
    assert offsets(records, 0) == [2, 3], "the records of the failed poll came again"
    assert offsets(records, 1) == []


def test_a_gap_of_compaction_is_none(source: KafkaSource) -> None:
    source._consumer.logs[P0] = [0, 1, 5, 9]
    source._consumer.assign(P0)
    notes = Notes()
    source.poll(notes)
    assert offsets([record for _ in range(2) for record in source.poll(notes)]) == [0, 1, 5, 9]


def test_a_log_whose_start_has_overtaken_the_position_is_lost_ground(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    notes = Notes()
    source.poll(notes)
    source.poll(notes)
    source._consumer.logs[P0], source._consumer.starts[P0] = list(range(50, 60)), 50
    with pytest.raises(LostGroundError, match=r"t:0 was read up to offset 2, but its log now starts at 50"):
        source.poll(notes)


def test_a_log_that_ends_before_the_position_is_lost_ground(source: KafkaSource) -> None:
    # The client jumps back to the start by itself then; records from there were applied long ago.
    source._consumer.assign(P0)
    notes = Notes({0: 40})
    source.poll(notes)
    source._consumer.at[P0] = 0
    with pytest.raises(LostGroundError, match=r"t:0 was read up to offset 40, but its log ends before"):
        source.poll(notes)


def test_a_poll_that_fails_is_an_answer_for_later(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    notes = Notes()
    source.poll(notes)
    source._consumer.polls_that_fail = [KafkaConnectionError("gone")]
    with pytest.raises(UnavailableError, match="Kafka does not answer"):
        source.poll(notes)
    assert offsets(source.poll(notes)) == [0, 1]


def test_an_unreadable_record_far_before_the_position_is_no_matter(source: KafkaSource) -> None:
    # Until it is told the position, the client reads from the start of the log.
    source._consumer.assign(P0)
    source._consumer.polls_that_fail = [CorruptRecordError()]
    notes = Notes({0: 7})
    assert source.poll(notes) == []
    assert offsets(source.poll(notes)) == [7, 8]


def test_an_unreadable_record_behind_the_position_is_told_with_its_place(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    notes = Notes({0: 7})
    source.poll(notes)
    source._consumer.polls_that_fail = [CorruptRecordError()]
    with pytest.raises(UnreadableError, match=r"lies behind one of: t:0 from 7\. To skip it"):
        source.poll(notes)


def test_caught_up_means_every_assigned_partition(source: KafkaSource) -> None:
    assert not source.caught_up
    source._consumer.logs = {P0: [0, 1], P1: [0, 1, 2, 3]}
    source._consumer.assign(P0, P1)
    notes = Notes()
    source.poll(notes)
    assert not source.caught_up
    source.poll(notes)
    assert not source.caught_up, "one partition goes on"
    source.poll(notes)
    assert source.caught_up


def test_headers_without_a_value_are_read_as_empty(source: KafkaSource) -> None:
    # Kafka allows them; no producer of kafka-python makes them.
    source._next[P0] = 0
    [record] = source._accepted(P0, [raw(P0, 0, headers=[("a", None), ("a", b"1")], key=b"k")])
    assert record.headers == (("a", b""), ("a", b"1"))
    assert (record.partition, record.key, record.value) == (Partition("t", 0), b"k", b"v")
