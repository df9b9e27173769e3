"""Kafka behind one adapter: records in, from known positions. The way out is `side_topics`.

Positions live in Redis, with the state they belong to. Kafka's own group offsets are written after the fact for lag
tools and never read. So a newly assigned partition is first positioned, and only then believed: whatever the client
had fetched for it before is dropped.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, Protocol

import structlog
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import (
    CorruptRecordError,
    InvalidSessionTimeoutError,
    InvalidTopicError,
    KafkaError,
    TopicAlreadyExistsError,
    UnsupportedVersionError,
)
from kafka.structs import OffsetAndMetadata

from daemon.checkpoint import Partition, Position
from daemon.errors import ConfigError, LostGroundError, UnavailableError, UnreadableError
from daemon.probe import first_contact
from daemon.refusals import kafka_refusal

log = structlog.get_logger()

POLL_LIMIT_S: Final = 0.5  # a signal must be heard within this time; kafka-python has no wakeup()
_POLL_RECORDS: Final = 64

# Errors that no waiting mends.
_REFUSALS: Final = (InvalidSessionTimeoutError, InvalidTopicError, UnsupportedVersionError)


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record as the daemon sees it."""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


class Progress(Protocol):
    """Who knows how far the partitions were read; called in the polling thread."""

    def assigned(self, partition: Partition, log_identity: str, start: int) -> int:
        """A partition was given: the offset to go on from, in the log of this id, whose first offset is `start`."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Partitions were taken away; nothing new of them is read before this returns."""


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach the broker and how to behave in the group; sizes in bytes, times in seconds.

    Attributes:
        security: what every client takes beside the servers (`connections.kafka_client`); holds secrets.
    """

    servers: tuple[str, ...]
    topics: tuple[str, ...]
    group: str
    max_record_bytes: int
    session_timeout_s: float
    max_poll_interval_s: float
    connect_timeout_s: float
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def client(self) -> dict[str, Any]:
        """What every client needs to connect."""
        return {"bootstrap_servers": list(self.servers), **self.security}


class KafkaSource:
    """The trainer's consumer: subscribed from the start, positioned partition by partition as they are assigned."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._notes = _RebalanceNotes()
        self._next: dict[TopicPartition, int] = {}
        with reachable(settings):
            self._consumer = KafkaConsumer(
                **settings.client,
                bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000),
                group_id=settings.group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",  # where a fetch before positioning lands is dropped anyway
                max_poll_records=_POLL_RECORDS,
                max_partition_fetch_bytes=max(settings.max_record_bytes, 2**20),
                receive_message_max_bytes=2**31 - 1,  # an oversized record must be seen to be dead-lettered
                session_timeout_ms=int(settings.session_timeout_s * 1000),
                heartbeat_interval_ms=int(settings.session_timeout_s * 1000 / 3),
                max_poll_interval_ms=int(settings.max_poll_interval_s * 1000),
            )
            self._consumer.subscribe(topics=list(settings.topics), listener=self._notes)

    def poll(self, progress: Progress, timeout_s: float = POLL_LIMIT_S) -> list[Record]:
        """The next records, in order within each partition; empty after `timeout_s` seconds without any.

        Raises:
            LostGroundError: a stored position no longer fits the log.
            UnavailableError: the broker is away (poll again: the client reconnects).
        """
        with answering():
            fetched = self._fetch(timeout_s)
            try:
                moved = self._apply_rebalance(progress)
                ready = sorted(fetched.keys() & self._next.keys() - moved)
                for partition in ready:
                    self._require_ground(partition, fetched[partition][0].offset)
            except (KafkaError, UnavailableError):
                self._fetch_again(fetched.keys())
                raise
        return [record for partition in ready for record in self._accepted(partition, fetched[partition])]

    def _fetch(self, timeout_s: float) -> dict[TopicPartition, list[Any]]:
        """One poll of the client.

        Raises:
            UnreadableError: a record that the client itself cannot read; waiting would not help, and skipping it
                unasked would lose it.
        """
        try:
            wait_ms = int(min(timeout_s, POLL_LIMIT_S) * 1000)
            fetched: dict[TopicPartition, list[Any]] = self._consumer.poll(timeout_ms=wait_ms)
        except CorruptRecordError as error:
            if self._notes.pending:
                return {}  # read before the position is known, perhaps long before it: place the partition first
            places = ", ".join(f"{p.topic}:{p.partition} from {offset}" for p, offset in sorted(self._next.items()))
            raise UnreadableError(
                f"the Kafka client cannot read a record ({error}); it lies behind one of: {places}. To skip it, set "
                "`offset` in that partition's progress hash in Redis to the offset behind it, and start again."
            ) from error
        return fetched

    def _accepted(self, partition: TopicPartition, fetched: Iterable[Any]) -> Iterator[Record]:
        """Records of a partition that has a position, which goes along."""
        for raw in fetched:
            self._next[partition] = raw.offset + 1
            yield Record(
                partition=Partition(raw.topic, raw.partition),
                offset=raw.offset,
                key=raw.key,
                value=raw.value,
                headers=tuple((name, value or b"") for name, value in raw.headers),
                timestamp_ms=raw.timestamp,
            )

    def _require_ground(self, partition: TopicPartition, found: int) -> None:
        """Tell a gap that is none (compaction, marks of transactions) from the client's silent jump to the log's start.

        Raises:
            LostGroundError: the position lies outside the log.
        """
        position = self._next[partition]
        if found == position:
            return
        where = Partition(partition.topic, partition.partition)
        if found < position:
            raise LostGroundError(
                f"{where} was read up to offset {position}, but its log ends before: the broker has lost records"
            )
        start = self._consumer.beginning_offsets([partition])[partition]
        if start > position:
            raise LostGroundError(
                f"{where} was read up to offset {position}, but its log now starts at {start}: retention has overtaken "
                "this trainer. Started again, it says what can be done."
            )

    def _fetch_again(self, fetched: AbstractSet[TopicPartition]) -> None:
        """Go back to before records that could not be handed out; the next poll brings them again."""
        for partition in fetched & self._next.keys() & self._consumer.assignment():
            self._consumer.seek(partition, self._next[partition])

    def _apply_rebalance(self, progress: Progress) -> set[TopicPartition]:
        """Act on the listener's notes; returns partitions whose fetched records count from another position."""
        taken, given = self._notes.take()
        try:
            for partition in taken:
                self._next.pop(partition, None)
            if taken:
                progress.revoked([Partition(p.topic, p.partition) for p in sorted(taken)])
            moved: set[TopicPartition] = given & self._consumer.assignment()
            for partition in sorted(moved):
                self._go_to_position(partition, progress)
        except (KafkaError, UnavailableError):
            self._notes.put_back(taken, given)
            raise
        return taken | moved

    def _go_to_position(self, partition: TopicPartition, progress: Progress) -> None:
        start = self._consumer.beginning_offsets([partition])[partition]
        where = Partition(partition.topic, partition.partition)
        offset = progress.assigned(where, log_id(self._settings, partition.topic), start)
        self._consumer.seek(partition, offset)
        self._next[partition] = offset
        log.info("partition.assigned", topic=partition.topic, partition=partition.partition, offset=offset)

    @property
    def caught_up(self) -> bool:
        """Whether every assigned partition is read to its end; False while none is assigned."""
        assigned = self._consumer.assignment()
        return bool(assigned) and assigned == self._next.keys() and all(self.lag(p) == 0 for p in assigned)

    def lag(self, partition: TopicPartition) -> int | None:
        """Offsets between the position and the end of the log; None before the first fetch has told where that is."""
        end, position = self._consumer.highwater(partition), self._consumer.position(partition, timeout_ms=0)
        # The client's position is ahead where a transaction's mark, which is no record, ends the log.
        return None if end is None else max(0, end - max(self._next[partition], position or 0))

    def tell_group(self, positions: dict[Partition, Position]) -> None:
        """Write group offsets, for lag tools; nothing depends on it, so it is not waited for."""
        offsets = {
            TopicPartition(p.topic, p.number): OffsetAndMetadata(position.offset, "", -1)
            for p, position in positions.items()
            if TopicPartition(p.topic, p.number) in self._next
        }
        with contextlib.suppress(KafkaError):
            self._consumer.commit_async(offsets)

    def close(self) -> None:
        """Leave the group."""
        with contextlib.suppress(KafkaError):
            self._consumer.close(autocommit=False)


class _RebalanceNotes(ConsumerRebalanceListener):  # type: ignore[misc]
    """Takes notes on the client's thread; the polling thread acts on them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._taken: set[TopicPartition] = set()
        self._given: set[TopicPartition] = set()

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._taken |= set(revoked)
            self._given -= set(revoked)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        with self._lock:
            self._given |= set(assigned)

    @property
    def pending(self) -> bool:
        """Whether there is something to act on."""
        with self._lock:
            return bool(self._taken or self._given)

    def take(self) -> tuple[set[TopicPartition], set[TopicPartition]]:
        """Partitions (revoked, assigned) since the last call."""
        with self._lock:
            taken, given = self._taken, self._given
            self._taken, self._given = set(), set()
        return taken, given

    def put_back(self, taken: set[TopicPartition], given: set[TopicPartition]) -> None:
        """Notes that could not be acted on; the next `take` has them again."""
        with self._lock:
            self._taken |= taken
            self._given |= given


def create_topics(settings: KafkaSettings, topics: Iterable[str], partitions: int = 1) -> None:
    """Create topics that do not exist, in the order given.

    Raises:
        UnavailableError: the broker is away or does not allow it.
    """
    with reachable(settings):
        admin = KafkaAdminClient(**settings.client, bootstrap_timeout_ms=int(settings.connect_timeout_s * 1000))
    try:
        with answering():
            for topic in sorted(set(topics) - set(admin.list_topics())):
                with contextlib.suppress(TopicAlreadyExistsError):
                    admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])
                    log.info("topic.created", topic=topic, partitions=partitions)
    finally:
        admin.close()


def log_id(settings: KafkaSettings, topic: str) -> str:
    """The id Kafka gave this topic when it was created: another id means another log. Empty where brokers have none."""
    admin = KafkaAdminClient(**settings.client)
    try:
        (description,) = admin.describe_topics([topic])
        return str(description.get("topic_id") or "")
    finally:
        admin.close()


def reachable(settings: KafkaSettings) -> contextlib.AbstractContextManager[None]:
    """Turn the errors of a first contact into ours; see `probe.first_contact`."""
    return first_contact(settings.servers, settings.security, settings.connect_timeout_s)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn the errors of later requests into ours.

    Raises:
        DeniedError: the broker forbids it.
        ConfigError: it refuses what the settings ask for.
        UnavailableError: anything else; it may pass.
    """
    try:
        yield
    except _REFUSALS as error:
        raise ConfigError(f"Kafka refuses what these settings ask for: {error!r}") from error
    except KafkaError as error:
        raise kafka_refusal(error) or UnavailableError(f"Kafka does not answer: {error!r}") from error
