"""A bank taken in hand: exported while it is trained, imported elsewhere, it goes on byte for byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from daemon.embedded import EmbeddedRedis
from daemon_process import SMALL, here, run, trainer
from stage import Stage
from streams import publish, visits

pytestmark = pytest.mark.integration

OPTIONS = (*SMALL, "--commit-every=7", "--decision-every=20", "--hot-masks=2", "--budget=4")
STREAM = visits([0, 1, 2, 0, 1, 2], 40)
EXPORT_AT = 130  # in the fourth visit, while all of it is being trained


@dataclass
class Elsewhere:
    """A second Redis, which holds nothing."""

    stage: Stage
    url: str


@pytest.fixture
def elsewhere(stage: Stage, tmp_path: Path) -> Iterator[Stage]:
    """The same broker with a second Redis, which holds nothing yet."""
    with EmbeddedRedis(tmp_path / "second") as server, Redis.from_url(server.url) as client:
        yield Stage(stage.kafka, server.url, client)


def test_a_bank_exported_while_it_is_trained_goes_on_elsewhere_as_if_it_had_never_moved(
    stage: Stage, elsewhere: Stage, tmp_path: Path
) -> None:
    topic, bank, file = stage.new_topic(), stage.new_bank(), tmp_path / "moved.bank"
    publish(stage.kafka, topic, STREAM)
    with trainer(*stage.arguments(bank, topic), *OPTIONS, directory=tmp_path / "first") as process:
        process.wait_for("batch.trained", offset=EXPORT_AT)
        exported = run("bank", "export", file, f"--redis={stage.redis_url}", f"--bank={bank}", "--json")
        assert exported.code == 0, exported.stderr
        process.wait_for("batch.trained", offset=len(STREAM) - 1)
        process.stop()
    position = exported.json["positions"][f"{topic}:0"]
    assert EXPORT_AT - 7 <= position <= len(STREAM)
    assert exported.json["totals"]["records"] == position
    imported = here("bank", "import", file, f"--redis={elsewhere.redis_url}", "--json")
    assert imported.code == 0, imported.stderr
    assert here("start", *elsewhere.arguments(bank, topic), *OPTIONS, "--burst").code == 0
    assert elsewhere.contents(bank) == stage.contents(bank)
