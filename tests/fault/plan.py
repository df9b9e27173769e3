"""Which faults a round has: everything drawn from a seed and the round's number, so that a round can be repeated."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fault.points import POINTS
from fault.servers import BrokerKind
from fault.topics import STREAMS

FAULTS_PER_ROUND: Final = 18

Numbers = dict[str, float]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: a name of `KINDS`.
        numbers: what was drawn for it: seconds, bytes, counts.
        point: where a trainer kills itself, for `kill-at-point`.
        number: its place in the round.
    """

    kind: str
    numbers: Numbers = field(default_factory=dict)
    point: str = ""
    number: int = 0

    def __str__(self) -> str:
        drawn = ", ".join(f"{name}={value:g}" for name, value in self.numbers.items())
        return f"{self.kind}({', '.join(part for part in (self.point, drawn) if part)})"


@dataclass(frozen=True)
class Plan:
    """One round: a fresh bank, and what happens while it is made.

    Attributes:
        number: of the round.
        stream: which is read.
        pair: whether a standby waits all the time.
        faults: in this order.
    """

    number: int
    stream: str
    pair: bool
    faults: tuple[Fault, ...]

    @property
    def name(self) -> str:
        """Of the bank and of the directory."""
        return f"round-{self.number}"


@dataclass(frozen=True)
class Kind:
    """How a kind of fault is drawn.

    Attributes:
        weight: its share among those that are possible.
        draw: numbers for one; `at` and `for_s` are seconds.
        alone: possible without a standby.
        pair: possible with one.
        apache_only: needs a broker that has its log again after a kill.
    """

    weight: int
    draw: Callable[[random.Random], Numbers]
    alone: bool = True
    pair: bool = True
    apache_only: bool = False


def _lasting(least_s: float, most_s: float, **ranges: tuple[int, int]) -> Callable[[random.Random], Numbers]:
    """Begins up to 0.12 s after a sign of work, lasts between these; whole numbers within `ranges` besides."""

    def draw(rng: random.Random) -> Numbers:
        numbers = {"at_s": round(rng.uniform(0, 0.12), 3), "for_s": round(rng.uniform(least_s, most_s), 3)}
        return numbers | {name: rng.randint(*limits) for name, limits in ranges.items()}

    return draw


_AT_ONCE: Final = _lasting(0, 0)
_BLINK: Final = _lasting(0.05, 0.5)
_OUTAGE: Final = _lasting(0.2, 2.0)

KINDS: Final = {
    "kill-at-point": Kind(30, lambda _: {}, pair=False),
    "kill": Kind(14, _AT_ONCE),
    "stop": Kind(4, _AT_ONCE),
    "short-sleep": Kind(4, _lasting(0.05, 0.4)),
    "zombie": Kind(14, _lasting(0.0, 0.5), alone=False),
    "source-killed": Kind(4, _AT_ONCE),
    "source-asleep": Kind(3, _OUTAGE),
    "standby-killed": Kind(3, _AT_ONCE, alone=False),
    "redis-replies-lost": Kind(9, _lasting(0.05, 0.5, after=(0, 400))),
    "redis-requests-lost": Kind(6, _lasting(0.05, 0.5, after=(0, 200_000))),
    "redis-reset": Kind(5, _AT_ONCE),
    "redis-late": Kind(4, _lasting(0.2, 1.0, late_ms=(5, 150))),
    "redis-stalled": Kind(4, _OUTAGE),
    "redis-refused": Kind(4, _OUTAGE),
    "redis-killed": Kind(5, _BLINK),
    "redis-tail-cut": Kind(6, _lasting(0.0, 0.3, bytes=(1, 400_000))),
    "redis-frozen": Kind(3, _OUTAGE),
    "broker-replies-lost": Kind(5, _lasting(0.05, 0.5, after=(0, 20_000))),
    "broker-reset": Kind(5, _AT_ONCE),
    "broker-late": Kind(4, _lasting(0.2, 1.0, late_ms=(5, 150))),
    "broker-stalled": Kind(4, _OUTAGE),
    "broker-refused": Kind(3, _OUTAGE),
    "broker-killed": Kind(4, _BLINK, apache_only=True),
    "broker-frozen": Kind(3, _OUTAGE),
    "rebalances": Kind(3, _lasting(0.3, 1.2, members=(1, 3))),
}


def plan(seed: int, number: int, broker: BrokerKind, faults: int = FAULTS_PER_ROUND) -> Plan:
    """The round of this number under this seed."""
    rng = random.Random(f"{seed}/{number}/{broker}")
    pair = rng.random() < 0.4
    stream = rng.choice(sorted(STREAMS))
    kinds = {
        name: kind.weight
        for name, kind in KINDS.items()
        if (kind.pair if pair else kind.alone) and (broker == "apache" or not kind.apache_only)
    }
    drawn = rng.choices(list(kinds), list(kinds.values()), k=faults)
    return Plan(number, stream, pair, tuple(draw(rng, kind, i) for i, kind in enumerate(drawn)))


def draw(rng: random.Random, kind: str, number: int = 0) -> Fault:
    """One fault of a kind."""
    if kind != "kill-at-point":
        return Fault(kind, KINDS[kind].draw(rng), number=number)
    point = rng.choice(sorted(POINTS))
    return Fault(kind, {"passage": rng.randint(1, POINTS[point].most)}, point, number)
