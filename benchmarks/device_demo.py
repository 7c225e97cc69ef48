"""Three devices and a server on this machine, from keys to a personal model.

    make device-demo [BACKBONE=smollm2]

Real processes on loopback: TLS, node keys, three vaults filled by `idiolect import`, a
run to its end, `idiolect generate --compare` on one device, at prompts that it was not
trained on, until the personal text differs; at the end no process is left.
The owners of the demo consent to exact sums (``clear``): noise that hides one of three
users would hide everything.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from fleet import Fleet

BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time since the beginning."""
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def chosen(fleet: Fleet) -> int | None:
    """The first device with an adapter in use; says of each before why it has none."""
    for number in range(fleet.count):
        print(fleet.command(f"device{number}", "status"))
        status = json.loads(fleet.command(f"device{number}", "status", "--json"))
        if status["active"]:
            return number
    return None


def compare(fleet: Fleet, number: int) -> None:
    """Show what a device's adapter changes, or say why it changes nothing."""
    texts, prompt, device = dict[str, str](), "", f"device{number}"
    for prompt in fleet.prompts[number]:
        words = ("generate", "-", "--compare", "--max-new-tokens", "32", "--json")
        texts = json.loads(fleet.command(device, *words, given=prompt))
        if texts["personal"] != texts["shared"]:
            break
    print(f"$ echo {prompt!r} | idiolect generate - --compare")
    for name in ("shared", "personal"):
        print(f"{name + ':':10}{texts[name]}")
    status = json.loads(fleet.command(device, "status", "--json"))
    print(why_equal(texts, status))


def why_equal(texts: Mapping[str, str], status: Mapping[str, Any]) -> str:
    """Say whether the personal text differs from the shared one, and if not, why."""
    newest = max(status["adapters"], key=lambda one: one["number"], default=None)
    if texts["personal"] != texts["shared"]:
        return "the personal text differs from the shared one"
    if newest is None or status["active"] != newest["number"]:
        return (
            "the two are the same: the adapter is not in use, since the model does better "
            "without it on the newest items"
        )
    return (
        "the two are the same at every prompt that was tried: the adapter is in use and "
        f"lowers the NLL of the newest items from {newest['nll_before']:.3f} to "
        f"{newest['nll']:.3f}, but at no place makes another token the likeliest"
    )


def main() -> int:
    """Run the demo."""
    # What the commands print fits the terminal behind the time.
    os.environ["COLUMNS"] = str(get_terminal_size().columns - len("  60.0 s  "))
    backbone = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    with (
        tempfile.TemporaryDirectory() as place,
        Fleet(Path(place), 3, backbone) as fleet,
    ):
        say("making keys and vaults, enrolling 3 devices")
        fleet.open(update="clear", votes="clear", metrics="clear")
        say("3 devices are online")
        rounds = 2 if backbone == "tiny" else 1
        run = fleet.run(f"adapt.rounds={rounds}", "run.name=demo")
        assert run.stdout is not None
        for line in run.stdout:
            say(line.rstrip())
        if run.wait():
            return 1
        print(fleet.command("device0", "sent"))
        number = chosen(fleet)
        if number is None:
            print("no device has an adapter in use: their status above says why")
        else:
            compare(fleet, number)
        for process in fleet.processes.values():
            process.terminate()
        for process in fleet.processes.values():
            process.wait(30)
        left = fleet.alive("")
        say(f"processes left: {len(left)}")
        return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
