"""The servers under fault: a Redis and a broker, each behind a proxy, that can be killed, frozen and started again."""

import os
import shutil
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from redis import Redis

from daemon.embedded import EmbeddedBroker, EmbeddedRedis, Server
from fault.proxy import Proxy

BrokerKind = Literal["embedded", "apache"]
APACHE: Final = Path(__file__).resolve().parents[3] / "shared" / "kafka" / "kafka"

_HOST: Final = "127.0.0.1"
_SHORTEST_SESSION_MS: Final = 1000


def apache_is_here() -> bool:
    """Whether an Apache Kafka and a Java to run it are at hand."""
    java = Path(os.environ["JAVA_HOME"], "bin", "java") if "JAVA_HOME" in os.environ else None
    return os.access(APACHE, os.X_OK) and bool(java.exists() if java else shutil.which("java"))


class FaultRedis(EmbeddedRedis):
    """A Redis whose append-only file is commands from its first byte to its last, so that its tail can be cut."""

    def _command(self) -> list[str]:
        plain = {"aof-use-rdb-preamble": "no", "auto-aof-rewrite-percentage": "0"}
        return [*super()._command(), *(part for name, value in plain.items() for part in (f"--{name}", value))]

    def cut_tail(self, size: int, base: int) -> int:
        """Take so many bytes off the end of the file, of the server while it is down; returns how many were there.

        The first `base` bytes are a snapshot that was on the disk before the file took its name: no crash cuts that.
        """
        (file,) = self._directory.glob("appendonly*")
        length = file.stat().st_size
        cut = min(size, max(0, length - base))
        with file.open("r+b") as opened:
            opened.truncate(length - cut)
        return cut


class FaultBroker(EmbeddedBroker):
    """The embedded broker, whose clients are sent through a proxy."""

    def __init__(self, state_dir: Path, *, port: int, advertised: int) -> None:
        super().__init__(state_dir, port=port)
        self._advertised = advertised

    def _command(self) -> list[str]:
        url = f"--advertised-listener-url=tcp://{_HOST}:{self._advertised}"
        return [url if part.startswith("--advertised") else part for part in super()._command()]


class ApacheBroker(Server):
    """An Apache Kafka, whose clients are sent through a proxy; started again, it has its log."""

    name = "Apache Kafka"
    subdirectory = "apache"

    def __init__(self, state_dir: Path, *, port: int, advertised: int) -> None:
        super().__init__(state_dir, port=port, start_timeout_s=120.0)
        self._advertised = advertised

    def _command(self) -> list[str]:
        java = [f"JAVA_HOME={os.environ['JAVA_HOME']}"] if "JAVA_HOME" in os.environ else []
        settings = {
            "advertised.listeners": f"PLAINTEXT://{_HOST}:{self._advertised}",
            "group.min.session.timeout.ms": _SHORTEST_SESSION_MS,
            "log.cleaner.enable": "false",
            "log.retention.ms": -1,  # the streams' timestamps lie in the past
        }
        pairs = [f"{name}={value}" for name, value in settings.items()]
        heap = "KAFKA_HEAP_OPTS=-Xms128m -Xmx256m"
        return ["/usr/bin/env", heap, *java, str(APACHE), "start", str(self._directory), str(self.port), *pairs]

    def _answers(self) -> bool:
        try:
            socket.create_connection((_HOST, self.port), timeout=1.0).close()
            admin = KafkaAdminClient(bootstrap_servers=self.address, request_timeout_ms=5000)
        except (OSError, KafkaError):
            return False
        try:
            admin.list_topics()
        except KafkaError:
            return False
        else:
            return True
        finally:
            admin.close()


class Servers:
    """A Redis and a broker behind proxies, as a context manager.

    Attributes:
        kind: of broker.
        redis: a client that goes straight to Redis and gives bytes.
        redis_proxy: what the trainers' connections to Redis go through.
        kafka_proxy: what everybody's connections to the broker go through.
    """

    def __init__(self, directory: Path, kind: BrokerKind) -> None:
        self.kind = kind
        self._directory = directory
        self._stack = ExitStack()
        self.redis_proxy = Proxy()
        self.kafka_proxy = Proxy()
        self.redis_server = FaultRedis(directory / "redis")
        self.broker: FaultBroker | ApacheBroker
        self.redis: Redis

    @property
    def kafka(self) -> str:
        """`host:port` of the broker's proxy: the broker sends clients there anyway."""
        return f"{_HOST}:{self.kafka_proxy.port}"

    @property
    def redis_url(self) -> str:
        """URL of Redis' proxy."""
        return f"redis://{_HOST}:{self.redis_proxy.port}/0"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.redis_proxy)
            stack.enter_context(self.kafka_proxy)
            port = two_free_ports()
            self.kafka_proxy.target = port
            make = FaultBroker if self.kind == "embedded" else ApacheBroker
            self.broker = make(self._directory / "broker", port=port, advertised=self.kafka_proxy.port)
            stack.callback(self.broker.stop)
            self.broker.start()
            self.redis_server = FaultRedis(self._directory / "redis", port=two_free_ports())
            stack.callback(self.redis_server.stop)
            self.redis_server.start()
            self.redis_proxy.target = self.redis_server.port
            self.redis = Redis.from_url(self.redis_server.url, decode_responses=False)
            stack.callback(self.redis.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def kill(server: Server) -> None:
    """Kill -9, and wait until it is gone; its guard goes with it."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


def two_free_ports() -> int:
    """A port that is free together with the one above it, which Apache Kafka's controller takes."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((_HOST, 0))
            port = int(first.getsockname()[1])
            try:
                second.bind((_HOST, port + 1))
            except (OSError, OverflowError):
                continue
        return port
