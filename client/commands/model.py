"""The commands of the adapters: use one, or none, export it, and import another.

This module loads torch, so the vault is opened before it is imported: a passphrase must
not be typed while something loads, since the terminal would show it.
"""

import argparse

from ...common.engine.exports import REVEALS
from ...common.errors import explained, refuse_if
from ...common.text import printable
from ..owner import adapters, elsewhere
from ..owner.vault import Vault
from . import status
from .answer import Answer

WHAT = {
    "peft": "a PEFT adapter",
    "gguf": "an adapter for llama.cpp and programs made of it",
    "merged": "a whole model with the adapter in its weights",
}


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
    """Write the adapter in use for other programs."""
    with explained(f"{options.folder} is not a folder", "name another"):
        found = elsewhere.export(vault, options.folder, options.format)
    folder = str(options.folder)
    lines = [f"{folder} is {WHAT[options.format]}, in clear."]
    if "difference" in found:
        lines.append(
            f"loaded again, its logits differ by {found['difference']:.2g} at most."
        )
    if found.get("without"):
        lines.append(f"there is no Modelfile in it: {found['without']}")
    lines.append(REVEALS)
    said = {"folder": folder, "format": options.format, **found, "warning": REVEALS}
    return Answer(said, "\n".join(lines))


def bring(vault: Vault, options: argparse.Namespace) -> Answer:
    """Take somebody's PEFT adapter as one of the owner's; exit code 1: it is not used."""
    before = adapters.active(vault)
    version, base = elsewhere.bring(vault, options.folder)
    number, used = version.number, adapters.active(vault) == version.number
    found = status.shown(version) | {"base": base, "active": adapters.active(vault)}
    lines = [f"adapter {number} is {printable(str(options.folder), 100)}."]
    if base:
        lines.append(
            f"it says that it was made for '{printable(base, 100)}': its sizes fit this "
            "model, and nothing else can be checked."
        )
    if used:
        lines.append(_changed(number, before))
    else:
        lines.append(
            f"it is kept but NOT used: {status.why_not(found)}. `idiolect use {number}` "
            "uses it all the same."
        )
    if used and not version.held_out:
        lines.append("nothing could judge it: there are too few liked pairs.")
    return Answer(found, "\n".join(lines), code=0 if used else 1)
