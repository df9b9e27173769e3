"""The demonstration's own bookkeeping; the whole of it runs in tests/integration/test_demo.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon import demo
from daemon._directory_lock import DirectoryLock
from daemon.demo import DemoRun, Event, fresh_directory
from daemon.errors import EmbeddedError, StopError
from daemon_process import here
from supsup_online.scenarios import ScheduledBatch


@pytest.fixture
def run_of(tmp_path: Path):
    """A run over a plan, without servers behind it."""

    def make(tasks: list[int], streams: list[str] | None = None) -> DemoRun:
        plan = [ScheduledBatch(i, task, (streams or ["s"] * len(tasks))[i], i) for i, task in enumerate(tasks)]
        servers = SimpleNamespace(kafka="127.0.0.1:1", redis_url="redis://127.0.0.1:1/0")
        scenario = SimpleNamespace(dataset=SimpleNamespace(classes=10, source="nowhere"))
        return DemoRun(servers, scenario, plan, 8, tmp_path)

    return make


def event(offset: int, mask: int | None, kind: str = "reuse") -> Event:
    return Event(offset, mask, 0, {"type": kind})


def test_a_decision_holds_until_the_next_one_of_its_stream(run_of) -> None:
    run = run_of([0, 0, 1, 1, 0])
    assert run.masks_of_batches([event(0, 0), event(2, 1), event(4, 0)]) == [0, 0, 1, 1, 0]
    assert run.tasks == [0, 0, 1, 1, 0]


def test_streams_have_decisions_of_their_own(run_of) -> None:
    run = run_of([0, 1, 0, 1], ["a", "b", "a", "b"])
    assert run.masks_of_batches([event(0, 5), event(1, 6)]) == [5, 6, 5, 6]


def test_what_was_over_budget_has_no_mask(run_of) -> None:
    run = run_of([0, 1, 1, 0])
    assert run.masks_of_batches([event(0, 0), event(1, None, "over-budget"), event(3, 0)]) == [0, None, None, 0]


def test_a_mask_belongs_to_the_task_it_was_allocated_for() -> None:
    events = [
        Event(0, 0, 7, {"type": "allocate"}),
        Event(5, 0, 8, {"type": "reuse"}),
        Event(6, 1, 8, {"type": "allocate"}),
    ]
    assert demo.owners_of(events) == {0: 7, 1: 8}


def test_the_trainers_settings_file_is_one_it_accepts(run_of) -> None:
    run = run_of([0])
    path = run._write_config()
    told = here("config", "show", "--json", "--config", path).json
    assert told["kafka"] == {"value": ["127.0.0.1:1"], "origin": "file"}
    assert told["bank"]["value"] == "demo"
    assert told["classes"]["value"] == 10


def test_a_trainer_that_ends_by_itself_is_told_with_the_end_of_its_log(run_of) -> None:
    run = run_of([0])
    run.trainer_log.write_text("first\nlast words\n")
    run._trainer = SimpleNamespace(poll=lambda: 69, returncode=69)
    with pytest.raises(StopError, match=r"ended with exit code 69; its log ends with\nfirst\nlast words"):
        run._check_alive()


def test_a_failure_to_publish_is_told(run_of) -> None:
    run = run_of([0])
    run._failure = OSError("no route")
    with pytest.raises(StopError, match="publishing failed: no route"):
        run._check_alive()


def test_the_directory_of_an_earlier_demo_is_emptied(tmp_path: Path) -> None:
    state = fresh_directory(tmp_path)
    for name in ("redis", "kafka"):
        (state / name).mkdir(parents=True)
        (state / name / "server.log").write_text("old")
    (state / "lock").write_text("1\n")
    assert fresh_directory(tmp_path) == state
    assert not state.exists()


def test_a_directory_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    treasure = tmp_path / "state" / "thesis.tex"
    treasure.parent.mkdir()
    treasure.write_text("three years")
    with pytest.raises(StopError, match=r"thesis\.tex: no demo made that"):
        fresh_directory(tmp_path)
    assert treasure.read_text() == "three years"


def test_a_demo_that_still_runs_keeps_its_data(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "state")
    lock.acquire()
    try:
        with pytest.raises(EmbeddedError, match="is in use by process"):
            fresh_directory(tmp_path)
        assert (tmp_path / "state" / "lock").exists()
    finally:
        lock.release()


def test_a_stream_too_short_for_its_tasks_is_wrong_usage(tmp_path: Path) -> None:
    ended = here("demo", "--tasks=5", "--batches=3", f"--output={tmp_path}")
    assert ended.code == 2
    assert "3 batches are too few for 5 tasks" in ended.stderr
