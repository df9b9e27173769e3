"""Asks Kafka what `doctor` judges. It reads only: no group is joined, no topic created, no offset committed."""

import importlib.util
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition, codec
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.errors import UnknownTopicOrPartitionError, for_code

from daemon.doctor_kafka import SIDES
from daemon.doctor_probes import Questions
from daemon.errors import StopError
from daemon.kafka_client import KafkaSettings, kafka_settings, reachable
from daemon.kafka_facts import GroupFacts, KafkaFacts, MemberFacts, PartitionFacts, TopicFacts
from daemon.settings import Settings

_TOPIC_CONFIGS: Final = (
    "cleanup.policy",
    "compression.type",
    "max.message.bytes",
    "min.insync.replicas",
    "retention.bytes",
    "retention.ms",
)
_BROKER_CONFIGS: Final = (
    "auto.create.topics.enable",
    "group.max.session.timeout.ms",
    "group.min.session.timeout.ms",
    "num.partitions",
)
_NO_SUCH_TOPIC: Final = UnknownTopicOrPartitionError.errno
_UNTOLD: Final = "no answer; DESCRIBE_CONFIGS may be denied"
_CONNECT_S: Final = 3.0  # most that one broker may take to accept a connection


def probe_kafka(settings: Settings) -> KafkaFacts:
    """Everything about Kafka; a broker that is away is a fact as well."""
    kafka = kafka_settings(settings)
    begun = time.monotonic()
    try:
        with reachable(kafka):
            admin = _client(KafkaAdminClient, kafka)
    except StopError as error:
        return KafkaFacts(failure=str(error), codecs=_codecs())
    try:
        questions, seconds = Questions(), time.monotonic() - begun
        facts = questions.ask("anything", lambda: _Cluster(admin, kafka).facts(seconds))
        return facts or KafkaFacts(failure=f"Kafka gives answers that make no sense here: {questions.misses[0].why}")
    finally:
        admin.close()


def _client(kind: Callable[..., Any], kafka: KafkaSettings, **more: object) -> Any:
    """A client of Kafka: the one place where this module makes any."""
    timeout_ms = int(kafka.connect_timeout_s * 1000)
    return kind(**kafka.client, bootstrap_timeout_ms=timeout_ms, request_timeout_ms=timeout_ms, **more)


def _codecs() -> frozenset[str]:
    known = {name for name in ("gzip", "snappy", "lz4", "zstd") if getattr(codec, f"has_{name}")()}
    return frozenset(known | {name for name in ("crc32c",) if importlib.util.find_spec(name)})


class _Cluster:
    """One round of questions to a cluster."""

    def __init__(self, admin: Any, kafka: KafkaSettings) -> None:
        self._admin = admin
        self._kafka = kafka
        self._questions = Questions()
        self._ask = self._questions.ask

    def facts(self, seconds: float) -> KafkaFacts:
        """All answers; the first took `seconds`."""
        cluster = self._ask("its brokers", self._admin.describe_cluster)
        if cluster is None:  # every further question would wait in vain
            return KafkaFacts(failure=self._unreachable(self._questions.misses[-1].why), codecs=_codecs())
        brokers = [broker["broker_id"] for broker in cluster["brokers"]]
        addresses = [f"{broker['host']}:{broker['port']}" for broker in cluster["brokers"]]
        described = self._describe_topics()
        return KafkaFacts(
            seconds=seconds,
            brokers=len(brokers),
            deaf=tuple(address for address in addresses if not _answers(address, self._kafka)),
            version=self._version(brokers),
            configs=self._broker_configs(brokers),
            topics=None if described is None else self._topics(described),
            denied=frozenset(name for name, topic in (described or {}).items() if _may_not_be_created(cluster, topic)),
            group=self._group(),
            codecs=_codecs(),
            misses=tuple(self._questions.misses),
        )

    def _unreachable(self, why: str) -> str:
        return (
            f"Kafka at {','.join(self._kafka.servers)} answers, but not where its brokers say they are ({why}): mend "
            "advertised.listeners of the brokers, or the names and the firewall of this machine"
        )

    def _version(self, brokers: list[int]) -> tuple[int, ...]:
        found = self._ask("its version", lambda: self._admin.get_broker_version_data(brokers[0]).broker_version)
        return tuple(found or ())

    def _broker_configs(self, brokers: list[int]) -> Mapping[str, str] | None:
        what = "its settings"
        names = [str(broker) for broker in brokers[:1]]
        found = self._ask(what, lambda: self._configs(ConfigResourceType.BROKER, names, _BROKER_CONFIGS))
        (configs,) = (found or {}).values() or (None,)
        if configs == {}:
            self._questions.miss(what, _UNTOLD)
        return configs or None

    def _configs(
        self, kind: ConfigResourceType, names: Iterable[str], wanted: tuple[str, ...]
    ) -> dict[str, dict[str, str]]:
        """Values by resource and setting; empty where this user may not ask, which kafka-python calls no error."""
        resources = [ConfigResource(kind, name, list(wanted)) for name in names]
        found = self._admin.describe_configs(resources, config_filter="all").get(kind.name.lower(), {})
        return {
            name: {key: config["value"] for key, config in configs.items() if config["value"] is not None}
            for name, configs in found.items()
        }

    # -- topics

    def _describe_topics(self) -> dict[str, Any] | None:
        """Topics and side topics by name, those that do not exist with their error."""
        names = [name + side for name in self._kafka.topics for side in ("", *SIDES)]
        described = self._ask("its topics", lambda: self._admin.describe_topics(names))
        return None if described is None else {topic["name"]: topic for topic in described}

    def _topics(self, described: Mapping[str, Any]) -> dict[str, TopicFacts]:
        existing = {name: topic for name, topic in described.items() if topic["error_code"] != _NO_SUCH_TOPIC}
        sound = [name for name, topic in existing.items() if not topic["error_code"]]
        configs = self._topic_configs(sound)
        logs = self._logs({name: existing[name] for name in sound if name in self._kafka.topics}, configs)
        return {
            name: TopicFacts(
                name=name,
                log=str(topic.get("topic_id") or ""),
                partitions=logs.get(name) or _partitions(topic),
                configs=configs.get(name) or None,
                allowed=_operations(topic),
                failure=for_code(topic["error_code"]).__name__ if topic["error_code"] else "",
            )
            for name, topic in existing.items()
        }

    def _topic_configs(self, names: list[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        what = "the settings of topics"
        found = self._ask(what, lambda: self._configs(ConfigResourceType.TOPIC, names, _TOPIC_CONFIGS))
        if found is not None and (untold := sorted(name for name in names if not found.get(name))):
            self._questions.miss(f"{what} {', '.join(untold)}", _UNTOLD)
        return found or {}

    def _logs(
        self, topics: dict[str, Any], configs: Mapping[str, Mapping[str, str]]
    ) -> dict[str, tuple[PartitionFacts, ...]]:
        """The partitions of source topics, with where their logs begin and end."""
        partitions = [
            TopicPartition(name, p["partition_index"])
            for name, topic in topics.items()
            for p in topic["partitions"]
            if p["leader_id"] >= 0
        ]
        if not partitions:
            return {}
        list_offsets = self._admin.list_partition_offsets
        starts = self._ask("where its logs start", lambda: list_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST)))
        latest = self._ask("where its logs end", lambda: list_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST)))
        ends = latest and self._ask("where its logs end", lambda: self._ends(latest))
        halves = {p: int(time.time() * 1000) - kept // 2 for p in partitions if (kept := _kept_ms(configs, p)) > 0}
        young = self._ask("how old its records are", lambda: list_offsets(halves) if halves else {})
        return {
            name: tuple(_with_log(p, starts or {}, ends or {}, young or {}) for p in _numbered(name, topic))
            for name, topic in topics.items()
        }

    def _ends(self, latest: Mapping[TopicPartition, Any]) -> dict[TopicPartition, int]:
        """Ends of logs as told with fetched records, since some brokers list wrong ones; read in no group."""
        consumer = _client(
            KafkaConsumer,
            self._kafka,
            group_id=None,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            fetch_max_bytes=1,
            max_partition_fetch_bytes=1,
            fetch_max_wait_ms=50,
        )
        try:
            consumer.assign(list(latest))
            for partition, end in latest.items():
                consumer.seek(partition, end.offset)
            deadline = time.monotonic() + self._kafka.connect_timeout_s
            ends: dict[TopicPartition, int] = {}
            while len(ends) < len(latest) and time.monotonic() < deadline:
                consumer.poll(timeout_ms=100)
                ends = {p: end for p in latest if (end := consumer.highwater(p)) is not None}
        finally:
            consumer.close(autocommit=False)
        return ends

    # -- the group

    def _group(self) -> GroupFacts | None:
        name = self._kafka.group
        listed = self._ask("its groups", self._admin.list_groups)
        if listed is None:
            return None
        # Asking after a group that is not listed would make a broker that has none create its topic for them.
        states = {group["group_id"]: group.get("group_state", "") for group in listed}
        if name not in states:
            return GroupFacts()
        found = self._ask(f"who is in group {name}", lambda: self._admin.describe_groups([name])[name])
        if found is None:
            return GroupFacts(states[name], None)
        return GroupFacts(found["group_state"], tuple(_member(member) for member in found["members"]))


def _answers(address: str, kafka: KafkaSettings) -> bool:
    """Whether somebody listens where a broker says that it is."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=min(_CONNECT_S, kafka.connect_timeout_s)).close()
    except OSError:
        return False
    return True


def _may_not_be_created(cluster: Mapping[str, Any], topic: Mapping[str, Any]) -> bool:
    if topic["error_code"] != _NO_SUCH_TOPIC:
        return False
    allowed = [_operations(described) for described in (cluster, topic)]
    return all(operations is not None and "CREATE" not in operations for operations in allowed)


def _operations(described: Mapping[str, Any]) -> frozenset[str] | None:
    operations = described.get("authorized_operations")
    return None if operations is None else frozenset(operations)


def _partitions(topic: Mapping[str, Any]) -> tuple[PartitionFacts, ...]:
    return tuple(facts for _, facts in _numbered(topic["name"], topic))


def _numbered(name: str, topic: Mapping[str, Any]) -> list[tuple[TopicPartition, PartitionFacts]]:
    return [
        (
            TopicPartition(name, p["partition_index"]),
            PartitionFacts(
                number=p["partition_index"],
                replicas=len(p["replica_nodes"]),
                in_sync=len(p["isr_nodes"]),
                has_leader=p["leader_id"] >= 0,
            ),
        )
        for p in sorted(topic["partitions"], key=lambda p: int(p["partition_index"]))
    ]


def _with_log(
    described: tuple[TopicPartition, PartitionFacts],
    starts: Mapping[TopicPartition, Any],
    ends: Mapping[TopicPartition, int],
    young: Mapping[TopicPartition, Any],
) -> PartitionFacts:
    partition, facts = described
    start, end, half = starts.get(partition), ends.get(partition), young.get(partition)
    return PartitionFacts(
        number=facts.number,
        start=None if start is None else start.offset,
        end=end,
        young=None if half is None else end if half.offset < 0 else half.offset,
        replicas=facts.replicas,
        in_sync=facts.in_sync,
        has_leader=facts.has_leader,
    )


def _kept_ms(configs: Mapping[str, Mapping[str, str]], partition: TopicPartition) -> int:
    return int(configs.get(partition.topic, {}).get("retention.ms", -1))


def _member(member: Mapping[str, Any]) -> MemberFacts:
    metadata = member["member_metadata"]
    topics = metadata.get("topics", ()) if isinstance(metadata, dict) else ()
    return MemberFacts(member["client_id"], member["client_host"].removeprefix("/"), frozenset(topics))
