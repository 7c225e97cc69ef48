"""Whether a new adapter is used: it is judged on texts that it has not seen, and kept.

By the likelihood of the owner's newest texts, and by what it writes at their prompts
(`methods.acceptance`). An adapter that a federated run trained is judged in the same way.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...common.config.methods import BY_NAME
from ...common.data.types import Item, User
from ...common.engine.adapters import Lora, scaled, side_by_side
from ...common.engine.fitting import fitting
from ...common.engine.model_folder import unlike
from ...common.engine.reference import Reference
from ...common.engine.scoring import continued
from ...common.errors import IdiolectError
from ...common.methods import acceptance, strength
from ...common.methods.evaluation import held_out_nll
from . import adapters, history
from .adapters import Change, Version
from .consent import settings
from .learning import check_learnt
from .records import DEVICE
from .vault import Vault

AVOIDING = 0.05  # nats per token that learning to avoid something may cost elsewhere
SHOWN = 3  # changes of a new adapter that its owner is shown


def adopt(
    vault: Vault,
    reference: Reference,
    lora: Lora,
    method: str,
    learning: tuple[User, Mapping[str, str]],
    origin: str = "",
    too_long: int = 0,
) -> Version:
    """Judge a trained adapter on the held-out pairs, keep it, and use it if accepted.

    It is judged by the likelihood of the texts and by what it writes (`acceptance`).
    With the setting ``fit-strength``, of four held-out pairs or more the older half does
    not judge: its strength is fitted on them.

    Parameters
    ----------
    vault, reference, lora, method
        Where it is kept, what it was trained on top of, the adapter, and how.
    learning
        What it was trained on and is judged by, as `split` returned it. Pairs that do not
        fit into the context were not trained on and do not judge.
    origin
        What a federated run trained it from (`state.identity`); empty: none did. One of an
        origin that is kept already is not kept twice.
    too_long
        Pairs that were left out of `learning` since they do not fit into the context.

    Raises
    ------
    Refusal
        Something that it was trained on has been forgotten meanwhile; it is not kept.
    """
    backbone, learnt = reference.backbone, learning[1]
    user, more = fitting(backbone, learning[0])
    texts: tuple[Item, ...] = ()
    if settings(vault)["fit-strength"] == "yes":
        user, texts = _apart(user, learning[0])
    (best,) = strength.fit(reference, [[(lora, texts)]])
    used = best or 1.0  # of one that is better not used, as it was trained
    strong = scaled(lora, used)
    while True:
        if known := _of_origin(vault, origin):
            return known
        now = adapters.active(vault)
        rival = _rival(vault, reference, now)
        judged = _judged(reference, strong, method, user, rival)
        judged |= _tried(reference, strong, user, rival)
        with vault.transaction():
            check_learnt(vault, learnt)
            if adapters.active(vault) != now or _of_origin(vault, origin):
                continue  # another process was faster
            # A shared adapter that is worse than nothing here is no start for the next.
            start = judged["nll_before"] <= judged["nll_bare"]
            version = Version(
                number=vault.count_up("adapters", DEVICE),
                method=method,
                backbone=backbone.hash,
                sources=tuple(learnt),
                generations=tuple(learnt.values()),
                pairs=tuple(one.id for one in (*user.history, *user.disliked)),
                trained=len(user.history),
                disliked=len(user.disliked) if BY_NAME[method].disliked else 0,
                held_out=len(user.held_out),
                too_long=too_long + more,
                shared=adapters.keep_shared(vault, backbone, reference.adapter, start),
                origin=origin,
                strength=used,
                fitted=best,
                fitted_on=tuple(item.id for item in texts),
                **judged,
            )
            adapters.keep(vault, version, lora)
            return version


def _apart(fit: User, whole: User) -> tuple[User, tuple[Item, ...]]:
    """The owner without the held-out items that the strength is fitted on, and these.

    Which ones they are does not depend on what fits into the context: `split` has named
    their sources.
    """
    older = {item.id for item in strength.halves(whole.held_out)[0]}
    judges = tuple(item for item in fit.held_out if item.id not in older)
    if not judges:
        return fit, ()
    return replace(fit, held_out=judges), tuple(
        item for item in fit.held_out if item.id in older
    )


def _of_origin(vault: Vault, origin: str) -> Version | None:
    """The adapter that a run trained from this origin, if it is kept."""
    for version in adapters.versions(vault) if origin else ():
        if version.origin == origin:
            return version
    return None


@dataclass(frozen=True, eq=False)
class Rival:
    """The adapter in use, with what is below it."""

    reference: Reference
    lora: Lora
    version: Version


def _rival(vault: Vault, reference: Reference, now: int) -> Rival | None:
    """The adapter of number `now`; None: there is none, or it is of other weights."""
    with vault.reading():
        found = adapters.read(vault, now)
        if found is None or unlike(found[1].backbone, reference.backbone.hash):
            return None
        lora, version = found
        shared = reference.adapter
        zero = replace(shared, b={name: 0 * b for name, b in shared.b.items()})
        below = adapters.shared_below(vault, version.shared, zero)
    return Rival(reference.with_shared(below), lora, version)


def _judged(
    reference: Reference, lora: Lora, method: str, user: User, rival: Rival | None
) -> dict[str, Any]:
    """The fields of a `Version` that say how likely the held-out texts are."""

    def nll(on: Reference, own: Lora | None, who: User, name: str) -> float:
        return held_out_nll(on, [own], [who], name)[0]

    found: dict[str, Any] = {
        "nll": nll(reference, lora, user, method),
        "nll_before": nll(reference, None, user, "shared"),
        "nll_bare": nll(reference, None, user, "base"),
    }
    if rival is None:
        return found
    # Pairs that the one in use was made from say nothing about either.
    known = {*rival.version.pairs, *rival.version.fitted_on}
    unseen = tuple(item for item in user.held_out if item.id not in known)
    if unseen:
        who = replace(user, held_out=unseen)
        found["nll_in_use"] = nll(
            rival.reference, rival.lora, who, rival.version.method
        )
        found["nll_against"] = nll(reference, lora, who, method)
        newly = {item.id for item in user.disliked} - known
        found["allowed"] = AVOIDING if newly and BY_NAME[method].disliked else 0.0
    return found


def _tried(
    reference: Reference, lora: Lora, user: User, rival: Rival | None
) -> dict[str, Any]:
    """The fields of a `Version` that say what it writes, at the newest held-out prompts.

    A prompt whose instruction leaves no room for an answer is left out.
    """
    backbone = reference.backbone
    room = min(acceptance.TOKENS, backbone.context // 2)
    asked: list[tuple[Item, list[int]]] = []
    for item in user.held_out[-acceptance.PROMPTS :]:
        with contextlib.suppress(IdiolectError):
            ids, _ = backbone.encode_prompt(item.prompt, backbone.context - room, "")
            asked.append((item, ids))

    def tokens(item: Item, target: str) -> list[int]:
        return backbone.completion(replace(item, target=target))

    def read(ids: list[int]) -> acceptance.Text:
        ended = not set(backbone.end_ids).isdisjoint(ids)
        return acceptance.Text(backbone.decode(ids), ended)

    def cut(item: Item) -> acceptance.Text:
        """As much of the owner's text as could have been generated."""
        ids = tokens(item, item.target)
        return acceptance.Text(backbone.decode(ids[:room]), len(ids) <= room)

    policies = [[reference.adapter, lora], [reference.adapter]]
    if rival:
        policies[1] = [rival.reference.adapter, rival.lora]
    # Together: a small batch takes as long as a smaller one.
    prompts = [ids for _, ids in asked]
    written = continued(
        *(backbone, [side_by_side(policies)], [*prompts, *prompts], room),
        repetition=acceptance.REPETITION,
    )
    texts = [read(ids) for ids in written]
    new, before = texts[: len(asked)], texts[len(asked) :]
    own = [cut(item) for item, _ in asked]
    fault = acceptance.fault(new, before, own, [item.target for item in user.history])
    rows = zip([item for item, _ in asked], before, new, strict=True)
    changes = [
        Change(item.prompt.text, *map(history.clean, (old.text, now.text, item.target)))
        for item, old, now in rows
    ]
    return {"fault": fault, "changes": tuple(changes[-SHOWN:])}
