"""`supsup-daemon start --embedded` and the commands around it, as a person on one machine uses them.

The trainer is started twice on one directory. The first life gets its data from `publish`: a scenario and an .npz
file; the second, whose broker has lost the log, from JSON lines on standard input.
"""

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from daemon_process import Ended, Trainer, here, trainer
from servers import wait_until
from streams import read
from supsup_online import wire

pytestmark = pytest.mark.integration

OPTIONS = ("--arch=mlp-32-16", "--outputs=20", "--learning-rate=0.01", "--threads=1", "--bank=mine", "--topic=digits")
ROWS = 50


@dataclass
class Servers:
    """Where the embedded servers of one life are."""

    kafka: str
    redis_url: str
    processes: list[int]


@dataclass
class Lives:
    """What happened, and the second life, which still runs."""

    first: Trainer
    first_servers: Servers
    bank_between: dict[str, Any]
    published: dict[str, Ended]
    second: Trainer
    kafka: str
    redis: Redis
    redis_flags: tuple[str, str]


def servers_of(process: Trainer) -> Servers:
    broker, redis = (process.wait_for("embedded.started", server=name) for name in ("broker", "Redis"))
    return Servers(broker["address"], f"redis://{redis['address']}/0", [broker["pid"], redis["pid"]])


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def write_mnist(directory: Path) -> Path:
    """Files laid out like MNIST's, so that no test looks for the real ones in the network."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 20)):
        images = struct.pack(">4I", 0x803, count, 28, 28) + rng.integers(0, 256, (count, 784), dtype=np.uint8).tobytes()
        labels = struct.pack(">2I", 0x801, count) + bytes(i % 10 for i in range(count))
        (directory / f"{part}-images-idx3-ubyte").write_bytes(images)
        (directory / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return directory


def text(redis: Redis, rest: str) -> dict[str, str]:
    found: dict[bytes, bytes] = redis.hgetall(f"supsup:{{mine}}:{rest}")
    return {name.decode(): value.decode() for name, value in found.items()}


def everything(redis: Redis) -> dict[str, Any]:
    keys = sorted(redis.keys("supsup:{mine}:*"))
    kinds = {b"hash": redis.hgetall, b"string": redis.get}
    return {key.decode(): kinds[redis.type(key)](key) for key in keys if redis.type(key) in kinds}


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    directory = tmp_path_factory.mktemp("embedded")
    start = (*OPTIONS, "--embedded", "--state-dir=state", "--session-timeout-s=1")
    npz = directory / "more.npz"
    rng = np.random.default_rng(1)
    np.savez(npz, x=rng.integers(0, 256, (2 * ROWS + 10, 28, 28), dtype=np.uint8), y=rng.integers(0, 10, 2 * ROWS + 10))
    published = {}

    with trainer(*start, directory=directory, ready=False) as first:
        where = servers_of(first)
        publish = ("publish", f"--kafka={where.kafka}", "--topic=digits", f"--rows={ROWS}", "--json")
        mnist = str(write_mnist(directory))
        scenario = ("--tasks=2", "--order=sequential", "--batches=20")
        published["scenario"] = here(*publish, *scenario, SUPSUP_DATA_DIR=mnist)
        published["npz"] = here(*publish, npz)
        first.wait_for("batch.trained", offset=22)
        first.stop()

    with trainer(*start, directory=directory, ready=False) as second:
        again = servers_of(second)
        with Redis.from_url(again.redis_url) as redis:
            second.wait_for("partition.assigned")
            between = everything(redis)
            lines = [wire.encode_json(rng.integers(0, 256, (3, 784), dtype=np.uint8), np.array([1, 2, 3]))] * 2
            stdin = b"\n\n".join(lines).decode()
            published["stdin"] = here("publish", f"--kafka={again.kafka}", "--topic=digits", "--json", "-", stdin=stdin)
            question = directory / "question.jsonl"
            question.write_text(json.dumps({"x": [[0] * 784], "dtype": "uint8"}) + "\n")
            published["question"] = here(
                "publish", f"--kafka={again.kafka}", "--topic=digits", "--json", "--key=person", question
            )
            second.wait_for("batch.answered", offset=2)
            wait_until(lambda: text(redis, "totals")["records"] == "26", "the last records were never committed")
            flags = (f"--redis={again.redis_url}", "--bank=mine")
            yield Lives(first, where, between, published, second, again.kafka, redis, flags)


def test_publish_tells_what_it_sent_as_one_json_object(lives: Lives) -> None:
    for kind, count in (("scenario", 20), ("npz", 3), ("stdin", 2), ("question", 1)):
        ended = lives.published[kind]
        assert ended.code == 0, ended.stderr
        assert ended.json.keys() == {"topic", "records", "bytes", "seconds"}
        assert (ended.json["topic"], ended.json["records"]) == ("digits", count)


def test_what_publish_sends_is_trained(lives: Lives) -> None:
    rows = [line["rows"] for line in lives.first.said("batch.trained")]
    assert rows == [ROWS] * 22 + [10]
    assert [line["rows"] for line in lives.second.said("batch.trained")] == [3, 3]
    assert text(lives.redis, "totals")["dead_lettered"] == "0"


def test_a_person_is_told_where_the_servers_are(lives: Lives) -> None:
    told = lives.first.other_lines
    assert f"Kafka at {lives.first_servers.kafka}, Redis at {lives.first_servers.redis_url}, data in state" in told
    assert any(line.startswith("publish: ") and lives.first_servers.kafka in line for line in told)
    assert any(line.startswith("look: ") and "--bank mine" in line for line in told)


def test_sigterm_leaves_no_process_behind(lives: Lives) -> None:
    assert len(lives.first_servers.processes) == 2
    assert not any(map(is_running, lives.first_servers.processes))


def test_started_again_it_goes_on_with_the_same_bank_from_the_start_of_the_new_log(lives: Lives) -> None:
    ended = lives.first.said("trainer.stopped")[0]
    loaded = lives.second.said("bank.loaded")[0]
    assert loaded["masks"] == ended["masks"] > 0
    assert lives.second.said("partition.assigned")[0]["offset"] == 0
    totals = text(lives.redis, "totals")
    assert (totals["records"], totals["steps"]) == ("26", "25")
    masks = {name: value for name, value in lives.bank_between.items() if ":mask:" in name}
    assert len(masks) == loaded["masks"]
    assert text(lives.redis, "lease")["epoch"] == "2"


def test_masks_list_and_show_tell_what_hgetall_tells(lives: Lives) -> None:
    listed = here("masks", "list", *lives.redis_flags, "--json").json
    assert [row["id"] for row in listed] == [str(i) for i in range(len(listed))]
    for row in listed:
        shown = here("masks", "show", row["id"], *lives.redis_flags, "--json").json
        stored = text(lives.redis, f"stats:{row['id']}")
        assert {name: shown[name] for name in stored} == stored
        assert {name: row[name] for name in stored} == stored
        assert shown["bytes"] == lives.redis.strlen(f"supsup:{{mine}}:mask:{row['id']}")
        assert shown["hot"] is True
        assert [layer["edges"] for layer in shown["layers"]] == [784 * 32, 32 * 16, 16 * 20]
        kept = sum(layer["kept"] for layer in shown["layers"])
        assert kept / (784 * 32 + 32 * 16 + 16 * 20) == pytest.approx(float(stored["density"]))
    assert sum(int(row["batches"]) for row in listed) == 25


def test_stats_are_one_json_object(lives: Lives) -> None:
    told = here("stats", *lives.redis_flags, "--json").json
    assert told["bank"] == "mine"
    assert told["version"] == int(lives.redis.get("supsup:{mine}:version"))
    assert told["masks"] == lives.redis.zcard("supsup:{mine}:index")
    assert told["totals"] == {name: int(value) for name, value in text(lives.redis, "totals").items()}
    assert told["accuracy"] == pytest.approx(told["totals"]["correct"] / told["totals"]["samples"], abs=1e-4)
    assert told["positions"] == {"digits:0": 3}
    assert told["spec"]["architecture"] == "mlp-32-16"
    assert told["writer"]["epoch"] == "2"


def test_watch_tells_one_event_a_line(lives: Lives) -> None:
    ended = here("watch", "--seconds=0.1", *lives.redis_flags, "--json")
    assert ended.code == 0
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds.count("commit") == int(lives.redis.get("supsup:{mine}:version"))
    assert kinds.count("allocate") == int(text(lives.redis, "totals")["allocated"])
    assert [int(event["version"]) for event in events] == sorted(int(event["version"]) for event in events)


@pytest.mark.parametrize("command", [("masks", "list"), ("masks", "show", "0"), ("stats",), ("watch", "--seconds=0.1")])
def test_without_json_a_person_gets_a_table(lives: Lives, command: tuple[str, ...]) -> None:
    ended = here(*command, *lives.redis_flags)
    assert ended.code == 0, ended.stderr
    stored = text(lives.redis, "stats:0")
    assert any(number in ended.stdout for number in (stored["samples"], text(lives.redis, "totals")["samples"]))


def test_a_mask_that_is_not_there_ends_with_65(lives: Lives) -> None:
    ended = here("masks", "show", "99", *lives.redis_flags)
    assert ended.code == 65
    assert "bank 'mine' holds no mask 99" in ended.stderr


def test_a_bank_that_is_not_there_ends_with_65(lives: Lives) -> None:
    for command in (("masks", "list"), ("stats",), ("watch",)):
        ended = here(*command, lives.redis_flags[0], "--bank=other")
        assert ended.code == 65
        assert "there is no bank 'other' in this Redis yet" in ended.stderr
        assert ended.stdout == ""


def test_unlabelled_json_lines_are_answered(lives: Lives) -> None:
    [line] = lives.second.said("batch.answered")
    assert (line["rows"], line["stream"]) == (1, "digits/0/person")
    [answer] = read(lives.kafka, "digits.predictions", 1)
    assert answer.key == b"person"
    assert json.loads(answer.value)["task"] == line["mask"]


def test_a_second_trainer_cannot_take_the_same_directory(lives: Lives) -> None:
    state = Path(lives.second.directory) / "state"
    ended = here("start", *OPTIONS[:-3], "--embedded", f"--state-dir={state}")
    assert ended.code == 69
    assert f"in use by process {lives.second.pid}" in ended.stderr
