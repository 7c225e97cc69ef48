"""The unlabeled set: what stands for "everyone else" (guarantees: `docs/privacy.md`).

Five kinds, which all end as items with weights:

`votes`
    A bank of public items; each user votes for those that resemble the own text, and the
    sum of all votes is the weight. After Private Evolution (Lin et al. 2024; Xie et al.
    2024): one user's vote has L2 norm <= 1, so the sum can be released with noise.
`self`
    Made on the device: samples from the reference policy at the user's own prompts.
`public`
    A file of items, all of one weight.
`anonymised`
    The users' own items, scrubbed, and only those whose like enough users have. **Not
    differentially private**: each is still one person's text.
`others`
    The other users' raw history, in a simulation only: the paper's setting.

A device never trains on the whole set: it draws as many items as it needs (`draws`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from .. import config
from ..data.types import Item

VOTE_FLOOR = 0.5  # noisy votes below this many standard deviations count as none


@dataclass(frozen=True)
class Unlabeled:
    """One item of the unlabeled set.

    Attributes
    ----------
    item
        Prompt and text.
    weight
        How often it should be drawn, relative to the others. For `votes` it is the sum
        H of all users' votes and of the noise, from which a device takes its own vote
        (`without_own`); it can be negative.
    owner
        The user who wrote it (`others` only), so that no user trains against own text.
    """

    item: Item
    weight: float = 1.0
    owner: str = ""


@dataclass(frozen=True)
class UnlabeledSet:
    """The unlabeled set as a server hands it out; empty for the kind `self`.

    Attributes
    ----------
    items
        Everybody's, this user's own part included (see `draws.not_own`).
    floor
        Votes below it are noise (`VOTE_FLOOR` times the noise's standard
        deviation); 0: there is none.
    voters
        Users whose own vote is part of the weights, where these are a release with noise;
        None: the sum is exact and holds everybody's.
    """

    items: tuple[Unlabeled, ...] = ()
    floor: float = 0.0
    voters: frozenset[str] | None = None


def population_share(settings: config.Unlabeled) -> bool:
    """Whether alpha means a share of the population that can be estimated.

    `others`, `anonymised`, and `votes` over a bank that people wrote: yes. `self`,
    `public`, and a bank that the model wrote: a classifier would separate machine from
    human text, or domain from domain; alpha is only a knob.
    """
    if settings.kind == "votes":
        return settings.bank_from == "public"
    return settings.kind in ("others", "anonymised")


def fingerprint(unlabeled: Sequence[Unlabeled]) -> str:
    """SHA-256 of items, weights and owners; what an adapter was trained against."""
    lines = "".join(json.dumps(astuple(entry)) + "\n" for entry in unlabeled)
    return hashlib.sha256(lines.encode()).hexdigest()


def chances(unlabeled: Sequence[Unlabeled]) -> np.ndarray:
    """Weights, none below zero; where none is positive, all items count alike."""
    weights = np.array([max(entry.weight, 0.0) for entry in unlabeled])
    return weights if weights.any() else np.ones(len(unlabeled))
