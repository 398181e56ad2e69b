"""The join service as systemd runs it: a process of its own, which goes on until it is told to end."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from podlane.store.roles import shared_roles
from tests.conftest import free_port, in_memory, running
from tests.contract.joining import JoinableCluster
from tests.contract.secured_etcd import SecuredEtcd, eventually

pytestmark = [pytest.mark.contract, pytest.mark.timeout(180)]


def answer(url: str) -> str:
    """ "" while nobody answers, or answers that it is not ready."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except (OSError, urllib.error.HTTPError):
        return ""


def test_it_goes_on_when_what_it_does_once_is_done(tmp_path: Path) -> None:
    with in_memory() as folder, running(SecuredEtcd(folder)) as etcd:
        cluster = JoinableCluster(etcd, tmp_path)
        config, port, healthz = cluster.config(etcd.pki, "join"), free_port(), free_port()
        given = {
            "PODLANE_JOIN_NAME": "s1",
            "PODLANE_JOIN_ADDRESS": "127.0.0.1",
            "PODLANE_JOIN_PORT": str(port),
            "PODLANE_JOIN_HEALTHZ_PORT": str(healthz),
            "PODLANE_PKI": str(etcd.pki),
            "PODLANE_ETCD_ENDPOINTS": ",".join(config.endpoints),
            "PODLANE_ETCD_CAFILE": config.cafile,
            "PODLANE_ETCD_CERTFILE": config.certfile,
            "PODLANE_ETCD_KEYFILE": config.keyfile,
        }
        argv = [sys.executable, "-m", "podlane.cli.main", "host", "join-serve"]
        log = tmp_path / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(argv, env=os.environ | given, stdout=file, stderr=file)
        try:
            eventually(lambda: answer(f"http://127.0.0.1:{healthz}/readyz"), "it is ready")
            wanted = {role.name for role in shared_roles()}
            eventually(lambda: wanted <= set(cluster.accounts.roles()), "the roles are looked at")
            assert "podlane_etcd_snapshot_timestamp_seconds" in answer(f"http://127.0.0.1:{healthz}/metrics")
            cluster.url = f"https://127.0.0.1:{port}"
            assert cluster.join("w1", cluster.token(), "10.9.0.11").name == "w1"
        finally:
            process.terminate()
            code = process.wait(60)
            cluster.close()
    assert code == 0, log.read_text()
