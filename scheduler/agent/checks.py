"""Asking a container: the ways a probe, and some of them a lifecycle hook, has to do it.

Owns: HTTP(S) with its redirects, TCP, exec and gRPC health. Invariants: every
question ends by its timeout; whatever goes wrong is an answer with a reason.
They go from the node's network to the pod's address. As in Kubernetes a
certificate is not verified, and a redirect is followed up to ten times on the
same host; one that leads to another host counts as an answer, with a warning.
Source: Kubernetes' pkg/probe/{http,tcp,exec,grpc}, grpc/health/v1/health.proto
(its two messages have one field each, so they are written by hand).
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from podlane.api.types import Container, HTTPGetAction, TCPSocketAction
from scheduler.agent.probestate import Target
from scheduler.agent.runtime import Runtime, RuntimeRefused, RuntimeUnavailable

Answer = tuple[bool, str]
"""Whether it went well, and if not, why; if it did, what is to be warned of."""

_SHOWN = 200
_REDIRECTS = 10
_FOLLOWED = {301, 302, 303, 307, 308}
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = 1
_STATUSES = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def checker(runtime: Runtime) -> Callable[[Target], Answer]:
    """Really ask a container."""

    def check(target: Target) -> Answer:
        try:
            return _ask(runtime, target)
        except TimeoutError:
            return False, f"no answer within {target.probe.timeout_seconds} s"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return False, (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)

    return check


def _ask(runtime: Runtime, target: Target) -> Answer:
    probe, ct, timeout = target.probe, target.container, target.probe.timeout_seconds
    if probe.http_get is not None:
        return http_get(probe.http_get, ct, target.ip, timeout)
    if probe.tcp_socket is not None:
        return tcp_socket(probe.tcp_socket, ct, target.ip, timeout)
    if probe.exec is not None:
        return run(runtime, target.id, probe.exec.command, timeout)
    if probe.grpc is not None:
        return grpc_health(probe.grpc.port, probe.grpc.service, target.ip, timeout)
    return True, ""


def port_number(container: Container, port: int | str) -> int:
    """A port given as a number or by the name of one of the container's ports. Raises ValueError."""
    if isinstance(port, int):
        return port
    for known in container.ports:
        if known.name == port:
            return known.container_port
    if port.isdecimal():
        return int(port)
    raise ValueError(f'container {container.name} has no port named "{port}"')


def tcp_socket(action: TCPSocketAction, container: Container, ip: str, timeout: float) -> Answer:
    """Raises OSError, ValueError."""
    address = (action.host or ip, port_number(container, action.port))
    socket.create_connection(address, timeout=timeout).close()
    return True, ""


def run(runtime: Runtime, identity: str, command: tuple[str, ...], timeout: float) -> Answer:
    """Raises TimeoutError."""
    try:
        result = runtime.exec(identity, command, timeout)
    except (RuntimeRefused, RuntimeUnavailable) as error:
        return False, str(error)
    if result.exit_code == 0:
        return True, ""
    said = result.output.decode("utf-8", "replace").strip()[:_SHOWN]
    return False, said or f"exit code {result.exit_code}"


def http_get(action: HTTPGetAction, container: Container, ip: str, timeout: float) -> Answer:
    """Raises OSError, HTTPException, ValueError."""
    host, port = action.host or ip, port_number(container, action.port)
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = action.path if action.path.startswith("/") else f"/{action.path}"
    url = f"{action.scheme.lower()}://{netloc}{path}"
    headers = {"User-Agent": "podlane-probe/1", "Accept": "*/*", "Connection": "close"}
    for header in action.http_headers:
        headers = {name: value for name, value in headers.items() if name.lower() != header.name.lower()}
        if header.value or header.name.lower() not in {"user-agent", "accept"}:  # empty: not sent at all
            headers[header.name] = header.value
    deadline = time.monotonic() + timeout
    for _ in range(_REDIRECTS):
        status, location = _request(urlsplit(url), headers, deadline)
        if status not in _FOLLOWED or not location:
            if 200 <= status < 400:
                return True, ""
            return False, f"HTTP probe failed with statuscode: {status}"
        before, url = urlsplit(url), urljoin(url, location)
        after = urlsplit(url)
        if after.scheme not in {"http", "https"} or after.hostname != before.hostname:
            return True, f"Probe terminated redirects, Location: {location[:_SHOWN]}"
        headers.pop("Host", None)
    return False, f"stopped after {_REDIRECTS} redirects"


def _request(url: SplitResult, headers: dict[str, str], deadline: float) -> tuple[int, str]:
    """The status and the Location of an answer; its body is nobody's business."""
    timeout = deadline - time.monotonic()
    if timeout <= 0:
        raise TimeoutError
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
    try:
        connection.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""), headers=headers)
        response = connection.getresponse()
        return response.status, response.headers.get("Location", "")
    finally:
        connection.close()


def grpc_health(port: int, service: str, ip: str, timeout: float) -> Answer:
    import grpc

    address = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        check = channel.unary_unary(_HEALTH_CHECK, request_serializer=None, response_deserializer=None)
        try:
            answer: bytes = check(health_request(service), timeout=timeout)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return False, f'timeout: failed to connect service "{address}" within {timeout}s'
            if code is grpc.StatusCode.UNIMPLEMENTED:
                return False, "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
            told = error.details() if isinstance(error, grpc.Call) else str(error)
            return False, f"health rpc failed: {told}"
    status = health_status(answer)
    if status == _SERVING:
        return True, ""
    return False, f'service unhealthy (responded with "{_STATUSES.get(status, status)}")'


def health_request(service: str) -> bytes:
    """HealthCheckRequest: field 1 is a string."""
    name = service.encode()
    return b"" if not name else b"\x0a" + _varint(len(name)) + name


def health_status(answer: bytes) -> int:
    """Of a HealthCheckResponse: field 1 is a small number; one that is missing is 0."""
    return answer[1] if len(answer) >= 2 and answer[0] == 0x08 else 0


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(0x80 | number & 0x7F)
        number >>= 7
    digits.append(number)
    return bytes(digits)
