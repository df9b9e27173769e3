"""An interrupted run ends with the same bank, byte for byte, as an uninterrupted one."""

import json
from pathlib import Path

import pytest

from daemon_process import SMALL, Trainer, trainer
from stage import Stage
from streams import Outgoing, labelled, publish, unlabelled, visits

pytestmark = pytest.mark.integration

GARBAGE = Outgoing(b"neither Arrow nor JSON")


def interrupt_after(process: Trainer, offset: int) -> int:
    """SIGTERM once the record at `offset` is trained; returns the number of records it then has committed."""
    process.wait_for("batch.trained", offset=offset)
    process.stop()
    return int(process.said("trainer.stopped")[0]["records"])


def test_a_run_interrupted_twice_ends_with_the_same_bytes(stage: Stage, tmp_path: Path) -> None:
    # Visits of 30 batches, windows of 40, commits every 25: the interruptions fall into the middle of all of them.
    stream = visits([0, 1, 2, 3, 0, 2, 1, 3], 30)
    stream[70:70] = [unlabelled(1, 7), GARBAGE]
    stream[150:150] = [GARBAGE, unlabelled(3, 8), GARBAGE]
    topic, undisturbed, interrupted = stage.new_topic(), stage.new_bank(), stage.new_bank()
    options = ("--hot-masks=2", "--decision-every=40", "--commit-every=25", *SMALL)

    def start(bank: str, *more: str) -> Trainer:
        return Trainer(*stage.arguments(bank, topic), *options, *more, directory=tmp_path / bank)

    with trainer(*stage.arguments(undisturbed, topic), *options, directory=tmp_path, ready=False) as reference:
        publish(stage.kafka, topic, stream[:80])
        assert 75 < interrupt_after(start(interrupted), 75) <= 80
        publish(stage.kafka, topic, stream[80:165])
        assert 160 < interrupt_after(start(interrupted), 160) <= 165
        publish(stage.kafka, topic, stream[165:])
        last = start(interrupted, "--burst")
        last.wait()
        reference.wait_for("batch.trained", offset=len(stream) - 1)
    assert last.said("bank.loaded")[0]["masks"] == 4
    assert last.said("partition.assigned")[0]["offset"] > 160

    expected, found = stage.contents(undisturbed), stage.contents(interrupted)
    assert found == expected
    totals = stage.totals(interrupted)
    assert (totals["records"], totals["batches"], totals["answered"], totals["dead_lettered"]) == (245, 240, 2, 3)
    assert sorted(name for name in found if name.startswith("mask:")) == [f"mask:{i}" for i in range(4)]
    assert len([name for name in found if name.startswith("state:")]) == 2, "two masks have cooled"


def test_interleaved_streams_and_evictions_survive_an_interruption(stage: Stage, tmp_path: Path) -> None:
    # Two named streams and one without a name take turns; the third task of each finds the budget spent.
    keys = (b"left", b"right \xff", None)
    stream = [
        labelled(4 * (i // 40) + which, i, key=key) for i in range(100) for which, key in enumerate(keys)
    ]  # fmt: skip
    topic, undisturbed, interrupted = stage.new_topic(), stage.new_bank(), stage.new_bank()
    options = ("--hot-masks=3", "--budget=5", "--over-budget=evict", "--decision-every=30", "--commit-every=17", *SMALL)

    with trainer(*stage.arguments(undisturbed, topic), *options, directory=tmp_path, ready=False) as reference:
        publish(stage.kafka, topic, stream[:200])
        with trainer(*stage.arguments(interrupted, topic), *options, directory=tmp_path / "1", ready=False) as first:
            assert 185 < interrupt_after(first, 185) <= 200
        publish(stage.kafka, topic, stream[200:])
        with trainer(*stage.arguments(interrupted, topic), *options, "--burst", directory=tmp_path / "2") as last:
            last.wait()
        reference.wait_for("batch.trained", offset=len(stream) - 1)

    assert stage.contents(interrupted) == stage.contents(undisturbed)
    progress = stage.hash(interrupted, f"progress:{topic}:0")
    named = {
        name.removeprefix(f"stream:{topic}/0"): json.loads(state) for name, state in progress.items() if "/" in name
    }
    assert set(named) == {"", "/left", "/right \\xff"}
    assert len({state["mask"] for state in named.values()}) == 3
    assert stage.totals(interrupted)["evicted"] == 4
