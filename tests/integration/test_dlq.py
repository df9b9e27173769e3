"""`dlq list`, `dlq show` and `dlq replay` on a real broker; the letters are laid out as the trainer does it."""

import json
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from daemon_process import SMALL, Ended, clean_environment, here, trainer
from servers import create_topic, delete_topics
from stage import Stage
from streams import ARROW, Headers, Outgoing, labelled, publish, read

pytestmark = pytest.mark.integration

LIMITS = ("--input-shape=8x8", "--classes=4")
HOSTILE = b"\x1b[2J\x1b]0;owned\x07[bold red]\xe2\x80\xae"


def letter(
    offset: int,
    *,
    value: bytes | None = b"?",
    reason: str = "malformed",
    topic: str = "anything",
    partition: int = 0,
    own: Headers = ARROW,
    key: bytes | None = None,
    **notes: str | bytes,
) -> Outgoing:
    """A dead letter as the trainer writes it; `notes` come behind, with - for _."""
    headers = [
        *own,
        ("source-topic", topic.encode()),
        ("source-partition", str(partition).encode()),
        ("source-offset", str(offset).encode()),
        ("source-timestamp", b"1700000000000"),
        ("reason", reason.encode()),
        ("error", f"no. {offset} is bad".encode()),
    ]
    for name, text in notes.items():
        headers.append((name.replace("_", "-"), text if isinstance(text, bytes) else text.encode()))
    return Outgoing(value, headers, key)


def ended_well(ended: Ended) -> Ended:
    assert ended.code == 0, ended.stderr
    return ended


def json_lines(ended: Ended) -> list[dict[str, object]]:
    return [json.loads(line) for line in ended_well(ended).stdout.splitlines()]


class Dlq:
    """A topic with dead letters, and the commands on it."""

    def __init__(self, kafka: str, topic: str) -> None:
        self.kafka, self.topic = kafka, topic

    def put(self, *letters: Outgoing) -> None:
        """Letters behind those that are there."""
        publish(self.kafka, f"{self.topic}.dlq", letters)

    def __call__(self, command: str, *arguments: object) -> Ended:
        """One of the commands, here."""
        return here("dlq", command, *arguments, f"--kafka={self.kafka}", f"--topic={self.topic}")

    def replay(self, *arguments: object) -> dict[str, object]:
        """What a replay says it did."""
        return ended_well(self("replay", *arguments, "--json")).json

    def source(self, count: int, *, partition: int = 0) -> list[object]:
        """The first records of the source topic."""
        return read(self.kafka, self.topic, count, partition=partition, timeout_s=5)


@pytest.fixture
def dlq(kafka: str) -> Iterator[Dlq]:
    topic = f"test-{uuid.uuid4().hex[:12]}"
    create_topic(kafka, topic, partitions=2)
    create_topic(kafka, f"{topic}.dlq")
    yield Dlq(kafka, topic)
    delete_topics(kafka, topic)


def test_list_shows_each_letter_and_how_many_there_are_of_a_reason(dlq: Dlq) -> None:
    dlq.put(letter(5), letter(7, reason="shape"), letter(9, reason="shape", value=b"x" * 1024, truncated_from="70000"))
    shown = ended_well(dlq("list")).stdout
    assert "0:1" in shown
    assert "anything:0@7" in shown
    assert "1024 of 70000" in shown
    assert shown.splitlines()[-1] == f"{dlq.topic}.dlq: 3 dead letters (shape 2, malformed 1)"


def test_list_as_json_is_one_object_a_line(dlq: Dlq) -> None:
    dlq.put(letter(5, failed_at="1500000000000", bank="digits"), letter(6))
    first, second = json_lines(dlq("list", "--json"))
    assert first == {
        "partition": 0,
        "offset": 0,
        "source": "anything:0@5",
        "failed_at_ms": 1500000000000,
        "reason": "malformed",
        "error": "no. 5 is bad",
        "bank": "digits",
        "bytes": 1,
        "truncated_from": None,
        "replayed": False,
        "replayed_from": None,
    }
    assert second["bank"] is None
    assert abs(second["failed_at_ms"] - 1_790_000_000_000) < 10**12, "the broker's time where the trainer notes none"


def test_list_filters_by_reason_and_time_and_keeps_the_newest(dlq: Dlq) -> None:
    times = {"failed_at": "1500000000000"}
    dlq.put(letter(0, **times), letter(1, **times), letter(2, reason="shape"), letter(3), letter(4))
    assert [row["offset"] for row in json_lines(dlq("list", "--json", "--reason=shape"))] == [2]
    assert [row["offset"] for row in json_lines(dlq("list", "--json", "--since=1h"))] == [2, 3, 4]
    assert [row["offset"] for row in json_lines(dlq("list", "--json", "--since=2017-07-14T02:40:00"))] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert [row["offset"] for row in json_lines(dlq("list", "--json", "--since=2017-07-14T02:41+00:00"))] == [2, 3, 4]
    assert [row["offset"] for row in json_lines(dlq("list", "--json", "--limit=2"))] == [3, 4]
    assert "5 dead letters (malformed 4, shape 1); the newest 2 are shown" in dlq("list", "--limit=2").stdout


@pytest.mark.parametrize("limit", [0, 100])
def test_list_reads_thousands_of_letters(dlq: Dlq, limit: int) -> None:
    dlq.put(*(letter(i) for i in range(3000)))
    shown = ended_well(dlq("list", f"--limit={limit}")).stdout
    assert "anything:0@2999" in shown
    assert ("anything:0@0 " in shown) == (limit == 0)
    assert "3000 dead letters" in shown


def test_list_of_no_letters_says_so(dlq: Dlq) -> None:
    assert ended_well(dlq("list")).stdout == f"{dlq.topic}.dlq: 0 dead letters\n"


def test_list_bears_with_letters_that_no_trainer_wrote(dlq: Dlq) -> None:
    odd = [("source-topic", b"\xff"), ("source-offset", b"-1"), ("failed-at", b"soon"), ("truncated-from", b"9" * 50)]
    dlq.put(Outgoing(b"?", []), Outgoing(None, odd, key=b""), Outgoing(b"", [("reason", HOSTILE)]))
    rows = json_lines(dlq("list", "--json"))
    assert [row["source"] for row in rows] == [None, None, None]
    assert "3 dead letters (none given 3)" in dlq("list").stdout
    for offset in range(3):
        ended_well(dlq("show", offset))


@pytest.mark.parametrize("command", [("list",), ("show", "0")])
def test_nothing_a_record_holds_reaches_the_terminal_raw(dlq: Dlq, command: tuple[str, ...]) -> None:
    own = [("content-type", HOSTILE), (HOSTILE.decode(), HOSTILE)]
    dlq.put(letter(0, value=HOSTILE, own=own, key=HOSTILE, reason=HOSTILE.decode(), bank=HOSTILE, failed_at=HOSTILE))
    shown = ended_well(dlq(*command, *(LIMITS if command[0] == "show" else ()))).stdout
    assert [letter for letter in shown if not letter.isprintable() and letter != "\n"] == []
    assert "[bold red]" in shown, "markup is text"


def test_a_missing_dead_letter_topic_is_explained_and_not_created(dlq: Dlq) -> None:
    for command in ("list", "show", "replay"):
        ended = here(
            "dlq", command, *(["0"] if command != "list" else []), f"--kafka={dlq.kafka}", "--topic=no-such-topic"
        )
        assert ended.code == 2
        assert "there is no topic no-such-topic.dlq" in ended.stderr
    admin = KafkaAdminClient(bootstrap_servers=dlq.kafka)
    try:
        assert "no-such-topic.dlq" not in admin.list_topics()
    finally:
        admin.close()


def test_show_tells_everything_and_what_is_wrong_now(dlq: Dlq, tmp_path: Path) -> None:
    good = labelled(0)
    dlq.put(letter(3, value=good.value, key=b"k", own=[*ARROW, ("trace", b"\x00")]), letter(4, value=b"text, no Arrow"))
    saved = tmp_path / "value"
    found = ended_well(dlq("show", "0:0", "--json", f"--save={saved}", *LIMITS)).json
    assert (found["key"], found["now"], found["error"]) == ("k", None, "no. 3 is bad")
    assert found["headers"] == [[*ARROW[0][:1], ARROW[0][1].decode()], ["trace", "\\x00"]]
    assert found["notes"]["source-timestamp"] == "1700000000000"
    assert saved.read_bytes() == good.value
    assert "[8, 8], expected [5] or [5]" in dlq("show", 0, "--json", "--input-shape=5").json["now"]["error"]
    text = ended_well(dlq("show", 1, *LIMITS)).stdout
    assert "malformed: " in text
    assert "text, no Arrow" in text
    assert "00000000  ff ff ff ff" in dlq("show", 0).stdout


def test_show_of_a_place_without_a_letter_is_refused(dlq: Dlq) -> None:
    dlq.put(letter(0), letter(1))
    for place in ("2", "0:2", "0:1000000", "1:0"):
        ended = dlq("show", place)
        assert ended.code == 2
        assert f"{dlq.topic}.dlq has no record at" in ended.stderr
    assert "write PARTITION:OFFSET" in dlq("show", "first").stderr


def test_replay_sends_key_value_and_own_headers_back_to_their_partition(dlq: Dlq) -> None:
    own = [*ARROW, ("trace", b"a"), ("trace", b"b"), ("reason", b"mine"), ("source-topic", b"mine too")]
    dlq.put(letter(3, value=b"v", key=b"k", own=own, partition=1), letter(4, value=None, key=b"gone", partition=1))
    assert dlq.replay("--all")["sent"] == 2
    first, second = dlq.source(2, partition=1)
    assert (first.key, first.value) == (b"k", b"v")
    assert first.headers == [*own, ("replayed-from", f"{dlq.topic}.dlq:0:0".encode())]
    assert (second.key, second.value) == (b"gone", None)


def test_replaying_all_twice_sends_once(dlq: Dlq) -> None:
    dlq.put(*(letter(i, value=b"%d" % i) for i in range(250)))
    assert dlq.replay("--all")["sent"] == 250
    dlq.put(letter(250, value=b"250"))
    again = dlq.replay("--all")
    assert (again["sent"], again["skipped"]) == (1, 250)
    assert [record.value for record in dlq.source(252)] == [b"%d" % i for i in range(251)]
    assert all(row["replayed"] for row in json_lines(dlq("list", "--json")))
    assert dlq.replay("--all", "--again")["sent"] == 251


def test_replay_of_some_leaves_the_others(dlq: Dlq) -> None:
    dlq.put(letter(0), letter(1, reason="shape"), letter(2, reason="shape"), letter(3))
    assert dlq.replay("0:3", "1", "--reason=shape")["sent"] == 1
    assert dlq.replay("--all", "--reason=shape")["sent"] == 1
    assert dlq.replay("--all")["sent"] == 2
    places = [dict(record.headers)["replayed-from"].rpartition(b":")[2] for record in dlq.source(4)]
    assert places == [b"1", b"2", b"0", b"3"]


# Runs the command line after having it die at the 1250th record: racing it with a signal would leave to chance where.
DIES_IN_THE_MIDDLE = """
import os, signal
from kafka import KafkaProducer
from daemon.cli import main

send, left = KafkaProducer.send, 1250

def deadly(producer, topic, **record):
    global left
    left -= not topic.endswith(".replayed")
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return send(producer, topic, **record)

KafkaProducer.send = deadly
main()
"""


def test_a_replay_that_is_killed_loses_nothing_and_repeats_a_hundred_at_most(dlq: Dlq) -> None:
    count = 3000
    dlq.put(*(letter(i, value=b"%d" % i) for i in range(count)))
    command = [sys.executable, "-c", DIES_IN_THE_MIDDLE, "dlq", "replay", "--all"]
    killed = subprocess.run(
        [*command, f"--kafka={dlq.kafka}", f"--topic={dlq.topic}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    rest = dlq.replay("--all")
    assert 0 < rest["skipped"] < count, "it was killed in the middle"
    assert rest["sent"] + rest["skipped"] == count
    found = Counter(int(record.value) for record in read(dlq.kafka, dlq.topic, count + 101, timeout_s=4))
    assert found.keys() == set(range(count))
    assert found.total() <= count + 100


def test_a_dry_run_sends_nothing_and_remembers_nothing(dlq: Dlq) -> None:
    dlq.put(letter(0), letter(1))
    assert "2 dead letters would be sent" in ended_well(dlq("replay", "--all", "--dry-run")).stdout
    assert dlq.replay("--all")["sent"] == 2


def test_a_letter_that_was_cut_is_refused(dlq: Dlq) -> None:
    dlq.put(letter(0, truncated_from="70000"), letter(1), letter(2, reason="too-large", key=b"k" * 1024))
    found = dlq.replay("--all")
    assert (found["sent"], set(found["refused"])) == (1, {"0:0", "0:2"})
    ended = dlq("replay", "0:0")
    assert ended.code == 1
    assert "only the first 1 of 70000 bytes were kept: publish the original again" in ended.stderr


def test_a_letter_without_a_source_goes_only_to_a_topic_that_is_named(dlq: Dlq, topic: str) -> None:
    dlq.put(Outgoing(b"?", []), letter(1, partition=7), letter(2))
    found = dlq.replay("--all")
    assert (found["sent"], set(found["refused"])) == (1, {"0:0", "0:1"})
    assert dlq.replay("--all", f"--to={topic}")["sent"] == 3, "what the ledger has is about one target"
    assert dlq.replay("--all", f"--to={topic}")["sent"] == 0
    assert len(read(dlq.kafka, topic, 3)) == 3


def test_of_several_letters_of_one_record_one_is_sent(dlq: Dlq) -> None:
    dlq.put(letter(0, bank="one"), letter(0, bank="two"), letter(1))
    found = dlq.replay("--all")
    assert (found["sent"], found["copies"]) == (2, 1)
    dlq.put(letter(1, bank="two"))
    found = dlq.replay("--all")
    assert (found["sent"], found["copies"], found["skipped"]) == (0, 1, 3)


def test_a_dead_letter_topic_that_was_made_anew_has_a_clean_ledger(dlq: Dlq) -> None:
    dlq.put(letter(0))
    assert dlq.replay("--all")["sent"] == 1
    admin = KafkaAdminClient(bootstrap_servers=dlq.kafka)
    try:
        admin.delete_topics([f"{dlq.topic}.dlq"])
    finally:
        admin.close()
    create_topic(dlq.kafka, f"{dlq.topic}.dlq")
    dlq.put(letter(0))
    assert dlq.replay("--all")["sent"] == 1


def test_a_ledger_that_somebody_else_wrote_into_stops_the_replay(dlq: Dlq) -> None:
    dlq.put(letter(0))
    assert dlq.replay("--all")["sent"] == 1
    publish(dlq.kafka, f"{dlq.topic}.dlq.replayed", [Outgoing(b"[]", [])])
    ended = dlq("replay", "--all")
    assert ended.code == 1
    assert "is no entry of the ledger of replays" in ended.stderr


def test_letters_must_be_named_or_all_be_asked_for(dlq: Dlq) -> None:
    dlq.put(letter(0))
    for arguments in ((), ("0:0", "--all")):
        ended = dlq("replay", *arguments)
        assert ended.code == 2
        assert "name letters as PARTITION:OFFSET, or take --all of them" in ended.stderr
    assert "there is no topic nowhere to send to" in dlq("replay", "--all", "--to=nowhere").stderr


def test_the_commands_join_no_group(dlq: Dlq) -> None:
    dlq.put(letter(0))
    for command in (("list",), ("show", 0), ("replay", "--all")):
        ended_well(dlq(*command))
    consumer = KafkaConsumer(bootstrap_servers=dlq.kafka, group_id=f"supsup-dlq-{dlq.topic}")
    try:
        assert consumer.committed(TopicPartition(f"{dlq.topic}.dlq", 0)) is None
    finally:
        consumer.close()


def test_a_replayed_record_that_fails_again_shows_as_such_and_a_mended_one_is_trained(
    stage: Stage, tmp_path: Path
) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    publish(stage.kafka, topic, [labelled(0), labelled(0, 1, rows=40), Outgoing(b"?")])
    where = (f"--kafka={stage.kafka}", f"--topic={topic}")
    with trainer(*stage.arguments(bank, topic), "--burst", "--max-rows=32", *SMALL, directory=tmp_path) as process:
        process.wait()
    assert [row["reason"] for row in json_lines(here("dlq", "list", "--json", *where))] == ["rows", "malformed"]
    assert ended_well(here("dlq", "replay", "--all", "--json", *where)).json["sent"] == 2
    with trainer(*stage.arguments(bank, topic), "--burst", *SMALL, directory=tmp_path) as process:
        process.wait()
    assert stage.totals(bank)["batches"] == 2, "the larger batch is within the new limit"
    rows = json_lines(here("dlq", "list", "--json", *where))
    assert [row["replayed_from"] for row in rows] == [None, None, f"{topic}.dlq:0:1"]
    assert [row["replayed"] for row in rows] == [True, True, False]
    assert "again" in here("dlq", "list", *where).stdout
