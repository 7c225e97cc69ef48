"""The commands around real devices: keys, the server, its runs, who is let in."""

import argparse
import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.command import FAILED
from ...common.files import home
from ...common.text import shown, tell, tell_json, tell_sentence
from .simulate import settings_of, show_to_end, terminated

if TYPE_CHECKING:
    from rich.console import Console


def folder_of(options: argparse.Namespace) -> Path:
    """The folder of the server."""
    return options.at or home() / "server"


def make_keys(options: argparse.Namespace) -> None:
    """Make the keys of a server."""
    from ..deploy.keys import invited_to, keys_init

    invitation = keys_init(folder_of(options), options.names, options.port)
    tell(f"keys are in {invitation.parent}")
    tell(f"give every device {invitation}")
    where = ":".join(map(str, invited_to(invitation.parent)))
    tell(f"which says that the server is at {where}")
    tell("next: `idiolect-server serve`, with the same --at if you gave one")


def renew(options: argparse.Namespace) -> None:
    """Make a new certificate of the server."""
    from ..deploy.keys import keys_renew

    folder = folder_of(options)
    end = keys_renew(folder, options.names)
    tell(f"the server's certificate in {folder} ends on {end:%Y-%m-%d}")
    tell("a running server uses it from its next start; invitations stay valid")


def choose_witness(options: argparse.Namespace) -> None:
    """Name the witness in the invitation."""
    from ..deploy.keys import name_witness

    invitation = name_witness(folder_of(options), options.key)
    tell(f"{invitation} names {'the witness' if options.key else 'no witness'} now")
    tell(
        "give it to every device, also to those that have joined, and start `serve` again"
    )


def show_witness_key(options: argparse.Namespace) -> None:
    """Show a witness's key, which is made first."""
    from ..deploy.witness import key_file, witness_key

    file = key_file(options.key_file)
    tell(witness_key(file))
    tell(f"the private key is in {file}: keep it where the operator cannot read it")
    tell("next: the operator gives the digits to `idiolect-server keys witness`")


def sign_device(options: argparse.Namespace) -> None:
    """Sign the key of a device, as a witness."""
    from ..deploy.witness import key_file, vouch_for

    file = key_file(options.key_file)
    said = vouch_for(file, options.invitation, options.key)
    tell(f"the device's owner runs: idiolect node vouched {said}")


def serve_devices(options: argparse.Namespace) -> None:
    """Serve devices until ended."""
    from ..deploy.serve import serve

    serve(
        folder_of(options),
        options.host,
        options.port,
        tell,
        options.metrics,
        options.log,
    )


def check(options: argparse.Namespace) -> int:
    """Check a server; 1: something needs the operator."""
    from ...common.doctor import report
    from ..deploy.doctor import examine

    os.environ["HF_HUB_OFFLINE"] = "1"  # it fetches nothing
    found, text, well = report(examine(folder_of(options), options.backbone))
    if options.json:
        tell_json(found, 2)
    else:
        tell_sentence("\n".join(text))
    return 0 if well else FAILED


def run_on_devices(options: argparse.Namespace) -> int | None:
    """Begin a run, and show it to its end."""
    from ..deploy.runs import prepare, run
    from ..simulate.plan import built_in_app

    folder = folder_of(options)
    app = options.app or built_in_app()
    plan = prepare(folder, app, settings_of(options), Path.cwd())
    return until_its_end(options, plan.folder.name, lambda to: run(folder, plan, to))


def attach_run(options: argparse.Namespace) -> int | None:
    """Show a run to its end."""
    from ..deploy.runs import attach, submitted

    folder = folder_of(options)
    name = submitted(folder, options.name)[1].name
    return until_its_end(options, name, lambda to: attach(folder, name, to))


def until_its_end(
    options: argparse.Namespace, name: str, show: "Callable[[Console], dict[str, Any]]"
) -> int | None:
    """Show a run on devices; if this command ends before the run, say what to do then."""
    from ..deploy.runs import in_progress

    signal.signal(signal.SIGTERM, terminated)
    try:
        return show_to_end(show)
    except (KeyboardInterrupt, SystemExit) as ended:
        if in_progress(folder_of(options), name):
            at = f" --at {options.at}" if options.at else ""
            tell(f"run {name} goes on without this command")
            tell(f"to look at it:  idiolect-server attach {name}{at}")
            tell(f"to end it:      idiolect-server stop {name}{at}")
        return 130 if isinstance(ended, KeyboardInterrupt) else 143


def end_run(options: argparse.Namespace) -> None:
    """End a run."""
    from ..deploy.runs import stop

    name = stop(folder_of(options), options.name)
    tell(f"run {name} has ended")
    tell(f"to continue it: the command that began it, with --resume {name}")


def add_device(options: argparse.Namespace) -> None:
    """Let a device in."""
    from ..deploy.nodes import add_node

    number = add_node(folder_of(options), options.key, options.label)
    tell(f"registered as node {number}; now `idiolect node run` on the device")


STATES = {"registered": "not seen yet", "unregistered": "revoked"}


def list_devices(options: argparse.Namespace) -> None:
    """List the devices that are let in."""
    from ..deploy.nodes import nodes

    found = nodes(folder_of(options))
    if options.json:
        return tell_json(found, 2)
    if not found:
        return tell(
            "no devices yet: `nodes add` takes the line that `idiolect node join` prints"
        )
    rows = [("node", "label", "state", "last seen")]
    revoked = [node for node in found if node["status"] == "unregistered"]
    listed = found if options.all else [node for node in found if node not in revoked]
    for node in map(shown, listed):
        state = STATES.get(node["status"]) or str(node["status"])
        seen = local_time(node["last-seen"])
        rows.append((node["node-id"], node["label"] or "-", state, seen))
    for number, label, state, seen in rows:
        tell(f"{number:>20}  {label:20}  {state:12}  {seen}")
    if revoked and not options.all:
        tell(f"and {len(revoked)} revoked, which `nodes list --all` shows")


def local_time(stamp: str | None) -> str:
    """Return a time of Flower in this machine's time zone."""
    try:
        when = datetime.fromisoformat(stamp or "").astimezone()
        return when.strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return stamp or "never"


def revoke_device(options: argparse.Namespace) -> None:
    """Revoke a device."""
    from ..deploy.nodes import revoke_node

    number = revoke_node(folder_of(options), options.node)
    tell(f"node {number} is revoked; its key cannot return, a new one can")
