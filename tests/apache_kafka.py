"""An Apache Kafka node for the tests, where its start script lies beside the project (`../shared/kafka`)."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

SCRIPT = Path(__file__).resolve().parents[2] / "shared" / "kafka" / "kafka"


@contextmanager
def apache_kafka(directory: Path, **settings: str) -> Iterator[str]:
    """`host:port` of a node with these broker settings (`__` stands for a dot); skips the test where there is none."""
    if not SCRIPT.exists():
        pytest.skip("no ../shared/kafka/kafka to start an Apache Kafka with")
    if shutil.which("java") is None:
        pytest.skip("no java to run an Apache Kafka with")
    port = _free_pair()
    given = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "kafka.log").open("wb") as log:
        node = subprocess.Popen([SCRIPT, "start", directory / "data", str(port), *given], stdout=log, stderr=log)
    try:
        _wait(node, f"127.0.0.1:{port}", directory / "kafka.log")
        yield f"127.0.0.1:{port}"
    finally:
        node.kill()
        node.wait()


def _free_pair() -> int:
    """A free port whose successor, which the controller takes, is free too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first, socket.socket() as second:
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _wait(node: subprocess.Popen[bytes], address: str, log: Path) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert node.poll() is None, log.read_text()[-2000:]
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            KafkaAdminClient(bootstrap_servers=address).close()
        except (OSError, KafkaError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text()[-2000:])
