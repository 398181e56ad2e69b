"""The bundle that this program runs from: what selfextract.sh tells by the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.host.machine import Bundle


def unpacked() -> Bundle:
    """Raises PodlaneError when this program does not run from a bundle."""
    folder = os.environ.get("PODLANE_BUNDLE", "")
    if not folder:
        raise PodlaneError("find bundle: run this from podlane-VERSION.run (or ./appliance), which has what to install")
    try:
        manifest = json.loads(Path(folder, "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise PodlaneError(f"read {folder}/manifest.json: {error}") from error
    return Bundle(
        folder=folder,
        version=manifest["version"],
        digest=os.environ["PODLANE_BUNDLE_DIGEST"],
        python=os.environ["PODLANE_BUNDLE_PYTHON"],
        abi=(abi := os.environ["PODLANE_BUNDLE_ABI"]),
        compiled=abi in manifest["compiled"],
        with_etcd=manifest["etcd"],
        with_python=manifest["python"] and os.environ.get("PODLANE_BUNDLE_OWN_PYTHON") == "yes",
    )
