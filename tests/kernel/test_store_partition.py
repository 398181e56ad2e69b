"""A mirror whose packets are dropped both ways, so that nobody is told: no reset, no refusal, no answer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import Netns, NetnsEtcd, NetnsMaker, eventually

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

WAIT = 60.0

# a process of its own: gRPC's threads stay in the namespace in which they began
MIRROR = """
import sys, threading, time
from podlane.store.config import StoreConfig, connect
from podlane.store.mirror import Mirror

def say():
    items, history = mirror.view()
    print(history, *sorted(items), flush=True)

mirror = Mirror(
    connect(StoreConfig(endpoints=(sys.argv[1],))), "/m/", decode=lambda kv: kv.value, on_change=say, name="partition"
)
threading.Thread(target=mirror.run, args=(threading.Event(),), daemon=True).start()
well = True
while True:
    time.sleep(0.05)
    if mirror.synced and well != (mirror.healthy_since is not None):
        well = not well
        print("well" if well else "cut off", flush=True)
"""

DROP = """
table inet partition {
    chain in { type filter hook input priority 0; iifname eth0 drop; }
    chain out { type filter hook output priority 0; oifname eth0 drop; }
}
"""


@pytest.fixture
def said(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> tuple[Netns, Path]:
    """A host with a mirror in it, and what that says."""
    host, output = netns.host("a"), tmp_path / "said"
    with output.open("wb") as stdout:
        host.popen([sys.executable, "-c", MIRROR, netns_etcd.endpoint], log=tmp_path / "log", stdout=stdout)
    return host, output


def heard(output: Path, line: str) -> None:
    eventually(lambda: line in output.read_text().splitlines(), timeout=WAIT)


def test_a_partition_without_a_word_is_noticed_and_got_over(said: tuple[Netns, Path], netns_etcd: NetnsEtcd) -> None:
    host, output = said
    netns_etcd.ctl("put", "/m/before", "x")
    netns_etcd.ctl("put", "/m/goes", "x")
    heard(output, "1 before goes")
    host.run("nft -f -", stdin=DROP)
    netns_etcd.ctl("put", "/m/during", "x")
    heard(output, "cut off")
    netns_etcd.ctl("del", "/m/goes")
    assert "during" not in output.read_text()
    host.run("nft delete table inet partition")
    netns_etcd.ctl("put", "/m/later", "x")
    heard(output, "1 before during later")
    heard(output, "well")
