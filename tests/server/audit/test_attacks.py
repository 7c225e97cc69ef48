"""The bounds of the audits, and whether they notice mechanisms that are broken."""

import math
import sys

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

from idiolect.common.errors import IdiolectError
from idiolect.common.unlabeled.votes import build_bank
from idiolect.server.audit import attacks

DELTA = 1e-6


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- bounds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guesses", "correct", "canaries", "expected"),
    [
        (200, 200, 1000, 4.19),
        (200, 180, 1000, 1.80),
        (200, 150, 1000, 0.82),
        (40, 40, 200, 2.55),
        (20, 20, 200, 1.82),
        (200, 100, 1000, 0.0),
        (0, 0, 1000, 0.0),
    ],
)
def test_one_run_bound(
    guesses: int, correct: int, canaries: int, expected: float
) -> None:
    bound = attacks.one_run_bound(guesses, correct, canaries, DELTA)
    assert bound == pytest.approx(expected, abs=0.005)
    best = attacks.one_run_bound(guesses, guesses, canaries, DELTA)
    assert bound <= best
    assert (bound == best) == (correct == guesses)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-4])
def test_one_run_bound_against_the_formula_term_by_term(delta: float) -> None:
    guesses, correct, canaries = 60, 55, 300
    epsilon = attacks.one_run_bound(guesses, correct, canaries, delta)
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    chance = [
        math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k)
        for k in range(guesses + 1)
    ]
    worst = max(sum(chance[correct - i : correct]) / i for i in range(1, correct + 1))
    p = sum(chance[correct:]) + 2 * canaries * delta * worst
    assert p == pytest.approx(0.05, abs=1e-6)


def test_delta_and_confidence_lower_the_bound() -> None:
    bounds = [attacks.one_run_bound(100, 95, 500, d) for d in (0, 1e-5, 1e-4, 1e-3)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[3] + 0.2
    assert attacks.one_run_bound(100, 95, 500, 0.01) == 0
    sure = attacks.one_run_bound(100, 95, 500, 0, 0.999)
    assert 0 < sure < bounds[0] - 0.3


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_the_bound_exceeds_a_true_epsilon_as_rarely_as_it_says(epsilon: float) -> None:
    """Randomised response guesses right with exactly q, so the rate is exact, not drawn.

    It is below 5 % because counts are whole, and above 3 % because the bound is tight.
    """
    q = 1 / (1 + math.exp(-epsilon))
    rate = sum(
        float(binom.pmf(v, 100, q))
        for v in range(101)
        if attacks.one_run_bound(100, v, 100, 0.0) > epsilon
    )
    assert 0.03 < rate <= 0.05


def test_counts_that_do_not_fit_are_refused() -> None:
    for guesses, correct, canaries in ((11, 5, 10), (5, 6, 10), (5, -1, 10)):
        with pytest.raises(IdiolectError, match="at most as many guesses"):
            attacks.one_run_bound(guesses, correct, canaries, DELTA)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (13, 20), (20, 20)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_clopper_pearson(k: int, n: int, confidence: float) -> None:
    expected = binomtest(k, n).proportion_ci(confidence, "exact")
    found = attacks.clopper_pearson(k, n, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_without_trials_nothing_is_known() -> None:
    assert attacks.clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((100, 100, 0, 100), 3.28),
        ((500, 1000, 0, 1000), 4.85),
        ((30, 1000, 1, 1000), 1.30),
        ((10, 1000, 10, 1000), 0.0),
        ((0, 1000, 0, 1000), 0.0),
    ],
)
def test_epsilon_from_rates(counts: tuple[int, int, int, int], expected: float) -> None:
    found = attacks.epsilon_from_rates(*counts, DELTA)
    assert found == pytest.approx(expected, abs=0.005)


def test_delta_is_taken_from_the_true_positives() -> None:
    low, _ = attacks.clopper_pearson(50, 100)
    _, high = attacks.clopper_pearson(2, 100)
    found = attacks.epsilon_from_rates(50, 100, 2, 100, 0.1)
    assert found == pytest.approx(math.log((low - 0.1) / high))
    assert attacks.epsilon_from_rates(50, 100, 2, 100, 0.5) == 0


def test_the_rates_of_a_true_epsilon_rarely_refute_it() -> None:
    """Randomised response of epsilon 1, 40 and 40 trials: exact, by enumeration."""
    n, q = 40, 1 / (1 + math.exp(-1))
    rate = sum(
        float(binom.pmf(tp, n, q) * binom.pmf(fp, n, 1 - q))
        for tp in range(20, n + 1)
        for fp in range(20)
        if attacks.epsilon_from_rates(tp, n, fp, n, 0.0) > 1
    )
    assert 0 < rate < 0.05


def test_scipy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "scipy.stats", raising=False)
    with pytest.raises(IdiolectError, match=r"pip install 'idiolect\[server\]'"):
        attacks.clopper_pearson(1, 2)


# --- one run -------------------------------------------------------------------------


def test_the_highest_are_in_and_the_lowest_out() -> None:
    included = np.array([True, False, True, True, False, False])
    scores = np.array([5.0, 0.0, 4.0, 1.0, 2.0, 3.0])  # in: 0 2 5; out: 1 3 4
    correct = {
        r: attacks.one_run(scores, included, r, 0.0).correct for r in range(1, 7)
    }
    assert correct == {1: 1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 4}


def test_an_audit_says_what_it_could_have_seen() -> None:
    included = draw(1).random(1000) < 0.5
    found = attacks.one_run(included + 0.0, included, 200, DELTA, name="told")
    assert (found.name, found.canaries, found.guesses) == ("told", 1000, 200)
    assert found.correct == 200
    assert found.epsilon_lower_bound == found.largest_detectable
    assert found.epsilon_lower_bound == pytest.approx(4.19, abs=0.005)


def test_scores_that_say_nothing_give_nothing() -> None:
    """Equal scores must not be ranked by the answer. Three seeds miss by 2e-4."""
    for seed in range(3):
        included = draw(seed).random(1000) < 0.5
        found = attacks.one_run(np.zeros(1000), included, 400, DELTA)
        assert 160 < found.correct < 240  # 4 standard deviations
    with pytest.raises(ValueError, match="finite"):
        attacks.one_run(np.full(4, np.nan), np.ones(4, bool), 2, DELTA)


# --- the aggregation -----------------------------------------------------------------

CANARIES, DIMENSION, ROUNDS, GUESSES = 1000, 4000, 16, 200
CLAIMED = 1.0
"""Of the honest mechanism, at delta 1e-5."""


def noise_for(epsilon: float, delta: float, rounds: int) -> float:
    """Noise multiplier of so many rounds without amplification (Balle and Wang 2018)."""

    def excess(mu: float) -> float:
        upper, lower = norm.cdf([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu])
        return float(upper - math.exp(epsilon) * lower - delta)

    return math.sqrt(rounds) / brentq(excess, 1e-3, 10)  # pyright: ignore


NOISE = noise_for(CLAIMED, 1e-5, ROUNDS)


def audit(
    aggregate: attacks.Aggregate, seed: int, sampling: float = 0.5, boost: float = 1.0
) -> dict[str, attacks.Audit]:
    design = attacks.Design(
        1.0, 1e-5, CANARIES, GUESSES, ROUNDS, sampling, DIMENSION, boost
    )
    found = attacks.audit_mechanism(aggregate, design, draw(seed))
    return {audit.name: audit for audit in found}


def gaussian(
    clip: float,
    noise: float,
    generator: np.random.Generator,
    clipped: bool = True,
    reused: bool = False,
) -> attacks.Aggregate:
    """A toy aggregation: clip rows, sum, add Gaussian noise.

    Parameters
    ----------
    clip, noise
        The standard deviation per coordinate is noise * clip.
    generator
        Of the noise: seeded, so this protects nobody.
    clipped, reused
        Two mistakes: rows are not clipped, or every round has the noise of the first.
    """
    kept: list[np.ndarray] = []

    def aggregate(rows: np.ndarray) -> np.ndarray:
        scale = np.ones(len(rows), np.float32)
        if clipped:
            norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            scale = np.minimum(scale, clip / np.maximum(norms, 1e-12))
        if not (reused and kept):
            kept[:] = [generator.normal(0.0, noise * clip, rows.shape[1])]
        return scale @ rows + kept[0]

    return aggregate


def test_an_honest_mechanism_is_not_accused() -> None:
    """The claim holds for both adversaries: all rounds, no amplification.

    A false alarm needs 157 right guesses of 200, of which about 110 are: below 1e-8.
    """
    found = audit(gaussian(1.0, NOISE, draw(1)), 2)
    assert list(found) == ["summed", "differenced"]
    for one in found.values():
        assert one.epsilon_lower_bound < CLAIMED / 2
        assert one.largest_detectable > 4


def test_an_honest_mechanism_with_a_boosted_canary_is_not_accused() -> None:
    found = audit(gaussian(1.0, NOISE, draw(3)), 4, boost=10.0)
    assert all(one.epsilon_lower_bound < CLAIMED / 2 for one in found.values())


def test_a_missing_clip_is_caught() -> None:
    broken = gaussian(1.0, NOISE, draw(5), clipped=False)
    found = audit(broken, 6, boost=10.0)
    assert found["summed"].epsilon_lower_bound > CLAIMED


def test_a_tenth_of_the_noise_is_caught() -> None:
    found = audit(gaussian(1.0, NOISE / 10, draw(7)), 8)
    assert found["summed"].epsilon_lower_bound > CLAIMED


def test_the_same_noise_in_each_round_is_caught_by_differences_alone() -> None:
    broken = gaussian(1.0, NOISE, draw(9), reused=True)
    found = audit(broken, 10)
    assert found["differenced"].epsilon_lower_bound > 4 * CLAIMED
    assert found["summed"].epsilon_lower_bound < CLAIMED


def test_the_difference_is_free_of_any_constant() -> None:
    """Also of one a billion times the clip, which single precision could not hold."""
    large = draw(11).normal(0, 1e9, DIMENSION)
    found = audit(lambda rows: rows.sum(0, dtype=np.float64) + large, 12)
    assert found["differenced"].correct == GUESSES


def test_amplification_is_granted_to_those_who_see_releases_alone() -> None:
    """A tenth of users per round: the claim is PLD's, and a tenth of the noise is caught.

    Against the server the same noise gives far more, which `summed` must not be held to.
    """
    noise, sampling = 2.0, 0.1
    event = SelfComposedDpEvent(
        PoissonSampledDpEvent(sampling, GaussianDpEvent(noise)), ROUNDS
    )
    claimed = PLDAccountant().compose(event).get_epsilon(1e-5)
    assert 0.8 < claimed < 1.2
    honest = audit(gaussian(1.0, noise, draw(13)), 14, sampling)
    assert honest["summed"].epsilon_lower_bound < claimed
    broken = audit(gaussian(1.0, noise / 10, draw(15)), 16, sampling)
    assert broken["summed"].epsilon_lower_bound > claimed


def test_cohorts_that_do_not_differ_have_no_differences() -> None:
    for rounds, sampling in ((1, 0.5), (3, 1.0)):
        design = attacks.Design(1.0, 0.0, 20, 10, rounds, sampling, 50, 1.0)
        found = attacks.audit_mechanism(lambda rows: rows.sum(0), design, draw())
        assert [one.name for one in found] == ["summed"]


def test_what_the_aggregation_is_given() -> None:
    """Half of the canaries, a quarter of those in each round, every row of norm boost."""
    seen: list[np.ndarray] = []

    def record(rows: np.ndarray) -> np.ndarray:
        seen.append(rows.copy())
        rows[:] = 0  # theirs to change
        return seen[-1].sum(0)

    design = attacks.Design(1.0, 0.0, 400, 40, 40, 0.25, 6000, 1.5)
    found = attacks.audit_mechanism(record, design, draw(17))
    assert len(seen) == 40
    assert all(rows.dtype == np.float32 for rows in seen)
    norms = np.linalg.norm(np.concatenate(seen), axis=1)
    np.testing.assert_allclose(norms, 1.5, rtol=1e-5)
    distinct = {row.tobytes() for rows in seen for row in rows}
    assert 160 < len(distinct) < 240  # 4 standard deviations
    mean = sum(map(len, seen)) / 40
    assert mean == pytest.approx(len(distinct) / 4, abs=4 * math.sqrt(200 / 4 / 40))
    assert all(one.correct == 40 for one in found)


def test_an_aggregation_of_the_wrong_shape_is_no_audit() -> None:
    with pytest.raises(ValueError, match="expected"):
        audit(lambda rows: rows[:, :1].sum(0), 18)


# --- membership ----------------------------------------------------------------------


def test_auc_counts_ties_half() -> None:
    members, others = draw(20).integers(0, 6, 50), draw(21).integers(0, 5, 70)
    pairs = members[:, None] - others
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert attacks.auc(members + 0.0, others + 0.0) == pytest.approx(expected)


def test_membership_of_two_gaussians() -> None:
    """Three standard deviations apart, 4000 scores each; tolerances are 4 to 5 sigma."""
    members, others = draw(22).normal(3, 1, 4000), draw(23).normal(0, 1, 4000)
    found = attacks.membership(members, others, 0, 0.05)
    assert found.auc == pytest.approx(norm.cdf(3 / math.sqrt(2)), abs=0.006)
    assert found.threshold == pytest.approx(norm.ppf(0.95), abs=0.2)
    assert found.fpr == pytest.approx(0.05, abs=0.03)
    assert found.tpr == pytest.approx(norm.cdf(3 - found.threshold), abs=0.02)
    assert found.tpr_interval[0] < found.tpr < found.tpr_interval[1]
    assert (found.members, found.others) == (4000, 2000)
    assert 2 < found.epsilon_lower_bound < math.log(found.tpr / found.fpr)
    best = attacks.epsilon_from_rates(4000, 4000, 0, 2000, 1e-6)
    assert found.largest_detectable == best


def test_the_threshold_is_not_judged_by_what_chose_it() -> None:
    """All others are distinct: of the half that chooses, 1 of 100 exceeds it."""
    others = np.arange(200.0)
    found = attacks.membership(np.full(7, 1000.0), others, 3)
    chose = [x for x in others if x > found.threshold]
    assert found.others == 100
    measured = round(found.fpr * 100)
    assert len(chose) - measured == 1  # floor(0.01 * 100) of the choosing half
    fprs = {attacks.membership(others, others, seed).fpr for seed in range(20)}
    assert len(fprs) > 1  # the split depends on the seed
    assert found == attacks.membership(np.full(7, 1000.0), others, 3)


def test_equal_scores_are_nobodys_membership() -> None:
    found = attacks.membership(np.ones(50), np.ones(50), 0)
    assert (found.auc, found.tpr, found.fpr) == (0.5, 0.0, 0.0)
    assert found.epsilon_lower_bound == 0


def test_membership_needs_scores() -> None:
    with pytest.raises(IdiolectError, match="some hundreds"):
        attacks.membership(np.zeros(0), np.zeros(5), 0)
    with pytest.raises(ValueError, match="finite"):
        attacks.membership(np.array([np.inf]), np.zeros(5), 0)


# --- authorship ----------------------------------------------------------------------

WORDS = (
    "harbour",
    "lantern",
    "meadow",
    "oyster",
    "quarry",
    "thistle",
    "velvet",
    "willow",
)


def write(generator: np.random.Generator, words: tuple[str, ...], size: int = 8) -> str:
    return " ".join(generator.choice(words, size))


def test_own_words_give_the_writer_away() -> None:
    generator = draw(30)
    own = [(f"z{i}ptk{i}x", *WORDS) for i in range(25)]
    texts = [[write(generator, words) for _ in range(8)] for words in own]
    known, unknown = [t[:5] for t in texts], [t[5:] for t in texts]
    found = attacks.authorship(known, unknown)
    assert (found.users, found.texts, found.chance) == (25, 75, 0.04)
    assert found.top1 > 0.6
    assert found.top10 >= found.top1
    assert found.top1_interval == attacks.clopper_pearson(round(found.top1 * 25), 25)
    # The right texts under the wrong names: at chance, of which 5 hits have 3e-3.
    wrong = attacks.authorship(known, [*unknown[1:], unknown[0]])
    assert wrong.top1 < 0.2


def test_texts_that_say_nothing_give_chance() -> None:
    """Not one half, not all and not none: equal cosines are ranked blindly."""
    same = [["the same text", "and another"]] * 20
    found = attacks.authorship(same, same)
    assert (found.top1, found.top10) == (0.05, 0.5)


def test_the_ranks_are_those_of_dense_cosines() -> None:
    generator = draw(31)
    texts = [[write(generator, WORDS) for _ in range(4)] for _ in range(30)]
    known, unknown = [t[:2] for t in texts], [t[2:] for t in texts]
    bank = build_bank([text for few in known for text in few])
    rows = np.zeros((60, 1 << 16))
    rows[bank.row, bank.bucket] = bank.value
    centroids = rows.reshape(30, 2, -1).mean(1)
    hits = 0
    for i, few in enumerate(unknown):
        mean = sum(_dense(text, bank.idf) for text in few)
        cosines = centroids @ mean / np.linalg.norm(centroids, axis=1)
        hits += int(cosines.argmax() == i)
    assert attacks.authorship(known, unknown).top1 == pytest.approx(hits / 30)


def test_a_long_text_does_not_outweigh_several_short_ones() -> None:
    long = " ".join(WORDS)
    found = attacks.authorship([["zebra"], [long]], [["zebra"] * 3 + [long], []])
    assert found.top1 == 1


def _dense(text: str, idf: np.ndarray) -> np.ndarray:
    one = build_bank([text])  # its own IDF is 1 throughout
    row = np.zeros(1 << 16)
    row[one.bucket] = one.value * idf[one.bucket]
    return row / np.linalg.norm(row)


def test_users_without_unknown_texts_are_candidates_only() -> None:
    known = [["alpha alpha"], ["beta beta"], ["gamma gamma"], []]
    found = attacks.authorship(known, [["alpha"], [], ["gamma", "gamma ray"], [""]])
    assert (found.users, found.texts) == (4, 4)
    assert found.top1 == pytest.approx(2 / 3)


def test_authorship_needs_two_users() -> None:
    with pytest.raises(IdiolectError, match="two users or more"):
        attacks.authorship([["a"]], [["b"]])
    with pytest.raises(IdiolectError, match="0 of them"):
        attacks.authorship([["a"], ["b"]], [[], []])
