"""The import of pyroute2 brings what netd uses of it, and hides nothing from others."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit


def fresh(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_parts_that_netd_does_not_use_are_not_imported() -> None:
    unused = ("nftables", "ndb", "ipset", "conntrack", "netlink.nfnetlink", "netlink.generic", "netlink.nl80211")
    parts = {f"pyroute2.{name}" for name in unused}
    assert fresh(f"import sys, netd.kernel; print(sorted({parts!r} & sys.modules.keys()))") == "[]"


def test_others_find_the_whole_package_afterwards() -> None:
    script = """
import sys
import netd.iproute
import pyroute2
from pyroute2 import netns, NDB, IPRoute
import pyroute2.ipset
assert pyroute2.ipset.IPSet is pyroute2.IPSet
assert IPRoute is netd.iproute.IPRoute
assert NDB.__module__ == "pyroute2.ndb.main" and netns is sys.modules["pyroute2.netns"]
assert "IPRoute" in dir(pyroute2) and pyroute2.__version__[0].isdigit()
try:
    pyroute2.nonsense
except AttributeError as error:
    print(error)
"""
    assert fresh(script) == "module 'pyroute2' has no attribute 'nonsense'"


def test_a_package_that_is_there_already_is_left_as_it_is() -> None:
    script = """
import pyroute2
before = dict(vars(pyroute2))
import netd.iproute
import sys
assert sys.modules["pyroute2"] is pyroute2
print(netd.iproute.IPRoute is before["IPRoute"], type(pyroute2).__name__)
"""
    assert fresh(script) == "True module"
