"""Banks of convolutional masks through real processes: killed with kill -9 and gone on with, served, moved.

One trainer reads a stream of images in one go. Another is killed twice, with batches trained that were never committed;
the bank it ends with is the same to the last byte, the statistics that its masks keep included.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from daemon.redis_store import BankReader
from daemon_process import here, replica, trainer
from integration.test_serve import assert_same, by_triton, by_urllib, expected
from stage import Stage
from streams import Outgoing, publish
from supsup_online import models, wire

pytestmark = pytest.mark.integration

CLASSES, SIDE = 4, 28
NETWORK = ("--arch=conv-4-8", f"--classes={CLASSES}", "--outputs=12", "--learning-rate=0.02", "--threads=1")
COMMITS = ("--commit-every=10", "--commit-interval-s=1000")
OPTIONS = (*NETWORK, *COMMITS, "--hot-masks=2", "--decision-every=20", "--lease-ttl-s=1")
TASKS, VISIT = (0, 1, 2, 0, 2), 20
KILLS = (38, 75)  # the records read by then; within a visit, a window and a commit interval
COMMITTED = [30, 70]


def images(task: int, seed: int, rows: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images uint8 (rows, 28, 28) of four coarse patterns, and their labels; each task has its own patterns."""
    coarse = np.random.default_rng([2, task]).integers(0, 256, (CLASSES, 7, 7))
    rng = np.random.default_rng([3, task, seed])
    y = rng.integers(0, CLASSES, rows)
    x = coarse.repeat(4, axis=1).repeat(4, axis=2)[y] + rng.normal(0, 20, (rows, SIDE, SIDE))
    return x.clip(0, 255).astype(np.uint8), y


def the_stream() -> list[Outgoing]:
    """Visits to three tasks, two of which come back, and a batch to be answered."""
    where = [(task, 100 * visit + i) for visit, task in enumerate(TASKS) for i in range(VISIT)]
    stream = [Outgoing(wire.encode_arrow(*images(task, seed))) for task, seed in where]
    stream[50:50] = [Outgoing(wire.encode_arrow(images(1, 9999)[0]))]
    return stream


@dataclass
class Outcome:
    """Both banks at their ends."""

    stage: Stage
    topic: str
    undisturbed: str
    killed: str
    positions: list[int]


@pytest.fixture(scope="module")
def outcome(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    stream, topic, undisturbed, killed = the_stream(), stage.new_topic(), stage.new_bank(), stage.new_bank()
    directory, published, positions = tmp_path_factory.mktemp("images"), 0, []
    for count in KILLS:
        publish(stage.kafka, topic, stream[published:count])
        published = count
        with trainer(*stage.arguments(killed, topic), *OPTIONS, directory=directory, ready=False) as process:
            process.wait_for("batch.trained", offset=count - 1)
            process.kill()
        positions.append(int(stage.hash(killed, f"progress:{topic}:0")["offset"]))
    publish(stage.kafka, topic, stream[published:])
    for bank in (killed, undisturbed):
        with trainer(*stage.arguments(bank, topic), *OPTIONS, "--burst", directory=directory, ready=False) as process:
            process.wait()
    return Outcome(stage, topic, undisturbed, killed, positions)


def test_a_trainer_that_was_killed_ends_with_the_same_bytes(outcome: Outcome) -> None:
    whole = outcome.stage.contents(outcome.undisturbed)
    assert {"spec", "totals", "mask:0", "mask:1", "mask:2"} < whole.keys()
    assert outcome.stage.contents(outcome.killed) == whole
    assert outcome.stage.totals(outcome.killed)["records"] == len(the_stream())
    assert outcome.stage.totals(outcome.killed)["answered"] == 1


def test_it_was_killed_with_batches_trained_that_were_never_committed(outcome: Outcome) -> None:
    assert outcome.positions == COMMITTED


def test_every_mask_keeps_the_statistics_of_its_own_task(outcome: Outcome) -> None:
    reader = BankReader(outcome.stage.redis, outcome.undisturbed)
    network = reader.network(reader.spec())
    masks = reader.masks(network, reader.mask_ids())
    kept = np.stack([network.layout.statistics(words) for words in masks.values()])
    batches = [float(text["batches"]) for text in reader.stats_text(reader.mask_ids())]
    assert kept[:, 0].tolist() == batches
    assert len({row.tobytes() for row in kept[:, 1:]}) == len(masks)


def test_a_replica_answers_from_it_and_no_row_depends_on_the_others(outcome: Outcome, tmp_path: Path) -> None:
    arguments = (f"--redis={outcome.stage.redis_url}", f"--bank={outcome.killed}")
    x = np.concatenate([images(task, 777, rows=6)[0] for task in range(3)])
    y = np.concatenate([images(task, 777, rows=6)[1] for task in range(3)])
    wanted = expected(outcome.stage.redis, outcome.killed, x)
    with replica(*arguments, directory=tmp_path) as server:
        assert_same(by_urllib(server.port, outcome.killed, x), wanted)
        assert_same(by_triton(server.port, outcome.killed, x, binary=True), wanted)
        alone = by_triton(server.port, outcome.killed, x[7:8], binary=True)
    assert alone.tasks[0] == wanted.tasks[7]
    np.testing.assert_allclose(alone.probabilities[0], wanted.probabilities[7], rtol=1e-4, atol=1e-6)
    assert (wanted.labels == y).mean() > 0.8


def test_it_is_exported_verified_and_imported(outcome: Outcome, tmp_path: Path) -> None:
    file, copy, redis = tmp_path / "images.bank", outcome.stage.new_bank(), f"--redis={outcome.stage.redis_url}"
    exported = here("bank", "export", file, redis, f"--bank={outcome.killed}", "--json")
    assert exported.json["masks"] == 3
    assert here("bank", "verify", file, "--json").json["masks"] == 3
    assert here("bank", "import", file, redis, f"--bank={copy}").code == 0
    assert outcome.stage.contents(copy) == outcome.stage.contents(outcome.killed)
    shown = here("masks", "show", 0, redis, f"--bank={copy}", "--json").json
    assert [layer["edges"] for layer in shown["layers"]] == [36, 288, 12 * 392]
    assert all(2 * layer["kept"] == layer["edges"] for layer in shown["layers"])


# -- a backbone


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A file of weights for the convolutions, without a head."""
    rng, path = np.random.default_rng(0), tmp_path / "backbone.safetensors"
    layers = models.build("conv-4-8", (SIDE, SIDE), 12).layers[:-1]
    save_file({f"{x.name}.weight": rng.normal(0, 0.3, x.weight_shape).astype(np.float32) for x in layers}, path)
    return path


def test_a_bank_over_trained_weights_needs_their_file_wherever_it_is_read(
    stage: Stage, backbone: Path, tmp_path: Path
) -> None:
    topic, bank = stage.new_topic(), stage.new_bank()
    publish(stage.kafka, topic, the_stream()[:30])
    start = ("start", *stage.arguments(bank, topic), *OPTIONS, "--burst")
    given, where = f"--weights-file={backbone}", (f"--redis={stage.redis_url}", f"--bank={bank}")
    assert here(*start, given).code == 0
    np.save(tmp_path / "x.npy", images(0, 777)[0])
    reading = [
        ("predict", tmp_path / "x.npy", *where),
        ("bank", "verify", *where),
        ("bank", "export", tmp_path / "x.bank", *where),
        ("masks", "show", 0, *where),
    ]
    for command in reading:
        refused = here(*command)
        assert refused.code == 2, refused.stderr
        assert "set weights_file to the safetensors file with sha256" in refused.stderr
        assert here(*command, given).code == 0
    other = here(*start)
    assert other.code == 65
    assert "weight_init: signed-constant, trained:" in other.stderr
    with replica(*where, given, directory=tmp_path) as server:
        x = images(0, 777)[0]
        assert by_urllib(server.port, bank, x).labels.shape == (len(x),)


def test_a_file_that_changed_is_refused(stage: Stage, backbone: Path) -> None:
    topic, bank = stage.new_topic(), stage.new_bank()
    publish(stage.kafka, topic, the_stream()[:5])
    start = ("start", *stage.arguments(bank, topic), *OPTIONS, "--burst", f"--weights-file={backbone}")
    assert here(*start).code == 0
    layers = models.build("conv-4-8", (SIDE, SIDE), 12).layers[:-1]
    save_file({f"{x.name}.weight": np.ones(x.weight_shape, np.float32) for x in layers}, backbone)
    assert here(*start).code == 65
    read = here("masks", "show", 0, f"--redis={stage.redis_url}", f"--bank={bank}", f"--weights-file={backbone}")
    assert read.code == 2
    assert "over any other its masks mean nothing" in read.stderr
