"""`proxyd status` for people and programs: what the running proxyd says, or what the kernel tells without it.

Owns: what counts as well (it answers, is ready, and serves everything it was asked to) and the
forms. Pure, apart from what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podlane.runtime.text import human_duration, table
from proxyd.explain.answers import Answers
from proxyd.explain.view import KernelState
from proxyd.tables import MAPS, SERVICES

_SHOWN = 10


def status(answers: Answers, kernel: KernelState | None, errors: list[str]) -> dict[str, Any]:
    """Everything there is to say; `ok` sums it up. `kernel` None: it could not be looked at."""
    said = answers.status
    found: dict[str, Any] = {
        "ok": False,
        "runs": answers.runs,
        "health": answers.where,
        "waiting": dict(answers.waiting),
        "daemon": said,
        "kernel": _kernel(kernel) if kernel is not None else None,
        "errors": errors,
    }
    if said is not None:
        problems = any(said.get(each) for each in ("leftOut", "clashes", "healthCheckFailures"))
        found["ok"] = bool(said.get("ready")) and not (problems or answers.waiting or errors)
    return found


def _kernel(kernel: KernelState) -> dict[str, Any]:
    tables = {
        family.title: {
            "podNetworks": list(kernel.skeletons[family].pod_networks) if family in kernel.skeletons else [],
            "serviceRanges": list(kernel.skeletons[family].service_ranges) if family in kernel.skeletons else [],
            "elements": {name: len(each[name]) for name in MAPS},
            "chains": len(each.chains),
        }
        for family, each in kernel.tables.items()
    }
    return {"families": tables, "unreadable": {str(family): why for family, why in kernel.unreadable.items()}}


def render(found: Mapping[str, Any], now: float) -> str:
    """For people. `now` in Unix time."""
    said, kernel = found["daemon"], found["kernel"]
    lines = [("Proxyd", _process(found, now))]
    lines += [("" if i else "Waits for", f"{name}: {why}") for i, (name, why) in enumerate(found["waiting"].items())]
    if said is not None:
        lines += _daemon_lines(said, now)
    families: Mapping[str, Any] = (said or kernel or {}).get("families", {})
    for title, each in families.items():
        lines.append((title, f"pods {_listed(each['podNetworks'])}, services {_listed(each['serviceRanges'])}"))
        lines.append(("", _counts(each)))
    if said is None and kernel is not None and not families:
        lines.append(("Kernel", "has no table of proxyd's: no service address works on this host"))
    if kernel is not None:
        lines += [("Kernel", why) for why in kernel["unreadable"].values()]
    if said is not None:
        lines += _problem_lines(said)
    lines += [("Error", error) for error in found["errors"]]
    return table([[f"{name}:" if name else "", text] for name, text in lines])


def _process(found: Mapping[str, Any], now: float) -> str:
    said = found["daemon"]
    if said is None:
        served = found["kernel"] and found["kernel"]["families"]
        left = "; the kernel goes on serving what it had" if served else ""
        return f"NOT RUNNING, or does not answer on {found['health']}{left}"
    parts = ["ready" if said.get("ready") and not found["waiting"] else "NOT READY"]
    if "pid" in said:
        parts.append(f"pid {said['pid']}")
    if "startedAt" in said:
        parts.append(f"up {human_duration(now - said['startedAt'])}")
    return ", ".join(parts)


def _daemon_lines(said: Mapping[str, Any], now: float) -> list[tuple[str, str]]:
    zone = said.get("zone")
    revision = said.get("acknowledgedRevision")
    return [
        ("Node", f"{said.get('node')}{f', zone {zone}' if zone else ''}"),
        ("Node ports", f"served at {_listed(said.get('nodePortAddresses', ()))}"),
        ("Services", f"{said.get('services', 0)} proxied"),
        ("Last sync", _ago(said.get("syncedAt"), now)),
        ("Last verify", f"{_ago(said.get('verifiedAt'), now)}, {_repairs(said.get('repairs', 0))}"),
        ("Acknowledged", f"endpoint slices up to revision {revision}" if revision else "nothing yet"),
    ]


def _repairs(number: int) -> str:
    return "no repair needed so far" if not number else f"{number} repair{'s' if number != 1 else ''} since the start"


def _problem_lines(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    left_out: Mapping[str, str] = said.get("leftOut", {})
    lines = [("Left out", f"{name}: {why}") for name, why in sorted(left_out.items())[:_SHOWN]]
    if len(left_out) > _SHOWN:
        lines.append(("", f"and {len(left_out) - _SHOWN} more: proxyd status -o json"))
    lines += [("Clash", text) for text in said.get("clashes", ())]
    return lines + [("Health check", text) for text in said.get("healthCheckFailures", ())]


def _counts(family: Mapping[str, Any]) -> str:
    elements: Mapping[str, int] = family["elements"]
    if not elements:
        return "the kernel's table is being compared"
    others = sum(elements.values()) - elements.get(SERVICES, 0)
    text = f"{elements.get(SERVICES, 0)} frontends served, {others} other elements, {family['chains']} chains"
    return f"{text}, {family['retiring']} slots to be deleted" if family.get("retiring") else text


def _ago(when: float | None, now: float) -> str:
    return "never" if when is None else f"{human_duration(max(0.0, now - when))} ago"


def _listed(values: Any) -> str:
    return ", ".join(values) or "none"
