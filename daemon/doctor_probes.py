"""Asks Redis what `doctor` judges, and how any server is asked: a question that fails is noted, the next asked.

It reads only: no key is written, no setting changed.
"""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from daemon import redis_store
from daemon.doctor_redis import BankFacts, RedisFacts
from daemon.errors import StopError
from daemon.findings import Miss
from daemon.kafka_facts import StoredPosition
from daemon.redis_store import BankReader
from daemon.settings import Settings

T = TypeVar("T")

_REDIS_CONFIGS: Final = (
    "appendfsync",
    "client-output-buffer-limit",
    "min-replicas-to-write",
    "proto-max-bulk-len",
    "save",
    "stop-writes-on-bgsave-error",
)
_MASKS_LOOKED_AT: Final = 1000


class Questions:
    """Asks one question after another and notes those that fail."""

    def __init__(self) -> None:
        self.misses: list[Miss] = []

    def ask(self, what: str, question: Callable[[], T]) -> T | None:
        """The answer, or None and a note."""
        try:
            return question()
        except Exception as error:  # noqa: BLE001 - whatever a server or its client does, the rest is still asked
            self.miss(what, str(error).partition("\n")[0] or type(error).__name__)
            return None

    def miss(self, what: str, why: str) -> None:
        """Note that something is not known."""
        self.misses.append(Miss(what, why))


def probe_redis(settings: Settings) -> tuple[RedisFacts, BankFacts | None]:
    """Everything about Redis and the bank in it; the bank is None where it cannot be read."""
    try:
        client = redis_store.connect(settings.redis, timeout_s=settings.connect_timeout_s)
    except StopError as error:
        return RedisFacts(failure=str(error)), None
    client.set_retry(Retry(NoBackoff(), 0))
    try:
        questions = Questions()
        bank = questions.ask(f"bank {settings.bank}", lambda: _bank(BankReader(client, settings.bank)))
        return _server(client, questions), bank
    finally:
        client.close()


def _server(client: Any, questions: Questions) -> RedisFacts:
    begun = time.time()
    clock = questions.ask("its clock", client.time)
    seconds = time.time() - begun
    info = questions.ask("how it is (INFO)", client.info) or {}
    config = questions.ask("its settings (CONFIG GET)", lambda: _configured(client)) or {}
    return RedisFacts(
        seconds=seconds,
        info=info,
        config=config,
        skew_s=None if clock is None else clock[0] + clock[1] / 1e6 - (begun + seconds / 2),
        may_script=questions.ask("whether scripts may run", lambda: _may_script(client)),
        misses=tuple(questions.misses),
    )


def _configured(client: Any) -> dict[str, str]:
    answers = [client.config_get(name) for name in _REDIS_CONFIGS]  # before Redis 7 one at a time
    return {_text(key): _text(value) for answer in answers for key, value in answer.items()}


def _may_script(client: Any) -> bool:
    try:
        client.script_exists("0" * 40)
    except NoPermissionError:
        return False
    return True


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _bank(reader: BankReader) -> BankFacts:
    ids, keys = reader.mask_ids(), reader.keys
    looked_at = [keys.mask(mask_id) for mask_id in ids[:_MASKS_LOOKED_AT]]
    pipe = reader.client.pipeline(transaction=False)
    for key in looked_at:
        pipe.strlen(key)
    lengths = pipe.execute()
    for mask_id in ids:
        pipe.exists(keys.state(mask_id))
    return BankFacts(
        spec=reader.spec_text(),
        masks=len(ids),
        lengths=dict(zip(looked_at, lengths, strict=True)),
        hot=sum(pipe.execute()),
        events=reader.client.xlen(keys.events),
        lease=reader.lease(),
        positions=_positions(reader),
    )


def _positions(reader: BankReader) -> dict[tuple[str, int], StoredPosition]:
    found = {}
    for place, offset in reader.positions().items():
        topic, _, number = place.rpartition(":")
        log_id = reader.client.hget(reader.keys.progress(topic, int(number)), "log") or b""
        found[topic, int(number)] = StoredPosition(offset, log_id.decode(errors="replace"))
    return found
