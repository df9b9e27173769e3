"""The metrics: what is in the table, what is told, and what is counted."""

import math
import re
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.checkpoint import COUNTERS
from daemon.errors import Server
from daemon.health import _WAITING, Health
from daemon.metrics import METRICS, REASONS, TrainerMetrics
from daemon.observe import Outcome
from daemon.records import Partition
from supsup_online.types import Action, Decision, StepResult, Why
from unit.test_docs import REFERENCE, named, rows, section

HERE = Partition("digits", 3)
TRAINED = StepResult("s", 4, 2, trained=True, decision=None, loss=1.0, accuracy=0.75, correct=3)


def value(metrics: TrainerMetrics, name: str, **labels: object) -> float | None:
    """One sample, of the bank that the tests use."""
    return metrics.registry.get_sample_value(name, {"bank": "mine", **{k: str(v) for k, v in labels.items()}})


@pytest.fixture
def metrics() -> TrainerMetrics:
    return TrainerMetrics("mine")


def exposed(metrics: TrainerMetrics) -> dict[str, tuple[str, set[str]]]:
    """Our metrics as Prometheus reads them: name -> (type, labels)."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        if name.startswith("supsup_") and not name.endswith("_created"):
            found[name] = (family.type, labels)
    return found


def with_everything(metrics: TrainerMetrics) -> TrainerMetrics:
    """Each thing has happened once."""
    decision = Decision("allocate", 2, "drift", "loss", evicted=1)
    metrics.assigned(HERE)
    metrics.batch(HERE, TRAINED, decode_s=0.001, step_s=0.01, accuracy=0.75)
    overflowed = StepResult("s", 4, None, trained=False, decision=decision)
    metrics.batch(HERE, overflowed, decode_s=0.001, step_s=0.01, accuracy=0.75)
    metrics.batch(HERE, StepResult("s", 4, 2, trained=False, decision=None), decode_s=0, step_s=0, accuracy=0.75)
    metrics.dead_lettered(HERE, "shape")
    metrics.committed(0.2)
    metrics.bank(version=7, masks=3, budget=10, totals=dict.fromkeys(COUNTERS, 5))
    metrics.retried("kafka")
    metrics.lag(HERE, 12)
    metrics.rebalanced()
    metrics.leading(leads=True)
    return metrics


# -- the table ---------------------------------------------------------------------------------------------------------


def test_what_is_exposed_is_what_the_table_says(metrics: TrainerMetrics) -> None:
    expected = {metric.name: (metric.kind, {"bank", *metric.labels}) for metric in METRICS}
    assert exposed(with_everything(metrics)) == expected


def test_the_metrics_page_has_every_metric_as_the_table_has_it() -> None:
    documented = [cells for cells in rows((REFERENCE / "metrics.md").read_text()) if len(cells) == 5]
    expected = [
        [f"`{m.name}`", m.kind, m.unit, ", ".join(f"`{label}`" for label in m.labels), m.meaning] for m in METRICS
    ]
    assert documented == expected


def test_the_metrics_page_has_every_label_and_its_values() -> None:
    documented = {cells[0].strip("`"): cells[1] for cells in rows(section(REFERENCE / "metrics.md", "## Labels"))}
    assert documented.keys() == {"bank", *(label for metric in METRICS for label in metric.labels)}
    for label, kind in (("result", Outcome), ("action", Action), ("why", Why), ("dependency", Server)):
        assert re.findall(r"`([^`]+)`", documented[label]) == list(kind.__args__)


def test_names_begin_with_supsup_and_end_with_a_base_unit() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"supsup_[a-z_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        if metric.unit == "seconds":
            assert metric.name.endswith("_seconds")


def test_labels_are_bounded() -> None:
    assert not {"mask", "stream", "offset", "key"} & {label for metric in METRICS for label in metric.labels}


def test_the_reasons_are_those_of_the_records_page() -> None:
    assert {*named(section(REFERENCE / "records.md", "## Reasons")), "other"} == set(REASONS)


def test_the_health_page_has_every_reason_for_not_being_ready() -> None:
    documented = {name for name in named((REFERENCE / "health.md").read_text()) if not name.startswith("/")}
    assert documented == {*_WAITING, "stuck", *get_args(Server), "partitions", "lease"}


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_batches_are_counted_by_what_became_of_them(metrics: TrainerMetrics) -> None:
    with_everything(metrics)
    place = {"topic": "digits", "partition": 3}
    for result in ("trained", "overflowed", "answered"):
        assert value(metrics, "supsup_batches_total", **place, result=result) == 1
    assert value(metrics, "supsup_samples_total", **place) == 4, "answered rows are not trained"
    assert value(metrics, "supsup_correct_samples_total", **place) == 3
    assert value(metrics, "supsup_decisions_total", action="allocate", why="drift") == 1
    assert value(metrics, "supsup_evictions_total") == 1
    assert value(metrics, "supsup_step_seconds_count") == 3
    assert value(metrics, "supsup_step_seconds_sum") == pytest.approx(0.02)


def test_counters_are_there_before_anything_happens(metrics: TrainerMetrics) -> None:
    metrics.assigned(HERE)
    assert value(metrics, "supsup_batches_total", topic="digits", partition=3, result="overflowed") == 0
    for reason in REASONS:
        assert value(metrics, "supsup_dead_letters_total", topic="digits", reason=reason) == 0
    for dependency in ("kafka", "redis"):
        assert value(metrics, "supsup_retries_total", dependency=dependency) == 0
    assert value(metrics, "supsup_commits_total") == 0
    assert value(metrics, "supsup_lease_losses_total") == 0
    assert value(metrics, "supsup_leader") == 0


def test_the_accuracy_is_absent_before_the_first_trained_batch(metrics: TrainerMetrics) -> None:
    assert value(metrics, "supsup_accuracy_ratio") is None
    metrics.batch(HERE, TRAINED, decode_s=0, step_s=0, accuracy=0.5)
    assert value(metrics, "supsup_accuracy_ratio") == 0.5


def test_a_reason_nobody_knows_is_counted_as_other(metrics: TrainerMetrics) -> None:
    metrics.dead_lettered(HERE, "brand-new")
    assert value(metrics, "supsup_dead_letters_total", topic="digits", reason="other") == 1
    assert value(metrics, "supsup_dead_letters_total", topic="digits", reason="brand-new") is None


def test_a_partition_that_went_away_has_no_lag(metrics: TrainerMetrics) -> None:
    metrics.lag(HERE, 12)
    assert value(metrics, "supsup_lag_records", topic="digits", partition=3) == 12
    metrics.forget(HERE)
    metrics.forget(HERE)
    assert value(metrics, "supsup_lag_records", topic="digits", partition=3) is None


def test_who_loses_the_lease_leads_no_more(metrics: TrainerMetrics) -> None:
    metrics.leading(leads=True)
    metrics.lease_lost()
    assert (value(metrics, "supsup_leader"), value(metrics, "supsup_lease_losses_total")) == (0, 1)


def test_heartbeat_and_readiness_are_those_of_the_moment_they_are_read(metrics: TrainerMetrics) -> None:
    health, age_s = Health(), [3.0]
    metrics.watch(age_s=lambda: age_s[0], ready=lambda: health.ready)
    assert (value(metrics, "supsup_heartbeat_age_seconds"), value(metrics, "supsup_ready")) == (3, 0)
    health.role, age_s[0] = "leader", 4.0
    assert (value(metrics, "supsup_heartbeat_age_seconds"), value(metrics, "supsup_ready")) == (4, 1)


def test_two_trainers_in_one_process_count_apart() -> None:
    one, other = TrainerMetrics("mine"), TrainerMetrics("mine")
    one.committed(1)
    assert (value(one, "supsup_commits_total"), value(other, "supsup_commits_total")) == (1, 0)


def test_nothing_is_not_a_number(metrics: TrainerMetrics) -> None:
    for family in metrics.registry.collect():
        assert not [sample for sample in family.samples if math.isnan(sample.value)]
