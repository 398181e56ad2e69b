"""What the virtual machines' disk is made of.

Owns: the packages, the files and the services of the image, and the key under
which a built one is kept. Invariant: the same recipe has the same key, and
every change of it another, so that a cached image is never an old one. Pure.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

SUITE = "bookworm"

PACKAGES = (
    "systemd-sysv",  # a whole init, as hosts have it
    "dbus",
    "linux-image-amd64",  # the stock kernel, not the cloud variant
    "initramfs-tools",
    "docker.io",
    "etcd-server",
    "etcd-client",
    "nftables",
    "iptables",
    "conntrack",
    "iproute2",
    "python3",
    "cloud-init",
    "qemu-guest-agent",  # how the test looks inside, whatever becomes of the network
    "curl",
    "ca-certificates",
    "procps",
)

# Only what this disk needs in its first seconds; the kernel finds everything else after that.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")

CLOUD_CONFIG = """\
datasource_list: [NoCloud, None]
cloud_init_modules: [seed_random, bootcmd, write-files, set_hostname, update_hostname, update_etc_hosts, ca-certs]
cloud_config_modules: [ntp, timezone, runcmd]
cloud_final_modules: [package-update-upgrade-install, scripts-per-instance, scripts-user, final-message]
"""

FILES = {
    "/etc/initramfs-tools/conf.d/podlane": "MODULES=list\nCOMPRESS=gzip\nFSTYPE=ext4\n",
    "/etc/initramfs-tools/modules": "".join(f"{name}\n" for name in BOOT_MODULES),
    "/etc/fstab": "/dev/vda / ext4 defaults,noatime 0 0\n",
    # cloud-init looks nowhere but at the seed disk, and does not try what this image has no programs for (sshd,
    # locales, a boot loader): on an emulated processor each failure costs a second.
    "/etc/cloud/cloud.cfg.d/90-podlane.cfg": CLOUD_CONFIG,
    "/etc/cloud/ds-identify.cfg": "policy: enabled\n",
    # An Atomic-style host: nobody can write to /usr. Asked for on the kernel's command line.
    "/etc/systemd/system/usr-readonly.service": """\
[Unit]
Description=/usr cannot be written, as on an Atomic-style host
DefaultDependencies=no
ConditionKernelCommandLine=podlane.usr=ro
After=systemd-remount-fs.service
Before=local-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --bind /usr /usr
ExecStart=/bin/mount -o remount,bind,ro /usr

[Install]
WantedBy=local-fs.target
""",
    # It tells of each question, and the test asks many.
    "/etc/systemd/system/qemu-guest-agent.service.d/podlane.conf": "[Service]\nLogLevelMax=warning\n",
    "/etc/systemd/journald.conf.d/podlane.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\n",
    "/etc/systemd/system.conf.d/podlane.conf": "[Manager]\nDefaultTimeoutStartSec=600s\nDefaultTimeoutStopSec=120s\n",
}

ENABLED = ("systemd-networkd.service", "usr-readonly.service")

# What costs seconds of an emulated processor, or would change the disk while the test looks.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "etcd.service",  # the package's own; podlane-etcd.service is ours
    "systemd-pstore.service",
    "systemd-binfmt.service",
)


@dataclass(frozen=True)
class Recipe:
    """`sources` are apt's lines (URI, suite, components); the first is where debootstrap starts."""

    sources: tuple[tuple[str, str, str], ...]
    suite: str = SUITE
    packages: tuple[str, ...] = PACKAGES
    files: tuple[tuple[str, str], ...] = tuple(FILES.items())
    enabled: tuple[str, ...] = ENABLED
    masked: tuple[str, ...] = MASKED
    size_gb: int = 6
    filesystem: str = "^metadata_csum,^64bit"  # features; a journal stays, for machines that are killed

    @property
    def key(self) -> str:
        """Names the image; where the packages come from does not count."""
        content = asdict(self)
        del content["sources"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def apt_sources(self) -> str:
        """The text of a sources.list."""
        return "".join(f"deb {uri} {suite} {components}\n" for uri, suite, components in self.sources)


def sources_from_apt(text: str, suite: str = SUITE) -> tuple[tuple[str, str, str], ...]:
    """Read `apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)'`: the sources of one suite.

    The suite's own comes first, then its updates and security fixes.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        uri, release, component = line.split()
        if release == suite or release.startswith(f"{suite}-"):
            components = found.setdefault((uri, release), [])
            if component not in components:
                components.append(component)
    ordered = sorted(found.items(), key=lambda item: item[0][1] != suite)
    return tuple((uri, release, " ".join(components)) for (uri, release), components in ordered)
