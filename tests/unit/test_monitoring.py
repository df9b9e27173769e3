"""Alert rules, dashboard, runbook and systemd unit: they speak of metrics, settings and exit codes that exist."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from daemon import settings as table
from daemon.errors import ExitCode
from daemon.metrics import METRICS, SERVING, TrainerMetrics
from unit.test_deploy import accepts
from unit.test_docs import anchors

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RUNBOOK = ROOT / "docs" / "runbook.md"
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
TARGETS = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]
OURS = {metric.name: {"bank", *metric.labels} for metric in METRICS}
OF_REPLICAS = {metric.name: {"bank", *metric.labels} for metric in SERVING}
FROM_PROMETHEUS = {"instance", "job"}

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
every_target = pytest.mark.parametrize("target", [t for _, t in TARGETS], ids=[f"{n}-{t['refId']}" for n, t in TARGETS])


# -- reading PromQL ----------------------------------------------------------------------------------------------------


def samples() -> dict[str, set[str]]:
    """Name of every series that a trainer or a replica exposes -> its labels."""
    found: dict[str, set[str]] = {}
    for metric in (*METRICS, *SERVING):
        labels = {"bank", *metric.labels}
        if metric.kind == "histogram":
            found |= {f"{metric.name}_bucket": labels | {"le"}, f"{metric.name}_sum": labels}
            found |= {f"{metric.name}_count": labels}
        else:
            found[metric.name] = labels
    for family in TrainerMetrics().registry.collect():
        if not family.name.startswith("supsup_"):
            found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


def nodes(query: str) -> list[Any]:
    """Every part of a query; a query that Prometheus would not take is an error."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(plain(query)), pre_visit=found.append)
    return found


def plain(query: str) -> str:
    """A dashboard's query with Grafana's variables replaced."""
    return query.replace("$__rate_interval", "5m").replace("$bank", ".*")


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels matched on) of every selector in a query."""
    for node in nodes(query):
        selector = node.vector_selector if isinstance(node, promql_parser.MatrixSelector) else node
        if isinstance(selector, promql_parser.VectorSelector):
            yield selector.name, {matcher.name for matcher in selector.matchers.matchers}


def grouping_labels(query: str) -> set[str]:
    """Labels in `by`, `without`, `on`, `ignoring` and `group_left`."""
    found: set[str] = set()
    for node in nodes(query):
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            found |= set(modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and modifier is not None:
            found |= set(modifier.matching.labels if modifier.matching else ()) | set(modifier.group_labels or ())
    return found


def strangers(query: str) -> set[str]:
    """What a query names and nobody exposes: metrics, or labels that none of its metrics has."""
    known = samples()
    wrong, together = set(), set(FROM_PROMETHEUS)
    for name, matched in selectors(query):
        if name not in known:
            wrong.add(name)
            continue
        together |= known[name]
        wrong |= {f"{name}{{{label}}}" for label in matched - known[name] - FROM_PROMETHEUS}
    return wrong | (grouping_labels(query) - together)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("sum by (bank) (rate(supsup_batches_total[5m]))", set()),
        ("rate(supsup_batch_total[5m])", {"supsup_batch_total"}),
        ('supsup_leader{bnak="x"}', {"supsup_leader{bnak}"}),
        ("sum by (topic) (supsup_leader)", {"topic"}),
        ("supsup_leader / on (host) supsup_ready", {"host"}),
        ("supsup_step_seconds", {"supsup_step_seconds"}),
        ("avg_over_time(supsup_masks[1h:5m]) > 0 and absent(supsup_mask)", {"supsup_mask"}),
    ],
)
def test_the_check_of_queries_would_notice_a_wrong_one(query: str, found: set[str]) -> None:
    assert strangers(query) == found


@pytest.mark.parametrize("query", ["sum by (bank (supsup_leader)", "rate(supsup_leader)", "supsup_leader >"])
def test_a_query_that_prometheus_would_not_take_is_an_error(query: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        nodes(query)


# -- alert rules -------------------------------------------------------------------------------------------------------


@every_rule
def test_a_rule_names_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert strangers(rule["expr"]) == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here")
def test_prometheus_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", DEPLOY / "alerts.yaml"], check=True, timeout=60)


@every_rule
def test_a_rule_has_what_a_person_needs(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Supsup[A-Z]\w+", rule["alert"])
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    if "for" in rule:
        assert promql_parser.parse_duration(rule["for"]).total_seconds() >= 60


@every_rule
def test_a_rule_tells_only_labels_that_its_result_has(rule: dict[str, Any]) -> None:
    told = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    left = grouping_labels(rule["expr"])
    if not left:  # nothing is summed up: the series themselves
        left = set().union(*(samples()[name] for name, _ in selectors(rule["expr"]))) | FROM_PROMETHEUS
    assert told <= left


def test_a_trainer_that_is_gone_is_noticed_though_replicas_are_there() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "SupsupGone"]
    assert {name for name, _ in selectors(rule["expr"])} <= OURS.keys() - OF_REPLICAS.keys()


def test_no_two_rules_have_one_name() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))


def test_every_alert_has_a_section_in_the_runbook_and_no_section_is_left_over() -> None:
    sections = re.findall(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    for rule in RULES:
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ROOT / path == RUNBOOK
        assert anchor in anchors(RUNBOOK)


def test_every_section_of_the_runbook_says_what_it_means_where_to_look_and_what_to_do() -> None:
    for text in RUNBOOK.read_text().split("\n## ")[1:]:
        assert re.findall(r"^\*(Meaning|Look|Do)\.\*", text, flags=re.MULTILINE) == ["Meaning", "Look", "Do"], text[:20]


def test_the_runbook_names_metrics_that_exist() -> None:
    assert (
        set(re.findall(r"\bsupsup_[a-z_]+", RUNBOOK.read_text())) <= samples().keys() | OURS.keys() | OF_REPLICAS.keys()
    )


def test_the_threshold_of_a_stuck_loop_is_that_of_livez() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "SupsupLoopStuck"]
    assert rule["expr"].endswith(f"> {table.parse({}, {}).livez_limit_s:g}")


# -- dashboard ---------------------------------------------------------------------------------------------------------


@every_target
def test_a_panel_names_metrics_and_labels_that_exist(target: dict[str, Any]) -> None:
    assert strangers(target["expr"]) == set()
    known = set().union(*(samples()[name] for name, _ in selectors(target["expr"]))) | FROM_PROMETHEUS
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known


@every_target
def test_a_panel_shows_the_chosen_bank_from_the_chosen_source(target: dict[str, Any]) -> None:
    assert 'bank=~"$bank"' in target["expr"]
    assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_dashboard_asks_for_its_source_and_bank() -> None:
    source, bank = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", bank["query"]).groups()
    assert label in OURS[name]


def test_the_dashboard_shows_every_metric_or_it_stands_in_an_alert() -> None:
    queries = [target["expr"] for _, target in TARGETS] + [rule["expr"] for rule in RULES]
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for query in queries for name, _ in selectors(query)}
    assert OURS.keys() - shown - {"supsup_bank_counts"} == set()
    assert "supsup_bank_counts" in {name for query in queries for name, _ in selectors(query)}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


# -- systemd -----------------------------------------------------------------------------------------------------------


UNIT_FILE = DEPLOY / "supsup-daemon.service"


def unit() -> dict[str, dict[str, list[str]]]:
    """Section -> name -> values."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in UNIT_FILE.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, _, text = line.partition("=")
            section.setdefault(name, []).append(text)
    return found


def test_the_unit_is_an_ini_file() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read(UNIT_FILE)
    assert parser.sections() == ["Unit", "Service", "Install"]


def test_the_unit_starts_a_command_that_exists_with_settings_that_exist(tmp_path: Path) -> None:
    [command] = unit()["Service"]["ExecStart"]
    (tmp_path / "supsup.toml").touch()
    program, *arguments = shlex.split(command.replace("%d", str(tmp_path)))
    assert Path(program).name == "supsup-daemon"
    assert accepts(arguments)
    variables = set(re.findall(r"\bSUPSUP_[A-Z_]*[A-Z]", UNIT_FILE.read_text()))
    assert variables <= {table.variable(name) for name in table.NAMES}


def test_the_unit_has_a_watchdog_and_is_told_when_the_trainer_is_ready() -> None:
    service = unit()["Service"]
    assert service["Type"] == ["notify"]
    assert int(service["WatchdogSec"][0]) > 2 * table.parse({}, {}).livez_limit_s - 1
    assert service["Restart"] == ["on-failure"]


def test_the_unit_leaves_to_a_person_what_the_exit_codes_leave_to_a_person() -> None:
    [codes] = unit()["Service"]["RestartPreventExitStatus"]
    page = (ROOT / "docs" / "reference" / "commands.md").read_text()
    left = re.search(r"should leave ([\d, and]+) to a person", page.replace("\n", " "))
    assert left is not None
    assert codes.split() == re.findall(r"\d+", left[1])
    assert {int(code) for code in codes.split()} <= {code.value for code in ExitCode}


def test_the_unit_ends_a_trainer_no_sooner_than_it_needs() -> None:
    assert int(unit()["Service"]["TimeoutStopSec"][0]) > table.parse({}, {}).patience_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT_FILE.read_text(), flags=re.MULTILINE)
    (tmp_path / "supsup-daemon.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", tmp_path / "supsup-daemon.service"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
