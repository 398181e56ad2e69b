"""A container's environment variables. Pure.

Owns: where each variable comes from, what wins, and $(NAME). Invariants: the
order is Kubernetes': envFrom, then env (which may refer to what stands before
it and to services), then the variables of services that no one named; what
comes from a secret is known by name, so that it is never printed. Source:
makeEnvironmentVariables (pkg/kubelet/kubelet_pods.go), FromServices
(pkg/kubelet/envvars) and third_party/forked/golang/expansion.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from podlane.api import names
from podlane.api.types import ConfigMap, Container, EnvFromSource, EnvVarSource, Pod, Secret, Service
from podlane.errors import PodlaneError
from scheduler.agent.downward import NodeFacts, field_value, resource_value
from scheduler.agent.references import Followed, Known, Ref, Services

MASTER = ("default", "kubernetes")
"""Namespace and name of the service that every pod gets variables of."""
_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


class ConfigError(PodlaneError):
    """A container cannot be made as it is specified: CreateContainerConfigError, with the kubelet's text."""


class NotRead(PodlaneError):
    """Something it depends on has not been read from the store yet."""


class ServicesNotRead(NotRead):
    """Nothing is missing but the services of its namespace."""


@dataclass(frozen=True, slots=True)
class Environment:
    """`hidden` are variables with a secret's value; `skipped` says, for an event, which names could not be used."""

    variables: Mapping[str, str]
    hidden: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = ()


NO_VARIABLES = Environment({})


def environment(pod: Pod, container: Container, known: Known, node: NodeFacts, ips: tuple[str, ...]) -> Environment:
    """The environment of a container about to be made. Raises ConfigError, NotRead."""
    services = service_links(pod, known)
    made = _Maker(pod, container, known, node, ips).make(services or {})
    if services is None:  # not before everything else is right: what is wrong is said at once, and goes on being said
        raise ServicesNotRead("services are not read from the store yet")
    return made


class _Maker:
    def __init__(self, pod: Pod, container: Container, known: Known, node: NodeFacts, ips: tuple[str, ...]) -> None:
        self._pod, self._container, self._known, self._node, self._ips = pod, container, known, node, ips
        self._variables: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._skipped: list[str] = []

    def make(self, services: Mapping[str, str]) -> Environment:
        for source in self._container.env_from:
            self._take_all(source)
        for variable in self._container.env:
            value: str | None = variable.value
            secret = False
            if value:
                value = expand(value, {**services, **self._variables})
                secret = any(f"$({name})" in variable.value for name in self._hidden)
            elif variable.value_from is not None:
                value, secret = self._resolved(variable.value_from)
            if value is not None:
                self._variables[variable.name] = value
                (self._hidden.add if secret else self._hidden.discard)(variable.name)
        return Environment({**services, **self._variables}, frozenset(self._hidden), tuple(self._skipped))

    def _take_all(self, source: EnvFromSource) -> None:
        namespace = self._pod.metadata.namespace
        if source.config_map_ref is not None:
            ref, optional = Ref(ConfigMap, namespace, source.config_map_ref.name), source.config_map_ref.optional
        elif source.secret_ref is not None:
            ref, optional = Ref(Secret, namespace, source.secret_ref.name), source.secret_ref.optional
        else:
            return
        obj = self._object(ref, optional=optional)
        if obj is None:
            return
        invalid = []
        for key in sorted(obj.data):
            name = source.prefix + key
            if names.env_name_error(name):
                invalid.append(name)
                continue
            self._variables[name] = text_of(obj, key)
            (self._hidden.add if ref.kind is Secret else self._hidden.discard)(name)
        if invalid:
            what = "configMap" if ref.kind is ConfigMap else "secret"
            self._skipped.append(
                f"Keys [{', '.join(invalid)}] from the EnvFrom {what} {namespace}/{ref.name} were skipped since they "
                "are considered invalid environment variable names."
            )

    def _resolved(self, source: EnvVarSource) -> tuple[str | None, bool]:
        """The value, None when an optional one is not there, and whether it is secret."""
        try:
            if source.field_ref is not None:
                return field_value(source.field_ref, self._pod, self._node, self._ips), False
            if source.resource_field_ref is not None:
                return resource_value(source.resource_field_ref, self._pod, self._container, self._node), False
        except PodlaneError as error:
            raise ConfigError(str(error)) from error
        namespace = self._pod.metadata.namespace
        if source.config_map_key_ref is not None:
            key = source.config_map_key_ref
            return self._key(Ref(ConfigMap, namespace, key.name), key.key, optional=key.optional), False
        if source.secret_key_ref is not None:
            name = source.secret_key_ref
            return self._key(Ref(Secret, namespace, name.name), name.key, optional=name.optional), True
        return "", False

    def _key(self, ref: Ref, key: str, *, optional: bool) -> str | None:
        obj = self._object(ref, optional=optional)
        if obj is None:
            return None
        if key not in obj.data:
            if optional:
                return None
            raise ConfigError(f"couldn't find key {key} in {ref.kind.KIND} {ref.namespace}/{ref.name}")
        return text_of(obj, key)

    def _object(self, ref: Ref, *, optional: bool) -> Followed | None:
        obj = read(self._known, ref)
        if obj is None and not optional:
            raise ConfigError(f"{ref} not found")
        return obj


def read(known: Known, ref: Ref) -> Followed | None:
    """An object, None when there is none. Raises NotRead."""
    if ref not in known.objects:
        raise NotRead(f"{ref} is not read from the store yet")
    return known.objects[ref]


def text_of(obj: Followed, key: str) -> str:
    """A value as text; bytes that are no text stay what they are, as a variable has them."""
    if isinstance(obj, ConfigMap):
        return obj.data[key]
    return base64.b64decode(obj.data[key]).decode("utf-8", "surrogateescape")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME) of known variables; `$$` is a literal `$`, an unknown name stays as it is."""

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "$"
        return variables.get(name, match[0])

    return _REFERENCE.sub(replacement, text)


# --- services --------------------------------------------------------------------------------


def service_links(pod: Pod, known: Known) -> Mapping[str, str] | None:
    """The variables of services that a pod starting now gets; None: they are not read yet."""
    if known.services is None:
        return {}
    services = known.services.get(pod.metadata.namespace)
    if services is None:
        return None
    return {**services.master, **services.links} if pod.spec.enable_service_links else services.master


def services_of(listed: Iterable[Service], master: Service | None) -> Services:
    """A namespace's services, and the one every pod gets, as variables."""
    return Services(
        links=_variables(sorted(listed, key=lambda service: service.metadata.name)),
        master=_variables([master] if master is not None else []),
    )


def _variables(services: Iterable[Service]) -> dict[str, str]:
    result: dict[str, str] = {}
    for service in services:
        spec = service.spec
        if not spec.ports or spec.cluster_ip in {"", "None"} or spec.type == "ExternalName":
            continue
        name, host = _variable_name(service.metadata.name), spec.cluster_ip
        result[f"{name}_SERVICE_HOST"] = host
        result[f"{name}_SERVICE_PORT"] = str(spec.ports[0].port)
        for port in spec.ports:
            if port.name:
                result[f"{name}_SERVICE_PORT_{_variable_name(port.name)}"] = str(port.port)
        shown = f"[{host}]" if ":" in host else host
        for index, port in enumerate(spec.ports):
            protocol = port.protocol
            url = f"{protocol.lower()}://{shown}:{port.port}"
            if index == 0:
                result[f"{name}_PORT"] = url
            prefix = f"{name}_PORT_{port.port}_{protocol}"
            result[prefix] = url
            result[f"{prefix}_PROTO"] = protocol.lower()
            result[f"{prefix}_PORT"] = str(port.port)
            result[f"{prefix}_ADDR"] = host
    return result


def _variable_name(text: str) -> str:
    return text.replace("-", "_").upper()
