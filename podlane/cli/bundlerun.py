"""First program of a bundle: makes its wheels importable and hands over to `podlane host`.

Owns: nothing but that. Only what an installation imports is unpacked (compiled
modules cannot be imported from a zip); pure wheels are imported as they are.
Runs as a script, from the unpacked bundle, under the host's Python.
"""

import os
import pathlib
import sys
import zipfile

COMPILED = ("msgspec", "pyyaml")


def main() -> None:
    """Import `podlane` from the bundle and run the command."""
    bundle = pathlib.Path(os.environ["PODLANE_BUNDLE"])
    abi = f"-cp{sys.version_info[0]}{sys.version_info[1]}-"
    site = bundle / "site"
    for wheel in sorted((bundle / "wheels").glob("*.whl")):
        if wheel.name.lower().startswith(COMPILED) and abi in wheel.name:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        elif wheel.name.endswith("-none-any.whl"):
            sys.path.insert(0, str(wheel))
    sys.path.insert(0, str(site))
    sys.dont_write_bytecode = True
    words = sys.argv[1:]
    from podlane.cli.main import cli

    cli.main(words if words[0] == "preflight" else ["host", *words], prog_name="podlane")


if __name__ == "__main__":
    main()
