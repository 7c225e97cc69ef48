"""Is what leaves a device protected? One answer for consent, ledger, card and `sent`.

An *outflow* is a kind of content that leaves a device: ``update`` of the shared adapter,
``votes``, ``metrics``, scrubbed ``items``, raw ``text``. It is *protected* where the run's
configuration promises that it only goes into sums with Gaussian noise that nobody can take
off, that the noise amounts to an epsilon that says something, and that the sums are of
several users. The server is believed to keep the promise; what is not even promised is
named here, in words.

Everything is a pure function of the configuration and needs no accountant, so a device
without the extra ``[server]`` computes the same as the server does.
"""

import math
from dataclasses import dataclass

from ..config import Config, largest_delta

OUTFLOWS = ("update", "votes", "metrics", "items", "text")
# Noise multipliers below: such noise protects nobody (epsilon above 500 000).
NOISELESS = 1e-3
# Noise multiplier of the clip bit (``adapt.clip-quantile``). It is released with each
# update, and at 10 it costs little beside that.
CLIP_BIT = 10.0
# Below, amplification is not claimed: it would save next to nothing, and the privacy
# loss spreads over more grid points than memory holds.
FAINT = 0.2
# e^20 is half a thousand million: with more, an observer of the releases may tell one
# person from as many others, and the bound excludes nothing that matters.
VAIN = 20.0
FEWEST = 2  # a sum of one user is that user
TOLERANCE = 1e-6  # relative; between two ways to compute the same epsilon


@dataclass(frozen=True)
class Claim:
    """What a run declares that it costs each user who takes part in all of it.

    Attributes
    ----------
    epsilon, delta
        Of all its noisy releases together, against anybody who sees what is released.
    releases
        How many releases one user is part of at most, over all stages.
    users
        How many users' parts the smallest sum holds, as far as that is declared.
    """

    epsilon: float
    delta: float
    releases: int
    users: float


def used(config: Config) -> tuple[str, ...]:
    """Return the outflows that a run of this configuration asks devices for."""
    kinds = {"votes": "votes", "anonymised": "items", "others": "text"}
    asked = ["update"] if config.adapt.rounds else []
    if config.unlabeled.kind in kinds:
        asked.append(kinds[config.unlabeled.kind])
    return (*asked, "metrics")


def charged(config: Config, outflow: str) -> bool:
    """Whether the ledger charges an outflow as a release: then it may have noise."""
    if config.privacy.mode != "central":
        return False
    if outflow == "metrics":
        return config.privacy.metrics == "noisy"
    return outflow in ("update", "votes") and outflow in used(config)


def planned(config: Config) -> dict[str, int]:
    """Outflow -> how many releases of it a run makes, of those that are charged."""
    counts = {
        "update": config.adapt.rounds,
        "votes": 1,
        "metrics": len(config.method_list),
    }
    most = config.privacy.participations or math.inf
    return {
        outflow: int(min(count, most))
        for outflow, count in counts.items()
        if charged(config, outflow)
    }


def fewest(config: Config, outflow: str) -> float:
    """Return how many users' parts a sum holds: on average, and if only the quorum answers.

    A server that says ``users=200`` and runs with ``quorum=0`` may add up one.
    """
    privacy, crowd = config.privacy, config.crowd
    if outflow == "update" and config.adapt.users == "development":
        crowd = config.development_users
    drawn = crowd * sampling_rate(config, outflow)
    if privacy.cohort and outflow != "metrics":
        drawn = min(drawn, privacy.cohort)
    return config.quorum * drawn


def sampling_rate(config: Config, outflow: str) -> float:
    """Return the rate at which users are sampled for a release."""
    chances = {
        "update": config.privacy.sampling,
        "votes": config.privacy.vote_sampling,
    }
    return chances.get(outflow, 1.0)


def multiplier(config: Config, outflow: str) -> float:
    """Return the declared noise multiplier of one release; 0: calibrated by the server."""
    privacy = config.privacy
    if outflow == "update":
        return joint(privacy.noise, CLIP_BIT if config.adapt.clip_quantile else 0.0)
    relative = {"votes": privacy.votes, "metrics": privacy.metrics_noise}
    return privacy.noise * relative[outflow]


def joint(z: float, clip_bit_z: float) -> float:
    r"""Noise multiplier of two Gaussians released about the same users at once.

    :math:`(z^{-2} + z_b^{-2})^{-1/2}` (Andrew et al. 2021, section 3.1): in units of its
    own noise the pair is one Gaussian vector. ``clip_bit_z`` 0 means that there is none.
    """
    if not (z and clip_bit_z):
        return z
    if min(z, clip_bit_z) < NOISELESS:  # no square of which a float may hold
        return min(z, clip_bit_z)
    return (z**-2 + clip_bit_z**-2) ** -0.5


def _truncated(config: Config, outflow: str) -> bool:
    """Whether a user in the draw may turn somebody else away: then two rows differ."""
    return outflow != "metrics" and 0 < config.privacy.cohort < config.crowd


def is_sampled(config: Config, outflow: str) -> bool:
    """Whether users are drawn for a release, so that it costs less than one of all."""
    return sampling_rate(config, outflow) < 1 or _truncated(config, outflow)


def unamplified(config: Config, counts: dict[str, int]) -> float:
    """Epsilon of so many releases of each outflow, if it is known who is in them.

    An upper bound for an observer who does not know that. ``inf`` without a declared noise.
    """
    precision = 0.0
    for outflow, count in counts.items():
        z = multiplier(config, outflow) / (2 if _truncated(config, outflow) else 1)
        if z < NOISELESS:
            return math.inf
        precision += count / z**2
    return gaussian_epsilon(precision, config.privacy.delta)


def epsilon_of(config: Config) -> float:
    """Return the epsilon that a run's noisy releases have together, as declared.

    The budget, which the server's ledger does not exceed; or less, where the declared
    noise of all planned releases amounts to less. ``inf``: none.
    """
    return min(config.privacy.epsilon, unamplified(config, planned(config)))


def protected(config: Config, outflow: str) -> str:
    """Return why an outflow is not protected, in words; empty: it is.

    Parameters
    ----------
    config
        Of the run.
    outflow
        One of `OUTFLOWS`.

    Returns
    -------
    str
        The first reason that applies, part of a sentence and without anything that is not
        in the configuration.
    """
    if outflow in ("items", "text"):
        return "no noise is added to text"
    privacy = config.privacy
    epsilon, users = epsilon_of(config), fewest(config, outflow)
    z = multiplier(config, outflow)
    clear = outflow == "metrics" and privacy.metrics != "noisy"
    reasons = (
        (privacy.mode != "central", "privacy.mode is 'off'"),
        (clear, "privacy.metrics is 'clear'"),
        (outflow not in used(config), "the run has no release of this kind"),
        (
            privacy.seeded,
            "privacy.seeded is true: who knows the seed takes the noise off",
        ),
        (
            privacy.epsilon == math.inf,
            "privacy.epsilon is infinite: no noise is added",
        ),
        (
            epsilon > VAIN,
            f"epsilon {epsilon:.3g} excludes next to nothing: above {VAIN:g}",
        ),
        (
            privacy.delta > largest_delta(config),
            f"delta {privacy.delta:g} is above 1 / (10 users)",
        ),
        (users < FEWEST, f"a sum of it may be of no more than {users:.3g} users"),
        (
            _too_faint(config, outflow),
            f"noise of {z:.3g} times one user's part is not epsilon {privacy.epsilon:g}",
        ),
    )
    return next((reason for applies, reason in reasons if applies), "")


def _too_faint(config: Config, outflow: str) -> bool:
    """Whether a single release is beyond the budget: no ledger allows that one.

    What sampling makes of stronger noise takes an accountant: there the budget is believed.
    """
    if not config.privacy.noise:
        return False
    faint = multiplier(config, outflow) < FAINT or not is_sampled(config, outflow)
    one = unamplified(config, {outflow: 1})
    return faint and one > config.privacy.epsilon * (1 + TOLERANCE)


def claim(config: Config) -> Claim:
    """Return what a run declares that it costs."""
    counts = planned(config)
    users = [fewest(config, outflow) for outflow in counts]
    return Claim(
        epsilon_of(config),
        config.privacy.delta,
        sum(counts.values()),
        min(users, default=0.0),
    )


# --- one Gaussian ----------------------------------------------------------------------


def gaussian_epsilon(precision: float, delta: float) -> float:
    r"""Epsilon of Gaussian mechanisms with this sum of :math:`1 / z^2`.

    The smallest one with
    :math:`\Phi(\mu/2 - \epsilon/\mu) - e^\epsilon \Phi(-\mu/2 - \epsilon/\mu) \le \delta`
    where :math:`\mu^2` is that sum (Balle and Wang 2018, theorem 8; several Gaussians are
    one). Never below it by more than rounding.
    """
    if precision <= 0:
        return 0.0
    if not precision < math.inf:
        return math.inf
    mu = math.sqrt(precision)
    # Above: the bound by zero-concentrated privacy, which is a little larger.
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    if _spill(mu, 0.0) <= delta:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if _spill(mu, middle) <= delta:
            high = middle
        else:
            low = middle
    return high


def summed_delta(z: float, rate: float, epsilon: float, count: int) -> float:
    """A delta that so many sampled Gaussians have at least at this epsilon.

    That of a server which looks at their sum alone: N(k, count z^2) where the user was
    drawn k times, k ~ Bin(count, q), against N(0, count z^2) without the user. The set
    above the point where the densities' ratio is e^epsilon has the largest difference.

    Parameters
    ----------
    z, rate, epsilon
        As in `sampled_delta`.
    count
        Releases, from 1 on. With a rate of 1 the bound is exact.
    """
    width, some = z * math.sqrt(count), range(count + 1)
    stay = math.log1p(-rate) if rate < 1 else -math.inf
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(rate) + ((count - k) * stay if k < count else 0.0)
        for k in some
    ]  # fmt: skip

    def ratio(place: float) -> float:
        parts = [w + (2 * place - k) * k / 2 / width**2 for k, w in enumerate(logs)]
        largest = max(parts)
        return largest + math.log(sum(math.exp(part - largest) for part in parts))

    low, high = 0.0, count / 2 + width**2 * (epsilon - logs[-1]) / count
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < epsilon else (low, middle)
    tails = (math.exp(w + _log_tail((high - k) / width)) for k, w in enumerate(logs))
    return sum(tails) - math.exp(min(epsilon + _log_tail(high / width), 0.0))


def sampled_delta(z: float, rate: float, epsilon: float) -> float:
    r"""The delta that one Gaussian has at this epsilon where a coin draws each user.

    :math:`q\,\delta_z(\log(1 + (e^\epsilon - 1) / q))` with :math:`\delta_z` that of the
    Gaussian alone: exact for a user who is there in one of two worlds (Balle, Barthe and
    Gaboardi 2018, theorem 8). Several releases have more.

    Parameters
    ----------
    z
        Noise multiplier, positive.
    rate
        q, with which a user is drawn; 1: everybody is.
    epsilon
        From 0 on.
    """
    inner = epsilon + math.log1p((rate - 1) * math.exp(-epsilon)) - math.log(rate)
    return rate * _spill(1 / z, inner)


def _spill(mu: float, epsilon: float) -> float:
    """The delta that a Gaussian has at this epsilon."""
    above = math.exp(_log_tail(epsilon / mu - mu / 2))
    return above - math.exp(min(epsilon + _log_tail(epsilon / mu + mu / 2), 0.0))


def _log_tail(x: float) -> float:
    """Log of the chance that a standard normal is above x; far out, a bound from below."""
    if x < 25:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(math.sqrt(2 * math.pi) * (x + 1 / x))
