"""The text of `describe` for the containers of a pod or a template.

Pure, as description.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from podlane.api.types import (
    Container,
    ContainerPort,
    ContainerState,
    ContainerStatus,
    EnvFromSource,
    EnvVar,
    LifecycleHandler,
    PodSpec,
    Probe,
    VolumeMount,
)
from podlane.cli.description_lines import Lines, indented
from podlane.runtime.text import NONE, rfc1123

_WIDTH = 16


def containers(spec: PodSpec, statuses: Sequence[ContainerStatus], initial: Sequence[ContainerStatus] = ()) -> Lines:
    """All of them; `initial` are the statuses of the init containers."""
    for title, each, known in (
        ("Init Containers", spec.init_containers, initial),
        ("Containers", spec.containers, statuses),
    ):
        by_name = {status.name: status for status in known}
        if each:
            yield f"{title}:"
        for container in each:
            yield f"  {container.name}:"
            yield from indented(_container(container, by_name.get(container.name)), 4)


def _line(name: str, value: object) -> str:
    return f"{name + ':':<{_WIDTH}}{value}"


def _container(container: Container, status: ContainerStatus | None) -> Lines:
    if status is not None and status.container_id:
        yield _line("Container ID", status.container_id)
    yield _line("Image", container.image)
    yield from _ports(container.ports)
    for name, words in (("Command", container.command), ("Args", container.args)):
        if words:
            yield f"{name}:"
            yield from indented(words)
    if status is not None:
        yield from _state("State", status.state)
        last = status.last_state
        if last.terminated is not None or last.running is not None:
            yield from _state("Last State", last)
        yield _line("Ready", status.ready)
        yield _line("Restart Count", status.restart_count)
    for name, amounts in (("Limits", container.resources.limits), ("Requests", container.resources.requests)):
        if amounts:
            yield f"{name}:"
            yield from indented(f"{key + ':':<14}{amounts[key]}" for key in sorted(amounts))
    yield from _probes_and_hooks(container)
    yield from _environment(container)
    if container.volume_mounts:
        yield "Mounts:"
        yield from indented(map(_mount, container.volume_mounts))


def _ports(ports: Sequence[ContainerPort]) -> Lines:
    many = "s" if len(ports) > 1 else ""
    yield _line(f"Port{many}", ", ".join(f"{port.container_port}/{port.protocol}" for port in ports) or NONE)
    if any(port.host_port for port in ports):
        yield _line(f"Host Port{many}", ", ".join(f"{port.host_port}/{port.protocol}" for port in ports))


def _state(name: str, state: ContainerState) -> Lines:
    if state.running is not None:
        yield _line(name, "Running")
        yield f"  Started:      {rfc1123(state.running.started_at)}"
    elif state.terminated is not None:
        ended = state.terminated
        yield _line(name, "Terminated")
        yield f"  Reason:       {ended.reason or NONE}"
        if ended.message:
            yield f"  Message:      {ended.message}"
        yield f"  Exit Code:    {ended.exit_code}"
        if ended.signal:
            yield f"  Signal:       {ended.signal}"
        yield f"  Started:      {rfc1123(ended.started_at)}"
        yield f"  Finished:     {rfc1123(ended.finished_at)}"
    else:
        waiting = state.waiting
        yield _line(name, "Waiting")
        if waiting is not None and waiting.reason:
            yield f"  Reason:       {waiting.reason}"
        if waiting is not None and waiting.message:
            yield f"  Message:      {waiting.message}"


def _probes_and_hooks(container: Container) -> Lines:
    for name, probe in (
        ("Liveness", container.liveness_probe),
        ("Readiness", container.readiness_probe),
        ("Startup", container.startup_probe),
    ):
        if probe is not None:
            yield _line(name, probe_text(probe))
    if container.lifecycle is not None:
        for name, hook in (("PostStart", container.lifecycle.post_start), ("PreStop", container.lifecycle.pre_stop)):
            if hook is not None:
                yield _line(name, hook_text(hook))


def probe_text(probe: Probe) -> str:
    """`http-get http://:8080/ delay=0s timeout=1s period=10s #success=1 #failure=3`."""
    how = f"grpc <pod>:{probe.grpc.port} {probe.grpc.service}" if probe.grpc is not None else _action_text(probe)
    return (
        f"{how} delay={probe.initial_delay_seconds}s timeout={probe.timeout_seconds}s "
        f"period={probe.period_seconds}s #success={probe.success_threshold} #failure={probe.failure_threshold}"
    )


def hook_text(hook: LifecycleHandler) -> str:
    """`exec [sh -c bye]`, `sleep 5s`."""
    return f"sleep {hook.sleep.seconds}s" if hook.sleep is not None else _action_text(hook)


def _action_text(said: Probe | LifecycleHandler) -> str:
    if said.http_get is not None:
        get = said.http_get
        return f"http-get {get.scheme.lower()}://{get.host}:{get.port}{get.path}"
    if said.tcp_socket is not None:
        return f"tcp-socket {said.tcp_socket.host}:{said.tcp_socket.port}"
    return f"exec [{' '.join(said.exec.command) if said.exec else ''}]"


def _environment(container: Container) -> Lines:
    if container.env_from:
        yield "Environment Variables from:"
        yield from indented(map(_env_from, container.env_from))
    if not container.env:
        yield _line("Environment", NONE)
        return
    yield "Environment:"
    yield from indented(f"{variable.name}: {_env_value(variable)}" for variable in container.env)


def _env_from(source: EnvFromSource) -> str:
    prefix = f" with prefix '{source.prefix}'" if source.prefix else ""
    kind, reference = ("ConfigMap", source.config_map_ref) if source.config_map_ref else ("Secret", source.secret_ref)
    name, optional = (reference.name, reference.optional) if reference is not None else ("", False)
    return f"{name}  {kind}{prefix}  Optional: {str(optional).lower()}"


def _env_value(variable: EnvVar) -> str:
    source = variable.value_from
    if source is None:
        return variable.value
    if source.field_ref is not None:
        return f"({source.field_ref.api_version}:{source.field_ref.field_path})"
    if source.resource_field_ref is not None:
        of = source.resource_field_ref
        return f"({of.resource}{f' of {of.container_name}' if of.container_name else ''})"
    if source.config_map_key_ref is not None:
        key = source.config_map_key_ref
        return f"<set to the key '{key.key}' of config map '{key.name}'>  Optional: {str(key.optional).lower()}"
    if source.secret_key_ref is not None:
        secret = source.secret_key_ref
        return f"<set to the key '{secret.key}' in secret '{secret.name}'>  Optional: {str(secret.optional).lower()}"
    return NONE


def _mount(mount: VolumeMount) -> str:
    """`/data from scratch (rw,path="a")`."""
    path = f',path="{mount.sub_path}"' if mount.sub_path else ""
    return f"{mount.mount_path} from {mount.name} ({'ro' if mount.read_only else 'rw'}{path})"
