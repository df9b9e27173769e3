"""A replica over HTTP beside the same call in this process; and how long after a commit it answers with it.

    python benchmarks/serving.py                       k = 10, 250, 2500; one core and two; some minutes
    python benchmarks/serving.py --masks 10 --cores 1  less
    python benchmarks/serving.py --commits 0           no commits
    python benchmarks/serving.py --peer                beside a stock server, which pip installs the first time

The replica is a process of its own (`supsup-daemon serve`) over an embedded Redis; requests come from here, one after
another, over one connection, with images and answers as binary tensors. *In process* is the same question to the same
snapshot without HTTP, queue or encoding. *HTTP adds* is the difference of the two medians, and depends on what this
machine's loopback costs as well; client and replica share its cores.

What is compared takes turns of a tenth of a second, because a machine's speed changes within seconds; one after the
other, the same pass differs by more than HTTP costs. And in process is asked in a thread that is not the main one, as
in a replica: what the main thread frees, the allocator gives back to the system, and every pass over many masks pays
for it in page faults.

The peer (`_peer`) is MLServer with one plain float32 model of this shape: it has one task and is told nothing. Over
HTTP it reads JSON, no binary tensors; so replica and peer get the same images as JSON and are asked for the same two
outputs, label and probabilities. The replica, which holds all the masks, answers under the one that is told (`told`) or
that the stream had (`sticky`); with binary tensors as well.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import _peer
import numpy as np
import psutil
import torch
from _latest import RESULTS, machine, record
from redis import Redis

from daemon.embedded import EmbeddedRedis
from daemon.lease import Lease, Term
from daemon.redis_store import CommitPlan, RedisStore
from supsup_online import codec
from supsup_online.answering import Inquiry, answer
from supsup_online.network import Network
from supsup_online.snapshot import Shelf, Snapshot
from supsup_online.spec import BankSpec
from supsup_online.stats import MaskStats

WAYS: dict[str, dict[str, str]] = {
    "sticky": {"stream": "s"},
    "exact": {"inference": "exact"},
    "one-shot": {"inference": "one-shot"},
}
ROWS = (1, 128)
ENOUGH_S = 4.0  # of one way; at least MIN_CALLS all the same
MIN_CALLS, MAX_CALLS = 5, 400
TURN_S = 0.1
ONE_MASK: dict[str, dict[str, Any]] = {  # the ways that stand beside the peer
    "told": {"parameters": {}, "task": 0},
    "sticky": {"parameters": {"stream": "s"}},
}


class Bank:
    """A bank of masks that nobody trained: what they answer does not matter here, only that they are different."""

    def __init__(self, url: str, name: str, masks: int) -> None:
        self.network = Network.build(BankSpec(budget=10_000))
        self.store = RedisStore(Redis.from_url(url), name)
        self.store.open(self.network)
        term = Lease(self.store.client, self.store.keys, "benchmark", 3600.0).acquire(by_force=True)
        assert isinstance(term, Term)  # noqa: S101 - a benchmark
        self.store.begin(term, self.network)
        bits = np.random.default_rng(masks)
        weights = self.network.layout.weight_count
        self.words = {i: self.network.layout.pack(bits.random(weights) < 0.5) for i in range(masks)}
        self.commits = 0
        for first in range(0, masks, 100):
            self.commit(range(first, min(first + 100, masks)))

    def commit(self, mask_ids: Any) -> int:
        """Write some masks; the bank's new version."""
        self.commits += 1
        plan = CommitPlan(changed=list(mask_ids), events=[{"type": "commit"}])
        # Usual entropies so high that every answer is confident: a stream goes on with its mask.
        stats = MaskStats(batches=9, entropy=6.2).to_text()
        for mask_id in mask_ids:
            blob = codec.encode_mask(self.network, self.words[mask_id])
            plan.write("SET", self.store.keys.mask(mask_id), blob)
            plan.hset(self.store.keys.stats(mask_id), stats)
        return self.store.commit(plan, commit_id=self.store.term.commit_id(self.commits))

    def snapshot(self) -> Snapshot:
        """The same bank in this process."""
        shelf = Shelf(self.network)
        return shelf.next(shelf.empty(), 1, self.words, dict.fromkeys(self.words, 6.2), set())


@contextmanager
def replica(url: str, bank: str, threads: int) -> Iterator[tuple[http.client.HTTPConnection, psutil.Process]]:
    """A replica that is ready, a connection to it, and its process."""
    command = [sys.executable, "-m", "daemon", "serve", f"--redis={url}", f"--bank={bank}", "--port=0"]
    command += [f"--threads={threads}", "--log-format=json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPSUP_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            port = 0
            assert process.stderr is not None  # noqa: S101
            for line in process.stderr:
                told = json.loads(line) if line.startswith("{") else {}
                port = told.get("port", port)
                if told.get("event") == "replica.ready":
                    break
            yield http.client.HTTPConnection("127.0.0.1", port, timeout=600), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.communicate()


def request_of(
    x: np.ndarray,
    parameters: dict[str, Any],
    *,
    binary: bool = True,
    task: int | None = None,
    outputs: Sequence[str] = (),
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request: tensors in binary or all in JSON, the mask told or not, some outputs or all."""
    tensor: dict[str, Any] = {"name": "x", "shape": list(x.shape), "datatype": "UINT8"}
    tensor |= {"parameters": {"binary_data_size": x.nbytes}} if binary else {"data": x.reshape(-1).tolist()}
    told = [] if task is None else [{"name": "task", "shape": [1], "datatype": "INT64", "data": [task]}]
    document: dict[str, Any] = {"inputs": [tensor, *told], "parameters": parameters | {"binary_data_output": binary}}
    if outputs:
        document["outputs"] = [{"name": name} for name in outputs]
    head = json.dumps(document).encode()
    return (head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}) if binary else (head, {})


def ask(connection: http.client.HTTPConnection, bank: str, body: bytes, headers: dict[str, str]) -> bytes:
    """One answer; its JSON."""
    connection.request("POST", f"/v2/models/{bank}/infer", body, headers)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(content[:200])
    return content[: int(response.headers.get("Inference-Header-Content-Length", len(content)))]


def in_turns(calls: Mapping[str, Callable[[], Any]], enough_s: float) -> dict[str, np.ndarray]:
    """Milliseconds of some calls of each."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    while waiting := [name for name, times in spent.items() if not _enough(times, enough_s)]:
        for name in waiting:
            spent[name] += _turn(calls[name])
    return {name: 1000 * np.array(times) for name, times in spent.items()}


def _enough(times: list[float], enough_s: float) -> bool:
    return len(times) >= MIN_CALLS and (sum(times) >= enough_s or len(times) >= MAX_CALLS)


def _turn(call: Callable[[], Any]) -> list[float]:
    """Seconds of some calls; of several the first is not counted: it finds the caches as another way left them."""
    times: list[float] = []
    while sum(times) < TURN_S:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return times[1:] or times


def latencies(bank: Bank, url: str, name: str, cores: int, enough_s: float) -> list[dict[str, Any]]:
    """Every way, over HTTP and in this process."""
    torch.set_num_threads(cores)
    snapshot, found = bank.snapshot(), []
    images = np.random.default_rng(0).integers(0, 256, (max(ROWS), 28, 28), dtype=np.uint8)
    with replica(url, name, cores) as (connection, process):
        for way, parameters in WAYS.items():
            for rows in ROWS:
                x = images[:rows]
                inquiry = Inquiry(parameters.get("inference", "exact"))
                last = 0 if way == "sticky" else None
                body, headers = request_of(x, parameters)
                spent = in_turns(
                    {
                        "here": lambda: answer(snapshot, snapshot.network.inputs(x), inquiry, last),  # noqa: B023
                        "over": lambda: ask(connection, name, body, headers),  # noqa: B023
                    },
                    enough_s,
                )
                here, over = spent["here"], spent["over"]
                median = float(np.median(over))
                found.append(
                    {
                        "masks": len(snapshot),
                        "cores": cores,
                        "way": way,
                        "rows": rows,
                        "in_process_ms": float(np.median(here)),
                        "http_ms": median,
                        "http_99_ms": float(np.percentile(over, 99)),
                        "http_adds_ms": median - float(np.median(here)),
                        "rows_per_s": 1000 * rows / median,
                        "calls": len(over),
                        "rss_mib": process.memory_info().rss / 2**20,
                        "packed_mib": snapshot.slots.size * snapshot.masks.shape[1] * 8 / 2**20,
                    }
                )
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def beside_peer(url: str, name: str, masks: int, cores: int, enough_s: float) -> list[dict[str, Any]]:
    """The peer, and the replica where it is asked for one mask."""
    images = np.random.default_rng(0).integers(0, 256, (max(ROWS), 28, 28), dtype=np.uint8)
    found = []
    with replica(url, name, cores) as (ours, _), _peer.peer(cores) as theirs:
        for rows in ROWS:
            x = images[:rows]
            calls = {("peer", "JSON"): partial(ask, theirs, _peer.MODEL, *request_of(x, {}, binary=False))}
            for way, asked in ONE_MASK.items():
                for encoding in ("JSON", "binary"):
                    request = request_of(x, binary=encoding == "binary", outputs=("label", "probabilities"), **asked)
                    calls[way, encoding] = partial(ask, ours, name, *request)
            for (way, encoding), spent in in_turns(calls, enough_s).items():
                found.append(
                    {
                        "way": way,
                        "tasks": 1 if way == "peer" else masks,
                        "encoding": encoding,
                        "cores": cores,
                        "rows": rows,
                        "median_ms": float(np.median(spent)),
                        "99_ms": float(np.percentile(spent, 99)),
                        "requests_per_s": 1000 / float(np.mean(spent)),
                        "calls": len(spent),
                    }
                )
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def visible(bank: Bank, url: str, name: str, commits: int) -> dict[str, float]:
    """Milliseconds from the commit's reply to the first answer of its version."""
    body, headers = request_of(np.zeros((1, 28, 28), np.uint8), {"stream": "s"})
    spent = []
    with replica(url, name, 1) as (connection, _):
        for number in range(commits):
            version = str(bank.commit([number % len(bank.words)]))
            begun = time.perf_counter()
            while json.loads(ask(connection, name, body, headers))["model_version"] != version:
                pass
            spent.append(time.perf_counter() - begun)
    milliseconds = np.array(spent) * 1000
    return {
        "commits": commits,
        "median_ms": float(np.median(milliseconds)),
        "99_ms": float(np.percentile(milliseconds, 99)),
        "longest_ms": float(milliseconds.max()),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Median latency by number of masks, one row a request, beside the call in process."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only where a picture is wanted

    figure = Figure(figsize=(9, 4), layout="constrained")
    for place, size in enumerate(ROWS):
        axes = figure.add_subplot(1, 2, place + 1)
        for colour, way in zip(("#0072b2", "#d55e00", "#009e73"), WAYS, strict=True):
            chosen = [r for r in rows if (r["way"], r["rows"]) == (way, size) and r["cores"] == rows[0]["cores"]]
            masks = [r["masks"] for r in chosen]
            axes.plot(masks, [r["http_ms"] for r in chosen], "o-", color=colour, label=f"{way}, HTTP")
            axes.plot(masks, [r["in_process_ms"] for r in chosen], "x--", color=colour, label=f"{way}, in process")
        axes.set(xscale="log", yscale="log", xlabel="masks", ylabel="median, ms", title=f"{size} rows a request")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def print_beside(rows: list[dict[str, Any]]) -> None:
    """The table of the peer beside the replica."""
    print("| server | tasks | tensors | cores | rows | median ms | 99 % | requests/s |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        server = f"MLServer {_peer.VERSION}, one plain float32 model" if r["way"] == "peer" else f"replica, {r['way']}"
        print(
            f"| {server} | {r['tasks']} | {r['encoding']} | {r['cores']} | {r['rows']} | {r['median_ms']:.2f} | "
            f"{r['99_ms']:.2f} | {r['requests_per_s']:.0f} |"
        )


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--masks", nargs="+", type=int, default=[10, 250, 2500])
    arguments.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    arguments.add_argument("--commits", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=ENOUGH_S, help="of each way, at most 400 calls")
    arguments.add_argument("--figure", type=Path, default=None, help="path of the picture, without its ending")
    arguments.add_argument("--peer", action="store_true", help="beside a stock server, over the last of the banks")
    given = arguments.parse_args()
    rows, seen, beside = [], {}, []
    with ExitStack() as stack:
        aside = stack.enter_context(ThreadPoolExecutor(1))  # not the main thread: see above
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        url = stack.enter_context(EmbeddedRedis(Path(directory))).url
        for masks in given.masks:
            bank = Bank(url, f"k{masks}", masks)
            for cores in given.cores:
                rows += aside.submit(latencies, bank, url, f"k{masks}", cores, given.seconds).result()
            if given.commits:
                seen[masks] = visible(bank, url, f"k{masks}", given.commits)
                print(json.dumps({"masks": masks, **seen[masks]}), file=sys.stderr, flush=True)
        for cores in given.cores if given.peer else ():
            beside += beside_peer(url, f"k{given.masks[-1]}", given.masks[-1], cores, given.seconds)
    print(
        "| masks | cores | way | rows | in process ms | HTTP ms | 99 % | HTTP adds ms | rows/s | RSS MiB | packed MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['masks']} | {r['cores']} | {r['way']} | {r['rows']} | {r['in_process_ms']:.2f} | "
            f"{r['http_ms']:.2f} | {r['http_99_ms']:.2f} | {r['http_adds_ms']:.2f} | "
            f"{r['rows_per_s']:.0f} | {r['rss_mib']:.0f} | "
            f"{r['packed_mib']:.1f} |"
        )
    for masks, r in seen.items():
        print(
            f"visible after a commit, {masks} masks: median {r['median_ms']:.1f} ms, 99 % {r['99_ms']:.1f} ms, "
            f"longest {r['longest_ms']:.1f} ms over {r['commits']:.0f} commits"
        )
    if beside:
        print_beside(beside)
        medians = {(r["way"], r["encoding"]): r["median_ms"] for r in reversed(beside) if r["rows"] == 1}
        record(serving_peer_ms=medians["peer", "JSON"], serving_told_json_ms=medians["told", "JSON"])
    RESULTS.mkdir(exist_ok=True)
    found = {"rows": rows, "visible": seen, "beside_peer": beside, "machine": machine()}
    (RESULTS / "serving.json").write_text(json.dumps(found, indent=1))
    if seen:
        first = next(iter(seen.values()))
        record(serving_visible_median_ms=first["median_ms"], serving_visible_99_ms=first["99_ms"])
    single = [r["http_adds_ms"] for r in rows if r["rows"] == 1]
    record(serving_http_adds_ms=float(np.median(single)))
    if given.figure is not None:
        draw(rows, given.figure)


if __name__ == "__main__":
    main()
