"""Builds the virtual machines' disk, once for each recipe.

Owns: the folder of one image in the cache. Invariants: an image that is there
is whole, because its folder gets its name last; an interrupted build goes on
where it was, because each stage leaves its mark when it is done and can be
repeated; no loop device is needed; apt's own sources are used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.runtime.command import run
from tests.vm.recipe import SUITE, Recipe, sources_from_apt

BUILD_TIMEOUT = 1800.0
APT = ("apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root")
ENVIRONMENT = ("/usr/bin/env", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")


@dataclass(frozen=True)
class Image:
    """A bootable disk with its kernel beside it."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


def machine_sources(mirror: str = "") -> tuple[tuple[str, str, str], ...]:
    """Where the packages come from: `mirror`, or what this machine's apt uses for the suite."""
    if mirror:
        return ((mirror, SUITE, "main"),)
    listing = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        timeout=60,
    )
    sources = sources_from_apt(listing.stdout)
    if not sources:
        raise PodlaneError(f"build the image: apt has no source for Debian {SUITE} here; give --mirror URL")
    return sources


def build(recipe: Recipe, cache: Path, say: Callable[[str], None]) -> Image:
    """The image of a recipe, from the cache or made now."""
    done = cache / f"image-{recipe.key}"
    if not done.exists():
        _Build(recipe, cache / f"building-{recipe.key}", say).run(done)
    return Image(done)


class _Build:
    def __init__(self, recipe: Recipe, folder: Path, say: Callable[[str], None]) -> None:
        self._recipe, self._folder, self._say = recipe, folder, say
        self._root = folder / "root"

    def run(self, done: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for stage in (self._bootstrap, self._packages, self._files, self._disk):
            name = stage.__name__.strip("_")
            mark = self._folder / f"{name}.done"
            if mark.exists():
                continue
            begin = time.monotonic()
            self._say(f"{name}…")
            stage()
            mark.touch()
            self._say(f"{name}: {time.monotonic() - begin:.0f} s")
        shutil.rmtree(self._root)
        self._folder.rename(done)

    def _bootstrap(self) -> None:
        """The base system. A half-made one is thrown away: debootstrap cannot go on with it."""
        shutil.rmtree(self._root, ignore_errors=True)
        uri, suite, _ = self._recipe.sources[0]
        run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(self._root), uri],
            timeout=BUILD_TIMEOUT,
        )

    def _packages(self) -> None:
        """Everything else, by apt in the new system, which knows what debootstrap does not: virtual packages."""
        self._write("/etc/apt/sources.list", self._recipe.apt_sources)
        self._write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode=0o755)
        for path in ("/etc/initramfs-tools/conf.d/podlane", "/etc/initramfs-tools/modules"):
            self._write(path, dict(self._recipe.files)[path])
        shutil.copyfile("/etc/resolv.conf", self._root / "etc/resolv.conf")
        with self._mounted():
            self._inside("dpkg", "--configure", "-a")
            self._inside(*APT, "update")
            keep = ("-o", "Dpkg::Options::=--force-confold")
            self._inside(*APT, *keep, "install", "--no-install-recommends", *self._recipe.packages)
            self._inside(*APT, "clean")

    def _files(self) -> None:
        for path, text in self._recipe.files:
            self._write(path, text)
        for path in ("usr/sbin/policy-rc.d", "etc/resolv.conf", "etc/machine-id", "etc/hostname"):
            (self._root / path).unlink(missing_ok=True)
        self._write("/etc/machine-id", "")  # each machine makes its own at its first boot
        shutil.rmtree(self._root / "var/lib/apt/lists", ignore_errors=True)
        self._inside("systemctl", "enable", *self._recipe.enabled)
        self._inside("systemctl", "mask", *self._recipe.masked)
        with self._mounted():
            self._inside("update-initramfs", "-u", "-k", "all")

    def _disk(self) -> None:
        boot = self._root / "boot"
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
            [source] = boot.glob(pattern)
            shutil.copyfile(source, self._folder / name)
        disk = self._folder / "disk.raw"
        disk.unlink(missing_ok=True)
        size = f"{self._recipe.size_gb}G"
        features = self._recipe.filesystem
        run(
            ["mkfs.ext4", "-q", "-O", features, "-m", "0", "-L", "root", "-d", str(self._root), str(disk), size],
            timeout=BUILD_TIMEOUT,
        )

    def _write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        file = self._root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def _inside(self, *argv: str) -> None:
        run(["chroot", str(self._root), *ENVIRONMENT, *argv], timeout=BUILD_TIMEOUT)

    @contextlib.contextmanager
    def _mounted(self) -> Iterator[None]:
        """What packages' scripts look at. Left-overs of a killed build are used and removed, too."""
        wanted = (("proc", "proc"), ("sysfs", "sys"))
        for kind, name in wanted:
            if not os.path.ismount(self._root / name):
                run(["mount", "-t", kind, kind, str(self._root / name)], timeout=30)
        try:
            yield
        finally:
            for _, name in wanted:
                run(["umount", "--lazy", str(self._root / name)], timeout=30)
