"""What a sum must be by the configuration: how many rows it has, and how much noise.

Both are fixed before anybody is asked. A device computes them as the server does, and
refuses a sum that is said to have fewer rows or less noise.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from ..config import Config
from ..errors import refuse_if
from ..privacy.protected import (
    CLIP_BIT,
    TOLERANCE,
    gaussian_epsilon,
    is_sampled,
    multiplier,
    planned,
    sampled_delta,
    sampling_rate,
    summed_delta,
)
from .neighbours import FEWEST, required

# Stage -> the outflow that a device's owner knows it by.
OUTFLOW = {"adapt": "update", "votes": "votes", "metrics": "metrics"}


# A sum has at least one part in so many of its noise's variance from those who came. With
# a quorum of .75 it has at least half where the cohort is 1.5 times the users drawn.
SHARED = 3


@dataclass(frozen=True)
class Expected:
    """How many rows a sum has.

    Attributes
    ----------
    most
        n, by which the noise is shared out: everybody of the stage, or the cohort.
    required
        r, the fewest: the quorum of those who are drawn on average.
    """

    most: int
    required: int


def expected(config: Config, crowd: int, stage: str) -> Expected:
    """How many rows a sum of a stage has.

    Parameters
    ----------
    config
        Of the run.
    crowd
        How many users may take part in the stage, reached or not.
    stage
        ``adapt``, ``votes`` or ``metrics``. Coins are tossed for the first two, where
        privacy is on.

    Raises
    ------
    IdiolectError
        So few that the sum hides nobody; or fewer than a third of those by whom its noise
        is shared out may come, so that the server sees it with so much less.
    """
    privacy = config.privacy
    drawing = privacy.mode != "off" and stage != "metrics"
    most = min(crowd, privacy.cohort or crowd) if drawing else crowd
    refuse_if(
        most < FEWEST,
        f"a sum of {most} users of stage '{stage}' hides nobody: take at least {FEWEST} "
        "users, or set secagg.mode=off.",
    )
    chance = sampling_rate(config, OUTFLOW[stage]) if drawing else 1.0
    drawn = min(Fraction(str(chance)) * crowd, Fraction(most))
    fewest = required(drawn, config.quorum)
    refuse_if(
        SHARED * fewest < most and bool(planned(config).get(OUTFLOW[stage])),
        f"a sum of stage '{stage}' may have {fewest} of {most} rows, and so less than a "
        "third of its noise before the server adds its own: raise quorum, or bring "
        "privacy.cohort closer to the users that are drawn.",
    )
    return Expected(most, fewest)


def refuse_noise(config: Config, stage: str, z: float, bit_z: float | None) -> None:
    """Refuse a sum with less noise than the run's configuration declares.

    Where the server calibrates the noise (``privacy.noise=0``) a device has no accountant.
    It refuses noise with which the planned releases of this stage alone would cost more
    than ``privacy.epsilon``; where coins are tossed for them, noise with which one of them
    would, or their sum (`summed_delta`: a bound, below what they cost together).

    Parameters
    ----------
    config
        Of the run.
    stage
        As in `expected`.
    z, bit_z
        Noise multipliers that the server names, of a row and of its clip bit.

    Raises
    ------
    IdiolectError
        It has less, or a clip bit where none is declared.
    """
    privacy, outflow = config.privacy, OUTFLOW[stage]
    count = planned(config).get(outflow, 0)
    if not count:  # an exact sum, which the owner's consent knows as unprotected
        return
    # An update's own: that of `multiplier` is joint with its clip bit.
    declared = privacy.noise if stage == "adapt" else multiplier(config, outflow)
    if privacy.epsilon == math.inf:
        enough = True
    elif privacy.noise:
        enough = z > 0 and z >= declared * (1 - TOLERANCE)
    elif is_sampled(config, outflow):
        rate, most = sampling_rate(config, outflow), privacy.delta * (1 + TOLERANCE)
        enough = (
            z > 0
            and sampled_delta(z, rate, privacy.epsilon) <= most
            and summed_delta(z, rate, privacy.epsilon, count) <= most
        )
    else:
        most = privacy.epsilon * (1 + TOLERANCE)
        enough = z > 0 and gaussian_epsilon(count / z**2, privacy.delta) <= most
    bit = None
    if stage == "adapt" and config.adapt.clip_quantile:
        bit = CLIP_BIT if z > 0 else 0.0
    refuse_if(
        not enough or bit_z != bit,
        f"a sum of stage '{stage}' is said to have noise of {z:g} times one user's part, "
        "which is not what the run declares: sit it out, and ask the operator.",
    )
