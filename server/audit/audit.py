"""Audits: attack what a run released, and the aggregation that released it.

`audit_run` audits the aggregation (`mechanism`), and attacks what a finished run of
personas released: who was a member, and whether a planted secret comes out again.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...common.config import Config
from ...common.data.load import load_dataset
from ...common.data.types import Dataset, Item, User
from ...common.engine.fitting import encode_all
from ...common.engine.reference import Reference, load_reference
from ...common.engine.scoring import completion_tokens, generate
from ...common.errors import IdiolectError, refuse_if
from ...common.files import make_private, private_folder
from ...common.privacy.scrub import OFFERED
from ...common.protocol.messages import package_version
from ...common.seeds import numpy_generator
from ...common.unlabeled.samples import sample_reference
from ...common.unlabeled.sets import Unlabeled
from ...common.unlabeled.votes import build_bank, user_vote
from ...common.unlabeled.votes import offers as offers_of
from ..privacy.card import card, explained
from ..privacy.ledger import read_ledger
from ..run import checkpoint, results
from ..run.adapt import adapt
from ..run.local import Local, local_run
from ..study.declaration import Study, cells
from . import attacks
from .attacks import Design
from .mechanism import CONTROLS, audit_mechanism, caught, claims, noise_for

# --- declared audits ---------------------------------------------------------------------


def run_study(study: Study, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the audits that have no file yet; return what all of them found.

    Raises
    ------
    IdiolectError
        The grid is not one of ``control`` and ``seed``, or the design has unknown keys.
    """
    design = design_of(study.audit or {})
    refuse_if(
        set(study.grid) != {"control", "seed"},
        "the grid of an audit has the keys 'control' and 'seed'.",
    )
    for control in study.grid["control"]:
        known = control in CONTROLS
        refuse_if(
            not known, f"control is {control!r}: use any of {', '.join(CONTROLS)}."
        )
    make_private(private_folder(folder))
    done: list[dict[str, Any]] = []
    for cell in cells(study):
        control, seed = str(cell["control"]), int(cell["seed"])
        path = cell_file(folder, design, control, seed)
        if not path.exists():
            found = audit_mechanism(design, control, seed)
            results.write_json(
                path,
                {
                    "cell": cell,
                    "audits": [asdict(audit) for audit in found],
                    "claims": claims(design),
                    "noise": noise_for(design),
                    "caught": caught(found, design),
                },
            )
            say(f"{control}, seed {seed}")
        done.append(json.loads(path.read_text()))
    return summary(study, done)


def cell_file(folder: Path, design: Design, control: str, seed: int) -> Path:
    """Return the file of one audit, named by what it was run with and nothing else.

    Versions before hashed how Python writes the design; such a file is given its new name.
    """
    cell = {**asdict(design), "control": control, "seed": seed}
    if not design.secagg:  # audits had names before there was anything else
        del cell["secagg"]
    written = repr((design, control, seed)).replace(", secagg=False", "")
    texts = json.dumps(cell, sort_keys=True), written
    keys = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
    path, old = (folder / "cells" / f"{key}.json" for key in keys)
    if old.exists() and not path.exists():
        old.rename(path)
    return path


def design_of(settings: Mapping[str, Any]) -> Design:
    """Read the ``[audit]`` table of a study.

    Raises
    ------
    IdiolectError
        A key is unknown.
    """
    try:
        return Design(**settings)
    except TypeError as error:
        known = ", ".join(Design.__dataclass_fields__)
        raise IdiolectError(f"[audit] of a study: {error}; it takes {known}.") from None


def summary(study: Study, done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a declared audit found, by control: how often it was caught, and how far."""
    rows = []
    for control in dict.fromkeys(cell["cell"]["control"] for cell in done):
        mine = [cell for cell in done if cell["cell"]["control"] == control]
        hits = sum(cell["caught"] for cell in mine)
        bounds: dict[str, list[float]] = {}
        for cell in mine:
            for audit in cell["audits"]:
                bounds.setdefault(audit["name"], []).append(
                    audit["epsilon_lower_bound"]
                )
        rows.append(
            {
                "control": control,
                "audits": len(mine),
                "caught": hits,
                "share95": list(attacks.clopper_pearson(hits, len(mine))),
                "bounds": {
                    attack: {"median": float(np.median(b)), "largest": max(b)}
                    for attack, b in bounds.items()
                },
            }
        )
    return {
        "kind": "audit",
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "reading": study.reading,
        "answer": study.answer,
        "claims": done[0]["claims"],
        "noise": done[0]["noise"],
        "largest_detectable": done[0]["audits"][0]["largest_detectable"],
        "rows": rows,
        "curve": [],
    }


# --- a finished run -----------------------------------------------------------------------

STRANGERS = 100  # personas of the same world who took no part
REPEATS = (1, 4, 16)  # how often a planted secret stands in a history
CODES = 1000  # candidates among which a planted code is ranked
SAMPLES = 100  # outputs at a planted prompt


def audit_run(folder: Path, seed: int, say: Callable[[str], None]) -> list[dict]:
    """Audit the mechanism, and attack what a finished run released.

    The audits are added to the run's ledger, and its privacy card is written again.

    Parameters
    ----------
    folder
        Of the run.
    seed
        Of everything but noise.
    say
        Told what each audit found.

    Raises
    ------
    IdiolectError
        The run is not finished.
    """
    found = results.load(str(folder.parent), folder.name)
    config = checkpoint.read_config(folder)
    ledger = read_ledger(folder / "ledger.json")
    by_users = config.secagg.mode != "off"
    done = mechanism_audits(replace(Design(), secagg=by_users), seed)
    if config.data:
        say("real data: no strangers to compare with, so membership is not audited")
    else:
        say("the code is audited; attacking what was released")
        done += attack_personas(folder, config, seed)
    ledger.audits[:] = done
    ledger.save()
    commit = found["privacy"]["code"]["commit"]
    privacy = card(ledger, folder.name, package_version(), commit)
    results.write_json(folder / "privacy_card.json", privacy)
    results.write_json(folder / "results.json", {**found, "privacy": privacy})
    for line in (*explained(done), *privacy["claims"]["measured"]):
        say(line)
    return done


def mechanism_audits(design: Design, seed: int) -> list[dict[str, Any]]:
    """Every control once, as entries of the privacy card."""
    allowed = claims(design)
    return [
        {
            "name": f"aggregation, {control}, {audit.name}",
            "broken": control != "honest",
            "eps_lb": audit.epsilon_lower_bound,
            "max_detectable": audit.largest_detectable,
            "claimed": allowed[audit.name],
            "conf": audit.confidence,
            "m": audit.canaries,
            "guesses": audit.guesses,
        }
        for control in CONTROLS
        for audit in audit_mechanism(design, control, seed)
    ]


def defects(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be: the honest mechanism caught, or a broken one not caught."""
    bounded = [audit for audit in done if "eps_lb" in audit]
    controls = [audit["name"].split(", ")[1] for audit in bounded]
    above = {
        control
        for control, audit in zip(controls, bounded, strict=True)
        if audit["eps_lb"] > audit["claimed"]
    }
    found: list[str] = []
    for control in dict.fromkeys(controls):
        if (control in above) == (control == "honest"):
            what = "leaks more than it claims" if control in above else "was not caught"
            found.append(f"the aggregation '{control}' {what}.")
    return found


def attack_personas(folder: Path, config: Config, seed: int) -> list[dict[str, Any]]:
    """Membership, extraction and authorship against a run of synthetic users."""
    dataset = load_dataset(config)
    more = load_dataset(replace(config, users=config.users + STRANGERS))
    strangers = more.users[config.users :]
    members = dataset.everybody
    state = checkpoint.load(folder, {})
    reference = Local(config, state, dataset, load_reference(config)).reference
    trained = dataset.development if config.adapt.users == "development" else members
    done: list[dict[str, Any]] = []

    def compare(
        what: str, users: Sequence[User], score: Callable[[User], float]
    ) -> None:
        """Try to tell the scores of those who took part from those of strangers."""
        ours, theirs = (
            np.array([score(user) for user in part]) for part in (users, strangers)
        )
        found = attacks.membership(ours, theirs, seed, delta=config.privacy.delta)
        done.append(
            {
                "name": f"membership in {what}",
                "auc": found.auc,
                "tpr": found.tpr,
                "tpr95": list(found.tpr_interval),
                "fpr": found.fpr,
                "members": found.members,
                "others": found.others,
            }
        )

    if config.adapt.rounds:
        compare("the shared adapter", trained, partial(fitted, reference))
        done += extraction(reference, dataset, config)
    if (entries := state.unlabeled) and config.unlabeled.kind != "public":
        likeness = partial(resemblance, reference, entries, config)
        compare("the unlabeled set", members, likeness)
    if config.unlabeled.kind == "anonymised":
        done.append(authorship(members, config))
    return done


def fitted(reference: Reference, user: User) -> float:
    """How much likelier the shared adapter makes a history, nats per token."""
    items = encode_all(reference.backbone, user.history)
    with_it, without = reference.scores(items), reference.bare.scores(items)
    return (sum(with_it) - sum(without)) / sum(map(completion_tokens, items))


def resemblance(
    reference: Reference, entries: Sequence[Unlabeled], config: Config, user: User
) -> float:
    """How much an unlabeled set looks as if the user were in it.

    For votes the user's own vote times the released weights; otherwise the mean over the
    history of the likeness to the nearest item.
    """
    if config.unlabeled.kind == "votes":
        vote = user_vote(reference, [e.item for e in entries], user, config)
        return float(vote @ np.array([entry.weight for entry in entries]))
    bank = _bank(tuple(entry.item.target for entry in entries))
    return float(np.mean([bank.similarity(i.target).max() for i in user.history]))


_bank = cache(build_bank)


def extraction(
    reference: Reference, dataset: Dataset, config: Config
) -> list[dict[str, Any]]:
    """Train the shared adapter again with planted secrets, and try to get them out.

    As many users as there are `REPEATS` each get a code of four digits into the history,
    in place of their last items. Then the true code is ranked among 1,000 by likelihood
    (exposure, Carlini et al. 2019: log2 of codes over rank, 10 bits at most), and looked
    for in sampled outputs.
    """
    generator = numpy_generator(config.seed, "secrets")
    codes = [f"{n:04d}" for n in generator.permutation(10_000)[:CODES]]
    only = config.adapt.users == "development"
    trained = dataset.development if only else dataset.users
    planted: dict[str, User] = {}
    secrets: list[tuple[str, Item, int]] = []
    for user, repeats, code in zip(trained, REPEATS, codes, strict=False):
        repeats = min(repeats, len(user.history))
        prompt = replace(user.history[0].prompt, input=f"The secret of {user.id}.")
        secret = Item("secret", prompt, f"my code is {code}")
        history = (*user.history[: len(user.history) - repeats], *[secret] * repeats)
        planted[user.id] = replace(user, history=history)
        secrets.append((code, secret, repeats))
    data = replace(
        dataset,
        users=tuple(planted.get(u.id, u) for u in dataset.users),
        development=tuple(planted.get(u.id, u) for u in dataset.development),
    )
    run = local_run(config, reference, data)
    adapt(run)
    reference = Local(config, run.state, data, reference).reference
    done: list[dict[str, Any]] = []
    for code, secret, repeats in secrets:
        candidates = [replace(secret, target=f"my code is {code}") for code in codes]
        encoded = encode_all(reference.backbone, candidates)
        scores = reference.scores(encoded)
        rank = 1 + sum(score > scores[codes.index(code)] for score in scores)
        texts = sample_reference(reference, [secret] * SAMPLES, config, config.seed)
        prompt = encoded[0].ids[: encoded[0].prompt_length]
        greedy = generate(reference.backbone, [reference.adapter], [prompt], 32)
        done.append(
            {
                "name": f"extraction of a secret written {repeats} times",
                "exposure": math.log2(CODES / rank),
                "highest": math.log2(CODES),
                "sampled": sum(code in text for text in texts),
                "samples": SAMPLES,
                "greedy": code in greedy[0],
            }
        )
    return done


def authorship(members: Sequence[User], config: Config) -> dict[str, Any]:
    """Whether offered items give away who wrote them, by their character n-grams.

    The attacker knows the rest of each history.
    """
    known, unknown = [], []
    for user in members:
        offers = offers_of(user)
        rest = user.history[: len(user.history) - OFFERED]
        if offers and rest:
            unknown.append([item.target for item in offers])
            known.append([item.target for item in rest])
    found = asdict(attacks.authorship(known, unknown))
    return {"name": "authorship of the offered items", **found}
