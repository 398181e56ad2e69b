"""The machines of one run, and a cluster on them as its operator sees it.

Owns: booting a machine with user-data, looking at the cluster through the
server's `podlane`, and waiting with a reason. Invariant: what is asked of the
cluster is asked with what an operator has: commands on the machines.
"""

from __future__ import annotations

import functools
import http.server
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podlane.errors import PodlaneError
from tests.vm import seed
from tests.vm.guest import GuestError, GuestFailed
from tests.vm.machine import Emulator, Machine, kill, pid_of

BOOT_SECONDS = 900
"""For a machine to boot, on an emulated processor that two others share."""
SET_UP_SECONDS = 1800
"""For cloud-init to do what the user-data says."""
PAUSE = 5.0  # seconds between looks: each look starts a program on a slow machine

Say = Callable[[str], None]


def machines(folder: Path, count: int) -> tuple[Machine, ...]:
    """The first is the server and a node; the last is Atomic-style: its /usr cannot be written."""
    return tuple(
        Machine(
            name=f"vm{number}",
            number=number,
            role="all" if number == 1 else "node",
            folder=folder / f"vm{number}",
            memory_mb=1536 if number == 1 else 1024,
            readonly_usr=number == count,
        )
        for number in range(1, count + 1)
    )


@dataclass(frozen=True)
class Pod:
    name: str
    node: str
    address: str
    ready: bool


class Cluster:
    def __init__(self, hosts: Sequence[Machine], emulator: Emulator, say: Say) -> None:
        self.machines, self._emulator, self._say = tuple(hosts), emulator, say

    @property
    def server(self) -> Machine:
        return self.machines[0]

    @property
    def nodes(self) -> tuple[Machine, ...]:
        """All but the server."""
        return self.machines[1:]

    # --- machines -----------------------------------------------------------

    def start(self, machine: Machine, user_data: str) -> None:
        """For the first time."""
        seed.write(machine, user_data)
        self._emulator.start(machine)

    def boot(self, machine: Machine) -> None:
        """Start it if it does not run, and wait until it answers."""
        self._emulator.start(machine)
        self.until(f"{machine.name} boots", machine.guest.answers, BOOT_SECONDS)

    def boot_all(self) -> None:
        """Start every machine that was there before."""
        stopped = [each for each in self.machines if each.disk.exists() and not pid_of(each)]
        for machine in stopped:
            self._emulator.start(machine)
        for machine in stopped:
            self.until(f"{machine.name} boots", machine.guest.answers, BOOT_SECONDS)

    def end(self) -> None:
        for machine in self.machines:
            kill(machine)

    def set_up(self, machine: Machine) -> None:
        """Wait for cloud-init's end. Raises PodlaneError with the end of its log when it failed."""
        result = "/run/cloud-init/result.json"  # `cloud-init status` would take a slow machine's time

        def over() -> bool:
            return machine.guest.run(f"test -e {result}", check=False).returncode == 0

        self.until(f"{machine.name} is set up by cloud-init", over, SET_UP_SECONDS)
        errors = json.loads(machine.guest.run(f"cat {result}").stdout)["v1"]["errors"]
        if errors:
            log = machine.guest.run("tail -n 40 /var/log/cloud-init-output.log").stdout
            raise PodlaneError(f"set up {machine.name}: cloud-init failed: {errors}\n{log}")

    # --- the cluster --------------------------------------------------------

    def podlane(self, words: str, *, timeout: float = 300) -> str:
        """What `podlane WORDS` prints on the server. Tried again: etcd's deadlines are short for a slow machine."""
        for last in (False, False, True):
            try:
                return self.server.guest.run(f"podlane {words}", timeout=timeout).stdout
            except GuestFailed as error:
                if last:
                    raise
                self._say(str(error).splitlines()[-1])
                time.sleep(PAUSE)
        raise AssertionError

    def objects(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.podlane(f"get {kind} -o json"))["items"]
        return items

    def ready_nodes(self) -> set[str]:
        return {node["metadata"]["name"] for node in self.objects("nodes") if _is_true(node, "Ready")}

    def pods(self) -> list[Pod]:
        """Those that are not ending."""
        return [
            Pod(
                name=pod["metadata"]["name"],
                node=pod["spec"].get("nodeName", ""),
                address=pod.get("status", {}).get("podIP", ""),
                ready=_is_true(pod, "Ready"),
            )
            for pod in self.objects("pods")
            if not pod["metadata"].get("deletionTimestamp")
        ]

    # --- waiting ------------------------------------------------------------

    def until(self, what: str, condition: Callable[[], object], timeout: float) -> float:
        """Wait until it is so, and tell how many seconds that took. A machine that does not answer is not so yet."""
        self._say(f"waiting until {what}")
        begin = time.monotonic()
        reason = ""
        while True:
            try:
                if condition():
                    return time.monotonic() - begin
            except (GuestError, ValueError, KeyError) as error:
                reason = f"; last: {error}"
            if time.monotonic() - begin > timeout:
                raise PodlaneError(f"wait until {what}: not so after {timeout:g} s{reason}")
            time.sleep(PAUSE)


def _is_true(item: dict[str, Any], condition: str) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)


class FileServer:
    """Hands out a folder's files to the machines, which see this machine's loopback as machine.NAT_HOST."""

    def __init__(self, folder: Path, port: int) -> None:
        handler = functools.partial(_Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_port


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
        pass
