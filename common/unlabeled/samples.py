"""Samples of the reference policy at given prompts, among them the kind `self`."""

from collections.abc import Sequence

import torch

from ..config import Config
from ..data.load import task_of
from ..data.types import Item, User
from ..engine.backbone import Encoded
from ..engine.fitting import asked, encode_all, output_budget
from ..engine.reference import Reference, content_hash
from ..engine.scoring import generate
from ..seeds import derive
from .sets import Unlabeled

# Nucleus of the samples: the tail of an untuned model is noise that is easy to tell from
# anybody's text.
TOP_P = 0.95
SAMPLED_AT_ONCE = 64
# Draws of a sample that came out empty: a policy that ends half of its texts at once
# leaves one in 256 missing.
ATTEMPTS = 8


def self_samples(
    reference: Reference,
    user: User,
    own: Sequence[Encoded],
    count: int,
    config: Config,
) -> list[Unlabeled]:
    """Sample pi_ref at the user's own prompts: nothing crosses users (kind `self`)."""
    found = _at_own_prompts(reference, user, own, count, config, "self")
    return [Unlabeled(item, 1.0) for item in found]


def disliked_samples(
    reference: Reference, user: User, count: int, config: Config
) -> tuple[Item, ...]:
    """What pi_ref writes at the user's past prompts, and the user did not: dislikes.

    They stand for explicit dislikes of real users, whose files have none. Other samples
    than those of kind `self`; one that is a text of the history is left out.
    """
    if not count:
        return ()
    own = encode_all(reference.backbone, user.history)
    found = _at_own_prompts(reference, user, own, count, config, "disliked")
    written = {item.target for item in user.history}
    return tuple(item for item in found if item.target not in written)


def _at_own_prompts(
    reference: Reference,
    user: User,
    own: Sequence[Encoded],
    count: int,
    config: Config,
    purpose: str,
) -> list[Item]:
    """Samples of pi_ref at the user's own prompts in turn, at most `count`.

    Temperature 1, nucleus 0.95, and at most as many tokens as the longest text of the
    user: what is longer is told from the user's texts by its length alone, and takes time.
    Drawn user by user, so that the samples do not depend on who else is stacked. A sample
    that is empty, or that has more tokens when it is read than when it was written and then
    does not fit, is drawn again a few times.
    """
    found: dict[int, Item] = {}
    longest = max(len(entry.ids) - entry.prompt_length for entry in own)
    task = task_of(config.task)
    budget = min(longest, output_budget(reference.backbone, task))
    starts = asked(reference.backbone, user.history[: len(own)], own, task)
    for attempt in range(ATTEMPTS):
        missing = [i for i in range(count) if i not in found]
        if not missing:
            break
        again = (attempt,) if attempt else ()
        seed = derive(config.seed, purpose, user.id, *again)
        prompts = [starts[i % len(own)] for i in missing]
        texts = _once(reference, user, prompts, budget, seed)
        for i, text in zip(missing, texts, strict=True):
            item = Item(f"{purpose}-{i}", user.history[i % len(own)].prompt, text)
            if text and reference.backbone.fits(item):
                found[i] = item
    return [found[i] for i in sorted(found)]


def _once(
    reference: Reference,
    user: User,
    prompts: Sequence[Sequence[int]],
    budget: int,
    seed: int,
) -> list[str]:
    """`_sampled`, computed once: every method and learning rate has the same samples."""
    key = ("samples", user.id, content_hash(list(map(list, prompts)), budget, seed))
    return reference.once(key, lambda: _sampled(reference, prompts, budget, seed))


def sample_reference(
    reference: Reference, items: Sequence[Item], config: Config, seed: int
) -> list[str]:
    """One sample of pi_ref at the prompt of each item (temperature 1, nucleus 0.95)."""
    encoded = encode_all(reference.backbone, items)
    task, backbone = task_of(config.task), reference.backbone
    prompts, budget = (
        asked(backbone, items, encoded, task),
        output_budget(backbone, task),
    )
    texts: list[str] = []
    for start in range(0, len(prompts), SAMPLED_AT_ONCE):
        part = prompts[start : start + SAMPLED_AT_ONCE]
        texts += _sampled(reference, part, budget, derive(seed, start))
    return texts


def _sampled(
    reference: Reference, prompts: Sequence[Sequence[int]], budget: int, seed: int
) -> list[str]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = [reference.shared]
        return generate(reference.backbone, policy, prompts, budget, TOP_P)
