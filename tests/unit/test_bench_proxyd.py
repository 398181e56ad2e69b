"""The objects of the service proxy's benchmarks, and the ruleset of kube-proxy's shape."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import pytest

from bench import kubeproxy_shape as shape
from bench import proxyd_chart as chart
from bench import proxyd_objects as objects
from bench.machine import Machine
from bench.proxyd_world import MemorySource
from bench.rows import Row
from bench.wrk import Load, together
from podlane.api.codec import decode
from podlane.api.types import EndpointSlice, Service

pytestmark = pytest.mark.unit


def ports(number: int = 0, each: int = 2) -> shape.Port:
    made = objects.objects(number + 1, each)
    (port,) = shape.ports(made.services[number], [made.slices[number]])
    return port


def full(*some: shape.Port) -> str:
    return shape.full(some, pod_network="10.128.0.0/9", service_range="10.96.0.0/16")


def change(old: shape.Port, new: shape.Port) -> str:
    return shape.change([(old, new)], pod_network="10.128.0.0/9", service_range="10.96.0.0/16")


def about(script: str, word: str) -> list[str]:
    return [line for line in script.splitlines() if word in line]


# --- objects ---------------------------------------------------------------------------


def test_a_service_and_its_slice_belong_together() -> None:
    made = objects.objects(3, 5)
    service, its_slice = made.services[2], made.slices[2]
    assert (service.metadata.name, service.spec.cluster_ip) == ("service-00002", "10.96.0.3")
    assert its_slice.metadata.labels["kubernetes.io/service-name"] == "service-00002"
    assert [e.addresses for e in its_slice.endpoints] == [(f"10.128.0.{11 + i}",) for i in range(5)]
    assert its_slice.endpoints[0].node_name == "node-10"
    assert its_slice.endpoints[0].target_ref is not None


def test_no_two_share_an_address() -> None:
    made = objects.objects(1000, 5)
    assert len({s.spec.cluster_ip for s in made.services}) == 1000
    pods = [e.addresses[0] for each in made.slices for e in each.endpoints]
    moved = [objects.changed(n, each).endpoints[0].addresses[0] for n, each in enumerate(made.slices)]
    assert len({*pods, *moved}) == 6000


def test_a_hundredth_of_the_pods_are_on_this_node() -> None:
    nodes = Counter(e.node_name for each in objects.objects(200, 5).slices for e in each.endpoints)
    assert nodes[objects.THIS_NODE] == 10


def test_there_is_an_end_to_the_service_range() -> None:
    assert objects.cluster_ip(65_533) == "10.96.255.254"
    with pytest.raises(ValueError, match="service 65534: expected 0 to 65533"):
        objects.cluster_ip(65_534)


def test_a_changed_slice_has_another_first_pod_and_comes_back() -> None:
    (old,) = objects.objects(1, 3).slices
    new = objects.changed(0, old)
    assert new.endpoints[0].addresses == ("10.160.0.1",)
    assert new.endpoints[1:] == old.endpoints[1:]
    assert new.metadata.resource_version != old.metadata.resource_version
    assert objects.changed(0, new).endpoints == old.endpoints


def test_documents_are_what_the_objects_were_read_from() -> None:
    keys = dict(objects.documents(2, 5))
    assert list(keys) == [
        "/registry/services/specs/bench/service-00000",
        "/registry/endpointslices/bench/service-00000-abcde",
        "/registry/services/specs/bench/service-00001",
        "/registry/endpointslices/bench/service-00001-abcde",
    ]
    made = objects.objects(2, 5)
    assert decode(Service, list(keys.values())[2], revision=2) == made.services[1]
    assert decode(EndpointSlice, list(keys.values())[3], revision=2) == made.slices[1]
    assert "managedFields" in msgspec.json.decode(list(keys.values())[3])["metadata"]


def test_a_source_gives_what_changed_and_once_only() -> None:
    made, source = objects.objects(2, 1), MemorySource()
    source.put(*made.services, *made.slices)
    whole = source.take(complete=True)
    assert whole.complete
    assert list(whole.services) == ["bench/service-00000", "bench/service-00001"]
    assert list(whole.slices.values()) == made.slices
    new = objects.changed(1, made.slices[1])
    source.put(new)
    source.drop(made.services[0])
    view = source.take(complete=False)
    assert not view.complete
    assert view.services == {"bench/service-00000": None}
    assert view.slices == {"bench/service-00001-abcde": new}
    again = source.take(complete=False)
    assert not again.services
    assert not again.slices


# --- the shape -------------------------------------------------------------------------


def test_a_port_of_a_service() -> None:
    port = ports(each=2)
    assert port.name == "bench/service-00000/tcp/http"
    assert port.key == "10.96.0.1 . tcp . 80"
    assert port.endpoints == (("10.128.0.1", 8080), ("10.128.0.2", 8080))
    assert re.fullmatch(r"service-[A-Z2-7]{8}-bench/service-00000/tcp/http", port.chain)
    assert [re.sub("[A-Z2-7]{8}", "HASH", chain) for chain in port.endpoint_chains] == [
        "endpoint-HASH-bench/service-00000/tcp/http__10.128.0.1/8080",
        "endpoint-HASH-bench/service-00000/tcp/http__10.128.0.2/8080",
    ]


def test_only_ready_endpoints_are_taken() -> None:
    made = objects.objects(1, 3)
    first, *rest = made.slices[0].endpoints
    unready = msgspec.structs.replace(first, conditions=msgspec.structs.replace(first.conditions, ready=False))
    its_slice = msgspec.structs.replace(made.slices[0], endpoints=(unready, *rest))
    (port,) = shape.ports(made.services[0], [its_slice])
    assert [address for address, _ in port.endpoints] == ["10.128.0.2", "10.128.0.3"]


def test_another_services_slice_is_refused() -> None:
    made = objects.objects(2, 1)
    with pytest.raises(ValueError, match="slice service-00001-abcde: not of service service-00000"):
        shape.ports(made.services[0], [made.slices[1]])


def test_rules_grow_with_services_and_endpoints() -> None:
    """Two rules a service port, two an endpoint: this is what Podlane's maps are measured against."""
    for count, each in ((1, 1), (3, 5), (10, 2)):
        script = full(*(ports(n, each) for n in range(count)))
        assert len(about(script, "add rule")) == len(about(full(), "add rule")) + count * (2 + 2 * each)
        assert len(about(script, "add element ip kube-proxy service-ips")) == count


def test_parts_are_together_what_the_whole_is() -> None:
    some = [ports(n, each=1) for n in range(5)]
    parts = list(shape.parts(some, 2, pod_network="10.128.0.0/9", service_range="10.96.0.0/16"))
    assert len(parts) == 3
    assert "".join(parts) == full(*some)


def test_the_rules_of_one_service() -> None:
    port = ports(each=2)
    first, second = port.endpoint_chains
    wanted = [
        f"{port.chain} ip daddr 10.96.0.1 ip saddr != 10.128.0.0/9 jump mark-for-masquerade",
        f"{port.chain} numgen random mod 2 vmap {{ 0 : goto {first}, 1 : goto {second} }}",
        f"{first} ip saddr 10.128.0.1 jump mark-for-masquerade",
        f"{first} meta l4proto tcp dnat to 10.128.0.1:8080",
        f"{second} ip saddr 10.128.0.2 jump mark-for-masquerade",
        f"{second} meta l4proto tcp dnat to 10.128.0.2:8080",
    ]
    assert [line for line in about(full(port), "add rule") if "service-00000" in line] == [
        f"add rule ip kube-proxy {rule}" for rule in wanted
    ]
    assert about(full(port), "add element") == [
        "add element ip kube-proxy cluster-ips { 10.96.0.1 }",
        f"add element ip kube-proxy service-ips {{ 10.96.0.1 . tcp . 80 : goto {port.chain} }}",
    ]


def test_a_change_writes_the_base_and_the_one_service() -> None:
    made = objects.objects(1, 2)
    (old,) = shape.ports(made.services[0], made.slices)
    (new,) = shape.ports(made.services[0], [objects.changed(0, made.slices[0])])
    script = change(old, new)
    (gone,) = old.endpoint_chains.keys() - new.endpoint_chains.keys()
    assert about(script, gone) == [f"flush chain ip kube-proxy {gone}"]
    assert "dnat to 10.160.0.1:8080" in script
    assert not about(script, "element")
    assert set(about(full(), "rule")) <= set(script.splitlines())


def test_a_service_that_loses_all_endpoints_is_refused_and_comes_back() -> None:
    old, new = ports(each=1), ports(each=0)
    assert about(change(old, new), "element") == [
        f"delete element ip kube-proxy service-ips {{ 10.96.0.1 . tcp . 80 : goto {old.chain} }}",
        "add element ip kube-proxy no-endpoint-services { 10.96.0.1 . tcp . 80 : goto reject-chain }",
    ]
    assert [line.split()[0] for line in about(change(new, old), "element")] == ["delete", "add"]


def test_a_deleted_service_is_led_to_no_more_and_its_chains_are_emptied() -> None:
    port = ports(each=2)
    script = shape.delete_service(port, service_range="10.96.0.0/16")
    assert len(about(script, "delete element")) == 2
    assert about(script, "service-00000")[1:] == [
        f"flush chain ip kube-proxy {chain}" for chain in (port.chain, *port.endpoint_chains)
    ]
    assert shape.delete(["a", "b"]) == "delete chain ip kube-proxy a\ndelete chain ip kube-proxy b\n"


# --- the load ---------------------------------------------------------------------------


def test_the_loads_of_all_hosts_are_added_and_every_failure_counts() -> None:
    first = Load(requests=1000, connect=1, read=2, write=3, status=4, timeout=5, slowest=700_000)
    second = Load(requests=500, connect=0, read=0, write=0, status=0, timeout=0, slowest=900_000, hung=6)
    both = together({"a": first, "b": second})
    assert both == Load(1500, connect=1, read=2, write=3, status=4, timeout=5, slowest=900_000, hung=6)
    assert (first.failed, second.failed, both.failed) == (15, 6, 21)
    shown = "1,500 requests, failed: 1 connect, 2 read, 3 write, 4 status, 5 timeout, 6 hung; slowest 0.90 s"
    assert str(both) == shown
    assert str(Load(9, 0, 0, 0, 0, 0, 1000)) == "9 requests, failed: none; slowest 0.00 s"


# --- the chart -------------------------------------------------------------------------

MACHINE = Machine("Fast CPU", 2, "6.1.0")


def row(name: str, value: float, peer: float | None = None, aim: float | None = None) -> Row:
    ratio = value / peer if peer else None
    return Row(name, value, "seconds", "nft" if peer else None, peer, ratio, aim, 3, MACHINE)


def test_bars_share_a_scale_by_powers_of_ten() -> None:
    rows = [("1,000 × 5", row("proxyd.full_1000x5", 0.01, 1.0)), ("10,000 × 5", row("proxyd.full_10000x5", 0.1, 10.0))]
    assert chart.chart("Everything", rows).splitlines() == [
        "**Everything**",
        "",
        "```text",
        "    services              |10 ms             |100 ms           |1 s               |10 s",
        "   1,000 × 5  Podlane     █ 10 ms",
        f"              kube-proxy  {'█' * 37} 1 s",
        f"  10,000 × 5  Podlane     {'█' * 19} 100 ms",
        f"              kube-proxy  {'█' * 56} 10 s",
        "```",
    ]


def test_figures_are_by_size_and_say_where_they_were_measured() -> None:
    rows = [row("proxyd.full_10000x5", 0.3, 20.0, 0.4), row("proxyd.full_1000x5", 0.03), row("netd.program", 1.0)]
    text = chart.figures({each.name: each for each in rows})
    assert text.startswith("Measured on: Fast CPU, 2 cores, Linux 6.1.0.\n\n**Everything, into an empty kernel**")
    assert text.index("1,000 × 5  Podlane") < text.index("10,000 × 5  Podlane")
    assert "| `proxyd.full_10000x5` | 300 ms | 400 ms | nft | 20 s | 0.015 | 3 |" in text
    assert "| `proxyd.full_1000x5` | 30 ms |  |  |  |  | 3 |" in text
    assert "netd" not in text
    with pytest.raises(ValueError, match="expected rows of proxyd, got none"):
        chart.figures({})


def test_rows_are_read_from_what_the_benchmark_printed() -> None:
    printed = [row("proxyd.full_1000x5", 2.0), row("proxyd.full_1000x5", 1.0)]
    text = "\n".join(("bench: proxyd: starting", *(each.to_json() for each in printed)))
    assert chart.read(text) == {"proxyd.full_1000x5": printed[1]}


def test_only_what_is_between_the_marks_is_replaced() -> None:
    document = f"# Title\n\n{chart.BEGIN}\nold\n{chart.END}\nafter\n"
    once = chart.replaced(document, "new")
    assert once == f"# Title\n\n{chart.BEGIN}\nnew\n{chart.END}\nafter\n"
    assert chart.replaced(once, "new") == once
    with pytest.raises(ValueError, match="put in figures: expected"):
        chart.replaced("# Title\n", "new")
