"""The judge tells authors apart where they write differently, and says so where not."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from idiolect.common.config import parse_run
from idiolect.common.data.types import Item, Prompt, User
from idiolect.server.study import judge
from idiolect.server.study.cache import Cache
from idiolect.server.study.cells import run_cell
from idiolect.server.study.judge import (
    calibrate,
    fit,
    judged,
    profiles,
    rank,
    scores,
)
from tests.server.conftest import short_run

NOUNS = ("sea", "city", "senate", "school", "river", "bank", "film", "law")
ENDS = ("!", "?", ".", "…", " (again)", "", " — now", ": why")


def author(number: int, alike: bool = False, items: int = 12) -> User:
    """Everybody writes about the same things; frame and mark are the author's own."""
    rng = np.random.default_rng(number)
    place = rng.integers(8, size=2) if not alike else None
    texts: list[str] = []
    for _ in range(items):
        end, frame = rng.integers(8, size=2) if place is None else place
        one, other = rng.choice(NOUNS, 2, replace=False)
        text = ("{} and {}", "How the {} met a {}", "A {}, the {}", "{}: {}")[frame % 4]
        text = text.format(one, other) + ENDS[end]
        texts.append(text.upper() if frame > 6 else text.title() if frame > 3 else text)
    found = [Item(str(i), Prompt("", "x"), text) for i, text in enumerate(texts)]
    return User(f"u{number}", tuple(found[:-4]), tuple(found[-4:]))


def people(alike: bool = False) -> tuple[list[User], list[User]]:
    made = [author(number, alike) for number in range(24)]
    return made[:14], made[14:]


@pytest.mark.parametrize(
    ("values", "right"), [((3.0, 1.0, 2.0, 5.0, 0.0), 2), ((1.0, 1.0, 1.0, 2.0), 0)]
)
def test_a_rank_is_the_mean_over_all_draws_of_candidates(values, right):
    points = np.array(values)
    others = [points[i] for i in range(len(points)) if i != right]
    expected = []
    for drawn in combinations(others, 2):
        above = sum(other > points[right] for other in drawn)
        tied = sum(other == points[right] for other in drawn)
        places = [above + 1 + t for t in range(tied + 1)]
        first = np.mean([place == 1 for place in places])
        expected.append((first, np.mean([1 / place for place in places])))
    found = rank(points, right, 3)
    first, reciprocal = np.mean(expected, axis=0)
    assert found["recognised"] == pytest.approx(first)
    assert found["recognised-mrr"] == pytest.approx(reciprocal)


def test_authors_who_write_differently_are_told_apart():
    users, others = people()
    found = calibrate(users, others, 0)
    assert found is not None and found.section["apart"]
    assert found.section["ceiling"]["recognised"]["mean"] > 0.6
    # Whoever it is: strangers' texts are as likely any candidate's.
    assert found.section["floor"]["recognised"]["mean"] == pytest.approx(1 / 8)


def test_authors_who_write_alike_are_not_and_no_output_is_judged():
    users, others = people(alike=True)
    found = calibrate(users, others, 0)
    assert found is not None and not found.section["apart"]
    outputs = {user.id: [item.target for item in user.held_out] for user in users}
    values = judged(found, outputs)
    assert all(row == {"content": pytest.approx(1)} for row in values.values())


def test_own_texts_reach_the_ceiling_and_a_neighbours_do_not():
    users, others = people()
    found = calibrate(users, others, 0)
    assert found is not None
    texts = {user.id: [item.target for item in user.held_out] for user in users}
    own = judged(found, texts)
    for metric in ("recognised", "recognised-mrr"):
        mean = np.mean([row[metric] for row in own.values()])
        assert mean == pytest.approx(found.section["ceiling"][metric]["mean"])
    swapped = dict(zip(texts, [*list(texts.values())[1:], texts["u0"]], strict=True))
    theirs = judged(found, swapped)
    assert np.mean([row["recognised"] for row in theirs.values()]) < 1 / 8
    few = judged(found, {"u3": texts["u3"]})
    assert few == {"u3": own["u3"]}


def test_the_judge_is_fitted_on_others_alone():
    users, others = people()
    fitted = fit([[item.target for item in u.history] for u in others], 4, 0)
    questioned = [[item.target for item in u.held_out] for u in users]
    known = [[item.target for item in u.history] for u in users]
    calibration = calibrate(users, others, 0)
    assert calibration is not None
    assert np.array_equal(calibration.judge.weights, fitted.weights)
    found = scores(fitted, questioned, profiles(fitted, known))
    assert found.shape == (14, 14)
    own = np.diag(found).mean()
    assert own > (found.sum() - np.trace(found)) / (14 * 13)


def test_histories_are_read_once_however_many_methods_are_judged(monkeypatch):
    users, others = people()
    found = calibrate(users, others, 0)
    assert found is not None
    read: list[tuple[str, ...]] = []
    features = judge.features
    monkeypatch.setattr(
        judge, "features", lambda texts: read.append(tuple(texts)) or features(texts)
    )
    outputs = {user.id: [item.target for item in user.held_out] for user in users}
    judged(found, outputs)
    judged(found, {"u3": outputs["u3"]})
    assert read == [*map(tuple, outputs.values()), tuple(outputs["u3"])]


def test_too_few_people_have_no_judge():
    users, others = people()
    assert calibrate(users[:7], others, 0) is None
    assert calibrate(users, others[:3], 0) is None


@pytest.mark.slow
def test_a_cell_that_writes_texts_says_who_is_recognised(
    tmp_path: Path, small_model: str
):
    given = short_run(tmp_path, small_model)
    given |= {"users": 8, "development-users": 4, "methods": "shared,sft"}
    given |= {"evaluate.generate": True, "personalise.learning-rates": "1e-3"}
    found = run_cell(parse_run(given)[0], Cache())
    section = found["recognition"]
    assert section["candidates"] == 8 and section["authors"] == 4
    assert {"ceiling", "floor", "difference", "apart"} <= section.keys()
    for method in ("shared", "sft"):
        assert "content" in found["methods"][method]
        assert ("recognised" in found["methods"][method]) == section["apart"]
    few = run_cell(parse_run(given | {"users": 7})[0], Cache())
    assert "recognition" not in few
    assert "content" not in few["methods"]["sft"]
