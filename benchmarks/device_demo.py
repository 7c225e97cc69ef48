"""Three devices and a server on this machine, from keys to a personal model.

    make device-demo

Real processes on loopback: TLS, node keys, three vaults filled by `idiolect import`, a
run to its end, `idiolect generate --compare` on one device; at the end no process is left.
The owners of the demo consent to exact sums (``clear``): noise that hides one of three
users would hide everything.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from shutil import get_terminal_size

from fleet import Fleet

BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time since the beginning."""
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def main() -> int:
    """Run the demo."""
    # What the commands print fits the terminal behind the time.
    os.environ["COLUMNS"] = str(get_terminal_size().columns - len("  60.0 s  "))
    with tempfile.TemporaryDirectory() as place, Fleet(Path(place), 3) as fleet:
        say("making keys and vaults, enrolling 3 devices")
        fleet.open(update="clear", votes="clear", metrics="clear")
        say("3 devices are online")
        run = fleet.run("adapt.rounds=2", "run.name=demo")
        assert run.stdout is not None
        for line in run.stdout:
            say(line.rstrip())
        if run.wait():
            return 1
        print(fleet.command("device0", "status"))
        print(fleet.command("device0", "sent"))
        prompt = fleet.prompts[0]
        print(f"$ echo {prompt!r} | idiolect generate - --compare")
        print(fleet.command("device0", "generate", "-", "--compare", given=prompt))
        for process in fleet.processes.values():
            process.terminate()
        for process in fleet.processes.values():
            process.wait(30)
        left = fleet.alive("")
        say(f"processes left: {len(left)}")
        return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
