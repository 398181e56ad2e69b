"""The seed disk from which cloud-init sets up a machine (NoCloud).

Owns: its three files as text, and the disk. The network has the same trap as
Vagrant's: eth0 gets the same address on every machine and has the default
route; the machines reach each other by eth1 only.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from podlane.runtime.command import run
from tests.vm.machine import NAT_MAC, Machine


def meta_data(machine: Machine) -> str:
    return json.dumps({"instance-id": machine.name, "local-hostname": machine.name}) + "\n"


def network_config(machine: Machine) -> str:
    ethernets: dict[str, Any] = {
        "eth0": {"match": {"macaddress": NAT_MAC}, "dhcp4": True},
        "eth1": {"match": {"macaddress": machine.private_mac}, "addresses": [f"{machine.address}/24"]},
    }
    return json.dumps({"version": 2, "ethernets": ethernets}, indent=1) + "\n"


def write(machine: Machine, user_data: str) -> None:
    """Make the machine's seed disk."""
    machine.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "meta-data": meta_data(machine),
            "network-config": network_config(machine),
            "user-data": user_data,
        }
        for name, text in files.items():
            Path(folder, name).write_text(text)
        run(
            ["genisoimage", "-quiet", "-output", str(machine.seed), "-volid", "cidata", "-joliet", "-rock", folder],
            timeout=60,
        )
    machine.seed.chmod(0o600)  # it holds the join token
