"""One writer per bank: others wait with the bank loaded, take over when it dies, and a zombie is refused."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from daemon.embedded import EmbeddedRedis
from daemon_process import SMALL, Trainer, here, trainer
from stage import Stage
from streams import Outgoing, publish, visits

pytestmark = pytest.mark.integration

TTL_S = 1.0
OPTIONS = (*SMALL, "--commit-every=10", "--decision-every=20", f"--lease-ttl-s={TTL_S:g}", "--hot-masks=2")
STREAM = visits([0, 1, 2, 0, 1, 2], 50)


class Pair:
    """A trainer in the middle of its stream, and another that waits for its end.

    The stream comes in pieces, so that each fault meets a trainer at work: the first piece before there is a standby,
    the second just before the fault, the third after it.
    """

    def __init__(self, stage: Stage, directory: Path, stack: ExitStack) -> None:
        self.stage, self.bank, self.topic = stage, stage.new_bank(), stage.new_topic()
        publish(stage.kafka, self.topic, STREAM[:50])
        arguments = [*stage.arguments(self.bank, self.topic), *OPTIONS]
        self.leader = Trainer(*arguments, directory=directory / "leader")
        stack.callback(self.leader.kill)
        self.leader.wait_for("batch.trained", offset=49)
        self.second = Trainer(*arguments, directory=directory / "second")
        stack.callback(self.second.kill)
        self.second.wait_for("standby.waiting")
        publish(stage.kafka, self.topic, STREAM[50:130])
        self.leader.wait_for("batch.trained", offset=55)

    def finish(self) -> None:
        """The second one reads the stream to its end; then the bank must hold what an undisturbed trainer makes."""
        publish(self.stage.kafka, self.topic, STREAM[130:])
        self.second.wait_for("batch.trained", offset=len(STREAM) - 1)
        self.second.stop()
        undisturbed = self.stage.new_bank()
        assert here("start", *self.stage.arguments(undisturbed, self.topic), *OPTIONS, "--burst").code == 0
        assert self.stage.totals(self.bank)["batches"] == len(STREAM)
        assert self.stage.contents(self.bank) == self.stage.contents(undisturbed)


@pytest.fixture
def pair(stage: Stage, tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stage, tmp_path, stack)


def test_a_killed_trainer_is_followed_within_seconds_and_the_bytes_are_the_same(pair: Pair) -> None:
    pair.leader.kill()
    killed = time.monotonic()
    pair.second.wait_for("lease.acquired", timeout_s=TTL_S + 5)
    assert time.monotonic() - killed < TTL_S + 5
    pair.finish()


def test_a_stopped_trainer_hands_over_at_once(pair: Pair) -> None:
    pair.leader.stop()
    assert pair.leader.said("lease.released")
    pair.second.wait_for("lease.acquired")
    pair.finish()


def test_a_trainer_that_was_asleep_is_refused_and_ends_with_its_own_code(pair: Pair) -> None:
    pair.leader.send(signal.SIGSTOP)
    pair.second.wait_for("lease.acquired", timeout_s=TTL_S + 10)
    pair.second.wait_for("partition.assigned")
    pair.leader.send(signal.SIGCONT)
    assert "another trainer has taken over this bank" in pair.leader.wait(75)
    pair.finish()


def test_a_standby_that_is_told_to_stop_does_so_and_leaves_the_bank_alone(pair: Pair) -> None:
    before = pair.stage.hash(pair.bank, "lease")["epoch"]
    pair.second.stop()
    assert pair.stage.hash(pair.bank, "lease")["epoch"] == before
    assert not pair.second.said("trainer.ready")


def test_under_load_sigterm_ends_it_with_the_step_in_hand_committed(stage: Stage, tmp_path: Path) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    publish(stage.kafka, topic, STREAM)
    with trainer(*stage.arguments(bank, topic), *OPTIONS, "--commit-every=1000", directory=tmp_path) as process:
        process.wait_for("batch.trained", offset=20)
        process.stop()
        applied = max(line["offset"] for line in process.said("batch.trained")) + 1
    assert stage.totals(bank)["records"] == applied < len(STREAM)
    assert stage.hash(bank, f"progress:{topic}:0")["offset"] == str(applied)


def test_a_second_signal_ends_it_at_once(stage: Stage, tmp_path: Path) -> None:
    # Redis is stopped, so that the commit it is waiting for does not come.
    topic = stage.new_topic()
    publish(stage.kafka, topic, STREAM[:40])
    with EmbeddedRedis(tmp_path / "redis") as redis:
        own = [f"--redis={redis.url}", "--commit-every=1000", "--commit-interval-s=1000"]
        arguments = [*stage.arguments(stage.new_bank(), topic), *OPTIONS, *own]
        with trainer(*arguments, directory=tmp_path / "trainer") as process:
            process.wait_for("batch.trained", offset=39)
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                process.send(signal.SIGTERM)
                process.wait_for("trainer.stopping")
                assert process.running
                process.send(signal.SIGTERM)
                process.wait(-signal.SIGTERM, timeout_s=5)
            finally:
                os.kill(redis.pid, signal.SIGCONT)


def test_poison_without_end_stops_it_where_asked(stage: Stage, tmp_path: Path) -> None:
    topic, bank = stage.new_topic(), stage.new_bank()
    publish(stage.kafka, topic, [*STREAM[:3], *(Outgoing(b"poison") for _ in range(5)), *STREAM[3:6]])
    options = [*OPTIONS, "--dead-letters-in-a-row=4", "--burst"]
    with trainer(*stage.arguments(bank, topic), *options, directory=tmp_path, ready=False) as process:
        assert "4 records in a row were of no use" in process.wait(76)
    assert stage.totals(bank)["dead_lettered"] == 4
    with trainer(*stage.arguments(bank, topic), *options, directory=tmp_path, ready=False) as process:
        process.wait()
    assert (stage.totals(bank)["dead_lettered"], stage.totals(bank)["batches"]) == (5, 6)
