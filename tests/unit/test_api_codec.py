import json
import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest

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
        (b'{"status":{"startTime":"2026-01-02T03:04:05"}}', "with a timezone component - at `$.status.startTime`"),
        (b'{"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "maximum recursion depth"),
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
