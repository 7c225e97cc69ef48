"""The graph: the design's vector and thresholds, symmetry, and the odds that it fails."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.common.secure import neighbours as nb


def test_the_vector_of_the_design() -> None:
    assert nb.beside(bytes(32), 64, 300)[0][:4].tolist() == [158, 292, 214, 143]


@settings(max_examples=12, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.integers(3, 400) | st.sampled_from([129, 130, 255, 256]),
)
def test_the_graph_is_symmetric_and_holders_include_neighbours(
    plan: bytes, n: int
) -> None:
    graph = nb.graph(plan, n)
    for lists in (graph.masks, graph.holders):
        assert len(lists) == n
        for i, others in enumerate(lists):
            assert list(others) == sorted(set(others)) and i not in others
            assert all(i in lists[j] for j in others)
    for masks, holders in zip(graph.masks, graph.holders, strict=True):
        assert set(masks) <= set(holders) and len(holders) < 256
    assert graph == nb.graph(plan, n)
    complete = tuple(tuple(j for j in range(n) if j != i) for i in range(n))
    assert (graph.masks == complete) == (n <= 129)
    assert graph.holders == complete or n > 255


def test_another_plan_has_another_graph() -> None:
    assert nb.graph(bytes(32), 200).masks != nb.graph(bytes([1]) * 32, 200).masks


@pytest.mark.parametrize(
    ("n", "degree", "k", "t", "m", "signers"),
    [
        (10, 9, 9, 4, 1, 6),
        (100, 99, 99, 40, 1, 56),
        (256, 90, 149, 60, 32, 141),
        (1_000, 111, 210, 85, 39, 551),
        (10_000, 122, 242, 97, 43, 5501),
    ],
)
def test_the_thresholds_of_the_design(
    n: int, degree: int, k: int, t: int, m: int, signers: int
) -> None:
    assert nb.threshold(k) == t
    assert nb.fewest_neighbours(n, degree) == m
    assert nb.signers(n, nb.colluding(0.1, n)) == signers


def test_the_degrees_of_the_design_are_those_of_one_draw() -> None:
    for n, degree, k in ((256, 90, 149), (1_000, 111, 210)):
        graph = nb.graph(bytes(32), n)
        assert abs(min(map(len, graph.masks)) - degree) <= 4
        assert abs(min(map(len, graph.holders)) - k) <= 4


@pytest.mark.parametrize(
    ("n", "degree", "k", "unopened", "uncounted", "exposed", "isolated"),
    [
        (256, 90, 149, (-200, -44), (-42, -22), (-math.inf, -math.inf), -155),
        (1_000, 111, 210, (-52, -25), (-33, -17), (-150, -38), -137),
        (10_000, 122, 242, (-45, -20), (-29, -14), (-104, -28), -135),
    ],
)
def test_the_odds_of_the_design(
    n: int,
    degree: int,
    k: int,
    unopened: tuple[float, float],
    uncounted: tuple[float, float],
    exposed: tuple[float, float],
    isolated: float,
) -> None:
    for missing, opens, counts in zip((1 / 3, 0.4), unopened, uncounted, strict=True):
        odds = nb.odds(n, degree, k, round(missing * n), n // 10)
        assert odds.unopened < -200 if opens == -200 else abs(odds.unopened - opens) < 1
        assert abs(odds.uncounted - counts) < 1
    for share, most in zip((0.1, 0.2), exposed, strict=True):
        odds = nb.odds(n, degree, k, n // 3, int(share * n))
        assert odds.exposed == most or abs(odds.exposed - most) < 1
    assert abs(nb.odds(n, degree, k, n // 3, n // 10).isolated - isolated) < 1


def test_a_small_cohort_never_fails_with_a_third_missing() -> None:
    for n in (10, 100):
        odds = nb.odds(n, n - 1, n - 1, n // 3, n // 10)
        assert odds.unopened == odds.exposed == odds.isolated == -math.inf


def test_the_tail_is_that_of_scipy() -> None:
    from scipy.stats import hypergeom

    for case in (
        (99, 33, 40, 20),
        (50, 10, 20, 0),
        (50, 10, 20, 11),
        (999, 400, 210, 126),
    ):
        n, marked, drawn, least = case
        expected = hypergeom.sf(least - 1, n, marked, drawn)
        assert math.isclose(2 ** nb.tail(*case), expected, rel_tol=1e-6, abs_tol=1e-300)


@given(st.integers(3, 3000), st.floats(0, 0.4))
def test_two_lists_would_need_an_honest_member_to_sign_twice(
    n: int, share: float
) -> None:
    corrupt = nb.colluding(share, n)
    needed = nb.signers(n, corrupt)
    # Corrupt members sign both, each honest one signs one.
    assert 2 * needed > n - corrupt + 2 * corrupt
    assert needed <= math.ceil(n * (1 + share) / 2) + 1


@pytest.mark.parametrize(
    ("members", "quorum", "least"),
    [(10, 0.6, 6), (1_000, 0.6, 600), (150, 0.7, 105), (5, 0.1, 3), (100, 0.29, 29)],
)
def test_how_many_reports_a_sum_needs(members: int, quorum: float, least: int) -> None:
    assert nb.required(members, quorum) == least


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(IdiolectError, match="2 members hides nobody: ask at least 3"):
        nb.graph(bytes(32), 2)
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(IdiolectError, match="a colluding share of"):
            nb.colluding(share, 10)
