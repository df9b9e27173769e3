"""A replica's metrics: those of the table, all of them documented."""

import re

from daemon.metrics import SERVING
from daemon.serving_metrics import HOW, ServingMetrics
from unit.test_docs import REFERENCE, rows, section


def shown(metrics: ServingMetrics) -> str:
    return metrics.render().decode()


def test_the_serving_page_has_every_metric_and_no_other() -> None:
    documented = [cells for cells in rows(section(REFERENCE / "serving.md", "## Metrics")) if len(cells) == 5]
    assert [cells[0].strip("`") for cells in documented] == [metric.name for metric in SERVING]
    for cells, metric in zip(documented, SERVING, strict=True):
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert cells[1:] == [metric.kind, metric.unit, labels, metric.meaning]


def test_counters_are_there_before_anything_is_counted() -> None:
    text = shown(ServingMetrics("b"))
    for outcome in ("answered", "refused", "failed"):
        assert f'supsup_serve_requests_total{{bank="b",outcome="{outcome}"}} 0.0' in text
    for how in HOW:
        assert f'supsup_serve_rows_total{{bank="b",inference="{how}"}} 0.0' in text


def test_a_pass_counts_its_rows_by_how_their_task_was_found() -> None:
    metrics = ServingMetrics("b")
    metrics.passed(rows=10, how="exact", sticky=7, novel=2)
    text = shown(metrics)
    assert 'supsup_serve_rows_total{bank="b",inference="exact"} 3.0' in text
    assert 'supsup_serve_rows_total{bank="b",inference="sticky"} 7.0' in text
    assert 'supsup_serve_novel_rows_total{bank="b"} 2.0' in text
    assert re.search(r'supsup_serve_batch_rows_sum\{bank="b"\} 10.0', text)


def test_what_is_asked_when_somebody_reads_is_asked_then() -> None:
    metrics, waiting = ServingMetrics("b"), [0]
    metrics.watch(queue_rows=lambda: waiting[0], staleness_s=lambda: 1.5, ready=lambda: True)
    waiting[0] = 9
    text = shown(metrics)
    assert 'supsup_serve_queue_rows{bank="b"} 9.0' in text
    assert 'supsup_serve_staleness_seconds{bank="b"} 1.5' in text
    assert 'supsup_serve_ready{bank="b"} 1.0' in text


def test_outcomes_are_counted_and_can_be_told() -> None:
    metrics = ServingMetrics("b")
    metrics.responded("answered", "exact", 0.002)
    metrics.responded("refused")
    assert (metrics.counted("answered"), metrics.counted("refused"), metrics.counted("failed")) == (1, 1, 0)
    assert 'supsup_serve_request_seconds_count{bank="b",inference="exact"} 1.0' in shown(metrics)
