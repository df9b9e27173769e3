"""Replicas in processes of their own, beside real trainers and a real Redis."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from tritonclient import http as triton
from tritonclient.utils import np_to_triton_dtype

from daemon.embedded import EmbeddedRedis
from daemon.redis_store import BankReader
from daemon_process import SMALL, Replica, here, replica, trainer
from servers import wait_until
from stage import Stage
from streams import batch, publish, visits
from supsup_online import allocation, predictor
from unit.test_http import ask

pytestmark = pytest.mark.integration

QUICK = ("--poll-interval-s=0.2", "--connect-timeout-s=1")
TASKS = (0, 1, 2)


def rows_of(*tasks: int, each: int = 5) -> np.ndarray:
    """Rows of some tasks that no trainer has seen, one task after the other, float32 (n, 8, 8)."""
    return np.concatenate([batch(task, 777, each)[0] for task in tasks])


X = rows_of(*TASKS)


# -- what clients do


@dataclass(frozen=True)
class Answers:
    """A response, whichever client brought it."""

    version: int
    labels: np.ndarray
    tasks: np.ndarray
    probabilities: np.ndarray
    confidences: np.ndarray


def by_urllib(port: int, bank: str, x: np.ndarray = X, **parameters: str) -> Answers:
    """Ask with nothing but the standard library."""
    status, body = post(port, f"/v2/models/{bank}/infer", request(x, **parameters))
    assert status == 200, body
    return answers_of(body)


def by_curl(port: int, bank: str, x: np.ndarray = X) -> Answers:
    """Ask with curl."""
    url = f"http://127.0.0.1:{port}/v2/models/{bank}/infer"
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--data-binary", "@-", url]
    return answers_of(json.loads(subprocess.check_output(command, input=json.dumps(request(x)).encode(), timeout=60)))


def answers_of(body: dict[str, Any]) -> Answers:
    """What the JSON of a response holds."""
    out = {tensor["name"]: np.array(tensor["data"]).reshape(tensor["shape"]) for tensor in body["outputs"]}
    names = ("label", "task", "probabilities", "confidence")
    return Answers(int(body["model_version"]), *(out[name] for name in names))


def request(x: np.ndarray, **parameters: str) -> dict[str, Any]:
    """The JSON of a request."""
    tensor = {"name": "x", "datatype": np_to_triton_dtype(x.dtype), "shape": list(x.shape), "data": x.ravel().tolist()}
    return {"inputs": [tensor], "parameters": parameters}


def post(port: int, path: str, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and body of a POST."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as response:  # noqa: S310 - of our own
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def by_triton(port: int, bank: str, x: np.ndarray = X, *, binary: bool) -> Answers:
    """Ask with Triton's own client."""
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        assert client.is_server_ready()
        assert client.is_model_ready(bank)
        tensor = triton.InferInput("x", list(x.shape), np_to_triton_dtype(x.dtype))
        tensor.set_data_from_numpy(x, binary_data=binary)
        names = ("label", "task", "probabilities", "confidence")
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        result = client.infer(bank, [tensor], outputs=wanted)
        return Answers(int(result.get_response()["model_version"]), *(result.as_numpy(name) for name in names))
    finally:
        client.close()


def expected(redis: Redis, bank: str, x: np.ndarray = X) -> Answers:
    """What the library answers with the masks that Redis holds now."""
    reader = BankReader(redis, bank)
    version, network, ids = reader.version(), reader.network(reader.spec()), reader.mask_ids()
    masks = np.stack(list(reader.masks(network, ids).values()))
    found = predictor.predict(network, ids, masks, network.inputs(x))
    usual = {int(text["id"]): float(text["entropy"]) for text in reader.stats_text(ids)}
    assert reader.version() == version, "nobody trains it"
    levels = np.array([usual[mask_id] for mask_id in found.mask_ids.tolist()], dtype=np.float32)
    confidences = allocation.confidence(found.entropies, levels, network.spec.outputs)
    return Answers(version, found.labels, found.mask_ids, found.probabilities, confidences)


def assert_same(found: Answers, wanted: Answers) -> None:
    assert found.version == wanted.version
    assert found.labels.tolist() == wanted.labels.tolist()
    assert found.tasks.tolist() == wanted.tasks.tolist()
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.confidences, wanted.confidences, rtol=1e-4, atol=1e-5)


def readiness(port: int) -> tuple[int, dict[str, str]]:
    """Status and reasons of /v2/health/ready."""
    status, body = ask(port, "/v2/health/ready")
    return status, json.loads(body)["reasons"]


def metric(port: int, name: str) -> float:
    """What /metrics says now, summed over series."""
    families = text_string_to_metric_families(ask(port, "/metrics")[1])
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


# -- banks


def train(stage: Stage, *, redis_url: str, bank: str) -> None:
    """A bank of the tasks, made by a trainer that has ended since."""
    topic = stage.new_topic()
    publish(stage.kafka, topic, visits(TASKS, 20))
    arguments = [*stage.arguments(bank, topic), f"--redis={redis_url}", *SMALL, "--burst"]
    assert here("start", *arguments).code == 0


@pytest.fixture(scope="module")
def bank(stage: Stage) -> str:
    """A trained bank in the shared Redis that no test changes."""
    name = stage.new_bank()
    train(stage, redis_url=stage.redis_url, bank=name)
    return name


@pytest.fixture
def own_bank(stage: Stage, bank: str) -> str:
    """A copy of it, to be changed."""
    name = stage.new_bank()
    for key in stage.redis.scan_iter(match=stage.key(bank, "*"), count=1000):
        rest = key.decode().removeprefix(stage.key(bank, ""))
        stage.redis.restore(stage.key(name, rest), 0, stage.redis.dump(key))
    return name


@pytest.fixture
def own_redis(stage: Stage, bank: str, tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, with the trained bank in it."""
    with EmbeddedRedis(tmp_path / "redis") as server, Redis.from_url(server.url) as client:
        exported = tmp_path / "bank.ssbk"
        assert here("bank", "export", f"--redis={stage.redis_url}", f"--bank={bank}", exported).code == 0
        assert here("bank", "import", f"--redis={server.url}", f"--bank={bank}", exported).code == 0
        assert BankReader(client, bank).mask_ids()
        yield server


@pytest.fixture
def serving(stage: Stage, bank: str, tmp_path: Path) -> Iterator[Replica]:
    with replica(f"--redis={stage.redis_url}", f"--bank={bank}", *QUICK, directory=tmp_path) as process:
        yield process


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- answers


def test_triton_clients_and_plain_ones_are_answered_as_the_library_answers(
    stage: Stage, bank: str, serving: Replica
) -> None:
    wanted = expected(stage.redis, bank)
    assert len(set(wanted.tasks.tolist())) == len(TASKS), "rows of all tasks, each with a mask of its own"
    assert_same(by_urllib(serving.port, bank), wanted)
    for binary in (True, False):
        assert_same(by_triton(serving.port, bank, binary=binary), wanted)
    for row in range(0, len(X), 7):
        alone = by_triton(serving.port, bank, X[row : row + 1], binary=True)
        assert (alone.labels[0], alone.tasks[0]) == (wanted.labels[row], wanted.tasks[row])


def test_the_model_is_described_to_triton_clients(stage: Stage, bank: str, serving: Replica) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{serving.port}")
    try:
        assert client.is_server_live()
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata(bank)
    finally:
        client.close()
    version = BankReader(stage.redis, bank).version()
    assert metadata["versions"] == [str(version)]
    assert metadata["inputs"][0] == {"name": "x", "datatype": "UINT8", "shape": [-1, 8, 8]}
    ready = f"/v2/models/{bank}/versions"
    assert ask(serving.port, f"{ready}/{version}/ready")[0] == 200
    assert ask(serving.port, f"{ready}/{version + 1}/ready")[0] == 404


def test_every_way_to_infer_the_task_answers(bank: str, serving: Replica) -> None:
    labels = np.concatenate([batch(task, 777, 5)[1] for task in TASKS])
    for inference in ("exact", "one-shot", "binary"):
        found = by_urllib(serving.port, bank, inference=inference)
        assert (found.labels == labels).mean() > 0.5, inference
    status, body = post(serving.port, f"/v2/models/{bank}/infer", request(X, inference="guess"))
    assert (status, body) == (400, {"error": "parameter inference is 'guess': choose exact, one-shot, binary"})


def test_two_replicas_answer_the_same(stage: Stage, bank: str, serving: Replica, tmp_path: Path) -> None:
    flags = (f"--redis={stage.redis_url}", f"--bank={bank}", *QUICK)
    with replica(*flags, directory=tmp_path / "other") as other:
        path, body = f"/v2/models/{bank}/infer", request(X)
        assert post(serving.port, path, body) == post(other.port, path, body)


# -- beside a trainer


def test_a_replica_that_was_there_before_its_bank_is_ready_once_a_trainer_has_trained(
    stage: Stage, tmp_path: Path
) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    with replica(f"--redis={stage.redis_url}", f"--bank={bank}", *QUICK, directory=tmp_path, ready=False) as process:
        port = process.port
        assert readiness(port) == (503, {"no-bank": f"there is no bank '{bank}' yet: a trainer creates it"})
        assert ask(port, "/v2/health/live")[0] == 200
        assert ask(port, f"/v2/models/{bank}")[0] == 503
        assert post(port, f"/v2/models/{bank}/infer", request(X)) == (
            503,
            {"error": f"there is no bank '{bank}' yet: a trainer creates it"},
        )
        flags = (*stage.arguments(bank, topic), *SMALL, "--commit-interval-s=0.2")
        with trainer(*flags, directory=tmp_path) as training:
            process.wait_for("replica.ready")
            assert readiness(port) == (503, {"no-mask": "the bank holds no mask yet: nothing has been learnt"})
            assert post(port, f"/v2/models/{bank}/infer", request(X))[0] == 503
            publish(stage.kafka, topic, visits([0, 1], 20))
            training.wait_for("batch.trained", offset=39)
            wait_until(lambda: readiness(port) == (200, {}), "not ready with a mask")
            wait_until(lambda: stage.totals(bank).get("batches") == 40, "not committed")
            assert follows(stage.redis, bank, port) > 0
        assert_same(by_urllib(port, bank), expected(stage.redis, bank))


def follows(redis: Redis, bank: str, port: int) -> int:
    """Wait until the replica answers with the newest version; returns it."""
    newest = BankReader(redis, bank).version
    wait_until(lambda: by_urllib(port, bank, X[:1]).version == newest(), "the newest version does not answer")
    return newest()


def test_what_a_trainer_commits_answers_moments_later(stage: Stage, tmp_path: Path) -> None:
    bank, topic = stage.new_bank(), stage.new_topic()
    flags = (*stage.arguments(bank, topic), *SMALL, "--commit-every=1")
    with trainer(*flags, directory=tmp_path) as training:
        publish(stage.kafka, topic, visits([0], 20))
        training.wait_for("batch.trained", offset=19)
        with replica(
            f"--redis={stage.redis_url}", f"--bank={bank}", "--poll-interval-s=20", directory=tmp_path
        ) as process:
            wait_until(lambda: stage.totals(bank)["batches"] == 20, "not committed")
            before = follows(stage.redis, bank, process.port)
            assert set(by_urllib(process.port, bank, rows_of(0, 1)).tasks.tolist()) == {0}
            begun = time.monotonic()
            publish(stage.kafka, topic, visits([1], 20))
            wait_until(lambda: stage.totals(bank)["batches"] == 40, "not committed")
            after = follows(stage.redis, bank, process.port)
            assert after == before + 20
            assert time.monotonic() - begun < 15, "it hears of commits, and does not look every 20 s"
            assert set(by_urllib(process.port, bank, rows_of(0, 1)).tasks.tolist()) == {0, 1}
            assert_same(by_triton(process.port, bank, binary=True), expected(stage.redis, bank))


# -- the end, and beginning again


def test_sigterm_makes_not_ready_at_once_and_answers_go_on_while_it_drains(
    stage: Stage, bank: str, tmp_path: Path
) -> None:
    flags = (f"--redis={stage.redis_url}", f"--bank={bank}", *QUICK, "--drain-s=2")
    with replica(*flags, directory=tmp_path) as process:
        port, wanted = process.port, expected(stage.redis, bank)
        process.send(signal.SIGTERM)
        asked = time.monotonic()
        wait_until(lambda: "stopping" in readiness(port)[1], "it says that it is ready")
        assert time.monotonic() - asked < 1
        assert readiness(port) == (503, {"stopping": "this replica was asked to stop"})
        assert ask(port, "/v2/health/live")[0] == 200
        while time.monotonic() - asked < 1.5:
            assert_same(by_urllib(port, bank), wanted)
        process.wait()
        assert 2 <= time.monotonic() - asked < 10
        assert process.said("replica.draining", seconds=2.0)
        assert process.said("replica.stopped")
        with pytest.raises(OSError, match="refused"):
            ask(port, "/v2/health/live")


@pytest.mark.parametrize("there", [True, False], ids=["following", "waiting for a bank"])
def test_a_signal_is_heard_however_seldom_a_replica_looks(stage: Stage, bank: str, tmp_path: Path, there: bool) -> None:
    flags = (
        f"--redis={stage.redis_url}",
        f"--bank={bank if there else stage.new_bank()}",
        "--poll-interval-s=60",
        "--staleness-limit-s=60",
    )
    with replica(*flags, directory=tmp_path, ready=there) as process:
        time.sleep(0.5)
        process.send(signal.SIGTERM)
        process.wait(timeout_s=5)


def test_a_second_signal_ends_a_replica_at_once(stage: Stage, bank: str, tmp_path: Path) -> None:
    flags = (f"--redis={stage.redis_url}", f"--bank={bank}", *QUICK, "--drain-s=60")
    with replica(*flags, directory=tmp_path) as process:
        process.send(signal.SIGTERM)
        process.wait_for("replica.draining")
        process.send(signal.SIGTERM)
        process.wait(-signal.SIGTERM, timeout_s=5)


def test_a_replica_that_was_killed_serves_the_same_answers_when_it_is_started_again(
    stage: Stage, bank: str, tmp_path: Path
) -> None:
    flags = (f"--redis={stage.redis_url}", f"--bank={bank}", *QUICK)
    path, body = f"/v2/models/{bank}/infer", request(X)
    with replica(*flags, directory=tmp_path) as process:
        port = process.port
        first = post(port, path, body)
        process.kill()
    with replica(*flags, f"--port={port}", directory=tmp_path) as process:
        assert process.port == port
        assert post(port, path, body) == first


# -- a Redis that is away


def test_while_redis_is_frozen_answers_go_on_and_beyond_the_limit_it_is_not_ready(
    own_redis: EmbeddedRedis, bank: str, tmp_path: Path
) -> None:
    flags = (f"--redis={own_redis.url}", f"--bank={bank}", *QUICK, "--staleness-limit-s=3")
    with replica(*flags, directory=tmp_path) as process:
        port = process.port
        before = by_urllib(port, bank)
        wait_until(lambda: metric(port, "supsup_serve_staleness_seconds") < 1, "stale from the start")
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            seen = []
            wait_until(lambda: grows(seen, port, 3), "staleness does not grow")
            wait_until(lambda: "redis" in readiness(port)[1], "ready without Redis")
            status, reasons = readiness(port)
            assert status == 503
            assert "the newest version was last known" in reasons["stale"]
            assert ask(port, "/v2/health/live")[0] == 200
            assert_same(by_urllib(port, bank), before)
            assert metric(port, "supsup_serve_ready") == 0
            assert metric(port, "supsup_serve_failures_total") > 0
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        wait_until(lambda: readiness(port) == (200, {}), "not ready again")
        assert metric(port, "supsup_serve_staleness_seconds") < 3
        assert process.said("bank.away")
        assert process.wait_for("bank.followed_again")
        assert_same(by_urllib(port, bank), before)


def grows(seen: list[float], port: int, until: float) -> bool:
    """Whether staleness has grown beyond a bound; on its way there it must not fall."""
    seen.append(metric(port, "supsup_serve_staleness_seconds"))
    if len(seen) > 5:
        assert seen[-1] >= seen[-2]
    return seen[-1] > until


def test_a_redis_that_was_killed_and_comes_back_is_followed_again(
    own_redis: EmbeddedRedis, bank: str, tmp_path: Path
) -> None:
    flags = (f"--redis={own_redis.url}", f"--bank={bank}", *QUICK)
    with replica(*flags, directory=tmp_path) as process:
        before, port = by_urllib(process.port, bank), own_redis.port
        own_redis.stop()
        process.wait_for("bank.away")
        assert_same(by_urllib(process.port, bank), before)
        with EmbeddedRedis(tmp_path / "redis", port=port):
            process.wait_for("bank.followed_again")
            assert_same(by_urllib(process.port, bank), before)
            process.stop()


def test_a_replica_ends_in_good_order_while_redis_is_frozen(
    own_redis: EmbeddedRedis, bank: str, tmp_path: Path
) -> None:
    with replica(f"--redis={own_redis.url}", f"--bank={bank}", *QUICK, "--drain-s=1", directory=tmp_path) as process:
        port = process.port
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            process.wait_for("bank.away")
            process.send(signal.SIGTERM)
            wait_until(lambda: "stopping" in readiness(port)[1], "it says that it is ready", timeout_s=1)
            process.wait(timeout_s=10)
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)


def test_a_replica_without_a_bank_waits_for_a_redis_that_was_there_before(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "first") as redis:
        url, port = redis.url, redis.port
        with replica(f"--redis={url}", "--bank=none-yet", *QUICK, directory=tmp_path, ready=False) as process:
            wait_until(lambda: "no-bank" in readiness(process.port)[1], "it does not say that there is no bank")
            time.sleep(0.5)
            redis.stop()
            process.wait_for("bank.away")
            assert {"no-bank", "redis"} <= readiness(process.port)[1].keys()
            with EmbeddedRedis(tmp_path / "second", port=port):
                process.wait_for("bank.followed_again")
                process.stop()


# -- what it refuses


def test_a_bank_that_was_deleted_is_answered_from_and_followed_again_when_it_is_back(
    stage: Stage, own_bank: str, tmp_path: Path
) -> None:
    kept = {key: stage.redis.dump(key) for key in stage.redis.scan_iter(match=stage.key(own_bank, "*"), count=1000)}
    flags = (f"--redis={stage.redis_url}", f"--bank={own_bank}", *QUICK)
    with replica(*flags, directory=tmp_path) as process:
        before = by_urllib(process.port, own_bank)
        stage.redis.delete(*kept)
        assert f"there is no bank '{own_bank}'" in process.wait_for("bank.away")["error"]
        assert_same(by_urllib(process.port, own_bank), before)
        for key, value in kept.items():
            stage.redis.restore(key, 0, value)
        process.wait_for("bank.followed_again")
        assert_same(by_urllib(process.port, own_bank), before)


def test_another_bank_under_the_name_ends_it_with_65(stage: Stage, own_bank: str, tmp_path: Path) -> None:
    flags = (f"--redis={stage.redis_url}", f"--bank={own_bank}", *QUICK)
    with replica(*flags, "--drain-s=2", directory=tmp_path) as process:
        before = by_urllib(process.port, own_bank)
        stage.redis.hset(stage.key(own_bank, "spec"), "weight_seed", "12345")
        process.wait_for("replica.draining")
        assert "stopping" in readiness(process.port)[1]
        assert_same(by_urllib(process.port, own_bank), before)
        assert "is another one by now (weight_seed" in process.wait(65)
    ended = here("serve", *flags, "--port=0")
    assert ended.code == 65
    assert "its masks mean nothing here" in ended.stderr


def damage_mask(stage: Stage, bank: str) -> str:
    stage.redis.set(stage.key(bank, "mask:0"), b"SSMK")
    return stage.key(bank, "mask:0")


def damage_spec(stage: Stage, bank: str) -> str:
    stage.redis.hset(stage.key(bank, "spec"), "classes", "ten")
    return "the stored spec is damaged"


@pytest.mark.parametrize("damage", [damage_mask, damage_spec])
def test_a_damaged_bank_is_no_bank_to_start_with(
    stage: Stage, own_bank: str, damage: Callable[[Stage, str], str]
) -> None:
    named = damage(stage, own_bank)
    ended = here("serve", f"--redis={stage.redis_url}", f"--bank={own_bank}", "--port=0")
    assert ended.code == 65
    assert named in ended.stderr


def test_a_port_that_is_taken_ends_a_replica_with_2_and_says_what_to_do(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        ended = here("serve", f"--redis={stage.redis_url}", f"--port={taken}")
    assert ended.code == 2
    assert f"cannot listen on 127.0.0.1 port {taken}" in ended.stderr
    assert "choose another --port (SUPSUP_SERVE_PORT) or --host (SUPSUP_SERVE_HOST)" in ended.stderr


def test_off_loopback_a_replica_without_a_token_does_not_start(stage: Stage) -> None:
    ended = here("serve", f"--redis={stage.redis_url}", "--host=0.0.0.0", "--port=0")
    assert ended.code == 2
    assert "--host 0.0.0.0 can be reached from other machines, so HTTP needs a token" in ended.stderr


def test_off_loopback_a_replica_answers_those_who_bring_the_token(stage: Stage, bank: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery\n")
    flags = (f"--redis={stage.redis_url}", f"--bank={bank}", "--host=0.0.0.0", f"--http-token-file={token}")
    with replica(*flags, directory=tmp_path) as process:
        port, path = process.port, f"/v2/models/{bank}"
        assert ask(port, "/v2/health/ready")[0] == 200, "probes bring no token"
        assert ask(port, path)[0] == 401
        assert ask(port, path, authorization="Bearer correct-horse-battery")[0] == 200
        bearer = {"Authorization": "Bearer correct-horse-battery"}
        assert post(port, f"{path}/infer", request(X), **bearer)[0] == 200
        assert "correct-horse" not in process.stderr


def test_where_no_redis_is_a_replica_ends_with_69() -> None:
    ended = here("serve", "--redis=redis://127.0.0.1:1/0", "--port=0", "--connect-timeout-s=1")
    assert ended.code == 69
    assert "cannot reach Redis at redis://127.0.0.1:1/0" in ended.stderr
