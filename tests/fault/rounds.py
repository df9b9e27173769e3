"""Rounds: a fresh bank on a stream that lies ready, one fault after the other, and not one byte that differs."""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from daemon_process import clean_environment
from fault.bench import Bench
from fault.compare import Contents, SideReader, contents, differences, miscounted, totals
from fault.inflict import inflict
from fault.nursery import Brake, Nursery
from fault.plan import Fault, Plan
from fault.servers import BrokerKind, Servers
from fault.topics import OPTIONS, Published, put
from fault.trainers import FaultError, Trainers
from servers import wait_until


@dataclass
class Outcome:
    """How a round went.

    Attributes:
        plan: what was to happen.
        injected: faults that did, before the stream was read to its end.
        differences: what is not as in an undisturbed run; empty when all is well.
        restarts: exit code -> how often a trainer was started again because of it.
        last_words: of these trainers.
        seconds: it took.
    """

    plan: Plan
    injected: list[Fault] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)
    last_words: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def by_kind(self) -> Counter[str]:
        """How many faults of each kind."""
        return Counter(fault.kind for fault in self.injected)


def nursery(directory: Path) -> Nursery:
    """Where all trainers come from."""
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests)])
    return Nursery(directory, clean_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONPATH=path))


class Lane:
    """Servers on which rounds run one after the other, with what undisturbed trainers make there; a context manager."""

    def __init__(self, directory: Path, kind: BrokerKind, trainers_from: Nursery) -> None:
        self.kind = kind
        self._directory = directory
        self._nursery = trainers_from
        self._stack = ExitStack()
        self._published: dict[str, Published] = {}
        self._expected: dict[str, Contents] = {}
        self._sides: dict[str, SideReader] = {}
        self.servers = Servers(directory / "servers", kind)

    def __enter__(self) -> Self:
        shutil.rmtree(self._directory / "servers", ignore_errors=True)  # of an earlier run
        with ExitStack() as stack:
            stack.enter_context(self.servers)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, plan: Plan, on_fault: Callable[[Fault], None] = lambda _: None) -> Outcome:
        """One round; what goes wrong is told in the outcome, and the round's directory stays."""
        self._prepare(plan.stream)
        outcome, begun = Outcome(plan), time.monotonic()
        directory = self._directory / plan.name
        with ExitStack() as stack:
            bench = self._bench(stack, plan.name, plan.stream, directory, pair=plan.pair)
            try:
                self._disturb(bench, plan, outcome, on_fault)
                outcome.differences = self._judge(bench, plan.stream)
            except FaultError as error:
                outcome.differences = str(error).splitlines()
            outcome.restarts, outcome.last_words = bench.trainers.restarts, bench.trainers.last_words
        outcome.seconds = time.monotonic() - begun
        if not outcome.differences:
            shutil.rmtree(directory)
        return outcome

    def _disturb(self, bench: Bench, plan: Plan, outcome: Outcome, on_fault: Callable[[Fault], None]) -> None:
        bench.trainers.brake.release()
        for i, fault in enumerate(plan.faults):
            if fault.kind == "kill-at-point":
                bench.foresee(fault)
            elif i + 1 < len(plan.faults) and plan.faults[i + 1].kind == "kill-at-point":
                bench.foresee(plan.faults[i + 1])
            bench.trainers.tend()
            if not inflict(bench, fault):
                break
            outcome.injected.append(fault)
            on_fault(fault)
        self._finish(bench)

    def _finish(self, bench: Bench) -> None:
        """The rest of the stream at full speed, and an end in good order."""
        trainers = bench.trainers
        trainers.deadly.clear()
        trainers.brake.release()
        trainers.wait(lambda: bench.finished, "the stream is read to its end")
        trainers.wanted = 0
        for life in trainers.lives:
            life.doomed = True
            life.send(signal.SIGTERM)
        trainers.wait(lambda: not trainers.lives, "the trainers stop")

    def _judge(self, bench: Bench, stream: str) -> list[str]:
        redis, bank, published = self.servers.redis, bench.bank, bench.published
        sides = self._sides[stream]
        return [
            *differences(contents(redis, bank), self._expected[stream]),
            *miscounted(totals(redis, bank), published),
            *sides.missing(f"{published.topic}.dlq", bank, published.poison),
            *sides.missing(f"{published.topic}.predictions", bank, published.questions),
            *sides.repeated(f"{published.topic}.predictions", bank),
        ]

    # -- what a round needs

    def _bench(self, stack: ExitStack, bank: str, stream: str, directory: Path, *, pair: bool) -> Bench:
        directory.mkdir(parents=True, exist_ok=True)
        self._empty_redis()
        servers = [f"--kafka={self.servers.kafka}", f"--redis={self.servers.redis_url}"]
        # The embedded broker takes six seconds for a static member, one for another, and may forget one that joins
        # while another leaves, which takes two trainers.
        member = [] if pair or self.kind == "apache" else ["--no-static-member"]
        names = [*member, f"--bank={bank}", f"--group={bank}", f"--topic={self._published[stream].topic}"]
        brake = Brake(directory / "brake")
        stack.callback(brake.close)
        trainers = Trainers(self._nursery, ["start", *servers, *names, *OPTIONS], directory, brake, pair=pair)
        stack.callback(trainers.kill_all)
        return Bench(self.servers, self._published[stream], bank, trainers)

    def _empty_redis(self) -> None:
        """Rounds before this one are done with; a short append-only file is read quickly after a kill."""
        self.servers.redis.flushall()
        self.servers.redis.bgrewriteaof()
        wait_until(
            lambda: not self.servers.redis.info("persistence")["aof_rewrite_in_progress"], "the file is not rewritten"
        )

    def _prepare(self, stream: str) -> None:
        """Publish a stream, and have an undisturbed trainer read it, once."""
        if stream in self._expected:
            return
        published = self._published[stream] = put(self.servers, stream)
        sides = SideReader(self.servers.kafka, [f"{published.topic}.dlq", f"{published.topic}.predictions"])
        self._stack.callback(sides.close)
        self._sides[stream] = sides
        self._expected[stream] = {}
        with ExitStack() as stack:
            bench = self._bench(
                stack, f"undisturbed-{stream}", stream, self._directory / f"undisturbed-{stream}", pair=False
            )
            bench.trainers.tend()
            self._finish(bench)
            expected = contents(self.servers.redis, bench.bank)
            if wrong := [*miscounted(totals(self.servers.redis, bench.bank), published), *self._too_few(expected)]:
                raise FaultError("\n".join(["the undisturbed run is no measure:", *wrong]))
        self._expected[stream] = expected

    def _too_few(self, expected: Contents) -> list[str]:
        """A stream without evictions and hot masks would show little."""
        masks = sum(name.startswith("mask:") for name in expected)
        hot = sum(name.startswith("state:") for name in expected)
        return [] if masks >= 3 and hot >= 2 else [f"{masks} masks, {hot} of them hot"]
