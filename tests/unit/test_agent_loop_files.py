"""What becomes of a pod's files as its life goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_objects import container
from agent_world import World, named

from podlane.api.types import EmptyDirVolumeSource, Pod, Volume

pytestmark = pytest.mark.unit


def test_volumes_go_when_the_pod_is_finished_and_all_its_files_when_it_is_gone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start()
    volume = Volume(name="v", empty_dir=EmptyDirVolumeSource())
    pod = world.bind("p", container(), volumes=(volume,), restart_policy="OnFailure")
    world.until(lambda: world.ready("p"))
    folder = tmp_path / "pods" / pod.metadata.uid
    (folder / "volumes" / "v" / "kept").write_text("")
    world.runtime.end(named(pod), 1)
    world.run(1)
    assert (folder / "volumes" / "v" / "kept").exists()
    world.runtime.end(named(pod, 1), 0)
    world.until(lambda: world.get("p").status.phase == "Succeeded")
    world.until(lambda: not (folder / "volumes").exists())
    assert (folder / "hosts").exists()
    world.registry.delete(Pod, "default", "p")
    world.until(lambda: not folder.exists())
