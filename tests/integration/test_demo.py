"""`supsup-daemon demo`: the whole idea at work, from one command."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from daemon_process import Ended, clean_environment, run

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TASKS, BATCHES = 3, 240


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(directory: Path) -> Ended:
    return run("demo", "--json", f"--tasks={TASKS}", f"--batches={BATCHES}", f"--output={directory}", timeout_s=200)


def test_as_many_masks_as_tasks_and_no_wrong_update(demo: Ended) -> None:
    assert demo.code == 0, demo.stderr
    told = demo.json
    assert (told["true_tasks"], told["masks_allocated"], told["wrong_updates"]) == (TASKS, TASKS, 0)
    assert told["batches"] == BATCHES
    assert (told["overflowed"], told["dead_lettered"]) == (0, 0)
    assert sorted(task["mask"] for task in told["tasks"]) == list(range(TASKS))
    assert [task["purity"] for task in told["tasks"]] == [1.0] * TASKS
    assert sum(task["batches"] for task in told["tasks"]) == BATCHES


def test_what_was_learnt_holds_for_images_never_seen(demo: Ended) -> None:
    assert demo.json["accuracy"] > 0.75
    assert demo.json["task_inference_accuracy"] > 0.95


def test_progress_goes_to_standard_error(demo: Ended) -> None:
    assert demo.stdout.count("\n") == 1
    assert "nobody tells the trainer which is which" in demo.stderr
    assert "new mask 0" in demo.stderr


def test_the_picture_is_a_png(demo: Ended, directory: Path) -> None:
    picture = (directory / "timeline.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(picture[16:20], "big") > 800, "wide enough to be looked at"


def test_the_trainers_log_stays_for_later(demo: Ended, directory: Path) -> None:
    lines = (directory / "trainer.log").read_text().splitlines()
    assert sum('"batch.trained"' in line for line in lines) == BATCHES


def test_a_replica_of_what_was_learnt_stays_open_until_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "daemon", "demo", "--serve", "0", "--tasks=2", "--batches=120", "--output=demo"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "page and inference at" in line)
        url = told.split()[-1]
        shown, page = (
            urllib.request.urlopen(f"{url}{path}", timeout=10).read()  # noqa: S310 - an address of this test's own
            for path in ("overview", "")
        )
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0
    assert json.loads(shown)["bank"] == "demo"
    assert b"<html" in page
