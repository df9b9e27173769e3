"""A replica as `supsup-daemon serve` makes it, in threads of the test: a real bank in a real Redis behind it."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from redis import Redis

from daemon import serve
from daemon.checkpoint import Checkpointer
from daemon.http import Connections, HttpServer
from daemon.lease import Lease, Term
from daemon.records import Partition, Position
from daemon.redis_store import RedisStore
from daemon.serving_app import serving_application
from daemon.settings import Settings
from servers import wait_until
from supsup_online.datasets import load_mnist
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.scenarios import Scenario
from supsup_online.spec import BankSpec
from supsup_online.types import Batch

KNOWN_TASKS = 5
HOSTILE_STREAM = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
_BATCHES = 100  # a task
_BEGUN_MS = 1_790_000_000_000


def train(client: Redis, bank: str) -> None:
    """A bank that knows the permutations 0 to 4 of seed 0, learnt from a stream with a hostile name."""
    network = Network.build(BankSpec())
    store = RedisStore(client, bank)
    store.open(network)
    term = Lease(client, store.keys, "tests", 60.0).acquire(by_force=True)
    assert isinstance(term, Term)
    store.begin(term, network)
    scenario, learner = Scenario(load_mnist(allow_download=False), "permuted", KNOWN_TASKS, 0), OnlineLearner(network)
    partition = Partition(HOSTILE_STREAM, 0)  # Kafka forbids such a name; nothing forbids it in Redis
    checkpoint = Checkpointer(store, learner, dict, every=50, interval_s=60.0)
    checkpoint.positions[partition] = Position(0, "log")
    for offset in range(KNOWN_TASKS * _BATCHES):
        task, place = divmod(offset, _BATCHES)
        batch = Batch(*scenario.batch(task, place, 128), stream="s", timestamp_ms=_BEGUN_MS + 1000 * offset)
        result = learner.step(batch)
        if result.decision is not None:
            checkpoint.note_decision(result.decision, "s", partition, offset)
        checkpoint.advance(partition, offset)
        if checkpoint.due:
            checkpoint.commit()
    checkpoint.commit()


@dataclass
class Served:
    """A replica that answers.

    Attributes:
        url: of its page.
        token: that requests have to bring.
        stack: ends it.
    """

    url: str
    token: str = ""
    stack: ExitStack = field(default_factory=ExitStack)

    def stop(self) -> None:
        """End it; harmless the second time."""
        self.stack.close()


@contextmanager
def serving(redis_url: str, bank: str, token: str = "") -> Iterator[Served]:
    settings = Settings(redis=redis_url, bank=bank, threads=1)
    with ExitStack() as stack:
        replica = serve.start(stack, settings)
        stopped = threading.Event()
        following = threading.Thread(target=replica.follow, args=(stopped.is_set,), daemon=True)
        following.start()
        stack.callback(following.join, 10)
        stack.callback(stopped.set)
        server = HttpServer(
            serving_application(replica, token),
            host="127.0.0.1",
            port=0,
            connections=Connections(64, short_lived=False),
        )
        stack.enter_context(server)
        wait_until(lambda: not replica.reasons, "the replica was never ready")
        served = Served(f"http://127.0.0.1:{server.port}/", token, stack)
        yield served
