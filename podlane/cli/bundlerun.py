"""First program of a bundle: makes its packages importable and hands over to `podlane host`.

Owns: nothing but that. Runs as a script, from the unpacked bundle, under the host's
Python. The path is set here and not in the environment, which the programs that it
starts would inherit.
"""

import os
import sys


def main() -> None:
    """Import `podlane` from the bundle and run the command."""
    sys.path.insert(0, os.path.join(os.environ["PODLANE_BUNDLE"], "site"))
    sys.dont_write_bytecode = True
    words = sys.argv[1:]
    from podlane.cli.main import cli

    cli.main(words if words[0] == "preflight" else ["host", *words], prog_name="podlane")


if __name__ == "__main__":
    main()
