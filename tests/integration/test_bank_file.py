"""A bank taken in hand: exported while it is trained, imported elsewhere, it goes on byte for byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from daemon.embedded import EmbeddedRedis
from daemon_process import SMALL, Ended, here, trainer
from stage import Stage
from streams import publish, visits

pytestmark = pytest.mark.integration

COMMIT_EVERY = 7
OPTIONS = (
    *SMALL,
    f"--commit-every={COMMIT_EVERY}",
    "--commit-interval-s=1000",
    "--decision-every=20",
    "--hot-masks=2",
    "--budget=4",
)
STREAM = visits([0, 1, 2, 0, 1, 2], 40)
EXPORT_AT = 130  # in the fourth visit, some batches after a commit


@pytest.fixture
def elsewhere(stage: Stage, tmp_path: Path) -> Iterator[Stage]:
    """The same broker with a second Redis, which holds nothing yet."""
    with EmbeddedRedis(tmp_path / "second") as server, Redis.from_url(server.url) as client:
        yield Stage(stage.kafka, server.url, client)


def published(stage: Stage, tmp_path: Path) -> tuple[str, str, Path, Ended]:
    """Topic, bank, file and report of an export in the middle of a stream that the trainer then read to its end."""
    topic, bank, file = stage.new_topic(), stage.new_bank(), tmp_path / "moved.bank"
    publish(stage.kafka, topic, STREAM[:EXPORT_AT])
    with trainer(*stage.arguments(bank, topic), *OPTIONS, directory=tmp_path / "first") as process:
        process.wait_for("batch.trained", offset=EXPORT_AT - 1)
        exported = here("bank", "export", file, f"--redis={stage.redis_url}", f"--bank={bank}", "--json")
        refused = here("bank", "import", file, f"--redis={stage.redis_url}", "--replace")
        assert (refused.code, refused.stdout) == (75, "")
        assert f"holds bank '{bank}'" in refused.stderr
        publish(stage.kafka, topic, STREAM[EXPORT_AT:])
        process.wait_for("batch.trained", offset=len(STREAM) - 1)
        process.stop()
    assert exported.code == 0, exported.stderr
    return topic, bank, file, exported


def test_a_bank_exported_while_it_is_trained_goes_on_elsewhere_as_if_it_had_never_moved(
    stage: Stage, elsewhere: Stage, tmp_path: Path
) -> None:
    topic, bank, file, exported = published(stage, tmp_path)
    position = exported.json["positions"][f"{topic}:0"]
    assert EXPORT_AT - COMMIT_EVERY < position <= EXPORT_AT
    assert exported.json["totals"]["records"] == position
    assert here("bank", "import", file, f"--redis={elsewhere.redis_url}").code == 0
    other = stage.new_bank()
    assert here("bank", "import", file, f"--redis={elsewhere.redis_url}", f"--bank={other}").code == 0
    for name in (bank, other):
        assert here("start", *elsewhere.arguments(name, topic), *OPTIONS, "--burst").code == 0
        assert elsewhere.contents(name) == stage.contents(bank)


def test_a_lost_bank_is_brought_back_and_ends_as_if_it_had_never_been_lost(stage: Stage, tmp_path: Path) -> None:
    topic, bank, file, _ = published(stage, tmp_path)
    undisturbed = stage.contents(bank)
    version, epoch = int(stage.redis.get(stage.key(bank, "version"))), int(stage.hash(bank, "lease")["epoch"])
    stage.redis.hset(stage.key(bank, "progress:gone:0"), "offset", 5)
    assert here("bank", "import", file, f"--redis={stage.redis_url}", "--replace").code == 0
    assert int(stage.redis.get(stage.key(bank, "version"))) == version + 1
    assert int(stage.hash(bank, "lease")["epoch"]) == epoch + 1
    assert here("start", *stage.arguments(bank, topic), *OPTIONS, "--burst").code == 0
    assert stage.contents(bank) == undisturbed


def test_on_another_cluster_the_trainer_stops_and_says_what_to_do(stage: Stage, tmp_path: Path) -> None:
    topic, bank, file = stage.new_topic(), stage.new_bank(), tmp_path / "moved.bank"
    publish(stage.kafka, topic, STREAM[:10])
    assert here("start", *stage.arguments(bank, topic), *OPTIONS, "--burst").code == 0
    # What tells clusters apart is the id that the broker gave the topic.
    stage.redis.hset(stage.key(bank, f"progress:{topic}:0"), "log", "of another cluster")
    where = f"--redis={stage.redis_url}"
    assert here("bank", "export", file, where, f"--bank={bank}").code == 0
    assert here("bank", "import", file, where, "--replace").code == 0
    before = stage.contents(bank)
    ended = here("start", *stage.arguments(bank, topic), *OPTIONS, "--burst")
    assert ended.code == 66
    assert "or this is another cluster" in ended.stderr
    assert stage.contents(bank) == before
