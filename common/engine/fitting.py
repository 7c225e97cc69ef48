"""What fits into the context of a backbone."""

from collections.abc import Sequence
from dataclasses import replace

from ..data.types import Item, User
from .backbone import Backbone, Encoded


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
