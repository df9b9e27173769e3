"""The benchmark of thousands of tasks: a run that is stopped ends like one that is not."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import many_tasks
from benchmarks.many_tasks import NO_MASK, Run, make_plan
from supsup_online import scoring
from supsup_online.datasets import Dataset
from supsup_online.scenarios import Scenario
from unit import tiny

OPTIONS = {"seed": 3}


def _dataset() -> Dataset:
    draws = np.random.default_rng(0)
    centres = draws.integers(0, 256, (tiny.CLASSES, 4, 4))

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = draws.integers(0, tiny.CLASSES, count)
        return np.clip(centres[y] + draws.integers(-20, 21, (count, 4, 4)), 0, 255).astype(np.uint8), y

    return Dataset("tiny", *images(200), *images(60), tiny.CLASSES, "drawn")


def _run() -> Run:
    plan = make_plan("revisits", 4, (40, 60), 3)
    return Run(tiny.learner(hot_masks=2), Scenario(_dataset(), "permuted", 4, 3), plan, 3, rows=32)


def _steps(run: Run, count: int) -> Run:
    for _ in range(count):
        run.step()
    return run


@pytest.mark.parametrize("stop", [1, 37, 90])
def test_a_stopped_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path, stop: int) -> None:
    whole = _run()
    _steps(whole, len(whole.plan))
    _steps(_run(), stop).save(tmp_path / "state", OPTIONS)
    resumed = _run()
    resumed.load(tmp_path / "state", OPTIONS)
    assert resumed.done == stop
    _steps(resumed, len(whole.plan) - stop)
    assert tiny.whole_state(resumed.learner) == tiny.whole_state(whole.learner)
    assert resumed.masks.tobytes() == whole.masks.tobytes()
    assert resumed.tally == whole.tally


def test_a_state_of_other_options_is_refused(tmp_path: Path) -> None:
    _steps(_run(), 1).save(tmp_path / "state", OPTIONS)
    with pytest.raises(SystemExit, match="other options"):
        _run().load(tmp_path / "state", {"seed": 4})


def test_a_failed_save_leaves_the_older_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _steps(_run(), 5)
    run.save(tmp_path / "state", OPTIONS)
    before = (tmp_path / "state").read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(descriptor)

    monkeypatch.setattr(many_tasks.os, "fsync", fail)
    with pytest.raises(OSError, match=r"\d"):
        _steps(run, 5).save(tmp_path / "state", OPTIONS)
    assert (tmp_path / "state").read_bytes() == before


def test_the_tally_agrees_with_the_scoring() -> None:
    run = _run()
    _steps(run, len(run.plan))
    truth = run.plan.tolist()
    masks = [None if mask == NO_MASK else mask for mask in run.masks.tolist()]
    assert run.tally.wrong == scoring.wrong_updates(truth, masks)
    assert run.tally.owner == scoring.owners(truth, masks)
    assert [run.tally.main_mask(t) for t in range(4)] == [scoring.main_mask(t, truth, masks) for t in range(4)]


@pytest.mark.parametrize("order", ["sequential", "revisits"])
def test_every_task_of_a_plan_gets_its_share(order: str) -> None:
    plan = make_plan(order, 9, (50, 70), 1)
    counts = np.bincount(plan)
    assert len(counts) == 9
    assert counts.min() >= 50
    assert counts.max() <= 70
    assert plan.tobytes() == make_plan(order, 9, (50, 70), 1).tobytes()


def test_with_revisits_most_tasks_come_back() -> None:
    plan = make_plan("revisits", 20, (200, 400), 1)
    assert np.count_nonzero(np.diff(plan)) >= 30


def test_a_report_is_due_when_so_many_tasks_have_ended(tmp_path: Path) -> None:
    run = _run()
    many_tasks.drive(run, [1, 4, 9], tmp_path / "state", OPTIONS, save_every=1e9)
    assert [report["tasks"] for report in run.reports] == [1, 4]
    assert run.reports[-1]["batches"] == len(run.plan)
    last = run.reports[-1]
    assert last["strict"] <= min(last["found"], last["lenient"])
    assert json.loads(json.dumps(run.reports)) == run.reports
    assert many_tasks.table(run.reports).count("\n| ") == 2
