"""A trainer that must not go on says why, names what a person can do, and ends with the exit code of its reason."""

import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError

from daemon_process import SMALL, here, trainer
from servers import create_topic, wait_until
from stage import Stage
from streams import labelled, publish

pytestmark = pytest.mark.integration

QUICK = ("--connect-timeout-s=1", "--burst", *SMALL[:-1])  # without --threads: that would outlive the test


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_another_banks_spec_ends_with_65_and_names_each_field(stage: Stage, tmp_path: Path) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    assert here("start", *stage.arguments(bank, topic), *QUICK).code == 0
    before = stage.contents(bank)

    other = ("--seed=7", "--classes=5", "--keep-fraction=0.3", "--input-shape=4x16")
    ended = here("start", *stage.arguments(bank, topic), *QUICK, *other)
    assert ended.code == 65
    for difference in ("weight_seed: 7, 0", "classes: 5, 4", "keep_fraction: 0.3, 0.5", "input_shape: (4, 16), (8, 8)"):
        assert difference in ended.stderr
    assert "architecture" not in ended.stderr, "what is the same is not named"
    assert "Use the bank's settings, or another --bank" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert stage.contents(bank) == before


@pytest.mark.parametrize("where", ["closed", "silent"])
def test_a_redis_that_is_away_ends_with_69_in_time(stage: Stage, where: str, request: pytest.FixtureRequest) -> None:
    port = request.getfixturevalue(where)
    begun = time.monotonic()
    url = f"redis://somebody:secret@127.0.0.1:{port}/0"
    ended = here("start", f"--kafka={stage.kafka}", f"--redis={url}", f"--topic={stage.new_topic()}", *QUICK)
    assert time.monotonic() - begun < 10
    assert ended.code == 69
    assert f"cannot reach Redis at redis://127.0.0.1:{port}/0" in ended.stderr
    assert "--redis (SUPSUP_REDIS)" in ended.stderr
    assert "secret" not in ended.stderr


@pytest.mark.parametrize("where", ["closed", "silent"])
def test_a_kafka_that_is_away_ends_with_69_in_time(stage: Stage, where: str, request: pytest.FixtureRequest) -> None:
    port = request.getfixturevalue(where)
    begun = time.monotonic()
    ended = here("start", f"--kafka=127.0.0.1:{port}", f"--redis={stage.redis_url}", *QUICK)
    assert time.monotonic() - begun < 10
    assert ended.code == 69
    assert f"cannot reach Kafka at 127.0.0.1:{port}" in ended.stderr
    assert "--kafka (SUPSUP_KAFKA)" in ended.stderr


def test_a_url_that_is_none_is_called_so(stage: Stage) -> None:
    ended = here("start", f"--kafka={stage.kafka}", "--redis=http://127.0.0.1:6379", *QUICK)
    assert ended.code == 2
    assert "http://127.0.0.1:6379 is no Redis URL" in ended.stderr
    assert "redis://HOST:PORT/DB" in ended.stderr


def test_wrong_credentials_are_told_apart_from_a_server_that_is_away(stage: Stage) -> None:
    url = stage.redis_url.replace("redis://", "redis://nobody:wrong@")
    ended = here("start", f"--kafka={stage.kafka}", f"--redis={url}", f"--topic={stage.new_topic()}", *QUICK)
    assert ended.code == 77
    assert "Redis refuses the login of user 'nobody'" in ended.stderr
    assert "wrong" not in ended.stderr.replace("WRONGPASS", "")


def trained(stage: Stage, count: int = 5) -> tuple[str, str]:
    """A bank that has read `count` records of a topic."""
    bank, topic = stage.new_bank(), stage.new_topic()
    publish(stage.kafka, topic, [labelled(0, i) for i in range(count)])
    assert here("start", *stage.arguments(bank, topic), *QUICK).code == 0
    assert stage.hash(bank, f"progress:{topic}:0")["offset"] == str(count)
    return bank, topic


def test_a_topic_made_anew_ends_with_66_and_tells_what_can_be_done(stage: Stage) -> None:
    bank, topic = trained(stage)
    admin = KafkaAdminClient(bootstrap_servers=stage.kafka)
    admin.delete_topics([topic])
    wait_until(lambda: topic not in admin.list_topics(), "the topic was never deleted")
    admin.close()
    create_topic(stage.kafka, topic)
    publish(stage.kafka, topic, [labelled(0, i) for i in range(8)])
    before = stage.contents(bank)

    ended = here("start", *stage.arguments(bank, topic), *QUICK)
    assert ended.code == 66
    assert f"{topic}:0 is not the log this bank has read" in ended.stderr
    assert stage.contents(bank) == before

    advice = ended.stderr.rpartition("DEL '")[2].partition("'")[0]
    assert stage.redis.delete(advice) == 1
    assert here("start", *stage.arguments(bank, topic), *QUICK).code == 0, "the advice helps"
    assert stage.totals(bank)["records"] == 5 + 8


def test_a_position_that_retention_has_overtaken_ends_with_66_and_counts_the_loss(stage: Stage) -> None:
    bank, topic = trained(stage)
    key = stage.key(bank, f"progress:{topic}:0")
    if deleted_before(stage, topic, 3):
        stage.redis.hset(key, "offset", 1)
        lost, start = 2, 3
    else:  # a log that starts at 0 and a position before it look the same from here
        stage.redis.hset(key, "offset", -2)
        lost, start = 2, 0
    ended = here("start", *stage.arguments(bank, topic), *QUICK)
    assert ended.code == 66
    assert (
        f"its log now starts at {start}: retention has removed {lost} records that were never trained" in ended.stderr
    )
    assert f"HSET '{key}' offset {start}" in ended.stderr

    stage.redis.hset(key, "offset", start)
    assert here("start", *stage.arguments(bank, topic), *QUICK).code == 0, "the advice helps"


def deleted_before(stage: Stage, topic: str, offset: int) -> bool:
    """Move the start of the log; whether the broker can."""
    admin = KafkaAdminClient(bootstrap_servers=stage.kafka)
    try:
        admin.delete_records({TopicPartition(topic, 0): offset})
    except KafkaError:
        return False
    else:
        return True
    finally:
        admin.close()


class NoText(str):
    """A header name that kafka-python takes for text, and sends as bytes that are none."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        """Bytes that no decoder takes."""
        return b"\xff\xfe"


def test_a_record_the_client_cannot_read_is_named_and_a_person_can_skip_it(stage: Stage) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    publish(stage.kafka, topic, [labelled(0, 0)])
    publish(stage.kafka, topic, [replace(labelled(0, 1), headers=[(NoText("x"), b"v")])])
    publish(stage.kafka, topic, [labelled(0, 2)])
    ended = here("start", *stage.arguments(bank, topic), *QUICK)
    assert ended.code == 1
    assert "the Kafka client cannot read a record ([Error 2] CorruptRecordError" in ended.stderr
    assert f"it lies behind one of: {topic}:0 from 1." in ended.stderr
    assert stage.totals(bank)["batches"] == 1, "what lies before it is kept"

    stage.redis.hset(stage.key(bank, f"progress:{topic}:0"), "offset", 2)
    assert here("start", *stage.arguments(bank, topic), *QUICK).code == 0, "the advice helps"
    assert stage.totals(bank)["batches"] == 2


def test_retention_that_overtakes_a_running_trainer_is_noticed(stage: Stage, tmp_path: Path) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    publish(stage.kafka, topic, [labelled(0, i) for i in range(5)])
    if not deleted_before(stage, topic, 0):
        pytest.skip("this broker cannot delete records")
    with trainer(*stage.arguments(bank, topic), *SMALL, directory=tmp_path) as process:
        process.wait_for("batch.trained", offset=4)
        process.send(signal.SIGSTOP)
        publish(stage.kafka, topic, [labelled(0, i) for i in range(5, 40)])
        assert deleted_before(stage, topic, 38)
        process.send(signal.SIGCONT)
        stderr = process.wait(66)
    assert "retention has overtaken" in stderr
