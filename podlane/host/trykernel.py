"""What Podlane needs of a kernel, tried and not read from its configuration.

Owns: the script; ./appliance has the same lines for machines that have no Python yet,
and a test compares the two. Invariant: all of it happens in a network and a mount
namespace that vanish with the shell, so nothing is left behind.
"""

from __future__ import annotations

from contextlib import suppress

from podlane.errors import PodlaneError
from podlane.host.system import System

SCRIPT = """\
        try() { # what, command...
            what=$1
            shift
            "$@" >/dev/null 2>&1 || echo "$what"
        }
        try "bridge (CONFIG_BRIDGE)" ip link add podlane-br type bridge
        try "veth pairs (CONFIG_VETH)" ip link add podlane-a type veth peer name podlane-b
        try "VXLAN (CONFIG_VXLAN)" ip link add podlane-vx type vxlan id 1 dstport 8472 local 127.0.0.1 nolearning
        try "nftables with NAT (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_NUMGEN)" \\
            nft "add table ip t; add chain ip t c { type nat hook output priority -100; };
                 add rule ip t c ip daddr 192.0.2.1 tcp dport 80 ct mark set numgen random mod 2 dnat to 192.0.2.2"
        try "netfilter on bridges (CONFIG_BRIDGE_NETFILTER, module br_netfilter)" \\
            test -e /proc/sys/net/bridge/bridge-nf-call-iptables
        overlay() { # SELinux may forbid what is mounted here to try it
            grep -qw overlay /proc/filesystems && return
            mount -t tmpfs podlane /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/m &&
                mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w podlane /mnt/m
        }
        try "overlay file systems (CONFIG_OVERLAY_FS)" overlay
"""

_TIMEOUT = 60.0


def lacking(system: System) -> tuple[str, ...]:
    """What this kernel lacks. Raises PodlaneError where no namespace can be made.

    Modules are loaded first, as the kernel would at the first use; that is all that stays.
    """
    for module in ("bridge", "br_netfilter", "veth", "vxlan", "nf_tables", "overlay"):
        with suppress(PodlaneError):  # no modprobe, or built in: then the script tells
            system.run(["modprobe", "-q", module], timeout=_TIMEOUT, check=False)
    done = system.run(["unshare", "--net", "--mount", "sh", "-c", SCRIPT], timeout=_TIMEOUT)
    return tuple(line for line in done.stdout.splitlines() if line)
