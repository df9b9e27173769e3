"""The faults themselves: each function does one to a bench of trainers at work, and leaves the servers whole."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from daemon.errors import ExitCode
from fault.bench import Bench
from fault.plan import KINDS, Fault
from fault.proxy import Flow, Proxy
from fault.servers import Server, kill
from fault.trainers import Life

PAUSE_MS: Final = 4  # before each step, so that faults meet a trainer at work

Infliction = Callable[[Bench, Fault], None]


def inflict(bench: Bench, fault: Fault) -> bool:
    """Wait until the trainers are at work, and do it; returns False when the stream was read to its end before.

    Raises:
        FaultError: the trainers did not get (back) to work, or ended as none should.
    """
    if fault.kind == "kill-at-point":
        return _kill_at_point(bench, fault)
    if fault.kind in _WITH_STANDBY:
        bench.trainers.brake.hold()
        bench.trainers.wait(lambda: bench.trainers.standby or bench.finished, "a standby waits")
    bench.trainers.brake.release(PAUSE_MS)
    if not bench.at_work():
        return False
    time.sleep(fault.numbers["at_s"])
    if bench.finished:
        return False
    _INFLICTIONS[fault.kind](bench, fault)
    return True


# -- processes


def _kill_at_point(bench: Bench, fault: Fault) -> bool:
    """The next trainer is told where to die; the one at work makes room for it, unless it is that one already."""
    bench.trainers.brake.release(PAUSE_MS)
    death = bench.foresee(fault)
    if not bench.sentenced(death):
        if not bench.at_work():
            return False
        _end(bench, signal.SIGKILL)
    bench.trainers.wait(lambda: death in bench.deaths or bench.finished, f"death at {fault}")
    return death in bench.deaths


def _end(bench: Bench, number: int) -> None:
    """End the leader with a signal, and wait for that."""
    life = bench.leader()
    life.doomed = True
    life.send(number)
    bench.trainers.wait(lambda: life.code is not None, f"{life.log.name} ends")
    fallen = life.fatal is not None and life.code == -signal.SIGKILL  # it has passed its point on the way out
    if number == signal.SIGTERM and life.code != ExitCode.FENCED and not fallen:  # 75: too busy for its short lease
        bench.check_code(life, 0)


def _kill(bench: Bench, _: Fault) -> None:
    _end(bench, signal.SIGKILL)


def _stop(bench: Bench, _: Fault) -> None:
    _end(bench, signal.SIGTERM)


def _short_sleep(bench: Bench, fault: Fault) -> None:
    with _asleep(bench.leader()):
        time.sleep(fault.numbers["for_s"])


def _zombie(bench: Bench, fault: Fault) -> None:
    """The leader sleeps until the standby has its partitions, wakes up, and must find itself refused."""
    leader, standby = bench.leader(), bench.trainers.standby
    if standby is None:  # it has just taken over by itself
        return _kill(bench, fault)
    taken = standby.said("partition.assigned")
    with _asleep(leader):
        bench.trainers.wait(
            lambda: standby.said("partition.assigned") > taken or bench.finished, f"{standby.log.name} takes over"
        )
        time.sleep(fault.numbers["for_s"])
    bench.trainers.wait(lambda: leader.code is not None, f"{leader.log.name}, a zombie, ends")
    bench.check_code(leader, 75)
    return None


def _standby_killed(bench: Bench, _: Fault) -> None:
    standby = bench.trainers.standby or bench.leader()
    standby.doomed = True
    standby.send(signal.SIGKILL)


def _source_killed(bench: Bench, _: Fault) -> None:
    """The Kafka client's process dies; the trainer must start another and go on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(_source_of(bench.leader()), signal.SIGKILL)


def _source_asleep(bench: Bench, fault: Fault) -> None:
    with contextlib.suppress(ProcessLookupError):
        source = _source_of(bench.leader())
        os.kill(source, signal.SIGSTOP)
        try:
            time.sleep(fault.numbers["for_s"])
        finally:
            os.kill(source, signal.SIGCONT)


def _source_of(life: Life) -> int:
    """The child of a trainer that runs its Kafka client.

    Raises:
        ProcessLookupError: it has none at the moment.
    """
    with contextlib.suppress(FileNotFoundError):
        for child in Path(f"/proc/{life.pid}/task/{life.pid}/children").read_text().split():
            if b"daemon.source_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise ProcessLookupError(life.pid)


@contextlib.contextmanager
def _asleep(life: Life) -> Iterator[None]:
    life.send(signal.SIGSTOP)
    try:
        yield
    finally:
        life.send(signal.SIGCONT)


# -- connections


def _lost_replies(proxy: Proxy, fault: Fault) -> None:
    proxy.misbehave(replies=Flow(lost_after=int(fault.numbers["after"])))


def _lost_requests(proxy: Proxy, fault: Fault) -> None:
    proxy.misbehave(requests=Flow(lost_after=int(fault.numbers["after"])))


def _late(proxy: Proxy, fault: Fault) -> None:
    late = Flow(delay_s=fault.numbers["late_ms"] / 1000)
    proxy.misbehave(requests=late, replies=late)


def _stalled(proxy: Proxy, _: Fault) -> None:
    proxy.misbehave(requests=Flow(stalled=True), replies=Flow(stalled=True))


def _refused(proxy: Proxy, _: Fault) -> None:
    proxy.refuse()
    proxy.cut()


def _reset(proxy: Proxy, _: Fault) -> None:
    proxy.cut()


def _to_redis(misbehave: Callable[[Proxy, Fault], None]) -> Infliction:
    return lambda bench, fault: _for_a_while(bench.servers.redis_proxy, misbehave, fault)


def _to_the_broker(misbehave: Callable[[Proxy, Fault], None]) -> Infliction:
    return lambda bench, fault: _for_a_while(bench.servers.kafka_proxy, misbehave, fault)


def _for_a_while(proxy: Proxy, misbehave: Callable[[Proxy, Fault], None], fault: Fault) -> None:
    try:
        misbehave(proxy, fault)
        time.sleep(fault.numbers["for_s"])
    finally:
        proxy.heal()


# -- servers


def _redis_killed(bench: Bench, fault: Fault) -> None:
    server = bench.servers.redis_server
    base = int(bench.servers.redis.info("persistence")["aof_base_size"])
    kill(server)
    if size := int(fault.numbers.get("bytes", 0)):
        server.cut_tail(size, base)
    time.sleep(fault.numbers["for_s"])
    server.start()


def _broker_killed(bench: Bench, fault: Fault) -> None:
    kill(bench.servers.broker)
    time.sleep(fault.numbers["for_s"])
    bench.servers.broker.start()


def _frozen(server: Server, fault: Fault) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        time.sleep(fault.numbers["for_s"])
    finally:
        os.kill(server.pid, signal.SIGCONT)


# -- the group


def _rebalances(bench: Bench, fault: Fault) -> None:
    """Strangers join the trainers' group one after the other, poll for a while, and leave again."""
    strangers = [
        threading.Thread(target=_stranger, args=(bench, fault.numbers["for_s"], 0.3 * i))
        for i in range(int(fault.numbers["members"]))
    ]
    for thread in strangers:
        thread.start()
    bench.trainers.wait(lambda: not any(thread.is_alive() for thread in strangers), "strangers leave the group")


def _stranger(bench: Bench, seconds: float, after_s: float) -> None:
    time.sleep(after_s)
    with contextlib.suppress(KafkaError):
        consumer = KafkaConsumer(
            bench.published.topic,
            bootstrap_servers=bench.servers.kafka,
            group_id=bench.bank,
            enable_auto_commit=False,
            session_timeout_ms=1000,
            heartbeat_interval_ms=300,
        )
        try:
            end = time.monotonic() + 3 * seconds
            while time.monotonic() < end:
                consumer.poll(timeout_ms=100)
                if consumer.assignment():
                    end = min(end, time.monotonic() + seconds)
        finally:
            consumer.close()


_WITH_STANDBY: Final = {name for name, kind in KINDS.items() if not kind.alone}

_INFLICTIONS: Final[dict[str, Infliction]] = {
    "kill": _kill,
    "stop": _stop,
    "short-sleep": _short_sleep,
    "zombie": _zombie,
    "source-killed": _source_killed,
    "source-asleep": _source_asleep,
    "standby-killed": _standby_killed,
    "redis-replies-lost": _to_redis(_lost_replies),
    "redis-requests-lost": _to_redis(_lost_requests),
    "redis-reset": _to_redis(_reset),
    "redis-late": _to_redis(_late),
    "redis-stalled": _to_redis(_stalled),
    "redis-refused": _to_redis(_refused),
    "redis-killed": _redis_killed,
    "redis-tail-cut": _redis_killed,
    "redis-frozen": lambda bench, fault: _frozen(bench.servers.redis_server, fault),
    "broker-replies-lost": _to_the_broker(_lost_replies),
    "broker-reset": _to_the_broker(_reset),
    "broker-late": _to_the_broker(_late),
    "broker-stalled": _to_the_broker(_stalled),
    "broker-refused": _to_the_broker(_refused),
    "broker-killed": _broker_killed,
    "broker-frozen": lambda bench, fault: _frozen(bench.servers.broker, fault),
    "rebalances": _rebalances,
}
