"""`python -m fault`: as many faults as you like, progress on stderr, one line of JSON on stdout at the end."""

import json
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fault.nursery import Nursery
from fault.plan import Fault, plan
from fault.rounds import Lane, Outcome, nursery
from fault.servers import BrokerKind, apache_is_here

_SHOWN: Final = 12  # lines of a difference


class Campaign:
    """Rounds on several lanes until enough faults were injected.

    Args:
        seed: of every draw.
        wanted: faults.
        directory: for servers, logs, and what the rounds came to.
        console: for people.
    """

    def __init__(self, seed: int, wanted: int, directory: Path, console: Console) -> None:
        self.seed = seed
        self.wanted = wanted
        self.results: list[dict[str, Any]] = []
        self._directory = directory
        self._console = console
        self._lock = threading.Lock()
        self._numbers: dict[BrokerKind, int] = {}
        self._done: set[tuple[str, int]] = set()
        self._under_way = 0
        self.crashes: list[str] = []
        columns = (
            TextColumn("faults"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[newest]}"),
        )
        self.progress = Progress(*columns, console=console)
        self._bar = self.progress.add_task("faults", total=wanted, newest="")

    # -- what was done before

    @property
    def _record(self) -> Path:
        return self._directory / f"seed-{self.seed}.jsonl"

    def resume(self) -> None:
        """Take over the rounds that an interrupted run under the same seed has finished."""
        if self._record.exists():
            for line in self._record.read_text().splitlines():
                result = json.loads(line)
                self.results.append(result)
                self._done.add((result["kafka"], result["round"]))
        self.progress.update(self._bar, completed=self.injected)

    def begin_anew(self) -> None:
        """Forget earlier runs under this seed."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._record.write_text("")

    # -- the rounds

    def run_lane(self, name: str, kind: BrokerKind, trainers_from: Nursery, only: int | None) -> None:
        """Rounds on one pair of servers; whatever breaks the servers themselves ends them, and new ones are started."""
        life = 0
        while self._more() and life < 5:
            life += 1
            try:
                with Lane(self._directory / f"{name}-{life}", kind, trainers_from) as lane:
                    self._run_rounds(lane, kind, only)
            except Exception as error:  # noqa: BLE001 - counted as a failure of this run, and told
                with self._lock:
                    self.crashes.append(f"{name}: {error!r}")
                self._console.print(f"[red]{name}:[/] {error!r}", markup=True)
            if only is not None:
                return

    def _run_rounds(self, lane: Lane, kind: BrokerKind, only: int | None) -> None:
        while (number := self._take(kind) if only is None else only) is not None:
            outcome = lane.run(plan(self.seed, number, kind), self._note_fault)
            self._note_round(kind, outcome)
            if only is not None:
                return

    def _more(self) -> bool:
        with self._lock:
            return self.injected + self._under_way < self.wanted

    def _take(self, kind: BrokerKind) -> int | None:
        """The next round's number; None when enough faults are injected or on their way."""
        with self._lock:
            if self.injected + self._under_way >= self.wanted:
                return None
            number = self._numbers.get(kind, 0)
            while (kind, number) in self._done:
                number += 1
            self._numbers[kind] = number + 1
            return number

    def _note_fault(self, fault: Fault) -> None:
        with self._lock:
            self._under_way += 1
        self.progress.update(self._bar, advance=1, newest=fault.kind)

    def _note_round(self, kind: BrokerKind, outcome: Outcome) -> None:
        result = {
            "round": outcome.plan.number,
            "kafka": kind,
            "stream": outcome.plan.stream,
            "pair": outcome.plan.pair,
            "injected": len(outcome.injected),
            "by_kind": outcome.by_kind,
            "points": Counter(fault.point for fault in outcome.injected if fault.point),
            "differences": outcome.differences,
            "restarts": outcome.restarts,
            "last_words": outcome.last_words,
            "seconds": round(outcome.seconds, 1),
        }
        with self._lock:
            self._under_way -= len(outcome.injected)
            self.results.append(result)
            with self._record.open("a") as record:
                record.write(json.dumps(result) + "\n")
        if outcome.differences:
            self._tell(kind, outcome)

    def _tell(self, kind: BrokerKind, outcome: Outcome) -> None:
        again = f"python -m fault --seed {self.seed} --kafka {kind} --round {outcome.plan.number}"
        faults = [f"  {fault}" for fault in outcome.injected]
        lines = [f"round {outcome.plan.number} on {kind} differs; to repeat it: {again}", *faults]
        self._console.print("\n".join([*lines, *outcome.differences[:_SHOWN]]), markup=False, highlight=False)

    # -- what it came to

    @property
    def injected(self) -> int:
        """Faults in finished rounds."""
        return sum(result["injected"] for result in self.results)

    def summary(self, seconds: float) -> dict[str, Any]:
        """The one line of JSON."""
        kinds, points, restarts = Counter[str](), Counter[str](), Counter[str]()
        for result in self.results:
            kinds.update(result["by_kind"])
            points.update(result["points"])
            restarts.update(result["restarts"])
        return {
            "injected": self.injected,
            "by_kind": dict(sorted(kinds.items())),
            "differences": sum(bool(result["differences"]) for result in self.results) + len(self.crashes),
            "seconds": round(seconds, 1),
            "seed": self.seed,
            "rounds": len(self.results),
            "kafka": dict(Counter(result["kafka"] for result in self.results)),
            "points": len(points),
            "restarts": dict(sorted(restarts.items())),
        }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--faults", default=100, help="How many to inject.")
@click.option("--seed", default=0, help="Of every draw.")
@click.option("--kafka", type=click.Choice(["embedded", "apache", "both"]), help="Broker.  [default: both if there]")
@click.option("--lanes", default=2, help="Pairs of servers that work at the same time.")
@click.option("--round", "only", type=int, help="Only the round of this number, as a failing run names it.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run under the same seed.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path("build/faults"), help="For servers and logs."
)
def main(
    *, faults: int, seed: int, kafka: str | None, lanes: int, only: int | None, resume: bool, directory: Path
) -> None:
    """Inject faults into trainers, Redis and Kafka; every bank must end with the bytes of an undisturbed run."""
    _keep_logs_out()
    kinds = _kinds(kafka)
    begun = time.monotonic()
    campaign = Campaign(seed, faults, directory.resolve(), Console(stderr=True))
    if resume:
        campaign.resume()
    else:
        campaign.begin_anew()
    with ExitStack() as stack:
        trainers_from = stack.enter_context(nursery(directory.resolve()))
        stack.enter_context(campaign.progress)
        threads = [
            threading.Thread(target=campaign.run_lane, args=(f"lane-{i}", kinds[i % len(kinds)], trainers_from, only))
            for i in range(1 if only is not None else max(lanes, len(kinds)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    summary = campaign.summary(time.monotonic() - begun)
    click.echo(json.dumps(summary))
    sys.exit(1 if summary["differences"] or not summary["injected"] else 0)


def _kinds(kafka: str | None) -> list[BrokerKind]:
    if kafka == "embedded" or (kafka is None and not apache_is_here()):
        return ["embedded"]
    if not apache_is_here():
        raise click.UsageError("no Apache Kafka in ../shared/kafka, or no java to run it: use --kafka embedded")
    return ["apache"] if kafka == "apache" else ["embedded", "apache"]


def _keep_logs_out() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


if __name__ == "__main__":
    main()
