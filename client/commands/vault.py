"""`idiolect vault`: make the vault, check it, repair it, change its passphrase."""

import argparse

from ...common.config import absolute_backbone
from ...common.errors import refuse_if
from ..owner import unlock
from ..owner.consent import SETTINGS, check_setting, choose
from ..owner.database import ErasureError, is_there
from ..owner.vault import Vault
from .answer import Answer, opened, sure


def init(options: argparse.Namespace) -> Answer:
    """Make a vault, once the backbone is known to load."""
    refuse_if(
        is_there(options.vault),
        f"there is a vault at {options.vault} already: it is left as it is.",
    )
    backbone = absolute_backbone(options.backbone)
    chosen = {"backbone": backbone, "max-length": str(options.max_length)}
    for name, value in chosen.items():
        check_setting(name, value)
    # Asked before the model is loaded: what is typed meanwhile would be shown.
    if options.keyring:
        key = unlock.new_keyring_entry(options.vault)
    else:
        key = unlock.new_passphrase(options.passphrase_file, options.weak)
    try:
        from ..owner.owner import check_loads

        check_loads(SETTINGS | chosen)  # before there is a vault that needs it
        with Vault.create(options.vault, key) as vault:
            choose(vault, **chosen)
    except BaseException:
        if options.keyring and not options.vault.exists():
            unlock.forget_keyring_entry(options.vault)
        raise
    return Answer(
        {"vault": str(options.vault)},
        f"{options.vault} is ready.\nWithout its key nobody can open it, you included.\n"
        "next: `idiolect import FILE` adds what you have written.",
    )


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
