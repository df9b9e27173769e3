"""An interrupted run ends with the same bank, byte for byte, as an uninterrupted one.

The stream has all that could make a difference: tasks that come back, masks that cool and are heated again, streams
with keys that take turns, evictions, records to be answered and records that are no use. One trainer reads it in one
go. Another is stopped twice with SIGTERM, each time in the middle of a visit, a window and a commit interval.
"""

import json
from dataclasses import dataclass

import pytest

from daemon_process import SMALL, Trainer, trainer
from stage import Stage
from streams import Outgoing, labelled, publish, unlabelled, visits

pytestmark = pytest.mark.integration

GARBAGE = Outgoing(b"neither Arrow nor JSON")
KEYS = (b"left", b"right \xff", None)
INTERRUPTIONS = (72, 342)  # within the third visit, and while three streams take turns
AHEAD = 60  # records that lie ready when the signal comes
OPTIONS = ("--hot-masks=3", "--budget=5", "--over-budget=evict", "--decision-every=20", "--commit-every=25", *SMALL)


def the_stream() -> list[Outgoing]:
    """First one stream visits four tasks, twice each; then three streams take turns, each with two new tasks."""
    stream = visits([0, 1, 2, 3, 0, 2, 1, 3], 30)
    stream[70:70] = [unlabelled(1, 7), GARBAGE]
    stream[150:150] = [GARBAGE, unlabelled(3, 8), GARBAGE]
    for i in range(60):
        stream += [labelled(10 + 3 * (i // 30) + which, i, key=key) for which, key in enumerate(KEYS)]
    return stream


@dataclass
class Outcome:
    """Both runs at their ends."""

    stage: Stage
    topic: str
    undisturbed: str
    interrupted: str
    committed: list[int]
    last: Trainer


@pytest.fixture(scope="module")
def outcome(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    stream, topic, undisturbed, interrupted = the_stream(), stage.new_topic(), stage.new_bank(), stage.new_bank()
    directory = tmp_path_factory.mktemp("resume")
    committed = []
    with trainer(*stage.arguments(undisturbed, topic), *OPTIONS, directory=directory, ready=False) as reference:
        published = 0
        for offset in INTERRUPTIONS:
            publish(stage.kafka, topic, stream[published : offset + AHEAD])
            published = offset + AHEAD
            with trainer(*stage.arguments(interrupted, topic), *OPTIONS, directory=directory, ready=False) as process:
                process.wait_for("batch.trained", offset=offset)
                process.stop()
            committed.append(int(process.said("trainer.stopped")[0]["records"]))
        publish(stage.kafka, topic, stream[published:])
        burst = (*OPTIONS, "--burst")
        with trainer(*stage.arguments(interrupted, topic), *burst, directory=directory, ready=False) as last:
            last.wait()
        reference.wait_for("batch.trained", offset=len(stream) - 1)
    return Outcome(stage, topic, undisturbed, interrupted, committed, last)


def test_the_interrupted_run_ends_with_the_same_bytes(outcome: Outcome) -> None:
    expected = outcome.stage.contents(outcome.undisturbed)
    assert {"spec", "totals", f"progress:{outcome.topic}:0"} < expected.keys()
    assert outcome.stage.contents(outcome.interrupted) == expected


def test_the_interrupted_run_makes_the_same_decisions_at_the_same_records(outcome: Outcome) -> None:
    def decisions(bank: str) -> list[tuple[bytes, ...]]:
        events = [fields for _, fields in outcome.stage.redis.xrange(outcome.stage.key(bank, "events"))]
        told = (b"offset", b"type", b"why", b"mask", b"previous", b"evicted", b"candidates")
        return [tuple(fields[name] for name in told) for fields in events if fields[b"type"] != b"commit"]

    expected = decisions(outcome.undisturbed)
    assert {why for _, _, why, *_ in expected} >= {b"start", b"drift"}
    assert decisions(outcome.interrupted) == expected


def test_it_was_interrupted_in_the_middle_of_things(outcome: Outcome) -> None:
    for records, offset in zip(outcome.committed, INTERRUPTIONS, strict=True):
        assert offset < records <= offset + AHEAD
    assert outcome.last.said("partition.assigned")[0]["offset"] == outcome.committed[-1]
    assert outcome.last.said("bank.loaded")[0]["masks"] == 5


def test_every_record_was_applied_once(outcome: Outcome) -> None:
    totals = outcome.stage.totals(outcome.interrupted)
    assert totals["records"] == len(the_stream())
    assert (totals["batches"], totals["answered"], totals["dead_lettered"]) == (240 + 180, 2, 3)


def test_masks_cooled_and_were_evicted_on_the_way(outcome: Outcome) -> None:
    contents = outcome.stage.contents(outcome.interrupted)
    assert len([name for name in contents if name.startswith("mask:")]) == 5
    assert len([name for name in contents if name.startswith("state:")]) == 3
    totals = outcome.stage.totals(outcome.interrupted)
    assert totals["allocated"] == totals["evicted"] + 5
    assert totals["evicted"] >= 5, "ten tasks, room for five"


def test_streams_are_stored_by_their_keys(outcome: Outcome) -> None:
    progress = outcome.stage.hash(outcome.interrupted, f"progress:{outcome.topic}:0")
    prefix = f"stream:{outcome.topic}/0"
    streams = {name.removeprefix(prefix): json.loads(state) for name, state in progress.items() if "/" in name}
    assert set(streams) == {"", "/left", "/right \\xff"}
    assert len({state["mask"] for state in streams.values()}) == 3
