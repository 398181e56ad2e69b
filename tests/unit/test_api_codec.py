import json
import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api import types
from podlane.api.codec import DecodeError, decode, encode, to_builtins

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def pod(**metadata) -> types.Pod:
    return types.Pod(
        metadata=types.ObjectMeta(name="web", namespace="default", **metadata),
        spec=types.PodSpec(containers=(types.Container(name="web", image="web:1"),)),
    )


def test_a_stored_value_says_what_it_is_and_not_its_revision() -> None:
    assert encode(pod(resource_version="7", labels={"app": "web"})) == (
        b'{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default","labels":{"app":"web"}},'
        b'"spec":{"containers":[{"name":"web","image":"web:1"}]}}'
    )


def test_the_revision_becomes_the_resource_version() -> None:
    read = decode(types.Pod, encode(pod()), revision=42)
    assert read.metadata.resource_version == "42"
    assert decode(types.Pod, encode(pod())).metadata.resource_version == ""


def test_fields_of_a_newer_version_are_skipped() -> None:
    read = decode(types.Pod, b'{"kind":"Pod","metadata":{"name":"a","fancy":1},"spec":{"volumes":[]},"more":{}}')
    assert read.metadata.name == "a"


def test_null_is_the_same_as_absent() -> None:
    read = decode(
        types.Pod,
        b'{"metadata":{"name":"a","labels":null,"creationTimestamp":null},"spec":{"containers":[{"name":"c","env":null}]}}',
    )
    assert read.metadata.labels == {}
    assert read.spec.containers[0].env == ()
    assert read.kind == "Pod"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "truncated"),
        (b"not json", "malformed"),
        (b"\xff", "malformed"),
        (b'{"metadata":{"name":"\xff"}}', ""),
        (b"[]", "Expected `object`"),
        (b'{"kind":"Service"}', "the value is a Service"),
        (b'{"spec":{"terminationGracePeriodSeconds":"x"}}', "$.spec.terminationGracePeriodSeconds"),
    ],
)
def test_a_bad_value_is_one_kind_of_error(data: bytes, cause: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(types.Pod, data)
    assert str(caught.value).startswith("decode Pod: ")
    assert cause in str(caught.value)


def test_what_is_no_object_has_neither_kind_nor_revision() -> None:
    config = types.ClusterConfig(service_cidr="10.1.0.0/16", node_lease_seconds=4)
    assert json.loads(encode(config)) == {"serviceCIDR": "10.1.0.0/16", "nodeLeaseSeconds": 4}
    assert decode(types.ClusterConfig, encode(config), revision=3) == config


names = st.text("abcxyz09-", max_size=8)
labels = st.dictionaries(names, st.text(max_size=8), max_size=3)
times = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
metadata = st.builds(
    types.ObjectMeta,
    name=names,
    namespace=names,
    uid=names,
    generation=st.integers(0, 99),
    labels=labels,
    annotations=labels,
    creation_timestamp=times,
    deletion_timestamp=times,
)
ports = st.builds(types.ContainerPort, container_port=st.integers(1, 65535), protocol=st.sampled_from(["TCP", "UDP"]))
probes = st.none() | st.builds(
    types.Probe, http_get=st.none() | st.builds(types.HTTPGetAction, port=st.integers(1, 9) | names, path=names)
)
containers = st.builds(
    types.Container,
    name=names,
    image=names,
    command=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    ports=st.lists(ports, max_size=2).map(tuple),
    readiness_probe=probes,
    image_pull_policy=st.sampled_from(["", "Always"]),
)
specs = st.builds(
    types.PodSpec,
    containers=st.lists(containers, max_size=2).map(tuple),
    restart_policy=st.sampled_from(["Always", "OnFailure"]),
    termination_grace_period_seconds=st.integers(0, 2**40),
)
pods = st.builds(types.Pod, metadata=metadata, spec=specs)
services = st.builds(
    types.Service,
    metadata=metadata,
    spec=st.builds(
        types.ServiceSpec,
        cluster_ip=names,
        ports=st.lists(
            st.builds(types.ServicePort, port=st.integers(1, 65535), target_port=st.integers(0, 9) | names), max_size=2
        ).map(tuple),
    ),
)


@given(pods | services)
def test_what_is_stored_reads_back_the_same(obj: types.Object) -> None:
    read = decode(type(obj), encode(obj))
    named = msgspec.structs.replace(obj, kind=type(obj).KIND, api_version="v1")
    assert read == named
    assert encode(read) == encode(obj)


@given(pods | services, st.booleans())
def test_what_is_printed_reads_back_the_same(obj: types.Object, defaults: bool) -> None:
    printed = json.loads(json.dumps(to_builtins(obj, defaults=defaults)))
    assert msgspec.convert(printed, type(obj)) == msgspec.structs.replace(obj, kind=type(obj).KIND, api_version="v1")


def test_what_is_printed_shows_defaults_as_kubectl_does() -> None:
    obj = pod(resource_version="7", creation_timestamp=NOON)
    obj = msgspec.structs.replace(
        obj,
        status=types.PodStatus(
            container_statuses=(
                types.ContainerStatus(
                    name="web", state=types.ContainerState(running=types.ContainerStateRunning(started_at=None))
                ),
            )
        ),
    )
    shown = to_builtins(obj)
    assert list(shown) == ["apiVersion", "kind", "metadata", "spec", "status"]
    assert shown["metadata"] == {
        "name": "web",
        "namespace": "default",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-02T12:00:00Z",
    }
    assert shown["spec"] == {
        "containers": [
            {
                "name": "web",
                "image": "web:1",
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }
        ],
        "enableServiceLinks": True,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
    }
    assert shown["status"]["containerStatuses"] == [
        {"name": "web", "state": {"running": {}}, "ready": False, "restartCount": 0}
    ]
    assert to_builtins(obj, defaults=False)["spec"] == {"containers": [{"name": "web", "image": "web:1"}]}


def test_zero_replicas_and_false_conditions_are_said() -> None:
    controller = types.ReplicationController(spec=types.ReplicationControllerSpec(replicas=0))
    assert b'"replicas":0' in encode(controller)
    assert to_builtins(controller)["spec"]["replicas"] == 0
    conditions = types.EndpointConditions(ready=False, serving=True, terminating=True)
    assert json.loads(encode(conditions)) == {"ready": False, "terminating": True}


FIRST_USE = """
import sys, threading
from podlane.api import types
from podlane.api.codec import DecodeError, decode

sys.setswitchinterval(1e-6)
kinds = (types.Pod, types.Node, types.Service, types.ReplicationController, types.Lease, types.Event) * 2
together = threading.Barrier(len(kinds))

def read(kind):
    together.wait()
    decode(kind, b'{"metadata":{"name":"a","ownerReferences":[]},"spec":{},"status":{"conditions":[]}}')

threads = [threading.Thread(target=read, args=(kind,)) for kind in kinds]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_of_a_new_process_may_decode_types_that_share_others_at_once() -> None:
    for _ in range(5):  # with types learned on the way, four of five processes died of SIGSEGV
        done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
