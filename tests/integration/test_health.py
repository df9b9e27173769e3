"""Health and metrics of a trainer in a process of its own, and what becomes of them when something goes wrong."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from daemon.checkpoint import COUNTERS
from daemon.embedded import EmbeddedRedis
from daemon_process import SMALL, here, trainer
from servers import wait_until
from stage import Stage
from streams import JSON, Outgoing, labelled, publish, unlabelled, visits
from unit.test_http import ask
from unit.test_systemd import Manager

pytestmark = pytest.mark.integration


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def samples(port: int) -> Callable[..., float]:
    """What /metrics says now: a function of name and labels, summed over series."""
    families = list(text_string_to_metric_families(ask(port, "/metrics")[1]))

    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    return total


def readiness(port: int) -> tuple[int, dict[str, str]]:
    """Status and reasons of /readyz."""
    status, body = ask(port, "/readyz")
    return status, json.loads(body)["reasons"]


def answers(port: int) -> bool:
    """Whether anybody listens."""
    try:
        return ask(port, "/livez")[0] == 200
    except OSError:
        return False


def test_what_is_counted_agrees_with_the_bank(stage: Stage, tmp_path: Path, port: int) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    records = [*visits([0, 1, 0], 20), Outgoing(b"garbage"), unlabelled(1), Outgoing(b'{"x": [[1]], "y": [0]}', JSON)]
    publish(stage.kafka, topic, records)
    flags = (*stage.arguments(bank, topic), *SMALL, f"--http-port={port}", "--commit-interval-s=0.2")
    with trainer(*flags, directory=tmp_path):
        assert ask(port, "/livez")[0] == 200
        assert readiness(port) == (200, {})
        wait_until(lambda: stage.totals(bank).get("records") == len(records), "not everything was committed")
        wait_until(lambda: samples(port)("supsup_bank_counts", count="records") == len(records), "not told")
        wait_until(lambda: samples(port)("supsup_lag_records") == 0, "it still lags behind")
        total, stored = samples(port), stage.totals(bank)
        assert {name: total("supsup_bank_counts", count=name) for name in COUNTERS} == {n: stored[n] for n in COUNTERS}
        assert total("supsup_batches_total", result="trained", topic=topic) == stored["batches"] == 60
        assert total("supsup_batches_total", result="answered") == stored["answered"] == 1
        assert total("supsup_samples_total") == stored["samples"]
        assert total("supsup_correct_samples_total") == stored["correct"]
        assert total("supsup_dead_letters_total", reason="malformed") == 1
        assert total("supsup_dead_letters_total", reason="shape") == 1
        assert total("supsup_dead_letters_total") == stored["dead_lettered"] == 2
        assert total("supsup_decisions_total", action="allocate") == stored["allocated"] == total("supsup_masks") == 2
        assert total("supsup_bank_version") == int(stage.redis.get(stage.key(bank, "version")) or 0)
        assert total("supsup_bank_version") == total("supsup_commits_total") == total("supsup_commit_seconds_count")
        assert total("supsup_step_seconds_count") == 61
        assert total("supsup_mask_budget") == 2500
        assert 0.5 < total("supsup_accuracy_ratio") <= 1
        assert total("supsup_lag_records") == 0
        assert (total("supsup_leader"), total("supsup_ready"), total("supsup_build_info")) == (1, 1, 1)
        assert 0 <= total("supsup_heartbeat_age_seconds") < 30
        assert total("process_resident_memory_bytes") > 0
        assert not any("_created" in line for line in ask(port, "/metrics")[1].splitlines())

    # The next process counts from 0 and knows what the bank has counted.
    with trainer(*flags, directory=tmp_path):
        total = samples(port)
        assert total("supsup_batches_total") == 0
        assert {name: total("supsup_bank_counts", count=name) for name in COUNTERS} == {n: stored[n] for n in COUNTERS}
        assert total("supsup_masks") == 2


def test_a_redis_that_takes_no_writes_makes_not_ready_until_it_does(stage: Stage, tmp_path: Path, port: int) -> None:
    topic = stage.new_topic()
    with EmbeddedRedis(tmp_path / "redis") as server, Redis.from_url(server.url) as client:
        flags = [f"--kafka={stage.kafka}", f"--redis={server.url}", f"--topic={topic}", f"--group={topic}", *SMALL]
        with trainer(*flags, f"--http-port={port}", "--commit-interval-s=0.2", directory=tmp_path):
            publish(stage.kafka, topic, [labelled(0, 0)])
            wait_until(lambda: samples(port)("supsup_commits_total") == 1, "no commit")
            client.config_set("maxmemory", 1)
            publish(stage.kafka, topic, [labelled(0, 1)])
            # The lease cannot be renewed either, and may say so first.
            wait_until(lambda: "redis" in readiness(port)[1], "ready with a full Redis")
            status, reasons = readiness(port)
            assert status == 503
            assert set(reasons) <= {"redis", "lease"}
            assert "maxmemory" in reasons["redis"]
            assert ask(port, "/livez")[0] == 200, "it is no reason to restart the trainer"
            assert samples(port)("supsup_retries_total", dependency="redis") >= 1
            client.config_set("maxmemory", 0)
            wait_until(lambda: readiness(port) == (200, {}), "not ready again")
            assert samples(port)("supsup_commits_total") == 2


@pytest.mark.slow
def test_a_redis_that_stopped_makes_not_ready_until_it_goes_on(stage: Stage, tmp_path: Path, port: int) -> None:
    topic = stage.new_topic()
    with EmbeddedRedis(tmp_path / "redis") as server:
        flags = [f"--kafka={stage.kafka}", f"--redis={server.url}", f"--topic={topic}", f"--group={topic}", *SMALL]
        with trainer(*flags, f"--http-port={port}", "--patience-s=300", directory=tmp_path):
            publish(stage.kafka, topic, [labelled(0, 0)])
            wait_until(lambda: samples(port)("supsup_commits_total") == 1, "no commit")
            os.kill(server.pid, signal.SIGSTOP)
            try:
                publish(stage.kafka, topic, [labelled(0, 1)])
                wait_until(lambda: "lease" in readiness(port)[1], "ready without Redis", timeout_s=120)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            wait_until(lambda: readiness(port) == (200, {}), "not ready again", timeout_s=120)


# -- the file and the service manager ----------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify"))
    yield found
    found.socket.close()


def test_a_stopped_process_touches_no_file_and_pats_no_watchdog(stage: Stage, tmp_path: Path, manager: Manager) -> None:
    alive = tmp_path / "alive"
    flags = (*stage.arguments(stage.new_bank(), stage.new_topic()), *SMALL, f"--alive-file={alive}")
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    heard: list[str] = []

    def hears(message: str) -> bool:
        heard.extend(manager.heard())
        return message in heard

    with trainer(*flags, directory=tmp_path, environment=environment) as process:
        wait_until(lambda: hears("READY=1\nSTATUS=leader"), "the manager was not told")
        wait_until(lambda: heard.count("WATCHDOG=1") > 2 or hears("?"), "the watchdog was not patted")
        process.send(signal.SIGSTOP)
        wait_until(lambda: state_of(process.pid) == "T", "it did not stop")
        touched = alive.stat().st_mtime
        assert time.time() - touched < 30
        manager.heard()
        time.sleep(2)
        assert manager.heard() == []
        assert alive.stat().st_mtime == touched, "an old file is what a probe sees"
        heard.clear()
        process.send(signal.SIGCONT)
        wait_until(lambda: hears("WATCHDOG=1"), "the watchdog is not patted again")
        wait_until(lambda: alive.stat().st_mtime > touched, "the file is not touched again")
        process.stop()
    hears("")
    assert [message for message in heard if message != "WATCHDOG=1"][-1] == "STOPPING=1\nSTATUS=stopping"


def state_of(pid: int) -> str:
    """What the kernel says of a process: R, S, T (stopped), ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- the token ---------------------------------------------------------------------------------------------------------


def test_off_loopback_a_trainer_answers_those_who_bring_the_token(stage: Stage, tmp_path: Path, port: int) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery\n")
    flags = (*stage.arguments(stage.new_bank(), stage.new_topic()), *SMALL, "--http-host=0.0.0.0")
    with trainer(*flags, f"--http-port={port}", f"--http-token-file={token}", directory=tmp_path) as process:
        for path in ("/livez", "/readyz", "/metrics"):
            assert ask(port, path)[0] == 401
            assert ask(port, path, authorization="Bearer wrong")[0] == 401
            assert ask(port, path, authorization="Bearer correct-horse-battery")[0] == 200
        assert process.wait_for("http.started")["port"] == port
        assert "correct-horse" not in process.stderr


def test_off_loopback_a_trainer_without_a_token_does_not_start(stage: Stage, port: int) -> None:
    ended = here("start", *stage.arguments("any", "any"), "--http-host=0.0.0.0", f"--http-port={port}")
    assert ended.code == 2
    assert "needs a token: set --http-token-file (SUPSUP_HTTP_TOKEN_FILE)" in ended.stderr


def test_a_port_that_is_taken_ends_with_2_and_says_what_to_do(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        ended = here("start", *stage.arguments("any", "any"), f"--http-port={taken}")
    assert ended.code == 2
    assert f"cannot listen on 127.0.0.1 port {taken}" in ended.stderr
    assert "--http-port (SUPSUP_HTTP_PORT)" in ended.stderr


def test_the_token_is_redacted_wherever_settings_are_shown() -> None:
    given = {"SUPSUP_HTTP_TOKEN": "sesame-open"}
    for form in ([], ["--json"]):
        shown = here("config", "show", *form, **given)
        assert shown.code == 0
        assert "sesame" not in shown.stdout + shown.stderr
        assert "environment SUPSUP_HTTP_TOKEN" in shown.stdout
    refused = here("start", "--http-port=-1", **given)
    assert refused.code == 2
    assert "sesame" not in refused.stderr


def test_a_trainer_that_is_starting_says_so(stage: Stage, tmp_path: Path, port: int) -> None:
    """A Kafka that accepts and says nothing keeps the start waiting."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        flags = [f"--kafka={address}", f"--redis={stage.redis_url}", "--connect-timeout-s=20", *SMALL]
        with trainer(*flags, f"--http-port={port}", directory=tmp_path, ready=False) as process:
            wait_until(lambda: answers(port), "nobody answers", timeout_s=60)
            assert readiness(port) == (503, {"starting": "servers and bank are not all there yet"})
            process.kill()
