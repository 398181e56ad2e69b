"""Whose endpoints a change concerns: the index that endpoints are decided on.

Owns: services, the pods that may stand behind them, and their slices, kept up
to date by changes, so that a pod that becomes ready costs its services and not
a pass over all. Invariants: deciding on the dirty services gives what deciding
on all of them gives; a change of a pod that no endpoint shows makes nothing
dirty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from podlane.api.meta import is_pod_finished, is_pod_ready
from podlane.api.selectors import selects
from podlane.api.types import SERVICE_NAME_LABEL, EndpointSlice, Pod, Service
from scheduler.terms import Term, discard, term_of, terms_of
from scheduler.view import Changes


class Serving:
    """`dirty` are services by "namespace/name", those that are gone among them; the caller empties it."""

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        self._services: dict[str, Service] = {}
        self._seekers: dict[Term, set[str]] = defaultdict(set)  # services, each under one pair of its selector
        self._pods: dict[str, Pod] = {}
        self._labelled: dict[Term, dict[str, Pod]] = defaultdict(dict)
        self._slices: dict[str, EndpointSlice] = {}
        self._slices_of: dict[str, dict[str, EndpointSlice]] = defaultdict(dict)

    def services(self) -> list[Service]:
        """The dirty ones that are there."""
        return [self._services[key] for key in sorted(self.dirty) if key in self._services]

    def pods(self) -> list[Pod]:
        """Those that the dirty services select."""
        found: dict[str, Pod] = {}
        for service in self.services():
            near = self._labelled.get(term_of(service.metadata.namespace, service.spec.selector), {})
            found.update((k, pod) for k, pod in near.items() if selects(service.spec.selector, pod.metadata.labels))
        return list(found.values())

    def slices(self) -> list[EndpointSlice]:
        """Those of the dirty services, also of the gone."""
        return [item for key in sorted(self.dirty) for item in self._slices_of.get(key, {}).values()]

    def all_dirty(self) -> None:
        self.dirty |= self._services.keys() | self._slices_of.keys()

    # --- changes -------------------------------------------------------------------

    def see_services(self, changes: Changes[Service]) -> None:
        for key in _touched(self._services, changes):
            old, new = self._services.pop(key, None), changes.objects.get(key)
            if old is not None:
                discard(self._seekers, term_of(old.metadata.namespace, old.spec.selector), key)
            if new is not None:
                self._services[key] = new
                self._seekers[term_of(new.metadata.namespace, new.spec.selector)].add(key)
            self.dirty.add(key)

    def see_pods(self, changes: Changes[Pod]) -> None:
        for key in _touched(self._pods, changes):
            old, new = self._pods.pop(key, None), changes.objects.get(key)
            if new is not None:
                self._pods[key] = new
            if old is not None and new is not None and _shown(old) == _shown(new):
                for term in terms_of(new):
                    self._labelled[term][key] = new
                continue
            if old is not None:
                for term in terms_of(old):
                    discard(self._labelled, term, key)
                self.dirty.update(self._seekers_of(old))
            if new is not None:
                for term in terms_of(new):
                    self._labelled[term][key] = new
                self.dirty.update(self._seekers_of(new))

    def see_slices(self, changes: Changes[EndpointSlice]) -> None:
        for key in _touched(self._slices, changes):
            old, new = self._slices.pop(key, None), changes.objects.get(key)
            if old is not None:
                discard(self._slices_of, _service_of(old), key)
                self.dirty.add(_service_of(old))
            if new is not None:
                self._slices[key] = new
                self._slices_of[_service_of(new)][key] = new
                self.dirty.add(_service_of(new))

    # --- inside --------------------------------------------------------------------

    def _seekers_of(self, pod: Pod) -> Iterable[str]:
        for term in terms_of(pod):
            for key in self._seekers.get(term, ()):
                if selects(self._services[key].spec.selector, pod.metadata.labels):
                    yield key


def _touched(known: dict[str, Any], changes: Changes[Any]) -> list[str]:
    gone = known.keys() - changes.objects.keys() if changes.complete else set()
    return [*gone, *changes.objects]


def _shown(pod: Pod) -> tuple[object, ...]:
    """All of a pod that an endpoint, or whether there is one, depends on."""
    meta, status = pod.metadata, pod.status
    return (
        meta.uid,
        meta.labels,
        meta.deletion_timestamp is not None,
        pod.spec.node_name,
        status.pod_ip,
        status.pod_ips,
        is_pod_finished(pod),
        is_pod_ready(pod),
    )


def _service_of(item: EndpointSlice) -> str:
    return f"{item.metadata.namespace}/{item.metadata.labels.get(SERVICE_NAME_LABEL, '')}"
