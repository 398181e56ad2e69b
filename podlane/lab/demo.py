"""The main job, shown: four replicas behind one service address, kept so through faults.

Each step does what an operator would type (and prints it), then measures what
became of it from outside: requests sent from every host go on during the
faults, and what is claimed at the end of a step is what they met. Raises
LabError when a step does not come out as promised.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from podlane.api.meta import is_pod_ready
from podlane.api.network import parse_config
from podlane.api.subnets import config_key
from podlane.api.types import Node, Pod, Service
from podlane.lab import network, traffic
from podlane.lab.cluster import Lab, LabError
from podlane.lab.picture import draw
from podlane.lab.topology import DEFAULT_NAME, Host
from podlane.runtime.clock import SystemClock
from podlane.runtime.command import run
from podlane.store.config import connect
from podlane.store.registry import Registry

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SERVICE = "web"
NODE_PORT_SERVICE = "web-nodeport"
REQUESTS_PER_HOST = 40


class Demo:
    """One run; `say` prints. The calling process is moved into the lab's underlay for good."""

    def __init__(self, lab: Lab, say: Callable[[str], None]) -> None:
        self.lab, self._say = lab, say
        network.enter(lab.topology.underlay)
        self._store = connect(lab.topology.store_config())
        self._registry = Registry(self._store, clock=SystemClock())
        self._nodes = [h for h in lab.topology.hosts if h.role == "node"]

    def run(self) -> None:
        """All steps in order; about a minute."""
        try:
            self._apply()
            address = self._spread()
            self._outside()
            sources = {h.name: self.lab.topology.netns(h) for h in self._nodes}
            with traffic.Traffic(sources, address, 80) as requests:
                time.sleep(1)
                self._steady(requests.mark())
                self._kill_container(requests)
            if len(self._nodes) > 1:
                self._cut_host(address)
            with traffic.Traffic(sources, address, 80) as requests:
                self._scale(requests)
            self._finish()
        finally:
            self._store.close()

    # --- steps --------------------------------------------------------------

    def _apply(self) -> None:
        self._title("Describe a pod, say four of these, give them one address")
        begin = time.monotonic()
        for name in ("web-pod.yaml", "web-controller.yaml", "web-service.yaml"):
            self._command("apply", "-f", f"{EXAMPLES / name}", shown=f"apply -f docs/examples/{name}")
        self._command("scale", "rc/web", "--replicas=4")
        self._wait("4 web pods are ready", lambda: len(self._ready()) == 4 and self._all_settled())
        self._say(f"  all ready {time.monotonic() - begin:.1f} s after the first command")
        self._command("get", "pods", "-o", "wide")
        self._command("get", "services")

    def _spread(self) -> str:
        self._title("Ask the one address from every host")
        service = self._registry.get(Service, "default", SERVICE)
        address = service.spec.cluster_ip
        subnets = {p.status.pod_ip.rpartition(".")[0] for p in self._ready()}
        self._say(f"  the pods have addresses from {len(subnets)} subnets; {REQUESTS_PER_HOST} requests a host:")
        self._wait("every host reaches all four", lambda: all(self._reached(h, address) == 4 for h in self._nodes))
        for host in self._nodes:
            self._ask(self.lab.topology.netns(host), host.name, address, 80)
        return address

    def _outside(self) -> None:
        self._title("Ask from outside, at any host")
        self._command(
            "apply", "-f", str(EXAMPLES / "web-nodeport.yaml"), shown="apply -f docs/examples/web-nodeport.yaml"
        )
        self._command("get", "services")
        port = self._registry.get(Service, "default", NODE_PORT_SERVICE).spec.ports[0].node_port
        nodes = self._nodes
        self._wait(
            f"every host answers at port {port}",
            lambda: all(traffic.ask("client", host.address, port, tries=1).backend for host in nodes),
        )
        for host in nodes:
            self._ask(self.lab.topology.underlay, "client", host.address, port)

    def _steady(self, summary: traffic.Summary) -> None:
        self._say(f"\n  requests from every host go on in the background ({summary})")
        if summary.failed or summary.retried:
            raise LabError(f"demo: requests failed though nothing was wrong: {summary.late}")

    def _kill_container(self, requests: traffic.Traffic) -> None:
        victim = self._ready()[0]
        before = _restarts(victim)
        name = victim.metadata.name
        self._title(f"Kill the container of {name} on {victim.spec.node_name}")
        container = victim.status.container_statuses[0].container_id.removeprefix("docker://")
        socket = self.lab.topology.docker_socket(victim.spec.node_name)
        self._say(f"  $ docker kill {container[:12]}")
        run(["docker", "-H", f"unix://{socket}", "kill", container], timeout=30)
        seconds = self._wait(
            f"{name} runs again",
            lambda: (
                any(p.metadata.name == name and _restarts(p) > before for p in self._ready())
                and len(self._ready()) == 4
            ),
        )
        time.sleep(0.5)
        self._outcome(f"4 of 4 ready again after {seconds:.1f} s", requests.mark())

    def _cut_host(self, address: str) -> None:
        victim = self.lab.topology.host(self._ready()[0].spec.node_name)
        self._title(f"Cut {victim.name} off the network")
        others = {h.name: self.lab.topology.netns(h) for h in self._nodes if h != victim}
        self._say(f"  $ podlane lab fault cut {victim.name}")
        with traffic.Traffic(others, address, 80) as requests:
            network.cut(self.lab.topology, victim)
            try:
                seconds = self._wait(
                    "4 pods are ready on the other hosts",
                    lambda: (
                        len([p for p in self._ready() if p.spec.node_name != victim.name]) == 4
                        and not any(p.spec.node_name == victim.name for p in self._pods())
                    ),
                    timeout=60,
                )
                time.sleep(0.5)
                self._outcome(f"4 of 4 ready on the other hosts after {seconds:.1f} s", requests.mark())
                self._command("get", "nodes")
            finally:
                network.join(self.lab.topology, victim)
            self._say(f"  $ podlane lab fault join {victim.name}")
            seconds = self._wait(f"{victim.name} is Ready again", lambda: self._node_ready(victim), timeout=60)
            self._outcome(f"{victim.name} is back after {seconds:.1f} s", requests.mark())
        self._wait("every host reaches all four", lambda: all(self._reached(h, address) == 4 for h in self._nodes))

    def _scale(self, requests: traffic.Traffic) -> None:
        self._title("Four become eight, eight become two")
        for count in (8, 2):
            requests.mark()
            self._command("scale", "rc/web", f"--replicas={count}")
            seconds = self._wait(
                f"{count} web pods are ready",
                lambda: len(self._ready()) == count and self._all_settled(),  # noqa: B023 - used within the turn
                timeout=60,
            )
            time.sleep(0.3)
            self._outcome(f"{count} of {count} after {seconds:.1f} s", requests.mark())

    def _finish(self) -> None:
        self._title("What there is now")
        self._say(self.picture())
        lab = f" --lab {self.lab.topology.name}" if self.lab.topology.name != DEFAULT_NAME else ""
        named = lab.replace("--lab", "--name")
        self._say(
            f"""
  The lab goes on running. To try next, as root:
    . .venv/bin/activate                   so that the shell knows podlane
    podlane{lab} get pods -o wide -w            watch the pods
    podlane{lab} scale rc/web --replicas=6      say six of these
    podlane{lab} describe rc web                what happened, and why
    podlane{lab} exec -it NAME -- sh            a shell in a pod
    podlane lab exec{named} node1 -- ip route     look around on a host
    podlane lab fault cut{named} node1            be the fault (join undoes it)
    podlane lab status{named}                     the daemons and their logs
    podlane lab down{named}                       remove it all"""
        )

    def picture(self) -> str:
        """The lab as it is now."""
        config = self._store.get(config_key("/coreos.com/network"))
        network_line = f"  pod network {parse_config(config.value).network}" if config else ""
        nodes = self._registry.list(Node).items
        subnets = {n.metadata.name: n.spec.pod_cidr for n in nodes}
        services = self._registry.list(Service, "default").items
        return "\n".join([network_line, draw(nodes, self._pods(everything=True), services, subnets)])

    # --- looking ------------------------------------------------------------------

    def _pods(self, *, everything: bool = False) -> list[Pod]:
        pods = self._registry.list(Pod, "default").items
        return [
            p for p in pods if everything or (p.metadata.labels.get("app") == "web" and p.metadata.owner_references)
        ]

    def _ready(self) -> list[Pod]:
        return [p for p in self._pods() if is_pod_ready(p) and p.metadata.deletion_timestamp is None]

    def _all_settled(self) -> bool:
        return all(is_pod_ready(p) and p.metadata.deletion_timestamp is None for p in self._pods(everything=True))

    def _node_ready(self, host: Host) -> bool:
        node = self._registry.get(Node, "", host.name)
        return any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)

    def _reached(self, host: Host, address: str) -> int:
        answers = traffic.ask_from(self.lab.topology.netns(host), host.name, address, 80, count=20, tries=1)
        return len({a.backend for a in answers if a.backend})

    def _ask(self, netns: str, name: str, address: str, port: int) -> None:
        """Some requests, told by the pods that answered them. Raises LabError when one was not answered."""
        answers = traffic.ask_from(netns, name, address, port, count=REQUESTS_PER_HOST, tries=1)
        summary = traffic.summarize(answers)
        spread = "  ".join(f"{pod}: {count}" for pod, count in summary.backends.items())
        shown = address if port == 80 else f"{address}:{port}"
        self._say(f"  {name} → {shown}   {spread}")
        if summary.failed:
            raise LabError(f"demo: {summary.failed} requests from {name} to {shown} failed: {summary.late}")

    # --- telling --------------------------------------------------------------------

    def _title(self, text: str) -> None:
        self._say(f"\n━━ {text}")

    def _command(self, *arguments: str, shown: str = "") -> None:
        self._say(f"  $ podlane {shown or ' '.join(arguments)}")
        for line in self.lab.podlane(*arguments).rstrip().splitlines():
            self._say(f"    {line}")

    def _outcome(self, what: str, summary: traffic.Summary) -> None:
        self._say(f"  {what}; meanwhile {summary}")
        if summary.failed:
            raise LabError(f"demo: {summary.failed} requests were never answered: {summary.late}")

    def _wait(self, what: str, done: Callable[[], bool], *, timeout: float = 30.0) -> float:
        """Poll until `done`; return the seconds it took, or raise LabError with the pods' state."""
        begin = time.monotonic()
        while not done():
            if time.monotonic() - begin > timeout:
                state = self.lab.podlane("get", "pods", "-o", "wide")
                raise LabError(f"demo: waited {timeout:.0f} s in vain until {what}\n{state}")
            time.sleep(0.05)
        return time.monotonic() - begin


def _restarts(pod: Pod) -> int:
    return sum(s.restart_count for s in pod.status.container_statuses)
