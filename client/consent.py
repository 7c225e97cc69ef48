"""What the owner chose: settings, what may leave the device; and what has left it.

An outflow has one of three answers:

    no      nothing of this kind leaves
    noisy   only as part of a sum to which the server adds noise, within its ledger
    clear   in any case

``noisy`` is a promise of the server, made in the run's configuration; a device cannot see
the noise being added. Raw text (unlabeled.kind `others`) has no answer: no device sends it.
"""

import json
from dataclasses import asdict, dataclass
from time import time

from ..common.config import Config
from ..common.errors import IdiolectError
from .vault import DEVICE, Record, Vault

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
    "items": "scrubbed items, which are never noisy",
    "training": "a run's training on this device, whatever leaves it",
}


class Refusal(IdiolectError):
    """Why a device does not do a task, in words that the server may read.

    Every other error could quote what is private; of those a server only hears that there
    was one.
    """


def consents(vault: Vault) -> dict[str, str]:
    """Outflow -> answer."""
    return DEFAULTS | json.loads(vault.get("state", "consents") or b"{}")


def consent(vault: Vault, outflow: str, given: str) -> None:
    """Answer for one outflow from now on.

    Raises
    ------
    IdiolectError
        That is no answer to it.
    """
    fitting = ("no", "yes") if outflow == "training" else ("no", "noisy", "clear")
    if given not in fitting:
        raise IdiolectError(f"'{outflow}' takes {' or '.join(fitting)}, not '{given}'.")
    with vault.transaction():
        body = json.dumps(consents(vault) | {outflow: given}).encode()
        vault.put("state", [Record("consents", body)], DEVICE)


def permit(answers: dict[str, str], outflow: str, config: Config) -> None:
    """Hold an outflow against the owner's answers.

    Raises
    ------
    Refusal
        The owner does not consent to it, as this run would have it.
    """
    if outflow not in answers:
        raise Refusal("no device hands over raw text: use another unlabeled.kind.")
    given = answers[outflow]
    if outflow == "training":
        if given == "yes":
            return
        raise Refusal(
            f"the owner does not consent to {NAMES[outflow]}: the owner can change that "
            "(idiolect consent training yes)."
        )
    noisy = config.privacy.mode == "central" and config.privacy.epsilon < float("inf")
    if outflow == "metrics":
        noisy = noisy and config.privacy.metrics == "noisy"
    if outflow == "items":
        noisy = False
    if given == "no" or (given == "noisy" and not noisy):
        only = ", only with noise" if given == "noisy" else ""
        raise Refusal(
            f"the owner does not consent to {NAMES[outflow]}{only}: the owner can change "
            f"that (idiolect consent {outflow} clear), or the run its privacy keys."
        )


# Setting -> its value before the owner chose one; 0: no limit.
SETTINGS = {
    "backbone": "tiny",
    "max-length": "512",
    "threads": "0",
    "memory-mb": "0",
    "max-seconds": "0",
    "max-load": "0",
    "on-battery": "yes",
}


def settings(vault: Vault) -> dict[str, str]:
    """Setting -> value, as the owner chose."""
    return SETTINGS | json.loads(vault.get("state", "settings") or b"{}")


def choose(vault: Vault, **chosen: str) -> None:
    """Change settings.

    Raises
    ------
    IdiolectError
        There is no such setting, or the value does not suit it.
    """
    for name, value in chosen.items():
        check_setting(name.replace("_", "-"), value)
    named = {name.replace("_", "-"): value for name, value in chosen.items()}
    body = json.dumps(settings(vault) | named).encode()
    vault.put("state", [Record("settings", body)], DEVICE)


def check_setting(name: str, value: str) -> None:
    """Refuse a setting that is none, or a value that is not of its kind."""
    if name not in SETTINGS:
        raise IdiolectError(f"there is no setting '{name}': {', '.join(SETTINGS)}.")
    if name == "backbone":
        return
    if name == "on-battery":
        fine, what = value in ("yes", "no"), "yes or no"
    elif name in ("max-load", "max-seconds"):
        fine, what = value.replace(".", "", 1).isdigit(), "a number; 0: no limit"
    elif name == "max-length":
        fine, what = value.isdigit() and int(value) >= 16, "a whole number from 16 on"
    else:
        fine, what = value.isdigit(), "a whole number; 0: no limit"
    if not fine:
        raise IdiolectError(f"setting '{name}' is {value!r}: it takes {what}.")


def paused(vault: Vault) -> bool:
    """Whether the device answers nobody for now."""
    return vault.get("state", "paused") is not None


def pause(vault: Vault, yes: bool) -> None:
    """Answer nobody from now on, or answer again."""
    if yes:
        vault.put("state", [Record("paused", b"")], DEVICE)
    else:
        vault.delete("state", ["paused"])


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
        The budget that the run declared for all it releases; None: no guarantee.
    """

    time: float
    run: str
    kind: str
    bytes: int
    epsilon: float | None


def note_sent(
    vault: Vault, run: str, kind: str, size: int, epsilon: float | None
) -> None:
    """Note a message before it is sent."""
    number = vault.count_up("sent", DEVICE)
    body = json.dumps(asdict(Sent(time(), run, kind, size, epsilon))).encode()
    vault.put("sent", [Record(str(number), body)], DEVICE)


def sent(vault: Vault) -> list[Sent]:
    """Everything that left, oldest first."""
    return [Sent(**json.loads(record.body)) for record in vault.records("sent")]
