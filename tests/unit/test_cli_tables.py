from __future__ import annotations

import pytest
from cli_shell import NOW, ago, pod, rc, running, terminated, waiting, with_meta
from msgspec.structs import replace

from podlane.api.types import (
    Condition,
    ContainerStatus,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Event,
    EventSource,
    Lease,
    LeaseSpec,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Namespace,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    NodeSystemInfo,
    ObjectMeta,
    ObjectReference,
    ReplicationControllerStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from podlane.cli.output import TablePrinter
from podlane.cli.podstatus import summarize

pytestmark = pytest.mark.unit


def show(capsys, objects, *, wide=False, **options) -> str:
    TablePrinter(type(objects[0]), wide=wide, **options).print(objects, NOW)
    return capsys.readouterr().out


# printPod's cases (printers_test.go), as far as Podlane has the features
@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (pod(), "1/1 Running 0"),
        (pod("p", phase="Pending", node="", ip="", ready=False), "0/1 Pending 0"),
        (pod("p", waiting("ContainerCreating"), phase="Pending"), "0/1 ContainerCreating 0"),
        (pod("p", waiting("ErrImagePull"), phase="Pending"), "0/1 ErrImagePull 0"),
        (pod("p", running(ready=False)), "0/1 Running 0"),
        (
            pod("p", waiting("CrashLoopBackOff", restarts=4, last=terminated(finished=ago(minutes=3)))),
            "0/1 CrashLoopBackOff 4 (3m ago)",
        ),
        (pod("p", running(restarts=2, last=terminated(finished=ago(hours=1)))), "1/1 Running 2 (60m ago)"),
        (pod("p", running(restarts=2)), "1/1 Running 2"),
        (
            pod("p", ContainerStatus(name="web", state=terminated(reason="Completed")), phase="Succeeded"),
            "0/1 Completed 0",
        ),
        (pod("p", ContainerStatus(name="web", state=terminated(reason="Error", exit_code=1))), "0/1 Error 0"),
        (pod("p", ContainerStatus(name="web", state=terminated(exit_code=3))), "0/1 ExitCode:3 0"),
        (pod("p", ContainerStatus(name="web", state=terminated(signal=9))), "0/1 Signal:9 0"),
        # the first container that does not run names the reason
        (pod("p", running(), waiting("CrashLoopBackOff", "log"), containers=2), "1/2 CrashLoopBackOff 0"),
        # one container has done its work, the other serves
        (
            pod("p", ContainerStatus(name="web", state=terminated(reason="Completed")), running("log"), containers=2),
            "1/2 Running 0",
        ),
        (
            pod(
                "p",
                ContainerStatus(name="web", state=terminated(reason="Completed")),
                running("log"),
                containers=2,
                ready=False,
            ),
            "1/2 NotReady 0",
        ),
        (pod("p", phase="Failed", reason="Evicted", ready=False), "0/1 Evicted 0"),
        (pod("p", deleting=ago(seconds=-20)), "1/1 Terminating 0"),
        (pod("p", deleting=ago(seconds=20), reason="NodeLost"), "1/1 Unknown 0"),
        (
            pod(
                "p",
                ContainerStatus(name="web", state=terminated(reason="Completed")),
                phase="Succeeded",
                deleting=ago(seconds=1),
            ),
            "0/1 Completed 0",
        ),
    ],
)
def test_a_pods_summary_is_kubectls(shown, expected):
    summary = summarize(shown)
    assert f"{summary.ready}/{summary.total} {summary.reason} {summary.restarts_text(NOW)}" == expected


def test_pods(capsys):
    pods = [pod("web-1"), pod("web-alone", waiting("ContainerCreating"), phase="Pending", node="", ip="")]
    assert show(capsys, pods) == (
        "NAME        READY   STATUS              RESTARTS   AGE\n"
        "web-1       1/1     Running             0          5m3s\n"
        "web-alone   0/1     ContainerCreating   0          5m3s\n"
    )
    assert show(capsys, pods, wide=True) == (
        "NAME        READY   STATUS              RESTARTS   AGE    IP           NODE     NOMINATED NODE\n"
        "web-1       1/1     Running             0          5m3s   10.244.1.2   node1    <none>\n"
        "web-alone   0/1     ContainerCreating   0          5m3s   <none>       <none>   <none>\n"
    )


def test_pods_with_namespace_kind_and_labels(capsys):
    text = show(capsys, [pod()], with_namespace=True, with_kind=True, show_labels=True)
    assert text == (
        "NAMESPACE   NAME        READY   STATUS    RESTARTS   AGE    LABELS\n"
        "default     pod/web-1   1/1     Running   0          5m3s   app=web\n"
    )


def test_without_headers(capsys):
    assert show(capsys, [pod()], headers=False) == "web-1   1/1   Running   0     5m3s\n"


def test_controllers(capsys):
    shown = with_meta(
        replace(rc(), status=ReplicationControllerStatus(replicas=4, ready_replicas=3)), creation_timestamp=ago(hours=4)
    )
    assert show(capsys, [shown]) == ("NAME   DESIRED   CURRENT   READY   AGE\nweb    4         4         3       4h\n")
    assert show(capsys, [shown], wide=True) == (
        "NAME   DESIRED   CURRENT   READY   AGE   CONTAINERS   IMAGES   SELECTOR\n"
        "web    4         4         3       4h    web          web:1    app=web\n"
    )


def service(name="web", **spec) -> Service:
    ports = (ServicePort(port=80), ServicePort(port=53, protocol="UDP", name="dns"))
    return Service(
        metadata=ObjectMeta(name=name, creation_timestamp=ago(days=3)),
        spec=ServiceSpec(**{"ports": ports, "selector": {"app": "web"}, "cluster_ip": "10.96.0.10", **spec}),
    )


def test_services(capsys):
    shown = [service(), service("bare", ports=(), selector={}, cluster_ip="None")]
    assert show(capsys, shown, wide=True) == (
        "NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)         AGE   SELECTOR\n"
        "web    ClusterIP   10.96.0.10   <none>        80/TCP,53/UDP   3d    app=web\n"
        "bare   ClusterIP   None         <none>        <none>          3d    <none>\n"
    )


def test_services_of_every_type(capsys):
    node_ports = (ServicePort(port=80, node_port=31234), ServicePort(port=53, protocol="UDP", node_port=30053))
    served = service("lb", type="LoadBalancer", ports=node_ports[:1])
    ingress = tuple(LoadBalancerIngress(ip=ip) for ip in ("192.0.2.20", "192.0.2.10"))
    served = replace(served, status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)))
    shown = [
        service("np", type="NodePort", ports=node_ports),
        service("new", type="LoadBalancer", ports=node_ports[:1]),
        served,
        replace(served, spec=replace(served.spec, external_ips=("198.51.100.1",))),
        service("ext", external_ips=("198.51.100.1", "198.51.100.2"), ports=node_ports[:1]),
        service("name", type="ExternalName", external_name="db.example.com", cluster_ip="", ports=()),
    ]
    assert show(capsys, shown) == (
        "NAME   TYPE           CLUSTER-IP   EXTERNAL-IP                     PORT(S)                     AGE\n"
        "np     NodePort       10.96.0.10   <none>                          80:31234/TCP,53:30053/UDP   3d\n"
        "new    LoadBalancer   10.96.0.10   <pending>                       80:31234/TCP                3d\n"
        "lb     LoadBalancer   10.96.0.10   192.0.2.10,19...                80:31234/TCP                3d\n"
        "lb     LoadBalancer   10.96.0.10   192.0.2.10,19...,198.51.100.1   80:31234/TCP                3d\n"
        "ext    ClusterIP      10.96.0.10   198.51.100.1,198.51.100.2       80:31234/TCP                3d\n"
        "name   ExternalName   <none>       db.example.com                  <none>                      3d\n"
    )
    assert "   192.0.2.10,192.0.2.20   " in show(capsys, [served], wide=True)


def node(name="node1", ready="True", *, labels=None, unschedulable=False) -> Node:
    conditions = (Condition(type="Ready", status=ready),) if ready else ()
    return Node(
        metadata=ObjectMeta(name=name, creation_timestamp=ago(days=9), labels=labels or {}),
        spec=NodeSpec(unschedulable=unschedulable),
        status=NodeStatus(
            conditions=conditions,
            addresses=(NodeAddress(type="InternalIP", address="192.168.64.11"),),
            node_info=NodeSystemInfo(
                kubelet_version="v0.1.0",
                kernel_version="6.18.5",
                os_image="Debian GNU/Linux 12",
                container_runtime_version="docker://20.10.24",
            ),
        ),
    )


def test_nodes(capsys):
    nodes = [
        node(),
        node("node2", "Unknown", unschedulable=True),
        node("node3", "", labels={"node-role.kubernetes.io/server": "", "kubernetes.io/role": "edge"}),
    ]
    assert show(capsys, nodes) == (
        "NAME    STATUS                        ROLES         AGE   VERSION\n"
        "node1   Ready                         <none>        9d    v0.1.0\n"
        "node2   NotReady,SchedulingDisabled   <none>        9d    v0.1.0\n"
        "node3   Unknown                       edge,server   9d    v0.1.0\n"
    )
    assert show(capsys, nodes[:1], wide=True) == (
        "NAME    STATUS   ROLES    AGE   VERSION   INTERNAL-IP     EXTERNAL-IP   OS-IMAGE              KERNEL-VERSION"
        "   CONTAINER-RUNTIME\n"
        "node1   Ready    <none>   9d    v0.1.0    192.168.64.11   <none>        Debian GNU/Linux 12   6.18.5        "
        "   docker://20.10.24\n"
    )


def test_endpoint_slices(capsys):
    many = tuple(Endpoint(addresses=(f"10.244.1.{i}",), conditions=EndpointConditions(ready=True)) for i in range(2, 7))
    slices = [
        EndpointSlice(
            metadata=ObjectMeta(name="web-x", creation_timestamp=ago(seconds=8)),
            endpoints=many,
            ports=(EndpointPort(port=8080),),
        ),
        EndpointSlice(metadata=ObjectMeta(name="empty", creation_timestamp=ago(seconds=8))),
    ]
    assert show(capsys, slices) == (
        "NAME    ADDRESSTYPE   PORTS     ENDPOINTS                                      AGE\n"
        "web-x   IPv4          8080      10.244.1.2,10.244.1.3,10.244.1.4 + 2 more...   8s\n"
        "empty   IPv4          <unset>   <unset>                                        8s\n"
    )


def test_leases_and_namespaces(capsys):
    lease = Lease(
        metadata=ObjectMeta(name="node1", creation_timestamp=ago(seconds=8)), spec=LeaseSpec(holder_identity="node1")
    )
    assert show(capsys, [lease]) == "NAME    HOLDER   AGE\nnode1   node1    8s\n"
    namespace = Namespace(metadata=ObjectMeta(name="shop", creation_timestamp=ago(minutes=20)))
    assert show(capsys, [namespace]) == "NAME   STATUS   AGE\nshop   Active   20m\n"


def event(name="web-1.1", *, kind="Pod", about="web-1", count=1, first=None, last=None, **fields) -> Event:
    return Event(
        metadata=ObjectMeta(name=name, namespace="default"),
        involved_object=ObjectReference(kind=kind, name=about, namespace="default", field_path="spec.containers{web}"),
        source=EventSource(component="agent", host="node1"),
        count=count,
        first_timestamp=first or ago(minutes=3),
        last_timestamp=last or ago(seconds=4),
        **{"reason": "Started", "message": "Started container web", **fields},
    )


def test_events(capsys):
    shown = [event(count=5), event("x", reason="BackOff", type="Warning", message="restarting\n")]
    assert show(capsys, shown) == (
        "LAST SEEN   TYPE      REASON    OBJECT      MESSAGE\n"
        "4s          Normal    Started   pod/web-1   Started container web\n"
        "4s          Warning   BackOff   pod/web-1   restarting\n"
    )
    assert show(capsys, shown[:1], wide=True) == (
        "LAST SEEN   TYPE     REASON    OBJECT      SUBOBJECT              SOURCE         MESSAGE                 "
        "FIRST SEEN   COUNT   NAME\n"
        "4s          Normal   Started   pod/web-1   spec.containers{web}   agent, node1   Started container web   "
        "3m           5       web-1.1\n"
    )
