"""What `doctor` saw of Kafka: `doctor_probes` gathers it, `doctor_kafka` and `doctor_topics` judge it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.findings import Miss


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """A partition as the broker describes it; None where it does not tell.

    Attributes:
        number: which.
        start, end: first offset held, and the offset that the next record gets.
        young: first offset of a record younger than half of the topic's retention; `end` where there is none.
        replicas, in_sync: copies that should be, and copies that are up to date.
        has_leader: whether some broker serves it.
    """

    number: int
    start: int | None = None
    end: int | None = None
    young: int | None = None
    replicas: int = 1
    in_sync: int = 1
    has_leader: bool = True


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic that exists.

    Attributes:
        name: which.
        log: the id it got when it was created; empty where brokers have none.
        partitions: all of them.
        configs: its settings as text, inherited ones included; None where the broker does not tell.
        allowed: operations this client may do on it; None where the broker does not tell.
        failure: why the broker does not describe it; empty when it does.
    """

    name: str
    log: str = ""
    partitions: tuple[PartitionFacts, ...] = (PartitionFacts(0),)
    configs: Mapping[str, str] | None = None
    allowed: frozenset[str] | None = None
    failure: str = ""

    def number(self, name: str) -> int | None:
        """A setting that is a whole number; None where it is not known."""
        text = None if self.configs is None else self.configs.get(name)
        return None if text is None else int(text)


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """A member of our group: how its client calls itself, where it runs, which topics it wants."""

    client: str
    host: str
    topics: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """Our consumer group; state empty where it is not listed, members None where the broker does not tell."""

    state: str = ""
    members: tuple[MemberFacts, ...] | None = ()


@dataclass(frozen=True, slots=True)
class KafkaFacts:
    """What was seen of Kafka.

    Attributes:
        failure: why it could not be reached; empty when it was.
        seconds: how long the first answer took.
        brokers: their number.
        deaf: addresses under which brokers say they are, and where nobody answers.
        version: release whose protocol it speaks, as far as the client can tell.
        configs: settings of one broker; None where it does not tell.
        topics: those that exist, of the configured ones and their side topics; None where the broker does not tell.
        denied: those that do not exist and may not be created by this user.
        group: our consumer group; None where the broker does not tell.
        codecs: what this installation can decompress, `crc32c` among them when checksums are fast.
        misses: what could not be found out.
    """

    failure: str = ""
    seconds: float = 0.0
    brokers: int = 1
    deaf: tuple[str, ...] = ()
    version: tuple[int, ...] = ()
    configs: Mapping[str, str] | None = None
    topics: Mapping[str, TopicFacts] | None = field(default_factory=dict)
    denied: frozenset[str] = frozenset()
    group: GroupFacts | None = None
    codecs: frozenset[str] = frozenset({"crc32c", "gzip", "lz4", "zstd"})
    misses: tuple[Miss, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredPosition:
    """Where a bank stands in a partition: the next offset, and the id of the log it counts in."""

    offset: int
    log: str = ""
