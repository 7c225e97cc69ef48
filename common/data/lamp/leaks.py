"""Find texts of held-out items in history and public text, to leave them out."""

import re
import unicodedata
from collections.abc import Sequence

from ..types import Item
from .forms import Form

_SOME = 4  # words of a text that is not in a question by chance
_PARTS = re.compile('["\u201c\u201d\u201e\u00ab\u00bb:]')  # what delimits a text


def _words(text: str) -> str:
    """Return a text for comparison: its words alone, without case and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain)) or plain


class HeldOut:
    """The texts of held-out items."""

    def __init__(self, items: Sequence[Item], form: Form) -> None:
        self.inputs = {_words(item.prompt.input) for item in items}
        self.targets = {_words(item.target) for item in items}
        # A question in another wording than the published one has the text that it asks
        # about in it, even if another part of it was taken for that text.
        other = [
            item.prompt.text.removesuffix(form.cue)
            for item in items
            if not form.asks(item.prompt.before)
        ]
        self.questions = "".join(f" {_words(question)} |" for question in other)
        parts = (part for question in other for part in _PARTS.split(question))
        self.inputs |= {_words(part) for part in parts if part.strip()}

    def has(self, item: Item, form: Form) -> bool:
        """Whether `item` has the input of a held-out item or, if free text, its target.

        Labels are not compared: many items share them. The two parts of a tweet are joined
        first.
        """
        source, target = _words(item.prompt.input), _words(item.target)
        whole = _words(f"{item.prompt.input} {item.target}")
        asked = source if form.answer else whole
        enough = asked.count(" ") + 1 >= _SOME
        return (
            source in self.inputs
            or (enough and f" {asked} " in self.questions)
            or (not form.task.labels and not self.targets.isdisjoint((target, whole)))
        )


def without(items: Sequence[Item], held: Sequence[Item], form: Form) -> list[Item]:
    """Return the items without those that have the text of a held-out item."""
    known = HeldOut(held, form)
    return [item for item in items if not known.has(item, form)]
