"""`idiolect chat`: a conversation with the personal model, which is kept nowhere.

The process that keeps the model loaded writes (`resident`), so Ctrl-C ends an answer
by closing the line to it.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...common.errors import IdiolectError, refuse_if
from ...common.text import tell, tell_json, tell_pieces, tell_sentence
from ..owner.consent import settings
from ..owner.resident import Asked, Loaded, Reply, converse
from ..owner.vault import Vault
from .answer import key_of, private
from .write import warn_of_toy

HELP = (
    "/forget starts anew, /quit or Ctrl-D ends the chat, and Ctrl-C ends an answer. "
    "Nothing of it is kept."
)
PLAIN = (
    "this backbone has no chat template: what was said stands before each message as "
    "plain text."
)


@dataclass
class Talk:
    """What was said: texts of the owner and the model in turn, and what is said once."""

    system: str
    budget: int
    texts: list[str] = field(default_factory=list)
    told: bool = False

    def asked(self, message: str) -> Asked:
        """The conversation with one more message."""
        return Asked((*self.texts, message), self.system, self.budget)

    def keep(self, message: str, answer: str) -> None:
        """Remember a turn; one without an answer has not been."""
        if answer:
            self.texts += [message, answer]

    def leave_out(self, turns: int) -> None:
        """Forget the oldest turns."""
        del self.texts[: 2 * turns]


def chat(options: argparse.Namespace) -> int:
    """Talk until the owner ends it."""
    system = ""
    if options.system is not None:
        system = private(options.system, "system message", rest=False)
    key = key_of(options)
    with Vault.open(options.vault, key) as vault:
        chosen = settings(vault)
    most = int(chosen["max-length"])
    asked = options.max_new_tokens
    budget = min(256, most // 2) if asked is None else asked
    refuse_if(
        not 0 < budget < most,
        f"{budget} new tokens do not fit into max-length, which is {most}: ask for 1 to "
        f"{most - 1}.",
    )
    warn_of_toy(chosen["backbone"])
    loaded, talk = Loaded(options.vault, key), Talk(system, budget)
    try:
        loaded.begin()
        if sys.stdin.isatty():
            tell_sentence(HELP, sys.stderr)
        # Elsewhere than at a terminal nothing shows where an answer ends.
        marked = not (sys.stdin.isatty() or options.json)
        for message in messages():
            if message == "/forget":
                talk.texts.clear()
                _note("what was said is forgotten.")
            elif message.startswith("/"):
                _note(f"there is no such command. {HELP}")
            else:
                if marked:
                    tell(f"> {message}")
                _turn(loaded, talk, message, options.json)
    finally:
        loaded.done(float(chosen["keep-loaded"]) > 0)
    return 0


def messages() -> Iterator[str]:
    """What the owner types, line by line, until /quit or the end of the input."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  lines can be edited, and are kept nowhere
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            _note("\n/quit or Ctrl-D ends the chat.")
            continue
        except UnicodeDecodeError:
            raise IdiolectError("a message is not UTF-8 text: write UTF-8.") from None
        if line == "/quit":
            return
        if line:
            yield line


def _turn(loaded: Loaded, talk: Talk, message: str, as_json: bool) -> None:
    """Answer a message; what is shown of the answer is kept, also if it was ended."""
    said: list[str] = []
    try:
        reply = loaded.answered(lambda: converse(loaded.vault, talk.asked(message)))
        _say_once(talk, reply)

        def noted() -> Iterator[str]:
            for piece in reply.pieces:
                said.append(piece.text)
                yield piece.text

        with contextlib.closing(reply.pieces):
            if as_json:
                tell_json({"answer": "".join(noted()), "dropped": reply.dropped})
            else:
                tell_pieces(noted())
    except KeyboardInterrupt:
        _note("" if said else "\n")
    except IdiolectError as error:
        _note(f"error: {error}")
    talk.keep(message, "".join(said))


def _say_once(talk: Talk, reply: Reply) -> None:
    """Say what the owner should know of an answer before it comes."""
    if not reply.chat and not talk.told:
        _note(PLAIN)
        talk.told = True
    if reply.dropped:
        talk.leave_out(reply.dropped)
        turns = "turn is" if reply.dropped == 1 else f"{reply.dropped} turns are"
        _note(f"the oldest {turns} left out from now on: all does not fit any more.")


def _note(text: str) -> None:
    if text:
        tell_sentence(text, sys.stderr)
