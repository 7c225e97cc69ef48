"""What an adapter of the owner's learns from, and what judges it.

It learns from everything that the owner likes except the newest fifth, which decides
whether the adapter is used. What was disliked is a known negative.
"""

from collections.abc import Mapping, Sequence

from ...common.data.types import User
from ...common.errors import refuse_if
from .consent import Refusal
from .history import Entry
from .records import Source
from .vault import Vault

FEWEST = 4  # liked pairs to train on and be judged by
# Liked pairs from which on what a device trains and accepts was shown to help its owner, on
# average over users: docs/continual.md. tests/test_continual.py compares the results.
HELPS = 16
# Texts that can tell a better adapter from luck. An adapter that changes nothing makes each
# text likelier or less likely by chance: all of four are likelier in 6 % of cases, all of
# five in 3 % (sign test).
TELLING = 5
HELD_OUT = 8  # at most; a fifth of the liked pairs otherwise


def judges(liked: int) -> int:
    """How many of the newest liked pairs judge an adapter, and are not learnt from."""
    return max(1, min(HELD_OUT, liked // 5))


def split(
    entries: Sequence[Entry], name: str = "owner", fits_strength: bool = False
) -> tuple[User, dict[str, str]]:
    """Split the history into what is trained on and what judges.

    Returns
    -------
    tuple
        The owner as a user, and the sources that an adapter is made of, by training or
        by fitting its strength: name -> generation.

    Raises
    ------
    IdiolectError
        There is too little.
    """
    liked = [entry for entry in entries if entry.liked]
    disliked = [entry for entry in entries if not entry.liked]
    refuse_if(
        len(liked) < FEWEST,
        f"there are {len(liked)} liked pairs in the vault, and training needs "
        f"{FEWEST}: import more with `idiolect import FILE`.",
    )
    held_out = judges(len(liked))
    learnt, kept = liked[:-held_out], liked[-held_out:]
    fit_on: Sequence[Entry] = ()
    if fits_strength:
        from ...common.methods.strength import halves  # loads torch

        fit_on = halves(kept)[0]
    made_of = (*learnt, *fit_on, *disliked)
    user = User(
        name,
        tuple(entry.item() for entry in learnt),
        tuple(entry.item() for entry in kept),
        disliked=tuple(entry.item() for entry in disliked),
    )
    return user, {entry.source: entry.generation for entry in made_of}


def check_learnt(vault: Vault, learnt: Mapping[str, str]) -> None:
    """Refuse to keep or send what was made of text that its owner has forgotten since.

    Called in the transaction that keeps it: `forget` may run in another process at any
    time. A source of which anything was forgotten, or that was made again, is of another
    generation.

    Raises
    ------
    Refusal
        A source is not there any more as it was when it was read.
    """
    for name, generation in learnt.items():
        refuse_if(
            vault.generation(Source("import", name)) != generation,
            "the owner has forgotten text that this was made of, while it was being "
            "made: it is not kept, and has to be made again from what remains.",
            Refusal,
        )
