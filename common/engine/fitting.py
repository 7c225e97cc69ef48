"""What fits into the context of a backbone."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from ..data.types import Item, Task, User
from ..errors import IdiolectError
from .backbone import Backbone, Encoded


def output_budget(backbone: Backbone, task: Task) -> int:
    """Tokens that one output may have.

    The task's own budget; of a long text at most half of the context, so that prompt and
    output stay within ``engine.max-length`` together (`asked`).
    """
    most = task.max_new_tokens
    return min(most, backbone.context // 2) if task.kind == "long" else most


def asked(
    backbone: Backbone, items: Sequence[Item], entries: Sequence[Encoded], task: Task
) -> list[tuple[int, ...]]:
    """Tokens of the prompts of items, as they are continued.

    Those of the encoded items. Where a long text is to be written, a prompt is shortened
    so that the output fits behind it, unless its instruction alone does not leave room.
    """
    room = backbone.context - output_budget(backbone, task)
    prompts = [entry.ids[: entry.prompt_length] for entry in entries]
    if task.kind != "long":
        return prompts
    for place, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        if len(prompt) > room:
            with contextlib.suppress(IdiolectError):
                ids, _ = backbone.encode_prompt(item.prompt, room, item.id)
                prompts[place] = tuple(ids)
    return prompts


def encode_all(backbone: Backbone, items: Sequence[Item]) -> list[Encoded]:
    """Tokens of many items."""
    return [backbone.encode(item) for item in items]


def fitting(backbone: Backbone, user: User) -> tuple[User, int]:
    """Leave out what does not fit into the context even with its input cut away.

    Returns
    -------
    tuple
        The user without such items and rivals, and how many items that were.
    """

    def fit(item: Item) -> bool:
        return fits(backbone, item)

    def kept(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(
            replace(item, rivals=tuple(filter(fit, item.rivals)))
            for item in filter(fit, items)
        )

    found = replace(
        user,
        history=kept(user.history),
        held_out=kept(user.held_out),
        disliked=kept(user.disliked),
    )
    counts = [
        len(one.history) + len(one.held_out) + len(one.disliked)
        for one in (user, found)
    ]
    return found, counts[0] - counts[1]


def fits(backbone: Backbone, item: Item) -> bool:
    """Whether an item fits into the context, its input cut away if need be."""
    # A text has at most about as many tokens as bytes: short ones certainly fit.
    text = f"{item.prompt.before}{item.prompt.after}{item.target}"
    return len(text.encode()) < backbone.context // 2 or backbone.fits(item)


def too_long(backbone: Backbone, user: User) -> str:
    """A sentence if `fitting` left a user no history or no held-out item; else empty."""
    for items, what in ((user.history, "history"), (user.held_out, "held-out")):
        if not items:
            return (
                f"user '{user.id}' has no {what} item that fits into the context of "
                f"{backbone.context} tokens: raise 'max-length', take a backbone with a "
                "longer context, or set skip-bad-users=true."
            )
    return ""
