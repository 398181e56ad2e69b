"""The ranges of integer fields, and the list in which errors are gathered.

Owns: the wording "expected an integer ≥ 0, got -1", which the rules
(validation.py) and the reading of manifests (structure.py) share.
Source: the Kubernetes v1 API reference.
"""

from __future__ import annotations

from collections.abc import Mapping

from podlane.api import types
from podlane.errors import FieldError

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

Range = tuple[int, int]
_ANY: Range = (-(2**31), INT32_MAX)
_NATURAL: Range = (0, INT32_MAX)
_POSITIVE: Range = (1, INT32_MAX)
_PORT: Range = (1, 65535)

RANGES: dict[type[types.Struct], dict[str, Range]] = {
    types.ObjectMeta: {"generation": (0, INT64_MAX), "deletion_grace_period_seconds": (0, INT64_MAX)},
    types.PodSpec: {
        "termination_grace_period_seconds": (0, INT64_MAX),
        "active_deadline_seconds": _POSITIVE,
    },
    types.PodSecurityContext: dict.fromkeys(
        ("run_as_user", "run_as_group", "fs_group", "supplemental_groups"), _NATURAL
    ),
    types.SecurityContext: {"run_as_user": _NATURAL, "run_as_group": _NATURAL},
    types.ContainerPort: {"container_port": _PORT, "host_port": _PORT},
    types.Toleration: {"toleration_seconds": (-INT64_MAX, INT64_MAX)},
    types.ContainerImage: {"size_bytes": (0, INT64_MAX)},
    types.GRPCAction: {"port": _PORT},
    types.SleepAction: {"seconds": (0, INT64_MAX)},
    types.HTTPGetAction: {"port": _PORT},
    types.TCPSocketAction: {"port": _PORT},
    types.Probe: {
        "initial_delay_seconds": _NATURAL,
        "timeout_seconds": _POSITIVE,
        "period_seconds": _POSITIVE,
        "success_threshold": _POSITIVE,
        "failure_threshold": _POSITIVE,
        "termination_grace_period_seconds": (1, INT64_MAX),
    },
    types.ReplicationControllerSpec: {"replicas": _NATURAL, "min_ready_seconds": _NATURAL},
    types.ServicePort: {"port": _PORT, "target_port": _PORT, "node_port": _PORT},
    types.ServiceSpec: {"health_check_node_port": _PORT},
    types.ClientIPConfig: {"timeout_seconds": (1, 86_400)},
    types.EndpointPort: {"port": _PORT},
    types.LeaseSpec: {"lease_duration_seconds": _NATURAL, "lease_transitions": _NATURAL},
    types.Event: {"count": _NATURAL},
}


def range_of(cls: type[types.Struct], field: str) -> Range:
    """Lowest and highest value allowed."""
    return RANGES.get(cls, {}).get(field, _ANY)


def expected_integer(allowed: Range) -> str:
    """`an integer ≥ 0`, `an integer 1 to 65535`."""
    low, high = allowed
    if high >= INT32_MAX:
        return "an integer" if low < 0 else f"an integer ≥ {low}"
    return f"an integer {low} to {high}"


def integer_error(value: int, allowed: Range) -> str | None:
    low, high = allowed
    if low <= value <= high:
        return None
    if value > high >= INT32_MAX:
        return f"expected an integer ≤ {high}, got {value}"
    return f"expected {expected_integer(allowed)}, got {value}"


class Errors:
    """Gathers errors below a path: `spec.containers[0].name`."""

    def __init__(self) -> None:
        self.found: list[FieldError] = []

    def add(self, path: str, message: str) -> None:
        self.found.append(FieldError(path, message))

    def check(self, path: str, message: str | None) -> None:
        """Record the message unless it is None: `errors.check(path, dns_label_error(name))`."""
        if message is not None:
            self.add(path, message)

    def integer(self, cls: type[types.Struct], field: str, value: int, path: str) -> None:
        """Check a number against its field's range."""
        self.check(path, integer_error(value, range_of(cls, field)))


def check_one_of(alternatives: Mapping[str, object], path: str, errors: Errors) -> None:
    """Exactly one of the fields must be there; the others are None."""
    given = [name for name, value in alternatives.items() if value is not None]
    if len(given) != 1:
        *first, last = alternatives
        got = " and ".join(given) or "none"
        errors.add(path, f"expected exactly one of {', '.join(first)} and {last}, got {got}")


def join(path: str, name: str) -> str:
    """`spec` and `replicas` to `spec.replicas`; an empty path is the object itself."""
    return f"{path}.{name}" if path else name
