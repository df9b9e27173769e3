"""What `doctor` says about this machine: device, threads, memory, and measured times against the settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from daemon.findings import Finding, Miss, duration, note, ok, problem, several, size, warning
from daemon.mask_sizes import MaskSizes
from daemon.settings import Settings

_LIBRARIES: Final = 500 * 2**20  # a trainer with torch loaded and nothing learnt, rounded up


@dataclass(frozen=True, slots=True)
class Measured:
    """Times taken on random data with the configured network.

    Attributes:
        rows: rows of a batch.
        step_s: one training step, test included.
        decision_s: the part of a decision that does not depend on the number of masks.
        decision_per_mask_s: what each mask adds to it.
        fingerprint: of the weights generated for it.
    """

    rows: int
    step_s: float
    decision_s: float
    decision_per_mask_s: float
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What was seen of this machine.

    Attributes:
        python, torch: versions.
        device: what the trainer would compute on, in words; empty when there is no such device.
        device_failure: why not.
        is_cuda: whether that is a CUDA device.
        cores: those this process may use.
        threads: torch's own choice.
        memory: bytes that are free for a trainer, by what limits them; None where unknown.
        memory_limit: what that is: `machine` or `cgroup`.
        measured: None where nothing was measured.
        misses: what could not be found out.
    """

    python: str = ""
    torch: str = ""
    device: str = ""
    device_failure: str = ""
    is_cuda: bool = False
    cores: int = 1
    threads: int = 1
    memory: int | None = None
    memory_limit: str = "machine"
    measured: Measured | None = None
    misses: tuple[Miss, ...] = ()


def check_machine(settings: Settings, facts: MachineFacts, sizes: MaskSizes, masks: int = 0) -> Iterator[Finding]:
    """Everything about this machine, for a bank that holds so many masks now."""
    yield ok("machine.software", f"Python {facts.python}, torch {facts.torch}")
    yield from _device(settings, facts)
    yield from _threads(settings, facts)
    yield from _memory(settings, facts, sizes)
    for miss in facts.misses:
        yield note("machine.measured", f"could not measure {miss.what} ({miss.why})")
    if facts.measured is not None:
        yield from _speed(settings, facts.measured, masks)
        yield from _longest_step(settings, facts.measured)
        yield from _commits(settings, facts.measured)


def _device(settings: Settings, facts: MachineFacts) -> Iterator[Finding]:
    if facts.device_failure:
        yield problem("machine.device", facts.device_failure, "--device cpu, or auto")
    elif facts.is_cuda:
        yield note(
            "machine.device",
            f"{facts.device}: fast, but byte-for-byte repetition is promised on a CPU only",
            "--device cpu where that matters",
        )
    else:
        yield ok("machine.device", f"{facts.device} (--device {settings.device})")


def _threads(settings: Settings, facts: MachineFacts) -> Iterator[Finding]:
    used = settings.threads or facts.threads
    found = f"{several(used, 'thread')} on {several(facts.cores, 'core')}"
    if used > facts.cores:
        yield warning("machine.threads", f"{found}: they get in each other's way", f"--threads {facts.cores}")
    elif not settings.threads:
        yield note(
            "machine.threads",
            f"{found}, torch's own choice",
            f"--threads {used} fixes it: with another number the last bits of a mask may differ",
        )
    else:
        yield ok("machine.threads", found)


def _memory(settings: Settings, facts: MachineFacts, sizes: MaskSizes) -> Iterator[Finding]:
    """docs/reference/memory.md, A worker; at its worst, while the array of masks doubles during a decision."""
    hot = min(settings.hot_masks, settings.budget)
    full = 2 * sizes.weights + 3 * sizes.packed * settings.budget + sizes.hot * hot + _LIBRARIES
    if settings.rule in ("one-shot", "paper"):
        full += 80 * sizes.weights  # 64 unpacked masks: 320 bytes a weight
    # A partition is paused from 8 MiB on, so what waits is that, one more fetch, and the client's own next one.
    records = 2 * max(settings.max_record_bytes, 2**20) + 8 * 2**20
    needs = f"a trainer with {several(settings.budget, 'mask')}, {hot} of them hot, needs up to {size(full)}"
    if facts.memory is None:
        yield note("machine.memory", f"{needs}; how much there is could not be found out")
        return
    found = f"{needs}; {size(facts.memory)} are free ({facts.memory_limit})"
    fewer = "more memory, or a smaller --budget or --arch"
    if full > facts.memory:
        yield problem("machine.memory", f"{found}: it does not fit", fewer)
    elif full > 0.8 * facts.memory:
        yield warning("machine.memory", f"{found}: it hardly fits", fewer)
    else:
        yield ok("machine.memory", found)
    if full <= facts.memory < full + records:
        yield note(
            "machine.memory",
            f"records of the largest size that wait to be trained would be {size(records)} more",
            "a smaller --max-record-bytes, if such records can come",
        )


# -- measured times


def _speed(settings: Settings, measured: Measured, masks: int) -> Iterator[Finding]:
    yield ok(
        "machine.step",
        f"a batch of {several(measured.rows, 'row')} takes {duration(measured.step_s)}: "
        f"{1 / measured.step_s:.0f} records a second at most",
    )
    now, full = (_share(settings, measured, count) for count in (masks, settings.budget))
    found = (
        f"a decision every {settings.decision_every} batches takes {duration(_decision(measured, masks))} with the "
        f"{several(masks, 'mask')} there are ({now:.0%} of the time), {duration(_decision(measured, settings.budget))} "
        f"with {settings.budget} ({full:.0%})"
    )
    advice = "raise --decision-every, or lower --decision-rows or --budget"
    if now > 0.5:
        yield warning("machine.decision", found, advice)
    elif full > 0.5:
        yield note("machine.decision", found, f"once the bank is that full: {advice}")
    else:
        yield ok("machine.decision", found)


def _share(settings: Settings, measured: Measured, masks: int) -> float:
    """Part of the time that goes into decisions."""
    decision = _decision(measured, masks)
    return decision / (decision + settings.decision_every * measured.step_s)


def _decision(measured: Measured, masks: int) -> float:
    return measured.decision_s + masks * measured.decision_per_mask_s


def _longest_step(settings: Settings, measured: Measured) -> Iterator[Finding]:
    """Polls go on while a step is trained; what has to wait for the step is an end, a rebalance, and the heartbeat."""
    longest = measured.step_s + _decision(measured, settings.budget)
    found = f"a step with a decision takes {duration(longest)} with {several(settings.budget, 'mask')}"
    fewer = "fewer rows a record, or a smaller --decision-rows or --budget"
    limits = {"rebalance_budget_s": settings.rebalance_budget_s, "stop_deadline_s": settings.stop_deadline_s}
    short = [f"{name} ({duration(limit)})" for name, limit in limits.items() if longest > limit]
    if longest > settings.livez_limit_s:
        yield problem(
            "machine.poll-interval",
            f"{found}: after livez_limit_s ({duration(settings.livez_limit_s)}) the trainer is taken for dead",
            f"--livez-limit-s {int(2 * longest) + 1}, {fewer}",
        )
    elif short:
        yield warning("machine.poll-interval", f"{found}, longer than {' and '.join(short)}", f"raise them, or {fewer}")
    else:
        yield ok(
            "machine.poll-interval",
            f"{found}; polls go on meanwhile, so max_poll_interval_s ({duration(settings.max_poll_interval_s)}) holds",
        )


def _commits(settings: Settings, measured: Measured) -> Iterator[Finding]:
    busy = settings.commit_every * measured.step_s
    between = min(busy, settings.commit_interval_s)
    records = max(1, min(settings.commit_every, int(settings.commit_interval_s / measured.step_s)))
    yield ok(
        "machine.commit",
        f"under load a commit every {duration(between)} or {several(records, 'record')}: so much is done again after "
        "a crash",
    )
