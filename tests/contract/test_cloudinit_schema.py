"""cloud-init's own opinion of what `podlane cloud-init` prints."""

from __future__ import annotations

import subprocess

import pytest

from podlane.host.cloudinit import Setup, cloud_config
from podlane.host.options import InstallOptions

pytestmark = pytest.mark.contract

NODE = InstallOptions(role="node", name="n1", join="https://192.0.2.1:10261", iface="eth1")
SERVER = InstallOptions(role="all", ca="/var/lib/podlane-setup/ca.pem")


@pytest.mark.parametrize(
    "setup",
    [
        Setup(SERVER, "/mnt/podlane.run", ssh_keys=("ssh-ed25519 AAAA me",), files={"/etc/x": "a: b\n"}),
        Setup(NODE, "http://192.0.2.1/podlane.run", "a" * 64, token="id.secret.hash", family="none"),
    ],
    ids=["server", "node"],
)
def test_user_data_fits_the_schema(setup, tmp_path):
    file = tmp_path / "user-data"

    def verdict(text: str) -> subprocess.CompletedProcess[str]:
        file.write_text(text)
        words = ["cloud-init", "schema", "--config-file", str(file)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    good = verdict(cloud_config(setup))
    assert good.returncode == 0, good.stdout + good.stderr
    # the check means something: it refuses what is wrong
    assert verdict(cloud_config(setup).replace("runcmd:", "runcmd: 7\nx:")).returncode != 0
