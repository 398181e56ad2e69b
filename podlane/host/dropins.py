"""What a host is told besides the units: sysctls, kernel modules, users, NetworkManager, PATH. Pure.

Owns: those files. Invariant: each is a file of our own in a drop-in folder, so
that removing it undoes it, and nobody's file is changed.
"""

from __future__ import annotations

from podlane.host.layout import CLUSTER_ENVIRONMENT, COMMANDS, CURRENT, ETC, OPT, STATE, Daemon, environment_file
from podlane.host.steps import File
from podlane.host.units import ETCD_USER

MODULES = ("bridge", "br_netfilter", "veth", "vxlan", "overlay", "nf_conntrack", "nf_tables", "nft_chain_nat")

SYSCTL_FILE = "/etc/sysctl.d/90-podlane.conf"
USERS_FILE = "/etc/sysusers.d/podlane.conf"
_SYSCTL = """\
# Written by podlane install. netd and proxyd set the first two themselves as well; here they hold from boot on.
net.ipv4.ip_forward = 1
-net.bridge.bridge-nf-call-iptables = 1
-net.bridge.bridge-nf-call-ip6tables = 1
# Every pod's container watches files, every connection through a service is an entry of conntrack.
fs.inotify.max_user_instances = 8192
fs.inotify.max_user_watches = 524288
-net.netfilter.nf_conntrack_max = 262144
# rp_filter is left as it is: strict (1) and loose (2) both work with VXLAN; `netd doctor` says when it is in the way.
"""

_LINKS = ("flannel.*", "flannel-v6.*", "podlane*", "pl???????????", "veth*")
_NETWORK_MANAGER = f"""\
# Written by podlane install: these links are Podlane's and Docker's.
[keyfile]
unmanaged-devices+={";".join(f"interface-name:{each}" for each in _LINKS)}
"""

_PROFILE = f"""\
# Written by podlane install.
case ":$PATH:" in
*:{COMMANDS}:*) ;;
*) PATH="$PATH:{COMMANDS}" ;;
esac
"""

_WRAPPER = """\
#!/bin/sh
# Written by podlane install: {name} with the settings of this host's daemon.
set -a
for file in {files}; do
    [ ! -r "$file" ] || . "$file"
done
set +a
exec {current}/bin/{name} "$@"
"""

_README = f"""\
Written by podlane install.

{OPT}/current          the version in use; versions/ has the one before, too
{ETC}/*.env        settings of the daemons, written anew by upgrades; for your own: `systemctl edit podlane-DAEMON`
{ETC}/pki          keys and certificates of this host
{STATE}       state: etcd's data and daily snapshots of it (backups), netd's identity, pods' volumes
systemctl status 'podlane-*', journalctl -u podlane-netd, podlane.target for all of them at once
"""


def drop_ins(*, network_manager: bool, own_etcd: bool) -> list[File]:
    files = [
        File(
            "/etc/modules-load.d/podlane.conf", "# Written by podlane install.\n" + "".join(f"{m}\n" for m in MODULES)
        ),
        File(SYSCTL_FILE, _SYSCTL),
        File("/etc/profile.d/podlane.sh", _PROFILE),
        File(f"{ETC}/README", _README),
    ]
    if own_etcd:
        users = f'# Written by podlane install.\nu {ETCD_USER} - "etcd of Podlane" {STATE}/etcd\n'
        files.append(File(USERS_FILE, users))
    if network_manager:
        files.append(File("/etc/NetworkManager/conf.d/podlane.conf", _NETWORK_MANAGER))
    return files


_WRAPPED: tuple[Daemon, ...] = ("netd", "proxyd", "scheduler")


def wrappers() -> list[File]:
    """`netd status` on the PATH asks the netd that runs here, with its settings."""
    daemons = [File(f"{COMMANDS}/{name}", _with_settings(name), 0o755) for name in _WRAPPED]
    plain = f'#!/bin/sh\n# Written by podlane install.\nexec {CURRENT}/bin/podlane "$@"\n'
    return [File(f"{COMMANDS}/podlane", plain, 0o755), *daemons]


def _with_settings(daemon: Daemon) -> str:
    files = f"{CLUSTER_ENVIRONMENT} {environment_file(daemon)}"
    return _WRAPPER.format(name=daemon, current=CURRENT, files=files)
