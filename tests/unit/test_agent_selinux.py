"""SELinux: what pods' containers may use of the node's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scheduler.agent import selinux
from scheduler.agent.containers import POD_UID
from scheduler.agent.dockerforms import container_body
from scheduler.agent.podfiles import PodFiles
from scheduler.agent.runtime import NO_NETWORK, ContainerConfig, Security

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("network", "security", "options"),
    [
        ("container:web", Security(), ["label=level:s0:c1,c2"]),
        ("container:web", Security(no_new_privileges=True), ["label=level:s0:c1,c2", "no-new-privileges"]),
        ("container:web", Security(privileged=True), None),
        (NO_NETWORK, Security(), ["no-new-privileges", "seccomp=unconfined"]),
    ],
)
def test_a_pods_containers_run_at_its_level_unless_they_are_privileged(
    network: str, security: Security, options: list[str] | None
) -> None:
    config = ContainerConfig("c", "i", {POD_UID: "u1"}, network, security=security)
    assert container_body(config, level="s0:c1,c2")["HostConfig"].get("SecurityOpt") == options


def test_a_level_has_two_categories_in_order_and_is_the_pods_own() -> None:
    levels = [selinux.level(f"uid-{n}") for n in range(200)]
    assert levels[:2] == [
        "s0:c488,c538",
        "s0:c494,c631",
    ]  # for ever: a restarted agent adds containers to pods that are there
    assert len(set(levels)) == len(levels)
    for level in levels:
        first, second = (int(word.removeprefix("c")) for word in level.removeprefix("s0:").split(","))
        assert 0 <= first < second < 1024


def test_a_folder_has_its_label_before_anything_is_made_in_it(tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []
    pods = PodFiles(tmp_path / "pods", share=lambda folder: seen.append((folder.name, os.listdir(folder))))
    pods.write_hosts(pods.paths().hosts("u1"), "web-1", ["10.5.3.2"])
    assert seen == [("pods", [])]


def test_nothing_is_labelled_where_selinux_is_off(tmp_path: Path) -> None:
    selinux.share(tmp_path, enforce=tmp_path / "enforce")
    assert "security.selinux" not in os.listxattr(tmp_path)
