"""How well a user is served: scores and ranks of held-out text, and what is written.

Pure functions as in `personalise`: what is returned are numbers.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..config import Config
from ..config.methods import BY_NAME
from ..data import metrics
from ..data.load import task_of
from ..data.personas import score_style
from ..data.types import Item, User
from ..engine.adapters import Lora, attached, stack
from ..engine.backbone import Backbone, Encoded
from ..engine.fitting import asked, encode_all, output_budget
from ..engine.reference import Reference
from ..engine.scoring import (
    collate,
    completion_tokens,
    generate,
    nll_per_token,
    score_users,
    token_logp,
)
from .examples import newest
from .table import module_of


def held_out_nll(
    reference: Reference,
    personals: Sequence[Lora | None],
    users: Sequence[User],
    method: str,
) -> list[float]:
    """Return every user's ``nll``, the cheapest metric of `evaluate`.

    It chooses learning rates, and decides whether a device uses an adapter.
    """
    backbone = reference.backbone
    items = [encode_all(backbone, user.held_out) for user in users]
    scores = score_users(backbone, _policy(reference, personals, method), items)
    return [nll_per_token(*each) for each in zip(scores, items, strict=True)]


def evaluate(
    reference: Reference,
    personals: Sequence[Lora | None],
    users: Sequence[User],
    method: str,
    config: Config,
    generate_texts: bool,
    written: dict[str, list[str]] | None = None,
) -> list[dict[str, float]]:
    """Measure a method on every user's held-out items.

    Parameters
    ----------
    reference
        The frozen reference.
    personals, users
        A stacking group and its adapters; None for methods without.
    method, config
        ``base`` is the backbone without the shared adapter. ``rag`` and ``pag`` are the
        shared policy at longer prompts, rewarded against the reference at the plain ones.
        Methods in ``evaluate.contrasted`` decode by contrast; scores are not affected.
    generate_texts
        Whether outputs are generated and judged too.
    written
        Where each user's outputs are put, if somebody in this process wants them.

    Returns
    -------
    list of dict
        METRIC -> value, in the order of `users`. ``nll`` is per completion token;
        ``contrast`` and ``mrr`` rank the user's own text among rival texts (`ranking`),
        over the items that have any. Without rivals (on devices) both are absent, and
        ``mrr`` also where each item has only one (``evaluate.rivals``). Where
        ``personalise.strength`` is not 1, all metrics are those at the own strength;
        ``strength`` is there too, and ``nll_raw``, the ``nll`` at strength 1.
    """
    backbone = reference.backbone
    policy = _policy(reference, personals, method)
    both = [with_rivals(backbone, user) for user in users]
    prompted, asking = both, users
    if BY_NAME[method].prompts:
        longer = module_of(method).prompted
        known = [replace(user, history=newest(user, config)) for user in users]
        asking = [longer(reference, u, config) if u.history else u for u in known]
        prompted = [with_rivals(backbone, user) for user in asking]
    references = [reference.scores(items) for items in both]
    # Scored again in other batches, the reference would differ from itself in the last
    # bits, and these would decide a contrast.
    same = policy == [reference.shared] and prompted is both
    scores = references if same else score_users(backbone, policy, prompted)
    rows = zip(users, both, scores, references, strict=True)
    results = [_ranked(u, i, np.array(s), np.array(r)) for u, i, s, r in rows]
    if config.fixed_strength != 1 and BY_NAME[method].adapter:
        whole = config.lora.scaling  # of an adapter at strength 1
        raw = [lora and replace(lora, scaling=whole) for lora in personals]
        found = held_out_nll(reference, raw, users, method)
        for lora, result, nll in zip(personals, results, found, strict=True):
            if lora is not None and whole:
                result |= {"strength": lora.scaling / whole, "nll_raw": nll}
    if config.evaluate.shift:
        for user, lora, result in zip(users, personals, results, strict=True):
            if _all_rivals(user):
                result["shift"] = shift(reference, lora, user)
    if generate_texts:
        task, judged = task_of(config.task), config.evaluate
        own = [
            asked(backbone, u.held_out, p[: len(u.held_out)], task)
            for u, p in zip(asking, prompted, strict=True)
        ]
        texts = _outputs(backbone, policy, own, config, method)
        for user, outputs, result in zip(users, texts, results, strict=True):
            targets = [item.target for item in user.held_out]
            result |= metrics.score(
                task, outputs, targets, judged.rouge_tokens, judged.meteor
            )
            result |= score_style(user, outputs)
            if written is not None:
                written[user.id] = outputs
    return results


def _ranked(
    user: User, items: Sequence[Encoded], logp: np.ndarray, reference: np.ndarray
) -> dict[str, float]:
    """``nll``, ``contrast`` and ``mrr`` from the scores of `with_rivals`."""
    reward = (logp - reference) / [completion_tokens(entry) for entry in items]
    first = len(user.held_out)
    counts = np.array([len(item.rivals) for item in user.held_out])
    found = {"nll": nll_per_token(logp[:first], items[:first])}
    if counts.any():  # a text alone ranks nowhere
        rivals = np.split(reward[first:], np.cumsum(counts)[:-1])
        found |= ranking(reward[:first][counts > 0], [r for r in rivals if len(r) > 0])
    if max(counts) == 1:
        del found["mrr"]  # it would say what contrast says
    return found


def with_rivals(backbone: Backbone, user: User) -> list[Encoded]:
    """Tokens of the held-out items, then those of their rivals, item by item."""
    return encode_all(backbone, [*user.held_out, *_all_rivals(user)])


def _all_rivals(user: User) -> list[Item]:
    return [rival for item in user.held_out for rival in item.rivals]


def ranking(own: np.ndarray, rivals: Sequence[np.ndarray]) -> dict[str, float]:
    """How rewards rank each own text [n] among its rivals (n arrays).

    Returns
    -------
    dict
        ``contrast``: share of rivals with a lower reward than the own text; a tie counts
        half. ``mrr``: mean reciprocal rank of the own text, 1 where it is always first;
        of equal rewards every order is as likely, so that no policy gains by a tie. Among
        seven rivals chance is .34.
    """
    lower, reciprocal = [], []
    for mine, others in zip(own, rivals, strict=True):
        above, tied = np.sum(others > mine), np.sum(others == mine)
        lower.append(1 - (above + tied / 2) / len(others))
        reciprocal.append(np.mean(1 / (above + 1 + np.arange(tied + 1))))
    return {"contrast": float(np.mean(lower)), "mrr": float(np.mean(reciprocal))}


# A token to which the reference gives at least this probability is one that everyone
# writes here.
COMMON = 0.5


def shift(reference: Reference, personal: Lora | None, user: User) -> float:
    """Mean of log pi_theta - log pi_ref over the tokens that everyone writes.

    Those are the tokens of other people's texts (the rivals) to which the reference gives
    at least probability 1/2. Below zero, personalisation suppresses them. 0 for a method
    without own adapter. The user must have rivals.
    """
    backbone, shared = reference.backbone, reference.shared
    batch = collate(backbone, encode_all(backbone, _all_rivals(user)))
    with torch.no_grad(), attached(backbone, shared):
        frozen = token_logp(backbone, batch)
    with torch.no_grad(), attached(backbone, shared, personal):
        policy = token_logp(backbone, batch)
    common = frozen >= np.log(COMMON)
    return float((policy - frozen)[common].mean()) if common.any() else 0.0


def _policy(
    reference: Reference, personals: Sequence[Lora | None], method: str
) -> list:
    if method == "base":
        return []
    own = [lora for lora in personals if lora is not None]
    if own and len(own) != len(personals):
        raise ValueError("either every user of a group has an adapter, or none has")
    return [reference.shared, stack(own)] if own else [reference.shared]


def _outputs(
    backbone: Backbone,
    policy: list,
    own: list[list[tuple[int, ...]]],
    config: Config,
    method: str,
) -> list[list[str]]:
    """Greedy outputs for every user's held-out prompts, all users at once.

    Long texts are written in parts, each with the same number of prompts of every user, so
    that no more than `AT_ONCE` tokens are kept.
    """
    task, most = task_of(config.task), max(map(len, own))
    budget, contrast = output_budget(backbone, task), config.contrast_of(method)
    step = most
    if task.kind == "long":
        step = max(1, AT_ONCE // (backbone.context * len(own)))
    texts: list[list[str]] = [[] for _ in own]
    for start in range(0, most, step):
        places = range(start, min(start + step, most))
        prompts = [p[i] if i < len(p) else () for p in own for i in places]
        found = generate(backbone, policy, prompts, budget, contrast=contrast)
        for k, written in enumerate(texts):
            written += found[k * len(places) : (k + 1) * len(places)]
    return [written[: len(p)] for written, p in zip(texts, own, strict=True)]


# Tokens of prompts and outputs that are generated together; at 46 kB of keys and values a
# token, as in a model of 135 million parameters, 0.8 GB.
AT_ONCE = 2**14
