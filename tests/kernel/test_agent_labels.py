"""The label that pods' folders get, as the kernel keeps it; that files inherit it takes a machine with SELinux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scheduler.agent import selinux

pytestmark = pytest.mark.kernel


def test_a_folder_is_labelled_for_containers(tmp_path: Path) -> None:
    enforce, folder = tmp_path / "enforce", tmp_path / "pods"
    enforce.write_text("0")
    folder.mkdir()
    for _ in range(2):
        selinux.share(folder, enforce=enforce)
        assert os.getxattr(folder, "security.selinux") == b"system_u:object_r:container_file_t:s0"
