"""`KafkaSource` where a real broker cannot be made to misbehave; the rest is in tests/contract/test_kafka_source.py."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import CorruptRecordError, KafkaConnectionError, KafkaError, KafkaTimeoutError

from daemon import kafka_source
from daemon.errors import LostGroundError, UnavailableError, UnreadableError
from daemon.kafka_client import KafkaSettings
from daemon.kafka_source import KafkaSource
from daemon.records import Log, Partition, Record

SETTINGS = KafkaSettings(("k:1",), ("t",), "g", 2**20, 10.0, 60.0, 1.0, merge_wait_s=0.0)
P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)


class FakeConsumer:
    """Serves partitions from lists of offsets, from wherever it was told to seek."""

    def __init__(self, **_: object) -> None:
        self.logs: dict[TopicPartition, list[int]] = {P0: list(range(100)), P1: list(range(100))}
        self.starts = {P0: 0, P1: 0}
        self.at: dict[TopicPartition, int] = {}
        self.known = {0}
        self.silent_s = 0.0
        self.stopped: set[TopicPartition] = set()
        self.polls_that_fail: list[KafkaError] = []
        self.starts_that_fail: list[KafkaError] = []
        self.size = 1
        self._fetcher = SimpleNamespace(_next_partition_records=None)

    def subscribe(self, *, listener: Any, **_: object) -> None:
        """Remember whom to tell."""
        self.listener = listener

    def unsubscribe(self) -> None:
        """Leave the group."""

    def assign(self, *partitions: Any) -> None:
        """What the group would do: give partitions, fetching from their beginning until told otherwise."""
        if isinstance(partitions[0], list):  # by hand
            self.at |= dict.fromkeys(partitions[0], 0)
            return
        self.at |= dict.fromkeys(partitions, 0)
        self.known |= {place.partition for place in partitions}
        self.listener.on_partitions_assigned(partitions)

    def take_away(self, place: TopicPartition) -> None:
        """What the group would do."""
        del self.at[place]
        self.listener.on_partitions_revoked([place])

    def assignment(self) -> set[TopicPartition]:
        """All partitions given."""
        return set(self.at)

    def partitions_for_topic(self, _: str) -> set[int]:
        """All partitions there are."""
        return self.known

    def poll(self, **_: object) -> dict[TopicPartition, list[Any]]:
        """Two records of each partition."""
        if self.polls_that_fail:
            raise self.polls_that_fail.pop(0)
        active = self.at.keys() - self.stopped
        found = {p: [o for o in log if o >= self.at[p]][:2] for p, log in self.logs.items() if p in active}
        self.at |= {p: offsets[-1] + 1 for p, offsets in found.items() if offsets}
        return {p: [raw(p, o, value=b"v" * self.size) for o in offsets] for p, offsets in found.items() if offsets}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go there."""
        if partition not in self.at:
            raise ValueError("Unassigned partition")
        self.at[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        """Hold still."""
        self.stopped |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        """Go on."""
        self.stopped -= set(partitions)

    def paused(self) -> set[TopicPartition]:
        """Those that hold still."""
        return self.stopped

    def metrics(self) -> dict[str, dict[str, float]]:
        """When the group was heard of last."""
        return {"consumer-coordinator-metrics": {"last-heartbeat-seconds-ago": self.silent_s}}

    def beginning_offsets(self, partitions: list[TopicPartition], **_: object) -> dict[TopicPartition, int]:
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
    values = {"key": None, "value": b"v", "headers": [], "timestamp": offset} | changed
    return SimpleNamespace(topic=partition.topic, partition=partition.partition, offset=offset, **values)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> KafkaSource:
    monkeypatch.setattr(kafka_source, "KafkaConsumer", FakeConsumer)
    monkeypatch.setattr(kafka_source, "log_id", lambda *_: "log")
    return KafkaSource(SETTINGS)


def settle(source: KafkaSource, **positions: int) -> None:
    """What the loop does when the group has changed; positions by name: `p0=7`."""
    source.hold()
    logs = source.logs()
    source.place({partition: positions.get(f"p{partition.number}", found.start) for partition, found in logs.items()})


def handed_on(source: KafkaSource) -> list[tuple[int, int]]:
    """(partition, offset) of everything it hands on now."""
    found: list[Record] = list(iter(source.next, None))
    return [(record.partition.number, record.offset) for record in found]


def polled(source: KafkaSource, times: int = 1) -> list[tuple[int, int]]:
    """What so many polls bring."""
    for _ in range(times):
        source.poll()
    return handed_on(source)


def test_records_fetched_before_the_position_is_known_are_dropped(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    assert polled(source) == []
    settle(source, p0=7)
    assert polled(source) == [(0, 7), (0, 8)]


def test_the_logs_are_told_with_their_ids_and_starts(source: KafkaSource) -> None:
    source._consumer.starts[P0] = 3
    source._consumer.assign(P0)
    assert source.logs() == {Partition("t", 0): Log("log", 3)}


def test_two_partitions_are_read_in_the_order_of_their_timestamps(source: KafkaSource) -> None:
    source._consumer.assign(P0, P1)
    settle(source)
    assert polled(source, 2) == [(p, offset) for offset in range(4) for p in (0, 1)][:7]


def test_after_a_change_of_the_group_nothing_is_handed_on_until_it_is_placed(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    settle(source)
    source.poll()
    source._consumer.assign(P1)
    assert source.unsettled
    assert source.next() is None
    settle(source, p0=1, p1=5)
    assert not source.unsettled
    assert polled(source, 3)[:3] == [(0, 1), (0, 2), (0, 3)], "what was fetched and not handed on comes again"


def test_a_change_during_placing_is_settled_again(source: KafkaSource) -> None:
    source._consumer.assign(P0, P1)
    source.hold()
    logs = source.logs()
    source._consumer.take_away(P1)
    source.place(dict.fromkeys(logs, 0))
    assert source.unsettled
    assert polled(source) == []


def test_it_holds_still_while_another_member_has_some_of_the_partitions(source: KafkaSource) -> None:
    source._consumer.known = {0, 1}
    source._consumer.assign(P0)
    source.hold()
    assert source.logs() == {}
    source.place({})
    assert source.unsettled, "looked at again"
    assert source.elsewhere == "t:1"
    assert polled(source) == []
    source._consumer.assign(P1)
    settle(source)
    assert source.elsewhere == ""
    assert (0, 0) in polled(source)


def test_a_broker_that_fails_while_placing_is_asked_again(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    source._consumer.starts_that_fail = [KafkaConnectionError()]
    with pytest.raises(UnavailableError):
        settle(source, p0=3)
    source.settle_again()
    assert source.unsettled
    settle(source, p0=3)
    assert polled(source) == [(0, 3), (0, 4)]


def test_a_broker_that_does_not_tell_a_logs_id_is_away(source: KafkaSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def log_id(*_: object) -> str:
        raise KafkaTimeoutError("Unable to bootstrap")

    monkeypatch.setattr(kafka_source, "log_id", log_id)
    source._consumer.assign(P0)
    with pytest.raises(UnavailableError):
        source.logs()


def test_a_partition_far_ahead_is_paused_until_half_of_it_is_handed_on(source: KafkaSource) -> None:
    source._consumer.logs[P0] = list(range(1000))
    source._consumer.assign(P0)
    settle(source)
    for _ in range(100):
        source.poll()
    assert source._consumer.paused() == {P0}
    assert source._merge.amount(Partition("t", 0))[0] == 128
    for _ in range(63):
        source.next()
    source.poll()
    assert source._consumer.paused() == {P0}
    source.next()
    source.poll()
    assert source._consumer.paused() == set()


def test_large_records_pause_a_partition_by_their_bytes(source: KafkaSource) -> None:
    source._consumer.size = 3 * 2**20
    source._consumer.assign(P0)
    settle(source)
    for _ in range(10):
        source.poll()
    assert source._merge.amount(Partition("t", 0)) == (4, 12 * 2**20)


def test_a_gap_of_compaction_is_none(source: KafkaSource) -> None:
    source._consumer.logs[P0] = [0, 1, 5, 9]
    source._consumer.assign(P0)
    settle(source)
    assert polled(source, 2) == [(0, 0), (0, 1), (0, 5), (0, 9)]


def test_a_log_whose_start_has_overtaken_the_position_is_lost_ground(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    settle(source)
    polled(source)
    source._consumer.logs[P0], source._consumer.starts[P0] = list(range(50, 60)), 50
    with pytest.raises(LostGroundError, match=r"t:0 was read up to offset 2, but its log now starts at 50"):
        source.poll()


def test_a_log_that_ends_before_the_position_is_lost_ground(source: KafkaSource) -> None:
    # The client jumps back to the start by itself then; records from there were applied long ago.
    source._consumer.assign(P0)
    settle(source, p0=40)
    source._consumer.at[P0] = 0
    with pytest.raises(LostGroundError, match=r"t:0 was read up to offset 40, but its log ends before"):
        source.poll()


def test_a_poll_that_fails_is_an_answer_for_later(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    settle(source)
    source._consumer.polls_that_fail = [KafkaConnectionError("gone")]
    with pytest.raises(UnavailableError, match="Kafka does not answer") as caught:
        source.poll()
    assert caught.value.server == "kafka"
    assert polled(source) == [(0, 0), (0, 1)]


def test_records_that_could_not_be_taken_in_come_again(source: KafkaSource) -> None:
    source._consumer.logs[P1] = [5, 6]
    source._consumer.assign(P0, P1)
    settle(source, p0=0, p1=3)
    source._consumer.starts_that_fail = [KafkaConnectionError()]
    with pytest.raises(UnavailableError):
        source.poll()  # is the gap before 5 one of compaction? The broker did not say.
    found = polled(source, 4)
    assert [offset for partition, offset in found if partition == 0] == list(range(len(found) - 2))
    assert [offset for partition, offset in found if partition == 1] == [5, 6]


def test_a_broker_that_takes_no_heartbeat_is_away(source: KafkaSource) -> None:
    source._consumer.silent_s = 11.0
    source.poll()  # no member of the group yet
    source._consumer.assign(P0)
    settle(source)
    with pytest.raises(UnavailableError, match="no heartbeat for 11 s"):
        source.poll()
    source._consumer.silent_s = 9.0
    source.poll()


def test_a_group_that_gives_no_partition_for_long_is_done_without(
    source: KafkaSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.poll()
    assert not source.unsettled
    monkeypatch.setattr(kafka_source, "_JOIN_S", 0.0)
    monkeypatch.setattr(kafka_source, "_JOIN_SESSIONS", 0)
    source._consumer.known = {0, 1}
    source.poll()
    assert source.unsettled
    settle(source)
    source._consumer.silent_s = 1e9  # no group, no heartbeat
    assert polled(source, 2)[:4] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_without_any_partition_the_group_is_waited_for(source: KafkaSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_source, "_JOIN_S", -1.0)
    monkeypatch.setattr(kafka_source, "_JOIN_SESSIONS", -1)
    source._consumer.known = set()
    source.poll()
    assert not source.unsettled


def test_an_unreadable_record_far_before_the_position_is_no_matter(source: KafkaSource) -> None:
    # Until it is told the position, the client reads from the start of the log.
    source._consumer.assign(P0)
    source._consumer.polls_that_fail = [CorruptRecordError()]
    source.poll()
    settle(source, p0=7)
    assert polled(source) == [(0, 7), (0, 8)]


def test_an_unreadable_record_behind_the_position_is_told_with_its_place(source: KafkaSource) -> None:
    source._consumer.assign(P0)
    settle(source, p0=7)
    source._consumer.polls_that_fail = [CorruptRecordError()]
    with pytest.raises(UnreadableError, match=r"lies behind one of: t:0 from 7\. To skip it"):
        source.poll()


def test_caught_up_means_every_assigned_partition(source: KafkaSource) -> None:
    assert not source.caught_up
    source._consumer.logs = {P0: [0, 1], P1: [0, 1, 2, 3]}
    source._consumer.assign(P0, P1)
    settle(source)
    polled(source)
    assert not source.caught_up, "one partition goes on"
    source.poll()
    assert source.waiting
    assert not source.caught_up, "records wait"
    handed_on(source)
    assert source.caught_up


@pytest.mark.parametrize(
    "act",
    [
        lambda source: source._pause_and_resume(),
        lambda source: source._fetch_again([P1]),
        lambda source: source.place({Partition("t", 1): 3}),
    ],
    ids=["pausing", "going back", "placing"],
)
def test_a_partition_taken_away_in_the_same_moment_does_no_harm(
    source: KafkaSource, act: Callable[[KafkaSource], None]
) -> None:
    source._consumer.assign(P0, P1)
    settle(source)
    source._consumer.take_away(P1)
    act(source)
    assert source.unsettled


def test_headers_without_a_value_are_read_as_empty() -> None:
    # Kafka allows them; no producer of kafka-python makes them.
    record = kafka_source._record(Partition("t", 0), raw(P0, 0, headers=[("a", None), ("a", b"1")], key=b"k"))
    assert record.headers == (("a", b""), ("a", b"1"))
    assert (record.partition, record.key, record.value) == (Partition("t", 0), b"k", b"v")
