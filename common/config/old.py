"""Names of earlier versions: configurations that they wrote go on being read."""

import re
from collections.abc import Mapping
from typing import Any

from .checks import quoted, refused
from .keys import AFFECTS, FIELDS, Config, Scalar, flatten
from .methods import ALIASES

# Key of version 0.2 -> key of today.
RENAMED = {
    "dtype": "engine.dtype",
    "device": "engine.device",
    "max-length": "engine.max-length",
    "personalise.stack": "engine.stack",
    "personalise.microbatch": "engine.microbatch",
    "recipe": "preset",
}
# Keys of version 0.2 that are constants today, and their values.
FIXED: dict[str, Scalar] = {
    "adapt.epochs": 1,
    "unlabeled.nearest": 3,
    "unlabeled.threshold": 0.5,
    "unlabeled.offered": 8,
    "unlabeled.second-opinion": False,
    "unlabeled.valid-days": 30.0,
    "privacy.clip-bit": 10.0,
    "personalise.warmup": 0.1,
    "personalise.clip": 1.0,
}
# Keys of version 0.2 that are options of the command today (`parse.RunOptions`).
PLACE = ("run-name", "resume", "output-dir")
LISTS = ("methods", "evaluate.contrasted")  # keys that list methods
FORMER = {name: alias for alias, name in ALIASES.items()}
# Every key of version 0.2, in the order in which it wrote them.
_ORDER = """
run-name resume output-dir seed recipe task data users development-users history held-out
skip-bad-users users-per-node backbone dtype device max-length methods quorum deadline
persona.overlap persona.strength lora.rank lora.alpha lora.targets adapt.rounds adapt.users
adapt.rank adapt.epochs adapt.batch adapt.learning-rate adapt.optimizer adapt.wire
adapt.clip adapt.clip-quantile unlabeled.kind unlabeled.file unlabeled.bank
unlabeled.buckets unlabeled.bank-from unlabeled.features unlabeled.nearest
unlabeled.threshold unlabeled.offered unlabeled.support unlabeled.ratio unlabeled.alpha
unlabeled.alpha-features unlabeled.alpha-items unlabeled.second-opinion
unlabeled.valid-days privacy.mode privacy.epsilon privacy.delta privacy.noise privacy.votes
privacy.clip-bit privacy.sampling privacy.vote-sampling privacy.cohort
privacy.participations privacy.metrics privacy.metrics-noise privacy.seeded
personalise.epochs personalise.batch personalise.microbatch personalise.learning-rates
personalise.warmup personalise.clip personalise.beta personalise.ema personalise.boundary
personalise.reward personalise.unlabeled-weight personalise.anchor personalise.stack
evaluate.generate evaluate.users evaluate.rivals evaluate.retrieved evaluate.contrast
evaluate.contrasted evaluate.rouge-tokens evaluate.shift evaluate.bootstrap
"""
ORDER = tuple(_ORDER.split())


def current(values: Mapping[str, object]) -> dict[str, object]:
    """Return keys and values by the names of today; what no version knew stays as it is.

    Raises
    ------
    IdiolectError
        A key is given by its old and its new name with two values, or one that is fixed
        today with another value.
    """
    found: dict[str, object] = {}
    for given, value in values.items():
        name = RENAMED.get(given, given)
        if given in FIXED:
            if value != FIXED[given]:
                why = f"it is always {FIXED[given]} since version 0.3"
                raise refused(given, value, why)
            continue
        if given == "recipe" and value == "default":
            value = ""
        if name in LISTS and isinstance(value, str):
            value = _replaced(value, ALIASES)
        if name in found and found[name] != value:
            raise refused(
                name, value, f"by its old name it is {quoted(found[name])}; give one"
            )
        found[name] = value
    return found


def as_0_2(config: Config) -> dict[str, Scalar]:
    """Return a configuration as version 0.2 flattened it.

    Cells of studies and stored adapters are named by hashes of this.
    """
    flat = flatten(config)
    flat["preset"] = flat["preset"] or "default"
    for name in LISTS:
        flat[name] = former(str(flat[name]))
    fixed = dict.fromkeys(PLACE, "") | FIXED
    known = {n: fixed[n] if n in fixed else flat[RENAMED.get(n, n)] for n in ORDER}
    standing = {RENAMED.get(name, name) for name in ORDER}
    later = {
        name: value
        for name, value in flat.items()
        if name not in standing and value != FIELDS[name].default
    }
    return {**known, **later}


def trained_from(config: Config) -> dict[str, Scalar]:
    """Return what a stored adapter's training depends on, as version 0.2 wrote it."""
    waiting = {name for name, affects in AFFECTS.items() if not affects}
    return {k: v for k, v in as_0_2(config).items() if k not in waiting.union(PLACE)}


def former(text: str) -> str:
    """A path or a list with the methods in it as version 0.2 called them."""
    return _replaced(text, FORMER)


def renamed(value: Any) -> Any:
    """What an earlier version wrote as JSON or TOML, with the method names of today."""
    if isinstance(value, dict):
        return {renamed(key): renamed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry) for entry in value]
    return _replaced(value, ALIASES) if isinstance(value, str) else value


def _replaced(text: str, names: Mapping[str, str]) -> str:
    """Replace whole words; what stands between them stays."""
    return re.sub(r"[^,\s/()]+", lambda match: names.get(match[0], match[0]), text)
