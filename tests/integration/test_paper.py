"""The command `paper`: figures are run, killed, gone on with and reported, as a person would."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from daemon_process import clean_environment, run

# Not marked as integration: no server of anybody's matters here, so once is enough.

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def csv_of(output):
    return {path.name: path.read_bytes() for path in sorted((output / "check" / "quick").glob("*.csv"))}


@pytest.mark.timeout(600)
def test_a_figure_that_is_killed_goes_on_to_the_same_scores(tmp_path):
    whole = run(
        "paper", "run", "check", "--output", tmp_path / "whole", "--json", environment=ONE_THREAD, timeout_s=250
    )
    assert whole.code == 0, whole.stderr
    (figure,) = whole.json
    accuracies = {row["reading"]: row["both"] for row in figure["rows"]}
    assert accuracies["GG"] > 75, "five tasks, a hundred batches each"
    assert figure["unfinished"] == []

    command = [sys.executable, "-m", "daemon", "paper", "run", "check", "--output", str(tmp_path / "cut")]
    with subprocess.Popen(command, env=clean_environment(**ONE_THREAD), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "cut").glob("check/quick/*.npz")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    halfway = json.loads(run("paper", "report", "--output", tmp_path / "cut", "--json").stdout)
    assert halfway[0]["unfinished"] in ([], ["SupSup, seed 0"]), "killed before or after the first record was written"
    again = run("paper", "run", "check", "--output", tmp_path / "cut", environment=ONE_THREAD, timeout_s=250)
    assert again.code == 0, again.stderr
    assert csv_of(tmp_path / "cut") == csv_of(tmp_path / "whole")
    assert "| SupSup | GG | 5 | 1 |" in again.stdout
    assert (tmp_path / "cut" / "check" / "quick" / "figure.png").exists()


def test_the_figures_are_listed():
    listed = run("paper", "list", "--json").json
    assert {"check", "permuted-lenet", "thousands"} <= {figure["name"] for figure in listed}
    assert all(figure["claim"] and figure["title"] for figure in listed)


def test_what_is_asked_wrongly_is_said(tmp_path):
    unknown = run("paper", "run", "figure-99")
    assert (unknown.code, "choose check" in unknown.stderr) == (1, True)
    nothing = run("paper", "report", "--output", tmp_path)
    assert (nothing.code, "paper run" in nothing.stderr) == (2, True)


@pytest.mark.timeout(600)
def test_several_methods_run_at_a_time(tmp_path):
    ended = run("paper", "run", "check", "--seeds", 2, "--jobs", 2, "--output", tmp_path, "--json", timeout_s=400)
    assert ended.code == 0, ended.stderr
    (figure,) = ended.json
    assert figure["unfinished"] == []
    assert {row["seeds"] for row in figure["rows"]} == {2}
    assert all(f"seed {seed}: done" in ended.stderr for seed in (0, 1))


@pytest.mark.timeout(300)
def test_the_processes_of_a_killed_run_do_not_go_on(tmp_path):
    command = [sys.executable, "-m", "daemon", "paper", "run", "check", "--seeds", "2", "--jobs", "2"]
    command += ["--output", str(tmp_path)]
    with subprocess.Popen(command, env=clean_environment(**ONE_THREAD), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("check/quick/*.npz")) and time.monotonic() < deadline:
            time.sleep(0.01)
        others = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    assert len(others) >= 2
    _, alive = psutil.wait_procs(others, timeout=30)
    assert alive == []


def test_what_goes_wrong_in_a_process_of_its_own_is_said(tmp_path):
    record = tmp_path / "check" / "quick" / "supsup.1.npz"
    record.parent.mkdir(parents=True)
    record.write_bytes(b"no archive")
    ended = run("paper", "run", "check", "--seeds", 2, "--jobs", 2, "--output", tmp_path)
    assert (ended.code, "supsup.1.npz cannot be read" in ended.stderr) == (1, True)
