"""Names of topics and banks on the shared servers, and a look at what a bank holds."""

import os
import uuid
from dataclasses import dataclass, field

from redis import Redis

from servers import create_topic, delete_topics

# Joining a group takes the embedded broker two thirds of the session timeout; Apache Kafka takes none under 6 s.
MEMBER = [] if os.environ.get("SUPSUP_TEST_KAFKA") else ["--no-static-member"]  # which takes the embedded one 6 s
SESSION_S = 10.0 if os.environ.get("SUPSUP_TEST_KAFKA") else 1.0


@dataclass
class Stage:
    """The shared servers, and everything that was put on them under names of its own.

    Attributes:
        kafka: `host:port`.
        redis_url: URL.
        redis: a client that gives bytes.
    """

    kafka: str
    redis_url: str
    redis: Redis
    _topics: list[str] = field(default_factory=list)
    _banks: list[str] = field(default_factory=list)

    def new_topic(self, *, partitions: int = 1) -> str:
        """A new, empty topic."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        create_topic(self.kafka, name, partitions=partitions)
        self._topics.append(name)
        return name

    def new_bank(self) -> str:
        """A name that no bank has."""
        self._banks.append(f"test-{uuid.uuid4().hex[:12]}")
        return self._banks[-1]

    def arguments(self, bank: str, *topics: str) -> list[str]:
        """Flags of a trainer of this bank; every bank has a consumer group of its own."""
        chosen = [f"--topic={topic}" for topic in topics]
        servers = [f"--kafka={self.kafka}", f"--redis={self.redis_url}", f"--session-timeout-s={SESSION_S:g}"]
        return [*servers, *MEMBER, f"--bank={bank}", f"--group={bank}", *chosen]

    def key(self, bank: str, rest: str) -> str:
        """A key of a bank, spelt out here on purpose: what is stored is a promise to other programs."""
        return f"supsup:{{{bank}}}:{rest}"

    def hash(self, bank: str, rest: str) -> dict[str, str]:
        """A hash of a bank as text; empty where there is none."""
        return {name.decode(): value.decode() for name, value in self.redis.hgetall(self.key(bank, rest)).items()}

    def totals(self, bank: str) -> dict[str, int]:
        """The counters of a bank."""
        return {name: int(value) for name, value in self.hash(bank, "totals").items()}

    def contents(self, bank: str) -> dict[str, object]:
        """Every byte of a bank that its stream determines: spec, masks, stats, states, totals, progress.

        Version, index, lease and events tell of commits and processes, so they differ between two runs.
        """
        prefix = self.key(bank, "")
        by_process = {prefix + name for name in ("version", "index", "lease", "events")}
        names = sorted(key.decode() for key in self.redis.scan_iter(match=f"{prefix}*", count=1000))
        return {name.removeprefix(prefix): self._value(name) for name in names if name not in by_process}

    def _value(self, key: str) -> object:
        if self.redis.type(key) != b"hash":
            return self.redis.get(key)
        fields = self.redis.hgetall(key)
        if ":progress:" in key:
            fields.pop(b"answers", None)  # where the answers lie in a topic that other banks may write to
        return fields

    def clear(self) -> None:
        """Take away what was put there, and nothing else."""
        for topic in self._topics:
            delete_topics(self.kafka, topic)
        for bank in self._banks:
            if keys := list(self.redis.scan_iter(match=self.key(bank, "*"), count=1000)):
                self.redis.delete(*keys)
