"""The one composition root: settings in, a running trainer out. Clients are built here and nowhere else."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType

import structlog
import torch
from prometheus_client import disable_created_metrics

from daemon import connections, kafka_client, kafka_rights, redis_client, redis_store
from daemon.answers import Answers
from daemon.apply import Applier
from daemon.checkpoint import COUNTERS, Checkpointer
from daemon.embedded import EmbeddedServers
from daemon.errors import ConfigError, FencedError, RewoundError
from daemon.health import AliveFile, Health
from daemon.http import token_of, trainer_server
from daemon.kafka_client import kafka_settings
from daemon.lease import Lease, LeaseKeeper, new_owner
from daemon.loop import StopRequest, TrainerLoop
from daemon.metrics import TrainerMetrics
from daemon.records import AnswerMark, Partition
from daemon.settings import Settings
from daemon.side_topics import DEAD_LETTER, OVERFLOW, PREDICTIONS, SideTopics
from daemon.source_process import SourceProcess
from daemon.standby import Standby
from daemon.systemd import Notifier
from daemon.telemetry import Telemetry
from supsup_online import __version__
from supsup_online.errors import SpecError
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.warm_up import warm_up
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
        stop = stack.enter_context(stopped_by_signals())
        if settings.embedded:
            settings = _with_servers(stack, settings, announce)
        telemetry = start_telemetry(stack, settings)
        try:
            network = Network.build(spec, pick_device(settings.device), weights_file=settings.weights_file)
            OnlineLearner(network, settings.learner())  # refused here, before anything is waited for
        except SpecError as error:
            raise ConfigError(str(error)) from error
        while not _serve_a_term(settings, network, stop, telemetry):
            pass  # what Redis has lost is read from Kafka again


def _serve_a_term(settings: Settings, network: Network, stop: StopRequest, telemetry: Telemetry) -> bool:
    """Wait for the lease, then train until told to stop; returns False when Redis has lost commits but not the bank.

    Raises:
        StopError: see `daemon.errors`.
    """
    with ExitStack() as stack:
        store = connect_store(stack, settings)
        store.open(network)
        learner = OnlineLearner(network, settings.learner())
        warm_up(network, learner.trainer.optimiser, settings.precision)
        try:
            loop = take_over(stack, settings, store, learner, stop, telemetry=telemetry)
            if loop is not None:
                telemetry.started("leader")
                masks, budget = len(learner.bank), learner.bank.budget
                log.info("trainer.ready", version=__version__, bank=settings.bank, masks=masks, budget=budget)
                loop.run()
        except RewoundError as error:
            if not store.spec_text():
                raise RewoundError(
                    f"{error} The bank is gone altogether. Bring it back (supsup-daemon bank import), or start again "
                    "to learn everything anew from what Kafka still holds."
                ) from error
            log.warning("redis.lost_commits", error=str(error))
            return False
        except FencedError:
            telemetry.lease_lost()
            raise
        records = loop.applier.checkpoint.totals["records"] if loop else 0
        log.info("trainer.stopped", records=records, masks=len(learner.bank))
        return True


def start_telemetry(stack: ExitStack, settings: Settings) -> Telemetry:
    """Health, metrics and the service manager, from the first second on; `stack` ends them.

    Raises:
        ConfigError: the HTTP address needs a token or is taken, or the alive file cannot be written.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for
    telemetry = Telemetry(
        health=Health(settings.livez_limit_s),
        metrics=TrainerMetrics(settings.bank),
        manager=Notifier.from_environment(),
        alive_file=AliveFile(settings.alive_file) if settings.alive_file is not None else None,
    )
    stack.callback(telemetry.close)
    if settings.http_port:
        token = token_of(settings)
        server = trainer_server(telemetry, host=settings.http_host, port=settings.http_port, token=token)
        stack.enter_context(server)
    return telemetry


def connect_store(stack: ExitStack, settings: Settings) -> redis_store.RedisStore:
    """The bank's store; `stack` closes its client.

    Raises:
        UnavailableError: Redis does not answer.
    """
    client = redis_client.connect(
        settings.redis, timeout_s=settings.connect_timeout_s, security=connections.redis_client(settings)
    )
    stack.callback(client.close)
    return redis_store.RedisStore(client, settings.bank)


def take_over(
    stack: ExitStack,
    settings: Settings,
    store: redis_store.RedisStore,
    learner: OnlineLearner,
    stop: StopRequest,
    *,
    telemetry: Telemetry,
) -> TrainerLoop | None:
    """Become the bank's writer, take over what is stored, and return the loop ready to run; None when stopped before.

    `stack` closes everything, the lease last: whoever waits for it finds the group left and the bank at rest.

    Raises:
        StopError: see `daemon.errors`.
    """
    kafka = kafka_settings(settings)
    sides = [topic + side for topic in kafka.topics for side in (DEAD_LETTER, OVERFLOW, PREDICTIONS)]
    if settings.create_topics:
        kafka_client.create_topics(kafka, [*kafka.topics, *sides])
    if kafka.security:
        kafka_rights.require(kafka, sides, [topic + PREDICTIONS for topic in kafka.topics])
    client = redis_client.connect(
        settings.redis,
        timeout_s=settings.connect_timeout_s,
        reply_s=max(1.0, settings.lease_ttl_s / 2),
        security=connections.redis_client(settings),
    )
    stack.callback(client.close)
    lease = Lease(client, store.keys, new_owner(), settings.lease_ttl_s)
    standby = Standby(lease, store, learner.network, patience_s=settings.patience_s, telemetry=telemetry)
    # The lock on the directory of the embedded servers says already that whoever held the lease is dead.
    term = standby.wait(stop.requested, by_force=settings.embedded)
    if term is None:
        return None
    keeper = stack.enter_context(LeaseKeeper(lease, term, telemetry))
    source = SourceProcess(settings)  # starts while the bank is loaded
    stack.callback(source.close)
    store.begin(term, learner.network)
    side, answers = SideTopics(kafka), Answers(kafka, settings.bank)
    stack.callback(side.close)
    stack.callback(answers.close)

    def sent() -> Mapping[Partition, AnswerMark]:
        side.wait()
        return answers.wait()

    checkpoint = Checkpointer(
        store=store,
        learner=learner,
        before_commit=sent,
        every=settings.commit_every,
        interval_s=settings.commit_interval_s,
        new_log_is_fine=settings.embedded,
    )
    _restore(store, learner, checkpoint, standby.warm, telemetry)
    source.open()
    return TrainerLoop(
        source=source,
        applier=Applier(
            learner=learner,
            side=side,
            answers=answers,
            checkpoint=checkpoint,
            patience_s=settings.patience_s,
            max_bytes=settings.max_record_bytes,
            dead_letters_in_a_row=settings.dead_letters_in_a_row,
            telemetry=telemetry,
        ),
        limits=RecordLimits(settings.input_shape, settings.classes, settings.max_record_bytes, settings.max_rows),
        stop=stop,
        still_leading=keeper.check,
        burst=settings.burst,
        patience_s=settings.patience_s,
        stop_deadline_s=settings.stop_deadline_s,
        rebalance_budget_s=settings.rebalance_budget_s,
        telemetry=telemetry,
    )


def _restore(
    store: redis_store.RedisStore,
    learner: OnlineLearner,
    checkpoint: Checkpointer,
    warm: redis_store.WarmMasks,
    telemetry: Telemetry,
) -> None:
    bank = store.load(learner.network, learner.trainer.optimiser, warm)
    totals = bank.totals
    learner.restore(bank.masks, bank.stats, bank.hot, steps=totals.get("steps", 0), next_id=totals.get("next_id", 0))
    checkpoint.totals |= {name: totals.get(name, 0) for name in COUNTERS}
    masks, budget = len(learner.bank), learner.bank.budget
    telemetry.restored(version=bank.version, masks=masks, budget=budget, totals=checkpoint.totals)
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
        "static_member": False,  # the embedded broker takes six seconds for a static member, and two for another
    }
    return settings.model_copy(update=changed)


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
def stopped_by_signals() -> Iterator[StopRequest]:
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
