"""Attacks on what is released, and the epsilon that they prove to be too small.

Four audits, all of which give lower bounds to hold against the epsilon that the ledger
claims:

`audit_mechanism`
    Canary users of known directions go through the real aggregation; one run, many
    canaries (Steinke, Nasr and Jagielski 2023).
`one_run`
    The same bound for scores that another attack gave to canaries.
`membership`
    Scores of members and of others: how well a threshold tells them apart.
`authorship`
    Texts without a name: how often their writing gives away who wrote them.

A bound above the claim is a defect. A bound below it proves nothing: each result also
says which epsilon the audit could have detected at most, had every guess been right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.data.ngrams import BUCKETS
from ...common.errors import IdiolectError, pip_install, refuse_if
from ...common.unlabeled.votes import Bank, build_bank

Aggregate = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""One round: rows [n, d] of those who take part (n may be 0) -> what is released [d]."""

SUMMED = "summed"
DIFFERENCED = "differenced"

# A bound takes about 3 e^epsilon guesses, all right: none comes near this.
HIGHEST = 30.0


# --- bounds --------------------------------------------------------------------------


def one_run_bound(
    guesses: int, correct: int, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """Largest epsilon that so many correct guesses refute.

    If a mechanism that includes each of m canaries by an independent fair coin is
    (epsilon, delta)-DP towards adding or removing one, then for r guesses, of which a
    number W is right, and q = e^epsilon / (1 + e^epsilon),

        P[W >= v] <= P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i,  B ~ Bin(r, q),

    with i from 1 to v (Steinke, Nasr and Jagielski 2023, Theorem 5.2 and appendix D).
    The result is the largest epsilon at which the right side is below 1 - confidence.

    Parameters
    ----------
    guesses, correct
        r, fixed before the scores were seen, and v.
    canaries
        m, those without a guess included.
    delta
        Of the claim.
    confidence
        1 minus the chance that an honest mechanism's true epsilon is exceeded.

    Returns
    -------
    float
        0 where nothing is refuted; at most 30.

    Raises
    ------
    IdiolectError
        scipy is not installed, or the counts don't fit together.
    """
    refuse_if(
        not 0 <= correct <= guesses <= canaries,
        (
            f"{correct} correct of {guesses} guesses about {canaries} canaries: ask for "
            "at most as many guesses as there are canaries."
        ),
    )
    binomial, steps = _stats().binom, np.arange(1, correct + 1)

    def refuted(epsilon: float) -> bool:
        q = 1 / (1 + math.exp(-epsilon))
        pure = float(binomial.sf(correct - 1, guesses, q))
        mass = np.cumsum(binomial.pmf(correct - steps, guesses, q))
        worst = float((mass / steps).max(initial=0.0))
        return pure + 2 * canaries * delta * worst < 1 - confidence

    return _largest(refuted)


def clopper_pearson(
    successes: int, trials: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Exact two-sided interval of a binomial chance (Clopper and Pearson 1934).

    Each end is missed with a chance of at most (1 - confidence) / 2. Without trials the
    interval is (0, 1).
    """
    beta, tail, failures = _stats().beta, (1 - confidence) / 2, trials - successes
    low = beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, failures) if failures else 1.0
    return float(low), float(high)


def epsilon_from_rates(
    true_positives: int,
    positives: int,
    false_positives: int,
    negatives: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Largest epsilon that a test's two rates refute: ln((TPR - delta) / FPR).

    (epsilon, delta)-DP allows no test with TPR > e^epsilon FPR + delta (Kairouz, Oh and
    Viswanath 2015). TPR is taken at the lower end of its Clopper-Pearson interval and FPR
    at the upper end of its; each is missed with a chance of (1 - confidence) / 2, so both
    hold together with `confidence`.

    Returns
    -------
    float
        Not negative; 0 where nothing is refuted.
    """
    low, _ = clopper_pearson(true_positives, positives, confidence)
    _, high = clopper_pearson(false_positives, negatives, confidence)
    return max(0.0, math.log((low - delta) / high)) if low > delta else 0.0


def _largest(holds: Callable[[float], bool]) -> float:
    """Largest epsilon in [0, HIGHEST] up to which `holds`, from below; 0 if none."""
    low, high = 0.0, HIGHEST
    if not holds(low):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _stats():
    """scipy.stats, which a device does not have and need not have."""
    try:
        from scipy import stats
    except ImportError as error:
        raise IdiolectError(
            f"privacy audits need scipy: `{pip_install('idiolect[server]')}`."
        ) from error
    return stats


# --- one run, many canaries ----------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    """What an attack with canaries has shown.

    Attributes
    ----------
    name
        Of the attack.
    canaries, guesses, correct
        How many there were, how many were guessed, how many guesses were right.
    epsilon_lower_bound
        The mechanism is not (epsilon, delta)-DP for any epsilon below this.
    largest_detectable
        The bound if all guesses had been right. The audit cannot speak for more.
    confidence
        Of this bound alone; of k audits, all hold with 1 - k (1 - confidence) or more.
    """

    name: str
    canaries: int
    guesses: int
    correct: int
    epsilon_lower_bound: float
    largest_detectable: float
    confidence: float


def one_run(
    scores: NDArray[np.floating],
    included: NDArray[np.bool_],
    guesses: int,
    delta: float,
    confidence: float = 0.95,
    name: str = "one-run",
) -> Audit:
    """Guess which canaries took part, and bound epsilon by the number of right guesses.

    "in" is guessed for the highest half of the guesses, "out" for the lowest (the odd one
    is an "in"). Equal scores are ranked by index, which says nothing about `included`.

    Parameters
    ----------
    scores
        Higher: more likely included. Finite, [m]; computed without `included`.
    included
        Independent fair coins [m].
    guesses
        Fixed beforehand: a number chosen by looking at the outcome voids the bound.
    delta, confidence
        See `one_run_bound`.
    name
        Of the attack.
    """
    if not np.isfinite(scores).all():
        raise ValueError("the scores of canaries are not all finite")
    canaries = len(scores)
    best = one_run_bound(guesses, guesses, canaries, delta, confidence)
    order = np.argsort(scores, kind="stable")
    out, inside = order[: guesses // 2], order[canaries - (guesses - guesses // 2) :]
    correct = int(included[inside].sum() + (~included[out]).sum())
    bound = one_run_bound(guesses, correct, canaries, delta, confidence)
    return Audit(name, canaries, guesses, correct, bound, best, confidence)


@dataclass(frozen=True)
class Design:
    """How the mechanism is audited; the defaults catch every control at epsilon 1.

    Attributes
    ----------
    claimed, delta
        What the noise is calibrated to, for a canary that takes part in every round and
        an adversary who knows who took part.
    canaries, guesses
        m, and how many of them are guessed, half "in" and half "out".
    rounds, sampling, dimension
        Of the audited releases.
    boost
        Canaries send this many times the clip, so that a missing clip shows.
    secagg
        The users add the noise, and the adversary is the server, which sees their sum.
    """

    claimed: float = 1.0
    delta: float = 1e-5
    canaries: int = 1000
    guesses: int = 200
    rounds: int = 16
    sampling: float = 0.5
    dimension: int = 4000
    boost: float = 10.0
    secagg: bool = False


def audit_mechanism(
    aggregate: Aggregate, design: Design, generator: np.random.Generator
) -> tuple[Audit, ...]:
    """Send canary users through the real aggregation and guess who was among them.

    Canary c has a random unit direction u_c, and is included in the whole run by a fair
    coin. An included canary takes part in round t if its coin a_ct (chance `sampling`)
    says so, and then sends boost * u_c. The coins of those who are not included are drawn
    too: knowing them says nothing about inclusion. From the releases R_t (`scores_of`)
    and the directions an adversary guesses; so this is the worst user, not the usual one.
    A canary's score is blurred by the noise and by the other canaries, whose directions
    overlap by 1 / sqrt(d): with d >= 4 m the latter makes no visible difference.

    Parameters
    ----------
    aggregate
        One round of the real code: clips every row of [n, d] float32 to norm 1, sums, adds
        noise, divides by what it likes. Called once per round, in order, also with no
        rows. It may change the rows. Scale doesn't matter to the scores, the noise
        relative to the clip does.
    design
        Takes 4 m d bytes for the directions and as much again for a cohort.
    generator
        Directions and coins; never the noise.
    """
    m, d = design.canaries, design.dimension
    directions = generator.standard_normal((m, d), np.float32)
    directions /= np.sqrt(np.einsum("ij,ij->i", directions, directions))[:, None]
    included = generator.random(m) < 0.5
    coins = generator.random((design.rounds, m)) < design.sampling
    releases: list[np.ndarray] = []
    for drawn in coins:
        rows = directions[drawn & included] * np.float32(design.boost)
        released = np.asarray(aggregate(rows), np.float64)
        if released.shape != (d,):
            raise ValueError(f"released {released.shape}, expected {(d,)}")
        releases.append(released)
    return tuple(
        one_run(found, included, design.guesses, design.delta, name=name)
        for name, found in scores_of(releases, directions, coins).items()
    )


def scores_of(
    releases: Sequence[np.ndarray], directions: np.ndarray, coins: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores of the canaries, by what the adversary knows.

    `summed`
        u_c . sum_t R_t. The adversary sees the releases alone, as another client does:
        hold the bound against the epsilon with amplification by sampling.
    `differenced`
        sum_t (a_ct - mean_t a_ct) u_c . R_t, which is the mean over all pairs of rounds of
        (a_ct - a_cs) u_c . (R_t - R_s), times rounds / 2: only differences of releases
        enter, so noise that is the same in each round drops out altogether. The adversary
        also knows who was drawn in each round, as the server does: hold the bound against
        the epsilon without amplification. There is none for a single round or where
        everybody is drawn; a chance of one half detects most, and need not be what the run
        uses, as this adversary is granted no amplification.

    Parameters
    ----------
    releases
        T times float64 [d].
    directions, coins
        float32 [m, d], and bool [T, m].
    """
    scores = {SUMMED: directions @ sum(releases, np.zeros(1)).astype(np.float32)}
    if len(releases) > 1 and not coins.all():
        # The first round is taken from all before rounding to float32: large noise that
        # is common to all rounds would otherwise leave its rounding error behind.
        rest = [(one - releases[0]).astype(np.float32) for one in releases]
        products = np.array([directions @ one for one in rest], np.float64)
        scores[DIFFERENCED] = ((coins - coins.mean(0)) * products).sum(0)
    return scores


# --- membership ----------------------------------------------------------------------


@dataclass(frozen=True)
class Membership:
    """How well a score tells members from others.

    Attributes
    ----------
    auc
        Chance that a member scores above another; equal scores count half.
    tpr, tpr_interval, fpr
        Rates of scores above `threshold`, on scores that did not choose it, and the
        Clopper-Pearson interval of the first.
    threshold
        "member" is said of a score above it.
    epsilon_lower_bound
        From both rates; a bound only if the scores are independent (see `membership`).
    members, others
        How many the rates were measured on.
    largest_detectable
        The bound if every member and no other had been called a member.
    """

    auc: float
    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    threshold: float
    epsilon_lower_bound: float
    members: int
    others: int
    largest_detectable: float


def membership(
    members: NDArray[np.floating],
    others: NDArray[np.floating],
    seed: int,
    false_positive_rate: float = 0.01,
    delta: float = 1e-6,
    confidence: float = 0.95,
) -> Membership:
    """Membership inference by a threshold on a score.

    A random half of the others chooses the threshold: the lowest at which no more than
    `false_positive_rate` of them exceed it. The rates are those of the members, none of
    whom the threshold has seen, and of the other half. The AUC is of all scores.

    The bound on epsilon takes every score for an independent run's, as with shadow runs.
    Scores of many users of a single run share its noise: the rates then describe this
    run, and the bound is an estimate; `one_run` has no such assumption.

    Parameters
    ----------
    members, others
        Scores [n], [k]; higher: more likely a member.
    seed
        Splits the others.
    false_positive_rate
        Aimed at; what was reached is in the result.
    delta, confidence
        See `epsilon_from_rates`.

    Raises
    ------
    IdiolectError
        No member, or fewer than two others.
    """
    from ...common.seeds import numpy_generator  # imports torch

    refuse_if(
        not len(members) or len(others) < 2,
        (
            f"membership inference has {len(members)} members and {len(others)} others: "
            "give it some hundreds of each."
        ),
    )
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise ValueError("the scores of members and others are not all finite")
    shuffled = numpy_generator(seed, "membership").permutation(others)
    chooses, control = np.split(shuffled, [len(others) // 2])
    allowed = math.floor(false_positive_rate * len(chooses) + 1e-9)
    threshold = float(np.sort(chooses)[::-1][min(allowed, len(chooses) - 1)])

    hits, alarms = int((members > threshold).sum()), int((control > threshold).sum())
    n, k = len(members), len(control)
    return Membership(
        auc=auc(members, others),
        tpr=hits / n,
        tpr_interval=clopper_pearson(hits, n, confidence),
        fpr=alarms / k,
        threshold=threshold,
        epsilon_lower_bound=epsilon_from_rates(hits, n, alarms, k, delta, confidence),
        members=n,
        others=k,
        largest_detectable=epsilon_from_rates(n, n, 0, k, delta, confidence),
    )


def auc(members: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """P(member > other) + P(member = other) / 2 over all pairs (Mann and Whitney)."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, members, "left")
    up_to = np.searchsorted(ranked, members, "right")
    return float((below + up_to).sum() / 2 / (len(members) * len(others)))


# --- authorship ----------------------------------------------------------------------


@dataclass(frozen=True)
class Authorship:
    """How often the writing gives away who wrote it.

    Attributes
    ----------
    users
        Candidates.
    texts
        Texts without a name, over all users.
    top1, top10
        Share of users with such texts who are ranked first, or among the first ten.
    chance
        What guessing would give for `top1`: 1 / users.
    top1_interval
        95 % Clopper-Pearson; its trials are the users who have such texts.
    """

    users: int
    texts: int
    top1: float
    top10: float
    chance: float
    top1_interval: tuple[float, float]


def authorship(
    known: Sequence[Sequence[str]], unknown: Sequence[Sequence[str]]
) -> Authorship:
    """Re-identify users by hashed character n-grams.

    Every text is a TF-IDF vector of length 1 (`unlabeled.votes.build_bank`, fitted on the
    known texts). A user's centroid is the sum of the vectors of the known texts; it is
    compared by cosine with the sum of the user's unknown ones. Equal cosines are ranked by
    index, so that texts which say nothing give chance.

    Parameters
    ----------
    known, unknown
        Texts of user i at place i of both. Users without unknown texts are candidates
        only.

    Raises
    ------
    IdiolectError
        Fewer than two candidates, or no unknown text.
    """
    wanted = [i for i, texts in enumerate(unknown) if texts]
    refuse_if(
        len(known) < 2 or not wanted or not any(known),
        (
            f"authorship has {len(known)} users and {len(wanted)} of them with texts to "
            "attribute: give it two users or more."
        ),
    )
    bank = build_bank([text for texts in known for text in texts])
    writer = np.repeat(np.arange(len(known)), [len(texts) for texts in known])
    # Sparse: users x buckets would be half a gigabyte for a thousand users.
    entries, place = np.unique(
        writer[bank.row] * BUCKETS + bank.bucket, return_inverse=True
    )
    values = np.bincount(place, bank.value)
    owner, bucket = np.divmod(entries, BUCKETS)
    norms = np.sqrt(np.bincount(owner, values**2, minlength=len(known)))
    centroids = Bank(len(known), owner, bucket, values / norms[owner], bank.idf)
    ranks = []
    for user in wanted:
        cosines = sum(map(centroids.similarity, unknown[user]), np.zeros(len(known)))
        order = np.argsort(-cosines, kind="stable")
        ranks.append(int(np.flatnonzero(order == user)[0]))
    first = sum(rank == 0 for rank in ranks)
    return Authorship(
        users=len(known),
        texts=sum(map(len, unknown)),
        top1=first / len(ranks),
        top10=sum(rank < 10 for rank in ranks) / len(ranks),
        chance=1 / len(known),
        top1_interval=clopper_pearson(first, len(ranks)),
    )
