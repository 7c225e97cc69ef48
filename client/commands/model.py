"""The commands of the adapters: use one, or none, and export it.

This module loads torch, so the vault is opened before it is imported: a passphrase must
not be typed while something loads, since the terminal would show it.
"""

import argparse

from ...common.engine.exports import REVEALS
from ...common.errors import explained, refuse_if
from ...common.text import printable
from ..owner import adapters, owner
from ..owner.vault import Vault
from . import status
from .answer import Answer


def use(vault: Vault, options: argparse.Namespace) -> Answer:
    """List the adapters, or use one."""
    refuse_if(
        options.number is None and options.strength is not None,
        "--strength is of one adapter: `idiolect use N --strength X`; `idiolect use` lists "
        "them.",
    )
    if options.number is None:
        found = status.adapters(vault)
        lines = status.adapter_lines(found, options.verbose)
        return Answer(found, "\n".join(lines))
    given, before = options.number, adapters.active(vault)
    numeric = given.isascii() and given.isdigit() and 0 < len(given) < 10
    refuse_if(
        not numeric and given != "none",
        f"'{printable(given, 40)}' is not the number of an adapter: `idiolect use` "
        "lists them; none uses none.",
    )
    number = int(given) if numeric else 0
    chosen = adapters.use(vault, number, options.strength)
    text, found = _changed(number, before), {"active": number}
    if chosen and options.strength is not None:
        text += f"\nits strength is {options.strength:g}; before: {chosen.strength:g}."
        found["strength"] = options.strength
    if chosen and not chosen.accepted:
        why = status.why_not(status.shown(chosen))
        text += f"\nit was not used when it was trained: {why}."
    return Answer(found, text)


def _changed(number: int, before: int) -> str:
    """Say which adapter is in use now, and how to take that back."""
    text = f"adapter {number} is in use now" if number else "no adapter is in use now"
    if number == before:
        return f"{text}, as before."
    was = f"adapter {before}" if before else "none"
    return f"{text}; before: {was}. `idiolect use {before or 'none'}` takes that back."


def rollback(vault: Vault, _options: argparse.Namespace) -> Answer:
    """Use the adapter before the one in use."""
    before = adapters.active(vault)
    number = adapters.rollback(vault)
    return Answer({"active": number}, _changed(number, before))


def reset(vault: Vault, _options: argparse.Namespace) -> Answer:
    """Go back to the bare model."""
    text = _changed(0, adapters.reset(vault))
    text += "\nthe next training starts from the bare model."
    return Answer({"active": 0}, text)


def export(vault: Vault, options: argparse.Namespace) -> Answer:
    """Write the adapter in use for PEFT."""
    with explained(f"{options.folder} is not a folder", "name another"):
        owner.export(vault, options.folder)
    folder = str(options.folder)
    text = f"{folder} is a PEFT adapter, in clear.\n{REVEALS}"
    return Answer({"folder": folder, "warning": REVEALS}, text)
