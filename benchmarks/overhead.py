"""What a batch costs besides its training step: decode, decide, commit, log, in the real loop on real servers.

    python benchmarks/overhead.py                 embedded broker and Redis, about half a minute

Publishes a stream of recurring tasks first, then runs the trainer's own loop over it in this process, with a
stopwatch around each part. `training` is forward, backward and update; everything else is overhead. The floor is the
bare float32 matrix products of one step. Then a bare learner takes the same batches out of memory, in the same process;
the time it needs over the time from the first record to the last commit is `daemon_over_learner`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from _latest import record

from daemon import bootstrap, kafka_client, logs, publisher
from daemon.apply import Applier
from daemon.checkpoint import Checkpointer
from daemon.embedded import EmbeddedServers
from daemon.loop import StopRequest
from daemon.observe import Observer
from daemon.settings import Settings
from daemon.telemetry import Telemetry
from supsup_online import wire
from supsup_online.datasets import load_mnist
from supsup_online.fused_trainer import FusedTrainer
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.scenarios import Scenario, ScheduledBatch, iter_stream, schedule
from supsup_online.types import Batch

spent: dict[str, float] = defaultdict(float)
moments: dict[str, float] = {}  # when the first record was applied, and when the last part of the work ended


def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A callable that adds its time to `spent[name]`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        if name == "apply":
            moments.setdefault("first", begun)
        try:
            return call(*args, **kwargs)
        finally:
            moments["last"] = time.perf_counter()
            spent[name] += moments["last"] - begun

    return wrapper


def floor_ms(network: Network, rows: int) -> float:
    """Bare float32 products of one step: forward, gradient to the inputs (not of the first layer), to the weights."""
    weights = network.architecture.split(network.weights)
    inputs = [torch.randn(rows, w.shape[1]) for w in weights]
    outputs = [torch.randn(rows, w.shape[0]) for w in weights]

    def products() -> None:
        for i, (w, x, y) in enumerate(zip(weights, inputs, outputs, strict=True)):
            x @ w.T
            y.T @ x
            if i:
                y @ w

    products()
    begun = time.perf_counter()
    for _ in range(200):
        products()
    return 1e3 * (time.perf_counter() - begun) / 200


def main() -> None:
    """Publish, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--batches", type=int, default=1000)
    arguments.add_argument("--rows", type=int, default=128)
    arguments.add_argument("--tasks", type=int, default=5)
    given = arguments.parse_args()
    logs.configure("json", "info")
    instrument()
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        servers = stack.enter_context(EmbeddedServers(Path(directory)))
        settings = Settings(kafka=(servers.kafka,), redis=servers.redis_url, burst=True, session_timeout_s=3.0)
        kafka_client.create_topics(bootstrap.kafka_settings(settings), settings.topic)
        scenario = Scenario(load_mnist(), "permuted", given.tasks, 0)
        plan = schedule("random", given.tasks, given.batches, 0)
        publisher.send(
            settings.kafka, settings.topic[0], publisher.from_scenario(scenario, plan, given.rows, "arrow", keyed=False)
        )
        learner = OnlineLearner(Network.build(settings.bank_spec()), settings.learner())
        store = bootstrap.connect_store(stack, settings)
        store.open(learner.network)
        loop = bootstrap.take_over(stack, settings, store, learner, StopRequest(), telemetry=Telemetry())
        if loop is None:
            return
        loop.run()
        spent["wall"] = moments["last"] - moments["first"]
    watched = dict(spent)
    bare = statistics.median(bare_seconds(settings, scenario, plan, given.rows) for _ in range(3))
    show(learner, given, watched, bare)


def bare_seconds(settings: Settings, scenario: Scenario, plan: list[ScheduledBatch], rows: int) -> float:
    """Seconds that a learner alone needs for the same batches, made before."""
    learner = OnlineLearner(Network.build(settings.bank_spec()), settings.learner())
    batches = [Batch(x, y, place.stream) for place, x, y in iter_stream(scenario, plan, rows)]
    begun = time.perf_counter()
    for batch in batches:
        learner.step(batch)
    return time.perf_counter() - begun


def instrument() -> None:
    """Stopwatches around the parts, put on the classes before anything is built."""
    parts = {
        "training": [(FusedTrainer, "evaluate"), (FusedTrainer, "update")],
        "decide": [(OnlineLearner, "_act")],
        "decode": [(wire, "decode")],
        "commit": [(Checkpointer, "commit")],
        "log": [(Observer, "batch")],
        "apply": [(Applier, "apply")],
    }
    for name, places in parts.items():
        for owner, attribute in places:
            setattr(owner, attribute, timed(name, getattr(owner, attribute)))


def show(learner: OnlineLearner, given: argparse.Namespace, watched: dict[str, float], bare: float) -> None:
    """The table, and benchmarks/results/overhead.json."""
    per_batch = {name: 1e3 * seconds / given.batches for name, seconds in watched.items()}
    outside = per_batch["apply"] - per_batch["training"] + per_batch["decode"] + per_batch["commit"]
    floor = floor_ms(learner.network, given.rows)
    print(f"\n{given.batches} batches of {given.rows}, {given.tasks} tasks, {torch.get_num_threads()} threads\n")
    print("| per batch | ms | over the training step |\n|---|---|---|")
    for name in ("training", "decode", "decide", "commit", "log"):
        print(f"| {name} | {per_batch[name]:.3f} | {per_batch[name] / per_batch['training']:.2f} |")
    named = per_batch["decode"] + per_batch["decide"] + per_batch["commit"]
    print(f"| decode, decide and commit | {named:.3f} | {named / per_batch['training']:.2f} |")
    print(f"| all outside the training step | {outside:.3f} | {outside / per_batch['training']:.2f} |")
    print(f"| floor: bare matrix products | {floor:.3f} | {floor / per_batch['training']:.2f} |")
    ratio = bare / watched["wall"]
    print(f"| from first record to last commit | {per_batch['wall']:.3f} | |")
    print(f"| the bare learner | {1e3 * bare / given.batches:.3f} | daemon over learner: **{ratio:.2f}** |")
    record(daemon_over_learner=ratio)
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    result = {"ms_per_batch": per_batch, "outside_over_training": outside / per_batch["training"], "floor_ms": floor}
    (results / "overhead.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
