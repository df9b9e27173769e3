"""The one composition root: settings in, a running trainer out. Clients are built here and nowhere else."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import structlog
import torch

from daemon import connections, kafka_rights, kafka_source, redis_store
from daemon.checkpoint import COUNTERS, Checkpointer
from daemon.embedded import EmbeddedServers
from daemon.errors import ConfigError
from daemon.kafka_source import KafkaSettings, KafkaSource
from daemon.loop import DEAD_LETTER, OVERFLOW, PREDICTIONS, StopRequest, TrainerLoop
from daemon.settings import Settings
from daemon.side_topics import SideTopics
from supsup_online import __version__
from supsup_online.errors import SpecError
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.wire import RecordLimits

log = structlog.get_logger()

_EMBEDDED_SESSION_S = 3.0  # the embedded broker's joins take two thirds of it


def run_trainer(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run a trainer until it is told to stop; `announce` shows a person where the embedded servers are.

    Raises:
        StopError: see `daemon.errors`.
    """
    spec = settings.bank_spec()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with ExitStack() as stack:
        stop = stack.enter_context(_stopped_by_signals())
        if settings.embedded:
            settings = _with_servers(stack, settings, announce)
        try:
            network = Network.build(spec, pick_device(settings.device))
            learner = OnlineLearner(network, settings.learner())
        except SpecError as error:
            raise ConfigError(str(error)) from error
        loop = assemble(stack, settings, learner, stop)
        log.info("trainer.ready", version=__version__, bank=settings.bank, masks=len(learner.bank), budget=spec.budget)
        loop.run()
        log.info("trainer.stopped", records=loop.checkpoint.totals["records"], masks=len(learner.bank))


def assemble(stack: ExitStack, settings: Settings, learner: OnlineLearner, stop: StopRequest) -> TrainerLoop:
    """Connect everything, take over the stored bank, and return the loop ready to run; `stack` closes the clients.

    Raises:
        StopError: see `daemon.errors`.
    """
    client = redis_store.connect(
        settings.redis, timeout_s=settings.connect_timeout_s, security=connections.redis_client(settings)
    )
    stack.callback(client.close)
    kafka = kafka_settings(settings)
    sides = [topic + side for topic in kafka.topics for side in (DEAD_LETTER, OVERFLOW, PREDICTIONS)]
    if settings.create_topics:
        kafka_source.create_topics(kafka, [*kafka.topics, *sides])
    if kafka.security:
        kafka_rights.require(kafka, sides)
    store = redis_store.RedisStore(client, settings.bank)
    store.open(learner.network, owner=f"{socket.gethostname()}:{os.getpid()}")
    side = SideTopics(kafka)
    stack.callback(side.close)
    checkpoint = Checkpointer(
        store=store,
        learner=learner,
        before_commit=side.wait,
        every=settings.commit_every,
        interval_s=settings.commit_interval_s,
        new_log_is_fine=settings.embedded,
    )
    _restore(store, learner, checkpoint)
    source = KafkaSource(kafka)
    stack.callback(source.close)
    limits = RecordLimits(settings.input_shape, settings.classes, settings.max_record_bytes, settings.max_rows)
    return TrainerLoop(source, side, learner, checkpoint, limits, stop, settings.burst, settings.patience_s)


def _restore(store: redis_store.RedisStore, learner: OnlineLearner, checkpoint: Checkpointer) -> None:
    bank = store.load(learner.network, learner.trainer.optimiser)
    totals = bank.totals
    learner.restore(bank.masks, bank.stats, bank.hot, steps=totals.get("steps", 0), next_id=totals.get("next_id", 0))
    checkpoint.totals |= {name: totals.get(name, 0) for name in COUNTERS}
    if bank.masks:
        log.info("bank.loaded", bank=store.keys.bank, masks=len(bank.masks), hot=len(bank.hot), version=bank.version)


def _with_servers(stack: ExitStack, settings: Settings, announce: Callable[[str], None]) -> Settings:
    servers = stack.enter_context(
        EmbeddedServers(settings.state_dir, kafka_port=settings.kafka_port, redis_port=settings.redis_port)
    )
    announce(f"Kafka at {servers.kafka}, Redis at {servers.redis_url}, data in {settings.state_dir}")
    announce(f"publish:  supsup-daemon publish --kafka {servers.kafka} --topic {settings.topic[0]}")
    announce(f"look:     supsup-daemon masks list --redis {servers.redis_url} --bank {settings.bank}")
    announce(f"or:       {servers.redis_cli} -p {servers.redis.port} HGETALL 'supsup:{{{settings.bank}}}:stats:0'")
    changed = {
        "kafka": (servers.kafka,),
        "redis": servers.redis_url,
        "session_timeout_s": min(settings.session_timeout_s, _EMBEDDED_SESSION_S),
    }
    return settings.model_copy(update=changed)


def kafka_settings(settings: Settings) -> KafkaSettings:
    """The part of the settings that concerns Kafka."""
    return KafkaSettings(
        servers=settings.kafka,
        topics=settings.topic,
        group=settings.group or f"supsup-{settings.bank}",
        max_record_bytes=settings.max_record_bytes,
        session_timeout_s=settings.session_timeout_s,
        max_poll_interval_s=settings.max_poll_interval_s,
        connect_timeout_s=settings.connect_timeout_s,
        security=connections.kafka_client(settings),
    )


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); try cpu") from error
    return device


@contextmanager
def _stopped_by_signals() -> Iterator[StopRequest]:
    """A request that SIGTERM or SIGINT makes; a second signal ends the process at once."""
    stop = StopRequest()

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.signal = signal.Signals(number).name

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
