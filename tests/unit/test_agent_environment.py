"""A container's environment: what it names in, NAME=VALUE out, as Kubernetes has it."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from agent_objects import container, pod

from podlane.api.types import (
    ConfigMap,
    ConfigMapEnvSource,
    ConfigMapKeySelector,
    Container,
    EnvFromSource,
    EnvVar,
    EnvVarSource,
    ObjectFieldSelector,
    ObjectMeta,
    Pod,
    ResourceFieldSelector,
    ResourceRequirements,
    Secret,
    SecretEnvSource,
    SecretKeySelector,
    Service,
    ServicePort,
    ServiceSpec,
)
from scheduler.agent.actions import Create
from scheduler.agent.containers import container_config
from scheduler.agent.downward import NodeFacts, format_map
from scheduler.agent.environment import ConfigError, NotRead, environment, expand, services_of
from scheduler.agent.references import Known, Ref

pytestmark = pytest.mark.unit

NODE = NodeFacts(("192.168.64.11", "fd00::11"), {"cpu": "3500m", "memory": "7Gi"}, 8 * 1024**3)
IPS = ("10.5.3.2", "fd00:5:3::2")


def config_map(name: str = "cm", **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data=data)


def secret(name: str = "s", **data: str) -> Secret:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return Secret(metadata=ObjectMeta(name=name, namespace="default"), data=encoded)


def known(*objects: ConfigMap | Secret, missing: tuple[Ref, ...] = (), **more: Any) -> Known:
    there = {Ref(type(obj), "default", obj.metadata.name): obj for obj in objects}
    return Known({**there, **dict.fromkeys(missing)}, **more)


def env(*variables: EnvVar, of: Pod | None = None, knows: Known | None = None, **given: Any) -> dict[str, str]:
    ct = container(env=variables, **given)
    return dict(environment(of or pod("p", ct), ct, knows or Known(), NODE, IPS).variables)


def from_field(path: str) -> EnvVar:
    return EnvVar(name="X", value_from=EnvVarSource(field_ref=ObjectFieldSelector(field_path=path)))


def from_config(key: str, name: str = "cm", *, optional: bool = False) -> EnvVar:
    selector = ConfigMapKeySelector(name=name, key=key, optional=optional)
    return EnvVar(name="X", value_from=EnvVarSource(config_map_key_ref=selector))


def from_secret(key: str, name: str = "s", *, optional: bool = False) -> EnvVar:
    selector = SecretKeySelector(name=name, key=key, optional=optional)
    return EnvVar(name="X", value_from=EnvVarSource(secret_key_ref=selector))


# --- $(NAME) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("-$(A)$(B)-", "-12-"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$(C)", "$(C)"),
        ("$A $ (A) $", "$A $ (A) $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$(C$(A))", "$(C$(A))"),  # the name ends at the first bracket
        ("$(A)$", "1$"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


def test_a_variable_sees_what_stands_before_it_and_what_comes_from_objects() -> None:
    found = env(
        EnvVar(name="A", value="$(B) $(FROM)"),
        EnvVar(name="B", value="b"),
        EnvVar(name="C", value="$(B)"),
        env_from=(EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm")),),
        knows=known(config_map(FROM="x")),
    )
    assert found == {"FROM": "x", "A": "$(B) x", "B": "b", "C": "b"}


def test_command_and_arguments_are_expanded_too() -> None:
    ct = container(command=("sh", "$(A)"), args=("$$(A)", "$(HIDDEN)"), env=(EnvVar(name="A", value="1"),))
    made = container_config(pod("p", ct), ct, "infra", 0, 0, env=environment(pod("p", ct), ct, Known(), NODE, IPS))
    assert (made.entrypoint, made.cmd) == (("sh", "1"), ("$(A)", "$(HIDDEN)"))


# --- the pod itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "uid-p"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['podlane.io/x']", "y"),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "192.168.64.11"),
        ("status.hostIPs", "192.168.64.11,fd00::11"),
        ("status.podIP", "10.5.3.2"),
        ("status.podIPs", "10.5.3.2,fd00:5:3::2"),
    ],
)
def test_fields_of_the_pod(path: str, text: str) -> None:
    plain = pod("p")
    meta = msgspec.structs.replace(plain.metadata, labels={"app": "web"}, annotations={"podlane.io/x": "y"})
    assert env(from_field(path), of=msgspec.structs.replace(plain, metadata=meta)) == {"X": text}


def test_whole_maps_are_printed_as_go_does() -> None:
    assert format_map({"b": 'q"\n\u20ac\x00', "a": "1"}) == 'a="1"\nb="q\\"\\n\u20ac\\x00"'


@pytest.mark.parametrize(
    ("resource", "divisor", "text"),
    [
        ("limits.cpu", "", "2"),  # 1500m, rounded up
        ("limits.cpu", "1m", "1500"),
        ("limits.memory", "1Mi", "64"),
        ("limits.memory", "", "67108864"),
        ("requests.cpu", "1m", "250"),
        ("requests.memory", "", "0"),
    ],
)
def test_resources_of_the_container(resource: str, divisor: str, text: str) -> None:
    source = EnvVarSource(resource_field_ref=ResourceFieldSelector(resource=resource, divisor=divisor))
    limits = ResourceRequirements(requests={"cpu": "250m"}, limits={"cpu": "1500m", "memory": "64Mi"})
    assert env(EnvVar(name="X", value_from=source), resources=limits) == {"X": text}


def test_a_limit_that_is_not_set_is_what_the_node_offers() -> None:
    names = ("limits.cpu", "limits.memory")
    cpu, memory = (EnvVarSource(resource_field_ref=ResourceFieldSelector(resource=name)) for name in names)
    found = env(EnvVar(name="C", value_from=cpu), EnvVar(name="M", value_from=memory))
    assert found == {"C": "4", "M": str(7 * 1024**3)}


# --- config maps and secrets ------------------------------------------------------------------------


def test_keys_of_config_maps_and_secrets() -> None:
    objects = known(config_map(k="1"), secret(k="2"))
    assert env(from_config("k"), knows=objects) == {"X": "1"}
    assert env(from_secret("k"), knows=objects) == {"X": "2"}


NO_CM, NO_SECRET = Ref(ConfigMap, "default", "cm"), Ref(Secret, "default", "s")


@pytest.mark.parametrize(
    ("variable", "knows", "text"),
    [
        (from_config("k"), known(missing=(NO_CM,)), 'configmap "cm" not found'),
        (from_secret("k"), known(missing=(NO_SECRET,)), 'secret "s" not found'),
        (from_config("k"), known(config_map(other="1")), "couldn't find key k in ConfigMap default/cm"),
        (from_secret("k"), known(secret(other="1")), "couldn't find key k in Secret default/s"),
    ],
)
def test_what_is_missing_is_named(variable: EnvVar, knows: Known, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{text}$"):
        env(variable, knows=knows)


def test_what_is_optional_may_be_missing_and_leaves_what_was_there() -> None:
    both = (EnvFromSource(config_map_ref=ConfigMapEnvSource(name="base")),)
    objects = known(config_map("base", X="old"), config_map(other="1"), missing=(NO_SECRET,))
    assert env(from_config("k", optional=True), env_from=both, knows=objects) == {"X": "old"}
    assert env(from_secret("k", optional=True), env_from=both, knows=objects) == {"X": "old"}


def test_nothing_is_concluded_before_an_object_was_read() -> None:
    with pytest.raises(NotRead, match='configmap "cm" is not read'):
        env(from_config("k", optional=True))


def test_all_keys_with_a_prefix_and_env_wins() -> None:
    sources = (
        EnvFromSource(prefix="P_", config_map_ref=ConfigMapEnvSource(name="cm")),
        EnvFromSource(secret_ref=SecretEnvSource(name="s")),
        EnvFromSource(secret_ref=SecretEnvSource(name="none", optional=True)),
    )
    objects = known(config_map(a="1", b="2"), secret(c="3", d="4"), missing=(Ref(Secret, "default", "none"),))
    found = env(EnvVar(name="c", value="mine"), env_from=sources, knows=objects)
    assert found == {"P_a": "1", "P_b": "2", "c": "mine", "d": "4"}


def test_keys_that_are_no_names_are_skipped_and_told() -> None:
    ct = container(env_from=(EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm")),))
    odd = msgspec.structs.replace(config_map(), data={"a": "1", "b=c": "2", "\u20ac": "3"})
    made = environment(pod("p", ct), ct, known(odd), NODE, IPS)
    assert made.variables == {"a": "1"}
    assert made.skipped == (
        "Keys [b=c, \u20ac] from the EnvFrom configMap default/cm were skipped since they are considered invalid "
        "environment variable names.",
    )


def test_a_secret_is_not_printed() -> None:
    variables = (from_secret("k"), EnvVar(name="URL", value="http://me:$(X)@host"), EnvVar(name="PLAIN", value="seen"))
    ct = container(env=variables, args=("--password=$(X)",))
    made = environment(pod("p", ct), ct, known(secret(k="hunter2")), NODE, IPS)
    text = str(Create("web", container_config(pod("p", ct), ct, "infra", 0, 0, env=made)))
    assert "hunter2" not in text
    assert "--env X --env URL --env PLAIN=seen web:1 '--password=…'" in text


# --- services ------------------------------------------------------------------------------------------


def service(name: str, ip: str, *ports: ServicePort, **spec: Any) -> Service:
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"), spec=ServiceSpec(cluster_ip=ip, ports=ports, **spec)
    )


WEB = service(
    "my-web", "10.96.0.7", ServicePort(port=80, name="http-main"), ServicePort(port=53, name="dns", protocol="UDP")
)
MASTER = service("kubernetes", "10.96.0.1", ServicePort(port=443, name="https"))
LINKS = {
    "MY_WEB_SERVICE_HOST": "10.96.0.7",
    "MY_WEB_SERVICE_PORT": "80",
    "MY_WEB_SERVICE_PORT_HTTP_MAIN": "80",
    "MY_WEB_SERVICE_PORT_DNS": "53",
    "MY_WEB_PORT": "tcp://10.96.0.7:80",
    "MY_WEB_PORT_80_TCP": "tcp://10.96.0.7:80",
    "MY_WEB_PORT_80_TCP_PROTO": "tcp",
    "MY_WEB_PORT_80_TCP_PORT": "80",
    "MY_WEB_PORT_80_TCP_ADDR": "10.96.0.7",
    "MY_WEB_PORT_53_UDP": "udp://10.96.0.7:53",
    "MY_WEB_PORT_53_UDP_PROTO": "udp",
    "MY_WEB_PORT_53_UDP_PORT": "53",
    "MY_WEB_PORT_53_UDP_ADDR": "10.96.0.7",
}


def links(*services: Service, master: Service | None = None) -> Known:
    return Known(services={"default": services_of(services, master)})


def test_services_as_variables_and_docker_links() -> None:
    assert env(knows=links(WEB)) == LINKS


def test_an_ipv6_service_has_brackets_in_its_url() -> None:
    found = env(knows=links(service("six", "fd00::7", ServicePort(port=80))))
    assert found["SIX_PORT"] == "tcp://[fd00::7]:80"
    assert found["SIX_PORT_80_TCP_ADDR"] == "fd00::7"


def test_services_without_an_address_have_no_variables() -> None:
    headless = service("headless", "None", ServicePort(port=80))
    elsewhere = service("elsewhere", "", ServicePort(port=80), type="ExternalName")
    assert env(knows=links(headless, elsewhere)) == {}


def test_only_the_master_without_service_links() -> None:
    ct = container()
    quiet = pod("p", ct, enable_service_links=False)
    assert env(of=quiet, knows=links(WEB)) == {}
    assert env(of=quiet, knows=links(WEB, master=MASTER))["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert env(knows=links(master=MASTER))["KUBERNETES_PORT_443_TCP_ADDR"] == "10.96.0.1"


def test_own_variables_win_over_services_and_may_refer_to_them() -> None:
    found = env(
        EnvVar(name="MY_WEB_PORT", value="none"),
        EnvVar(name="URL", value="http://$(MY_WEB_SERVICE_HOST):$(MY_WEB_SERVICE_PORT)"),
        knows=links(WEB),
    )
    assert found["MY_WEB_PORT"] == "none"
    assert found["URL"] == "http://10.96.0.7:80"


def test_services_must_be_known_but_what_is_wrong_is_said_before() -> None:
    with pytest.raises(NotRead):
        env(knows=Known(services={}))
    with pytest.raises(ConfigError):
        env(from_config("k"), knows=known(missing=(NO_CM,), services={}))


def test_the_kind_of_container_does_not_matter() -> None:
    first = Container(name="init", image="x", env=(EnvVar(name="A", value="1"),))
    assert dict(environment(pod("p", init_containers=(first,)), first, Known(), NODE, IPS).variables) == {"A": "1"}
