"""The daemon end to end against the bare learner: batches per second, and where the time of a batch goes.

    python benchmarks/throughput.py             LeNet, 1500 batches of 128, three rounds, about a minute
    python benchmarks/throughput.py --tables    only where the time goes

Ways that take turns, over the same batches of recurring permutations:

learner     `OnlineLearner` in this process; the batches lie decoded in memory
daemon      `supsup-daemon start --burst`, a process as an operator starts it, with an embedded broker and Redis in
            processes of their own. Timed by its commits as Redis has them: from the first to the last one, so starting
            is left out, and fetching, decoding, logging and committing are in. The learner is timed over the same
            batches

Then the trainer's own loop runs in this process with a stopwatch around each part. Decoding happens in the poll loop's
thread, beside training; what the threads of one interpreter cost each other is in the parts, for each waits within.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from _latest import RESULTS, record
from redis import Redis

from daemon import bootstrap, kafka_client, logs, publisher
from daemon.apply import Applier
from daemon.checkpoint import Checkpointer
from daemon.embedded import EmbeddedServers
from daemon.loop import StopRequest
from daemon.redis_store import BankReader
from daemon.settings import Settings
from daemon.telemetry import Telemetry
from supsup_online import stats, wire
from supsup_online.datasets import load_mnist
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.scenarios import Scenario, iter_stream, schedule
from supsup_online.types import Batch
from supsup_online.warm_up import warm_up

# What is timed: (class or module, function) per row of the table, innermost first; a part is less what is timed in it.
PARTS: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "decode": ((wire, "decode"),),
    "inputs": ((OnlineLearner, "_inputs"),),
    "decide": ((OnlineLearner, "_act"),),
    "statistics": ((OnlineLearner, "_why_decide"), (OnlineLearner, "_result"), (stats.MaskStats, "observe")),
    "commit": ((Checkpointer, "commit"),),
    "log and metrics": ((Telemetry, "batch"),),
}

spent: dict[str, float] = defaultdict(float)


def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A callable that adds its time to `spent[name]`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - begun

    return wrapper


def learner_times(network: Network, settings: Settings, batches: list[Batch]) -> list[float]:
    """When each batch was done, seconds."""
    learner = OnlineLearner(network, settings.learner())
    done = []
    for batch in batches:
        learner.step(batch)
        done.append(time.perf_counter())
    return done


def daemon_commits(servers: EmbeddedServers, bank: str, directory: Path, threads: int) -> list[tuple[float, int]]:
    """(seconds, batches done) at each commit of one burst."""
    places = ["--kafka", servers.kafka, "--redis", servers.redis_url, "--bank", bank, "--no-static-member"]
    command = [sys.executable, "-m", "daemon", "start", "--burst", *places, "--threads", str(threads)]
    with (directory / f"{bank}.log").open("wb") as said:
        subprocess.run([*command, "--session-timeout-s", "3"], stderr=said, check=True)
    with Redis.from_url(servers.redis_url) as client:
        found = BankReader(client, bank).events(count=100_000)
    # An entry's id begins with the milliseconds at which Redis took it.
    return [
        (int(entry.partition("-")[0]) / 1e3, sum(json.loads(fields["positions"]).values()))
        for entry, fields in found
        if fields["type"] == "commit"
    ]


def compare(
    servers: EmbeddedServers, network: Network, settings: Settings, batches: list[Batch], given: argparse.Namespace
) -> dict[str, Any]:
    """Rounds in which both take turns; ms per batch and the median ratio of batches per second."""
    rounds = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(given.rounds):
            done = learner_times(network, settings, batches)
            commits = daemon_commits(servers, f"round-{number}", Path(directory), given.threads)
            (begun, first), (ended, last) = commits[0], commits[-1]
            learner = 1e3 * (done[last - 1] - done[first - 1]) / (last - first)
            daemon = 1e3 * (ended - begun) / (last - first)
            print(f"round {number + 1}: learner {learner:.3f}, daemon {daemon:.3f} ms a batch, {learner / daemon:.3f}")
            rounds.append({"learner_ms": learner, "daemon_ms": daemon, "daemon_over_learner": learner / daemon})
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    print(f"median: daemon over learner {medians['daemon_over_learner']:.3f}, {last - first} batches a round\n")
    return {**medians, "rounds": rounds}


def profile(settings: Settings, given: argparse.Namespace) -> dict[str, float]:
    """The trainer's own loop in this process; ms per batch of each part."""
    for name, places in PARTS.items():
        for owner, attribute in places:
            setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    Applier.apply = timed("apply", Applier.apply)  # type: ignore[method-assign]
    with ExitStack() as stack:
        learner = OnlineLearner(Network.build(settings.bank_spec()), settings.learner())
        for step in ("evaluate", "update"):
            setattr(learner.trainer, step, timed("step", getattr(learner.trainer, step)))
        store = bootstrap.connect_store(stack, settings)
        store.open(learner.network)
        loop = bootstrap.take_over(stack, settings, store, learner, StopRequest(), telemetry=Telemetry())
        assert loop is not None  # noqa: S101 - for the type checker; nobody asked it to stop
        loop.run()
    return {name: 1e3 * seconds / given.batches for name, seconds in spent.items()}


def show(per_batch: dict[str, float]) -> None:
    """The table of parts."""
    apply, step = per_batch["apply"], per_batch["step"]
    inner = sum(per_batch[name] for name in ("step", "inputs", "decide", "statistics", "log and metrics"))
    rows = [(name, per_batch[name]) for name in ("step", *PARTS)]
    print("| per batch | ms | over the training step |\n|---|---|---|")
    for name, each in [*rows, ("rest of a record", apply - inner)]:
        print(f"| {name} | {each:.3f} | {each / step:.2f} |")
    total = apply + per_batch["commit"]
    print(f"| the training thread in all: all but decode | {total:.3f} | {total / step:.2f} |")


def main() -> None:
    """Publish, run, print."""
    given = _arguments()
    logs.configure("json", "info" if given.tables else "warning")
    if given.threads:
        torch.set_num_threads(given.threads)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        servers = stack.enter_context(EmbeddedServers(Path(directory)))
        settings = Settings(
            kafka=(servers.kafka,),
            redis=servers.redis_url,
            bank="profile",
            burst=True,
            session_timeout_s=3.0,
            static_member=False,
        )
        network = Network.build(settings.bank_spec())
        warm_up(network)
        scenario = Scenario(load_mnist(), "permuted", given.tasks, 0)
        plan = list(schedule("random", given.tasks, given.batches, 0))
        kafka_client.create_topics(kafka_client.kafka_settings(settings), settings.topic)
        records = publisher.from_scenario(scenario, plan, given.rows, "arrow", keyed=False)
        publisher.send(settings.kafka, settings.topic[0], records)
        result: dict[str, Any] = {}
        if not given.tables:
            stream = "supsup:0"  # as the daemon names that of a record without a key
            batches = [Batch(x, y, stream) for _, x, y in iter_stream(scenario, plan, given.rows)]
            result = compare(servers, network, settings, batches, given)
            record(daemon_over_learner=result["daemon_over_learner"])
        logs.configure("json", "info")
        result["ms_per_batch"] = profile(settings, given)
        show(result["ms_per_batch"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "throughput.json").write_text(json.dumps(result, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--batches", type=int, default=1500)
    arguments.add_argument("--rows", type=int, default=128)
    arguments.add_argument("--tasks", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=1, help="of both; 0: torch's default")
    arguments.add_argument("--tables", action="store_true", help="only where the time goes")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
