"""`idiolect generate`: write with the adapter in use.

Torch is loaded only where no process keeps the model loaded (`owner.resident`).
"""

import argparse
import sys
from time import monotonic
from typing import Any

from ...common.text import tell, tell_sentence
from ..owner import resident
from ..owner.consent import settings
from ..owner.vault import Vault
from .answer import Answer, key_of, private
from .vault import TOY

LONG = 3.0  # seconds of loading after which the owner is told how to avoid it


def generate(options: argparse.Namespace) -> Answer:
    """Continue a prompt."""
    request = {
        "prompt": private(options.prompt, "prompt"),
        "budget": options.max_new_tokens,
        "compare": options.compare,
    }
    answer = resident.ask(options.vault, request) or _loaded(options, request)
    if answer["backbone"] == "tiny":
        tell_sentence(f"tiny is {TOY}.", sys.stderr)
    found = answer["found"]
    lines = (f"{name + ':':10}{text}" for name, text in found.items())
    text = "\n".join(lines) if options.compare else found["personal"]
    return Answer(found, text, exact=True)


def _loaded(options: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    """The same where the model has to be loaded first."""
    key = key_of(options)
    with Vault.open(options.vault, key) as vault:
        chosen, began = settings(vault), monotonic()
        if float(chosen["keep-loaded"]):
            resident.start(options.vault, key)
            if answer := resident.ask(options.vault, request):
                return answer
        from ..owner import owner

        writer = owner.writer(vault)
        if sys.stderr.isatty() and monotonic() - began > LONG:
            tell(
                "`idiolect settings keep-loaded 10` keeps the model loaded for ten "
                "minutes after each text.",
                sys.stderr,
            )
        return {"found": writer.write(**request), "backbone": chosen["backbone"]}
