from __future__ import annotations

import json

import pytest
from cli_shell import Shell, lines
from msgspec.structs import replace

from podlane.api.network import parse_config
from podlane.api.types import ClusterConfig
from podlane.store.interface import Put

pytestmark = pytest.mark.unit

KEY = "/coreos.com/network/config"


@pytest.fixture
def shell() -> Shell:
    return Shell(init=False)


def network(shell: Shell, key: str = KEY) -> dict:
    stored = shell.store.get(key)
    assert stored is not None
    return json.loads(stored.value)


def test_the_defaults(shell):
    assert shell.ok("init") == "network created\ncluster created\n"
    assert network(shell) == {
        "Network": "10.244.0.0/16",
        "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472},
    }
    config = shell.registry.cluster_config()
    assert replace(config, agent_token="") == ClusterConfig()
    assert len(config.agent_token) >= 32


def test_two_clusters_have_different_tokens(shell):
    other = Shell(init=False)
    for each in (shell, other):
        each.ok("init")
    assert shell.registry.cluster_config().agent_token != other.registry.cluster_config().agent_token


def test_every_option_arrives(shell):
    shell.ok(
        *("init", "--network", "10.1.0.0/16", "--service-cidr", "10.2.0.0/20", "--subnet-len", "25", "--vni", "7"),
        *("--port", "4789", "--mtu", "1400", "--direct-routing", "--cluster-domain", "example.test"),
        *("--node-lease-seconds", "3", "--node-grace-seconds", "1", "--etcd-prefix", "/net/"),
    )
    config = parse_config(json.dumps(network(shell, "/net/config")))
    assert (str(config.network), config.subnet_len) == ("10.1.0.0/16", 25)
    backend = config.backend
    assert (backend.vni, backend.port, backend.mtu, backend.direct_routing) == (7, 4789, 1400, True)
    cluster = shell.registry.cluster_config()
    assert replace(cluster, agent_token="") == ClusterConfig(
        service_cidr="10.2.0.0/20", cluster_domain="example.test", node_lease_seconds=3, node_grace_seconds=1
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "10.1.0.0/16,fd00:1::/48",
            {"Network": "10.1.0.0/16", "IPv6Network": "fd00:1::/48", "EnableIPv6": True},
        ),
        ("fd00:1::/48", {"IPv6Network": "fd00:1::/48", "EnableIPv6": True, "EnableIPv4": False}),
    ],
)
def test_pods_with_addresses_of_each_family(shell, given, expected):
    shell.ok("init", "--network", given, "--service-cidr", "10.96.0.0/16,fd00:96::/112")
    stored = network(shell)
    del stored["Backend"]
    assert stored == expected
    assert shell.ok("init", "--network", given, "--service-cidr", "10.96.0.0/16,fd00:96::/112") == (
        "network unchanged\ncluster unchanged\n"
    )


def test_two_networks_of_a_family_are_refused(shell):
    assert "--network: expected one network, or one of each family" in shell.fails(
        "init", "--network", "10.1.0.0/16,10.2.0.0/16", code=2
    )
    assert shell.store.get(KEY) is None


def test_again_changes_nothing(shell):
    shell.ok("init")
    before = shell.revision()
    assert shell.ok("init") == "network unchanged\ncluster unchanged\n"
    assert shell.revision() == before


def test_what_flannel_wrote_is_recognised_by_its_meaning(shell):
    shell.store.txn([], [Put(KEY, b'{"Network":"10.244.0.0/16", "Backend":{"Type":"vxlan"}}')])
    assert shell.ok("init") == "network unchanged\ncluster created\n"


def test_an_init_cut_in_the_middle_is_finished(shell):
    shell.ok("init")
    shell.store.txn([], [Put("/podlane/config", b'{"nodeLeaseSeconds":10}')])
    assert shell.ok("init") == "network unchanged\ncluster unchanged\n"
    assert shell.registry.cluster_config().agent_token


def test_a_difference_is_refused_and_shown(shell):
    shell.ok("init")
    before = shell.revision()
    errors = lines(shell.fails("init", "--vni", "9", "--node-grace-seconds", "60"))
    assert errors == [
        "error: init: the cluster is configured differently; --force replaces it:",
        "error: cluster.nodeGraceSeconds: 5 -> 60",
        'error: network.backend.vni: "1" -> "9"',
    ]
    assert shell.revision() == before


def test_force_replaces_but_keeps_the_token(shell):
    shell.ok("init")
    token = shell.registry.cluster_config().agent_token
    result = shell.run("init", "--force", "--node-grace-seconds", "60")
    assert (result.exit_code, result.stdout) == (0, "network unchanged\ncluster configured\n")
    assert "warning: cluster.nodeGraceSeconds: 5 -> 60" in result.stderr
    after = shell.registry.cluster_config()
    assert (after.agent_token, after.node_grace_seconds) == (token, 60)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--network", "10.96.0.0/12"), "--service-cidr: 10.96.0.0/16 overlaps the pods' network 10.96.0.0/12"),
        (("--service-cidr", "10.244.3.0/24"), "--service-cidr: 10.244.3.0/24 overlaps the pods' network"),
        (("--network", "ten"), "Network: expected a network such as"),
        (("--network", "10.244.0.0/30"), "Network: 10.244.0.0/30 is too small"),
        (("--service-cidr", "10.96.0.1/16"), "--service-cidr: "),
        (("--vni", "16777216"), "Backend.VNI: expected an integer from 0 to 16777215"),
        (("--port", "70000"), "Backend.Port: expected an integer"),
        (("--node-lease-seconds", "1"), "Invalid value for '--node-lease-seconds'"),
    ],
)
def test_wrong_settings_write_nothing(shell, args, message):
    before = shell.revision()
    assert message in shell.fails("init", *args, code=2)
    assert shell.revision() == before


def test_all_that_is_wrong_is_said_at_once(shell):
    errors = shell.fails("init", "--service-cidr", "x", "--vni", "-1", code=2)
    assert "Backend.VNI" in errors
    assert "--service-cidr" in errors


def test_dry_run_needs_no_etcd_and_prints_no_token(shell):
    shell.store.faults.set_down(True)
    shown = shell.ok("init", "--dry-run", "--vni", "5")
    assert lines(shown)[0].startswith(KEY + " {")
    assert '"VNI": 5' in shown
    assert "oken" not in shown
    assert lines(shown)[-2:] == ["network created (dry run)", "cluster created (dry run)"]
    shell.store.faults.set_down(False)
    assert shell.store.get(KEY) is None


def test_without_etcd(shell):
    shell.store.faults.set_down(True)
    assert len(lines(shell.fails("init"))) == 1


def test_a_broken_config_is_named(shell):
    shell.store.txn([], [Put(KEY, b"{")])
    assert shell.fails("init").startswith(f"error: read {KEY}: not JSON")


def test_two_service_ranges_and_the_ports_of_nodes(shell):
    shell.ok("init", "--service-cidr", "10.96.0.0/16, fd00:10:96::/112", "--service-node-port-range", "31000-31999")
    config = shell.registry.cluster_config()
    assert (config.service_cidr, config.service_node_port_range) == ("10.96.0.0/16,fd00:10:96::/112", "31000-31999")
    again = shell.ok("init", "--service-cidr", "10.96.0.0/16,fd00:10:96::/112", "--service-node-port-range=31000-31999")
    assert again == "network unchanged\ncluster unchanged\n"
    errors = lines(shell.fails("init", "--service-node-port-range=31000-31999"))
    assert errors[1:] == ['error: cluster.serviceCIDR: "10.96.0.0/16,fd00:10:96::/112" -> "10.96.0.0/16"']


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--service-cidr", "10.96.0.0/16,10.97.0.0/16"),
            "--service-cidr: expected one range, or one of each family, got 10.96.0.0/16, 10.97.0.0/16",
        ),
        (("--service-cidr", "fd00::/112,10.244.0.0/24"), "--service-cidr: 10.244.0.0/24 overlaps the pods' network"),
        (
            ("--service-node-port-range", "32767-30000"),
            "--service-node-port-range: expected ports from 1 to 65535, the lower first, got 32767-30000",
        ),
    ],
)
def test_wrong_ranges_write_nothing(shell, args, message):
    before = shell.revision()
    assert message in shell.fails("init", *args, code=2)
    assert shell.revision() == before
