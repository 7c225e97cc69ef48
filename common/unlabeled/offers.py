"""Offers: scrubbed items of users, sorted into buckets by public texts (`anonymised`)."""

from collections.abc import Collection, Sequence

import numpy as np

from ..data.types import Item, User
from ..privacy.scrub import OFFERED, offered
from .votes import nearest_candidate

LONGEST_OFFER = 1000  # characters of one offered text: about 256 tokens of English


def offers(user: User) -> list[Item]:
    """The user's items that may be offered (kind `anonymised`): scrubbed, few, short."""
    return offered(user.history, OFFERED, LONGEST_OFFER)


def marks(bank: Sequence[Item], items: Sequence[Item]) -> np.ndarray:
    """Which candidates are nearest to one of a user's items: 1 or 0, float32 [m].

    Summed over users: how many people's text resembles a candidate (`anonymised`).
    """
    found = np.zeros(len(bank), np.float32)
    found[[nearest_candidate(bank, item) for item in items]] = 1
    return found


def supported_offers(
    bank: Sequence[Item], supported: Collection[int], user: User
) -> list[Item]:
    """The user's offers that fall into a supported bucket; they leave the device."""
    return [one for one in offers(user) if nearest_candidate(bank, one) in supported]
