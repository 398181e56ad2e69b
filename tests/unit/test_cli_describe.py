"""describe and events."""

from __future__ import annotations

import json

import pytest
import yaml
from cli_shell import NOW, Shell, ago, lines, owner, pod, rc, running, terminated, waiting, with_meta
from msgspec import convert
from msgspec.structs import replace

from podlane.api.types import (
    ClientIPConfig,
    Condition,
    Container,
    ContainerPort,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    EnvVar,
    Event,
    EventSource,
    ForNode,
    ForZone,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Namespace,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    ObjectReference,
    Pod,
    PodStatus,
    Probe,
    ReplicationControllerStatus,
    ResourceRequirements,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
    TCPSocketAction,
)
from podlane.cli.description import describe_object
from podlane.cli.description_container import hook_text, probe_text
from podlane.runtime.clock import SystemClock

pytestmark = pytest.mark.unit


def text(obj, *related, events=()) -> str:
    return "\n".join(line.rstrip() for line in describe_object(obj, NOW, events=events, related=related))


def event(name: str, reason: str, *, about: str = "web-1", kind: str = "Pod", uid: str = "", **fields) -> Event:
    return Event(
        metadata=ObjectMeta(name=name, namespace="default"),
        involved_object=ObjectReference(kind=kind, name=about, namespace="default", uid=uid),
        reason=reason,
        message=fields.pop("message", f"{reason} it"),
        source=EventSource(component="agent", host="node1"),
        **{"first_timestamp": ago(minutes=3), "last_timestamp": ago(seconds=4), **fields},
    )


def test_a_pod():
    container = Container(
        name="web",
        image="web:1",
        command=("serve",),
        args=("--port", "8080"),
        ports=(ContainerPort(container_port=8080), ContainerPort(container_port=53, protocol="UDP")),
        env=(EnvVar(name="A", value="1"),),
        resources=ResourceRequirements(requests={"cpu": "20m", "memory": "8Mi"}, limits={"memory": "16Mi"}),
        readiness_probe=Probe(tcp_socket=TCPSocketAction(port=8080), period_seconds=1),
    )
    ended = terminated(reason="Error", exit_code=2, finished=ago(minutes=6))
    shown = pod("web-1", running(restarts=1, last=ended), owner=owner(rc()))
    shown = replace(shown, spec=replace(shown.spec, containers=(container,), node_selector={"disk": "ssd"}))
    shown = replace(shown, status=replace(shown.status, start_time=ago(minutes=5)))
    events = [event("a", "Pulled"), event("b", "BackOff", type="Warning", count=5)]
    assert (
        text(shown, events=events)
        == """\
Name:             web-1
Namespace:        default
Priority:         0
Node:             node1/192.168.64.11
Start Time:       Sun, 01 Mar 2026 11:55:00 +0000
Labels:           app=web
Annotations:      <none>
Status:           Running
IP:               10.244.1.2
Controlled By:    ReplicationController/web
Containers:
  web:
    Image:          web:1
    Ports:          8080/TCP, 53/UDP
    Command:
      serve
    Args:
      --port
      8080
    State:          Running
      Started:      Sun, 01 Mar 2026 11:55:00 +0000
    Last State:     Terminated
      Reason:       Error
      Exit Code:    2
      Started:      <unknown>
      Finished:     Sun, 01 Mar 2026 11:54:00 +0000
    Ready:          True
    Restart Count:  1
    Limits:
      memory:       16Mi
    Requests:
      cpu:          20m
      memory:       8Mi
    Readiness:      tcp-socket :8080 delay=0s timeout=1s period=1s #success=1 #failure=3
    Environment:
      A: 1
Conditions:
  Type    Status
  ----    ------
  Ready   True
Volumes:          <none>
QoS Class:        Burstable
Restart Policy:   Always
Node-Selectors:   disk=ssd
Tolerations:      <none>
Events:
  Type      Reason    Age               From           Message
  ----      ------    ---               ----           -------
  Normal    Pulled    4s                agent, node1   Pulled it
  Warning   BackOff   4s (x5 over 3m)   agent, node1   BackOff it"""
    )


def test_a_pod_with_all_that_kubernetes_has():
    """Read as a manifest, for the text of `describe` goes along it."""
    manifest = """
metadata: {name: full, namespace: default}
spec:
  priorityClassName: high
  priority: 1000
  initContainers:
  - {name: first, image: "init:1", volumeMounts: [{name: scratch, mountPath: /s, subPath: a}]}
  containers:
  - name: web
    image: web:1
    ports: [{containerPort: 80, hostPort: 8080}]
    envFrom: [{configMapRef: {name: conf, optional: true}}, {prefix: P_, secretRef: {name: pw}}]
    env:
    - {name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: B, valueFrom: {resourceFieldRef: {resource: limits.cpu, containerName: web}}}
    - {name: C, valueFrom: {configMapKeyRef: {name: conf, key: c}}}
    - {name: D, valueFrom: {secretKeyRef: {name: pw, key: d}}}
    livenessProbe: {grpc: {port: 80}}
    startupProbe: {exec: {command: [test, -f, /ready]}}
    volumeMounts: [{name: conf, mountPath: /conf, readOnly: true}]
  volumes:
  - {name: scratch, emptyDir: {medium: Memory}}
  - {name: conf, configMap: {name: conf}}
  - {name: pw, secret: {secretName: pw, optional: true}}
  - {name: host, hostPath: {path: /srv, type: Directory}}
  - {name: me, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 30}]
  topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
status: {nominatedNodeName: node2, qosClass: BestEffort}
"""
    shown = convert(yaml.safe_load(manifest), Pod)
    assert (
        text(shown)
        == """\
Name:             full
Namespace:        default
Priority:         1000
Priority Class:   high
Node:             <none>
Start Time:       <none>
Labels:           <none>
Annotations:      <none>
Status:           Pending
IP:               <none>
Nominated Node:   node2
Init Containers:
  first:
    Image:          init:1
    Port:           <none>
    Environment:    <none>
    Mounts:
      /s from scratch (rw,path="a")
Containers:
  web:
    Image:          web:1
    Port:           80/TCP
    Host Port:      8080/TCP
    Liveness:       grpc <pod>:80  delay=0s timeout=1s period=10s #success=1 #failure=3
    Startup:        exec [test -f /ready] delay=0s timeout=1s period=10s #success=1 #failure=3
    Environment Variables from:
      conf  ConfigMap  Optional: true
      pw  Secret with prefix 'P_'  Optional: false
    Environment:
      A: (v1:status.podIP)
      B: (limits.cpu of web)
      C: <set to the key 'c' of config map 'conf'>  Optional: false
      D: <set to the key 'd' in secret 'pw'>  Optional: false
    Mounts:
      /conf from conf (ro)
Conditions:       <none>
Volumes:
  scratch:
    Type:         EmptyDir (a temporary directory that shares a pod's lifetime)
    Medium:       Memory
    SizeLimit:    <unset>
  conf:
    Type:         ConfigMap (a volume populated by a ConfigMap)
    Name:         conf
    Optional:     false
  pw:
    Type:         Secret (a volume populated by a Secret)
    SecretName:   pw
    Optional:     true
  host:
    Type:         HostPath (bare host directory volume)
    Path:         /srv
    HostPathType: Directory
  me:
    Type:         DownwardAPI (a volume populated by information about the pod)
    Items:        metadata.labels -> labels
QoS Class:        BestEffort
Restart Policy:   Always
Node-Selectors:   <none>
Tolerations:      op=Exists
                  a=b:NoExecute for 30s
Spread:           zone:DoNotSchedule when max skew 1 is exceeded for selector app=web
Events:           <none>"""
    )


def test_a_pod_that_waits_and_one_that_ends():
    shown = text(pod("p", waiting("ErrImagePull"), phase="Pending", node="", ip=""))
    assert "Node:             <none>" in shown
    assert "    State:          Waiting\n      Reason:       ErrImagePull\n" in shown
    assert "Start Time:       <none>" in shown
    assert "Events:           <none>" in shown
    ending = text(pod("p", deleting=ago(seconds=-20)))
    assert "Status:           Terminating (ends Sun, 01 Mar 2026 12:00:20 +0000)\nGrace Period:     30s\n" in ending


def test_a_pod_that_fits_nowhere_says_why():
    why = "0/1 nodes fit: 1 cordoned"
    conditions = (
        Condition(type="PodScheduled", status="False", reason="Unschedulable", message=why),
        Condition(type="Ready", status="False", message="not said"),
    )
    piece = pod("web-1")
    piece = replace(piece, status=replace(piece.status, conditions=conditions))
    assert f"""
Conditions:
  Type           Status   Message
  ----           ------   -------
  PodScheduled   False    {why}
  Ready          False
""" in text(piece)


def test_a_controller_counts_its_pods():
    shown = replace(rc(), status=ReplicationControllerStatus(replicas=3))
    pods = [pod("a"), pod("b", phase="Pending"), pod("c"), pod("d", phase="Failed"), pod("e", deleting=NOW)]
    assert (
        text(shown, *pods)
        == """\
Name:             web
Namespace:        default
Selector:         app=web
Labels:           app=web
Annotations:      <none>
Replicas:         3 current / 4 desired
Pods Status:      2 Running / 1 Waiting / 0 Succeeded / 1 Failed
Pod Template:
  Labels:           app=web
  Containers:
    web:
      Image:          web:1
      Port:           <none>
      Environment:    <none>
  Volumes:          <none>
  Node-Selectors:   <none>
  Tolerations:      <none>
Events:           <none>"""
    )


def endpoint(address: str, *, ready: bool = True) -> Endpoint:
    return Endpoint(
        addresses=(address,),
        conditions=EndpointConditions(ready=ready, serving=True),
        node_name="node1",
        target_ref=ObjectReference(kind="Pod", name="web-1"),
    )


def test_a_service_and_its_endpoints():
    service = Service(
        metadata=ObjectMeta(name="web", namespace="default"),
        spec=ServiceSpec(
            selector={"app": "web"},
            cluster_ip="10.96.0.9",
            ports=(
                ServicePort(name="http", port=80, target_port="http"),
                ServicePort(name="dns", port=53, protocol="UDP", target_port=5353),
            ),
        ),
    )
    piece = EndpointSlice(
        metadata=ObjectMeta(name="web-1", namespace="default"),
        endpoints=(endpoint("10.244.1.2"), endpoint("10.244.1.3", ready=False), endpoint("10.244.2.2")),
        ports=(EndpointPort(name="http", port=8080),),
    )
    assert (
        text(service, piece)
        == """\
Name:                     web
Namespace:                default
Labels:                   <none>
Annotations:              <none>
Selector:                 app=web
Type:                     ClusterIP
IP:                       10.96.0.9
Port:                     http  80/TCP
TargetPort:               http/TCP
Endpoints:                10.244.1.2:8080,10.244.2.2:8080
Port:                     dns  53/UDP
TargetPort:               5353/UDP
Endpoints:                <none>
Session Affinity:         None
Internal Traffic Policy:  Cluster
Events:                   <none>"""
    )
    assert """\
Endpoints:
  - Addresses:  10.244.1.2
    Conditions: ready=true serving=true terminating=false
    TargetRef:  Pod/web-1
    NodeName:   node1
  - Addresses:  10.244.1.3
    Conditions: ready=false serving=true terminating=false
""" in text(piece)


def test_all_that_a_service_may_have():
    service = Service(
        metadata=ObjectMeta(name="web", namespace="default", annotations={"podlane.io/balance": "maglev", "a": "b"}),
        spec=ServiceSpec(
            type="LoadBalancer",
            selector={"app": "web"},
            cluster_ip="10.96.0.9",
            cluster_ips=("10.96.0.9", "fd00::9"),
            ip_families=("IPv4", "IPv6"),
            ip_family_policy="PreferDualStack",
            external_ips=("198.51.100.1",),
            load_balancer_ip="192.0.2.9",
            load_balancer_class="example.com/metal",
            load_balancer_source_ranges=("10.0.0.0/8", "fd00::/8"),
            ports=(ServicePort(name="http", port=80, target_port=8080, node_port=30080, app_protocol="http"),),
            session_affinity="ClientIP",
            session_affinity_config=SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=60)),
            external_traffic_policy="Local",
            internal_traffic_policy="Local",
            health_check_node_port=31000,
            traffic_distribution="PreferClose",
            publish_not_ready_addresses=True,
        ),
        status=ServiceStatus(
            load_balancer=LoadBalancerStatus(
                ingress=(LoadBalancerIngress(ip="192.0.2.9", ip_mode="VIP"), LoadBalancerIngress(hostname="lb.example"))
            )
        ),
    )
    ports = (EndpointPort(name="http", port=8080),)
    four = EndpointSlice(endpoints=(endpoint("10.244.1.2"),), ports=ports)
    six = EndpointSlice(address_type="IPv6", endpoints=(endpoint("fd00:1::2"), endpoint("fd00:1::3")), ports=ports)
    assert (
        text(service, four, six)
        == """\
Name:                        web
Namespace:                   default
Labels:                      <none>
Annotations:                 a=b
                             podlane.io/balance=maglev
Selector:                    app=web
Type:                        LoadBalancer
IP Family Policy:            PreferDualStack
IP Families:                 IPv4,IPv6
IP:                          10.96.0.9
IPs:                         10.96.0.9,fd00::9
External IPs:                198.51.100.1
Desired LoadBalancer IP:     192.0.2.9
LoadBalancer Ingress:        192.0.2.9 (VIP), lb.example
Port:                        http  80/TCP
TargetPort:                  8080/TCP
NodePort:                    http  30080/TCP
AppProtocol:                 http
Endpoints (IPv4):            10.244.1.2:8080
Endpoints (IPv6):            [fd00:1::2]:8080,[fd00:1::3]:8080
Session Affinity:            ClientIP
Session Affinity Timeout:    60s
External Traffic Policy:     Local
Internal Traffic Policy:     Local
HealthCheck NodePort:        31000
LoadBalancer Class:          example.com/metal
LoadBalancer Source Ranges:  10.0.0.0/8,fd00::/8
Traffic Distribution:        PreferClose
Publish Not Ready:           true
Events:                      <none>"""
    )


def test_a_service_that_is_a_name():
    service = Service(
        metadata=ObjectMeta(name="db", namespace="default"),
        spec=ServiceSpec(type="ExternalName", external_name="db.example.com"),
    )
    assert "Type:              ExternalName\nExternal Name:     db.example.com\nSession Affinity:  None\n" in text(
        service
    )


def test_endpoints_with_zones_and_hints():
    hints = EndpointHints(for_zones=(ForZone(name="a"), ForZone(name="b")), for_nodes=(ForNode(name="node1"),))
    piece = EndpointSlice(
        metadata=ObjectMeta(name="web-1", namespace="default"),
        endpoints=(replace(endpoint("10.244.1.2"), zone="a", hostname="web-0", hints=hints),),
    )
    assert """\
    Hostname:   web-0
    TargetRef:  Pod/web-1
    NodeName:   node1
    Zone:       a
    Hints:      zone a, zone b, node node1
""" in text(piece)


def test_a_node_and_its_pods():
    node = Node(
        metadata=ObjectMeta(name="node1", creation_timestamp=ago(days=1)),
        spec=NodeSpec(pod_cidr="10.244.1.0/24", unschedulable=True),
        status=NodeStatus(
            capacity={"cpu": "4", "memory": "8Gi"},
            allocatable={"cpu": "200m", "memory": "7Gi", "pods": "110"},
            addresses=(NodeAddress(type="InternalIP", address="192.168.64.11"),),
            conditions=(
                Condition(type="Ready", status="True", reason="AgentReady", last_transition_time=ago(hours=1)),
            ),
        ),
    )
    loaded = pod("web-1")
    container = replace(
        loaded.spec.containers[0],
        resources=ResourceRequirements(requests={"cpu": "20m", "memory": "8Mi"}, limits={"cpu": "1500m"}),
    )
    loaded = replace(loaded, spec=replace(loaded.spec, containers=(container, container)))
    over = replace(loaded, metadata=ObjectMeta(name="over", namespace="apart"), status=PodStatus(phase="Failed"))
    shown = text(node, pod("web-2"), loaded, over)
    assert "Unschedulable:    true\n" in shown
    assert (
        """\
Conditions:
  Type    Status   LastTransitionTime                Reason       Message
  ----    ------   ------------------                ------       -------
  Ready   True     Sun, 01 Mar 2026 11:00:00 +0000   AgentReady
Addresses:
  InternalIP: 192.168.64.11
Capacity:
  cpu:                4
  memory:             8Gi
Allocatable:
"""
        in shown
    )
    assert (
        """\
PodCIDR:          10.244.1.0/24
Pods:             (3 in total)
  Namespace   Name    CPU Requests   Memory Requests   Age
  ---------   ----    ------------   ---------------   ---
  apart       over    40m            16Mi              <unknown>
  default     web-1   40m            16Mi              5m3s
  default     web-2   0              0                 5m3s
Allocated resources:
  (Total limits may be over 100 percent, i.e., overcommitted.)
  Resource   Requests    Limits
  --------   --------    ------
  cpu        40m (20%)   3 (1500%)
  memory     16Mi (0%)   0 (0%)
  pods       2 (1%)
"""
        in shown
    )


def test_shares_of_a_node_that_offers_nothing_readable_are_unknown():
    offered = {"cpu": "many", "pods": "-1"}
    shown = text(Node(metadata=ObjectMeta(name="node1"), status=NodeStatus(allocatable=offered)))
    assert (
        """\
  cpu        0 (<unknown>)   0 (<unknown>)
  memory     0 (<unknown>)   0 (<unknown>)
  pods       0 (<unknown>)
"""
        in shown
    )


def test_probes():
    from podlane.api.types import ExecAction, HTTPGetAction

    http = Probe(http_get=HTTPGetAction(port="http", path="/healthz"), initial_delay_seconds=3)
    assert probe_text(http) == "http-get http://:http/healthz delay=3s timeout=1s period=10s #success=1 #failure=3"
    assert probe_text(Probe(exec=ExecAction(command=("cat", "/x")))).startswith("exec [cat /x] delay=0s")


def test_hooks():
    from podlane.api.types import ExecAction, HTTPGetAction, LifecycleHandler, SleepAction

    assert hook_text(LifecycleHandler(sleep=SleepAction(seconds=5))) == "sleep 5s"
    assert hook_text(LifecycleHandler(exec=ExecAction(command=("sh", "-c", "bye")))) == "exec [sh -c bye]"
    assert hook_text(LifecycleHandler(http_get=HTTPGetAction(port=80))) == "http-get http://:80/"


def test_the_remembered_manifest_is_not_shown():
    shown = with_meta(rc(), annotations={"podlane.io/last-applied-configuration": "{}", "note": "x"})
    assert "Annotations:      note=x\n" in text(shown)


# --- the commands -----------------------------------------------------------------------


@pytest.fixture
def shell() -> Shell:
    shell = Shell()
    shell.add(pod("web-1"), pod("web-2"), Namespace(metadata=ObjectMeta(name="shop")))
    uid = shell.registry.list(type(pod())).items[0].metadata.uid
    shell.add(
        event("e1", "Pulled", uid=uid, last_timestamp=ago(seconds=50)),
        event("e2", "Started", uid=uid, count=3),
        event("e3", "Killing", uid="of an earlier web-1"),
        event("e4", "Failed", about="web-2", type="Warning"),
        with_meta(event("e5", "Elsewhere"), namespace="shop"),
    )
    return shell


def test_describe_shows_the_events_of_this_object_only(shell):
    shown = shell.ok("describe", "pod", "web-1")
    assert lines(shown)[-2:] == [
        "  Normal   Pulled    50s               agent, node1   Pulled it",
        "  Normal   Started   4s (x3 over 3m)   agent, node1   Started it",
    ]
    assert "Events" not in shell.ok("describe", "pod/web-1", "--show-events=false")


def test_describe_many(shell):
    shown = shell.ok("describe", "pods")
    assert [line.split()[1] for line in lines(shown) if line.startswith("Name:")] == ["web-1", "web-2"]
    assert "\n\n\nName: " in shown
    assert shell.ok("describe", "ns", "shop").startswith("Name:             shop\nLabels:           <none>\n")
    result = shell.run("describe", "pod", "web-1", "nope")
    assert (result.exit_code, result.stderr) == (1, 'error: pods "nope" not found\n')


def test_describe_finds_what_belongs_to_it(shell):
    controller = shell.registry.create(rc())
    shell.add(pod("mine", owner=owner(controller)))
    assert "Pods Status:      1 Running" in shell.ok("describe", "rc/web")
    shell.add(Node(metadata=ObjectMeta(name="node1")))
    assert "Pods:             (3 in total)" in shell.ok("describe", "node/node1")


def test_the_amounts_of_a_node_are_in_one_column(shell):
    capacity = {"cpu": "2", "ephemeral-storage": "12342040Ki"}
    shell.add(Node(metadata=ObjectMeta(name="node1"), status=NodeStatus(capacity=capacity)))
    shown = lines(shell.ok("describe", "node/node1"))
    assert "  cpu:                2" in shown
    assert "  ephemeral-storage:  12342040Ki" in shown


def test_events(shell):
    assert lines(shell.ok("events")) == [
        "LAST SEEN         TYPE      REASON    OBJECT      MESSAGE",
        "50s               Normal    Pulled    pod/web-1   Pulled it",
        "4s (x3 over 3m)   Normal    Started   pod/web-1   Started it",
        "4s                Normal    Killing   pod/web-1   Killing it",
        "4s                Warning   Failed    pod/web-2   Failed it",
    ]
    assert lines(shell.ok("events", "-A", "--no-headers"))[-1].startswith("shop      4s ")


def test_events_that_are_asked_for(shell):
    assert lines(shell.ok("events", "--for", "pod/web-2", "--no-headers")) == [
        "4s    Warning   Failed   pod/web-2   Failed it"
    ]
    assert len(lines(shell.ok("events", "--types=Warning", "-o", "name"))) == 1
    assert json.loads(shell.ok("events", "-o", "json"))["items"][0]["reason"] == "Pulled"
    result = shell.run("events", "--for", "rc/web")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "No events found in default namespace.\n"
    assert "expected TYPE/NAME" in shell.fails("events", "--for", "pods", code=2)
    assert "expected Normal or Warning" in shell.fails("events", "--types=Bad", code=2)


def test_events_as_they_happen():
    shell = Shell(SystemClock())
    shell.add(event("e1", "Pulled"))
    session = shell.session()
    session.stop.set()
    from click.testing import CliRunner

    from podlane.cli.main import cli

    result = CliRunner().invoke(cli, ["events", "-w"], obj=session)
    assert result.exit_code == 0
    assert result.stdout.startswith("LAST SEEN")
    assert len(lines(result.stdout)) == 2
