"""From which value on a method is better."""

from typing import Any

import pytest
from scipy.stats import t

from idiolect.server.findings.smallest import corrected, helps_from, sentences

N = 24


def entry(x: float, mean: float, half: float = 0.1, expect: str = "lower", **more):
    return {
        "x": str(x),
        "mean": mean,
        "ci95": [mean - half, mean + half],
        "n": N,
        "expect": expect,
        **more,
    }


def test_the_interval_of_one_is_students_and_that_of_five_is_wider():
    error = 0.1 / 1.959964 * (N / (N - 1)) ** 0.5
    low, high = corrected(entry(2, -1.0), 1)
    assert high - low == pytest.approx(2 * error * t.isf(0.025, N - 1), rel=1e-6)
    low, high = corrected(entry(2, -1.0), 5)
    assert high - low == pytest.approx(2 * error * t.isf(0.005, N - 1), rel=1e-6)
    assert (low + high) / 2 == pytest.approx(-1.0)


def test_it_helps_from_where_no_larger_value_fails():
    clear, unclear = -0.2, -0.05
    gains = {2: clear, 4: unclear, 8: clear, 16: clear, 32: clear}
    assert helps_from([entry(x, mean) for x, mean in gains.items()]) == 8
    # By number, not by the order of words or of the file.
    assert helps_from([entry(x, m) for x, m in sorted(gains.items(), key=str)]) == 8
    assert helps_from([entry(x, clear) for x in gains]) == 2
    assert helps_from([entry(x, unclear) for x in gains]) is None
    assert helps_from([entry(x, clear) for x in (2, 4)] + [entry(8, unclear)]) is None


def test_harm_is_no_help_whatever_the_metric_wants():
    assert helps_from([entry(2, 0.2)]) is None
    assert helps_from([entry(2, 0.2, expect="higher")]) == 2
    assert helps_from([entry(2, -0.2, expect="higher")]) is None


def test_what_one_value_shows_five_may_not():
    just = entry(2, -0.11)  # its own interval excludes zero
    assert helps_from([just]) == 2
    assert helps_from([just, *(entry(x, -1.0) for x in (4, 8, 16, 32))]) == 4


def test_the_sentence_names_every_method():
    named: dict[str, Any] = {
        "smallest": "personalise.items",
        "metric": "nll",
        "other": "the shared model",
    }
    some = [
        entry(x, mean, one=name, **named)
        for name, gains in {"SFT": (-0.01, -0.5), "KTO": (0.3, 0.3)}.items()
        for x, mean in zip((2, 16), gains, strict=True)
    ]
    unasked = entry(4, -0.5, one="BCO", metric="nll", other="the shared model")
    (said,) = sentences([*some, unasked])
    assert (
        "**From which `personalise.items` on?** By nll, better than the shared" in said
    )
    assert "SFT from 16 on, KTO at none. Measured at 2, 16." in said
    assert sentences([unasked]) == []
