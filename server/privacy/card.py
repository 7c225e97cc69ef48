"""The privacy card: what a run's ledger guarantees, as JSON and in English."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from typing import Any

from .accountant import (
    FALSE_ALARMS,
    INTERVAL,
    Epsilons,
    Event,
    attack_power,
    epsilons,
    is_sampled,
    power_bound,
)
from .ledger import Ledger, finite

# Names of the two epsilons (`accountant.Epsilons`), and against whom each is proven.
ADVERSARIES = {
    "release_observer": "anybody who sees them",
    "server_knows_participants": (
        "somebody who also knows who took part, but sees no single update"
    ),
}
# The second of them where users add shares of the noise.
SEES_SUMS = (
    "a server that knows who took part and the noise of {share} of those expected in each "
    "sum, and that sees these sums before it adds noise, and nothing else"
)
PROTOCOLS = {
    "sum": "none: integers and noise of users, without masks",
    "on": "masks of pairs and of each member, opened by other members (Bell et al. 2020)",
}
RELEASED = {
    "adapt": "the shared adapter",
    "votes": "the unlabeled set",
    "pool": "the unlabeled set",
    "metrics": "the metrics",
}


def card(ledger: Ledger, run: str, version: str, commit: str) -> dict[str, Any]:
    """Build the privacy card from the ledger alone.

    Parameters
    ----------
    ledger, run, version, commit
        Ledger and name of the run, and the version and commit of the code that ran.

    Returns
    -------
    dict
        For JSON; `describe` writes it in English. An epsilon of None (null in JSON) is
        infinite: no guarantee.
    """
    events = ledger.events()
    noisy = {event: count for event, count in events.items() if event.z}
    alone = _both(epsilons(noisy, ledger.delta, ledger.kept_cap())) if noisy else None
    spent: dict[str, float | None] = dict.fromkeys(ADVERSARIES)
    if events and not ledger.open_releases:
        spent = _both(ledger.spent())
    unbounded = None in spent.values()
    epsilon = spent | {
        "individual_updates_visible_to_server": not ledger.masked,
        "dp_events_only": alone if unbounded else None,
    }
    empty = not events and not ledger.open_releases
    reasons = [] if empty else ledger.simulation_reasons()
    return {
        "schema": "idiolect.privacy-card/1",
        "run": run,
        "mode": "simulation" if reasons else "central" if noisy else "off",
        "simulation_because": reasons,
        "unit": "user (all devices of one user together)",
        "adjacency": "add or remove one user",
        "delta": ledger.delta,
        "population": {
            "N": ledger.population or None,
            "source": "declared",
            "verified": False,
        },
        "epsilon": None if empty else epsilon,
        "budget": finite(ledger.epsilon),
        "attacker": _attacker(ledger, noisy) if noisy else None,
        "accountant": _accountant() if noisy else None,
        "events": [_event(ledger, event, count) for event, count in events.items()],
        "amplification": _amplification(ledger, noisy),
        "participation": {
            "cap": ledger.cap or None,
            "enforced": "device" if ledger.cap else None,
            "observed_max": max(ledger.observed_participations.values(), default=None),
        },
        "secagg": _secagg(ledger),
        "open_releases": [dict(release) for release in ledger.open_releases],
        "unprotected": dict(ledger.unprotected),
        "not_covered": _not_covered(ledger),
        "audit": [dict(audit) for audit in ledger.audits],
        "rng": "operating system" if ledger.rng == "os" else "seed",
        "claims": _claims(ledger, alone, unbounded),
        "code": {"version": version, "commit": commit},
    }


def _secagg(ledger: Ledger) -> dict[str, Any]:
    """How sums were made."""
    if not ledger.secagg:
        return {"protocol": "none"}
    return {
        "protocol": PROTOCOLS[str(ledger.secagg["mode"])],
        "colluding": ledger.secagg["colluding"],
        "quorum": ledger.secagg["quorum"],
    }


def _knower(share: float | None) -> str:
    """Against whom the second epsilon is; `share` of the users work with the server."""
    if share is None:
        return ADVERSARIES["server_knows_participants"]
    return SEES_SUMS.format(share=f"{100 * share:g} %")


def _both(spent: Epsilons) -> dict[str, float | None]:
    both = map(finite, (spent.release, spent.participants))
    return dict(zip(ADVERSARIES, both, strict=True))


def _attacker(ledger: Ledger, noisy: Mapping[Event, int]) -> dict[str, float]:
    """Power of the best attack on the noisy events."""
    power = attack_power(noisy, ledger.kept_cap())
    return {"false_alarms": FALSE_ALARMS, **dict(zip(ADVERSARIES, power, strict=True))}


def _accountant() -> dict[str, Any]:
    return {
        "lib": f"dp_accounting {version_of('dp-accounting')}",
        "type": "PLD",
        "interval": INTERVAL,
        "upper_bound": True,
    }


def _event(ledger: Ledger, event: Event, count: int) -> dict[str, Any]:
    """An event, how often it was charged, and the notes of its charges."""
    sampled = "Poisson-sampled " if event.q < 1 else ""
    sampled = f"truncated {sampled}" if event.cohort else sampled
    notes: dict[str, list[Any]] = defaultdict(list)
    for charge in ledger.charges:
        if charge.event == event:
            for name, value in charge.note.items():
                notes[name].append(value)
    return {
        "stage": event.stage,
        "mechanism": f"{sampled}Gaussian" if event.z else f"{sampled}sum without noise",
        "q": event.q,
        "z": event.z,
        "clip_bit_z": event.clip_bit_z or None,
        "cohort": event.cohort or None,
        "rounds": count,
        "notes": {name: _summary(values) for name, values in notes.items()},
        **_seen(event),
    }


def _seen(event: Event) -> dict[str, Any]:
    """Noise multipliers of the sum as a server sees it; nothing if users add no noise."""
    if event.server_z is None:
        return {}
    return {"server_z": event.server_z, "server_clip_bit_z": event.server_clip_bit_z}


def _summary(values: list[Any]) -> Any:
    """Return the only value, the range of numbers, or the different texts."""
    different = list(dict.fromkeys(values))
    if len(different) == 1:
        return different[0]
    if any(isinstance(value, str) for value in different):
        return different
    return {"min": min(different), "max": max(different)}


# What makes it true that nobody knows who is in a sample.
HIDDEN = (
    "nobody but the server learns who took part in which release",
    "whether a device can be reached does not depend on its user's data",
)


def _amplification(ledger: Ledger, noisy: Mapping[Event, int]) -> dict[str, Any]:
    claimed = any(map(is_sampled, noisy))
    source = "the operating system" if ledger.rng == "os" else "a seed"
    return {
        "claimed": claimed,
        "sampler": f"one coin per user and release, from {source}" if claimed else None,
        "assumes": [*HIDDEN] if claimed else [],
    }


SEEN = "single updates and votes, which the server sees before it adds them up"
LYING = "a server that does not follow the protocol"
# Where rows are masked (docs/masked-sums.md).
INVENTED = (
    "a server that invents members of the directory: devices that nobody owns, whose noise "
    "and masks it knows"
)
CONSPIRING = (
    "a witness who vouches for devices that nobody owns, together with the server"
)
MASKED = (
    "a server that sends the members of one run different configurations",
    "what a malicious member sends: nobody can clip or check a masked row",
)
NEVER_COVERED = (
    "when devices answer and how much they send",
    "other runs on the same users: their epsilons add to these",
    "settings that were chosen by results of the same users in other runs",
    "that an exchange failed, and for whom",
    "what a device stores, or shows to somebody who holds it",
)


def _lying(ledger: Ledger) -> tuple[str, ...]:
    """What a server can do that lies, where rows are masked."""
    return (CONSPIRING if ledger.witnessed else INVENTED, *MASKED)


def _not_covered(ledger: Ledger) -> list[str]:
    clear = (event.stage for event in ledger.events() if not event.z)
    found = [
        *(f"{r['stage']}: {r['what']} ({r['why']})" for r in ledger.open_releases),
        *(f"{stage}: released without noise" for stage in clear),
        *(_lying(ledger) if ledger.masked else (SEEN, LYING)),
        *NEVER_COVERED,
        *(f"{what}, not protected: {why}" for what, why in ledger.unprotected.items()),
    ]
    if ledger.charges and 10 * ledger.population * ledger.delta > 1:
        found.append(
            f"delta {ledger.delta:g} is above 1 / (10 users): it would allow that one user "
            "is fully exposed"
        )
    return found


def _colluding(secagg: Mapping[str, Any] | None) -> float | None:
    """The share of a card's `secagg` who work with the server; None: users add no noise."""
    return (secagg or {}).get("colluding")


def _claims(
    ledger: Ledger, alone: dict[str, float | None] | None, unbounded: bool
) -> dict[str, list[str]]:
    """Sentences that are true of this ledger: proven, measured and assumed."""
    subject = "the noisy releases by themselves" if unbounded else "all releases"
    bounded = alone if alone and ledger.rng == "os" else {}
    knower = _knower(_colluding(_secagg(ledger)))
    against = ADVERSARIES | {"server_knows_participants": knower}
    return {
        "proven": [
            f"If the assumptions hold, {subject} are ({upper(epsilon)}, {ledger.delta:g})-"
            f"differentially private for each user against {against[name]}."
            for name, epsilon in bounded.items()
            if epsilon is not None
        ],
        "measured": [
            *(_audit(audit, alone) for audit in ledger.audits),
            *(
                f"Releases of '{stage}' that include rows of any one user: at most {most}."
                for stage, most in ledger.observed_participations.items()
            ),
        ],
        "assumed": _assumptions(ledger) if alone else [],
    }


def _people(ledger: Ledger) -> str:
    """Why the members of masked sums are people."""
    if ledger.witnessed:
        return "The witness vouched only for devices of people that it knows"
    return "Everybody in the directory is a person's device"


def _assumptions(ledger: Ledger) -> list[str]:
    """What must hold for the epsilons of the noisy events to be a guarantee."""
    noisy = [event for event in ledger.events() if event.z]
    sampled, seeded = any(map(is_sampled, noisy)), ledger.rng == "seeded"
    truncated, capped = any(event.cohort for event in noisy), bool(ledger.cap)
    summed = bool(ledger.secagg)
    assumptions = (
        (
            not summed,
            "The server clips, adds the noise and does not publish single updates.",
        ),
        (
            summed,
            (
                "Each user clips and adds a share of the noise; the server adds the noise "
                "of those who are missing and publishes neither rows nor the sum before."
            ),
        ),
        (
            ledger.masked,
            (
                f"{_people(ledger)}, and all but the share named above do what the "
                "protocol says. Nobody solves the problems that X25519, AES and SHA-256 "
                "rest on."
            ),
        ),
        (
            summed and not ledger.masked,
            (
                "The second epsilon is that of a server which sees only sums, each of the "
                "required rows at least. The server of this simulation holds every row: "
                "against it nothing is claimed."
            ),
        ),
        (True, "One user is one participant, all devices together."),
        (
            not summed,
            "Noise in floating point is as good as the exact Gaussian of the proof.",
        ),
        (
            seeded,
            (
                "The noise came from a seed, and anybody who knows the seed can remove "
                "it: the epsilons are those of the same run with noise that nobody can "
                "repeat."
            ),
        ),
        (not seeded, "Nobody can predict the operating system's random numbers."),
        *((sampled, f"{text[0].upper()}{text[1:]}.") for text in HIDDEN),
        (
            truncated,
            "There are no more users than were counted as the population.",
        ),
        (
            capped,
            (
                f"Each device takes part in at most {ledger.kept_cap()} exchanges of a "
                "stage, which it counts itself."
            ),
        ),
        # With the user in the draw, somebody else may be turned away and take part in a
        # later round instead: the two worlds then differ in more than this one user.
        (
            capped and truncated,
            (
                "The limit of a cohort is almost never reached: a user who is turned away "
                "may take part later, which the proof does not include."
            ),
        ),
    )
    return [sentence for applies, sentence in assumptions if applies]


def upper(value: float) -> str:
    """Return a bound in three significant digits, never rounded down."""
    if value <= 0:
        return "0"
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale - 1e-9) / scale:.6g}"


def _audit(audit: Mapping[str, Any], alone: Mapping[str, float | None] | None) -> str:
    """Return what an audit found, and the most that it could have found."""
    name = f"Audit '{audit.get('name')}'"
    if "tpr" in audit:
        low, high = audit["tpr95"]
        return (
            f"{name}: finds {audit['tpr']:.0%} of {audit['members']} members "
            f"[{low:.0%}, {high:.0%}] at {audit['fpr']:.1%} false alarms; AUC "
            f"{audit['auc']:.2f}."
        )
    if "exposure" in audit:
        return (
            f"{name}: exposure {audit['exposure']:.1f} of {audit['highest']:.1f} bits, in "
            f"{audit['sampled']} of {audit['samples']} samples."
        )
    if "top1" in audit:
        return (
            f"{name}: names the writer of {audit['top1']:.0%} of {audit['users']} users "
            f"(by chance {audit['chance']:.0%})."
        )
    claimed = audit.get("claimed", alone["release_observer"] if alone else None)
    found, most = audit.get("eps_lb"), audit.get("max_detectable")
    text = f"{name}: epsilon is at least {found or 0:.3g}"
    text += f" with {100 * audit.get('conf', 0.95):g} % confidence"
    if most is not None:
        text += f"; it could have shown {most:.3g} at most"
    if claimed is None:
        return f"{text}."
    beyond = found is not None and found > claimed
    if audit.get("broken"):  # broken on purpose: a defect if it is not caught
        word = "caught" if beyond else "not caught by this attack"
        return f"{text}, where {upper(claimed)} is claimed: {word}; broken on purpose."
    if beyond:
        return f"{text}. That is more than the {upper(claimed)} claimed: a defect."
    if most is not None and most < claimed:
        return f"{text}, so it does not support the {upper(claimed)} claimed."
    return f"{text}, where {upper(claimed)} is claimed."


# --- in English ------------------------------------------------------------------------

MODES = {
    "off": "off: no differential privacy",
    "central": "central differential privacy: the server adds the noise",
    "simulation": "a simulation, not fit for real users",
}
EVENTS = 6  # events that are listed; of more, only the number is told


def describe(card: Mapping[str, Any], whole: bool = True) -> list[str]:
    """Write a privacy card in English, for the terminal.

    Parameters
    ----------
    card
        As `card` builds it, in this version or an earlier one.
    whole
        Whether all that is not covered is listed; otherwise it is counted.

    Returns
    -------
    list of str
        One sentence per line.
    """
    lines = [
        f"mode: {MODES[card['mode']]}",
        *(f"simulation: {reason}" for reason in card["simulation_because"]),
        *(
            f"not protected: {outflow}: {why}"
            for outflow, why in card.get("unprotected", {}).items()
        ),
        *_spent_lines(card),
        *map(_event_line, card["events"][:EVENTS]),
    ]
    if (more := len(card["events"]) - EVENTS) > 0:
        lines.append(f"and {more} more kinds of events on the card")
    if (sampling := card["amplification"])["claimed"]:
        assumes = "; ".join(sampling["assumes"])
        lines.append(f"sampling: {sampling['sampler']}; assumed: {assumes}")
    if cap := card["participation"]["cap"]:
        seen = card["participation"]["observed_max"]
        text = f"participation: at most {cap} per stage, counted by the device"
        if seen is not None:
            text += f"; most reported: {seen}{' (above the cap)' if seen > cap else ''}"
        lines.append(text)
    missing = card["not_covered"]
    if whole:
        lines += [f"not covered: {what}" for what in missing]
    else:
        lines.append(
            f"not covered by any of this: {len(missing)} things, which `idiolect-server "
            f"show {card['run']}` lists"
        )
    alone = card["epsilon"] and (card["epsilon"]["dp_events_only"] or card["epsilon"])
    audits = (_audit(audit, alone) for audit in card["audit"])
    return [*lines, *explained(card["audit"]), *audits]


def explained(audits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Explain why the epsilon of an audit is far below the claimed one."""
    one = next((audit for audit in audits if "eps_lb" in audit), None)
    if one is None:
        return []
    trials = f" from {one['guesses']} guesses" if "guesses" in one else ""
    text = (
        "how to read the audits: the epsilon of an audit is a lower bound, measured"
        f"{trials} with {100 * one.get('conf', 0.95):g} % confidence: what one attack "
        "has shown. A claimed epsilon is an upper bound, proven for every attack. They are "
        "far apart because so few guesses show little, and because no attack is the best "
        "one; the true value lies between"
    )
    if "claimed" in one:
        text += (
            ". The audited aggregation is the code of the run with other noise, for which "
            "a small epsilon is claimed: an epsilon as large as most budgets could not be "
            "detected"
        )
    return [f"{text}."]


def _spent_lines(card: Mapping[str, Any]) -> list[str]:
    """Return both epsilons, each with its meaning."""
    spent = card["epsilon"]
    if spent is None:
        return ["no privacy guarantee: nothing was released through the ledger"]
    lines: list[str] = []
    prefix = ""
    if None in (spent[name] for name in ADVERSARIES):
        lines.append(f"epsilon: infinite, no privacy guarantee: {_because(card)}")
        prefix, spent = "the noisy part alone, ", spent["dp_events_only"]
        if spent is None:
            return lines
    stages: list[str] = [e["stage"] for e in card["events"] if e["z"]]
    names = dict.fromkeys(RELEASED.get(stage, stage) for stage in stages)
    share = _colluding(card.get("secagg"))
    known = "the server, if it knows who took part but sees no single update"
    subjects = (
        f"anybody who sees {' and '.join(names) or 'what was released'}",
        known if share is None else _knower(share),
    )
    questions = ("did this user take part?", "did this user's data go in?")
    for key, subject, question in zip(ADVERSARIES, subjects, questions, strict=True):
        epsilon = spent[key]
        if epsilon is None:
            lines.append(f"{prefix}{subject}: epsilon infinite, no privacy guarantee")
            continue
        # A card of an earlier version has only the bound of (epsilon, delta).
        bound = power_bound(epsilon, card["delta"])
        best = (card.get("attacker") or {}).get(key, bound)
        found = math.ceil(1000 * best - 1e-9) / 10
        lines.append(
            f"{prefix}{subject}: epsilon {upper(epsilon)} at delta {card['delta']:g}: at 1 "
            f"% false alarms an attacker who asks '{question}' recognises at most "
            f"{found:g} % of those of whom it is true"
        )
    if card["budget"] is not None:
        lines.append(
            f"budget: epsilon {card['budget']:g} against anybody who sees releases"
        )
    return lines


def _because(card: Mapping[str, Any]) -> str:
    """Name the settings that released something without noise."""
    settings = [r["setting"] for r in card["open_releases"] if r.get("setting")]
    if not all(event["z"] for event in card["events"]):
        settings.append("privacy.epsilon=inf")
    named = ", ".join(dict.fromkeys(settings))
    what = "something was released without noise"
    return f"with {named} {what}" if named else what


def _event_line(event: Mapping[str, Any]) -> str:
    text = f"{event['stage']}: {event['rounds']} x {event['mechanism']}"
    if event["z"]:
        text += f", noise multiplier {event['z']:.4g}"
    if event["clip_bit_z"]:
        text += f", clip bit {event['clip_bit_z']:.4g}"
    if event.get("server_z") is not None:
        text += f", before the server's noise {event['server_z']:.4g}"
    text += f", each user with chance {event['q']:g}"
    return text + (f", at most {event['cohort']} users" if event["cohort"] else "")
