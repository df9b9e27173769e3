"""The one object the loop tells: what follows from it, and that a loop that hangs is seen by others."""

import json
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.checkpoint import COUNTERS
from daemon.errors import UnavailableError
from daemon.http import trainer_server
from daemon.records import Partition, Record
from daemon.telemetry import Telemetry
from supsup_online.types import StepResult
from unit.test_apply import HERE, Bench, record
from unit.test_http import ask
from unit.test_loop import play

RECORD = Record(Partition("digits", 3), 17, b"k", b"", (), 0)
TRAINED = StepResult("s", 4, 2, trained=True, decision=None, loss=1.0, accuracy=0.75, correct=3)


def value(telemetry: Telemetry, name: str, **labels: object) -> float | None:
    """One sample."""
    found = {"bank": "default", **{label: str(text) for label, text in labels.items()}}
    return telemetry.metrics.registry.get_sample_value(name, found)


def test_a_batch_gives_a_log_line_and_counts() -> None:
    telemetry = Telemetry()
    with capture_logs() as lines:
        telemetry.batch(RECORD, TRAINED, decode_s=0.001, step_s=0.002)
    assert [line["event"] for line in lines] == ["batch.trained"]
    assert value(telemetry, "supsup_batches_total", topic="digits", partition=3, result="trained") == 1
    assert value(telemetry, "supsup_accuracy_ratio") == lines[0]["rolling_accuracy"] == 0.75


def test_a_server_that_is_away_makes_not_ready_until_it_answers() -> None:
    telemetry = Telemetry()
    telemetry.started("leader")
    telemetry.retried(UnavailableError("Redis is full", "redis"))
    telemetry.retried(UnavailableError("no broker", "kafka"))
    assert telemetry.health.reasons == {"redis": "Redis is full", "kafka": "no broker"}
    telemetry.answered("kafka")
    telemetry.committed(0.1, version=2, masks=1, budget=10, totals={"records": 5})
    assert telemetry.health.ready
    assert value(telemetry, "supsup_retries_total", dependency="redis") == 1
    assert value(telemetry, "supsup_bank_counts", count="records") == 5
    assert value(telemetry, "supsup_bank_version") == 2


def test_other_partitions_are_a_rebalance_and_the_old_ones_have_no_lag() -> None:
    telemetry = Telemetry()
    first, second = Partition("t", 0), Partition("t", 1)
    telemetry.lags({first: None})
    assert value(telemetry, "supsup_lag_records", topic="t", partition=0) is None, "not known yet"
    telemetry.lags({first: 7})
    telemetry.lags({first: 5, second: 0})
    assert value(telemetry, "supsup_rebalances_total") == 2
    telemetry.lags({second: 3})
    assert value(telemetry, "supsup_lag_records", topic="t", partition=0) is None
    assert value(telemetry, "supsup_lag_records", topic="t", partition=1) == 3
    assert value(telemetry, "supsup_rebalances_total") == 3


def test_who_loses_the_lease_is_a_standby_again() -> None:
    telemetry = Telemetry()
    telemetry.started("leader")
    telemetry.lease_lost()
    assert telemetry.health.role == "standby"
    assert (value(telemetry, "supsup_leader"), value(telemetry, "supsup_ready")) == (0, 0)


# -- the loop that tells it --------------------------------------------------------------------------------------------


def test_the_loop_counts_what_the_bank_counts() -> None:
    found = play([[record(i) for i in range(4)] + [record(4, b"garbage"), record(5)]], every=3)
    telemetry, totals = found.loop.telemetry, found.applier.checkpoint.totals
    telemetry.started("leader")
    found.loop.run()
    place = {"topic": "digits", "partition": HERE.number}
    assert value(telemetry, "supsup_batches_total", **place, result="trained") == totals["batches"] == 5
    assert value(telemetry, "supsup_samples_total", **place) == totals["samples"]
    assert value(telemetry, "supsup_correct_samples_total", **place) == totals["correct"]
    assert value(telemetry, "supsup_dead_letters_total", topic="digits", reason="malformed") == 1
    assert value(telemetry, "supsup_decisions_total", action="allocate", why="start") == totals["allocated"] == 1
    assert value(telemetry, "supsup_commits_total") == value(telemetry, "supsup_commit_seconds_count") == 2
    assert {name: value(telemetry, "supsup_bank_counts", count=name) for name in COUNTERS} == totals
    assert value(telemetry, "supsup_masks") == 1
    assert telemetry.health.role == "stopping"


def test_a_commit_that_fails_for_a_while_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(patience_s=30)
    telemetry, checkpoint = bench.applier.telemetry, bench.applier.checkpoint
    bench.store.commits_that_fail = [UnavailableError("Redis is loading", "redis")] * 2
    telemetry.started("leader")
    seen: list[dict[str, str]] = []
    commit = checkpoint.commit
    monkeypatch.setattr(type(checkpoint), "commit", lambda _: (seen.append(telemetry.health.reasons), commit())[1])
    bench.apply(record(0))
    bench.applier.commit()
    assert seen == [{}, {"redis": "Redis is loading"}, {"redis": "Redis is loading"}]
    assert telemetry.health.ready
    assert value(telemetry, "supsup_retries_total", dependency="redis") == 2


def test_a_broker_that_is_away_is_a_reason_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found = play([UnavailableError("Kafka does not answer"), [record(0)]], patience_s=100)
    telemetry = found.loop.telemetry
    telemetry.started("leader")
    seen: list[dict[str, str]] = []
    retried = telemetry.retried
    monkeypatch.setattr(
        type(telemetry), "retried", lambda _, error: (retried(error), seen.append(telemetry.health.reasons))
    )
    found.loop.run()
    assert seen == [{"kafka": "Kafka does not answer"}]
    assert "kafka" not in telemetry.health.reasons


def test_another_member_of_the_group_with_our_partitions_is_a_reason() -> None:
    found = play([[]])
    found.source.elsewhere = "digits:1"
    found.loop.telemetry.started("leader")
    found.loop.run()
    assert found.loop.telemetry.health.reasons["partitions"] == "another member of the group has digits:1"


def test_a_group_that_gives_no_partition_is_a_reason() -> None:
    found = play([[]])
    found.source.placed = False
    found.loop.telemetry.started("leader")
    found.loop.run()
    assert "given this trainer no partition" in found.loop.telemetry.health.reasons["partitions"]


def test_a_step_that_hangs_is_seen_by_others_and_nobody_pats_the_watchdog() -> None:
    found = play([[record(0)]])
    loop, learner, telemetry = found.loop, found.applier.learner, found.loop.telemetry
    telemetry.health.limit_s = 0.2
    telemetry.started("leader")
    reached, go_on, step = threading.Event(), threading.Event(), learner.step
    pats: list[str] = []

    def hang(batch: Any) -> Any:
        reached.set()
        assert go_on.wait(30)
        return step(batch)

    learner.step = hang  # type: ignore[method-assign]
    telemetry.manager.pat = lambda: pats.append("pat")  # type: ignore[method-assign]
    with trainer_server(telemetry, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=loop.run)
        thread.start()
        assert reached.wait(30)
        while ask(server.port, "/livez")[0] == 200:
            pass
        status, body = ask(server.port, "/readyz")
        assert (status, list(json.loads(body)["reasons"])) == (503, ["stuck"])
        patted = len(pats)
        assert loop.training.ended(0.3) is False
        assert len(pats) == patted, "though the loop itself goes round"
        go_on.set()
        thread.join(30)
        assert len(pats) > patted
