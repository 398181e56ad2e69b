"""One virtual machine: its parts, starting it, ending it.

Owns: the emulator's command line and its process. Invariants: only a process
that is provably this machine's is ever killed; a disk is a thin layer over the
image, which is never written to; all that a machine leaves is in its folder.

Every machine has two network interfaces, as Vagrant's have: eth0 behind NAT,
with the same address on each of them, and eth1 on the network they share.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.runtime.command import run
from tests.vm.guest import Guest
from tests.vm.image import Image

NAT_MAC = "52:54:00:12:34:56"  # on all of them: each is alone on its NAT network
NAT_HOST = "10.0.2.2"  # this machine's loopback, as seen from inside
PRIVATE_NET = "192.168.56"


@dataclass(frozen=True)
class Machine:
    """What a machine is; nothing of it runs yet."""

    name: str
    number: int
    role: str
    folder: Path
    memory_mb: int = 1024
    readonly_usr: bool = False

    @property
    def address(self) -> str:
        return f"{PRIVATE_NET}.{10 + self.number}"

    @property
    def private_mac(self) -> str:
        return f"52:54:00:56:00:{self.number:02x}"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def seed(self) -> Path:
        return self.folder / "seed.iso"

    @property
    def serial_log(self) -> Path:
        return self.folder / "serial.log"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def guest(self) -> Guest:
        return Guest(self.name, self.folder / "agent.sock")


@dataclass(frozen=True)
class Emulator:
    """How machines are run. `wire` is the port of the multicast group that is their shared network."""

    image: Image
    wire: int
    accel: str = "tcg"
    cpus: int = 2

    def command(self, machine: Machine) -> list[str]:
        accel = {"tcg": "tcg,thread=multi,tb-size=512"}.get(self.accel, self.accel)
        # Without AppArmor: with it, Docker must have the parser of its profiles, which the image has not.
        append = "console=ttyS0 root=/dev/vda rw net.ifnames=0 apparmor=0 mitigations=off panic=-1 quiet"
        if machine.readonly_usr:
            append += " podlane.usr=ro"
        return [
            "qemu-system-x86_64",
            *("-name", machine.name),
            "-nodefaults",  # no floppy disk that the kernel waits for
            *("-accel", accel),
            *("-cpu", "host" if self.accel == "kvm" else "max,la57=off"),
            *("-smp", str(self.cpus)),
            *("-m", str(machine.memory_mb)),
            *("-kernel", str(self.image.kernel)),
            *("-initrd", str(self.image.initrd)),
            *("-append", append),
            *("-drive", f"file={machine.disk},if=virtio,format=qcow2,cache=unsafe"),
            *("-drive", f"file={machine.seed},if=virtio,format=raw,readonly=on"),
            *("-netdev", "user,id=nat"),
            *("-device", f"virtio-net-pci,netdev=nat,mac={NAT_MAC},romfile="),
            *("-netdev", f"socket,id=private,mcast=230.86.0.1:{self.wire},localaddr=127.0.0.1"),
            *("-device", f"virtio-net-pci,netdev=private,mac={machine.private_mac},romfile="),
            *("-object", "rng-random,id=rng,filename=/dev/urandom"),
            *("-device", "virtio-rng-pci,rng=rng"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={machine.folder}/agent.sock,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-chardev", f"file,id=serial,path={machine.serial_log},append=on"),
            *("-serial", "chardev:serial"),
            *("-display", "none"),
            *("-pidfile", str(machine.pid_file)),
            "-daemonize",
        ]

    def start(self, machine: Machine) -> None:
        """Boot it unless it runs."""
        if pid_of(machine):
            return
        machine.folder.mkdir(parents=True, exist_ok=True)
        if not machine.disk.exists():
            base = ["-b", str(self.image.disk), "-F", "raw"]
            run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(machine.disk)], timeout=60)
        run(self.command(machine), timeout=60)


def pid_of(machine: Machine) -> int:
    """The running emulator's process, or 0."""
    with suppress(OSError, ValueError):
        pid = int(machine.pid_file.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if str(machine.pid_file).encode() in words:
            return pid
    return 0


def kill(machine: Machine) -> None:
    """Pull the plug."""
    pid = pid_of(machine)
    if not pid:
        return
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while pid_of(machine):
        if time.monotonic() > deadline:
            raise PodlaneError(f"kill machine {machine.name}: process {pid} is still there after 30 s")
        time.sleep(0.1)
    machine.pid_file.unlink(missing_ok=True)
