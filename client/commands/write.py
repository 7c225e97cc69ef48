"""`idiolect generate`: write with the adapter in use.

Torch is loaded only where no process keeps the model loaded (`resident`).
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from ...common.text import tell, tell_pieces, tell_sentence
from ..owner import resident
from ..owner.consent import settings
from ..owner.resident import Asked, Reply
from ..owner.vault import Vault
from .answer import Answer, key_of, private
from .vault import TOY

LONG = 3.0  # seconds of loading after which the owner is told how to avoid it

Some = TypeVar("Some")


def generate(options: argparse.Namespace) -> Answer | int:
    """Continue a prompt; the text is shown while it is written."""
    prompt, budget = private(options.prompt, "prompt"), options.max_new_tokens
    if not options.json and not options.compare:
        asked = Asked((prompt,), budget=budget)
        return _shown(
            from_loaded(
                options,
                lambda: resident.converse(options.vault, asked),
                lambda writer: writer.converse(asked),
            )
        )
    request = {"prompt": prompt, "budget": budget, "compare": options.compare}
    answer = from_loaded(
        options,
        lambda: resident.ask(options.vault, request),
        lambda writer: {
            "found": writer.write(**request),
            "backbone": writer.chosen["backbone"],
        },
    )
    warn_of_toy(answer["backbone"])
    found = answer["found"]
    lines = (f"{name + ':':10}{text}" for name, text in found.items())
    text = "\n".join(lines) if options.compare else found["personal"]
    return Answer(found, text, exact=True)


def _shown(reply: Reply) -> int:
    """Print a text while it is written."""
    warn_of_toy(reply.backbone)
    with contextlib.closing(reply.pieces):
        tell_pieces(piece.text for piece in reply.pieces)
    return 0


def warn_of_toy(backbone: str) -> None:
    """Say which backbone is not to be judged by."""
    if backbone == "tiny":
        tell_sentence(f"tiny is {TOY}.", sys.stderr)


def from_loaded(
    options: argparse.Namespace,
    ask: Callable[[], Some | None],
    write: Callable[[Any], Some],
) -> Some:
    """What the process that keeps the model loaded answers, or what is written here.

    That process is started where the owner has set ``keep-loaded``.

    Parameters
    ----------
    ask
        Asks that process; None: there is none.
    write
        Takes a `writing.Writer`.
    """
    if (answer := ask()) is not None:
        return answer
    key = key_of(options)
    with Vault.open(options.vault, key) as vault:
        chosen, began = settings(vault), monotonic()
        if float(chosen["keep-loaded"]):
            resident.start(options.vault, key)
            if (answer := ask()) is not None:
                return answer
        from ..owner import writing

        writer = writing.writer(vault)
        if sys.stderr.isatty() and monotonic() - began > LONG:
            tell(
                "`idiolect settings keep-loaded 10` keeps the model loaded for ten "
                "minutes after each text.",
                sys.stderr,
            )
        return write(writer)
