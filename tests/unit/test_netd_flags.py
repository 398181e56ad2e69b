"""A flanneld user's command line and environment, read by netd."""

from __future__ import annotations

import shlex
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from netd.flags import HEALTHZ_PORT, GoCommand, RunOptions, run_options
from netd.goflags import Normalized, normalize
from netd.underlay import UnderlayWish
from podlane.runtime import log
from podlane.runtime.options import DaemonOptions
from podlane.store.config import StoreConfig

pytestmark = pytest.mark.unit

_got: list[RunOptions] = []


@click.command(cls=GoCommand, context_settings={"help_option_names": ["-h", "--help"]})
@run_options
def run(options: RunOptions) -> None:
    _got.append(options)


def invoke(line: str, **environment: str) -> Result:
    _got.clear()
    try:
        return CliRunner().invoke(run, shlex.split(line), env=environment)
    finally:
        log.configure()


def options(line: str, **environment: str) -> RunOptions:
    result = invoke(line, **environment)
    assert result.exit_code == 0, result.output
    assert result.output == ""
    return _got[0]


def mistake(line: str, **environment: str) -> str:
    result = invoke(line, **environment)
    assert result.exit_code == 2, result.output
    assert not _got
    return result.output.splitlines()[-1].removeprefix("Error: ")


# ---- what comes out -------------------------------------------------------------------------------


def test_without_anything_the_defaults() -> None:
    assert options("") == RunOptions()
    assert RunOptions().daemon == DaemonOptions(healthz_port=HEALTHZ_PORT)


def test_every_option() -> None:
    line = """
        --etcd-endpoints=https://a:2379,https://b:2379 --etcd-prefix=/net --etcd-cafile=ca --etcd-certfile=crt
        --etcd-keyfile=key --etcd-username=u --etcd-password=p
        --iface=eth1 --iface=192.168.64.11 --iface-regex=^en --iface-regex=10[.] --iface-can-reach=fd00::1
        --public-ip=198.51.100.7 --public-ipv6=2001:db8::7
        --subnet-file=/x/subnet.env --subnet-lease-renew-margin=5 --net-config-path=/x/net-conf.json
        --ip-masq --ip-masq-fully-random-disable --iptables-forward-rules=false --iptables-resync=30
        --ip-blackhole-route --healthz-ip=0.0.0.0 --healthz-port=8471
        --state-dir=/x/netd --node-name=n1 --vxlan-guard --subnet-quarantine=60 --probe-interval=0.5
        --log-level=debug --log-format=json
    """
    assert options(line) == RunOptions(
        store=StoreConfig(("https://a:2379", "https://b:2379"), "ca", "crt", "key", "u", "p"),
        daemon=DaemonOptions("debug", "json", "0.0.0.0", 8471),
        etcd_prefix="/net",
        underlay=UnderlayWish(
            ifaces=("eth1", "192.168.64.11"),
            iface_regexes=("^en", "10[.]"),
            can_reach=IPv6Address("fd00::1"),
            public_ip=IPv4Address("198.51.100.7"),
            public_ipv6=IPv6Address("2001:db8::7"),
        ),
        subnet_file=Path("/x/subnet.env"),
        state_dir=Path("/x/netd"),
        node_name="n1",
        net_config_path=Path("/x/net-conf.json"),
        renew_margin=300,
        subnet_quarantine=60,
        ip_masq=True,
        random_fully=False,
        forward_rules=False,
        firewall_resync=30.0,
        blackhole_route=True,
        vxlan_guard=True,
        probe_interval=0.5,
    )


@pytest.mark.parametrize(
    "line",
    [
        "-iface=eth1 -ip-masq -public-ip=198.51.100.7",
        "--iface eth1 --ip-masq=true --public-ip 198.51.100.7",
        "-iface eth1 --ip-masq=1 -public-ip 198.51.100.7 -public-ipv6= -iface-can-reach= -iface-regex=",
        "--ip-masq=T -iface=eth1 -iface= --public-ip=10.0.0.1 --public-ip=198.51.100.7 -kube-subnet-mgr=false",
        "-iface eth1 -no-ip-masq --public-ip 198.51.100.7 --ip-masq",
    ],
)
def test_gos_syntax(line: str) -> None:
    wish = UnderlayWish(ifaces=("eth1",), public_ip=IPv4Address("198.51.100.7"))
    assert options(line) == RunOptions(underlay=wish, ip_masq=True)


def test_off_again() -> None:
    assert options("--ip-masq --ip-masq=false --no-iptables-forward-rules") == RunOptions(forward_rules=False)
    assert options("--ip-masq --no-ip-masq -vxlan-guard=0") == RunOptions()


def test_a_value_may_look_like_a_flag() -> None:
    assert options("-etcd-username u -etcd-password -ip-masq") == RunOptions(
        store=StoreConfig(username="u", password="-ip-masq")
    )


def test_no_health_port_is_0_as_for_flanneld() -> None:
    assert options("-healthz-port=0") == RunOptions(daemon=DaemonOptions(healthz_port=None))


# ---- the environment ------------------------------------------------------------------------------


def test_the_environment_in_the_order_of_precedence() -> None:
    flannel = {
        "FLANNELD_ETCD_ENDPOINTS": "http://f:2379",
        "FLANNELD_IFACE": "eth1",
        "FLANNELD_IP_MASQ": "true",
        "FLANNELD_IPTABLES_FORWARD_RULES": "false",
        "FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "30",
    }
    base = RunOptions(
        store=StoreConfig(("http://f:2379",)),
        underlay=UnderlayWish(ifaces=("eth1",)),
        ip_masq=True,
        forward_rules=False,
        renew_margin=1800,
    )
    assert options("", **flannel) == base
    netd = flannel | {"NETD_IFACE": "eth2", "NETD_IP_MASQ": "false", "NETD_ETCD_ENDPOINTS": ""}
    mixed = replace(base, underlay=UnderlayWish(ifaces=("eth2",)), ip_masq=False)
    assert options("", **netd) == mixed
    by_flag = options("-iface eth3 -iptables-forward-rules", **netd)
    assert by_flag == replace(mixed, underlay=UnderlayWish(ifaces=("eth3",)), forward_rules=True)


def test_several_interfaces_in_one_variable() -> None:
    assert options("", NETD_IFACE="eth1, 10.0.0.1 eth3").underlay.ifaces == ("eth1", "10.0.0.1", "eth3")
    regex = "^e(n|th)[0-9]{1,2}$| "
    assert options("", FLANNELD_IFACE_REGEX=regex).underlay.iface_regexes == (regex,)


def test_every_flag_has_its_variables() -> None:
    own = {"state_dir", "node_name", "vxlan_guard", "subnet_quarantine", "probe_interval", "log_level", "log_format"}
    for param in run.params:
        assert param.name is not None
        if param.name in {"version"}:
            continue
        assert isinstance(param.envvar, list | str)
        names = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar)
        assert names[0] == f"NETD_{param.name.upper()}"
        assert (names[-1] == f"FLANNELD_{param.name.upper()}") == (param.name not in own)


# ---- what has no effect, and what cannot be ---------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("-v=5 -iface eth1", '"-v=5"'),
        ("-v 5 -iface eth1", '"-v 5"'),
        ("-iface eth1 --logtostderr", "--logtostderr"),
        ("-alsologtostderr -vmodule=a=1 -log-dir /tmp -iface eth1", '"-alsologtostderr,-vmodule=a=1,-log-dir /tmp"'),
        ("-persistent-mac -iface eth1", "-persistent-mac"),
    ],
)
def test_flags_of_flannels_logger_are_noted_and_left_out(line: str, flags: str) -> None:
    result = invoke(line)
    assert result.exit_code == 0
    assert _got == [RunOptions(underlay=UnderlayWish(ifaces=("eth1",)))]
    (note,) = result.stderr.splitlines()
    assert note.endswith(f'event="flags without effect: --log-level says how much is logged" flags={flags}')


def test_so_are_its_variables_and_the_note_is_in_the_form_asked_for() -> None:
    result = invoke("-v=5 --log-format=json", FLANNELD_V="3")
    assert '"flags": ["-v=5", "FLANNELD_V"]' in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("line", "environment", "what"),
    [
        ("--kube-subnet-mgr", {}, "--kube-subnet-mgr"),
        ("-kube-subnet-mgr=true -iface eth1", {}, "--kube-subnet-mgr"),
        ("--kubeconfig-file=/etc/x", {}, "--kubeconfig-file"),
        ("--kube-api-url http://x", {}, "--kube-api-url"),
        ("", {"FLANNELD_KUBE_SUBNET_MGR": "true"}, "FLANNELD_KUBE_SUBNET_MGR=true"),
        ("", {"FLANNELD_KUBE_API_URL": "http://x"}, "FLANNELD_KUBE_API_URL=http://x"),
    ],
)
def test_leases_in_kubernetes_are_refused(line: str, environment: dict[str, str], what: str) -> None:
    assert mistake(line, **environment) == (
        f"{what}: netd keeps leases in etcd and does not ask the Kubernetes API; "
        "leave it out and give --etcd-endpoints, or stay with flanneld on such a cluster"
    )


def test_unless_they_are_switched_off() -> None:
    assert options("-kube-subnet-mgr=false", FLANNELD_SET_NODE_NETWORK_UNAVAILABLE="false") == RunOptions()


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("ip-masq", "maybe", "true or false"),
        ("ip-masq", "", "true or false"),
        ("public-ip", "fd00::1", "an IPv4 address"),
        ("public-ipv6", "fe80::1%eth0", "an IPv6 address"),
        ("iface-can-reach", "etcd", "an IP address"),
        ("subnet-lease-renew-margin", "0", "whole minutes from 1 to 1439"),
        ("subnet-lease-renew-margin", "1440", "whole minutes from 1 to 1439"),
        ("iptables-resync", "0", "whole seconds from 1 to 86400"),
        ("iptables-resync", "5s", "whole seconds from 1 to 86400"),
        ("probe-interval", "-1", "seconds from 0 to 86400"),
        ("probe-interval", "nan", "seconds from 0 to 86400"),
        ("subnet-quarantine", "1.5", "whole seconds from 0 to 1000000000"),
        ("etcd-prefix", "/", "a key prefix such as /coreos.com/network"),
        ("subnet-file", "", "a file"),
        ("state-dir", "", "a folder"),
    ],
)
def test_a_bad_value_names_the_flag_and_what_is_expected(flag: str, value: str, expected: str) -> None:
    text = mistake(f"-{flag}={value}")
    assert text.startswith(f"Invalid value for '--{flag}' (env var: ")
    assert text.endswith(f'): expected {expected}, got "{value}"')


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-etcd-endpoints=ftp://a", '--etcd-endpoints: expected scheme http or https, got "ftp://a"'),
        ("-ip-masq true", "Got unexpected extra argument (true)"),
        ("-iface", "Option '--iface' requires an argument."),
        ("-remote=10.0.0.1:8888", "No such option '--remote'."),
        ("-x", "No such option '--x'."),
    ],
)
def test_mistakes(line: str, message: str) -> None:
    assert mistake(line) == message


def test_a_regular_expression_that_is_none() -> None:
    assert 'expected a regular expression, got "(": missing )' in mistake("-iface-regex=(")


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    assert mistake("", FLANNELD_PUBLIC_IP="eth1") == (
        "Invalid value for '--public-ip' (env var: 'NETD_PUBLIC_IP', 'FLANNELD_PUBLIC_IP'): "
        'expected an IPv4 address, got "eth1"'
    )


def test_help_and_version() -> None:
    for line in ("-h", "-help", "--help"):
        result = invoke(line)
        assert result.exit_code == 0
        assert "--ip-blackhole-route [true|false]" in result.output
    for line in ("-version", "--version"):
        assert invoke(line).output.startswith("netd, version ")


def test_a_shell_may_ask_for_completions_of_anything() -> None:
    context = run.make_context("run", ["--kube-subnet-mgr", "--ifa"], resilient_parsing=True)
    assert context.params["ip_masq"] is not None


# ---- the syntax alone -----------------------------------------------------------------------------

BOOLEANS, VALUED = {"b"}, {"s"}


def normal(*args: str) -> tuple[str, ...]:
    return normalize(args, booleans=BOOLEANS, valued=VALUED).args


def test_what_stands_alone_is_left_alone() -> None:
    assert normal("-s=a", "x", "-", "--", "-s", "y") == ("--s=a", "x", "-", "--", "-s", "y")
    assert normal("-s=a=b", "-s", "--", "-no-b", "-no-b=true") == ("--s=a=b", "--s=--", "--b=false", "--no-b=true")


@given(st.lists(st.tuples(st.sampled_from(["b", "s"]), st.booleans(), st.booleans(), st.text(min_size=1))))
def test_both_forms_of_both_dashes_mean_the_same(flags: list[tuple[str, bool, bool, str]]) -> None:
    written: list[str] = []
    for name, two_dashes, apart, value in flags:
        flag = f"--{name}" if two_dashes else f"-{name}"
        written += [flag, value] if apart and name == "s" else [f"{flag}={value}"]
    expected = tuple(f"--{name}={value}" for name, _, _, value in flags)
    assert normalize(written, booleans=BOOLEANS, valued=VALUED) == Normalized(expected)
