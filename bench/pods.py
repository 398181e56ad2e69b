"""How fast pods start, are reachable, and are replaced, on a lab of three hosts."""

from __future__ import annotations

import functools
import http.client
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.lab import BenchLabError, Watched, bench_lab
from bench.rows import Benchmark, Declared, Measured, Progress, percentile
from podlane.api.meta import is_pod_ready
from podlane.api.types import Pod, Service
from podlane.lab import network
from podlane.lab.images import WEB_IMAGE
from podlane.runtime.command import run

PODS = 30
START_ROUNDS = 3
PROPAGATION_ROUNDS = 12
REPLACE_ROUNDS = 5
DEAD_HOST_ROUNDS = 2
SETTLE = 3.0  # seconds the kernel gets to free what a round leaves behind
DOCKER_PARALLEL = 4  # on each host, as a person's script would
BY_HAND_NETWORK = "byhand"
BY_HAND_SUBNET = "172.30.0.0/24"  # the lab's are 192.168.64.0/24, 10.244.0.0/16 and 10.96.0.0/16


def controller(app: str, replicas: int) -> dict[str, object]:
    """The example controller under another name, without requests, so that any number fits."""
    probe = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1}
    container = {
        "name": "web",
        "image": WEB_IMAGE,
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": probe,
    }
    template = {
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 2},
    }
    spec = {"replicas": replicas, "selector": {"app": app}, "template": template}
    return {"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": app}, "spec": spec}


def service(app: str) -> dict[str, object]:
    spec = {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": app}, "spec": spec}


def apply(watched: Watched, *objects: dict[str, object]) -> float:
    """`podlane apply` them, as an operator does; returns when the command was started."""
    with tempfile.TemporaryDirectory() as folder:
        for number, obj in enumerate(objects):
            (Path(folder) / f"{number}.json").write_bytes(msgspec.json.encode(obj))
        begin = time.monotonic()
        watched.lab.podlane("apply", "-f", folder)
    return begin


def remove(watched: Watched, app: str) -> None:
    """Delete the controller (and service) of this name and wait until its pods are gone."""
    watched.lab.podlane("delete", "rc", app)
    watched.lab.podlane("delete", "service", app, "--ignore-not-found")
    watched.wait(f"pods of {app} gone", lambda: not watched.pods(app))


# --- start -------------------------------------------------------------------------


def measure_start(watched: Watched, say: Progress) -> Iterator[Measured]:
    """30 pods at once, from the start of `podlane apply`; a round's percentiles are over its pods."""
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    for turn in range(START_ROUNDS):
        app = f"start{turn}"
        begin = apply(watched, controller(app, PODS))
        watched.wait("30 pods ready", functools.partial(_all_ready, watched, app, PODS))
        ours.append([watched.ready_at[p.metadata.uid].at - begin for p in watched.pods(app)])
        remove(watched, app)
        time.sleep(SETTLE)
        theirs.append(by_hand(watched))
        time.sleep(SETTLE)
        say(f"round {turn + 1} of {START_ROUNDS}: all after {max(ours[-1]):.2f} s, by hand {max(theirs[-1]):.2f} s")
    for percent in (50, 99):
        yield Measured.median(
            f"pods.start_p{percent}",
            [percentile(seconds, percent) for seconds in ours],
            peer="docker run of 30 such pairs",
            peer_samples=[percentile(seconds, percent) for seconds in theirs],
        )


@contextmanager
def docker_network(watched: Watched) -> Iterator[None]:
    """On each host, a bridge network of Docker's own making, as a person would create."""
    sockets = [["docker", "-H", f"unix://{watched.topology.docker_socket(host)}"] for host in watched.nodes]
    for docker in sockets:
        run([*docker, "network", "create", "--subnet", BY_HAND_SUBNET, BY_HAND_NETWORK], timeout=60)
    try:
        yield
    finally:
        for docker in sockets:
            run([*docker, "network", "rm", BY_HAND_NETWORK], timeout=60)


def by_hand(watched: Watched) -> list[float]:
    """The same pairs of containers (network holder, web) with the docker command, until the web one answers."""
    with docker_network(watched):
        return _by_hand(watched)


def _by_hand(watched: Watched) -> list[float]:
    begin = time.monotonic()

    def pair(number: int) -> float:
        host = watched.nodes[number % len(watched.nodes)]
        docker = ["docker", "-H", f"unix://{watched.topology.docker_socket(host)}"]
        name = f"byhand-{number}"
        holder = ["--name", name, "--network", BY_HAND_NETWORK, WEB_IMAGE, "sleep", "1000"]
        run([*docker, "run", "-d", *holder], timeout=60)
        run([*docker, "run", "-d", "--name", f"{name}-web", "--network", f"container:{name}", WEB_IMAGE], timeout=60)
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        ip = run([*docker, "inspect", "-f", form, name], timeout=30).stdout.strip()
        with network.inside(watched.topology.netns(host)):
            while not _answers(ip, 8080):
                time.sleep(0.02)
        return time.monotonic() - begin

    with ThreadPoolExecutor(DOCKER_PARALLEL * len(watched.nodes)) as pool:
        seconds = list(pool.map(pair, range(PODS)))
    for host in watched.nodes:
        docker = ["docker", "-H", f"unix://{watched.topology.docker_socket(host)}"]
        names = run([*docker, "ps", "-aq", "--filter", "name=byhand-"], timeout=30).stdout.split()
        run([*docker, "rm", "-f", *names], timeout=120)
    return seconds


def _all_ready(watched: Watched, app: str, count: int) -> bool:
    pods = watched.pods(app)
    return len(pods) == count and all(p.metadata.uid in watched.ready_at for p in pods)


def _answers(address: str, port: int, timeout: float = 0.2) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# --- propagation -----------------------------------------------------------------------


def measure_propagation(watched: Watched, say: Progress) -> Iterator[Measured]:
    """One pod behind one service: from the pod seen ready to an answer through the service, on each host."""
    samples: list[float] = []
    for turn in range(PROPAGATION_ROUNDS):
        app = f"prop{turn}"
        apply(watched, service(app))
        address = watched.registry.get(Service, "default", app).spec.cluster_ip
        answered: dict[str, float] = {}
        stop = threading.Event()
        pollers = [
            threading.Thread(target=_first_answer, args=(watched, h.name, address, answered, stop), daemon=True)
            for h in watched.nodes
        ]
        for poller in pollers:
            poller.start()
        try:
            apply(watched, controller(app, 1))
            watched.wait("one pod ready", functools.partial(_all_ready, watched, app, 1))
            for poller in pollers:
                poller.join(20)
        finally:
            stop.set()
        if len(answered) != len(watched.nodes):
            raise BenchLabError(f"{app}: reached only from {', '.join(answered) or 'nowhere'} after 20 s")
        ready = watched.ready_at[watched.pods(app)[0].metadata.uid].at
        samples += [max(0.0, at - ready) for at in answered.values()]
        remove(watched, app)
    say(f"{len(samples)} samples, median {statistics.median(samples) * 1000:.0f} ms")
    yield Measured("pods.propagation_p99", percentile(samples, 99), PROPAGATION_ROUNDS)


def _first_answer(watched: Watched, host: str, address: str, answered: dict[str, float], stop: threading.Event) -> None:
    network.enter(watched.topology.netns(host))
    while not stop.is_set():
        if _answers(address, 80):
            answered[host] = time.monotonic()
            return
        time.sleep(0.004)


# --- replacement -------------------------------------------------------------------------


def measure_replace(watched: Watched, say: Progress) -> Iterator[Measured]:
    """From SIGKILL of a container to its pod being ready with a new one; the peer is Docker's own restart policy."""
    apply(watched, controller("replace", REPLACE_ROUNDS))
    watched.wait("pods ready", functools.partial(_all_ready, watched, "replace", REPLACE_ROUNDS))
    time.sleep(1)
    ours = [_replaced(watched, pod) for pod in sorted(watched.pods("replace"), key=lambda p: p.metadata.name)]
    remove(watched, "replace")
    with docker_network(watched):
        theirs = [_restarted(watched, number) for number in range(REPLACE_ROUNDS)]
    say(f"{statistics.median(ours):.2f} s, docker's restart policy {statistics.median(theirs):.2f} s")
    yield Measured.median("pods.replace_container", ours, peer="docker --restart=always", peer_samples=theirs)


def _replaced(watched: Watched, pod: Pod) -> float:
    name = pod.metadata.name
    container = pod.status.container_statuses[0].container_id.removeprefix("docker://")
    socket = watched.topology.docker_socket(pod.spec.node_name)
    pid = run(["docker", "-H", f"unix://{socket}", "inspect", "-f", "{{.State.Pid}}", container], timeout=20).stdout
    begin = time.monotonic()
    subprocess.run(["kill", "-KILL", pid.strip()], check=True)

    def again() -> bool:
        now = next((p for p in watched.pods("replace") if p.metadata.name == name), None)
        return now is not None and is_pod_ready(now) and now.status.container_statuses[0].restart_count > 0

    return watched.wait(f"{name} ready again", again) - begin


def _restarted(watched: Watched, number: int) -> float:
    host = watched.nodes[0]
    docker = ["docker", "-H", f"unix://{watched.topology.docker_socket(host)}"]
    name = f"byhand-restart-{number}"
    web = ["--name", name, "--network", BY_HAND_NETWORK, WEB_IMAGE]
    run([*docker, "run", "-d", "--restart=always", *web], timeout=60)
    form = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    try:
        pid, ip = run([*docker, "inspect", "-f", form, name], timeout=20).stdout.split()
        with network.inside(watched.topology.netns(host)):
            while not _answers(ip, 8080):
                time.sleep(0.01)
            time.sleep(1)
            begin = time.monotonic()
            subprocess.run(["kill", "-KILL", pid], check=True)
            while _pid(docker, name) in (pid, "0") or not _answers(_ip(docker, name), 8080):
                time.sleep(0.01)
            return time.monotonic() - begin
    finally:
        run([*docker, "rm", "-f", name], timeout=60)


def _pid(docker: list[str], name: str) -> str:
    return run([*docker, "inspect", "-f", "{{.State.Pid}}", name], timeout=20).stdout.strip()


def _ip(docker: list[str], name: str) -> str:
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return run([*docker, "inspect", "-f", form, name], timeout=20).stdout.strip()


# --- a dead host --------------------------------------------------------------------------


def measure_dead_host(watched: Watched, say: Progress) -> Iterator[Measured]:
    """From a host cut off to all replicas being ready on the others, with default settings."""
    samples: list[float] = []
    apply(watched, controller("dead", 6))
    watched.wait("pods ready", functools.partial(_all_ready, watched, "dead", 6))
    for turn in range(DEAD_HOST_ROUNDS):
        victim = watched.nodes[turn % len(watched.nodes)]

        def elsewhere(victim: str = victim.name) -> bool:
            pods = [p for p in watched.pods("dead") if is_pod_ready(p) and p.metadata.deletion_timestamp is None]
            return len(pods) == 6 and all(p.spec.node_name != victim for p in pods)

        begin = time.monotonic()
        network.cut(watched.topology, victim)
        try:
            samples.append(watched.wait("6 pods ready elsewhere", elsewhere) - begin)
        finally:
            network.join(watched.topology, victim)
        say(f"round {turn + 1} of {DEAD_HOST_ROUNDS}: {samples[-1]:.1f} s")
        watched.wait("the host is back", functools.partial(watched.node_ready, victim))
    remove(watched, "dead")
    yield Measured.median("pods.dead_host", samples)


def measure(say: Progress) -> Iterable[Measured]:
    with bench_lab(say) as watched:
        yield from measure_start(watched, say)
        yield from measure_propagation(watched, say)
        yield from measure_replace(watched, say)
        yield from measure_dead_host(watched, say)


BENCHMARKS = (
    Benchmark(
        "pods",
        (
            Declared("pods.start_p50", "seconds", "apply → ready, 30 pods at once on three hosts, image present"),
            Declared("pods.start_p99", "seconds", "the same, 99th percentile", aim=3.0),
            Declared("pods.propagation_p99", "seconds", "pod ready → reachable by its service on every host", aim=0.2),
            Declared("pods.replace_container", "seconds", "container killed → its pod ready again"),
            Declared("pods.dead_host", "seconds", "host cut off → its pods ready elsewhere", aim=20.0),
        ),
        measure,
    ),
)
