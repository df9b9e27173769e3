"""Asks Kafka and Redis what `doctor` judges. It reads only: no group is joined, no topic created, no key written.

A question that fails is noted as a `Miss`, and the next one is asked all the same.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition, codec
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.errors import UnknownTopicOrPartitionError, for_code
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from daemon import redis_store
from daemon.bootstrap import kafka_settings
from daemon.doctor_kafka import SIDES
from daemon.doctor_redis import BankFacts, RedisFacts
from daemon.errors import StopError
from daemon.findings import Miss
from daemon.kafka_facts import GroupFacts, KafkaFacts, MemberFacts, PartitionFacts, StoredPosition, TopicFacts
from daemon.kafka_source import KafkaSettings, reachable
from daemon.redis_store import BankReader
from daemon.settings import Settings

T = TypeVar("T")

_TOPIC_CONFIGS: Final = (
    "cleanup.policy",
    "compression.type",
    "max.message.bytes",
    "min.insync.replicas",
    "retention.bytes",
    "retention.ms",
)
_BROKER_CONFIGS: Final = ("group.max.session.timeout.ms", "group.min.session.timeout.ms")
_REDIS_CONFIGS: Final = (
    "appendfsync",
    "client-output-buffer-limit",
    "proto-max-bulk-len",
    "save",
    "stop-writes-on-bgsave-error",
)
_MASKS_LOOKED_AT: Final = 1000
_UNTOLD: Final = "no answer; DESCRIBE_CONFIGS may be denied"


class Questions:
    """Asks one question after another and notes those that fail."""

    def __init__(self) -> None:
        self.misses: list[Miss] = []

    def ask(self, what: str, question: Callable[[], T]) -> T | None:
        """The answer, or None and a note."""
        try:
            return question()
        except Exception as error:  # noqa: BLE001 - whatever a server or its client does, the rest is still asked
            self.miss(what, str(error).partition("\n")[0] or type(error).__name__)
            return None

    def miss(self, what: str, why: str) -> None:
        """Note that something is not known."""
        self.misses.append(Miss(what, why))


# -- Kafka


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
        return _Cluster(admin, kafka).facts(time.monotonic() - begun)
    finally:
        admin.close()


def _client(kind: Callable[..., Any], kafka: KafkaSettings, **more: object) -> Any:
    """A client of Kafka: the one place where this module makes any."""
    timeout_ms = int(kafka.connect_timeout_s * 1000)
    return kind(
        bootstrap_servers=list(kafka.servers), bootstrap_timeout_ms=timeout_ms, request_timeout_ms=timeout_ms, **more
    )


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
        cluster = self._ask("its brokers", self._admin.describe_cluster) or {}
        brokers = [broker["broker_id"] for broker in cluster.get("brokers", ())]
        topics = self._topics()
        return KafkaFacts(
            seconds=seconds,
            brokers=len(brokers),
            version=self._version(brokers),
            configs=self._broker_configs(brokers),
            allowed=_operations(cluster),
            topics=topics,
            group=self._group(),
            codecs=_codecs(),
            misses=tuple(self._questions.misses),
        )

    def _version(self, brokers: list[int]) -> tuple[int, ...]:
        found = self._ask("its version", lambda: self._admin.get_broker_version_data(brokers[0]).broker_version)
        return tuple(found or ())

    def _broker_configs(self, brokers: list[int]) -> Mapping[str, str] | None:
        what = "the session timeouts it allows"
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

    def _topics(self) -> dict[str, TopicFacts]:
        names = [name + side for name in self._kafka.topics for side in ("", *SIDES)]
        described = self._ask("its topics", lambda: self._admin.describe_topics(names)) or []
        missing = UnknownTopicOrPartitionError.errno
        existing = {topic["name"]: topic for topic in described if topic["error_code"] != missing}
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


# -- Redis


def probe_redis(settings: Settings) -> tuple[RedisFacts, BankFacts | None]:
    """Everything about Redis and the bank in it; the bank is None where it cannot be read."""
    try:
        client = redis_store.connect(settings.redis, timeout_s=settings.connect_timeout_s)
    except StopError as error:
        return RedisFacts(failure=str(error)), None
    client.set_retry(Retry(NoBackoff(), 0))
    try:
        questions = Questions()
        bank = questions.ask(f"bank {settings.bank}", lambda: _bank(BankReader(client, settings.bank)))
        return _server(client, questions), bank
    finally:
        client.close()


def _server(client: Any, questions: Questions) -> RedisFacts:
    begun = time.time()
    clock = questions.ask("its clock", client.time)
    seconds = time.time() - begun
    info = questions.ask("how it is (INFO)", client.info) or {}
    config = questions.ask("its settings (CONFIG GET)", lambda: _configured(client)) or {}
    return RedisFacts(
        seconds=seconds,
        info=info,
        config=config,
        skew_s=None if clock is None else clock[0] + clock[1] / 1e6 - (begun + seconds / 2),
        may_script=questions.ask("whether scripts may run", lambda: _may_script(client)),
        misses=tuple(questions.misses),
    )


def _configured(client: Any) -> dict[str, str]:
    answers = [client.config_get(name) for name in _REDIS_CONFIGS]  # before Redis 7 one at a time
    return {_text(key): _text(value) for answer in answers for key, value in answer.items()}


def _may_script(client: Any) -> bool:
    try:
        client.script_exists("0" * 40)
    except NoPermissionError:
        return False
    return True


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _bank(reader: BankReader) -> BankFacts:
    ids, keys = reader.mask_ids(), reader.keys
    looked_at = [keys.mask(mask_id) for mask_id in ids[:_MASKS_LOOKED_AT]]
    pipe = reader.client.pipeline(transaction=False)
    for key in looked_at:
        pipe.strlen(key)
    lengths = pipe.execute()
    for mask_id in ids:
        pipe.exists(keys.state(mask_id))
    return BankFacts(
        spec=reader.spec_text(),
        masks=len(ids),
        lengths=dict(zip(looked_at, lengths, strict=True)),
        hot=sum(pipe.execute()),
        events=reader.client.xlen(keys.events),
        lease=reader.lease(),
        positions=_positions(reader),
    )


def _positions(reader: BankReader) -> dict[tuple[str, int], StoredPosition]:
    found = {}
    for place, offset in reader.positions().items():
        topic, _, number = place.rpartition(":")
        log_id = reader.client.hget(reader.keys.progress(topic, int(number)), "log") or b""
        found[topic, int(number)] = StoredPosition(offset, log_id.decode(errors="replace"))
    return found
