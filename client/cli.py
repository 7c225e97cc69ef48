"""`idiolect`: the command of a device and its owner."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect` and return its exit code.

    Only ``--version`` exists so far: in simulation a device is started by Flower, and
    real devices are not supported yet.
    """
    parser = argparse.ArgumentParser(
        prog="idiolect",
        description="One device. So far it only runs in simulation, where Flower starts "
        "it: see `idiolect-server simulate --help`.",
    )
    parser.add_argument(
        "--version", action="version", version=f"idiolect {version('idiolect')}"
    )
    parser.parse_args(arguments)
    parser.print_help()
    return 0
