"""Trainers on one bank, and the servers, stream and counters around them: what a fault is inflicted on."""

import time
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from fault.compare import totals
from fault.nursery import Death
from fault.plan import Fault
from fault.servers import Servers
from fault.topics import Published
from fault.trainers import FaultError, Life, Trainers

_LOOK_S = 0.1  # between two questions to Redis


@dataclass
class Bench:
    """A round as the faults see it.

    Attributes:
        deaths: of trainers that have killed themselves at their points.
    """

    servers: Servers
    published: Published
    bank: str
    trainers: Trainers
    deaths: list[Death] = field(default_factory=list)
    _looked: float = 0.0
    _finished: bool = False

    def __post_init__(self) -> None:
        self.trainers.on_death = self._note_death  # type: ignore[method-assign]

    def _note_death(self, life: Life) -> None:
        assert life.fatal is not None
        self.deaths.append(life.fatal)

    def at_work(self) -> bool:
        """Wait until a trainer has trained another batch; False when the stream is read to its end.

        Raises:
            FaultError: neither came.
        """
        seen = {life.pid: life.said("batch.trained") for life in self.trainers.lives}

        def works() -> bool:
            leader = self.trainers.leader
            return leader is not None and leader.said("batch.trained") > seen.get(leader.pid, 0)

        self.trainers.wait(lambda: works() or self.finished, "a trainer is at work")
        return not self.finished

    @property
    def finished(self) -> bool:
        """Whether Redis says that the whole stream is applied; asked at most ten times a second."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            try:
                self._finished = totals(self.servers.redis, self.bank).get("records", 0) >= self.published.length
            except RedisError:
                self._finished = False
        return self._finished

    def leader(self) -> Life:
        """Who writes the bank; waited for."""
        self.trainers.wait(lambda: self.trainers.leader, "a trainer leads")
        leader = self.trainers.leader
        if leader is None:
            raise FaultError("the leader has just ended by itself")
        return leader

    def check_code(self, life: Life, expected: int) -> None:
        """Hold an exit code against the expected one.

        Raises:
            FaultError: it is another.
        """
        if life.code != expected:
            raise FaultError(f"{life.log.name} ended with {life.code}, not {expected}:\n{life.tail()}")

    # -- deaths at named points

    def foresee(self, fault: Fault) -> Death:
        """Have the next trainer that is started die as this fault says, unless one was told so already."""
        death = Death(fault.point, int(fault.numbers["passage"]), fault.number)
        if not self.sentenced(death) and death not in self.trainers.deadly:
            self.trainers.deadly.append(death)
        return death

    def sentenced(self, death: Death) -> bool:
        """Whether a trainer that runs, or has fallen already, was told to die so."""
        return death in self.deaths or any(life.fatal == death for life in self.trainers.lives)
