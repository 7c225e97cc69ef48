"""What the owner chose: settings, and what may leave the device; and what has left it.

An outflow has one of four answers:

    no      nothing of this kind leaves
    summed  as noisy, and masked (``secagg.mode=on``): with this device's own share of the
            noise, so that the server sees the sum of many and not this one
    noisy   only where it is protected (`privacy.protected`), and within the owner's
            ceilings, which hold for all runs together
    clear   in any case; it counts as unprotected, and against no ceiling

The server promises noise in the run's configuration; a device sees the promise, not the
noise, but of a masked sum its own share. Raw text (unlabeled.kind `others`) has no answer:
no device sends it.
"""

import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from time import localtime, strftime, time

from ...common.config import FIELDS, Config, absolute_backbone
from ...common.config.checks import one_of
from ...common.errors import IdiolectError, refuse_if
from ...common.privacy.protected import Claim, claim, epsilon_of, protected, used
from ...common.text import printable
from .records import DEVICE, Record
from .vault import Vault

LOG = logging.getLogger("flwr")

# Outflow -> the answer of an owner who said nothing.
DEFAULTS = {
    "update": "noisy",
    "votes": "noisy",
    "metrics": "noisy",
    "items": "no",
    "training": "yes",
}
NAMES = {
    "update": "updates of the shared adapter",
    "votes": "votes on candidates",
    "metrics": "metrics",
    "items": "scrubbed items, which never have noise",
    "training": "a run's training on this device, whatever leaves it",
}
# Answer -> what it means.
ANSWERS = {
    "no": "nothing of this kind leaves",
    "summed": "as noisy, and masked: the server sees a sum and not this device's part",
    "noisy": "only with noise that hides one person's part, and within the limits of "
    "`idiolect settings`",
    "clear": "in any case, unprotected; no limit counts it",
}
HOW = {"summed": "masked and with noise", "noisy": "with noise"}  # of such an answer
TRAINING_ANSWERS = {"no": "no run trains here", "yes": "runs may train here"}


class Refusal(IdiolectError):
    """Why a device refuses a request, in words that the server may read.

    Every other error could quote private text; of those the server learns only the type.
    """


def consents(vault: Vault) -> dict[str, str]:
    """Outflow -> answer."""
    return DEFAULTS | vault.noted("consents", {})


def consent(vault: Vault, outflow: str, given: str) -> None:
    """Answer for one outflow from now on.

    Raises
    ------
    IdiolectError
        It does not take that answer.
    """
    refuse_if(
        given not in (fitting := answers_to(outflow)),
        f"'{outflow}' can't be '{given}': it takes {' or '.join(fitting)}.",
    )
    with vault.transaction():
        vault.note("consents", consents(vault) | {outflow: given})


def permit(answers: dict[str, str], outflow: str, config: Config) -> None:
    """Compare an outflow with the owner's answers.

    Raises
    ------
    Refusal
        The owner does not consent to it, as this run would have it.
    """
    refuse_if(
        outflow not in answers,
        "no device hands over raw text: use another unlabeled.kind.",
        Refusal,
    )
    given, change = answers[outflow], "clear), or the run its privacy keys."
    if outflow == "training":
        given, why, change = "clear" if given == "yes" else "no", "", "yes)."
    else:
        why = protected(config, outflow)
    if given == "summed" and config.secagg.mode != "on":
        why = why or "secagg.mode is not 'on': the server would see this device's part"
        change = "noisy), or the run secagg.mode=on."
    only = f", only {HOW[given]} ({why})" if given in HOW else ""
    refuse_if(
        given == "no" or (given in HOW and why),
        f"the owner does not consent to {NAMES[outflow]}{only}: the owner can change that "
        f"(idiolect consent {outflow} {change}",
        Refusal,
    )


def answers_to(outflow: str) -> dict[str, str]:
    """The answers that there are for an outflow, and what each means.

    Raises
    ------
    IdiolectError
        There is no such outflow.
    """
    check_name(outflow, DEFAULTS, "outflow")
    return TRAINING_ANSWERS if outflow == "training" else ANSWERS


# Setting -> its value before the owner chose one.
SETTINGS = {
    "backbone": "tiny",
    "max-length": "512",
    "dtype": "float32",
    "device": "auto",
    "threads": "0",
    "memory-mb": "0",
    # Ten times what a phone-sized backbone takes for one request: ordinary work is not
    # stopped, and no configuration keeps a device busy for days.
    "max-seconds": "3600",
    "max-load": "0",
    "on-battery": "yes",
    "keep-loaded": "0",
    # A strength that is fitted on a few texts is as often worse as better.
    "fit-strength": "no",
    # One run of the default budget (privacy.epsilon=8, privacy.delta=1e-6) fits, a second
    # one does not: from then on the owner decides.
    "most-epsilon": "8",
    "most-delta": "1e-5",
    "most-releases": "100",
    # Noise protects one user at any number; should it be less than was promised, the sum
    # over this many users is what is left of the protection.
    "fewest-users": "10",
}
MEANINGS = {
    "backbone": "the model that adapters are trained for",
    "max-length": "tokens of a prompt and its text together",
    "dtype": "precision of the model; bfloat16 takes half the memory",
    "device": "where it computes; auto: a GPU where there is one",
    "threads": "processor threads that work may use",
    "memory-mb": "megabytes of memory that work may use",
    "max-seconds": "seconds that a training or request may take",
    "max-load": "highest load per core at which work begins",
    "on-battery": "training and requests on battery",
    "keep-loaded": "minutes that the model stays loaded after a text",
    "fit-strength": "whether a new adapter's strength is fitted to your texts",
    "most-epsilon": "epsilon of all runs together, at most",
    "most-delta": "delta of all runs together, at most",
    "most-releases": "releases with noise of all runs together, at most",
    "fewest-users": "users of a sum with noise, at least",
}
CEILINGS = ("most-epsilon", "most-delta", "most-releases")  # 0: nothing; inf: no limit
# Setting -> whether it is a whole number, the least and the largest; 0: no limit.
_NUMBERS = {
    "threads": (True, 0, 4096),
    "memory-mb": (True, 0, 2**24),
    "max-length": (True, 16, 2**20),
    "fewest-users": (True, 1, 10**7),
    "max-seconds": (False, 0, 30 * 86_400.0),
    "max-load": (False, 0, 1e6),
    "keep-loaded": (False, 0, 1440.0),
    **dict.fromkeys(CEILINGS, (False, 0, math.inf)),
}
# Setting -> its values, which are those of the key of a configuration.
_CHOICES = {
    name: FIELDS[f"engine.{name}"].metadata["choices"] for name in ("dtype", "device")
}
_SWITCHES = ("on-battery", "fit-strength")
# Setting -> what it takes, in words; of the others `_NUMBERS` says it.
_TAKES = {
    "backbone": "`tiny`, `smollm2`, a folder, a GGUF file or a model id",
    **dict.fromkeys(_SWITCHES, "yes or no"),
    "keep-loaded": "minutes from 0 to 1440, in which any program of this account can write "
    "with it without the passphrase; 0: none",
    **{name: f"{', '.join(c[:-1])} or {c[-1]}" for name, c in _CHOICES.items()},
    **dict.fromkeys(CEILINGS, "a number from 0; 0 allows nothing, inf everything"),
    "most-delta": "a probability below 1; 0 allows nothing, inf everything",
}


def settings(vault: Vault) -> dict[str, str]:
    """Setting -> value, as the owner chose."""
    return SETTINGS | _chosen(vault)


def _chosen(vault: Vault) -> dict[str, str]:
    """Return the settings that the owner chose, without the defaults.

    Before there was a schema, every default of that time was written down with the first
    choice: a "0" among them was not chosen, and newer defaults hold instead.
    """
    stored = vault.noted("settings", {})
    if stored.pop("schema", None) is None:
        return {name: value for name, value in stored.items() if value != "0"}
    return stored


def choose(vault: Vault, **chosen: str) -> None:
    """Change settings.

    Raises
    ------
    IdiolectError
        There is no such setting, or the value does not suit it.
    """
    named = {name.replace("_", "-"): value for name, value in chosen.items()}
    for name, value in named.items():
        check_setting(name, value)
    if "backbone" in named:  # it is read from other folders, by a service for one
        named["backbone"] = absolute_backbone(named["backbone"])
    # Only what was chosen: a default that changes later holds for everybody else.
    vault.note("settings", {"schema": 2, **_chosen(vault), **named})


def check_name(name: str, known: Collection[str], what: str) -> None:
    """Refuse the name of an outflow or a setting that does not exist."""
    refuse_if(
        name not in known,
        f"there is no {what} '{printable(name, 40)}': name one of {', '.join(known)}.",
    )


def takes(name: str) -> str:
    """Which values a setting takes, in words."""
    if name in _TAKES:
        return _TAKES[name]
    whole, low, high = _NUMBERS[name]
    what = "whole number" if whole else "number"
    return f"a {what} from {low} to {high:.0f}" + ("" if low else "; 0: no limit")


def check_setting(name: str, value: str) -> None:
    """Refuse a setting that does not exist, or a value that it does not take."""
    check_name(name, SETTINGS, "setting")
    if name == "backbone":
        fine = bool(value) and value.isprintable()
    elif name in _SWITCHES:
        fine = value in ("yes", "no")
    elif name in _CHOICES:
        fine = one_of(value, _CHOICES[name])
    else:
        whole, low, high = _NUMBERS[name]
        number = _number(value)
        fine = low <= number <= high and (value.isdigit() or not whole)
        if name == "most-delta":
            fine = fine and (number < 1 or number == math.inf)
    refuse_if(
        not fine,
        f"setting '{name}' is '{printable(value, 40)}': it takes {takes(name)}.",
    )


def _number(text: str) -> float:
    """Return the number that a text says; not a number where it says none."""
    try:
        return float(text) if text.isascii() and len(text) < 40 else math.nan
    except ValueError:
        return math.nan


# --- ceilings over all runs ------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """What one run was charged when the device first answered it.

    Attributes
    ----------
    name
        The run's name, as its server says it.
    epsilon, delta, releases, users
        What it declared (`protected.Claim`).
    """

    name: str
    epsilon: float
    delta: float
    releases: int
    users: float


def spent(vault: Vault) -> dict[str, Spent]:
    """Run id -> what it was charged."""
    return {run: Spent(**fields) for run, fields in vault.noted("spent", {}).items()}


def total(charges: Iterable[Spent | Claim]) -> tuple[float, float, int]:
    """Epsilon, delta and releases of all runs together.

    Sums: basic composition, which holds whatever the runs have in common and however the
    later ones were chosen by what the earlier ones released.
    """
    listed = list(charges)
    return (
        math.fsum(one.epsilon for one in listed),
        math.fsum(one.delta for one in listed),
        sum(one.releases for one in listed),
    )


def within(chosen: Mapping[str, str], charges: Iterable[Spent | Claim]) -> bool:
    """Whether charges stay below the owner's ceilings."""
    return all(
        amount <= float(chosen[name]) * (1 + 1e-9)
        for name, amount in zip(CEILINGS, total(charges), strict=True)
    )


def agree(
    vault: Vault, run: str, name: str, config: Config, charge: bool = True
) -> None:
    """Charge a run's declared budget, once, before anything of the owner is answered.

    Only what leaves as `noisy` counts: a run from which nothing does costs nothing here,
    since `clear` claims no protection and `no` lets nothing out.

    Parameters
    ----------
    vault
        Of the owner.
    run
        What tells the run from all others. A run that is asked for again is charged
        nothing more, unless it declares more than before.
    name
        What the owner is shown.
    config
        As the run declares it.
    charge
        False: only find out whether the owner's ceilings allow it.

    Raises
    ------
    Refusal
        Beyond the owner's ceilings, or below the floor for users; nothing was charged.
        The server is told no more than that.
    """
    answers = consents(vault)
    if not any(
        answers.get(outflow) in HOW and not protected(config, outflow)
        for outflow in used(config)
    ):
        return
    charges = spent(vault)
    new = _charge(charges.get(run), printable(name, 100), claim(config))
    if charges.get(run) == new:
        return
    chosen = settings(vault)
    charges[run] = new
    enough = new.users >= float(chosen["fewest-users"])
    if not (enough and within(chosen, charges.values())):
        LOG.warning(
            "run %s is refused: with epsilon %.3g, delta %.3g, %d releases and sums of "
            "%.3g users it is not within what `idiolect settings` allows",
            *(new.name, new.epsilon, new.delta, new.releases, new.users),
        )
        raise Refusal("the owner's ceiling for privacy does not allow this run.")
    if charge:
        vault.note("spent", {one: asdict(entry) for one, entry in charges.items()})


def _charge(before: Spent | None, name: str, now: Claim) -> Spent:
    """Return what a run is charged in all: never less than it once was."""
    if before is None:
        return Spent(name, **asdict(now))
    return Spent(
        before.name,
        max(before.epsilon, now.epsilon),
        max(before.delta, now.delta),
        max(before.releases, now.releases),
        min(before.users, now.users),
    )


def balance(vault: Vault) -> dict[str, object]:
    """What the runs so far were charged, the ceilings, and what leaves unprotected."""
    chosen, charges, answers = settings(vault), spent(vault), consents(vault)
    epsilon, delta, releases = total(charges.values())
    return {
        "epsilon": epsilon,
        "delta": delta,
        "releases": releases,
        "runs": len(charges),
        "ceilings": {name: chosen[name] for name in (*CEILINGS, "fewest-users")},
        "clear": [name for name in NAMES if answers.get(name) == "clear"],
    }


# --- pause -----------------------------------------------------------------------------


def paused(vault: Vault) -> bool:
    """Whether the device answers no server for now."""
    return vault.get("state", "paused") is not None


def pause(vault: Vault, yes: bool) -> None:
    """Answer no server from now on, or answer again."""
    if yes:
        vault.put("state", [Record("paused", b"")], DEVICE)
    else:
        vault.delete("state", ["paused"])


# --- what left ------------------------------------------------------------------------

# Kind of a message -> what of the owner's text it was made from; all others from none.
OUTFLOW_OF = {
    "AdaptReply": "update",
    "VoteReply": "votes",
    "OfferReply": "items",
    "ShareReply": "text",
    "EvaluateReply": "metrics",
}


REFUSED = "refused"  # name of the entry that counts requests that were not admitted
# Messages without anything of the owner's text, in one word; others are in `OUTFLOW_OF`.
_WORDS = {
    "HelloReply": "greeting",
    "PersonaliseReply": "trained",
    "ConfirmReply": "list",
    "OpenReply": "shares",
    "Failure": "refusal",
    "Missing": "request",
}


def word_of(kind: str) -> str:
    """A kind of message in the words of `idiolect sent`: an outflow, or in `_WORDS`."""
    return OUTFLOW_OF.get(kind) or _WORDS.get(kind) or printable(kind, 16)


@dataclass(frozen=True)
class Sent:
    """One message that left this device.

    Attributes
    ----------
    time
        Unix seconds.
    run, kind
        For which run, and the protocol's name of the message.
    bytes
        Of text and tensors.
    epsilon
        What the run's noisy releases have together, where the message was one of them;
        None: no bound.
    why
        Why there is none.
    count, since
        Of how many messages this is the sum, and the time of the first, where it is one.
    """

    time: float
    run: str
    kind: str
    bytes: int
    epsilon: float | None
    why: str = ""
    count: int = 1
    since: float | None = None


def cover(kind: str, config: Config | None) -> tuple[float | None, str]:
    """Say what protects a message: an epsilon, or None and why there is none.

    Parameters
    ----------
    kind
        The protocol's name of the message.
    config
        Of its run; None if it could not be read.
    """
    outflow = OUTFLOW_OF.get(kind)
    if outflow is None:
        return None, "nothing of the text is in it"
    if config is None:
        return None, "the run's configuration could not be read"
    if outflow == "votes" and config.unlabeled.kind == "anonymised":
        outflow = "items"  # marks, which are counted without noise
    why = protected(config, outflow)
    return (None, why) if why else (epsilon_of(config), "")


def note_sent(
    vault: Vault, run: str, kind: str, size: int, covered: tuple[float | None, str]
) -> None:
    """Note a message, and what protects it (`cover`), before it is sent."""
    number = vault.count_up("sent", DEVICE)
    body = json.dumps(asdict(Sent(time(), run[:200], kind, size, *covered))).encode()
    vault.put("sent", [Record(str(number), body)], DEVICE)


def note_refused(vault: Vault, size: int) -> None:
    """Note the refusal of a request that was not admitted, before it is sent.

    Such requests can come from anybody and in any number: all refusals are one entry.
    """
    body, now = vault.get("sent", REFUSED), time()
    before = Sent(**json.loads(body)) if body else Sent(now, "", "Failure", 0, None)
    count, since = before.count + bool(body), before.since or now
    first = strftime("%Y-%m-%d %H:%M", localtime(since))
    entry = replace(
        before,
        time=now,
        bytes=before.bytes + size,
        why=f"{count} refusals of requests that were not admitted, since {first}",
        count=count,
        since=since,
    )
    vault.put("sent", [Record(REFUSED, json.dumps(asdict(entry)).encode())], DEVICE)


def sent(vault: Vault) -> list[Sent]:
    """Everything that left, oldest first."""
    return [Sent(**json.loads(record.body)) for record in vault.records("sent")]
