"""Is everything fit for a trainer? All checks of `doctor` in one place, over what `doctor_probes` observed.

Pure: facts in, findings out. `doctor_kafka`, `doctor_redis` and `doctor_machine` judge one thing each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from daemon.doctor_kafka import check_kafka, check_positions
from daemon.doctor_machine import MachineFacts, check_machine
from daemon.doctor_redis import BankFacts, RedisFacts, check_bank, check_redis, check_room
from daemon.findings import Finding, note, problem
from daemon.kafka_facts import KafkaFacts
from daemon.mask_sizes import MaskSizes
from daemon.settings import Settings


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that was found out.

    Attributes:
        kafka, redis: None where the trainer brings its own.
        bank: None where Redis could not be read.
        machine: this one.
        embedded_failure: why the embedded servers cannot run here; empty where they can, or are not asked for.
    """

    kafka: KafkaFacts | None
    redis: RedisFacts | None
    bank: BankFacts | None
    machine: MachineFacts
    embedded_failure: str = ""


def examine(settings: Settings, seen: Observed, sizes: MaskSizes, rows: int) -> Iterator[Finding]:
    """All findings, server by server.

    Args:
        settings: those of the trainer to be.
        seen: what was found out.
        sizes: of a mask over the configured network.
        rows: rows of a usual batch.
    """
    if settings.embedded:
        yield from _embedded(seen)
    if seen.kafka is not None:
        yield from check_kafka(settings, seen.kafka, rows)
    if seen.redis is not None:
        yield from check_redis(settings, seen.redis)
        if seen.bank is not None:
            yield from check_room(settings, seen.redis, seen.bank, sizes)
            fingerprint = seen.machine.measured.fingerprint if seen.machine.measured else ""
            yield from check_bank(settings, settings.bank_spec(), seen.bank, sizes, fingerprint)
    if seen.kafka is not None and seen.bank is not None and not seen.kafka.failure:
        yield from check_positions(settings, seen.kafka, seen.bank.positions)
    yield from check_machine(settings, seen.machine, sizes, seen.bank.masks if seen.bank else 0)


def _embedded(seen: Observed) -> Iterator[Finding]:
    if seen.embedded_failure:
        yield problem(
            "embedded", seen.embedded_failure, 'pip install "supsup-daemon[embedded]", or use servers of your own'
        )
    else:
        yield note(
            "embedded",
            "the trainer brings its own broker and Redis: for one person's machine, and the topics end with it",
            "give --kafka and --redis of a running one to look at those",
        )
