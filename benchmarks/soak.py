"""Eight hours of stream time in some minutes: does the trainer's memory stay flat, and do its file descriptors?

    python benchmarks/soak.py                          eight hours at one batch a second, as fast as it goes
    python benchmarks/soak.py --hours 1 --figure soak  and a picture, soak.png and soak.svg

A trainer in a process of its own, with HTTP on, reads a stream with all in it that leaves traces: tasks that come back,
more tasks than the budget holds (masks are evicted), keys that come and go, unlabelled batches, records of no
use, and a Redis that is killed and restarted seven times. Memory (RSS) and descriptors are read once a second,
metrics are scraped; the first quarter of the run is left out as warming up.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from kafka import KafkaProducer
from redis import Redis

from daemon import logs
from daemon.embedded import EmbeddedServers, _free_port
from supsup_online import wire
from supsup_online.datasets import load_mnist
from supsup_online.scenarios import Scenario

TOPIC = "soak"
AHEAD = 400  # records published ahead of the trainer; the embedded broker keeps all of them in memory
ARROW = [("content-type", wire.ARROW_CONTENT_TYPE.encode())]


@dataclass
class Samples:
    """What was seen of the trainer: seconds, records applied, resident bytes, file descriptors, threads."""

    rows: list[tuple[float, int, int, int, int]] = field(default_factory=list)

    def column(self, index: int) -> np.ndarray:
        """One column, the warming up left out."""
        table = np.array(self.rows, dtype=float)
        return table[table[:, 1] >= table[-1, 1] / 4][:, index]

    def slope(self, index: int, per_records: int) -> float:
        """Growth of a column over so many records, by least squares."""
        return float(np.polyfit(self.column(1), self.column(index), 1)[0] * per_records)


def records(scenario: Scenario, count: int, rows: int) -> Iterator[tuple[bytes, bytes | None]]:
    """(value, key) of the stream; a second of stream time each."""
    draws = np.random.default_rng(0)
    task, left = 0, 0
    for i in range(count):
        if not left:
            task, left = int(draws.integers(scenario.tasks)), int(draws.integers(20, 80))
        left -= 1
        x, y = scenario.batch(task, i, rows)
        key = b"visitor-%d" % (i // 600) if i % 600 < 40 else None  # a stream of its own for forty batches
        kind = draws.random()
        if kind < 0.01:
            yield bytes(draws.integers(0, 256, int(draws.integers(1, 2000)), dtype=np.uint8)), key
        elif kind < 0.03:
            yield wire.encode_arrow(x), key
        else:
            yield wire.encode_arrow(x, y), key


def main() -> None:
    """Run, sample, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hours", type=float, default=8.0, help="of stream time, a batch a second")
    arguments.add_argument("--rows", type=int, default=32)
    arguments.add_argument("--figure", type=Path, default=None, help="path of the picture, without its ending")
    given = arguments.parse_args()
    logs.configure("json", "warning")
    count = int(given.hours * 3600)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = stack.enter_context(EmbeddedServers(directory / "servers"))
        port = _free_port()
        trainer = start(servers, directory, port)
        stack.callback(trainer.kill)
        samples = feed(
            trainer, servers, port, records(Scenario(load_mnist(), "permuted", 24, 0), count, given.rows), count
        )
        trainer.send_signal(signal.SIGTERM)
        code = trainer.wait(60)
        log = (directory / "trainer.log").read_text()
    show(samples, given, code, log)


def start(servers: EmbeddedServers, directory: Path, port: int) -> subprocess.Popen[bytes]:
    """A trainer as a person would start it."""
    options = [
        *("--kafka", servers.kafka, "--redis", servers.redis_url, "--topic", TOPIC, "--session-timeout-s", "3"),
        *("--budget", "16", "--over-budget", "evict", "--max-streams", "20", "--http-port", port),
        *("--log-level", "warning", "--log-format", "json", "--threads", "1"),
    ]
    with (directory / "trainer.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "daemon", "start", *map(str, options)], stderr=log)


def feed(
    trainer: subprocess.Popen[bytes],
    servers: EmbeddedServers,
    port: int,
    stream: Iterator[tuple[bytes, bytes | None]],
    count: int,
) -> Samples:
    """Publish a little ahead of the trainer, disturb it, and look at it once a second until all is applied."""
    process, samples, begun, published = psutil.Process(trainer.pid), Samples(), time.monotonic(), 0
    producer = KafkaProducer(bootstrap_servers=servers.kafka, linger_ms=2)
    looked, disturbed = 0.0, 0
    try:
        while (applied := progress(servers.redis_url)) < count:
            if trainer.poll() is not None:
                raise SystemExit(f"the trainer ended with {trainer.returncode}")
            while published < min(count, applied + AHEAD):
                value, key = next(stream)
                producer.send(TOPIC, value=value, key=key, headers=ARROW, partition=0)
                published += 1
            now = time.monotonic() - begun
            if applied >= (disturbed + 1) * count / 8:
                disturbed += 1
                restart_redis(servers)
            if now - looked >= 1 and applied:
                looked = now
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
                row = (now, applied, process.memory_info().rss, process.num_fds(), process.num_threads())
                samples.rows.append(row)
                if len(samples.rows) % 20 == 0:
                    left = now / applied * (count - applied)
                    line = f"  {applied} of {count} batches, {row[2] / 2**20:.0f} MiB, {row[3]} descriptors"
                    print(f"{line}, {left:.0f} s left", file=sys.stderr)
            time.sleep(0.02)
    finally:
        producer.close(timeout=5)
    return samples


def progress(redis_url: str) -> int:
    """Records applied and committed."""
    with Redis.from_url(redis_url) as client:
        return int(client.hget("supsup:{default}:totals", "records") or 0)


def restart_redis(servers: EmbeddedServers) -> None:
    """Redis killed, and started again on the same port and data."""
    port = servers.redis.port
    os.kill(servers.redis.pid, signal.SIGKILL)
    servers.redis._wanted_port = port  # noqa: SLF001 - a test of this very thing
    servers.redis._stop_guard()  # noqa: SLF001
    servers.redis._start_on_some_port()  # noqa: SLF001


def show(samples: Samples, given: argparse.Namespace, code: int, log: str) -> None:
    """The table, the picture and benchmarks/results/soak.json."""
    memory, descriptors, threads = samples.column(2) / 2**20, samples.column(3), samples.column(4)
    result = {
        "hours": given.hours,
        "batches": samples.rows[-1][1],
        "seconds": round(samples.rows[-1][0], 1),
        "rss_mib_min": round(float(memory.min()), 1),
        "rss_mib_max": round(float(memory.max()), 1),
        "rss_mib_per_8_hours": round(samples.slope(2, 28_800) / 2**20, 2),
        "descriptors_min": int(descriptors.min()),
        "descriptors_max": int(descriptors.max()),
        "descriptors_per_8_hours": round(samples.slope(3, 28_800), 2),
        "threads_min": int(threads.min()),
        "threads_max": int(threads.max()),
        "exit_code": code,
        "warnings": {name: log.count(f'"{name}"') for name in sorted(set(re.findall(r'"event": "([\w.]+)"', log)))},
    }
    for name, value in result.items():
        print(f"| {name} | {value} |")
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "soak.json").write_text(json.dumps(result, indent=1))
    if given.figure is not None:
        draw(samples, given.figure)


def draw(samples: Samples, path: Path) -> None:
    """Memory and descriptors over stream time."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the picture

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    table = np.array(samples.rows, dtype=float)
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.5), layout="constrained")
    above.plot(table[:, 1] / 3600, table[:, 2] / 2**20)
    above.set(ylabel="RSS (MiB)", ylim=(0, None), title="A trainer over stream time, a batch a second")
    below.plot(table[:, 1] / 3600, table[:, 3])
    below.set(ylabel="file descriptors", xlabel="hours of stream time", ylim=(0, None))
    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=120)


if __name__ == "__main__":
    main()
