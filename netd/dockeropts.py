"""`netd docker-opts`: what flannel's mk-docker-opts.sh does, with its flags and its output.

Owns: turning the subnet file into options of dockerd in a file that a unit
reads as EnvironmentFile. Invariants: the output is the script's to the byte;
nothing is written unless the subnet file is whole; the file is replaced at once
and never half there. As in the script, variables of the environment named
DOCKER_OPT_… go along, the one named by --key comes first, and what was in the
output file before does not count. Source: flannel dist/mk-docker-opts.sh.

One thing differs: the script splits a DOCKER_OPT_ variable of several words in
two and writes rubbish; here it stays one.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path

import click

from podlane.errors import PodlaneError
from podlane.runtime.atomic import write_atomic

_OURS = "DOCKER_OPT_"
_ROUTES = Path("/proc/net/route")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_subnet_file(text: str) -> dict[str, str]:
    """The variables of a subnet file, quoted or not. Raises ValueError when it cannot be one."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        for word in shlex.split(line, comments=True):
            name, equals, value = word.partition("=")
            if equals and _VARIABLE.fullmatch(name):
                values[name] = value
    if not values.get("FLANNEL_SUBNET") and not values.get("FLANNEL_IPV6_SUBNET"):
        raise ValueError("FLANNEL_SUBNET is missing")
    for name, kind in (("FLANNEL_SUBNET", IPv4Interface), ("FLANNEL_IPV6_SUBNET", IPv6Interface)):
        subnet = values.get(name, "")
        if subnet and "/" not in subnet:
            raise ValueError(f'{name}: expected an address with its prefix length, got "{subnet}"')
        if subnet:
            kind(subnet)
    if (mtu := values.get("FLANNEL_MTU")) and not (mtu.isascii() and mtu.isdigit()):
        raise ValueError(f'FLANNEL_MTU: expected a number of bytes, got "{mtu}"')
    if values.get("FLANNEL_IPMASQ", "") not in {"", "true", "false"}:
        raise ValueError(f'FLANNEL_IPMASQ: expected true or false, got "{values["FLANNEL_IPMASQ"]}"')
    return values


def docker_variables(values: Mapping[str, str], *, ip_masq: bool = True) -> dict[str, str]:
    """The variables that a subnet file's become. Docker must not masquerade what flannel does already."""
    out: dict[str, str] = {}
    if subnet := values.get("FLANNEL_SUBNET"):
        out["DOCKER_OPT_BIP"] = f"--bip={subnet}"
    if mtu := values.get("FLANNEL_MTU"):
        out["DOCKER_OPT_MTU"] = f"--mtu={mtu}"
    if (done := values.get("FLANNEL_IPMASQ")) and ip_masq:
        out["DOCKER_OPT_IPMASQ"] = f"--ip-masq={'false' if done == 'true' else 'true'}"
    return out


def render(variables: Mapping[str, str], *, individual: bool, combined: bool, key: str) -> str:
    """The output file. With neither form asked for, both are written."""
    individual, combined = individual or not combined, combined or not individual
    options = {name: " ".join(variables[name].split()) for name in sorted(variables) if name.startswith(_OURS)}
    lines = [f'{name}="{value}"' for name, value in options.items()] if individual else []
    if combined:
        before = variables.get(key, "")
        everything = "".join(f" {value}" for value in options.values())
        lines.append(f'{key}="{before}{" " if before else ""}{everything}"')
    return "".join(f"{line}\n" for line in lines)


def routed_elsewhere(routes: str, subnet: str) -> str:
    """The gateway that /proc/net/route has for exactly this subnet; empty without one.

    The numbers there are addresses in network order, printed as the host's integers.
    """
    network = IPv4Interface(subnet).network
    for line in routes.splitlines()[1:]:
        _, destination, gateway, _, _, _, _, mask, *_ = line.split()
        if (_address(destination), _address(mask)) == (network.network_address, network.netmask) and int(gateway, 16):
            return str(_address(gateway))
    return ""


def _address(text: str) -> IPv4Address:
    return IPv4Address(socket.htonl(int(text, 16)))


def _write(path: Path, text: str) -> None:
    if path.exists() and not path.is_file():  # /dev/stdout and the like must not become files
        path.write_text(text)
    else:
        write_atomic(path.resolve(), text)


def _make(subnet_file: Path, output: Path, *, individual: bool, combined: bool, key: str, ip_masq: bool) -> None:
    try:
        values = parse_subnet_file(subnet_file.read_text())
        routes = _ROUTES.read_text()
    except OSError as error:
        raise PodlaneError(f"read {error.filename}: {error.strerror or error}; does netd run?") from error
    except ValueError as error:
        raise PodlaneError(f"read {subnet_file}: {error}") from error
    variables = {**os.environ, **values, **docker_variables(values, ip_masq=ip_masq)}
    _write(output, render(variables, individual=individual, combined=combined, key=key))
    subnet = values.get("FLANNEL_SUBNET")
    if subnet and (gateway := routed_elsewhere(routes, subnet)):
        raise PodlaneError(f"use subnet {subnet}: this host has a route for it via {gateway}")


def _key(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise click.BadParameter(f'expected the name of a variable, got "{value}"')
    return value


@click.command("docker-opts")
@click.option(
    "-f",
    "--subnet-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default="/run/flannel/subnet.env",
    show_default=True,
    envvar=["NETD_SUBNET_FILE", "FLANNELD_SUBNET_FILE"],
    show_envvar=True,
    help="The file that netd writes.",
)
@click.option(
    "-d",
    "--docker-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default="/run/docker_opts.env",
    show_default=True,
    envvar="NETD_DOCKER_FILE",
    show_envvar=True,
    help="The file to write.",
)
@click.option("-i", "--individual", is_flag=True, envvar="NETD_DOCKER_INDIVIDUAL", help="One variable an option.")
@click.option("-c", "--combined", is_flag=True, envvar="NETD_DOCKER_COMBINED", help="One variable with all options.")
@click.option(
    "-k",
    "--key",
    default="DOCKER_OPTS",
    show_default=True,
    envvar="NETD_DOCKER_KEY",
    show_envvar=True,
    callback=_key,
    help="Name of the variable with all options.",
)
@click.option("-m", "--no-ip-masq", is_flag=True, envvar="NETD_DOCKER_NO_IP_MASQ", help="Say nothing of --ip-masq.")
def docker_opts(
    *, subnet_file: Path, docker_file: Path, individual: bool, combined: bool, key: str, no_ip_masq: bool
) -> None:
    """Write dockerd's options for this host's subnet, as mk-docker-opts.sh does.

    Without -i and -c both forms are written.
    """
    try:
        _make(subnet_file, docker_file, individual=individual, combined=combined, key=key, ip_masq=not no_ip_masq)
    except PodlaneError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
