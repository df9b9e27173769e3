"""Kafka behind one adapter: records in, from known positions, in one order. The way out is `side_topics`.

Positions live in Redis, with the state they belong to. Kafka's own group offsets are written after the fact for lag
tools and never read. So after every change in the group the partitions are placed anew, and only then believed:
whatever the client had fetched before is dropped.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from threading import Event
from typing import Any, Final

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError
from kafka.structs import OffsetAndMetadata

from daemon.errors import LostGroundError, UnavailableError, UnreadableError
from daemon.kafka_client import POLL_LIMIT_S, KafkaSettings, answering, log_id, reachable
from daemon.merge import RecordMerge
from daemon.records import Log, Partition, Position, Record

log = structlog.get_logger()

_POLL_RECORDS: Final = 64
_AHEAD_RECORDS: Final = 2 * _POLL_RECORDS  # a partition with as many records waiting, or as many bytes, is paused
_JOIN_S: Final = 10.0  # how long the group may keep partitions from us before it is done without, and in sessions
_JOIN_SESSIONS: Final = 5
_LEAVE_MS: Final = 2000
_AHEAD_BYTES: Final = 8 * 2**20


class KafkaSource:
    """The trainer's consumer.

    It hands on nothing before `place` has said where each partition goes on, nor while somebody else in the group has
    some of the partitions: a bank has one writer, so nobody else could use them, and their order would be lost. A group
    that does not give all of them for long is left, and they are read without it.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._note = _RebalanceNote()
        self._next: dict[Partition, int] = {}  # offset of the next record to be fetched, by partition placed
        self._merge = RecordMerge(settings.merge_wait_s)
        self._elsewhere: set[Partition] = set()
        self._grouped = True
        self._waits_since = time.monotonic()
        with reachable(settings):
            self._consumer = KafkaConsumer(
                **settings.client,
                bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000),
                group_id=settings.group,
                group_instance_id=settings.instance or None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",  # where a fetch before placing lands is dropped anyway
                max_poll_records=_POLL_RECORDS,
                max_partition_fetch_bytes=max(settings.max_record_bytes, 2**20),
                receive_message_max_bytes=2**31 - 1,  # an oversized record must be seen to be dead-lettered
                session_timeout_ms=int(settings.session_timeout_s * 1000),
                heartbeat_interval_ms=int(settings.session_timeout_s * 1000 / 3),
                max_poll_interval_ms=int(settings.max_poll_interval_s * 1000),
            )
            self._consumer.subscribe(topics=list(settings.topics), listener=self._note)

    # -- records

    def poll(self, timeout_s: float = POLL_LIMIT_S) -> None:
        """Let the client work, and take in what it has; returns within `timeout_s` seconds, at once if records come.

        Raises:
            LostGroundError: a position no longer fits the log.
            UnreadableError: a record that the client itself cannot read.
            UnavailableError: the broker is away (poll again: the client reconnects).
        """
        with answering():
            self._go_on_without_group()
            self._pause_and_resume()
            fetched = self._fetch(timeout_s)
            try:
                for place, raws in sorted(fetched.items()):
                    self._take_in(place, raws)
            except (KafkaError, UnavailableError):
                self._fetch_again(fetched)
                raise
            self._require_heartbeats()

    def next(self) -> Record | None:
        """The next record of all partitions; None if there is none yet, or the group has changed."""
        if self.unsettled:
            return None
        with answering():
            return self._merge.pop(time.monotonic(), self._exhausted)

    @property
    def waiting(self) -> bool:
        """Whether records were fetched that `next` has not handed on."""
        return not self._merge.empty

    def _pause_and_resume(self) -> None:
        """Bound what waits: a partition far ahead is paused, which keeps its place in the group."""
        paused = self._consumer.paused()
        for partition in self._next:
            records, size = self._merge.amount(partition)
            with _no_longer_ours():
                if records >= _AHEAD_RECORDS or size >= _AHEAD_BYTES:
                    self._consumer.pause(_place(partition))
                elif _place(partition) in paused and records <= _AHEAD_RECORDS / 2 and size <= _AHEAD_BYTES / 2:
                    self._consumer.resume(_place(partition))
        self._bring_back_parked()

    def _bring_back_parked(self) -> None:
        """kafka-python 3.0 sets records of a paused partition aside until no batch is in line; an empty one counts."""
        fetcher = self._consumer._fetcher  # noqa: SLF001 - there is no other way, and nothing happens if it has moved
        if not getattr(fetcher, "_next_partition_records", True):
            fetcher._next_partition_records = None  # noqa: SLF001

    def _fetch(self, timeout_s: float) -> dict[TopicPartition, list[Any]]:
        """One poll of the client.

        Raises:
            UnreadableError: waiting would not help, and skipping it unasked would lose it.
        """
        try:
            wait_ms = int(min(timeout_s, POLL_LIMIT_S) * 1000)
            fetched: dict[TopicPartition, list[Any]] = self._consumer.poll(timeout_ms=wait_ms)
        except CorruptRecordError as error:
            if self.unsettled:
                return {}  # read before the position is known, perhaps long before it: place the partition first
            places = ", ".join(f"{partition} from {offset}" for partition, offset in sorted(self._next.items()))
            raise UnreadableError(
                f"the Kafka client cannot read a record ({error}); it lies behind one of: {places}. To skip it, set "
                "`offset` in that partition's progress hash in Redis to the offset behind it, and start again."
            ) from error
        return fetched

    def _take_in(self, place: TopicPartition, raws: list[Any]) -> None:
        """Records of a partition that has a position, which moves on; others are dropped."""
        partition = _partition(place)
        if partition not in self._next or self.unsettled:
            return
        self._require_ground(place, raws[0].offset)
        self._merge.add(partition, (_record(partition, raw) for raw in raws), time.monotonic())
        self._next[partition] = raws[-1].offset + 1

    def _require_ground(self, place: TopicPartition, found: int) -> None:
        """Tell a gap that is none (compaction, marks of transactions) from the client's silent jump to the log's start.

        Raises:
            LostGroundError: the position lies outside the log.
        """
        partition = _partition(place)
        position = self._next[partition]
        if found == position:
            return
        if found < position:
            raise LostGroundError(
                f"{partition} was read up to offset {position}, but its log ends before: the broker has lost records, "
                "or the topic was deleted and made anew. Started again, it says what can be done."
            )
        start = self._starts([place])[place]
        if start > position:
            raise LostGroundError(
                f"{partition} was read up to offset {position}, but its log now starts at {start}: retention has "
                "overtaken this trainer. Started again, it says what can be done."
            )

    def _fetch_again(self, fetched: Iterable[TopicPartition]) -> None:
        """Go back to before records that could not be taken in; the next poll brings them again."""
        for place in fetched:
            if _partition(place) in self._next:
                with _no_longer_ours():
                    self._consumer.seek(place, self._next[_partition(place)])

    def _require_heartbeats(self) -> None:
        """A broker that does not answer is not told by the client: its polls return nothing, as if all were read.

        Raises:
            UnavailableError: it has not been reached for a session.
        """
        if not self._next or not self._grouped:
            return
        group: dict[str, float] = self._consumer.metrics().get("consumer-coordinator-metrics", {})
        silent_s = group.get("last-heartbeat-seconds-ago", 0.0)  # infinite before the first
        if self._settings.session_timeout_s < silent_s < math.inf:
            raise UnavailableError(f"Kafka has taken no heartbeat for {silent_s:.0f} s")

    # -- the group

    def _go_on_without_group(self) -> None:
        """A group that keeps partitions from us for long holds nobody up: who writes is decided in Redis alone."""
        now = time.monotonic()
        if self._consumer.assignment() and not self._elsewhere:
            self._waits_since = now
        if now - self._waits_since <= max(_JOIN_S, _JOIN_SESSIONS * self._settings.session_timeout_s):
            return
        places = [
            TopicPartition(topic, number)
            for topic in self._settings.topics
            for number in sorted(self._consumer.partitions_for_topic(topic) or ())
        ]
        if places:
            log.warning("group.left", group=self._settings.group, seconds=round(now - self._waits_since, 1))
            self._consumer.unsubscribe()
            self._consumer.assign(places)
            self._grouped = False
            self._note.changed.set()

    @property
    def unsettled(self) -> bool:
        """Whether the partitions have to be placed: `hold`, apply what was handed on, then `place`."""
        return self._note.changed.is_set() or bool(self._elsewhere)

    def hold(self) -> None:
        """Hand on nothing until `place`, and forget what was fetched: the group has changed."""
        self._note.changed.clear()
        self._next.clear()
        self._merge.start(())
        with _no_longer_ours():
            self._consumer.pause(*self._consumer.assignment())

    def logs(self) -> dict[Partition, Log]:
        """All assigned partitions as the broker has them; none while somebody else has some of our topics' partitions.

        Raises:
            UnavailableError: the broker does not say.
        """
        with answering():
            assigned = self._consumer.assignment()
            self._note_elsewhere(assigned)
            if self._elsewhere or not assigned:
                return {}
            starts = self._starts(sorted(assigned))
            ids = {topic: log_id(self._settings, topic) for topic in sorted({place.topic for place in assigned})}
        return {_partition(place): Log(ids[place.topic], starts[place]) for place in sorted(assigned)}

    def _starts(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """First offsets that the logs still hold."""
        found: dict[TopicPartition, int] = self._consumer.beginning_offsets(
            places, timeout_ms=int(self._settings.connect_timeout_s * 1000)
        )
        return found

    def _note_elsewhere(self, assigned: set[TopicPartition]) -> None:
        before, self._elsewhere = self._elsewhere, set()
        if not assigned:
            return
        for topic in self._settings.topics:
            numbers = self._consumer.partitions_for_topic(topic) or set()
            self._elsewhere |= {Partition(topic, n) for n in numbers} - {_partition(place) for place in assigned}
        if self._elsewhere != before and self._elsewhere:
            log.warning("partitions.elsewhere", group=self._settings.group, partitions=self.elsewhere)

    @property
    def placed(self) -> bool:
        """Whether there are partitions to read."""
        return bool(self._next)

    @property
    def elsewhere(self) -> str:
        """Partitions that another member of the group has, for people; empty when there is none."""
        return ", ".join(map(str, sorted(self._elsewhere)))

    def place(self, positions: Mapping[Partition, int]) -> None:
        """Go on with these partitions at these offsets, unless the group has changed again meanwhile."""
        for partition, offset in sorted(positions.items()):
            with _no_longer_ours():
                self._consumer.seek(_place(partition), offset)
                self._consumer.resume(_place(partition))
        if self._note.changed.is_set():
            return
        self._next = dict(positions)
        self._merge.start(positions)
        for partition, offset in sorted(positions.items()):
            log.info("partition.assigned", topic=partition.topic, partition=partition.number, offset=offset)

    def settle_again(self) -> None:
        """What `hold` began could not be finished; `unsettled` says so again."""
        self._note.changed.set()

    # -- how far it is

    def _exhausted(self, partition: Partition) -> bool:
        """Whether everything that the log is known to hold was fetched; False before a fetch has told where it ends."""
        end = self.end(partition)
        if end is None:
            return False
        # The client is ahead of us where a transaction's mark, which is no record, ends the log.
        return end <= self._next[partition] or end <= (self._consumer.position(_place(partition), timeout_ms=0) or 0)

    def end(self, partition: Partition) -> int | None:
        """The offset behind the newest record, as the newest fetch has told; None before one has."""
        if _place(partition) not in self._consumer.assignment():
            return None
        found: int | None = self._consumer.highwater(_place(partition))
        return found

    def lags(self) -> dict[Partition, int | None]:
        """Records of each partition not handed on yet; None where that is not known. For people: it never raises."""
        found: dict[Partition, int | None] = {}
        for partition in sorted(self._next):
            found[partition] = None
            with contextlib.suppress(KafkaError):
                end, waiting = self.end(partition), self._merge.amount(partition)[0]
                if end is not None:
                    unread = 0 if self._exhausted(partition) else end - self._next[partition]
                    found[partition] = unread + waiting
        return found

    @property
    def caught_up(self) -> bool:
        """Whether every partition is read to its end and nothing waits; False while none is placed."""
        if not self._next or self.unsettled or not self._merge.empty:
            return False
        with answering():
            return all(map(self._exhausted, self._next))

    def tell_group(self, positions: Mapping[Partition, Position]) -> None:
        """Write group offsets, for lag tools; nothing depends on it, so it is not waited for."""
        offsets = {
            _place(partition): OffsetAndMetadata(position.offset, "", -1)
            for partition, position in positions.items()
            if partition in self._next
        }
        with contextlib.suppress(KafkaError):
            self._consumer.commit_async(offsets)

    def close(self) -> None:
        """Leave the group, unless the broker does not answer soon."""
        with contextlib.suppress(KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=_LEAVE_MS)


@contextlib.contextmanager
def _no_longer_ours() -> Iterator[None]:
    """The client refuses what concerns a partition that the group has just taken away; a note about it is coming."""
    with contextlib.suppress(KeyError, ValueError):
        yield


def _place(partition: Partition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.number)


def _partition(place: TopicPartition) -> Partition:
    return Partition(place.topic, place.partition)


def _record(partition: Partition, raw: Any) -> Record:
    headers = tuple((name, value or b"") for name, value in raw.headers)
    return Record(partition, raw.offset, raw.key, raw.value, headers, raw.timestamp)


class _RebalanceNote(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes on the client's thread that the group has changed; the polling thread acts on it."""

    def __init__(self) -> None:
        self.changed = Event()

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        if revoked:
            self.changed.set()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        if assigned:
            self.changed.set()
