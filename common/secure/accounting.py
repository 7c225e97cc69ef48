r"""How much noise each member adds, and what a sum then costs.

There are two sights of a release. Whoever sees what is published sees noise of variance
:math:`n v`, of all n expected shares: what members who are missing did not add, the
server adds after opening. The server sees the sum before that, and members who work with
it can take their own shares off. So its epsilon counts the shares of honest members only,
needs no honest server, and nothing is amplified: it knows who took part.

That Gaussian bounds hold for this noise on the integers: docs/secure-noise.md.
"""

import math
from fractions import Fraction

from ..errors import refuse_if
from ..privacy.protected import gaussian_epsilon
from .grid import SMOOTHING


def share_variance(z: float, sensitivity: float, most: int) -> int:
    r"""Return v, the variance of one member's share of the noise, in units squared.

    :math:`\lceil (z \Delta)^2 / n \rceil + 16`, in exact fractions; 0 where z is 0. The
    16 is what the proof for noise on the integers takes; it holds for one honest member
    alone.

    Parameters
    ----------
    z
        Noise multiplier of what is published.
    sensitivity
        Delta, C in units (`grid.Grid.sensitivity`).
    most
        n: everybody of the stage if all are asked, else the cohort.
    """
    refuse_if(
        most < 1 or not 0 <= z < math.inf,
        f"noise of multiplier {z} over {most} members is none: "
        "use a number that is not negative, and at least one member.",
    )
    if z == 0:
        return 0
    return math.ceil((Fraction(z) * Fraction(sensitivity)) ** 2 / most) + SMOOTHING


def top_up(variance: int, most: int, users: int) -> int:
    r"""Return the variance that the server adds to an opened sum: :math:`(n - U) v`.

    Without it the energy of what is published would tell how many took part: m and m + 1
    shares differ by about d / (4 m^2) nats over d coordinates.
    """
    refuse_if(
        not 0 <= users <= most,
        f"a sum of {users} rows is not one of at most {most}: nothing can be published.",
    )
    return (most - users) * variance


def server_z(z: float, required: int, corrupt: int, most: int) -> float:
    r"""Noise multiplier of a sum as the server sees it.

    :math:`z_s = z \sqrt{(r - c) / n}`: at least r rows are opened, and of their shares c
    are those of members who work with the server. 0 where none is left: no guarantee.

    Parameters
    ----------
    z
        Of what is published.
    required, corrupt, most
        r, c and n.
    """
    refuse_if(
        not 0 < required <= most or corrupt < 0,
        f"{required} of {most} rows with {corrupt} corrupt ones are no sum: "
        "use a quorum above 0 and up to 1.",
    )
    return z * math.sqrt(max(required - corrupt, 0) / most)


def server_epsilon(z: float, releases: int, delta: float) -> float:
    """Return epsilon of so many sums before the server with this `server_z`; ``inf``: none.

    Exact for Gaussians (Balle and Wang 2018), so a device needs no accountant.
    """
    if releases == 0:
        return 0.0
    return gaussian_epsilon(releases / z**2, delta) if z > 0 else math.inf
