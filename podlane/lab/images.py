"""The lab's one image, `podlane/web:1`, built on the spot from Debian's static busybox.

On port 8080 (or $PORT) it answers `/` with its host name, `/healthz` with `ok`,
`/cgi-bin/caller` with its host name and the address that it was called from,
and `/cgi-bin/ticks?N` with N lines, a tenth of a second apart. On SIGTERM it
stops listening, answers what it has, and ends: a shell is process 1 there,
because the kernel ignores signals for which process 1 has no handler, and ends
all others when process 1 does.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.lab.topology import Host, Topology
from podlane.runtime.command import run

WEB_IMAGE = "podlane/web:1"
BUSYBOX = Path("/bin/busybox")
APPLETS = (
    "sh",
    "httpd",
    "hostname",
    "sleep",
    "cat",
    "echo",
    "env",
    "ls",
    "wget",
    "nc",
    "kill",
    "ps",
    "pidof",
    "seq",
    "ip",
    "ping",
)
START = """#!/bin/sh
hostname > /www/index.html
httpd -f -p "${PORT:-8080}" -h /www &
server=$!
trap 'asked=yes; kill "$server"' TERM INT
wait "$server"
code=$?
[ -z "$asked" ] || code=0
while pidof httpd > /dev/null; do sleep 0.05; done # one for each request under way
exit "$code"
"""
CALLER = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n%s %s\\n' "$(hostname)" "$REMOTE_ADDR"
"""
TICKS = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
for tick in $(seq "${QUERY_STRING:-10}"); do
    echo "$tick"
    sleep 0.1
done
"""
FILES = (
    ("start", 0o755, START),
    ("www/healthz", 0o644, "ok\n"),
    ("www/cgi-bin/caller", 0o755, CALLER),
    ("www/cgi-bin/ticks", 0o755, TICKS),
)


def web_tar(busybox: Path = BUSYBOX) -> bytes:
    """The image's root file system; the same bytes for the same busybox."""
    try:
        binary = busybox.read_bytes()
    except OSError as error:
        raise PodlaneError(f"build {WEB_IMAGE}: {busybox}: {error.strerror} (Debian: busybox-static)") from error
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "tmp", "etc", "www", "www/cgi-bin"):
            tar.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
        tar.addfile(_entry("bin/busybox", tarfile.REGTYPE, 0o755, len(binary)), io.BytesIO(binary))
        for applet in APPLETS:
            link = _entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            tar.addfile(link)
        for name, mode, text in FILES:
            tar.addfile(_entry(name, tarfile.REGTYPE, mode, len(text)), io.BytesIO(text.encode()))
    return buffer.getvalue()


def load(lab: Topology, host: Host) -> bool:
    """Import the image on a host unless this very one is there; tell whether it was imported."""
    data = web_tar()
    digest = hashlib.sha256(data).hexdigest()
    docker = ["docker", "-H", f"unix://{lab.docker_socket(host)}"]
    label = '{{ index .Config.Labels "podlane.io/digest" }}'
    present = run([*docker, "image", "inspect", "--format", label, WEB_IMAGE], timeout=20, check=False)
    if present.returncode == 0 and present.stdout.strip() == digest:
        return False
    file = lab.run_dir / host.name / "web.tar"
    file.write_bytes(data)
    changes = ['CMD ["/start"]', "EXPOSE 8080", f"LABEL podlane.io/digest={digest}"]
    run([*docker, "import", *(f"--change={c}" for c in changes), str(file), WEB_IMAGE], timeout=60)
    file.unlink()
    return True


def _entry(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info
