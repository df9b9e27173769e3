"""Answers while everything around them moves: a bank that is committed to, replicas that die, a Redis that goes away.

Each response names the version it is of; the test knows the masks of every version there ever was, and computes what a
replica of that version has to say.
"""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from daemon.embedded import EmbeddedRedis
from daemon.errors import UnavailableError
from daemon.lease import Lease, Term
from daemon.redis_client import connect
from daemon.redis_store import CommitPlan, RedisStore
from daemon_process import clean_environment
from servers import wait_until
from supsup_online import codec
from supsup_online.bitpack import Words
from supsup_online.predictor import Prediction, predict
from supsup_online.stats import MaskStats
from unit import tiny

pytestmark = pytest.mark.integration

NETWORK = tiny.network()
BANK = "served"
REQUESTS = 10_000
MASKS = 6
_GIVE_UP_S = 60.0


@dataclass
class History:
    """A bank that is written to as a trainer does it, and the masks of each of its versions."""

    url: str
    versions: dict[int, dict[int, Words]] = field(default_factory=dict)
    failures: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._store = RedisStore(connect(self.url, reply_s=2.0), BANK)
        self._store.open(NETWORK)
        term = Lease(self._store.client, self._store.keys, "tests", 3600.0).acquire(by_force=True)
        assert isinstance(term, Term)
        self._store.begin(term, NETWORK)
        self._draws = random.Random(7)
        self._commit(dict(enumerate(tiny.random_masks(NETWORK, MASKS))))

    def _commit(self, changed: dict[int, Words], *, gone: int | None = None) -> None:
        """One commit, tried again until Redis has taken it; its version is known before anybody can see it."""
        number = len(self.versions) + 1
        masks = {i: words for i, words in (self.versions.get(number - 1, {}) | changed).items() if i != gone}
        self.versions[number] = masks
        plan = CommitPlan(changed=list(changed), removed=[] if gone is None else [gone], events=[{"type": "commit"}])
        for mask_id, words in changed.items():
            plan.write("SET", self._store.keys.mask(mask_id), codec.encode_mask(NETWORK, words))
            plan.hset(self._store.keys.stats(mask_id), MaskStats(entropy=1.0).to_text())
        if gone is not None:
            plan.write("DEL", self._store.keys.mask(gone))
            plan.write("DEL", self._store.keys.stats(gone))
        while True:
            try:
                assert self._store.commit(plan, commit_id=self._store.term.commit_id(number)) == number
            except UnavailableError:
                self.failures += 1
                time.sleep(0.05)
            else:
                return

    def go_on(self) -> None:
        """Commits every few milliseconds: masks that change, come and go."""
        while not self._stopped.wait(0.01):
            ids = sorted(self.versions[len(self.versions)])
            chosen = self._draws.sample(ids, 2)
            fresh = tiny.random_masks(NETWORK, 2, seed=self._draws.getrandbits(30))
            changed = dict(zip([chosen[0], max(ids) + 1], fresh, strict=True))
            self._commit(changed, gone=chosen[1] if len(ids) >= MASKS else None)

    def stop(self) -> None:
        """No commit after the one in hand."""
        self._stopped.set()

    def close(self) -> None:
        """Its client, when nothing is committed any more."""
        self._store.client.close()


@dataclass
class Replicas:
    """Two replicas, one of which is always about to die."""

    url: str
    directory: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Both, ready."""
        for place in range(2):
            self.running.append(self._process(place, 0))
            wait_until(lambda: bool(self._port(place)), "the replica never said where it answers")  # noqa: B023
            self.ports.append(self._port(place))
            self._await(place)

    def _process(self, place: int, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "daemon", "serve", f"--redis={self.url}", f"--bank={BANK}", f"--port={port}"]
        command += ["--threads=1", "--log-format=json", "--poll-interval-s=0.1"]
        with (self.directory / f"replica-{place}.log").open("ab") as log_file:
            return subprocess.Popen(command, stderr=log_file, env=clean_environment())

    def _port(self, place: int) -> int:
        lines = (self.directory / f"replica-{place}.log").read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return next((line["port"] for line in told if line["event"] == "replica.started"), 0)

    def _await(self, place: int) -> None:
        wait_until(lambda: self.ready(place), f"replica {place} was never ready", timeout_s=_GIVE_UP_S)

    def ready(self, place: int) -> bool:
        """What /v2/health/ready says; no when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[place], timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def restart(self, place: int, number: signal.Signals) -> int | None:
        """End one by a signal, and start another on its port once the other one is ready."""
        self._await(1 - place)
        self.running[place].send_signal(number)
        code = self.running[place].wait(30)
        self.running[place] = self._process(place, self.ports[place])
        self._await(place)
        return code

    def stop(self) -> None:
        """Both are gone."""
        for process in self.running:
            process.kill()
            process.wait()


@dataclass
class Client:
    """Asks one replica after another, as a load balancer would, and keeps what was said."""

    ports: list[int]
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[int, int, list[int], list[int]]] = field(default_factory=list)
    _connections: dict[int, http.client.HTTPConnection] = field(default_factory=dict)

    def ask(self, number: int, x: np.ndarray) -> bool:
        """One request, to the other replica where one does not answer."""
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
        body = json.dumps({"id": str(number), "inputs": [tensor]})
        for turn in range(2):
            port = self.ports[(number + turn) % 2]
            connection = self._connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=30))
            try:
                connection.request("POST", f"/v2/models/{BANK}/infer", body)
                response = connection.getresponse()
                content = json.loads(response.read())
            except (OSError, http.client.HTTPException):
                connection.close()
                self.outcomes["not connected"] += 1
                continue
            self.outcomes[str(response.status)] += 1
            if response.status == 200:
                assert content["id"] == str(number)
                outputs = {output["name"]: output["data"] for output in content["outputs"]}
                self.answers.append((int(content["model_version"]), number, outputs["label"], outputs["task"]))
                return True
        return False

    def close(self) -> None:
        """All connections."""
        for connection in self._connections.values():
            connection.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "state") as server:
        yield server


@pytest.mark.timeout(280)
def test_no_answer_is_wrong_while_the_bank_moves_replicas_die_and_redis_goes_away(
    redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    history = History(redis_server.url)
    replicas = Replicas(redis_server.url, tmp_path)
    images = np.random.default_rng(3).normal(size=(50, 2, 4, 4)).astype(np.float32)
    codes: list[int | None] = []

    def disturb() -> None:
        for turn in range(2):
            codes.append(replicas.restart(turn % 2, signal.SIGKILL))
            codes.append(replicas.restart(1 - turn % 2, signal.SIGTERM))
            os.kill(redis_server.pid, signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(redis_server.pid, signal.SIGCONT)

    with ExitStack() as stack:
        stack.callback(history.close)
        stack.callback(replicas.stop)
        replicas.start()
        writing = threading.Thread(target=history.go_on, daemon=True)
        disturbing = threading.Thread(target=disturb, daemon=True)
        stack.callback(writing.join, 20)
        stack.callback(history.stop)
        writing.start()
        disturbing.start()
        client = Client(replicas.ports)
        stack.callback(client.close)
        number = 0
        while number < REQUESTS or disturbing.is_alive():
            assert client.ask(number, images[number % len(images)]), f"nobody answered request {number}"
            number += 1
        disturbing.join()
    assert set(client.outcomes) <= {"200", "503", "not connected"}
    assert client.outcomes["200"] == number >= REQUESTS
    assert codes == [-signal.SIGKILL, 0] * 2
    seen = {version for version, *_ in client.answers}
    assert len(seen) > 50, "the bank moved while it answered"
    known: dict[tuple[int, int], Prediction] = {}
    for version, asked, labels, tasks in client.answers:
        place = asked % len(images)
        if (version, place) not in known:
            masks = history.versions[version]
            ids = sorted(masks)
            stacked = np.stack([masks[i] for i in ids])
            known[version, place] = predict(NETWORK, ids, stacked, NETWORK.inputs(images[place]))
        expected = known[version, place]
        assert (labels, tasks) == (expected.labels.tolist(), expected.mask_ids.tolist()), f"version {version}"
