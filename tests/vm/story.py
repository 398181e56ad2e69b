"""What a run does and must see, step by step.

Owns: the steps and their order. Invariant: a step says what it saw, and fails
unless it saw what it promises; each can be repeated, so that a run can be
resumed after any of them.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.lab.images import WEB_IMAGE, web_tar
from podlane.runtime.command import run
from tests.vm import image, inspection
from tests.vm.cluster import Cluster, FileServer
from tests.vm.machine import NAT_HOST, Machine, kill
from tests.vm.progress import Step
from tests.vm.recipe import Recipe
from tests.vm.traffic import Traffic

PYTHON = "3.11"  # the suite's
NEXT_VERSION = "99.0.0"  # the same program under another name, to upgrade to
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
REPLICAS = 4
LEASE, GRACE = 20, 10
"""Seconds a silent node counts as alive, and more until its pods are replaced: an emulated processor is slow."""
SLOW = "/etc/systemd/system/podlane-scheduler.service.d/slow.conf"
PATIENT_LEADER = (
    f"mkdir -p $(dirname {SLOW}); printf '[Service]\\nEnvironment=SCHEDULER_LEADER_TTL=15\\n' > {SLOW}; "
    "systemctl daemon-reload; systemctl restart podlane-scheduler"
)
"""What docs/operations.md advises where etcd is slow: with 3 s, an emulated leader was replaced all the time."""
START_SECONDS = 300  # for an image's container to run and be ready there


@dataclass
class Story:
    """One run. `bundle` is a file that is there, or empty: then it is built."""

    cluster: Cluster
    recipe: Recipe
    cache: Path
    folder: Path
    files: FileServer
    say: Callable[[str], None]
    bundle: str = ""

    def steps(self) -> list[Step]:
        return [
            Step("image", "build the machines' disk, or find it", self.image),
            Step("bundle", "build the bundle, one file that installs Podlane", self.make_bundle),
            Step("server", "boot the server with cloud-init user-data and wait until its node is ready", self.server),
            Step("join", "boot the other machines with the line that podlane join-token prints", self.join),
            Step("nodes", "every machine's node is ready, at its address on the shared network", self.nodes),
            Step("readonly", "nothing was written outside /etc, /opt, /run and /var", self.readonly),
            Step("units", "systemd is content with the units; no errors in the journals", self.units),
            Step("example", "the example's image into each dockerd, and four replicas of it", self.example),
            Step("service", "the service's address, asked from every machine", self.service),
            Step("pods", "a pod asks pods on other machines", self.pods),
            Step("kill", "a machine loses power: its replicas are made elsewhere", self.kill),
            Step("return", "that machine is switched on again and comes back by itself", self.back),
            Step("reboot", "the server is rebooted: everything comes back by itself", self.reboot),
            Step("upgrade", "a node is upgraded; requests go on meanwhile", self.upgrade),
            Step("uninstall", "a node leaves: drained, uninstalled, nothing of it left", self.uninstall),
        ]

    @property
    def victim(self) -> Machine:
        return self.cluster.nodes[0]

    @property
    def leaver(self) -> Machine:
        return self.cluster.nodes[-1]

    # --- installation -------------------------------------------------------

    def image(self) -> str:
        built = image.build(self.recipe, self.cache, self.say)
        return f"{built.folder.name}, {built.disk.stat().st_blocks * 512 / 1e9:.1f} GB"

    def make_bundle(self) -> str:
        served = self.folder / "files"
        served.mkdir(exist_ok=True)
        bundle = Path(self.bundle) if self.bundle else self._build()
        shutil.copyfile(bundle, served / "podlane.run")
        (served / "web.tar").write_bytes(web_tar())
        return f"{bundle.name}, {bundle.stat().st_size / 1e6:.0f} MB"

    def _build(self, *words: str) -> Path:
        options = ("--python", PYTHON, "--output", str(self.cache / "bundle"), *words)
        built = run([sys.executable, "-m", "podlane.cli.bundle", *options], timeout=900)
        return Path(built.stdout.split()[-1])

    def server(self) -> str:
        timing = ("--", "--node-lease-seconds", str(LEASE), "--node-grace-seconds", str(GRACE))
        server = self.cluster.server
        self._seed_and_start(server, *timing)
        self.cluster.boot(server)
        self.cluster.set_up(server)
        server.guest.run(PATIENT_LEADER)
        self.cluster.until("the server's node is ready", lambda: server.name in self.cluster.ready_nodes(), 600)
        return f"{server.name} is a server and a ready node"

    def join(self) -> str:
        for node in self.cluster.nodes:
            printed = self.cluster.podlane("join-token")
            words = re.search(r"--join (\S+) --token (\S+)", printed)
            if not words:
                raise PodlaneError(f"podlane join-token: no line to paste in what it prints: {printed}")
            # Without --iface: eth0, the way out, is the same on all of them; netd must find eth1 by itself.
            self._seed_and_start(node, "--join", words[1], "--token", words[2])
        for node in self.cluster.nodes:
            self.cluster.boot(node)
            self.cluster.set_up(node)
        return f"{', '.join(node.name for node in self.cluster.nodes)} joined, each with a token of its own"

    def _seed_and_start(self, machine: Machine, *words: str) -> None:
        if not machine.seed.exists():
            self.cluster.start(machine, self._user_data(machine, *words))

    def _user_data(self, machine: Machine, *words: str) -> str:
        bundle = self.folder / "files" / "podlane.run"
        return run(
            [
                *("podlane", "cloud-init", "--role", machine.role, "--name", machine.name, "--no-packages"),
                *("--bundle", f"http://{NAT_HOST}:{self.files.port}/podlane.run", "--sha256", _sha256(bundle)),
                *words,
            ],
            timeout=60,
        ).stdout

    # --- what was installed -------------------------------------------------

    def nodes(self) -> str:
        wanted = {machine.name for machine in self.cluster.machines}
        self.cluster.until(f"{len(wanted)} nodes are ready", lambda: self.cluster.ready_nodes() == wanted, 600)
        for node in self.cluster.objects("nodes"):
            name = node["metadata"]["name"]
            addresses = {each["address"] for each in node["status"]["addresses"]}
            [expected] = [machine.address for machine in self.cluster.machines if machine.name == name]
            if expected not in addresses:
                raise PodlaneError(f"node {name}: expected address {expected}, got {', '.join(sorted(addresses))}")
        return f"{len(wanted)} of {len(wanted)} ready, at their addresses on eth1, not at eth0's 10.0.2.15"

    def readonly(self) -> str:
        return inspection.readonly(self.leaver.guest)

    def units(self) -> str:
        return "; ".join(f"{machine.name}: {inspection.units(machine.guest)}" for machine in self.cluster.machines)

    # --- the example --------------------------------------------------------

    def example(self) -> str:
        changes = "--change 'CMD [\"/start\"]' --change 'EXPOSE 8080'"
        url = f"http://{NAT_HOST}:{self.files.port}/web.tar"
        for machine in self.cluster.machines:
            machine.guest.run(f"curl -fsS {url} | docker import {changes} - {WEB_IMAGE}")
        for name in ("web-controller.yaml", "web-service.yaml"):
            text = (EXAMPLES / name).read_text()
            self.cluster.podlane(f"apply -f - <<'END'\n{text}\nEND")
        seconds = self._replicas_ready(START_SECONDS)
        spread = Counter(pod.node for pod in self.cluster.pods())
        if len(spread) != len(self.cluster.machines):
            raise PodlaneError(f"spread {REPLICAS} replicas: expected some on every machine, got {dict(spread)}")
        return f"{REPLICAS} ready {seconds:.0f} s after apply: {_listed(spread)}"

    def _replicas_ready(self, timeout: float, *, away_from: str = "") -> float:
        def so() -> bool:
            pods = [pod for pod in self.cluster.pods() if pod.node != away_from]
            return len(pods) == REPLICAS and all(pod.ready for pod in pods)

        where = f" elsewhere than on {away_from}" if away_from else ""
        return self.cluster.until(f"{REPLICAS} replicas are ready{where}", so, timeout)

    def service(self) -> str:
        address = self._service_address()
        ready = {pod.name for pod in self.cluster.pods() if pod.ready}
        seen: dict[str, set[str]] = {machine.name: set() for machine in self.cluster.machines}

        def all_answered(machine: Machine) -> bool:
            asked = machine.guest.run(f"for i in 1 2 3 4 5 6 7 8; do curl -sf -m 10 http://{address}/; done")
            seen[machine.name] |= set(asked.stdout.split())
            return seen[machine.name] == ready

        for machine in self.cluster.machines:
            self.cluster.until(f"all replicas answer {machine.name}", lambda m=machine: all_answered(m), 180)
        return f"http://{address}/: {len(ready)} of {len(ready)} pods answered each of {len(seen)} machines"

    def _service_address(self) -> str:
        [address] = [
            str(item["spec"]["clusterIP"])
            for item in self.cluster.objects("services")
            if item["metadata"]["name"] == "web"
        ]
        return address

    def pods(self) -> str:
        pods = self.cluster.pods()
        asker = pods[0]
        others = [pod for pod in pods if pod.node != asker.node]
        if not others:
            raise PodlaneError(f"exec {asker.name}: all {len(pods)} replicas are on {asker.node}, none elsewhere")
        for pod in others:
            url = f"http://{pod.address}:8080/cgi-bin/caller"
            told = self.cluster.podlane(f"exec {asker.name} -- wget -q -O - {url}").strip()
            # the server there listens for both families, and writes IPv4 as IPv6
            if told.replace("[::ffff:", "").rstrip("]") != f"{pod.name} {asker.address}":
                expected = f"{pod.name} {asker.address}"
                raise PodlaneError(f'ask {url} from {asker.name}: expected "{expected}", got "{told}"')
        return f"{asker.name} reached {len(others)} pods on other machines, and they saw its own address"

    # --- faults -------------------------------------------------------------

    def kill(self) -> str:
        victim = self.victim
        lost = self._replicas_on(victim)
        with Traffic(self.cluster.server, self._service_address()) as traffic:
            kill(victim)

            def replaced() -> bool:
                pods = self.cluster.pods()
                return len([pod for pod in pods if pod.node not in ("", victim.name)]) == REPLICAS

            made = self.cluster.until("its replicas are made elsewhere", replaced, LEASE + GRACE + 90)
            ready = made + self._replicas_ready(START_SECONDS, away_from=victim.name)
            before = traffic.count()
            names = {pod.name for pod in self.cluster.pods() if pod.node != victim.name}
            self.cluster.until(
                "all four answer", lambda: names <= set((traffic.count().answers - before.answers).keys()), 180
            )
            count = traffic.count()
        return (
            f"{lost} of {REPLICAS} replicas were on {victim.name}; made elsewhere after {made:.0f} s "
            f"(configured: {LEASE}+{GRACE}), ready after {ready:.0f} s; {count}"
        )

    def _replicas_on(self, machine: Machine) -> int:
        """How many are there; placed anew if none is, as after a step that was interrupted."""
        wanted = {each.name for each in self.cluster.machines}
        self.cluster.until("all nodes are ready", lambda: self.cluster.ready_nodes() == wanted, 600)
        for last in (False, True):
            self._replicas_ready(START_SECONDS)
            there = sum(pod.node == machine.name for pod in self.cluster.pods())
            if there:
                return there
            if not last:
                self.cluster.podlane("scale rc web --replicas 0")
                self.cluster.until("no replica is left", lambda: not self.cluster.pods(), 180)
                self.cluster.podlane(f"scale rc web --replicas {REPLICAS}")
        raise PodlaneError(f"kill {machine.name}: no replica is placed there, so nothing would be seen")

    def back(self) -> str:
        self.cluster.boot(self.victim)
        wanted = {machine.name for machine in self.cluster.machines}
        seconds = self.cluster.until("its node is ready again", lambda: self.cluster.ready_nodes() == wanted, 600)
        self._replicas_ready(START_SECONDS)
        left = self.victim.guest.run("docker ps -q --filter status=running", check=False).stdout.split()
        return f"{self.victim.name} is ready {seconds:.0f} s after its boot; {len(left)} containers run there"

    def reboot(self) -> str:
        server = self.cluster.server
        boot_id = "cat /proc/sys/kernel/random/boot_id"
        before = server.guest.run(boot_id).stdout
        server.guest.run("systemd-run --on-active=1 systemctl reboot")
        wanted = {machine.name for machine in self.cluster.machines}
        seconds = self.cluster.until("the server is up again", lambda: server.guest.run(boot_id).stdout != before, 900)
        seconds += self.cluster.until("all nodes are ready", lambda: self.cluster.ready_nodes() == wanted, 600)
        seconds += self._replicas_ready(START_SECONDS)
        return f"all nodes and replicas ready {seconds:.0f} s after the reboot was asked for; {self.service()}"

    def upgrade(self) -> str:
        node, url = self.victim, f"http://{NAT_HOST}:{self.files.port}/upgrade.run"
        shutil.copyfile(self._build("--version", NEXT_VERSION), self.folder / "files" / "upgrade.run")
        started = "docker ps -q --no-trunc | sort | xargs -r docker inspect -f '{{.Id}} {{.State.StartedAt}}'"
        before = node.guest.run(started).stdout
        node.guest.run(f"curl -fsS -o /var/tmp/upgrade.run {url}")
        with Traffic(node, self._service_address()) as traffic:
            node.guest.run("sh /var/tmp/upgrade.run upgrade", timeout=3600)
            count = traffic.count()
        if node.guest.run(started).stdout != before:
            raise PodlaneError(f"upgrade {node.name}: expected its containers to run on, but they were started again")
        if count.failed:
            raise PodlaneError(f"upgrade {node.name}: {count}")
        version = node.guest.run("podlane version").stdout.strip()
        return f"{node.name} has {version}, its containers ran on; {count}"

    def uninstall(self) -> str:
        node = self.leaver
        self.cluster.podlane(f"drain {node.name}", timeout=600)
        self._replicas_ready(START_SECONDS, away_from=node.name)
        node.guest.run(inspection.UNINSTALL, timeout=600)
        left = inspection.nothing_left(node.guest)
        self.cluster.podlane(f"delete node {node.name}")
        known = {item["metadata"]["name"] for item in self.cluster.objects("nodes")}
        if node.name in known:
            raise PodlaneError(f"delete node {node.name}: expected it to be gone, got {', '.join(sorted(known))}")
        return f"{node.name}: {left}; the cluster has forgotten it"


def _sha256(file: Path) -> str:
    return run(["sha256sum", str(file)], timeout=60).stdout.split()[0]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
