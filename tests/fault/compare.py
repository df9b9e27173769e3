"""What must be true at the end of a round: the bank's bytes, its counters, and what went to the side topics."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from redis import Redis

from fault.topics import Published

Contents = dict[str, Any]


def contents(redis: Redis, bank: str) -> Contents:
    """Every byte of a bank that its stream determines, and its decisions; the rest tells of commits and processes."""
    prefix = f"supsup:{{{bank}}}:"
    by_process = {prefix + name for name in ("version", "index", "lease", "events")}
    names = sorted(key.decode() for key in redis.scan_iter(match=f"{prefix}*", count=1000))
    found = {name.removeprefix(prefix): _value(redis, name) for name in names if name not in by_process}
    return found | {"decisions": _decisions(redis, prefix + "events")}


def _decisions(redis: Redis, key: str) -> list[tuple[bytes, ...]]:
    """What the event stream tells of decisions, each of which must be there once; commits differ from run to run."""
    told = (b"topic", b"partition", b"offset", b"type", b"why", b"mask", b"previous", b"evicted", b"candidates")
    return [tuple(fields[f] for f in told) for _, fields in redis.xrange(key) if fields[b"type"] != b"commit"]


def _value(redis: Redis, key: str) -> Any:
    if redis.type(key) != b"hash":
        return redis.get(key)
    fields = redis.hgetall(key)
    if ":progress:" in key:
        fields.pop(b"answers", None)  # where the answers lie in a topic that every round writes to
    return fields


def totals(redis: Redis, bank: str) -> dict[str, int]:
    """The counters of a bank."""
    return {name.decode(): int(value) for name, value in redis.hgetall(f"supsup:{{{bank}}}:totals").items()}


def differences(found: Contents, expected: Contents) -> list[str]:
    """One line per key that is not what it should be."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: nothing of the kind in an undisturbed run" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if found[name] != expected[name]:
            lines.append(f"{name}: {_shown(found[name], expected[name])}")
    return lines


def _shown(found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list):
        return f"{len(found)} instead of {len(expected)}; {next((x for x in found if x not in expected), 'no other')}"
    if isinstance(found, dict) and isinstance(expected, dict):
        fields = sorted(field for field in found.keys() | expected.keys() if found.get(field) != expected.get(field))
        return "; ".join(f"{f!r} is {found.get(f)!r:.80}, not {expected.get(f)!r:.80}" for f in fields[:5])
    return "other bytes"


def miscounted(counts: dict[str, int], stream: Published) -> list[str]:
    """One line per counter that does not add up."""
    parts = {name: counts.get(name, 0) for name in ("batches", "answered", "overflowed", "dead_lettered")}
    lines = []
    if counts.get("records") != stream.length:
        lines.append(f"records: {counts.get('records')} counted, {stream.length} in the log")
    if sum(parts.values()) != stream.length:
        lines.append(f"records by what became of them: {parts} of {stream.length}")
    if parts["dead_lettered"] != len(stream.poison):
        lines.append(f"dead_lettered: {parts['dead_lettered']} counted, {len(stream.poison)} in the log")
    return lines


class SideReader:
    """Reads a stream's side topics, each record once, over all rounds: every bank's records lie in them."""

    def __init__(self, kafka: str, topics: Iterable[str]) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=kafka, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
        )
        self._places = [TopicPartition(topic, 0) for topic in topics]
        self._consumer.assign(self._places)
        for place in self._places:
            self._consumer.seek(place, 0)
        self._found: dict[tuple[str, str], list[tuple[int, int]]] = {}  # (topic, bank) -> source places

    def missing(self, topic: str, bank: str, wanted: frozenset[tuple[int, int]], patience: int = 20) -> list[str]:
        """One line per source place that is not in the side topic under this bank, after so many polls."""
        for _ in range(patience):
            if wanted <= set(self._found.get((topic, bank), ())):
                break
            self._read()
        lacking = sorted(wanted - set(self._found.get((topic, bank), ())))
        return [f"{topic}: nothing of partition {number} offset {offset}" for number, offset in lacking]

    def repeated(self, topic: str, bank: str) -> list[str]:
        """One line per source place that is there more than once, or behind a later one; after `missing`."""
        places = self._found.get((topic, bank), [])
        lines = [
            f"{topic}: partition {number} offset {offset} is there {count} times"
            for (number, offset), count in sorted(Counter(places).items())
            if count > 1
        ]
        for number in sorted({number for number, _ in places}):
            offsets = [offset for which, offset in places if which == number]
            if offsets != sorted(offsets):
                lines.append(f"{topic}: partition {number} out of order: {offsets}")
        return lines

    def _read(self) -> None:
        for place, raws in self._consumer.poll(timeout_ms=500, max_records=5000).items():
            for raw in raws:
                headers = dict(raw.headers)
                source = int(headers["source-partition"]), int(headers["source-offset"])
                self._found.setdefault((place.topic, headers["bank"].decode()), []).append(source)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()
