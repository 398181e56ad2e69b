"""The text of `describe` for config maps, secrets, quotas, priority classes and namespaces.

Invariant: of a secret nothing is shown but the names and sizes of its values.
Pure, as description.py.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from podlane.api.types import ConfigMap, Namespace, Object, PriorityClass, ResourceQuota, Secret
from podlane.cli.description_lines import (
    Lines,
    condition_lines,
    field,
    indented,
    labels,
    mapping,
    shown_annotations,
    top,
)
from podlane.runtime.text import TableWriter

_SCOPES = {
    "Terminating": "Matches all pods that have an active deadline. These pods have a limited lifespan on a node before "
    "being actively terminated by the system.",
    "NotTerminating": "Matches all pods that do not have an active deadline. These pods usually include long running "
    "pods whose container command is not expected to terminate.",
    "BestEffort": "Matches all pods that do not have resource requirements set. These pods have a best effort quality "
    "of service.",
    "NotBestEffort": "Matches all pods that have at least one resource requirement set. These pods have a burstable or "
    "guaranteed quality of service.",
}


def describe_config_map(config: ConfigMap) -> Lines:
    yield from top(config)
    yield from labels(config)
    yield from ("", "Data", "====")
    for key, text in sorted(config.data.items()):
        yield from (f"{key}:", "----", *text.split("\n"), "")
    yield from ("", "BinaryData", "====")
    yield from _sizes(config.binary_data)
    yield ""


def describe_secret(secret: Secret) -> Lines:
    yield from top(secret)
    yield from labels(secret)
    yield from ("", f"Type:  {secret.type}", "", "Data", "====")
    yield from _sizes(secret.data)


def _sizes(data: dict[str, str]) -> Lines:
    rows = [(f"{key}:", f"{len(base64.b64decode(text))} bytes") for key, text in sorted(data.items())]
    yield from TableWriter().render(rows)


def describe_quota(quota: ResourceQuota) -> Lines:
    yield from top(quota)
    if quota.spec.scopes:
        yield field("Scopes", ", ".join(quota.spec.scopes))
        yield from (f" * {_SCOPES[scope]}" for scope in sorted(quota.spec.scopes))
    yield from _usage(quota)


def _usage(quota: ResourceQuota) -> Lines:
    status = quota.status
    rows = [(name, status.used.get(name, "0"), hard) for name, hard in sorted(status.hard.items())]
    titles = ("Resource", "Used", "Hard")
    yield from TableWriter().render([titles, tuple("-" * len(title) for title in titles), *rows])


def describe_priority_class(priority: PriorityClass) -> Lines:
    yield from top(priority)
    yield field("Value", priority.value)
    yield field("GlobalDefault", str(priority.global_default).lower())
    yield field("PreemptionPolicy", priority.preemption_policy)
    yield field("Description", priority.description)
    yield from mapping("Annotations", shown_annotations(priority))


def describe_namespace(namespace: Namespace, related: Sequence[Object]) -> Lines:
    yield from top(namespace)
    yield from labels(namespace)
    yield field("Status", namespace.status.phase)
    if namespace.status.conditions:
        yield from condition_lines(namespace.status.conditions, full=True)
    yield ""
    quotas = [obj for obj in related if isinstance(obj, ResourceQuota)]
    if not quotas:
        yield "No resource quota."
        return
    yield "Resource Quotas"
    for quota in quotas:
        yield from indented((f"Name: {quota.metadata.name}", *_usage(quota)), 2)
