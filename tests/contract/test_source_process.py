"""What `SourceProcess` promises beyond `KafkaSource`: the same records at arm's length, and what if either end dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from contract.test_kafka_source import Reader, two_partitions, values  # noqa: F401 - a fixture
from daemon.errors import UnavailableError
from daemon.kafka_client import kafka_settings
from daemon.kafka_source import KafkaSource
from daemon.records import Partition, Position
from daemon.settings import Settings
from daemon.source_process import CALL_RECORDS, SourceProcess
from daemon_process import clean_environment
from servers import wait_until
from stage import SESSION_S
from streams import Outgoing, publish

pytestmark = pytest.mark.integration


def settings(kafka: str, topic: str, **changed: object) -> Settings:
    return Settings(**({"kafka": (kafka,), "topic": (topic,), "bank": topic, "session_timeout_s": SESSION_S} | changed))


@contextmanager
def process_of(kafka: str, topic: str, **changed: object) -> Iterator[Reader]:
    """A reader whose source is a process."""
    source = SourceProcess(settings(kafka, topic, static_member=False, **changed))
    try:
        source.open()
        yield Reader(source)
    finally:
        source.close()


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_it_hands_on_what_a_source_in_this_process_would(kafka: str, two_partitions: str) -> None:  # noqa: F811
    order = [0] * 100 + [1] * 300 + [0, 1] * 100 + [0] * 200
    publish(
        kafka, two_partitions, [Outgoing(b"%d" % i, [], b"k", partition=p, timestamp_ms=i) for i, p in enumerate(order)]
    )
    with process_of(kafka, two_partitions) as reader:
        apart = reader.read_until(lambda found: len(found) == len(order))
        reader.read_until(lambda _: reader.source.caught_up)
        logs = reader.placed
    source = KafkaSource(kafka_settings(settings(kafka, two_partitions, static_member=False)))
    try:
        here = Reader(source)
        assert here.read_until(lambda found: len(found) == len(order)) == apart
        assert here.placed == logs
    finally:
        source.close()


def test_it_says_how_far_it_is_counting_what_waits_on_either_side(kafka: str, topic: str) -> None:
    publish(kafka, topic, values(200))
    here = Partition(topic, 0)
    with process_of(kafka, topic) as reader:
        source = reader.source
        while not source.waiting:
            if source.unsettled:
                reader.settle()
            source.poll(0.5)
        assert source.lags() == {here: 200}
        for left in range(199, 199 - CALL_RECORDS, -1):
            assert source.next() is not None
            assert source.lags() == {here: left}
            assert not source.caught_up
        assert source.next() is None, "a call brings only so many"
        reader.read_until(lambda found: len(found) == 200 - CALL_RECORDS)
        source.tell_group({here: Position(200)})
        reader.read_until(lambda _: source.caught_up)
        assert source.lags() == {here: 0}


def test_when_the_process_is_killed_another_goes_on_behind_what_was_handed_on(kafka: str, topic: str) -> None:
    publish(kafka, topic, values(300))
    with process_of(kafka, topic) as reader:
        records = reader.read_until(lambda found: len(found) >= 40)
        first = reader.source.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not alive(first), "it lives on")
        with pytest.raises(UnavailableError, match=r"process has ended \(exit code -9\)"):
            reader.source.poll()
        assert reader.source.next() is None, "what it had fetched is forgotten"
        assert not reader.source.placed
        records += reader.read_until(lambda found: len(found) == 300 - len(records))
        assert reader.source.pid != first
    assert [record.offset for record in records] == list(range(300))


def test_signals_for_the_trainer_are_not_for_its_source(kafka: str, topic: str) -> None:
    with process_of(kafka, topic) as reader:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(reader.source.pid, number)
        publish(kafka, topic, values(5))
        reader.read_until(lambda found: len(found) == 5)


def test_a_trainer_that_is_asleep_loses_its_partitions_after_a_session(kafka: str, topic: str) -> None:
    with process_of(kafka, topic) as asleep:
        asleep.read_until(lambda _: asleep.source.placed)
        first = asleep.source.pid
        wait_until(lambda: not alive(first), "it stays in the group", timeout_s=SESSION_S + 5)
        with process_of(kafka, topic) as successor:
            publish(kafka, topic, values(5))
            successor.read_until(lambda found: len(found) == 5)
        with pytest.raises(UnavailableError):
            asleep.source.poll()
        asleep.read_until(lambda found: len(found) == 5)


def test_a_process_that_does_not_answer_is_replaced(kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(kafka, topic, values(5))
    with process_of(kafka, topic) as reader:
        reader.read_until(lambda found: len(found) == 5)
        monkeypatch.setattr(reader.source, "_answer_s", 1.0)
        os.kill(reader.source.pid, signal.SIGSTOP)
        with pytest.raises(UnavailableError, match="does not answer"):
            reader.source.poll()
        monkeypatch.undo()
        publish(kafka, topic, values(5))
        reader.read_until(lambda found: len(found) == 5)


TRAINER = """
import sys, time
from daemon.settings import Settings
from daemon.source_process import SourceProcess
source = SourceProcess(Settings(kafka=(sys.argv[1],), topic=(sys.argv[2],), bank=sys.argv[2]))
source.open()
print(source.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_its_trainer_however_that_ends(kafka: str, topic: str) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, kafka, topic], stdout=subprocess.PIPE, env=clean_environment()
    )
    try:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        assert alive(pid)
    finally:
        trainer.kill()
        trainer.communicate()
    wait_until(lambda: not alive(pid), "it outlives its trainer", timeout_s=5.0)


def test_what_its_consumer_cannot_do_is_raised_here() -> None:
    source = SourceProcess(settings("127.0.0.1:1", "t", connect_timeout_s=1.0))
    try:
        with pytest.raises(UnavailableError, match="cannot reach Kafka"):
            source.open()
        with pytest.raises(UnavailableError, match="process has ended"):
            source.hold()
    finally:
        source.close()


def test_one_that_was_never_opened_ends_without_a_word(
    kafka: str, topic: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = SourceProcess(settings(kafka, topic))
    source.close()
    assert not alive(source.pid)
    assert capfd.readouterr().err == ""


def test_one_that_hangs_does_not_hold_up_the_end(kafka: str, topic: str) -> None:
    with process_of(kafka, topic) as reader:
        os.kill(reader.source.pid, signal.SIGSTOP)
        begun = time.monotonic()
        reader.source.close()
        assert time.monotonic() - begun < 15
        assert not alive(reader.source.pid)


def test_the_password_is_on_no_command_line_and_in_no_environment(kafka: str, topic: str) -> None:
    login = {"kafka_security": "SASL_PLAINTEXT", "kafka_user": "u", "kafka_password": "a-secret-word"}
    source = SourceProcess(settings(kafka, topic, **login))
    try:
        for what in ("cmdline", "environ"):
            assert b"a-secret-word" not in Path(f"/proc/{source.pid}/{what}").read_bytes()
    finally:
        source.close()
