"""Kubernetes' rules for tolerations, taints, affinity and topology spread.

Owns: what a pod says about where it wants to be, and label selectors.
Invariant: as in validation.py. Source: ValidateTolerations, validateAffinity,
validateTopologySpreadConstraints and validateNodeTaints in Kubernetes'
pkg/apis/core/validation/validation.go; ValidateLabelSelector in apimachinery.
"""

from __future__ import annotations

from podlane.api import names, types
from podlane.api.fields import Errors

_WEIGHT_MAX = 100
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def check_tolerations(tolerations: tuple[types.Toleration, ...], path: str, errors: Errors) -> None:
    for index, toleration in enumerate(tolerations):
        place = f"{path}[{index}]"
        if toleration.key:
            errors.check(f"{place}.key", names.label_key_error(toleration.key))
        elif toleration.operator != "Exists":
            errors.add(f"{place}.operator", f'expected "Exists" where there is no key, got "{toleration.operator}"')
        if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            errors.add(f"{place}.effect", f'expected "NoExecute" beside tolerationSeconds, got "{toleration.effect}"')
        if toleration.operator == "Equal":
            errors.check(f"{place}.value", names.label_value_error(toleration.value))
        elif toleration.value:
            errors.add(f"{place}.value", f'expected nothing where operator is "Exists", got "{toleration.value}"')


def check_taints(taints: tuple[types.Taint, ...], path: str, errors: Errors) -> None:
    seen: dict[tuple[str, str], int] = {}
    for index, taint in enumerate(taints):
        place = f"{path}[{index}]"
        errors.check(f"{place}.key", names.label_key_error(taint.key))
        errors.check(f"{place}.value", names.label_value_error(taint.value))
        key = taint.key, taint.effect
        if key in seen:
            errors.add(place, f"duplicate key and effect, also of taints[{seen[key]}]")
        seen.setdefault(key, index)


def check_affinity(affinity: types.Affinity, path: str, errors: Errors) -> None:
    if affinity.node_affinity is not None:
        _check_node_affinity(affinity.node_affinity, f"{path}.nodeAffinity", errors)
    for name, said in (("podAffinity", affinity.pod_affinity), ("podAntiAffinity", affinity.pod_anti_affinity)):
        if said is None:
            continue
        for index, term in enumerate(said.required_during_scheduling_ignored_during_execution):
            _check_pod_term(term, f"{path}.{name}.{_REQUIRED}[{index}]", errors)
        for index, weighted in enumerate(said.preferred_during_scheduling_ignored_during_execution):
            place = f"{path}.{name}.{_PREFERRED}[{index}]"
            errors.check(f"{place}.weight", _weight_error(weighted.weight))
            _check_pod_term(weighted.pod_affinity_term, f"{place}.podAffinityTerm", errors)


def _check_node_affinity(affinity: types.NodeAffinity, path: str, errors: Errors) -> None:
    required = affinity.required_during_scheduling_ignored_during_execution
    if required is not None:
        place = f"{path}.{_REQUIRED}.nodeSelectorTerms"
        if not required.node_selector_terms:
            errors.add(place, "required: at least one term")
        for index, term in enumerate(required.node_selector_terms):
            _check_node_term(term, f"{place}[{index}]", errors)
    for index, preferred in enumerate(affinity.preferred_during_scheduling_ignored_during_execution):
        place = f"{path}.{_PREFERRED}[{index}]"
        errors.check(f"{place}.weight", _weight_error(preferred.weight))
        _check_node_term(preferred.preference, f"{place}.preference", errors)


def _weight_error(weight: int) -> str | None:
    return None if 1 <= weight <= _WEIGHT_MAX else f"expected an integer 1 to {_WEIGHT_MAX}, got {weight}"


def _check_node_term(term: types.NodeSelectorTerm, path: str, errors: Errors) -> None:
    for index, requirement in enumerate(term.match_expressions):
        place = f"{path}.matchExpressions[{index}]"
        errors.check(f"{place}.key", names.label_key_error(requirement.key))
        count = len(requirement.values)
        if requirement.operator in {"Gt", "Lt"}:
            if count != 1:
                errors.add(
                    f"{place}.values", f'expected exactly one where operator is "{requirement.operator}", got {count}'
                )
            elif not names.is_integer(requirement.values[0]):
                errors.add(f"{place}.values[0]", f'expected an integer, got "{requirement.values[0]}"')
            continue
        _check_values(requirement, place, errors)
    for index, requirement in enumerate(term.match_fields):
        place = f"{path}.matchFields[{index}]"
        if requirement.key != "metadata.name":
            errors.add(f"{place}.key", f'expected "metadata.name", got "{requirement.key}"')
        if requirement.operator not in {"In", "NotIn"}:
            errors.add(f"{place}.operator", f'expected "In" or "NotIn", got "{requirement.operator}"')
        elif len(requirement.values) != 1:
            errors.add(f"{place}.values", f"expected exactly one, got {len(requirement.values)}")
        else:
            errors.check(f"{place}.values[0]", names.dns_subdomain_error(requirement.values[0]))


def _check_values(
    requirement: types.NodeSelectorRequirement | types.LabelSelectorRequirement, path: str, errors: Errors
) -> None:
    """In and NotIn name values, Exists and DoesNotExist none."""
    if requirement.operator in {"In", "NotIn"}:
        if not requirement.values:
            errors.add(f"{path}.values", f'required where operator is "{requirement.operator}"')
        for index, value in enumerate(requirement.values):
            errors.check(f"{path}.values[{index}]", names.label_value_error(value))
    elif requirement.values:
        errors.add(
            f"{path}.values",
            f'expected none where operator is "{requirement.operator}", got {len(requirement.values)}',
        )


def _check_pod_term(term: types.PodAffinityTerm, path: str, errors: Errors) -> None:
    if term.label_selector is not None:
        check_label_selector(term.label_selector, f"{path}.labelSelector", errors)
    if term.namespace_selector is not None:
        check_label_selector(term.namespace_selector, f"{path}.namespaceSelector", errors)
    for index, namespace in enumerate(term.namespaces):
        errors.check(f"{path}.namespaces[{index}]", names.dns_label_error(namespace))
    _check_topology_key(term.topology_key, path, errors)
    _check_label_keys(term.match_label_keys, term.label_selector, f"{path}.matchLabelKeys", errors)
    _check_label_keys(term.mismatch_label_keys, term.label_selector, f"{path}.mismatchLabelKeys", errors)
    for index, key in enumerate(term.mismatch_label_keys):
        if key in term.match_label_keys:
            errors.add(f"{path}.mismatchLabelKeys[{index}]", f'expected no key of matchLabelKeys, got "{key}"')


def _check_topology_key(key: str, path: str, errors: Errors) -> None:
    errors.check(f"{path}.topologyKey", names.label_key_error(key) if key else "required")


def _check_label_keys(keys: tuple[str, ...], selector: types.LabelSelector | None, path: str, errors: Errors) -> None:
    if keys and selector is None:
        errors.add(path, "not without a labelSelector")
    for index, key in enumerate(keys):
        errors.check(f"{path}[{index}]", names.label_key_error(key))


def check_label_selector(selector: types.LabelSelector, path: str, errors: Errors) -> None:
    for key, value in selector.match_labels.items():
        errors.check(f"{path}.matchLabels[{key}]", names.label_key_error(key) or names.label_value_error(value))
    for index, requirement in enumerate(selector.match_expressions):
        place = f"{path}.matchExpressions[{index}]"
        errors.check(f"{place}.key", names.label_key_error(requirement.key))
        _check_values(requirement, place, errors)


def check_spread(constraints: tuple[types.TopologySpreadConstraint, ...], path: str, errors: Errors) -> None:
    seen: dict[tuple[str, str], int] = {}
    for index, constraint in enumerate(constraints):
        place = f"{path}[{index}]"
        if constraint.max_skew < 1:
            errors.add(f"{place}.maxSkew", f"expected an integer ≥ 1, got {constraint.max_skew}")
        _check_topology_key(constraint.topology_key, place, errors)
        key = constraint.topology_key, constraint.when_unsatisfiable
        if key in seen:
            errors.add(place, f"duplicate topologyKey and whenUnsatisfiable, also of [{seen[key]}]")
        seen.setdefault(key, index)
        if constraint.min_domains is not None:
            if constraint.min_domains < 1:
                errors.add(f"{place}.minDomains", f"expected an integer ≥ 1, got {constraint.min_domains}")
            if constraint.when_unsatisfiable != "DoNotSchedule":
                errors.add(f"{place}.minDomains", 'not where whenUnsatisfiable is "ScheduleAnyway"')
        if constraint.label_selector is not None:
            check_label_selector(constraint.label_selector, f"{place}.labelSelector", errors)
        _check_label_keys(constraint.match_label_keys, constraint.label_selector, f"{place}.matchLabelKeys", errors)
