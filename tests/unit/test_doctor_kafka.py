"""What the doctor says about Kafka, fact by fact: severity, check, and what a person is told."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from daemon.doctor_kafka import SIDES, check_kafka, check_positions
from daemon.findings import Finding, Miss, Severity, worst
from daemon.kafka_facts import GroupFacts, KafkaFacts, MemberFacts, PartitionFacts, StoredPosition, TopicFacts
from daemon.settings import Settings

SETTINGS = Settings(topic=("t",), session_timeout_s=10, max_record_bytes=2**20)
CONFIGS = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "max.message.bytes": str(2**20),
    "min.insync.replicas": "2",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
}
BROKER = {"group.min.session.timeout.ms": "6000", "group.max.session.timeout.ms": "1800000"}
ALL = frozenset({"READ", "WRITE", "CREATE", "DESCRIBE"})


def topic(name: str = "t", **changed: object) -> TopicFacts:
    """A topic with which nothing is wrong."""
    partition = PartitionFacts(0, start=0, end=100, young=0, replicas=3, in_sync=3)
    return replace(TopicFacts(name, "id", (partition,), CONFIGS, ALL), **changed)


def configured(name: str = "t", **configs: str) -> TopicFacts:
    """The same with other settings; `__` stands for a dot."""
    return topic(name, configs=CONFIGS | {key.replace("__", "."): value for key, value in configs.items()})


def partition(**changed: object) -> tuple[PartitionFacts, ...]:
    """The one partition, changed."""
    return (replace(topic().partitions[0], **changed),)


def healthy(*topics: TopicFacts, **changed: object) -> KafkaFacts:
    """A cluster with which nothing is wrong; topics given replace those of their name."""
    known = {name: topic(name) for name in ("t", *("t" + side for side in SIDES))}
    facts = KafkaFacts(
        seconds=0.01,
        brokers=3,
        version=(4, 3),
        configs=BROKER,
        topics=known | {given.name: given for given in topics},
        group=GroupFacts(),
        codecs=frozenset({"crc32c", "gzip", "lz4", "zstd", "snappy"}),
    )
    return replace(facts, **changed)


def found(facts: KafkaFacts, rows: int = 128, **settings: object) -> list[Finding]:
    """Findings that are not ok."""
    findings = check_kafka(SETTINGS.model_copy(update=settings), facts, rows)
    return [finding for finding in findings if finding.severity > Severity.OK]


def without(facts: KafkaFacts, *names: str, **changed: object) -> KafkaFacts:
    """The same without some topics."""
    assert facts.topics is not None
    return replace(facts, topics={n: t for n, t in facts.topics.items() if n not in names}, **changed)


def test_of_a_healthy_cluster_nothing_is_said_but_ok() -> None:
    findings = list(check_kafka(SETTINGS, healthy(), 128))
    assert worst(findings) is Severity.OK
    assert {finding.check for finding in findings} == {
        "kafka.reach",
        "kafka.client",
        "topic.partitions",
        "topic.replicas",
        "topic.message-size",
        "topic.retention",
        "group.session",
        "group.members",
    }
    assert (
        "3 brokers at 127.0.0.1:9092, first answer after 10 ms, speaks the protocol of Kafka 4.3" in findings[0].found
    )


def test_a_kafka_that_is_away_is_the_only_thing_said() -> None:
    (finding,) = found(KafkaFacts(failure="nobody there"))
    assert (finding.severity, finding.check) == (Severity.PROBLEM, "kafka.reach")
    assert "SUPSUP_KAFKA" in finding.advice


STRANGER = MemberFacts("spark", "10.0.0.9", frozenset({"other"}))
MATE = MemberFacts("kafka-python-3.0.12", "10.0.0.8", frozenset({"t"}))


@pytest.mark.parametrize(
    ("facts", "severity", "check", "told", "advice"),
    [
        (healthy(deaf=("inside:9092",)), "problem", "kafka.listeners", "inside:9092", "advertised.listeners"),
        (healthy(brokers=1), "note", "kafka.brokers", "one broker", ""),
        (healthy(codecs=frozenset({"gzip", "lz4", "zstd", "snappy"})), "warning", "kafka.client", "slow", "[crc32c]"),
        (
            healthy(codecs=frozenset({"crc32c", "gzip", "snappy"})),
            "problem",
            "kafka.client",
            "compressed with lz4 or zstd",
            "kafka-python[lz4,zstd]",
        ),
        (healthy(codecs=frozenset({"crc32c", "gzip", "lz4", "zstd"})), "note", "kafka.client", "snappy", "snappy"),
        (healthy(misses=(Miss("its groups", "denied"),)), "note", "kafka.told", "its groups (denied)", "own tools"),
        (
            healthy(topic(failure="TopicAuthorizationFailedError")),
            "problem",
            "topic.rights",
            "t: the broker",
            "DESCRIBE",
        ),
        (
            healthy(topic(allowed=frozenset({"DESCRIBE"}))),
            "problem",
            "topic.rights",
            "t: this user lacks READ",
            "kafka-acls",
        ),
        (
            healthy(topic("t.dlq", allowed=frozenset({"DESCRIBE"}))),
            "problem",
            "topic.rights",
            "t.dlq: this user lacks WRITE",
            "--operation WRITE",
        ),
        (
            healthy(topic(partitions=(*partition(), *partition(number=1)))),
            "note",
            "topic.partitions",
            "t: 2 partitions",
            "key",
        ),
        (healthy(topic(partitions=partition(has_leader=False))), "problem", "topic.replicas", "partition 0", "back"),
        (
            healthy(topic(partitions=partition(in_sync=1))),
            "problem",
            "topic.replicas",
            "1 copy up to date, 2 needed",
            "min.insync",
        ),
        (healthy(topic(partitions=partition(in_sync=2))), "warning", "topic.replicas", "2 of 3 copies", "brokers"),
        (
            healthy(configured(min__insync__replicas="3")),
            "note",
            "topic.replicas",
            "all 3 copies must be up to date",
            "min.insync",
        ),
        (
            healthy(replace(configured(min__insync__replicas="1"), partitions=partition(replicas=1, in_sync=1))),
            "warning",
            "topic.replicas",
            "one copy on 3 brokers",
            "reassign",
        ),
        (
            healthy(configured(max__message__bytes="50000")),
            "warning",
            "topic.message-size",
            "128 rows of float32 are 393 KiB",
            "max.message.bytes=1048576; or publish fewer rows",
        ),
        (
            healthy(configured(max__message__bytes="500000")),
            "note",
            "topic.message-size",
            "refused before the trainer",
            "159 rows",
        ),
        (
            healthy(
                configured(max__message__bytes="2097152"),
                *(configured("t" + s, max__message__bytes="2097152") for s in SIDES),
            ),
            "note",
            "topic.message-size",
            "dead-lettered",
            "max_record_bytes to 2097152",
        ),
        (
            healthy(configured("t.overflow", max__message__bytes="1000")),
            "warning",
            "topic.message-size",
            "t.overflow: takes records up to 1000 bytes, t up to 1 MiB",
            "--entity-name t.overflow --add-config max.message.bytes=1048576",
        ),
        (
            healthy(configured("t.dlq", max__message__bytes="1000")),
            "note",
            "topic.message-size",
            "only the beginning",
            "",
        ),
        (
            healthy(configured(retention__ms="60000")),
            "problem",
            "topic.retention",
            "kept for 1 min, less than the trainer itself may stand still",
            "retention.ms=",
        ),
        (healthy(configured(retention__ms="7200000")), "warning", "topic.retention", "kept for 2 h", "retention.ms="),
        (
            healthy(configured(retention__bytes="1048576")),
            "warning",
            "topic.retention",
            "keeps 1 MiB",
            "retention.bytes=-1",
        ),
        (healthy(configured(retention__bytes=str(2**30))), "note", "topic.retention", "1024 records", "enough while"),
        (
            healthy(configured(cleanup__policy="compact")),
            "problem",
            "topic.compaction",
            "newest record of each key",
            "delete",
        ),
        (
            healthy(configured("t.dlq", cleanup__policy="compact,delete")),
            "problem",
            "topic.compaction",
            "without a key are refused",
            "--entity-name t.dlq --add-config cleanup.policy=delete",
        ),
        (
            healthy(configured(compression__type="snappy"), codecs=frozenset({"crc32c", "gzip", "lz4", "zstd"})),
            "problem",
            "topic.compression",
            "t: stored with snappy",
            "python-snappy",
        ),
        (healthy(topic(log="")), "note", "topic.exists", "gives topics no id", "2.8"),
        (without(healthy(), "t"), "note", "topic.exists", "with one partition and one replica: t", ""),
        (
            without(healthy(), "t", denied=frozenset({"t"})),
            "problem",
            "topic.exists",
            "may not create: t",
            "allow CREATE",
        ),
        (
            without(healthy(), "t", configs=BROKER | {"auto.create.topics.enable": "true", "num.partitions": "6"}),
            "warning",
            "topic.partitions",
            "with 6 partitions",
            "start the trainer first",
        ),
        (without(healthy(), "t.dlq", "t.overflow"), "note", "topic.exists", "one replica: t.dlq, t.overflow", ""),
        (
            healthy(configs=BROKER | {"group.min.session.timeout.ms": "30000"}),
            "problem",
            "group.session",
            "takes 30 s to 30 min",
            "--session-timeout-s",
        ),
        (
            healthy(configs=BROKER | {"group.max.session.timeout.ms": "9000"}),
            "problem",
            "group.session",
            "takes 6 s to 9 s",
            "--session-timeout-s",
        ),
        (
            healthy(group=GroupFacts("Stable", (MATE, STRANGER))),
            "problem",
            "group.members",
            "spark at 10.0.0.9 reads other",
            "another --group",
        ),
        (
            healthy(group=GroupFacts("Stable", (MATE,))),
            "note",
            "group.members",
            "1 member (Stable): kafka-python-3.0.12 at 10.0.0.8",
            "trainers of this bank",
        ),
    ],
)
def test_each_fact_has_its_finding(facts: KafkaFacts, severity: str, check: str, told: str, advice: str) -> None:
    matching = [f for f in found(facts) if f.check == check and f.severity.word == severity and told in f.found]
    assert matching, found(facts)
    assert advice in matching[0].advice
    assert worst(found(facts)).word == severity, "nothing worse comes with it"


@pytest.mark.parametrize("name", ["t", "t.predictions"])
def test_a_missing_topic_that_is_not_to_be_created_is_a_problem(name: str) -> None:
    (finding,) = found(without(healthy(), name), create_topics=False)
    assert (finding.severity, finding.check) == (Severity.PROBLEM, "topic.exists")
    assert f"kafka-topics --create --topic {name} " in finding.advice


def test_a_small_overflow_topic_matters_only_where_batches_go_there() -> None:
    assert found(healthy(configured("t.overflow", max__message__bytes="1000")), over_budget="evict") == []


def test_a_compacted_topic_has_no_retention_to_speak_of() -> None:
    findings = check_kafka(SETTINGS, healthy(configured(cleanup__policy="compact", retention__ms="1000")), 128)
    assert "topic.retention" not in {finding.check for finding in findings}


def test_records_that_are_kept_for_ever_are_well() -> None:
    assert found(healthy(configured(retention__ms="-1"))) == []


def test_a_broker_that_tells_no_settings_gets_no_judgement_of_them() -> None:
    silent = [topic(name, configs=None, allowed=None) for name in ("t", *("t" + side for side in SIDES))]
    facts = healthy(*silent, configs=None, group=GroupFacts("Stable", None))
    assert found(facts) == []
    assert found(replace(facts, topics=None, group=None)) == []


# -- positions


def at(offset: int, log: PartitionFacts, log_id: str = "id") -> list[Finding]:
    facts = healthy(topic(partitions=(log,)))
    return list(check_positions(SETTINGS, facts, {("t", 0): StoredPosition(offset, log_id)}))


LOG = PartitionFacts(0, start=10, end=100, young=50)


@pytest.mark.parametrize(
    ("offset", "severity", "check", "told"),
    [
        (100, "ok", "topic.lag", "t:0: 0 records behind"),
        (60, "ok", "topic.lag", "t:0: 40 records behind"),
        (50, "ok", "topic.lag", "t:0: 50 records behind"),
        (49, "warning", "topic.lag", "51 records behind, the oldest for more than half of the 7 days"),
        (10, "warning", "topic.lag", "90 records behind"),
        (9, "problem", "topic.position", "the log now starts at 10: retention has removed 1 record before"),
        (101, "problem", "topic.position", "the log ends at 100: the broker has lost records"),
    ],
)
def test_a_stored_position_is_held_against_its_log(offset: int, severity: str, check: str, told: str) -> None:
    (finding,) = at(offset, LOG)
    assert (finding.severity.word, finding.check) == (severity, check)
    assert told in finding.found


def test_a_stream_that_stopped_and_was_read_to_its_end_is_not_late() -> None:
    (finding,) = at(100, replace(LOG, young=100))
    assert finding.severity is Severity.OK


@pytest.mark.parametrize(
    ("positions", "severity", "told"),
    [
        ({("t", 0): StoredPosition(5, "another")}, "problem", "not the log this bank has read"),
        ({("gone", 0): StoredPosition(5, "id")}, "note", "not among those to read now"),
    ],
)
def test_a_position_in_another_log_is_told(
    positions: Mapping[tuple[str, int], StoredPosition], severity: str, told: str
) -> None:
    (finding,) = check_positions(SETTINGS, healthy(), positions)
    assert (finding.severity.word, finding.check) == (severity, "topic.position")
    assert told in finding.found


def test_a_position_in_a_topic_that_is_gone_is_a_problem() -> None:
    (finding,) = check_positions(SETTINGS, without(healthy(), "t"), {("t", 0): StoredPosition(5)})
    assert (finding.severity, finding.check) == (Severity.PROBLEM, "topic.position")


def test_where_a_log_is_not_known_its_position_is_not_judged() -> None:
    assert at(5, PartitionFacts(0)) == []
    assert at(5, PartitionFacts(7, start=0, end=1)) == []
    assert list(check_positions(SETTINGS, healthy(topics=None), {("t", 0): StoredPosition(5)})) == []
