"""What `doctor` says about topics: pure judgement over facts."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from daemon.findings import Finding, duration, note, ok, problem, several, size, warning
from daemon.kafka_facts import KafkaFacts, TopicFacts
from daemon.settings import Settings
from daemon.side_topics import DEAD_LETTER, OVERFLOW, PREDICTIONS

_COMFORTABLE_S: Final = 86_400.0  # a retention of a day lets somebody sleep through an outage
_ALTER: Final = "kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {change}"


def check_source(settings: Settings, facts: KafkaFacts, name: str, rows: int) -> Iterator[Finding]:
    """A topic that is read; a usual record has `rows` rows."""
    topic = (facts.topics or {}).get(name)
    if topic is None:
        yield _missing(settings, facts, [name], "nothing can be read")
        yield from _made_by_others(facts, name)
        return
    if topic.failure:
        yield _undescribed(topic)
        return
    if not topic.log:
        yield note(
            "topic.exists",
            f"{name}: this broker gives topics no id: one that is deleted and made anew is not recognised",
            "Kafka 2.8 or newer; until then start a new bank (--bank) with a new topic",
        )
    yield from _denied(topic, {"READ", "DESCRIBE"})
    yield from _partitions(topic)
    yield from _replicas(facts, topic)
    if topic.configs:
        yield from _message_size(settings, topic, rows)
        yield from _retention(settings, topic, topic.configs)
        yield from _compaction(topic, topic.configs, "all but the newest record of each key are deleted, read or not")
        if topic.configs.get("compression.type") == "snappy" and "snappy" not in facts.codecs:
            yield problem(
                "topic.compression",
                f"{name}: stored with snappy, which is not installed here",
                "pip install python-snappy",
            )


def check_sides(settings: Settings, facts: KafkaFacts, source: str, sides: Iterable[str]) -> Iterator[Finding]:
    """The topics that are written, beside their source."""
    topics = facts.topics or {}
    missing = [name for name in sides if name not in topics]
    if missing:
        yield _missing(settings, facts, missing, "the first record for it stops the trainer")
    for name in sides:
        topic = topics.get(name)
        if topic is None:
            continue
        if topic.failure:
            yield _undescribed(topic)
            continue
        # Answers are read back, to see which are there already.
        yield from _denied(topic, {"WRITE", "DESCRIBE"} | ({"READ"} if name.endswith(PREDICTIONS) else set()))
        yield from _replicas(facts, topic)
        if topic.configs:
            yield from _compaction(topic, topic.configs, "records without a key are refused, and the trainer stops")
        if source in topics:
            yield from _side_size(settings, topic, topics[source])


def _side_size(settings: Settings, topic: TopicFacts, source: TopicFacts) -> Iterator[Finding]:
    limit, given = topic.number("max.message.bytes"), source.number("max.message.bytes")
    if limit is None or given is None or limit >= given:
        return
    smaller = f"{topic.name}: takes records up to {size(limit)}, {source.name} up to {size(given)}"
    advice = _ALTER.format(topic=topic.name, change=f"max.message.bytes={given}")
    if topic.name.endswith(OVERFLOW) and settings.over_budget == "overflow":
        yield warning("topic.message-size", f"{smaller}: a larger batch without room stops the trainer", advice)
    elif topic.name.endswith(DEAD_LETTER):
        yield note("topic.message-size", f"{smaller}: of a larger dead letter only the beginning is kept", advice)


def _missing(settings: Settings, facts: KafkaFacts, names: list[str], effect: str) -> Finding:
    shown = ", ".join(names)
    create = f"kafka-topics --create --topic {names[0]} --partitions 1"
    if not settings.create_topics:
        return problem("topic.exists", f"missing, and not to be created: {shown}: {effect}", create)
    if denied := [name for name in names if name in facts.denied]:
        return problem(
            "topic.exists", f"missing, and this user may not create: {', '.join(denied)}", f"{create}; or allow CREATE"
        )
    return note("topic.exists", f"missing, the trainer creates with one partition and one replica: {shown}")


def _made_by_others(facts: KafkaFacts, name: str) -> Iterator[Finding]:
    configs = facts.configs or {}
    count = int(configs.get("num.partitions", 1))
    if configs.get("auto.create.topics.enable") == "true" and count > 1:
        yield warning(
            "topic.partitions",
            f"{name}: a producer that comes before the trainer makes the broker create it with {count} partitions",
            f"start the trainer first, or kafka-topics --create --topic {name} --partitions 1",
        )


def _undescribed(topic: TopicFacts) -> Finding:
    return problem(
        "topic.rights",
        f"{topic.name}: the broker does not describe it ({topic.failure})",
        "allow DESCRIBE, READ (its side topics: WRITE, .predictions: both) to this user, or bring its brokers back",
    )


def _denied(topic: TopicFacts, needed: set[str]) -> Iterator[Finding]:
    if topic.allowed is not None and (lacking := sorted(needed - topic.allowed)):
        operations = " and ".join(lacking)
        yield problem(
            "topic.rights",
            f"{topic.name}: this user lacks {operations}",
            f"kafka-acls --add --topic {topic.name} --operation {' --operation '.join(lacking)} --allow-principal ...",
        )


def _partitions(topic: TopicFacts) -> Iterator[Finding]:
    count = len(topic.partitions)
    if count == 1:
        yield ok("topic.partitions", f"{topic.name}: 1 partition, so all of it is in order")
    else:
        yield note(
            "topic.partitions",
            f"{topic.name}: {count} partitions; each is in order, records of different ones by their timestamps",
            "give each stream a key, or use one partition",
        )


def _replicas(facts: KafkaFacts, topic: TopicFacts) -> Iterator[Finding]:
    dead = [str(p.number) for p in topic.partitions if not p.has_leader]
    if dead:
        yield problem(
            "topic.replicas", f"{topic.name}: no broker serves partition {', '.join(dead)}", "bring its brokers back"
        )
    copies = min((p.replicas for p in topic.partitions), default=1)
    current = min((p.in_sync for p in topic.partitions), default=1)
    needed = topic.number("min.insync.replicas") or 1
    if current < needed:
        yield problem(
            "topic.replicas",
            f"{topic.name}: {several(current, 'copy')} up to date, {needed} needed: it takes no record now",
            "bring the other brokers back, or lower min.insync.replicas",
        )
    elif current < copies:
        yield warning(
            "topic.replicas",
            f"{topic.name}: {current} of {copies} copies are up to date",
            "look after the other brokers",
        )
    elif copies == 1 and facts.brokers > 1:
        yield warning(
            "topic.replicas",
            f"{topic.name}: one copy on {facts.brokers} brokers: it is lost, or away, with its broker",
            "kafka-reassign-partitions, to three replicas",
        )
    elif copies == 1:
        return  # `kafka.brokers` says it once
    elif needed == copies:
        yield note(
            "topic.replicas",
            f"{topic.name}: all {copies} copies must be up to date: it takes no record while one broker is down",
            "lower min.insync.replicas by one",
        )
    else:
        yield ok("topic.replicas", f"{topic.name}: {copies} copies, all up to date, {needed} needed")


def _message_size(settings: Settings, topic: TopicFacts, rows: int) -> Iterator[Finding]:
    limit = topic.number("max.message.bytes")
    if limit is None:
        return
    row = math.prod(settings.input_shape) * 4 + 8  # float32 inputs and an int64 label
    found = f"{topic.name}: takes records up to {size(limit)}"
    raise_it = _ALTER.format(topic=topic.name, change=f"max.message.bytes={settings.max_record_bytes}")
    if min(limit, settings.max_record_bytes) < rows * row:
        yield warning(
            "topic.message-size",
            f"{found}, the trainer up to {size(settings.max_record_bytes)}; {rows} rows of float32 are "
            f"{size(rows * row)}, uncompressed",
            f"{raise_it}; or publish fewer rows a record",
        )
    elif limit < settings.max_record_bytes:
        yield note(
            "topic.message-size",
            f"{found}: larger ones are refused before the trainer (max_record_bytes "
            f"{size(settings.max_record_bytes)}) sees them",
            f"fine while {limit // row} rows of float32 a record are enough; else {raise_it}",
        )
    elif limit > settings.max_record_bytes:
        yield note(
            "topic.message-size",
            f"{found}; those above {size(settings.max_record_bytes)} (max_record_bytes) are dead-lettered",
            f"fine if that is meant; else raise max_record_bytes to {limit}",
        )
    else:
        yield ok("topic.message-size", f"{found}, as the trainer does")


def _retention(settings: Settings, topic: TopicFacts, configs: Mapping[str, str]) -> Iterator[Finding]:
    milliseconds, most = topic.number("retention.ms"), topic.number("retention.bytes")
    if "delete" not in configs.get("cleanup.policy", "delete") or milliseconds is None:
        return
    longer = _ALTER.format(topic=topic.name, change="retention.ms=604800000")
    keeps = milliseconds / 1000
    if milliseconds < 0:
        yield ok("topic.retention", f"{topic.name}: records are kept, however old")
    elif keeps < settings.patience_s + settings.max_poll_interval_s:
        yield problem(
            "topic.retention",
            f"{topic.name}: records are kept for {duration(keeps)}, less than the trainer itself may stand still "
            "(patience_s and max_poll_interval_s): what it has not read by then is lost",
            longer,
        )
    elif keeps < _COMFORTABLE_S:
        yield warning(
            "topic.retention",
            f"{topic.name}: records are kept for {duration(keeps)}; a longer outage loses records",
            longer,
        )
    else:
        yield ok("topic.retention", f"{topic.name}: records are kept for {duration(keeps)}: so long may an outage last")
    if most is not None and most >= 0:
        yield _bounded(settings, topic.name, most)


def _bounded(settings: Settings, name: str, most: int) -> Finding:
    records = most // settings.max_record_bytes
    found = (
        f"{name}: each partition keeps {size(most)} at most, {several(records, 'record')} of the largest size: "
        "beyond them the oldest go, read or not"
    )
    advice = _ALTER.format(topic=name, change="retention.bytes=-1")
    if most < 64 * settings.max_record_bytes:
        return warning("topic.retention", found, advice)
    return note("topic.retention", found, f"enough while an outage brings less; else {advice}")


def _compaction(topic: TopicFacts, configs: Mapping[str, str], effect: str) -> Iterator[Finding]:
    if "compact" in configs.get("cleanup.policy", ""):
        yield problem(
            "topic.compaction",
            f"{topic.name}: cleanup.policy is {configs['cleanup.policy']}: {effect}",
            _ALTER.format(topic=topic.name, change="cleanup.policy=delete"),
        )
