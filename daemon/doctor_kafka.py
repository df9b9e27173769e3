"""What `doctor` says about brokers, the group and stored positions: pure judgement over facts."""

from collections.abc import Iterator, Mapping
from typing import Final

from daemon.doctor_topics import check_sides, check_source
from daemon.findings import Finding, duration, note, ok, problem, several, warning
from daemon.kafka_facts import KafkaFacts, PartitionFacts, StoredPosition
from daemon.settings import Settings
from daemon.side_topics import DEAD_LETTER, OVERFLOW, PREDICTIONS

SIDES: Final = (DEAD_LETTER, OVERFLOW, PREDICTIONS)


def check_kafka(settings: Settings, facts: KafkaFacts, rows: int) -> Iterator[Finding]:
    """Everything about Kafka but the stored positions; `rows` is the size of a batch as the user expects it."""
    if facts.failure:
        yield problem("kafka.reach", facts.failure, "mend --kafka (SUPSUP_KAFKA) or the server, and ask again")
        return
    version = ".".join(map(str, facts.version))
    yield ok(
        "kafka.reach",
        f"{several(facts.brokers, 'broker')} at {','.join(settings.kafka)}, "
        f"first answer after {duration(facts.seconds)}"
        + (f", speaks the protocol of Kafka {version}" if version else ""),
    )
    if facts.deaf:
        yield problem(
            "kafka.listeners",
            f"brokers say they are at {', '.join(facts.deaf)}, where nobody answers from here",
            "mend advertised.listeners of these brokers, or the names and the firewall of this machine",
        )
    if facts.brokers == 1:
        yield note(
            "kafka.brokers", "one broker: while it is away nothing is read, and its topics are lost with its disk"
        )
    yield from _client(facts)
    for miss in facts.misses:
        yield note("kafka.told", f"this broker does not tell {miss.what} ({miss.why})", "look there by its own tools")
    if facts.topics is not None:
        for name in settings.topic:
            yield from check_source(settings, facts, name, rows)
            yield from check_sides(settings, facts, name, [name + side for side in SIDES])
    yield from _group(settings, facts)


def _client(facts: KafkaFacts) -> Iterator[Finding]:
    if "crc32c" not in facts.codecs:
        yield warning("kafka.client", "checksums are computed in Python: slow", "pip install 'kafka-python[crc32c]'")
    if lacking := sorted({"gzip", "lz4", "zstd"} - facts.codecs):
        yield problem(
            "kafka.client",
            f"records compressed with {' or '.join(lacking)} cannot be read here",
            f"pip install 'kafka-python[{','.join(lacking)}]'",
        )
    if not {"crc32c", "gzip", "lz4", "zstd"} - facts.codecs:
        yield ok("kafka.client", "reads gzip, lz4 and zstd" + (" and snappy" if "snappy" in facts.codecs else ""))
    if "snappy" not in facts.codecs:
        yield note(
            "kafka.client",
            "records compressed with snappy cannot be read here",
            "pip install python-snappy if you need it",
        )


# -- the group


def _group(settings: Settings, facts: KafkaFacts) -> Iterator[Finding]:
    name = settings.group or f"supsup-{settings.bank}"
    yield from _session(settings, facts)
    if facts.group is None or facts.group.members is None:
        return  # said among the misses
    if not facts.group.members:
        what = "nobody is in it" if facts.group.state else "the broker lists no such group"
        yield ok("group.members", f"group {name}: {what}")
        return
    strangers = [m for m in facts.group.members if m.topics and not m.topics <= set(settings.topic)]
    if strangers:
        shown = "; ".join(f"{m.client} at {m.host} reads {', '.join(sorted(m.topics))}" for m in strangers)
        yield problem(
            "group.members",
            f"group {name}: others are in it, and take partitions from the trainer: {shown}",
            "choose another --group, or another one for them",
        )
    else:
        shown = "; ".join(f"{m.client} at {m.host}" for m in facts.group.members)
        yield note(
            "group.members",
            f"group {name}: {several(len(facts.group.members), 'member')} ({facts.group.state}): {shown}",
            "fine if these are trainers of this bank",
        )


def _session(settings: Settings, facts: KafkaFacts) -> Iterator[Finding]:
    limits = facts.configs or {}
    least, most = (limits.get(f"group.{end}.session.timeout.ms") for end in ("min", "max"))
    if least is None or most is None:
        return
    allowed = f"{duration(int(least) / 1000)} to {duration(int(most) / 1000)}"
    if int(least) <= settings.session_timeout_s * 1000 <= int(most):
        yield ok("group.session", f"session_timeout_s {settings.session_timeout_s:g} lies within {allowed}")
    else:
        yield problem(
            "group.session",
            f"session_timeout_s {settings.session_timeout_s:g} is not allowed: the broker takes {allowed}",
            "set --session-timeout-s within these, or group.min.session.timeout.ms of the brokers",
        )


# -- positions


def check_positions(
    settings: Settings, facts: KafkaFacts, positions: Mapping[tuple[str, int], StoredPosition]
) -> Iterator[Finding]:
    """Stored positions against the logs; both servers must have answered."""
    if facts.topics is None:
        return  # said among the misses
    for (name, number), position in sorted(positions.items()):
        topic = facts.topics.get(name)
        where = f"{name}:{number}"
        if name not in settings.topic:
            yield note(
                "topic.position",
                f"{where}: read up to offset {position.offset}, but the topic is not among those to read now",
                "add --topic if that is not meant",
            )
        elif topic is None:
            yield problem(
                "topic.position",
                f"{where}: read up to offset {position.offset}, but the topic does not exist: deleted, or elsewhere",
                "use the right cluster, or start a new bank (--bank)",
            )
        elif position.log and topic.log and position.log != topic.log:
            yield problem(
                "topic.position",
                f"{where}: not the log this bank has read: the topic was deleted and made anew, or another cluster",
                "use the right cluster, or read the new log from its start: delete the progress key that `start` names",
            )
        else:
            (partition,) = [p for p in topic.partitions if p.number == number] or [PartitionFacts(number)]
            yield from _ground(where, position.offset, partition, topic.number("retention.ms"))


def _ground(where: str, offset: int, log: PartitionFacts, retention_ms: int | None) -> Iterator[Finding]:
    if log.start is None or log.end is None:
        return
    if offset < log.start:
        yield problem(
            "topic.position",
            f"{where}: read up to offset {offset}, but the log now starts at {log.start}: "
            f"retention has removed {several(log.start - offset, 'record')} before their training",
            "bring them back, or go on without them as `start` explains (exit code 66)",
        )
    elif offset > log.end:
        yield problem(
            "topic.position",
            f"{where}: read up to offset {offset}, but the log ends at {log.end}: the broker has lost records",
            "use the right cluster; if it is, start a new bank (--bank)",
        )
    elif offset < log.end and log.young is not None and offset < log.young and retention_ms:
        yield warning(
            "topic.lag",
            f"{where}: {several(log.end - offset, 'record')} behind, the oldest for more than half of the "
            f"{duration(retention_ms / 1000)} that records are kept",
            "run the trainer before they are deleted, or raise retention.ms now",
        )
    else:
        yield ok("topic.lag", f"{where}: {several(log.end - offset, 'record')} behind")
