"""What a new machine is told so that it installs Podlane at its first boot. Pure.

Owns: the user-data for cloud-init, the same for Ignition, and the script that
both put on the machine. Invariants: the script is the same for both and can be
run again; a bundle is started only after its sum was right, and one that comes
over plain http must have a sum; what is secret is in files that only root reads.
Sources: cloud-init's schema (tests hold every output against it), Ignition's
configuration specification 3.3.0.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec

from podlane.errors import FieldError, Invalid
from podlane.host import options as install
from podlane.host.options import InstallOptions

Family = Literal["debian", "fedora", "none"]

FOLDER = "/var/lib/podlane-setup"
SCRIPT = f"{FOLDER}/install.sh"
UNIT = "podlane-setup.service"
DOCKER = "systemctl is-active --quiet docker.service || systemctl enable --now docker.service\n"

# Docker starts nothing where the kernel has AppArmor and its parser is not there.
_NODE_PACKAGES: Mapping[Family, tuple[str, ...]] = {
    "debian": ("docker.io", "apparmor", "iptables", "nftables", "conntrack", "iproute2", "python3", "curl"),
    "fedora": ("moby-engine", "iptables-nft", "nftables", "conntrack-tools", "iproute", "python3", "curl"),
    "none": (),
}
_SERVER_PACKAGES: Mapping[Family, tuple[str, ...]] = {
    "debian": ("python3", "curl"),
    "fedora": ("python3", "curl"),
    "none": (),
}
_ETCD_PACKAGES: Mapping[Family, tuple[str, ...]] = {
    "debian": ("etcd-server", "etcd-client"),
    "fedora": ("etcd",),
    "none": (),
}
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Setup(msgspec.Struct, frozen=True):
    """`files` are the operator's, by their path on the machine: an authority's certificate, keys.

    `arguments` are further ones for `install`, as they are.
    """

    options: InstallOptions
    bundle: str
    sha256: str = ""
    token: str = ""
    family: Family = "debian"
    ssh_keys: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    content: str
    mode: int


def check(setup: Setup) -> None:
    """Raises Invalid with everything that is wrong."""
    errors: list[FieldError] = []
    try:
        install.check(setup.options, token=setup.token)
    except Invalid as error:
        errors += error.errors
    url = urlsplit(setup.bundle)
    if url.scheme not in ("http", "https") and not setup.bundle.startswith("/"):
        errors.append(
            FieldError("--bundle", f'expected http://…, https://… or a path on the machine, got "{setup.bundle}"')
        )
    elif url.scheme == "http" and not setup.sha256:
        errors.append(FieldError("--sha256", "expected the bundle's SHA-256 sum, as it comes over plain http"))
    if setup.sha256 and not _SHA256.fullmatch(setup.sha256):
        errors.append(FieldError("--sha256", f'expected 64 hexadecimal digits, got "{setup.sha256}"'))
    errors += [
        FieldError("--ssh-key", f'expected a public key such as "ssh-ed25519 AAAA…", got "{key}"')
        for key in setup.ssh_keys
        if len(key.split()) < 2 or "PRIVATE" in key
    ]
    if errors:
        raise Invalid("cloud-init", errors)


def packages(setup: Setup) -> tuple[str, ...]:
    """What the machine needs of its distribution."""
    base = _SERVER_PACKAGES if setup.options.role == "server" else _NODE_PACKAGES
    etcd = _ETCD_PACKAGES[setup.family] if setup.options.own_etcd else ()
    return (*base[setup.family], *etcd)


def cloud_config(setup: Setup) -> str:
    """User-data for cloud-init."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as such."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    body = yaml.dump(_cloud_config(setup), Dumper=Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return f"#cloud-config\n{_comment(setup)}{body}"


def _comment(setup: Setup) -> str:
    lines = ["Made by podlane cloud-init. What the installation says: /var/log/cloud-init-output.log"]
    if setup.token:
        lines.append("Holds a join token: keep it from others until the token has expired.")
    return "".join(f"# {line}\n" for line in lines)


def _cloud_config(setup: Setup) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if setup.options.name:
        config |= {"hostname": setup.options.name, "preserve_hostname": False}
    if setup.ssh_keys:
        config["ssh_authorized_keys"] = list(setup.ssh_keys)
    wanted = packages(setup)
    if wanted:
        config |= {"package_update": True, "packages": list(wanted)}
    if setup.options.own_etcd and setup.family != "none":
        # The package's own service would start with it, on our ports.
        config["bootcmd"] = [
            ["cloud-init-per", "instance", "podlane-mask-etcd", "systemctl", "mask", "etcd.service"],
        ]
    config["write_files"] = [
        {"path": file.path, "owner": "root:root", "permissions": f"{file.mode:04o}", "content": file.content}
        for file in _files(setup)
    ]
    config["runcmd"] = [["sh", SCRIPT]]
    return config


def ignition(setup: Setup) -> str:
    """The same for a machine with Ignition (Fedora CoreOS), which installs no packages."""
    files = _files(setup)
    if setup.options.name:
        files.append(_File("/etc/hostname", setup.options.name + "\n", 0o644))
    unit = f"""\
[Unit]
Description=Installation of Podlane
Wants=network-online.target
After=network-online.target
ConditionPathExists=!/etc/podlane/install.json

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {SCRIPT}

[Install]
WantedBy=multi-user.target
"""
    config: dict[str, Any] = {
        "ignition": {"version": "3.3.0"},
        "storage": {
            "files": [
                {
                    "path": file.path,
                    "mode": file.mode,
                    "overwrite": True,
                    "contents": {"source": f"data:,{quote(file.content)}"},
                }
                for file in files
            ]
        },
        "systemd": {"units": [{"name": UNIT, "enabled": True, "contents": unit}]},
    }
    if setup.ssh_keys:
        config["passwd"] = {"users": [{"name": "core", "sshAuthorizedKeys": list(setup.ssh_keys)}]}
    return json.dumps(config, indent=2) + "\n"


def _files(setup: Setup) -> list[_File]:
    given = [_File(path, content, 0o600) for path, content in setup.files.items()]
    return [*given, _File(SCRIPT, script(setup), 0o700)]


def install_arguments(setup: Setup) -> list[str]:
    """What `install` is called with on the machine."""
    options = setup.options
    named: Sequence[tuple[str, str]] = (
        ("--role", options.role),
        ("--name", options.name),
        ("--iface", options.iface),
        ("--address", ",".join(options.addresses)),
        ("--etcd", ",".join(options.etcd)),
        ("--ca", options.ca),
        ("--cert", options.cert),
        ("--key", options.key),
        ("--join", options.join),
        ("--token", setup.token),
        ("--etcd-join", ",".join(options.etcd_join)),
    )
    return [word for name, value in named if value for word in (name, value)] + list(setup.arguments)


def script(setup: Setup) -> str:
    """Gets the bundle, checks it and installs. A join is tried for some minutes: the server may come up later."""
    return f"""\
#!/bin/sh
# Written by podlane cloud-init: gets the bundle, checks it, installs. Can be run again.
set -eu
bundle={shlex.quote(setup.bundle)}
sha256={shlex.quote(setup.sha256.lower())}
tries={20 if setup.options.join else 1}

say() {{ echo "podlane-setup: $*"; }}

fetch() {{
    if command -v curl >/dev/null; then
        curl -fsSL -o "$2" "$1"
    else
        python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' "$1" "$2"
    fi
}}

# again TRIES COMMAND...: until it succeeds; wrong usage (2) does not get better.
again() {{
    left=$1
    shift
    while :; do
        code=0
        "$@" || code=$?
        left=$((left - 1))
        [ $code -ne 0 ] && [ $code -ne 2 ] && [ $left -gt 0 ] || return $code
        say "failed (exit $code), again in 15 s, at most $left times"
        sleep 15
    done
}}

case $bundle in
/*) file=$bundle ;;
*)
    file={FOLDER}/podlane.run
    say "getting $bundle"
    again 20 fetch "$bundle" "$file"
    ;;
esac
if [ -n "$sha256" ]; then
    echo "$sha256  $file" | sha256sum -c - || {{
        say "the bundle is not the one whose SHA-256 sum was given: nothing is installed"
        exit 1
    }}
fi
{DOCKER if setup.options.role != "server" else ""}\
say "installing"
again $tries sh "$file" install {shlex.join(install_arguments(setup))}
say "done"
"""
