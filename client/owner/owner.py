"""Training, judging, writing and forgetting on a device, without any server.

Training starts from the shared adapter that the last federated run brought (from the bare
backbone before there was one), on everything the owner likes except the newest fifth,
which decides whether the new adapter is used. An adapter that a run trained is judged and
kept in the same way (`adopt`). The unlabeled set is `self`: samples of the backbone at the
owner's own prompts, so no other text is needed. What was disliked is a known negative.
"""

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...common.config import SETLESS, Config, flatten, parse
from ...common.config.methods import BY_NAME
from ...common.data.types import Item, User
from ...common.engine.adapters import Lora, scaled, side_by_side
from ...common.engine.backbone import Backbone
from ...common.engine.fitting import fits, fitting
from ...common.engine.mapped import a_layer_at_a_time
from ...common.engine.memory import TooLittleMemory, free_bytes
from ...common.engine.model_folder import unlike
from ...common.engine.pieces import Piece
from ...common.engine.rates import rates_of
from ...common.engine.reference import Reference, load_reference
from ...common.engine.scoring import generate
from ...common.engine.streaming import Kept, NoNumbers, pieces, sampled, tokens
from ...common.engine.training import UNWATCHED, Watch
from ...common.errors import IdiolectError, refuse_if, required
from ...common.methods import acceptance, strength
from ...common.methods.evaluation import held_out_nll
from ...common.methods.personalise import Personal, personalise
from ...common.unlabeled.sets import UnlabeledSet
from . import adapters, history, interrupted, limits, resident
from .adapters import Change, Version
from .consent import Refusal, settings
from .database import ErasureError
from .history import Entry
from .records import DEVICE, Source
from .resident import PERSONAL, SHARED, Asked, Reply
from .vault import Vault

FEWEST = 4  # liked pairs to train on and be judged by
# Liked pairs from which on what a device trains and accepts was shown to help its owner, on
# average over users: docs/continual.md. tests/test_continual.py compares the results.
HELPS = 16
# Texts that can tell a better adapter from luck. An adapter that changes nothing makes each
# text likelier or less likely by chance: all of four are likelier in 6 % of cases, all of
# five in 3 % (sign test).
TELLING = 5
AVOIDING = 0.05  # nats per token that learning to avoid something may cost elsewhere
HELD_OUT = 8  # at most; a fifth of the liked pairs otherwise
# Megabytes that a training plans to take above the model where no memory-mb is set: other
# programs run beside it, and more makes it little faster (docs/performance.md).
USUAL = 300
# Of what memory-mb leaves: the plan is made from shapes, and the limit counts what the heap
# keeps between tensors and the copies of a state that is being kept, too.
PLANNED = 0.5
SHOWN = 3  # changes of a new adapter that its owner is shown
# Policy -> what an owner is told whose model gives no numbers with it.
NUMBERLESS = {
    PERSONAL: "the adapter in use gives no numbers: choose another by `idiolect use N`.",
    SHARED: "the model gives no numbers without your adapter either: `idiolect reset` goes "
    "back to the bare model, and `idiolect settings backbone NAME` takes another.",
}


# --- settings --------------------------------------------------------------------------


def config_of(
    chosen: Mapping[str, str], method: str = "c-bpo", rate: float = 3e-3
) -> Config:
    """The configuration of a training with these settings."""
    return parse(
        {
            "task": "text",
            "methods": f"base,shared,{method}",
            "backbone": chosen["backbone"],
            "engine.max-length": int(chosen["max-length"]),
            "engine.dtype": chosen["dtype"],
            "engine.device": chosen["device"],
            "unlabeled.kind": "self",
            # Samples take as long as a part of the training: none where none are used.
            "unlabeled.ratio": 0.0 if method in SETLESS else 1.0,
            "personalise.learning-rates": repr(rate),
        }
    )


def check_loads(chosen: Mapping[str, str]) -> Backbone:
    """Load the backbone that settings name, as every later use does; return it.

    Raises
    ------
    IdiolectError
        It cannot be loaded, or not within the owner's limits.
    """
    with limits.held(chosen):
        return load_reference(config_of(chosen)).backbone


# --- training --------------------------------------------------------------------------


def train(
    vault: Vault,
    method: str = "c-bpo",
    given: float | None = None,
    watch: Watch = UNWATCHED,
) -> Version:
    """Train a new adapter, keep it, and use it if it is accepted (`Version.accepted`).

    A training that was interrupted goes on where it stood, if history, settings, method and
    rate are the same. `given`: the learning rate; None: the usual one for a backbone of
    this size.

    Raises
    ------
    IdiolectError
        There is too little history, training overflowed, it is not within the owner's
        limits (`limits.held`), or another one is running; the adapter in use stays.
    """
    chosen = settings(vault)
    with (
        limits.alone(vault.path),
        limits.held(chosen, training=True),
        contextlib.ExitStack() as thrift,
    ):
        entries = history.entries(vault)
        fits_strength = chosen["fit-strength"] == "yes"
        split(entries)  # refuses too little before a backbone is loaded
        watch.phase(f"loading the model {Path(chosen['backbone']).name:.40}")
        rate = rates_of(chosen["backbone"]).usual if given is None else given
        config = config_of(chosen, method, rate)
        loaded = load_reference(config)
        # Samples and trial need no more memory than the training.
        thrift.enter_context(
            a_layer_at_a_time(loaded.backbone.model, loaded.backbone.regions)
        )
        short = _fitting(loaded.backbone, entries)
        user, learnt = split(short, fits_strength=fits_strength)
        shared = adapters.latest_shared(vault, loaded.backbone, loaded.adapter)
        reference = loaded.with_shared(shared)
        texts = [asdict(item) for item in (*user.history, *user.disliked)]
        name = interrupted.name_of(
            reference.name, flatten(config), chosen, method, learnt, texts
        )
        check = partial(check_learnt, vault, learnt)
        followed = interrupted.watched(vault, name, check, reference, watch)
        make = partial(personalise, reference, [user], UnlabeledSet(), method, rate)
        # No part of the name: it changes no result.
        planned = _planned(config, chosen, loaded.backbone.device)
        (found,) = _within(planned, lambda config: make(config, followed))
        if found.lora is None:
            interrupted.drop(vault)
        lora = required(found.lora, found.error)
        watch.phase("trying it on your newest texts, which it has not seen")
        too_long = len(entries) - len(short)
        new = adopt(vault, reference, lora, method, (user, learnt), too_long=too_long)
        interrupted.drop(vault)
        return new


def _planned(config: Config, chosen: Mapping[str, str], device: torch.device) -> Config:
    """The configuration with a budget of memory: `USUAL`, or what ``memory-mb`` leaves.

    So a training takes longer before it is refused memory on its way. On a GPU it takes
    what is free there: ``memory-mb`` is about the machine's own.
    """
    if device.type == "cuda":
        return config
    allowed, own = int(chosen["memory-mb"]), limits.memory()
    if allowed and own is not None:
        left = PLANNED * (allowed - own)
    else:
        left = min(USUAL, free_bytes(device) / 2**20)
    return _with_memory(config, max(1, int(left)))


def _within(
    planned: Config, make: Callable[[Config], list[Personal]]
) -> list[Personal]:
    """What is made within the plan, or in more memory: it was a wish, the limit is not."""
    try:
        return make(planned)
    except TooLittleMemory as error:
        least = error.least
    # Not in the clause above: the error holds all that the first try has in memory.
    return make(_with_memory(planned, least))


def _with_memory(config: Config, megabytes: int) -> Config:
    return replace(config, engine=replace(config.engine, memory=megabytes))


def _fitting(backbone: Backbone, entries: Sequence[Entry]) -> list[Entry]:
    """The pairs that fit into the context.

    Raises
    ------
    IdiolectError
        They are too few to train on.
    """
    short = [entry for entry in entries if fits(backbone, entry.item())]
    fit, liked = (sum(entry.liked for entry in some) for some in (short, entries))
    refuse_if(
        fit < FEWEST,
        f"{fit} of the {liked} liked pairs in the vault fit into the context of "
        f"{backbone.context} tokens, and training needs {FEWEST}: import shorter "
        "ones, or allow longer ones by `idiolect settings max-length N`.",
    )
    return short


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

    def read(texts: Sequence[str]) -> list[acceptance.Text]:
        rows = zip(asked, texts, strict=True)
        return [
            acceptance.Text(one, len(tokens(item, one)) <= room)
            for (item, _), one in rows
        ]

    def cut(item: Item) -> acceptance.Text:
        """As much of the owner's text as could have been generated."""
        ids = tokens(item, item.target)
        return acceptance.Text(backbone.decode(ids[:room]), len(ids) <= room)

    policies = [[reference.adapter, lora], [reference.adapter]]
    if rival:
        policies[1] = [rival.reference.adapter, rival.lora]
    # Together: a small batch takes as long as a smaller one.
    prompts = [ids for _, ids in asked]
    texts = generate(
        *(backbone, [side_by_side(policies)], [*prompts, *prompts], room),
        repetition=acceptance.REPETITION,
    )
    new, before = read(texts[: len(asked)]), read(texts[len(asked) :])
    own = [cut(item) for item, _ in asked]
    fault = acceptance.fault(new, before, own, [item.target for item in user.history])
    rows = zip([item for item, _ in asked], before, new, strict=True)
    changes = [
        Change(item.prompt.text, *map(history.clean, (old.text, now.text, item.target)))
        for item, old, now in rows
    ]
    return {"fault": fault, "changes": tuple(changes[-SHOWN:])}


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
    fit_on = strength.halves(kept)[0] if fits_strength else ()
    made_of = (*learnt, *fit_on, *disliked)
    user = User(
        name,
        tuple(entry.item() for entry in learnt),
        tuple(entry.item() for entry in kept),
        disliked=tuple(entry.item() for entry in disliked),
    )
    return user, {entry.source: entry.generation for entry in made_of}


# --- use -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Writer:
    """The model as its owner uses it.

    Attributes
    ----------
    chosen
        Settings.
    backbone, shared, own
        The model, and both adapters.
    kept
        Policy -> what is kept of its last conversation; of the policy used last only.
    """

    chosen: Mapping[str, str]
    backbone: Backbone
    shared: Lora
    own: Lora
    kept: dict[str, Kept] = field(default_factory=dict)

    def write(self, prompt: str, budget: int, compare: bool = False) -> dict[str, str]:
        """Continue a prompt: ``personal``; with `compare` also ``shared``.

        That is what everyone has: the backbone, with the shared adapter if a run brought
        one.
        """
        asked = Asked((prompt,), budget=budget)
        ids, _ = self._encoded(asked)
        names = ("personal", "shared") if compare else ("personal",)
        with limits.held(self.chosen):
            return {
                name: "".join(
                    piece.text
                    for piece in self._written(ids, replace(asked, policy=name))
                )
                for name in names
            }

    def stream(
        self, prompt: str, budget: int, policy: str = PERSONAL
    ) -> Generator[Piece, None, None]:
        """The pieces of what `write` returns, as `converse` gives them."""
        return self.converse(Asked((prompt,), budget=budget, policy=policy)).pieces

    def converse(self, asked: Asked) -> Reply:
        """Answer a conversation; shown while it is written, and ended by `close`.

        Of one message alone the pieces joined are what `write` returns. Main thread only,
        within the owner's limits (`limits.held`).

        Raises
        ------
        TooLong
            It does not fit.
        IdiolectError
            As many new tokens as are asked for do not.
        """
        ids, dropped = self._encoded(asked)

        def limited() -> Generator[Piece, None, None]:
            with limits.held(self.chosen):
                yield from self._written(ids, asked, self._so_far(asked))

        chat = self.backbone.wording.turn is not None
        return Reply(self.chosen["backbone"], chat, len(ids), dropped, limited())

    def _encoded(self, asked: Asked) -> tuple[list[int], int]:
        """Tokens of a conversation, and how many of its turns were left out."""
        backbone, most = self.backbone, asked.budget if asked.shorten else 1
        refuse_if(
            not 0 < most < backbone.context,
            f"{most} new tokens do not fit into a context of {backbone.context}: ask for 1 "
            f"to {backbone.context - 1}.",
        )
        texts = [history.clean(text) for text in asked.texts]
        system = history.clean(asked.system)
        room = backbone.context - most
        return backbone.encode_conversation(texts, system, room, asked.shorten)

    def _so_far(self, asked: Asked) -> Kept:
        """What is kept of this conversation; nothing where it begins."""
        known = self.kept.get(asked.policy) if len(asked.texts) > 1 else None
        self.kept.clear()
        self.kept[asked.policy] = known or Kept()
        return self.kept[asked.policy]

    def _written(
        self, ids: Sequence[int], asked: Asked, kept: Kept | None = None
    ) -> Iterator[Piece]:
        used = [self.shared, self.own] if asked.policy == PERSONAL else [self.shared]
        room = self.backbone.context - len(ids)
        most = min(asked.budget or room, room)
        choose = sampled(asked.temperature, asked.top_p, asked.seed)
        how = acceptance.REPETITION, choose
        written = tokens(self.backbone, used, ids, most, *how, kept)
        texts = history.tidy, history.clean, asked.stops
        try:
            yield from pieces(self.backbone, written, most, *texts)
        except NoNumbers as error:
            raise IdiolectError(NUMBERLESS[asked.policy]) from error


def standing(vault: Vault) -> tuple[Any, ...]:
    """What a `Writer` depends on; empty: the vault is gone."""
    try:
        file = vault.path.stat().st_ino  # another one may have been made in its place
        with vault.reading():
            used = adapters.active(vault), adapters.turned(vault)
            return file, settings(vault), used
    except (OSError, IdiolectError):
        return ()


def writer(vault: Vault) -> Writer:
    """Load the model and the adapter in use.

    Raises
    ------
    IdiolectError
        They cannot be loaded, or none is in use.
    """
    chosen = settings(vault)
    with limits.held(chosen):
        loaded = load_reference(config_of(chosen))
        both = adapters.adapter(vault, loaded.backbone, loaded.adapter)
    return Writer(chosen, loaded.backbone, *both)


# --- forgetting ------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgotten:
    """What is erased with sources and pairs that an owner names.

    Attributes
    ----------
    sources
        Names of sources that are forgotten as a whole.
    entries
        All pairs.
    stale
        The adapters that learnt from them.
    """

    sources: frozenset[str]
    entries: tuple[Entry, ...]
    stale: tuple[Version, ...]


def to_forget(
    vault: Vault, sources: Collection[str] = (), ids: Collection[str] = ()
) -> Forgotten:
    """What `forget` would erase.

    Raises
    ------
    IdiolectError
        There is no such source or pair.
    """
    with vault.reading():
        everything = history.entries(vault)
        known = {entry.source for entry in everything}
        named = {n for name in sources for n in history.known_sources(name, known)}
        chosen = {entry.id for entry in history.find(vault, ids)}
        gone = [e for e in everything if e.id in chosen or e.source in named]
        touched = {entry.source for entry in gone}
        stale = [one for one in adapters.versions(vault) if touched & set(one.sources)]
    return Forgotten(frozenset(named), tuple(gone), tuple(stale))


def forget(
    vault: Vault, sources: Collection[str] = (), ids: Collection[str] = ()
) -> tuple[int, list[Version]]:
    """Erase sources or single pairs, and every adapter that learnt from them.

    Returns
    -------
    tuple
        How many pairs there were, and the adapters.

    Raises
    ------
    IdiolectError
        There is no such source or pair; nothing was erased.
    ErasureError
        They are deleted, but their encrypted traces are still in the file.
    """
    try:
        # In one transaction: no adapter is kept in between that knows what is gone, and
        # no crash leaves one.
        with vault.transaction(erasing=True):
            found, disliked = to_forget(vault, sources, ids), history.disliked(vault)
            named, stale = found.sources, list(found.stale)
            if adapters.active(vault) in [version.number for version in stale]:
                adapters.activate(vault, 0)
            for version in stale:
                vault.forget(Source("adapter", str(version.number)))
            vault.forget_runs()
            vault.forget(interrupted.SOURCE)
            count = sum(vault.forget(Source("import", name)) for name in named)
            for name in {entry.source for entry in found.entries} - named:
                gone = {entry.id for entry in found.entries if entry.source == name}
                count += vault.forget_some(Source("import", name), history.KIND, gone)
            erased = sum(not entry.liked for entry in found.entries)
            history.note_disliked(vault, disliked, -erased)
        resident.end(vault.path)  # it has what is erased in its memory
        return count, stale
    except ErasureError as error:
        raise ErasureError(
            f"the pairs and what learnt them are deleted, but {error}"
        ) from error
