"""The static part, golden; and the command line."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from proxyd.cli import main
from proxyd.ruleset import Skeleton

pytestmark = pytest.mark.unit

GOLDEN = """\
table ip podlane {
  map services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map endpoints { type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; }
  set cluster_ips { type ipv4_addr; }
  set hairpin { type ipv4_addr . ipv4_addr; }
  set pod_networks { type ipv4_addr; flags interval; }
  set service_ranges { type ipv4_addr; flags interval; }
  chain refuse { }
  chain prerouting { type nat hook prerouting priority dstnat; policy accept; }
  chain output { type nat hook output priority -100; policy accept; }
  chain postrouting { type nat hook postrouting priority srcnat; policy accept; }
  chain filter-forward { type filter hook forward priority filter - 10; policy accept; }
  chain filter-output { type filter hook output priority filter - 10; policy accept; }
}
flush set ip podlane pod_networks
add element ip podlane pod_networks { 10.5.0.0/16 }
flush set ip podlane service_ranges
add element ip podlane service_ranges { 10.96.0.0/16, 10.97.0.0/16 }
flush chain ip podlane refuse
add rule ip podlane refuse meta l4proto tcp reject with tcp reset
add rule ip podlane refuse reject with icmp type port-unreachable
flush chain ip podlane prerouting
add rule ip podlane prerouting ip daddr . meta l4proto . th dport vmap @services
flush chain ip podlane output
add rule ip podlane output ip daddr . meta l4proto . th dport vmap @services
flush chain ip podlane postrouting
add rule ip podlane postrouting ct original ip daddr @cluster_ips ip saddr != @pod_networks masquerade fully-random
add rule ip podlane postrouting ct original ip daddr @cluster_ips ip saddr . ip daddr @hairpin masquerade fully-random
flush chain ip podlane filter-forward
add rule ip podlane filter-forward ip daddr @cluster_ips goto refuse
add rule ip podlane filter-forward ip daddr @service_ranges drop
flush chain ip podlane filter-output
add rule ip podlane filter-output ip daddr @cluster_ips goto refuse
add rule ip podlane filter-output ip daddr @service_ranges drop
"""


def test_the_static_part():
    assert Skeleton(("10.5.0.0/16",), ("10.96.0.0/16", "10.97.0.0/16")).script() == GOLDEN


def test_anew_deletes_first_in_the_same_transaction():
    skeleton = Skeleton(("10.5.0.0/16",), ("10.96.0.0/16", "10.97.0.0/16"))
    assert skeleton.script(anew=True) == "table ip podlane { }\ndelete table ip podlane\n" + GOLDEN


def test_a_network_is_checked_before_anything_starts():
    result = CliRunner().invoke(main, ["run", "--cluster-cidr", "10.5.0.0/33"])
    assert result.exit_code == 2
    assert 'expected an IPv4 network such as 10.5.0.0/16, got "10.5.0.0/33"' in result.output


def test_help_names_the_environment_variables():
    result = CliRunner().invoke(main, ["run", "--help"])
    assert result.exit_code == 0
    for name in ("PROXYD_CLUSTER_CIDR", "PROXYD_SERVICE_CIDR", "PROXYD_LOG_LEVEL", "PODLANE_ETCD_ENDPOINTS"):
        assert name in result.output
