"""What the page shows of a vault, as JSON, in the words of the commands."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import localtime, strftime
from typing import Any

from ...common.text import printable
from ..commands import personalize, status
from ..commands.vault import TOY
from ..imports.read import Imported, report
from ..node import membership
from ..owner import consent, history
from ..owner.adapters import Version
from ..owner.forgetting import Forgotten
from ..owner.history import Entry
from ..owner.learning import FEWEST, HELPS, judges
from ..owner.vault import Vault
from .words import on_page

# What is next (`status.NEXT`) -> a sentence, the words of its button, and where that leads.
NEXT = {
    "import": (
        f"Add texts that you have written: {FEWEST} at least, better {HELPS}.",
        "Add texts",
        "history",
    ),
    "train": ("Your texts are here. Let the model learn from them.", "Train", "train"),
    "resume": (
        "You have paused: the server that you joined is not answered.",
        "Answer again",
        "leaves",
    ),
    "node": (
        "You have joined a server. If it lets you in: `idiolect node run`, in a terminal.",
        "See what may leave",
        "leaves",
    ),
    "use": (
        "None of your adapters is in use: the model writes as everyone's does.",
        "Choose one",
        "adapters",
    ),
    "write": ("Your model is ready. See what it writes.", "Try it", "try"),
}
SHOWN = 3  # pairs of a preview
PAGE = 50  # pairs of a list


def overview(vault: Vault) -> dict[str, Any]:
    """All but the history itself, and what a training does."""
    counts = history.counts(vault)
    with vault.reading():
        found = status.gathered(vault, counts)
        left = consent.sent(vault)
    sentence, button, place = NEXT[status.next_step(found)]
    return {
        "vault": printable(short(Path(found["vault"])), 300),
        "backbone": printable(found["backbone"], 300),
        "toy": TOY if found["backbone"] == "tiny" else "",
        "liked": found["liked"],
        "disliked": found["disliked"],
        "fewest": FEWEST,
        "judges": judges(found["liked"]),
        "sources": [{"name": name, "pairs": n} for name, n in counts.sources.items()],
        "next": {"text": sentence, "button": button, "place": place},
        "active": found["active"],
        "adapters": [adapter(one, found["active"]) for one in found["adapters"]],
        "leaves": leaves(found),
        "sent": [sent(one) for one in reversed(left)],
    }


def short(path: Path) -> str:
    """A path as people write it: from their home."""
    home = Path.home()
    inside = home in path.absolute().parents
    return f"~/{path.absolute().relative_to(home)}" if inside else str(path)


# --- the history -----------------------------------------------------------------------


def pairs(
    vault: Vault, search: str = "", source: str = "", skip: int = 0
) -> dict[str, Any]:
    """A part of the history, newest first."""
    word, everything = search.casefold(), history.entries(vault)
    found = [
        entry
        for entry in reversed(everything)
        if word in f"{entry.prompt.text}\n{entry.target}".casefold()
        and source in ("", entry.source)
    ]
    part = found[skip : skip + PAGE]
    return {"pairs": list(map(pair, part)), "found": len(found), "skip": skip}


def pair(entry: Entry) -> dict[str, Any]:
    """One pair."""
    return {
        "id": entry.id,
        "prompt": entry.prompt.text,
        "text": entry.target,
        "liked": entry.liked,
        "source": entry.source,
        "date": strftime("%Y-%m-%d", localtime(entry.when)),
    }


def preview(vault: Vault, found: Imported) -> dict[str, Any]:
    """What an import would add, and what was read, ignored and left out."""
    new = len(history.unknown(vault, found.entries))
    return {
        "new": new,
        "known": len(found.entries) - new,
        "disliked": sum(not entry.liked for entry in found.entries),
        "contradicted": history.contradicted(vault, found.entries),
        "report": list(map(on_page, report(found, width=2000).splitlines()))
        if found.read
        else [],
        "pairs": [pair(entry) for entry in found.entries[-SHOWN:]],
    }


def cost(vault: Vault, found: Forgotten) -> dict[str, Any]:
    """What forgetting costs, before it is done."""
    numbers = [one.number for one in found.stale]
    active = status.adapters(vault)["active"]
    return {
        "pairs": len(found.entries),
        "adapters": numbers,
        "active": active in numbers,
    }


# --- adapters --------------------------------------------------------------------------


def adapter(one: Mapping[str, Any], active: int) -> dict[str, Any]:
    """An adapter as `status` shows it (`status.shown`)."""
    return {
        "number": one["number"],
        "active": one["number"] == active,
        "accepted": one["accepted"],
        "learnt": status.judged(one),
        "numbers": status.judged(one, numbers=True),
        "verdict": "" if one["accepted"] else on_page(status.why_not(one)),
        "strength": one["strength"],
    }


def trained(new: Version) -> dict[str, Any]:
    """The outcome of a training."""
    found = status.shown(new)
    return {
        "number": new.number,
        "accepted": new.accepted,
        "verdict": on_page(personalize.verdict(found)),
        "doubts": list(map(on_page, personalize.doubts(found))),
        "changes": [asdict(one) for one in new.changes],
    }


# --- what leaves -----------------------------------------------------------------------

# Outflow -> what it is, for somebody who has read nothing about it.
OUTFLOWS = {
    "update": "What a training on your texts changes in the adapter that everyone gets",
    "votes": "Votes: how much the server's candidate texts resemble yours, as numbers",
    "metrics": "How well the models do on your texts, as numbers",
    "items": "Texts of yours, addresses and numbers taken out; these never have noise",
    "training": "Training on this device for a server's run, whatever leaves it",
}
ANSWERS = {
    "no": "Nothing of this kind leaves.",
    "summed": "Only with noise and masked: the server sees the sum of many people, and not "
    "this device's part.",
    "noisy": "Only with noise that hides one person's part, within your ceilings below.",
    "clear": "In any case, unprotected. No ceiling counts it.",
}
TRAINING = {"no": "No run trains here.", "yes": "Runs may train here."}
# Setting -> what is counted against it.
CEILINGS = {
    "most-epsilon": "epsilon",
    "most-delta": "delta",
    "most-releases": "releases",
}


def leaves(found: Mapping[str, Any]) -> dict[str, Any]:
    """The server, what the owner answered for each outflow, and the budget."""
    privacy = found["privacy"]
    return {
        "server": found["server"] and printable(found["server"], 200),
        "device": found["device"],
        "paused": found["paused"],
        "outflows": [outflow(name, given) for name, given in found["consent"].items()],
        "runs": privacy["runs"],
        "clear": privacy["clear"],
        "ceilings": [
            {
                "name": name,
                "spent": f"{privacy[what]:.3g}",
                "most": privacy["ceilings"][name],
                "meaning": consent.MEANINGS[name],
                "takes": consent.takes(name),
                "share": share(privacy[what], float(privacy["ceilings"][name])),
            }
            for name, what in CEILINGS.items()
        ],
        "fewest": privacy["ceilings"]["fewest-users"],
    }


def share(spent: float, most: float) -> float:
    """How much of a ceiling is spent, from 0 to 1; without a ceiling 0."""
    return min(1.0, spent / most) if most > 0 else float(spent > 0)


def outflow(name: str, given: str) -> dict[str, Any]:
    """One outflow: what it is, what was answered, and which answers there are."""
    words = TRAINING if name == "training" else ANSWERS
    return {
        "name": name,
        "what": OUTFLOWS[name],
        "given": given,
        "answers": [
            {"name": one, "means": words[one]} for one in consent.answers_to(name)
        ],
    }


def sent(one: consent.Sent) -> dict[str, Any]:
    """One message that left."""
    protected = f"noise, epsilon {one.epsilon:g}" if one.epsilon is not None else ""
    return {
        "when": strftime("%Y-%m-%d %H:%M", localtime(one.time)),
        "bytes": one.bytes,
        "what": consent.word_of(one.kind),
        "run": printable(one.run, 60),
        "cover": protected or printable(one.why, 200),
    }


def left(vault: Vault) -> str:
    """Leave the server; returns its address."""
    server = membership.joined(vault)
    membership.leave(vault)
    return printable(server.address)
