"""The paper's harness: what is asked, how it is scored, and that a killed run goes on to the same outcome."""

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from supsup_online import models
from supsup_online.datasets import Dataset
from supsup_online.errors import DataError, SpecError
from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper import report, storage
from supsup_online.paper.figures import FIGURES, figure
from supsup_online.paper.harness import Cell, Reading, checkpoints, evaluate, run_cell
from supsup_online.paper.methods import Answers, Setup, Storage, TaskNeededError
from supsup_online.paper.psp import ParameterSuperposition
from supsup_online.paper.readings import GG, GNU_EXACT, GNU_H, asking
from supsup_online.paper.results import Run, read_runs, read_scores
from supsup_online.paper.supsup import MaskSettings, SupSup
from supsup_online.paper.untold import Untold
from supsup_online.scenarios import Scenario

CLASSES = 4
SETUP = Setup("mlp-100", (6, 6), classes=CLASSES, outputs=50, tasks=3, seed=5, optimiser=OptimiserChoice("adam", 0.01))
TOLD = Reading("told", told=True)
ROW = Reading("row", ask=asking("one-shot"))
FIRST = Reading("first", scope="first", ask=asking("one-shot"))
BATCH = Reading("batch", scope="batch", ask=asking("binary"))
EXACT = Reading("exact", ask=asking("exact"))


@pytest.fixture(scope="module")
def scenario():
    """Permuted noisy prototypes: three tasks that a small network learns in a moment."""
    draws = np.random.default_rng(7)
    prototypes = draws.integers(0, 256, (CLASSES, 6, 6))
    y = np.arange(800) % CLASSES
    x = np.clip(prototypes[y] + draws.normal(0, 20, (800, 6, 6)), 0, 255).astype(np.uint8)
    data = Dataset("toy", x[:600], y[:600], x[600:], y[600:], CLASSES, "drawn here")
    return Scenario(data, "permuted", 3, seed=1)


def cell(make=SupSup, readings=(TOLD, ROW, FIRST, BATCH, EXACT), **changes):
    return replace(Cell("A method", SETUP, make, readings, batches=40, checkpoints=(1, 3), rows=32), **changes)


def outcome(directory, what, scenario):
    run = Run(directory, what.name, what.setup.seed, what.record())
    run_cell(what, scenario, run, lambda _: None)
    return read_scores(next(directory.glob("*.csv")))


def accuracies(lines, column="right_both"):
    last = max(line["learnt"] for line in lines)
    found = {}
    for line in lines:
        if line["learnt"] == last:
            found.setdefault(line["reading"], []).append(line[column] / line["images"])
    return {reading: sum(shares) / len(shares) for reading, shares in found.items()}


# -- masks learnt with the task told


def test_the_same_masks_answer_in_every_scenario(tmp_path, scenario):
    found = accuracies(outcome(tmp_path, cell(), scenario))
    assert set(found) == {"told", "row", "first", "batch", "exact"}
    assert min(found.values()) > 0.9


def test_a_mask_does_not_change_once_its_task_is_over(tmp_path, scenario):
    lines = [line for line in outcome(tmp_path, cell(), scenario) if line["reading"] == "told" and line["task"] == 0]
    assert len({line["right_label"] for line in lines}) == 1


def test_told_means_told():
    with pytest.raises(TaskNeededError, match="scenario GG"):
        SupSup(SETUP).answering("told").answer(np.zeros((1, 6, 6), np.uint8), None)


def test_one_image_decides_for_all_rows_when_it_is_asked_to(scenario):
    method = SupSup(SETUP)
    for task in range(2):
        method.learn(task, [scenario.batch(task, position, 32) for position in range(40)])
    own, other = scenario.test_set(0)[0][:20], scenario.test_set(1)[0][:20]
    mixed = np.concatenate([own[:1], other])
    assert method.answering("exact").answer(mixed, None, "first").tasks.tolist() == [0] * 21
    assert method.answering("exact").answer(mixed, None, "row").tasks.tolist() == [0] + [1] * 20
    assert method.answering("exact").answer(mixed, None, "batch").tasks.tolist() == [1] * 21


def test_a_mask_costs_a_bit_a_weight():
    weights = 36 * 100 + 100 * 50
    assert SupSup(SETUP).storage() == Storage(shared=8, per_task=weights // 8)


@pytest.mark.parametrize("transfer", [False, True])
def test_transfer_starts_a_mask_from_those_before(scenario, transfer):
    first, second = (SupSup(SETUP, MaskSettings("top-k", transfer=transfer)) for _ in range(2))
    first.learn(0, [scenario.batch(0, 0, 32)])
    second.learn(0, [scenario.batch(0, position, 32) for position in range(20)])
    for method in (first, second):
        method.learn(1, [])
    differ = (first.bank.words(1) != second.bank.words(1)).any()
    assert differ == transfer, "what was learnt before matters only with transfer"


# -- never told


@pytest.mark.parametrize("rule", ["loss", "exact"])
def test_never_told_it_finds_the_tasks_all_the_same(tmp_path, scenario, rule):
    what = cell(partial(Untold, rule=rule), (Reading("NNs"), Reading("NNs, H", scope="batch", ask=asking("one-shot"))))
    found = accuracies(outcome(tmp_path, what, scenario))
    assert found["NNs"] > 0.9


def test_a_mask_stands_for_the_task_that_was_trained_into_it_first(scenario):
    method = Untold(SETUP)
    for task in (2, 0):
        method.learn(task, [scenario.batch(task, position, 32) for position in range(40)])
    assert method.owners == {0: 2, 1: 0}
    assert method.answer(scenario.test_set(2)[0][:5], None).tasks.tolist() == [2] * 5


@pytest.mark.parametrize("make", [SupSup, Untold, ParameterSuperposition], ids=["told", "never told", "PSP"])
def test_asking_more_often_changes_no_answer(tmp_path, scenario, make):
    seldom, often = (
        outcome(tmp_path / str(len(stops)), cell(make, (TOLD,), checkpoints=stops), scenario)
        for stops in ((1, 3), (1, 2, 3))
    )
    assert [line for line in often if line["learnt"] != 2] == seldom


# -- killed and gone on


class KilledError(Exception):
    """Stands for kill -9: whatever was not saved is gone."""


@pytest.mark.parametrize(
    "make", [SupSup, Untold, partial(Untold, rule="paper")], ids=["told", "loss rule", "paper rule"]
)
@pytest.mark.parametrize("after", [0, 45, 119])
def test_a_killed_run_goes_on_to_the_same_outcome(tmp_path, scenario, make, after):
    readings = (Reading("exact", ask=asking("exact")),)
    whole = outcome(tmp_path / "whole", cell(make, readings), scenario)
    count = 0

    def kill(_):
        nonlocal count
        count += 1
        if count > after:
            raise KilledError

    what = cell(make, readings)
    with pytest.raises(KilledError):
        run_cell(what, scenario, Run(tmp_path / "cut", what.name, 5, what.record()), kill)
    assert outcome(tmp_path / "cut", what, scenario) == whole
    assert not list((tmp_path / "cut").glob("*.npz")), "a finished run keeps no state"


def test_what_was_learnt_before_the_kill_is_not_learnt_again(tmp_path, scenario):
    what, seen = cell(), []
    with pytest.raises(KilledError):
        run_cell(what, scenario, Run(tmp_path, what.name, 5, what.record()), _killing_after(100))
    run = Run(tmp_path, what.name, 5, what.record())
    assert run.learnt in (1, 2), "saved at the end of a task, unless saving takes long"
    run_cell(what, scenario, run, seen.append)
    assert len(seen) == (3 - run.learnt) * 40 or run.finished


def _killing_after(batches):
    left = [batches]

    def kill(_):
        left[0] -= 1
        if not left[0]:
            raise KilledError

    return kill


def test_a_finished_run_is_left_as_it_is(tmp_path, scenario):
    outcome(tmp_path, cell(), scenario)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    run_cell(cell(), scenario, Run(tmp_path, "A method", 5, cell().record()), lambda _: pytest.fail("learnt again"))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_run_with_other_settings_is_not_taken_up(tmp_path, scenario):
    outcome(tmp_path, cell(), scenario)
    with pytest.raises(DataError, match="other settings"):
        Run(tmp_path, "A method", 5, cell(batches=41).record())
    assert not Run(tmp_path, "A method", 5, cell(batches=41).record(), fresh=True).finished


def test_what_was_there_does_not_come_back_when_a_fresh_run_is_killed_early(tmp_path, scenario):
    outcome(tmp_path, cell(), scenario)
    Run(tmp_path, "A method", 5, cell().record(), fresh=True)
    assert list(tmp_path.iterdir()) == []
    assert not Run(tmp_path, "A method", 5, cell().record()).finished


def test_a_record_tells_methods_apart_that_are_made_differently():
    masks = partial(SupSup, masks=MaskSettings("top-k"))
    records = [json.dumps(cell(make).record()) for make in (SupSup, masks, Untold, partial(Untold, rule="paper"))]
    assert len(set(records)) == 4
    assert json.dumps(cell(partial(SupSup, masks=MaskSettings("top-k"))).record()) == records[1]


def npz_of(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def outcome_of(text):
    return npz_of(outcome=np.frombuffer(text.encode(), np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 not an archive",
        b"\x93NUMPY",
        npz_of(weights=np.zeros(3)),
        outcome_of("{"),
        outcome_of("[" * 100_000),
        outcome_of("[]"),
        outcome_of('{"about": {"finished": false}, "lines": []}'),
        outcome_of('{"about": 3, "lines": [{}]}'),
    ],
)
def test_a_damaged_state_is_named(tmp_path, content):
    (tmp_path / "a-method.5.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a-method\.5\.npz.*--fresh"):
        Run(tmp_path, "A method", 5, cell().record())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"finished": true}', b'{"finished": false, "cell": 1}']
)
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "a-method.5.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a-method\.5\.json.*--fresh"):
        Run(tmp_path, "A method", 5, cell().record())
    with pytest.raises(DataError, match=r"a-method\.5\.json.*--fresh"):
        read_runs(tmp_path)


def test_a_state_of_another_method_is_named(tmp_path, scenario):
    run = Run(tmp_path, "A method", 5, cell().record())
    run.add([], training_s=1.0, training_cpu_s=1.0, asking_s=1.0)
    run.state = {"heads": np.zeros((1, 3), np.float32)}
    with pytest.raises(DataError, match="does not fit its method"):
        run_cell(cell(), scenario, run, lambda _: None)


def test_a_state_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a-method.5.npz", outcome=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        Run(tmp_path, "A method", 5, cell().record())


# -- scores


class Parrot:
    """Answers with what it was told to say."""

    def __init__(self, labels, tasks):
        self.labels, self.tasks = labels, tasks

    def answer(self, x, *_):
        """The same for every row."""
        size = len(x)
        tasks = None if self.tasks is None else np.full(size, self.tasks)
        return Answers(np.full(size, self.labels), tasks)


@pytest.mark.parametrize(
    ("tasks", "told", "expected"),
    [(0, False, (50, 200, 50)), (1, False, (50, 0, 0)), (None, False, (50, None, None)), (None, True, (50, 200, 50))],
    ids=["right task", "wrong task", "knows no tasks", "told"],
)
def test_strict_needs_task_and_label(scenario, tasks, told, expected):
    reading = Reading("r", told=told)
    (score,) = evaluate(cell(readings=(reading,)), scenario, Parrot(0, tasks), 1)
    assert (score.right_label, score.right_task, score.right_both) == expected
    assert score.images == 200


def test_so_many_images_are_spread_over_the_test_set_and_differ_from_task_to_task(scenario):
    asked = []

    class Listening(Parrot):
        def answer(self, x, *_):
            asked.append(np.sort(x.reshape(len(x), -1), axis=1).tobytes())  # whatever the permutation
            return super().answer(x)

    scores = evaluate(cell(readings=(Reading("r", images=50),)), scenario, Listening(0, 0), 2)
    assert [score.images for score in scores] == [50, 50]
    assert asked[0] != asked[1]


def test_checkpoints_end_with_the_last_task():
    assert checkpoints(7, (1, 5, 10)) == (1, 5, 7)
    assert checkpoints(5, (1, 5)) == (1, 5)


# -- report


def test_the_papers_numbers_stand_beside_runs_of_its_size_only():
    assert figure("check").at("laptop").numbers == figure("check").numbers != {}
    assert figure("check").at("quick").numbers == figure("permuted-fc").at("laptop").numbers == {}


def test_a_report_holds_mean_spread_forgetting_and_the_papers_number():
    def run(seed, right):
        lines = [
            {
                "reading": "GG",
                "learnt": learnt,
                "task": task,
                "images": 10,
                "right_label": n,
                "right_task": 10,
                "right_both": n,
            }
            for learnt, task, n in [(1, 0, 9), (2, 0, right), (2, 1, 8)]
        ]
        return {
            "cell": "SupSup",
            "seed": seed,
            "scores": lines,
            "finished": True,
            "learnt": 2,
            "training_s": 4.0,
            "training_cpu_s": 6.0,
        } | {
            "bytes_per_task": 100,
            "bytes_shared": 8,
        }

    named = replace(figure("check"), numbers={"SupSup, GG": 92.37})
    (row,) = report.rows(named, [run(0, 7), run(1, 5)])
    assert (row.both, row.label, row.found) == (70.0, 70.0, 100.0)
    assert row.spread == pytest.approx(np.std([75, 65], ddof=1))
    assert row.forgetting == 30.0, "from 9 of 10 to 7 and to 5"
    assert (row.bytes_per_task, row.seconds_per_task, row.cpu_per_task, row.paper, row.seeds) == (
        104.0,
        2.0,
        3.0,
        92.37,
        2,
    )
    assert "| SupSup | GG | 2 | 2 | 70.00 ± 7.07 | 70.00 |" in report.table([row])
    lenient = [run(0, 7), run(1, 5)]
    for line in [line for each in lenient for line in each["scores"]]:
        line |= {"right_task": None, "right_both": None}
    assert "| SupSup | GG | 2 | 2 | - | 70.00 ± 7.07 |" in report.table(report.rows(named, lenient))


def test_rows_come_in_the_order_of_the_cells(tmp_path, scenario):
    for name in ("Beta", "Alpha"):
        what = cell(name=name, readings=(TOLD,))
        run_cell(what, scenario, Run(tmp_path, name, 5, what.record()), lambda _: None)
    found = report.rows(figure("check"), read_runs(tmp_path), ["Beta", "Alpha"])
    assert [row.cell for row in found] == ["Beta", "Alpha"]


def test_masks_of_imagenet_are_counted_as_the_paper_counts():
    tiny = storage.mask_bytes(models.build("mlp-30", (4, 5), 10), 2)
    kept = 2 * (20 + 30) + 2 * (30 + 10)
    assert (tiny.kept, tiny.packed, tiny.columns) == (kept, 900 // 8 + 1, 2 * kept + 4 * (31 + 11))
    table = storage.split_imagenet()
    assert "23,475,392 weights" in table
    assert "| SupSup | 89.58 | 195.18 |" in table


def test_runs_are_drawn_as_they_are(tmp_path, scenario):
    outcome(tmp_path, cell(), scenario)
    runs = read_runs(tmp_path)
    paths = report.draw(figure("check"), runs, tmp_path / "figure")
    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    before = paths[1].read_bytes()
    report.draw(figure("check"), runs, tmp_path / "figure")
    assert paths[1].read_bytes().count(b"<path") == before.count(b"<path")


# -- figures


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("scale", ["quick", "laptop", "paper"])
def test_every_figure_names_its_cells_once_and_writes_down_what_they_are(name, scale):
    cells = FIGURES[name].cells(scale, 3)
    assert len({each.name for each in cells}) == len(cells)
    for each in cells:
        record = json.loads(json.dumps(each.record()))
        assert record["setup"]["seed"] == 3
        assert each.checkpoints[-1] == each.setup.tasks
        assert len({reading.name for reading in each.readings}) == len(each.readings)
    named = {f"{each.name}, {reading.name}" for each in cells for reading in each.readings}
    assert set(FIGURES[name].numbers) <= named, "the paper's numbers stand beside something"


def test_an_unknown_figure_is_named_with_those_there_are():
    with pytest.raises(SpecError, match="no figure 'x': choose check"):
        figure("x")


def test_readings_of_the_paper_are_one_image_for_a_batch():
    assert (GG.told, GNU_H.scope, GNU_EXACT.scope) == (True, "first", "row")
