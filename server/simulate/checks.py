"""What can be known to fail before a simulation has begun, and is refused there.

A run that fails in its second phase has cost its first, and leaves a folder behind. So
`simulate` asks here for all that needs no user's device: the run itself checks the same
again where it happens.
"""

import math

from ...common.config import MOST_NOISE, Config
from ...common.data.load import load_dataset, public_items
from ...common.data.types import Dataset
from ...common.errors import IdiolectError, refuse_if
from ..privacy.accountant import epsilons
from ..run.budget import population_of, programme
from ..run.hello import identity
from ..run.pool import public_text


def check_start(config: Config) -> None:
    """Refuse a run that would fail later, for what is known now.

    Raises
    ------
    IdiolectError
        No GPU where one is asked for, a backbone that cannot be used, no public text or
        bad text in ``unlabeled.file``, more support than there are users, or a budget
        with which nothing can be released.
    """
    from ...common.engine.backbone import device_of

    device_of(config.engine.device)
    if config.backbone != "tiny":
        identity(config)
    dataset = load_dataset(config)
    check_unlabeled(config, dataset)
    check_budget(config, dataset)


def check_unlabeled(config: Config, dataset: Dataset) -> None:
    """Refuse an unlabeled set that cannot be built."""
    unlabeled = config.unlabeled
    if unlabeled.kind in ("votes", "public", "anonymised"):
        public_text(config, dataset, 1)
    elif unlabeled.file:
        public_items(unlabeled.file)
    everybody = population_of(config, dataset).everybody
    refuse_if(
        unlabeled.kind == "anonymised" and unlabeled.support > everybody,
        f"config key 'unlabeled.support' is {unlabeled.support}, but there are "
        f"{everybody} users in all: lower it, find more users, or use another "
        "unlabeled.kind.",
    )
    refuse_if(
        unlabeled.kind == "others" and everybody < 2,
        "config key 'unlabeled.kind' is 'others', but there is one user in all: set "
        "users or development-users higher, or use another unlabeled.kind.",
    )


def check_budget(config: Config, dataset: Dataset) -> None:
    """Refuse a budget that allows none of what is planned, whatever happens."""
    privacy = config.privacy
    if privacy.mode == "off" or privacy.epsilon == math.inf:
        return
    people = population_of(config, dataset)
    planned = programme(config, privacy.noise or MOST_NOISE, people)
    # With a noise of its own a run makes the releases that it can afford.
    for events in [{event: 1} for event in planned] if privacy.noise else [planned]:
        spent = epsilons(events, privacy.delta, privacy.participations).release
        if spent > privacy.epsilon:
            what = next(iter(events)).stage if privacy.noise else "all that is planned"
            noise = f"{privacy.noise:g}" if privacy.noise else "any"
            raise IdiolectError(
                f"config key 'privacy.epsilon' is {privacy.epsilon:g}: with {noise} noise "
                f"'{what}' alone would cost {spent:.3g}; set a larger "
                "privacy.epsilon or privacy.noise (0: as much as is needed)."
            )
