"""Looks at one machine: what was installed, what it says, what is left.

Owns: the questions to a machine's disk and systemd. Invariant: only looks,
except UNINSTALL, which is what an operator would type.
"""

from __future__ import annotations

import re

from podlane.errors import PodlaneError
from tests.vm.guest import Guest

UNINSTALL = "sh /var/lib/podlane-setup/podlane.run uninstall --purge --yes"
ALLOWED = ("/etc", "/opt", "/run", "/var", "/tmp", "/proc", "/sys", "/dev", "/root")
"""The last five are nobody's claim: kernel file systems, and the temporary and home folders of whoever works there."""
_UNITS = "systemctl list-units --plain --no-legend 'podlane-*.service' | cut -d' ' -f1"
LEFT_OVERS = (
    "/opt/podlane",
    "/etc/podlane",
    "/var/lib/podlane",
    "/run/podlane",
    "/run/flannel",
    "/etc/profile.d/podlane.sh",
    "/etc/sysctl.d/90-podlane.conf",
    "/etc/modules-load.d/podlane.conf",
)


def readonly(guest: Guest) -> str:
    """That /usr cannot be written, and that what was written is where it may be."""
    refused = guest.run("touch /usr/podlane-was-here", check=False)
    if "Read-only file system" not in refused.stderr:
        raise PodlaneError(f"write to /usr on {guest.name}: expected to be refused, got: {refused.stderr or 'done'}")
    prune = " -o ".join(f"-path {folder}" for folder in ALLOWED)
    # the image's files are older than the machine
    newer = f"find / -xdev \\( {prune} \\) -prune -o -type f -newer /etc/machine-id -print"
    strays = guest.run(newer).stdout.split()
    if strays:
        raise PodlaneError(f"look at the disk of {guest.name}: written outside {', '.join(ALLOWED[:4])}: {strays}")
    return f"{guest.name}: /usr is read-only, and no file is new outside {', '.join(ALLOWED[:4])}"


def units(guest: Guest) -> str:
    """systemd's opinion of the units, and the errors in their journals."""
    files = "$(ls /etc/systemd/system/podlane-*.service /etc/systemd/system/podlane*.target)"
    verified = guest.run(f"systemd-analyze verify {files} 2>&1 | grep -i podlane || :").stdout.strip()
    if verified:
        raise PodlaneError(f"verify the units of {guest.name}: {verified}")
    failed = guest.run("systemctl --failed --plain --no-legend").stdout.strip()
    if failed:
        raise PodlaneError(f"look for failed units on {guest.name}: {failed}")
    named = f"$({_UNITS} | sed 's/^/-u /')"
    errors = guest.run(f"journalctl -b -p err --no-pager -q -o cat {named}").stdout.strip()
    if errors:
        raise PodlaneError(f"read the journal of {guest.name}: {errors}")
    exposure = guest.run(
        f"for unit in $({_UNITS}); do systemd-analyze security --no-pager $unit | tail -n 1; done",
        timeout=600,
    ).stdout
    levels = re.findall(r"exposure level for podlane-(\S+)\.service: ([0-9.]+)", exposure)
    return "exposure " + ", ".join(f"{unit} {level}" for unit, level in levels)


def nothing_left(guest: Guest) -> str:
    found = guest.run(f"ls -d {' '.join(LEFT_OVERS)} /etc/systemd/system/podlane* 2>/dev/null || :").stdout.split()
    found += guest.run("docker ps -aq --filter label=podlane.io/pod-uid").stdout.split()
    found += guest.run("ip -o link | grep -E 'flannel|podlane|cni' || :").stdout.splitlines()
    found += guest.run("nft list tables | grep -E 'podlane|flannel|netd|proxyd' || :").stdout.splitlines()
    found += guest.run("iptables-save | grep -iE 'podlane|flannel' || :").stdout.splitlines()
    found += guest.run("pgrep -af '[/]opt/podlane' || :").stdout.splitlines()  # not the shell that asks
    if found:
        raise PodlaneError(f"look for what is left on {guest.name}: {'; '.join(found)}")
    return "no file, unit, process, container, interface, nftables or iptables rule of it is left"
