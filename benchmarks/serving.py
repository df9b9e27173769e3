"""A replica over HTTP beside the same call in this process; and how long after a commit it answers with it.

    python benchmarks/serving.py                       k = 10, 250, 2500; one core and two; some minutes
    python benchmarks/serving.py --masks 10 --cores 1  less
    python benchmarks/serving.py --commits 0           no commits

The replica is a process of its own (`supsup-daemon serve`) over an embedded Redis; requests come from here, one after
another, over one connection, with images and answers as binary tensors. *In process* is the same question to the same
snapshot without HTTP, queue or encoding. *HTTP adds* is the difference of the two medians, and depends on what this
machine's loopback costs as well; client and replica share its cores.

Visible: a commit writes one mask as the trainer does; clocks are compared when the replica names the new version. It is
asked again and again, so half the time that one answer takes is part of the figure.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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


def request_of(x: np.ndarray, parameters: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a binary request."""
    tensor = {
        "name": "x",
        "shape": list(x.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": x.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {**parameters, "binary_data_output": True}}).encode()
    return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def ask(connection: http.client.HTTPConnection, bank: str, body: bytes, headers: dict[str, str]) -> bytes:
    """One answer; its JSON."""
    connection.request("POST", f"/v2/models/{bank}/infer", body, headers)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(content[:200])
    return content[: int(response.headers["Inference-Header-Content-Length"])]


def times(call: Callable[[], Any], enough_s: float) -> np.ndarray:
    """Milliseconds of some calls."""
    call()
    spent: list[float] = []
    while len(spent) < MIN_CALLS or (sum(spent) < enough_s and len(spent) < MAX_CALLS):
        begun = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begun)
    return np.array(spent) * 1000


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
                here = times(lambda: answer(snapshot, snapshot.network.inputs(x), inquiry, last), enough_s)  # noqa: B023
                over = times(lambda: ask(connection, name, body, headers), enough_s)  # noqa: B023
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


def main() -> None:
    """Measure, print, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--masks", nargs="+", type=int, default=[10, 250, 2500])
    arguments.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    arguments.add_argument("--commits", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=ENOUGH_S, help="of each way, at most 400 calls")
    arguments.add_argument("--figure", type=Path, default=None, help="path of the picture, without its ending")
    given = arguments.parse_args()
    rows, seen = [], {}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        url = stack.enter_context(EmbeddedRedis(Path(directory))).url
        for masks in given.masks:
            bank = Bank(url, f"k{masks}", masks)
            for cores in given.cores:
                rows += latencies(bank, url, f"k{masks}", cores, given.seconds)
            if given.commits:
                seen[masks] = visible(bank, url, f"k{masks}", given.commits)
                print(json.dumps({"masks": masks, **seen[masks]}), file=sys.stderr, flush=True)
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
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving.json").write_text(json.dumps({"rows": rows, "visible": seen, "machine": machine()}, indent=1))
    if seen:
        first = next(iter(seen.values()))
        record(serving_visible_median_ms=first["median_ms"], serving_visible_99_ms=first["99_ms"])
    single = [r["http_adds_ms"] for r in rows if r["rows"] == 1]
    record(serving_http_adds_ms=float(np.median(single)))
    if given.figure is not None:
        draw(rows, given.figure)


if __name__ == "__main__":
    main()
