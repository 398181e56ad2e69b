"""Golden rulesets: what nft would be told for each feature, word for word, in both families.

The texts are in proxyd_golden/, one file a case; a family that has nothing to say is left out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from proxyd_objects import SKELETON, SKELETON6, VIP, VIP6, index_of, service, slice_of

from podlane.api.types import EndpointSlice, Service
from proxyd.plan import plan_all
from proxyd.ruleset import Skeleton
from proxyd.tables import FAMILIES, IPV6, Tables

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "proxyd_golden"
HERE, ELSEWHERE = ["10.5.1.2", "10.5.2.2 node2"], ["10.5.2.2 node2"]
DUAL = (slice_of("web", HERE), slice_of("web", ["fd00:5::2", "fd00:5:0:2::2 node2"], suffix="6"))
BOTH = (VIP, VIP6)
NODE_PORT = {"type": "NodePort"}
LOCAL_OUT = {"type": "NodePort", "external_traffic_policy": "Local"}
LOCAL_IN = {"internal_traffic_policy": "Local"}

CASES: dict[str, tuple[Service | EndpointSlice, ...]] = {
    "dual-stack": (
        service("web", BOTH, "x:80", "y:53/UDP"),
        slice_of("web", ["10.5.1.2"], "x:8080", "y:53/UDP"),
        slice_of("web", ["fd00:5::2", "fd00:5::3"], "x:8080", "y:53/UDP", suffix="6"),
    ),
    "node-port": (service("web", BOTH, "80=30080", **NODE_PORT), *DUAL),
    "external-ips": (service("web", BOTH, external_ips=("198.51.100.1", "2001:db8:1::1")), *DUAL),
    "load-balancer-source-ranges": (
        service(
            "web",
            BOTH,
            "80=30080",
            type="LoadBalancer",
            ingress=["203.0.113.1", "2001:db8:2::1"],
            load_balancer_source_ranges=("192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"),
        ),
        *DUAL,
    ),
    "session-affinity": (service("web", BOTH, affinity=60), *DUAL),
    "affinity-hash": (service("web", VIP, balance="affinity-hash"), *DUAL),
    "maglev": (service("web", VIP6, balance="maglev"), *DUAL),
    "maglev-with-session-affinity": (service("web", VIP, balance="maglev", affinity=60), *DUAL),
    "external-local": (service("web", BOTH, "80=30080", **LOCAL_OUT), *DUAL),
    "external-local-without-local-endpoint": (
        service("web", VIP, "80=30080", **LOCAL_OUT),
        slice_of("web", ELSEWHERE),
    ),
    "external-local-with-session-affinity": (
        service("web", VIP, "80=30080", affinity=60, **LOCAL_OUT),
        slice_of("web", HERE),
    ),
    "internal-local": (service("web", VIP, **LOCAL_IN), slice_of("web", HERE)),
    "internal-local-without-local-endpoint": (service("web", VIP, **LOCAL_IN), slice_of("web", ELSEWHERE)),
    "no-endpoint": (service("web", BOTH, "80=30080", **LOCAL_OUT),),
    "terminating-endpoints": (
        service("web", VIP),
        slice_of("web", ["10.5.1.2 ending", "10.5.2.2 node2 ending", "10.5.1.3 ended"]),
    ),
    "hints-by-zone-and-by-node": (
        service("zone", VIP),
        service("node", "10.96.0.2"),
        slice_of("zone", ["10.5.1.2 @zone1", "10.5.2.2 node2 @zone2"]),
        slice_of("node", ["10.5.1.2 @node1 @zone1", "10.5.2.2 node2 @node2 @zone1"]),
    ),
    "clash": (
        service("a", VIP),
        service("b", VIP, "x:80", "y:81"),
        slice_of("a", ["10.5.1.2"]),
        slice_of("b", ["10.5.1.3"], "x:80", "y:81"),
    ),
    "not-proxied": (
        service("headless", "None"),
        service("external", "", type="ExternalName", external_name="db.example.org"),
        service("another", VIP, labels={"service.kubernetes.io/service-proxy-name": "other"}),
        *(slice_of(name, ["10.5.1.2"]) for name in ("headless", "external", "another")),
    ),
}
_SLOT = re.compile(r"add element ip6? podlane (endpoints|picks) ")


def shortened(lines: Iterator[str]) -> Iterator[str]:
    """Of more than eight slots in a row the first eight: a hashed table has a thousand."""
    for is_slot, run in itertools.groupby(lines, lambda line: bool(_SLOT.match(line))):
        found = list(run)
        yield from found[:8] if is_slot else found
        if is_slot and len(found) > 8:
            yield f"# and {len(found) - 8} more slots"


def written(*objects: Service | EndpointSlice) -> str:
    index = index_of(*objects)
    plans = [plan_all(Tables(family, {"external-source"}), index).now for family in FAMILIES]
    return "".join(f"{line}\n" for plan in plans for line in shortened(plan.lines()))


@pytest.mark.parametrize("name", CASES)
def test_the_plan_for(name):
    assert written(*CASES[name]) == (GOLDEN / f"{name}.nft").read_text()


@pytest.mark.parametrize("skeleton", [SKELETON, SKELETON6], ids=["ipv4", "ipv6"])
def test_the_static_part(skeleton):
    text = (GOLDEN / f"static-{skeleton.family.title.lower()}.nft").read_text()
    assert skeleton.script() == text
    where = f"{skeleton.family.name} podlane"
    assert skeleton.script(anew=True) == f"table {where} {{ }}\ndelete table {where}\n{text}"


def test_several_networks_and_none():
    several = Skeleton(("fd00:5::/48", "fd00:6::/48"), (), family=IPV6).script().splitlines()
    assert "add element ip6 podlane pod_networks { fd00:5::/48, fd00:6::/48 }" in several
    assert [line for line in several if "service_ranges" in line and "element" in line] == []
    assert "flush set ip6 podlane service_ranges" in several


def test_a_limit_is_every_maps_of_ours():
    text = Skeleton(size=7).script()
    assert text.count(" size 7;") == 11
    assert "flags dynamic,timeout; size 1048576;" in text


def test_every_golden_text_has_its_case():
    assert {each.stem for each in GOLDEN.iterdir()} == {*CASES, "static-ipv4", "static-ipv6"}
