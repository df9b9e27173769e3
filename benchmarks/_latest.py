"""Where the benchmarks leave their figures: benchmarks/results/latest.json, one object for all of them."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from supsup_online.paper import results

RESULTS: Final = Path(__file__).with_name("results")


def record(**figures: Any) -> None:
    """Add figures to latest.json; those of other benchmarks stay."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latest.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= figures | {"machine": machine()}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return results.machine() | {"gpu": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None}


def medians(ways: dict[str, Callable[[], Any]], rounds: int, burst: int = 1) -> dict[str, float]:
    """Median milliseconds of each way; they take turns, so that a busy moment meets all of them.

    A turn is `burst` calls; of several the first is not counted: it finds the caches as another way left them.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            times = []
            for _ in range(burst):
                finish()
                begun = time.perf_counter()
                way()
                finish()
                times.append(1e3 * (time.perf_counter() - begun))
            spent[name] += times[1:] or times
    return {name: statistics.median(times) for name, times in spent.items()}


def finish() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(way: Callable[[], Any]) -> int:
    """By how much one call raises this process's memory at its peak, beyond what it has before (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before = _status("VmRSS")
    way()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
