"""What proxyd keeps of an object is enough to serve it, and not much more."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyd_objects import VIP, service, slice_of
from proxyd_random import PLACES, services, slices

from podlane.api.codec import encode
from podlane.api.meta import reference_to
from podlane.api.types import EndpointSlice, ObjectReference, OwnerReference, Service
from proxyd.lean import lean_service, lean_slice
from proxyd.proxymetrics import TRIGGER_TIME, trigger_time
from proxyd.serving import Place, serve

pytestmark = pytest.mark.unit


@given(services("a"), st.lists(st.integers(1, 4).flatmap(slices), max_size=3), PLACES)
def test_what_is_kept_is_served_as_the_whole_is(
    web: Service, made: list[tuple[str, EndpointSlice]], place: Place
) -> None:
    whole = [each for _, each in made]
    full, kept = serve(web, whole, place), serve(lean_service(web), [lean_slice(each) for each in whole], place)
    assert kept._replace(hairpin=()) == full._replace(hairpin=())
    assert sorted(kept.hairpin) == sorted(full.hairpin)


def test_an_event_is_about_that_very_service() -> None:
    web = service("web", VIP)
    web = msgspec.structs.replace(web, metadata=msgspec.structs.replace(web.metadata, uid="1-2-3"))
    assert reference_to(lean_service(web)) == reference_to(web)


def test_pods_owners_and_labels_are_not_kept_but_when_it_happened_is() -> None:
    whole = slice_of("web", [f"10.5.1.{number}" for number in range(2, 7)])
    owner = OwnerReference(api_version="v1", kind="Service", name="web", uid="1" * 36)
    metadata = msgspec.structs.replace(
        whole.metadata,
        labels={**whole.metadata.labels, "app": "web", "tier": "front"},
        annotations={TRIGGER_TIME: "2026-11-28T20:00:00Z", "note": "x" * 1000},
        owner_references=(owner,),
        creation_timestamp=datetime(2026, 11, 28, tzinfo=UTC),
    )
    pod = ObjectReference(kind="Pod", namespace="default", name="web-12345", uid="2" * 36)
    endpoints = tuple(msgspec.structs.replace(each, target_ref=pod, zone="zone1") for each in whole.endpoints)
    whole = msgspec.structs.replace(whole, metadata=metadata, endpoints=endpoints)
    kept = lean_slice(whole)
    assert len(encode(kept)) < len(encode(whole)) / 3
    assert trigger_time(kept.metadata.annotations) == datetime(2026, 11, 28, 20, tzinfo=UTC).timestamp()
