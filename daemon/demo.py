"""The demonstration, as a person would run it: servers, a trainer process, a stream, and the truth beside it.

Only this module knows which task a batch belongs to; the trainer reads the same records anybody could publish. The
truth is
held against what the trainer wrote to Redis: its decisions (event stream) and its masks.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from daemon import kafka_client, publisher, redis_client
from daemon._directory_lock import DirectoryLock
from daemon.embedded import EmbeddedServers
from daemon.errors import StopError
from daemon.kafka_client import kafka_settings
from daemon.redis_store import BankReader, EventTail
from daemon.settings import Settings
from daemon.side_topics import DEAD_LETTER, OVERFLOW, PREDICTIONS
from supsup_online import scoring
from supsup_online.predictor import predict
from supsup_online.scenarios import Scenario, ScheduledBatch

log = structlog.get_logger()

BANK: Final = "demo"
TOPIC: Final = "demo"
_GUARD: Final = Path(__file__).with_name("_guard.py")
_POLL_S: Final = 0.2
_STOP_S: Final = 60.0
_TEST_ROWS: Final = 2000


@dataclass(frozen=True, slots=True)
class Event:
    """A decision of the trainer, beside the truth: record offset, mask chosen (None over budget), true task."""

    offset: int
    mask_id: int | None
    task: int
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One true task: the mask it got, the share of that mask's batches that are its own, accuracy on held-out digits.

    `found` is the share of single held-out images whose inferred mask belongs to the task.
    """

    task: int
    mask_id: int | None
    batches: int
    purity: float
    accuracy: float
    found: float


@dataclass(slots=True)
class DemoRun:
    """One run over a stream; servers live as long as the `with` block around it."""

    servers: EmbeddedServers
    scenario: Scenario
    plan: list[ScheduledBatch]
    rows: int
    output: Path
    settings: Settings = field(init=False)
    _trainer: subprocess.Popen[bytes] | None = None
    _failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.settings = Settings(
            kafka=(self.servers.kafka,),
            redis=self.servers.redis_url,
            topic=(TOPIC,),
            bank=BANK,
            classes=self.scenario.dataset.classes,
            session_timeout_s=3.0,
            static_member=False,
            commit_every=20,
            commit_interval_s=0.5,
        )

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, on_event: Callable[[Event], None], on_progress: Callable[[int], None]) -> None:
        """Start the trainer, publish, follow its decisions until everything is trained, stop it.

        Raises:
            StopError: the trainer ended by itself; the message holds the end of its log.
        """
        topics = [TOPIC + side for side in ("", DEAD_LETTER, OVERFLOW, PREDICTIONS)]
        kafka_client.create_topics(kafka_settings(self.settings), topics)
        self._start_trainer()
        publishing = threading.Thread(target=self._publish, daemon=True)
        publishing.start()
        try:
            self._follow(on_event, on_progress)
        finally:
            self._stop_trainer()
        publishing.join(timeout=_STOP_S)

    def _start_trainer(self) -> None:
        config = self._write_config()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPSUP_")}
        # The guard ends the trainer when this process ends, however that happens.
        guard = [sys.executable, "-I", "-S", str(_GUARD)]
        command = [*guard, sys.executable, "-m", "daemon", "start", "--config", str(config)]
        with self.trainer_log.open("wb") as log_file:
            self._trainer = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log_file, env=environment
            )

    @property
    def trainer_log(self) -> Path:
        """Where the trainer's log lines go, JSON."""
        return self.output / "trainer.log"

    def _write_config(self) -> Path:
        path = self.output / "trainer.toml"
        lines = [
            f'kafka = "{self.servers.kafka}"',
            f'redis = "{self.servers.redis_url}"',
            f'topic = ["{TOPIC}"]',
            f'bank = "{BANK}"',
            f"classes = {self.settings.classes}",
            f"session_timeout_s = {self.settings.session_timeout_s}",
            "static_member = false",
            f"commit_every = {self.settings.commit_every}",
            f"commit_interval_s = {self.settings.commit_interval_s}",
            'log_format = "json"',
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def _publish(self) -> None:
        keyed = len({place.stream for place in self.plan}) > 1
        records = publisher.from_scenario(self.scenario, self.plan, self.rows, "arrow", keyed=keyed)
        try:
            publisher.send(self.settings.kafka, TOPIC, records)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._failure = error

    def _follow(self, on_event: Callable[[Event], None], on_progress: Callable[[int], None]) -> None:
        reader = self.reader()
        tail, done = EventTail(reader), 0
        while done < len(self.plan):
            self._check_alive()
            time.sleep(_POLL_S)
            done = reader.totals().get("records", 0)  # before the events: what is counted has its events written
            for fields in tail.read():
                if fields["type"] != "commit":
                    on_event(self._beside_truth(fields))
            on_progress(done)

    def _beside_truth(self, fields: dict[str, str]) -> Event:
        offset = int(fields["offset"])
        mask_id = int(fields["mask"]) if fields["mask"] else None
        return Event(offset, mask_id, self.plan[offset].task, fields)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise StopError(f"publishing failed: {self._failure}") from self._failure
        if self._trainer is not None and self._trainer.poll() is not None:
            tail = "\n".join(self.trainer_log.read_text(errors="replace").splitlines()[-8:])
            raise StopError(f"the trainer ended with exit code {self._trainer.returncode}; its log ends with\n{tail}")

    def _stop_trainer(self) -> None:
        if self._trainer is None:
            return
        self._trainer.terminate()
        try:
            self._trainer.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._trainer.kill()
            self._trainer.wait()
        if self._trainer.stdin is not None:
            self._trainer.stdin.close()

    def reader(self) -> BankReader:
        """A reader of the demo's bank."""
        return BankReader(redis_client.connect(self.servers.redis_url), BANK)

    # -- holding it against the truth --------------------------------------------------------------------------------

    def masks_of_batches(self, events: list[Event]) -> list[int | None]:
        """The mask each batch was trained into: a decision holds for its stream until the next one."""
        decisions = {event.offset: event.mask_id for event in events}
        current: dict[str, int | None] = {}
        masks: list[int | None] = []
        for place in self.plan:
            if place.index in decisions:
                current[place.stream] = decisions[place.index]
            masks.append(current.get(place.stream))
        return masks

    @property
    def tasks(self) -> list[int]:
        """The true task of every batch."""
        return [place.task for place in self.plan]

    def report(self, masks: list[int | None]) -> list[TaskReport]:
        """Per true task: its mask, how pure that is, and held-out accuracy, the task inferred from single images."""
        tasks = self.tasks
        owners = scoring.owners(tasks, masks)
        reader = self.reader()
        network = reader.network(reader.spec())
        ids = reader.mask_ids()
        bank = reader.masks(network, ids)
        stacked = np.stack([bank[mask_id] for mask_id in ids])
        reports = []
        for task in sorted(set(tasks)):
            x, y = held_out(self.scenario, task)
            answer = predict(network, ids, stacked, network.inputs(x))
            mask_id = scoring.main_mask(task, tasks, masks)
            reports.append(
                TaskReport(
                    task=task,
                    mask_id=mask_id,
                    batches=tasks.count(task),
                    purity=scoring.purity(mask_id, tasks, masks),
                    accuracy=float((answer.labels == y).mean()),
                    found=sum(owners.get(int(mask)) == task for mask in answer.mask_ids) / len(y),
                )
            )
        return reports

    def summary(self, events: list[Event], masks: list[int | None], reports: list[TaskReport]) -> dict[str, Any]:
        """The totals, as `demo --json` prints them."""
        totals = self.reader().totals()
        return {
            "true_tasks": len(reports),
            "masks_allocated": totals["allocated"],
            "wrong_updates": scoring.wrong_updates(self.tasks, masks),
            "task_inference_accuracy": round(sum(r.found for r in reports) / len(reports), 4),
            "accuracy": round(sum(r.accuracy for r in reports) / len(reports), 4),
            "prequential_accuracy": round(totals["correct"] / max(1, totals["samples"]), 4),
            "batches": totals["batches"],
            "overflowed": totals["overflowed"],
            "dead_lettered": totals["dead_lettered"],
            "decisions": len(events),
            "tasks": [
                {"task": r.task, "mask": r.mask_id, "batches": r.batches, "purity": r.purity, "accuracy": r.accuracy}
                for r in reports
            ],
            "dataset": self.scenario.dataset.source,
        }


def held_out(scenario: Scenario, task: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a task that its report is made of."""
    x, y = scenario.test_set(task)
    return x[:_TEST_ROWS], y[:_TEST_ROWS]


def owners_of(events: list[Event]) -> dict[int, int]:
    """Mask -> the true task of the batch it was allocated for."""
    return {e.mask_id: e.task for e in events if e.fields["type"] == "allocate" and e.mask_id is not None}


def fresh_directory(output: Path) -> Path:
    """`output/state`, emptied of an earlier demo's servers; refuses to touch anything else.

    Raises:
        StopError: it holds files that no demo put there.
    """
    output.mkdir(parents=True, exist_ok=True)
    state = output / "state"
    if state.exists():
        strange = sorted(entry.name for entry in state.iterdir() if entry.name not in {"redis", "kafka", "lock"})
        if strange:
            raise StopError(f"{state} holds {', '.join(strange)}: no demo made that; choose another --output")
        lock = DirectoryLock(state)
        lock.acquire()  # a demo that is still running keeps its data
        lock.release()
        shutil.rmtree(state)
    return state
