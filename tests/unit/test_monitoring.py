"""Alerts and dashboard speak of metrics that there are, and of runbooks that there are."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podlane.runtime import metrics

pytestmark = pytest.mark.unit

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "monitoring"
DAEMONS = ("netd", "proxyd", "scheduler", "podlane.host", "podlane.store", "podlane.runtime")

# Of etcd 3.4 and later, as its /metrics has them, and of Prometheus itself.
FOREIGN = frozenset(
    {
        "up",
        "etcd_disk_backend_commit_duration_seconds_bucket",
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_server_has_leader",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_failed_total",
        "etcd_server_quota_backend_bytes",
        "grpc_server_handled_total",
    }
)
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}

_WORD = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PROMQL = frozenset(
    {"and", "by", "changes", "count", "delta", "floor", "histogram_quantile", "increase", "label_values", "max", "min"}
    | {"or", "rate", "scalar", "sum", "time", "unless", "vector", "without"}
)


def registered() -> dict[str, tuple[str, ...]]:
    """Every metric of the daemons with its labels, by the names of its samples."""
    for name in DAEMONS:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    samples = {sample.name: () for family in metrics.REGISTRY.collect() for sample in family.samples}
    process = {name: () for name in samples if name.startswith("process_")}
    own = {
        metric._name + suffix: tuple(metric._labelnames)
        for metric in metrics._known.values()
        for suffix in SUFFIXES[metric._type]
    }
    return own | process


def names_in(expression: str) -> set[str]:
    """What is left of a PromQL expression without strings, labels, windows, numbers and its own words."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\[\w+\]|\b(by|without|on)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"label_values\((\w+),\s*\w+\)", r"\1", bare)
    return set(_WORD.findall(bare)) - _PROMQL


def labels_in(expression: str) -> Iterator[tuple[str, str]]:
    """(metric, label) of each matcher."""
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        yield from ((name, label) for label in re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', '""', matchers)))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "podlane-alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "podlane-dashboard.json").read_text())


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def anchors(document: Path) -> set[str]:
    """As a forge makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_reader_of_expressions() -> None:
    expression = 'max by (a) (rate(x_bucket{job=~"y, z{",le="1"}[5m])) > 3 or vector(0) and time() - w'
    assert names_in(expression) == {"x_bucket", "w"}
    assert list(labels_in('a{b="c=d",e!~"f"} - g{h="i"}')) == [("a", "b"), ("a", "e"), ("g", "h")]


def test_every_metric_and_label_that_is_asked_for_is_there() -> None:
    known = registered()
    asked = [rule["expr"] for rule in rules()] + queries()
    asked += [v["definition"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    assert len(asked) > 80
    for expression in asked:
        assert names_in(expression) <= known.keys() | FOREIGN, expression
        for name, label in labels_in(expression):
            assert name in FOREIGN or label in (*known[name], "job", "instance"), expression
    used = set().union(*map(names_in, asked))
    assert used >= FOREIGN, "no longer asked for"


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    known = anchors(DOCS / "operations.md")
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, rule["alert"]
        notes = rule["annotations"]
        assert notes.keys() == {"summary", "description", "runbook"}, rule["alert"]
        page, _, anchor = notes["runbook"].partition("#")
        assert page == "docs/operations.md", rule["alert"]
        assert anchor in known, rule["alert"]


def test_the_jobs_are_those_that_are_scraped() -> None:
    scraped = {job["job_name"] for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]}
    asked = " ".join([rule["expr"] for rule in rules()] + queries())
    named = set(re.findall(r'job="([^"]+)"', asked))
    assert named <= scraped
    assert all(job.startswith("podlane-") for job in scraped)


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Cluster",
        "All daemons",
        "scheduler and join service",
        "agent",
        "netd",
        "proxyd",
        "etcd",
    ]
