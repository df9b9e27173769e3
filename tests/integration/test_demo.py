"""`supsup-daemon demo`: the whole idea at work, from one command."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from daemon.demo import BANK, held_out
from daemon.following import Follower
from daemon.redis_store import BankReader
from daemon_process import Ended, clean_environment, run
from integration.test_serve import Answers, by_curl, by_triton
from supsup_online.answering import Inquiry, answer
from supsup_online.datasets import load_mnist
from supsup_online.scenarios import Scenario
from supsup_online.snapshot import Snapshot

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TASKS, BATCHES = 3, 240
DEFAULT_TASKS = 5


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


# -- a replica of what was learnt


@dataclass(frozen=True)
class Served:
    """A demo that has ended and left a replica open.

    Attributes:
        url: of the page.
        redis_url: of the bank.
        told: what `--json` printed.
    """

    url: str
    redis_url: str
    told: dict[str, Any]

    @property
    def port(self) -> int:
        """Of the replica."""
        return urlsplit(self.url).port or 0


@contextmanager
def serving_demo(directory: Path, *arguments: str) -> Iterator[Served]:
    """`demo --serve` until Ctrl-C, which must end it in good order."""
    command = [sys.executable, "-m", "daemon", "demo", "--serve=0", "--json", "--output=demo", *arguments]
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            said = ""
            while not (url := re.search(r"page and inference at (http:\S+)", said)):
                line = process.stderr.readline()
                assert line, f"it ended early:\n{said}"
                said += line
            redis_url = re.search(r"Redis\s(redis:\S+);", said)
            assert redis_url is not None
            yield Served(url[1], redis_url[1], json.loads(process.stdout.readline()))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
    assert process.returncode == 0


def test_a_replica_of_what_was_learnt_stays_open_until_ctrl_c(tmp_path: Path) -> None:
    with serving_demo(tmp_path, "--tasks=2", "--batches=120") as served:
        shown, page = (
            urllib.request.urlopen(f"{served.url}{path}", timeout=10).read()  # noqa: S310 - an address of this test's own
            for path in ("overview", "")
        )
    assert json.loads(shown)["bank"] == "demo"
    assert b"<html" in page


@pytest.fixture(scope="module")
def default_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo as it is without options, as `make demo` runs it."""
    with serving_demo(tmp_path_factory.mktemp("default-demo")) as served:
        yield served


@pytest.fixture(scope="module")
def bank(default_demo: Served) -> Iterator[Snapshot]:
    """Its bank, read from its Redis into this process."""
    with Redis.from_url(default_demo.redis_url) as client:
        reader = BankReader(client, BANK)
        follower = Follower(reader, reader.network(reader.spec()))
        follower.catch_up()
        yield follower.snapshot


CURL_IS_THERE = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the path")


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(partial(by_triton, binary=True), id="tritonclient, binary"),
        pytest.param(partial(by_triton, binary=False), id="tritonclient, JSON"),
        pytest.param(by_curl, id="curl", marks=CURL_IS_THERE),
    ],
)
def test_the_demos_bank_is_as_accurate_over_http_as_in_process(
    default_demo: Served, bank: Snapshot, ask: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUPSUP_DATA_DIR", raising=False)  # the demo's process has no such variable either
    scenario = Scenario(load_mnist(allow_download=False), "permuted", DEFAULT_TASKS, 0)
    told = default_demo.told
    assert (told["batches"], len(bank)) == (1000, DEFAULT_TASKS)
    for task in told["tasks"]:
        x, labels = held_out(scenario, task["task"])
        here = answer(bank, bank.network.inputs(x), Inquiry())
        there = ask(default_demo.port, BANK, x)
        assert there.version == bank.version
        assert there.labels.tolist() == here.labels.tolist()
        assert there.tasks.tolist() == here.mask_ids.tolist()
        assert (there.labels == labels).mean() == task["accuracy"], "what the demo told"
