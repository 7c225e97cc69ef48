"""`idiolect status`: the history, the adapters, the server, and what to do next."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from time import localtime, strftime
from typing import Any

from ...common.methods.acceptance import FAULTS
from ...common.protocol.messages import device_user
from ...common.text import printable
from ..node import membership
from ..owner import adapters as kept
from ..owner import consent, history, learning
from ..owner.adapters import Version
from ..owner.history import Counts
from ..owner.vault import Vault
from .answer import Answer


def status(vault: Vault, options: argparse.Namespace) -> Answer:
    """Gather and print it."""
    found = gathered(vault, history.counts(vault))
    found["next"] = NEXT[next_step(found)]
    return Answer(found, text(found, options.verbose))


def gathered(vault: Vault, counts: Counts) -> dict[str, Any]:
    """All that it says of a vault with so many pairs, as JSON, but what is next."""
    server, known = membership.server_of(vault), membership.membership(vault)
    number = known.get("number")
    return {
        "vault": str(vault.path),
        "bytes": vault.path.stat().st_size,
        "backbone": consent.settings(vault)["backbone"],
        "liked": counts.liked,
        "disliked": counts.disliked,
        **adapters(vault),
        "server": server and server.address,
        "joined": known.get("since"),
        "device": device_user(int(number)) if number else None,
        "paused": consent.paused(vault),
        "consent": consent.consents(vault),
        "privacy": consent.balance(vault),
    }


def adapters(vault: Vault) -> dict[str, Any]:
    """The adapters, and the number of the one in use; 0: none."""
    return {
        "active": kept.active(vault),
        "adapters": [shown(one) for one in kept.versions(vault)],
    }


def shown(version: Version) -> dict[str, Any]:
    """A version as JSON, without the fields that only the vault compares."""
    hidden = ("generations", "pairs", "fitted_on", "changes")
    found = {name: one for name, one in asdict(version).items() if name not in hidden}
    return {**found, "accepted": version.accepted, "imported": version.imported}


# What is to be done next -> how, as a command.
NEXT = {
    "import": f"`idiolect import FILE`: training needs {learning.FEWEST} liked pairs",
    "train": "`idiolect personalize` trains an adapter",
    "resume": "`idiolect resume` answers the server again",
    "node": "`idiolect node run`, when the operator has registered this device",
    "use": "`idiolect use N` puts an adapter into use",
    "write": "`idiolect generate` writes with the adapter in use",
}


def next_step(found: Mapping[str, Any]) -> str:
    """What an owner would do next: a key of `NEXT`."""
    server = found["server"]
    steps = {
        "import": found["liked"] < learning.FEWEST,
        "train": not found["adapters"],
        "resume": server and found["paused"],
        "node": server and not found["device"],
        "use": not found["active"],
    }
    return next((step for step, holds in steps.items() if holds), "write")


def text(found: Mapping[str, Any], numbers: bool = False) -> str:
    """The same as lines of about 80 characters."""
    head = "{liked} liked and {disliked} disliked pairs, backbone {backbone}"
    answers = ", ".join(f"{name} {given}" for name, given in found["consent"].items())
    return "\n".join(
        [
            found["vault"],
            head.format(**found),
            *adapter_lines(found, numbers),
            *_server(found),
            f"consent: {answers}",
            *_privacy(found["privacy"]),
            f"next: {found['next']}",
        ]
    )


def adapter_lines(found: Mapping[str, Any], numbers: bool = False) -> list[str]:
    """One line for each adapter; the one in use has a star."""
    lines = []
    for one in found["adapters"]:
        mark = "*" if one["number"] == found["active"] else " "
        lost = "" if one["accepted"] else f"; not good enough: {why_not(one)}"
        lines.append(f"{mark} adapter {one['number']}: {judged(one, numbers)}{lost}")
    if not lines:
        return ["no adapter is in use: `idiolect personalize` trains one."]
    if not found["active"]:
        lines.append("no adapter is in use: `idiolect use N` puts one into use.")
    return lines


def judged(one: Mapping[str, Any], numbers: bool = False) -> str:
    """What an adapter has learnt; with numbers also how, and how well it does."""
    more = f" and {one['disliked']} disliked" if one["disliked"] else ""
    left = one["too_long"]
    pairs = "pair is" if left == 1 else "pairs are"
    long = f"; {left} {pairs} longer than the context, left out" if left else ""
    at = f"; strength {one['strength']:g}" if one["strength"] != 1 else ""
    learnt, long = f"{one['trained']} pairs{more}", at + long
    if one["imported"] and not (numbers and one["held_out"]):
        return f"imported{long}"
    if not numbers:
        return f"learnt from {learnt}{long}"
    if one["imported"]:
        return f"imported; NLL {one['nll_before']:.3f} -> {one['nll']:.3f}{long}"
    return (
        f"{one['method']} on {learnt}; NLL {one['nll_before']:.3f} -> {one['nll']:.3f} "
        f"on the newest {one['held_out']}{long}"
    )


def why_not(one: Mapping[str, Any]) -> str:
    """Why an adapter is not used, in words."""
    if one["fault"]:
        what = FAULTS.get(one["fault"], one["fault"])
        return f"at your newest prompts {what}. A smaller --learning-rate changes less"
    if one["fitted"] == 0:
        return "the model predicts your texts best without it, at whatever strength"
    if one["nll"] <= min(one["nll_before"], one["nll_bare"]):
        return "the one in use predicts your newest texts better"
    return "the model predicts your newest texts better without it"


def _server(found: Mapping[str, Any]) -> list[str]:
    paused = ["paused: no server is answered until `idiolect resume`"] * found["paused"]
    if not found["server"]:
        return ["server: none joined; nothing leaves this device", *paused]
    since, device = found["joined"], found["device"]
    when = strftime(" since %Y-%m-%d %H:%M", localtime(since)) if since else ""
    known = f"as {device}" if device else "which has not let this device in yet"
    return [
        f"server: joined {printable(found['server'])}{when},",
        f"  {known}",
        *paused,
    ]


def _privacy(found: Mapping[str, Any]) -> list[str]:
    """Say what runs were charged, of what the owner allows."""
    most = found["ceilings"]
    lines = [
        (
            f"privacy, {found['runs']} runs together: epsilon {found['epsilon']:.4g} of "
            f"{most['most-epsilon']}, delta {found['delta']:.3g} of {most['most-delta']}, "
            f"{found['releases']} of {most['most-releases']} releases"
        ),
        f"  in sums of at least {most['fewest-users']} users (`idiolect settings`)",
    ]
    if found["clear"]:
        named = ", ".join(found["clear"])
        lines.append(f"  neither protected nor counted: {named} (`idiolect consent`)")
    return lines
