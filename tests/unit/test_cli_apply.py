from __future__ import annotations

import json

import pytest
from cli_shell import Shell, lines, pod, rc
from msgspec.structs import replace

from podlane.api.types import Namespace, ObjectMeta, ReplicationController, Service
from podlane.cli.merge import LAST_APPLIED

pytestmark = pytest.mark.unit

RC = """\
apiVersion: v1
kind: ReplicationController
metadata:
  name: web
spec:
  replicas: {replicas}
  selector: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      containers:
        - name: web
          image: {image}
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
  labels: {tier: front}
spec:
  selector: {app: web}
  ports:
    - port: 80
      targetPort: 8080
"""


def manifest(replicas: object = 4, image: str = "web:1") -> str:
    return RC.format(replicas=replicas, image=image)


@pytest.fixture
def shell() -> Shell:
    return Shell()


def controller(shell: Shell) -> ReplicationController:
    return shell.registry.get(ReplicationController, "default", "web")


def test_created_unchanged_configured(shell):
    both = manifest() + "---\n" + SERVICE
    assert shell.ok("apply", "-f", "-", stdin=both) == "replicationcontroller/web created\nservice/web created\n"
    before = shell.revision()
    assert shell.ok("apply", "-f", "-", stdin=both) == "replicationcontroller/web unchanged\nservice/web unchanged\n"
    assert shell.revision() == before
    changed = manifest(8) + "---\n" + SERVICE
    assert shell.ok("apply", "-f", "-", stdin=changed) == (
        "replicationcontroller/web configured\nservice/web unchanged\n"
    )
    assert controller(shell).spec.replicas == 8
    assert controller(shell).metadata.generation == 2


def test_what_the_manifest_does_not_set_keeps_its_value(shell):
    shell.ok("apply", "-f", "-", stdin=SERVICE)
    address = shell.registry.get(Service, "default", "web").spec.cluster_ip
    shell.ok("label", "svc/web", "added=later")
    shell.ok("apply", "-f", "-", stdin=SERVICE.replace("8080", "9090"))
    after = shell.registry.get(Service, "default", "web")
    assert after.spec.cluster_ip == address
    assert after.spec.ports[0].target_port == 9090
    assert after.metadata.labels == {"tier": "front", "added": "later"}


def test_what_the_manifest_dropped_is_removed(shell):
    shell.ok("apply", "-f", "-", stdin=SERVICE)
    shell.ok("apply", "-f", "-", stdin=SERVICE.replace("  labels: {tier: front}\n", ""))
    assert shell.registry.get(Service, "default", "web").metadata.labels == {}


def test_replicas_left_out_are_not_touched(shell):
    """Who scales by hand or by program leaves `replicas` out, and apply does not fight."""
    without = manifest().replace("  replicas: 4\n", "")
    shell.ok("apply", "-f", "-", stdin=without)
    shell.ok("scale", "rc/web", "--replicas=7")
    assert shell.ok("apply", "-f", "-", stdin=without) == "replicationcontroller/web unchanged\n"
    assert controller(shell).spec.replicas == 7


def test_status_is_not_applied(shell):
    shell.ok("apply", "-f", "-", stdin=manifest())
    live = controller(shell)
    shell.registry.update(replace(live, status=replace(live.status, replicas=4, ready_replicas=4)))
    shell.ok("apply", "-f", "-", stdin=manifest(5))
    assert controller(shell).status.ready_replicas == 4


def test_an_object_made_otherwise_is_taken_over_with_a_word(shell):
    shell.ok("create", "-f", "-", stdin=manifest())
    assert LAST_APPLIED not in controller(shell).metadata.annotations
    result = shell.run("apply", "-f", "-", stdin=manifest())
    assert (result.exit_code, result.stdout) == (0, "replicationcontroller/web configured\n")
    assert result.stderr.startswith("warning: replicationcontroller/web was not made by apply")
    assert shell.ok("apply", "-f", "-", stdin=manifest()) == "replicationcontroller/web unchanged\n"


def test_the_annotation_is_the_manifest(shell):
    shell.ok("apply", "-f", "-", stdin=SERVICE)
    text = shell.registry.get(Service, "default", "web").metadata.annotations[LAST_APPLIED]
    assert json.loads(text) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "labels": {"tier": "front"}},
        "spec": {"ports": [{"port": 80, "targetPort": 8080}], "selector": {"app": "web"}},
    }


def test_every_error_of_every_file_and_nothing_stored(shell, tmp_path):
    (tmp_path / "a.yaml").write_text(SERVICE + "---\n" + manifest("four"))
    (tmp_path / "b.yaml").write_text(SERVICE.replace("80\n", "99999\n").replace("name: web", "name: other"))
    (tmp_path / "c.json").write_text("{")
    before = shell.revision()
    errors = shell.fails("apply", "-f", str(tmp_path), "-f", str(tmp_path / "missing.yaml"), code=2)
    shown = lines(errors)
    assert all(line.startswith("error: ") for line in shown)
    assert f"error: {tmp_path}/a.yaml#2 ReplicationController/web: spec.replicas: " in errors
    assert f"error: {tmp_path}/b.yaml Service/other: spec.ports[0].port: " in errors
    assert f"error: {tmp_path}/c.json: " in errors
    assert f"error: {tmp_path}/missing.yaml: read: No such file or directory" in errors
    assert shell.revision() == before


def test_an_update_that_is_forbidden_stops_everything(shell):
    shell.ok("apply", "-f", "-", stdin=SERVICE)
    before = shell.revision()
    other_address = SERVICE.replace("spec:\n", "spec:\n  clusterIP: 10.96.77.77\n")
    errors = shell.fails("apply", "-f", "-", code=2, stdin=manifest() + "---\n" + other_address)
    assert "stdin#2 Service/web: spec.clusterIP: immutable" in errors
    assert shell.revision() == before


def test_an_object_named_twice_is_refused(shell):
    errors = shell.fails("apply", "-f", "-", code=2, stdin=SERVICE + "---\n" + SERVICE)
    assert errors == "error: stdin#2 Service/web: stdin#1 has it too\n"


def test_namespaces_come_first(shell):
    inside = SERVICE.replace("  name: web\n", "  name: web\n  namespace: shop\n")
    namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
    assert shell.ok("apply", "-f", "-", stdin=inside + namespace) == "namespace/shop created\nservice/web created\n"


def test_a_namespace_that_is_not_there(shell):
    errors = shell.fails("apply", "-n", "shop", "-f", "-", code=2, stdin=SERVICE)
    assert errors == 'error: stdin Service/web: metadata.namespace: namespace "shop" not found\n'
    shell.add(Namespace(metadata=ObjectMeta(name="shop")))
    shell.ok("apply", "-n", "shop", "-f", "-", stdin=SERVICE)
    assert shell.registry.get(Service, "shop", "web").metadata.namespace == "shop"


def test_a_manifest_and_an_option_that_disagree(shell):
    inside = SERVICE.replace("  name: web\n", "  name: web\n  namespace: shop\n")
    errors = shell.fails("apply", "-n", "other", "-f", "-", code=2, stdin=inside)
    assert 'it says "shop", but -n says "other"' in errors


def test_dry_run_shows_the_plan_and_writes_nothing(shell):
    assert shell.ok("apply", "--dry-run", "-f", "-", stdin=SERVICE) == "service/web created (dry run)\n"
    shell.ok("apply", "-f", "-", stdin=manifest())
    before = shell.revision()
    plan = shell.ok("apply", "--dry-run=client", "-f", "-", stdin=manifest(8, "web:2"))
    assert lines(plan) == [
        "replicationcontroller/web configured (dry run)",
        "  spec.replicas: 4 -> 8",
        '  spec.template.spec.containers[0].image: "web:1" -> "web:2"',
    ]
    assert shell.revision() == before


def test_output_of_what_was_written(shell):
    assert shell.ok("apply", "-f", "-", "-o", "name", stdin=SERVICE) == "service/web\n"
    shown = json.loads(shell.ok("apply", "-f", "-", "-o", "json", stdin=SERVICE))
    assert shown["spec"]["clusterIP"].startswith("10.96.")


def test_create_refuses_what_exists_and_goes_on_with_the_rest(shell):
    shell.add(rc())
    result = shell.run("create", "-f", "-", stdin=manifest() + "---\n" + SERVICE)
    assert result.exit_code == 1
    assert result.stdout == "service/web created\n"
    assert result.stderr == "error: create replicationcontroller/web: already exists\n"


def test_generated_names_are_for_create(shell):
    generated = manifest().replace("  name: web\n", "  generateName: web-\n", 1)
    assert "apply needs a name" in shell.fails("apply", "-f", "-", code=2, stdin=generated)
    assert shell.ok("create", "-f", "-", stdin=generated).startswith("replicationcontroller/web-")


def test_a_change_made_meanwhile_is_merged_not_overwritten(shell):
    shell.ok("apply", "-f", "-", stdin=manifest())

    class Racing:
        """A store in which another writer is faster once, between apply's reading and its writing."""

        raced = False

        def __getattr__(self, name):
            return getattr(store, name)

        def txn(self, *args, **options):
            if not self.raced:
                self.raced = True
                live = controller(shell)
                shell.registry.update(replace(live, metadata=replace(live.metadata, labels={"by": "other"})))
            return store.txn(*args, **options)

    store = shell.store
    shell.store = Racing()
    assert shell.ok("apply", "-f", "-", stdin=manifest(6)) == "replicationcontroller/web configured\n"
    assert controller(shell).metadata.labels == {"by": "other"}
    assert controller(shell).spec.replicas == 6


def test_a_file_is_needed(shell):
    assert shell.fails("apply", code=2).startswith("error: -f: missing")


def test_a_pods_immutable_field(shell):
    shell.add(pod("alone"))
    text = """\
apiVersion: v1
kind: Pod
metadata: {name: alone}
spec:
  restartPolicy: Never
  containers: [{name: web, image: 'web:2'}]
"""
    errors = shell.fails("apply", "-f", "-", code=2, stdin=text)
    assert "Pod/alone: spec.restartPolicy: immutable" in errors
