"""What the doctor says about this machine, fact by fact; how numbers are shown; how all of it is put together."""

from dataclasses import replace

import pytest

from daemon.doctor import Observed, examine
from daemon.doctor_kafka import KafkaFacts
from daemon.doctor_machine import MachineFacts, Measured, check_machine
from daemon.doctor_redis import BankFacts, RedisFacts
from daemon.findings import Finding, Miss, Severity, duration, note, ok, problem, several, size, warning, worst
from daemon.kafka_facts import StoredPosition
from daemon.mask_sizes import MaskSizes
from daemon.settings import Settings

SETTINGS = Settings(budget=100, threads=2, max_record_bytes=2**20)
SIZES = MaskSizes.of(SETTINGS.bank_spec(), 2)
FAST = Measured(128, 0.005, 0.001, 0.0005, "f" * 64)
HEALTHY = MachineFacts("3.11.7", "2.13.0", "cpu", cores=4, threads=4, memory=2**33, measured=FAST)


def judged(facts: MachineFacts, masks: int = 0, **settings: object) -> list[Finding]:
    findings = check_machine(SETTINGS.model_copy(update=settings), facts, SIZES, masks)
    return [finding for finding in findings if finding.severity > Severity.OK]


def test_of_a_healthy_machine_nothing_is_said_but_ok() -> None:
    findings = list(check_machine(SETTINGS, HEALTHY, SIZES))
    assert worst(findings) is Severity.OK
    text = "\n".join(f.found for f in findings)
    assert "a batch of 128 rows takes 5 ms: 200 records a second at most" in text
    assert "under load a commit every 1 s or 200 records" in text


@pytest.mark.parametrize(
    ("facts", "severity", "check", "told", "advice"),
    [
        (
            replace(HEALTHY, device_failure="--device cuda: not usable"),
            "problem",
            "machine.device",
            "not usable",
            "auto",
        ),
        (replace(HEALTHY, device="cuda:0", is_cuda=True), "note", "machine.device", "on a CPU only", "--device cpu"),
        (replace(HEALTHY, cores=1), "warning", "machine.threads", "2 threads on 1 core", "--threads 1"),
        (
            replace(HEALTHY, memory=2**29),
            "problem",
            "machine.memory",
            "512 MiB are free (machine): it does not fit",
            "--arch",
        ),
        (replace(HEALTHY, memory=570 * 2**20), "warning", "machine.memory", "it hardly fits", "--budget"),
        (replace(HEALTHY, memory=None), "note", "machine.memory", "could not be found out", ""),
        (replace(HEALTHY, measured=None, misses=(Miss("steps", "no"),)), "note", "machine.measured", "steps (no)", ""),
        (
            replace(HEALTHY, measured=replace(FAST, decision_per_mask_s=0.02)),
            "note",
            "machine.decision",
            "2 s with 100 (80%)",
            "once the bank is that full: raise --decision-every",
        ),
        (
            replace(HEALTHY, measured=replace(FAST, step_s=10.0)),
            "warning",
            "machine.poll-interval",
            "longer than rebalance_budget_s (5 s)",
            "raise them",
        ),
        (
            replace(HEALTHY, measured=replace(FAST, step_s=40.0)),
            "problem",
            "machine.poll-interval",
            "after livez_limit_s (30 s) the trainer is taken for dead",
            "--livez-limit-s 81",
        ),
    ],
)
def test_each_fact_has_its_finding(facts: MachineFacts, severity: str, check: str, told: str, advice: str) -> None:
    findings = judged(facts)
    matching = [f for f in findings if f.check == check and f.severity.word == severity and told in f.found]
    assert matching, findings
    assert advice in matching[0].advice
    assert worst(findings).word == severity, "nothing worse comes with it"


def test_decisions_that_already_take_most_of_the_time_are_a_warning() -> None:
    slow = replace(HEALTHY, measured=replace(FAST, decision_per_mask_s=0.02))
    assert [f.severity for f in judged(slow, masks=50) if f.check == "machine.decision"] == [Severity.WARNING]


def test_torchs_own_choice_of_threads_is_noted() -> None:
    (finding,) = judged(HEALTHY, threads=0)
    assert (finding.severity, finding.check) == (Severity.NOTE, "machine.threads")
    assert "--threads 4 fixes it" in finding.advice


def test_records_of_the_largest_size_that_would_not_fit_are_noted() -> None:
    (finding,) = judged(replace(HEALTHY, memory=2**30), max_record_bytes=2**30)
    assert "records of the largest size that wait to be trained would be 2.0 GiB more" in finding.found


def test_the_one_shot_rules_unpack_masks_and_need_more_memory() -> None:
    assert judged(replace(HEALTHY, memory=700 * 2**20)) == []
    assert {f.check for f in judged(replace(HEALTHY, memory=700 * 2**20), rule="one-shot")} == {"machine.memory"}


# -- numbers and severities


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1000, "1000 bytes"), (1536, "1.5 KiB"), (2**24, "16 MiB"), (2**34, "16.0 GiB")]
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00125, "1.25 ms"), (1, "1 s"), (90, "1.5 min"), (7200, "2 h"), (86_400, "24 h"), (604_800, "7 days")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_is_singular() -> None:
    assert (several(1, "mask"), several(0, "mask")) == ("1 mask", "0 masks")


def test_the_worst_of_nothing_is_ok_and_problems_are_worst() -> None:
    findings = [ok("a", "x"), note("b", "x"), warning("c", "x", "y"), problem("d", "x", "y")]
    assert worst([]) is Severity.OK
    assert [worst(findings[: i + 1]).word for i in range(4)] == ["ok", "note", "warning", "problem"]


# -- everything together


def test_everything_is_said_even_where_nothing_answers() -> None:
    seen = Observed(KafkaFacts(failure="no Kafka"), RedisFacts(failure="no Redis"), None, HEALTHY)
    problems = [f.check for f in examine(SETTINGS, seen, SIZES, 128) if f.severity is Severity.PROBLEM]
    assert problems == ["kafka.reach", "redis.reach"]


def test_positions_are_judged_when_both_servers_answer() -> None:
    bank = BankFacts(positions={("supsup", 0): StoredPosition(3)})
    info = RedisFacts(info={"redis_version": "8.2.2"})
    seen = Observed(KafkaFacts(), info, bank, HEALTHY)
    assert "topic.position" in {f.check for f in examine(SETTINGS, seen, SIZES, 128)}
    away = replace(seen, kafka=KafkaFacts(failure="no Kafka"))
    assert "topic.position" not in {f.check for f in examine(SETTINGS, away, SIZES, 128)}


def test_a_fingerprint_of_other_weights_is_told() -> None:
    spec = SETTINGS.bank_spec().to_text() | {"fingerprint": "0" * 64}
    seen = Observed(KafkaFacts(), RedisFacts(), BankFacts(spec=spec), HEALTHY)
    assert "bank.fingerprint" in {
        f.check for f in examine(SETTINGS, seen, SIZES, 128) if f.severity is Severity.PROBLEM
    }


def test_embedded_servers_are_asked_nothing_but_whether_they_can_run() -> None:
    settings = SETTINGS.model_copy(update={"embedded": True})
    seen = Observed(None, None, None, HEALTHY)
    assert [f.check for f in examine(settings, seen, SIZES, 128) if f.severity > Severity.OK] == ["embedded"]
    broken = replace(seen, embedded_failure="not installed")
    assert worst(examine(settings, broken, SIZES, 128)) is Severity.PROBLEM
