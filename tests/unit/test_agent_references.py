"""Following the objects that pods name: what is read, what is told, and what stays known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from agent_objects import container, pod

from podlane.api.types import (
    ConfigMap,
    ConfigMapEnvSource,
    ConfigMapVolumeSource,
    EnvFromSource,
    EnvVar,
    EnvVarSource,
    ObjectMeta,
    Pod,
    Secret,
    SecretKeySelector,
    SecretVolumeSource,
    Service,
    ServicePort,
    ServiceSpec,
    Volume,
)
from podlane.runtime.clock import FakeClock, SystemClock
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent.references import Followed, Ref, References, refs_of
from scheduler.agent.servicelists import FRESH, ServiceLists

pytestmark = pytest.mark.unit

CM, OTHER = Ref(ConfigMap, "default", "cm"), Ref(ConfigMap, "default", "cm2")
SECRET = Ref(Secret, "default", "s")


def naming(*names: str) -> Pod:
    sources = tuple(EnvFromSource(config_map_ref=ConfigMapEnvSource(name=name)) for name in names)
    return pod("p", container(env_from=sources))


def config_map(name: str = "cm", **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data=data)


class Rig:
    """A store, and a thread that follows it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.registry = Registry(self.store)
        self.changes = 0
        self.references = References(self.store, self._changed, SystemClock())
        self.services = ServiceLists(self.store, self._changed, SystemClock())
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=body, args=(self._stop,)) for body in (self.references.run, self.services.run)
        ]
        for thread in self._threads:
            thread.start()

    def _changed(self) -> None:
        self.changes += 1

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def data(self, ref: Ref, *pods: Pod) -> dict[str, str] | str:
        found: dict[Ref, Followed | None] = self.references.look(pods)
        if ref not in found:
            return "not read"
        obj = found[ref]
        return "absent" if obj is None else obj.data


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.end()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.01)


def test_everything_a_pod_names() -> None:
    variable = EnvVar(name="A", value_from=EnvVarSource(secret_key_ref=SecretKeySelector(name="s", key="k")))
    volumes = (
        Volume(name="v", config_map=ConfigMapVolumeSource(name="cm")),
        Volume(name="w", secret=SecretVolumeSource(secret_name="s2")),
    )
    first = container("init", env_from=(EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm2")),))
    mine = pod("p", container(env=(variable,)), init_containers=(first,), volumes=volumes)
    assert refs_of(mine) == {CM, OTHER, SECRET, Ref(Secret, "default", "s2")}


def test_an_object_is_read_and_its_changes_are_followed(rig: Rig) -> None:
    rig.registry.create(config_map(a="1"))
    mine = naming("cm")
    assert rig.data(CM, mine) == "not read"
    eventually(lambda: rig.data(CM, mine) == {"a": "1"})
    before = rig.changes
    stored = rig.registry.get(ConfigMap, "default", "cm")
    rig.registry.update(msgspec.structs.replace(stored, data={"a": "2"}))
    eventually(lambda: rig.data(CM, mine) == {"a": "2"})
    assert rig.changes > before
    rig.registry.delete(ConfigMap, "default", "cm")
    eventually(lambda: rig.data(CM, mine) == "absent")


def test_an_object_deleted_and_made_again_in_one_revision_after_the_other_is_there(rig: Rig) -> None:
    mine = naming("cm")
    for number in range(20):
        rig.registry.create(config_map(a=str(number)))
        eventually(lambda number=number: rig.data(CM, mine) == {"a": str(number)})  # type: ignore[misc]
        rig.registry.delete(ConfigMap, "default", "cm")


def test_what_is_missing_is_waited_for(rig: Rig) -> None:
    mine = naming("cm")
    eventually(lambda: rig.data(CM, mine) == "absent")
    before = rig.changes
    rig.registry.create(config_map("cm-longer", a="1"))  # its key begins like the one that is watched
    rig.registry.create(config_map(a="1"))
    eventually(lambda: rig.data(CM, mine) == {"a": "1"})
    assert rig.changes == before + 1


def test_only_what_pods_name_is_known_and_it_is_forgotten_with_them(rig: Rig) -> None:
    rig.registry.create(config_map(a="1"))
    rig.registry.create(config_map("cm2", b="2"))
    eventually(lambda: rig.data(CM, naming("cm")) == {"a": "1"})
    assert rig.references.look([naming("cm")]).keys() == {CM}
    eventually(lambda: rig.data(OTHER, naming("cm", "cm2")) == {"b": "2"})
    assert rig.references.look([naming("cm2")]).keys() == {OTHER}
    assert rig.references.look([]) == {}


def test_with_the_store_away_what_was_known_stays_and_news_come_after(rig: Rig) -> None:
    rig.registry.create(config_map(a="1"))
    mine = naming("cm")
    eventually(lambda: rig.data(CM, mine) == {"a": "1"})
    rig.store.faults.set_down(True)
    assert rig.data(CM, mine) == {"a": "1"}
    assert rig.data(OTHER, naming("cm", "cm2")) == "not read"
    assert rig.data(CM, naming("cm", "cm2")) == {"a": "1"}
    rig.store.faults.set_down(False)
    rig.registry.create(config_map("cm2", b="2"))
    eventually(lambda: rig.data(OTHER, naming("cm", "cm2")) == {"b": "2"})


def test_an_exchanged_store_is_believed_after_the_stream_broke(rig: Rig) -> None:
    rig.registry.create(config_map(a="1"))
    mine = naming("cm")
    eventually(lambda: rig.data(CM, mine) == {"a": "1"})
    rig.store.wipe()
    eventually(lambda: rig.data(CM, mine) == "absent")


# --- services -----------------------------------------------------------------------------------------


def web(ip: str = "10.96.0.7", name: str = "web", namespace: str = "default") -> Service:
    spec = ServiceSpec(cluster_ip=ip, cluster_ips=(ip,), ports=(ServicePort(port=80),))
    return Service(metadata=ObjectMeta(name=name, namespace=namespace), spec=spec)


def put(rig: Rig, obj: Service) -> int:
    """Without a cluster's configuration, so without what allots addresses."""
    from podlane.api.codec import encode
    from podlane.store import keys
    from podlane.store.interface import Put

    key = keys.key_for(Service, obj.metadata.namespace, obj.metadata.name)
    return rig.store.txn([], [Put(key, encode(obj))]).revision


def test_services_are_read_until_they_are_as_new_as_the_pod(rig: Rig) -> None:
    first = put(rig, web())
    put(rig, web("10.96.0.1", "kubernetes"))
    put(rig, web("10.96.0.8", "foreign", "elsewhere"))
    look = rig.services.look
    eventually(lambda: "default" in look({"default": first}, {"default"}))
    known = look({"default": first}, {"default"})["default"]
    assert {name for name in known.links if name.endswith("HOST")} == {"KUBERNETES_SERVICE_HOST", "WEB_SERVICE_HOST"}
    assert known.master["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    newer = put(rig, web("10.96.0.9", "later"))
    eventually(lambda: "default" in look({"default": newer}, {"default"}))
    assert "LATER_PORT" in look({"default": newer}, {"default"})["default"].links
    assert look({}, {"default"}) == {}


def test_services_known_last_must_do_while_the_store_is_away(rig: Rig) -> None:
    at = put(rig, web())
    look = rig.services.look
    eventually(lambda: "default" in look({"default": at}, {"default"}))
    rig.store.faults.set_down(True)
    assert look({"default": at + 5}, {"default"}).keys() <= {"default"}
    eventually(lambda: "default" in look({"default": at + 5}, {"default"}))
    assert "elsewhere" not in look({"elsewhere": 1}, {"default", "elsewhere"})
    rig.store.faults.set_down(False)
    newer = put(rig, web("10.96.0.9", "later"))
    eventually(lambda: "LATER_PORT" in look({"default": newer}, {"default"})["default"].links)


def test_old_lists_are_read_again_for_a_pod_that_starts(rig: Rig) -> None:
    at = put(rig, web())
    clock = FakeClock()
    lists = ServiceLists(rig.store, lambda: None, clock)
    lists.look({"default": at}, {"default"})
    lists._sync()
    put(rig, web("10.96.0.9", "later"))
    assert "LATER_PORT" not in lists.look({"default": at}, {"default"})["default"].links
    clock.advance(FRESH + 1)
    assert lists.look({"default": at}, {"default"}) == {}
    lists._sync()
    assert "LATER_PORT" in lists.look({"default": at}, {"default"})["default"].links
