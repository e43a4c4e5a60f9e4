"""Alert rules and dashboard name metrics, labels and values that exist, and documents that do."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from wds.config import Settings
from wds.domain.deliveries import Outcome
from wds.ingest import create_app
from wds.storage.store import Store
from wds.telemetry import metrics

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
RULES_FILE = ROOT / "monitoring" / "prometheus" / "wds.rules.yml"
RULES = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]
CASES = yaml.safe_load(RULES_FILE.with_name("wds.rules.test.yml").read_text())["tests"]
BOARD = json.loads((ROOT / "monitoring" / "grafana" / "wds.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + QUERIES

OF_THE_SCRAPE = {"job", "instance", "pod"}
WORDS = {
    *("max", "min", "sum", "count", "rate", "increase", "absent", "histogram_quantile"),
    *("by", "without", "on", "and", "le", "or"),
}


def samples() -> dict[str, set[str]]:
    """Return every series name that a process exposes, with its labels."""
    metrics.all_replicas.show({"now": datetime.now(UTC), "replicas": [], "retired": {}})
    metrics.expose_internal_errors(["/"])
    found: dict[str, set[str]] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    metrics.all_replicas.show(None)
    return found


def without_strings(expression: str) -> str:
    return re.sub(r'"[^"]*"', '""', expression)


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Return (metric, {label: value}) of every selector; a value keeps its operator in front."""
    found = []
    for name, inside in re.findall(r"\b((?:wds|process)_\w+)(?:\{([^}]*)\})?", expression):
        pairs = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', inside)
        assert len(pairs) == len(re.findall('""', without_strings(inside)))
        found.append((name, {label: value for label, _, value in pairs}))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_names_only_existing_metrics_and_labels(expression):
    existing = samples()
    used = selectors(expression)
    assert used
    labels = set(OF_THE_SCRAPE)
    for name, wanted in used:
        assert name in existing, f"{name} is no metric"
        labels |= existing[name]
        assert set(wanted) <= existing[name] | OF_THE_SCRAPE, name
    for group in re.findall(r"\b(?:by|without|on) \(([^)]*)\)", expression):
        assert set(re.findall(r"\w+", group)) <= labels


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_has_only_syntax_that_these_tests_read(expression):
    """Names that are no metric of ours, no label and no word of PromQL that is used here."""
    plain = re.sub(r"\$\w+|\[[^\]]*\]", "", without_strings(expression))
    names = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\b(?:wds|process)_\w+", "", plain)))
    labels = set().union(*samples().values()) | OF_THE_SCRAPE
    assert names <= WORDS | labels


async def test_expression_compares_labels_with_values_that_occur():
    store = Store("mongodb://127.0.0.1:1", "never_opened")
    app = create_app(Settings(hmac_secrets=("s",)), store)
    await store.close()
    codes = {
        code
        for row in re.findall(r"^\| [\d, ]+ \| (`.*?`) \|", OPERATIONS, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", row)
    } | {"internal_error"}
    occurring = {
        "route": {resource.canonical for resource in app.router.resources()},
        "code": codes,
        "outcome": set(Outcome),
        "role": set(metrics.ROLES),
        "job": {"any"},
    }
    for expression in EXPRESSIONS:
        for _, wanted in selectors(expression.replace('"$job"', '".*"')):
            for label, pattern in wanted.items():
                for each in pattern.split("|"):
                    matching = [v for v in occurring[label] if re.fullmatch(each, v)]
                    assert matching, f"no {label} is {each}"


def test_alerts_are_exactly_the_documented_ones():
    chapter = OPERATIONS.split("\n## Alerts\n")[1].split("\n## ")[0]
    documented = re.findall(r"^### (\w+)$", chapter, re.MULTILINE)
    assert sorted(documented) == sorted(rule["alert"] for rule in RULES)
    for text in re.split(r"^### \w+$", chapter, flags=re.MULTILINE)[1:]:
        assert len(text.split()) >= 15


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_has_a_severity_a_summary_and_a_runbook(rule):
    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert notes["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_has_cases_that_fire_and_cases_that_do_not(rule):
    checks = [
        check
        for case in CASES
        for check in case["alert_rule_test"]
        if check["alertname"] == rule["alert"]
    ]
    assert [check for check in checks if check["exp_alerts"]]
    assert [check for check in checks if not check["exp_alerts"]]


def test_alert_cases_use_existing_series():
    existing = samples()
    for case in CASES:
        for each in case["input_series"]:
            [(name, labels)] = selectors(each["series"])
            assert set(labels) - OF_THE_SCRAPE - {"namespace"} <= existing[name]


def test_dashboard_panels_are_described_and_do_not_overlap():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD)))
    assert variables <= used
    assert used - variables <= {"__rate_interval", "__range", "__all"}


def test_dashboard_shows_every_metric_of_an_alert():
    shown = {re.sub("_(count|sum|bucket)$", "", n) for q in QUERIES for n, _ in selectors(q)}
    alerted = {re.sub("_count$", "", n) for rule in RULES for n, _ in selectors(rule["expr"])}
    assert alerted <= shown
