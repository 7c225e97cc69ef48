"""Pages and tables, from made-up cells whose answers are known."""

import json
from dataclasses import replace

import pytest

from idiolect.common.config import Scalar
from idiolect.server.findings.page import _alpha_table, markdown, store, write_pages
from idiolect.server.findings.summary import summary
from idiolect.server.study.declaration import Study

from .cells import CELLS, claim, study, worlds


def test_each_world_says_who_beats_whom():
    study, done = worlds()
    text = markdown(summary(study, done))
    assert "| c-bpo, by nll (lower is better) | SFT |" in text
    assert "| 1.0 (24 users) | **beats** -0.150 [" in text
    assert "| 2.0 (24 users) | **loses to** +0.300 [" in text
    assert "| 3.0 (24 users) | undecided " in text
    assert "accuracy" not in text  # no world has it


def test_a_comparison_of_fewer_users_than_the_others_of_its_row_says_so():
    study, done = worlds()
    both: list[dict[str, Scalar]] = [{"method": "sft"}, {"method": "kto"}]
    compare = replace(study.compare[0], others=both, metrics=["nll"])
    for level in done:
        for user, metrics in level["users"].items():
            metrics["kto"] = {"nll": None if user == "u00" else 3.0}
    text = markdown(summary(replace(study, compare=(compare,)), done))
    assert text.count("], 22 users |") == 3 and "], 24 users |" not in text


def test_outputs_stand_between_ceiling_and_floor_or_are_not_judged():
    study, done = worlds()
    ends = {"mean": 0.7}, {"mean": 0.34}
    names = ("ceiling", "floor")
    for place, level in enumerate(done):
        rows = {n: {"recognised-mrr": e} for n, e in zip(names, ends, strict=True)}
        gap = {"mean": 0.36, "ci95": [0.05 + 0.2 * (place > 0), 0.5]}
        level["methods"] = {"sft": {"recognised-mrr": {"mean": 0.5}}} if place else {}
        level["recognition"] = rows | {"candidates": 8, "words": 67.6}
        level["recognition"] |= {"apart": place > 0, "difference": gap}
    found = summary(study, done)
    assert {"ceiling", "floor"} <= {row["method"] for row in found["rows"]}
    text = markdown(found)
    assert "| recognised among 8 (MRR) | words | ceiling | floor |" in text
    assert "| 68 | 0.70 | 0.34 | +0.36 [+0.050, +0.500] | cannot tell authors" in text
    assert text.count("| 68 | 0.70 | 0.34 | +0.36 [+0.250, +0.500] | sft 0.50 |") == 5


def test_what_was_measured_where_and_at_which_rate():
    _, done = worlds()
    in_order = [done[i] for i in (0, 2, 4, 1, 3, 5)]  # the first key varies slowest
    grid = {"seed": [0, 1], "unlabeled.ratio": [1.0, 2.0, 3.0]}
    plot = {"x": "unlabeled.ratio", "metric": "nll", "minus": "sft"}
    study = Study("s", "t", "q", {}, grid, plot=plot)
    assert "Learning rates: c-bpo 0.003." in markdown(summary(study, in_order))
    in_order[1]["run"] |= {"learning_rates": {"c-bpo": 0.01}, "commit": "c0ffee"}
    text = markdown(summary(study, in_order))
    assert "| learning rate, by unlabeled.ratio | 1.0 | 2.0 | 3.0 |" in text
    assert "| c-bpo | 0.003 | 0.003 or 0.01 | 0.003 |" in text
    assert "Measured at commit `c0ffee`." in text


@pytest.mark.parametrize(
    ("margin", "word"), [(0.03, "undecided"), (0.05, "equals"), (0.2, "equals")]
)
def test_two_are_equal_only_where_the_whole_interval_lies_within_the_margin(
    margin, word
):
    study, done = worlds()  # in the third one the interval is [-0.04, 0.04]
    compare = replace(study.compare[0], margin={"nll": margin})
    text = markdown(summary(replace(study, compare=(compare,)), done))
    assert f"| c-bpo, by nll (lower is better; equal within {margin}) | SFT |" in text
    assert f"| 3.0 (24 users) | {word} " in text
    told_apart = "equals, just ahead" if margin > 0.15 else "**beats**"
    assert f"| 1.0 (24 users) | {told_apart} -0.150 [" in text


def test_the_pages_are_made_from_files_alone(tmp_path):
    folder = tmp_path / "findings"
    folder.mkdir()
    found = summary(study(x="unlabeled.ratio", metric="nll", minus="sft"), CELLS)
    # As version 0.1 wrote it, and as it is written now.
    (folder / "small.json").write_text(json.dumps(found))
    asked = found | {
        "title": "Who?",
        "question": "Who, and: why? More.",
        "answer": "All of them.",
    }
    (tmp_path / "summary.json").write_text(json.dumps(asked))
    store(tmp_path / "summary.json", folder, "asked")
    page = write_pages(folder)
    assert page == tmp_path / "findings.md"
    counts = "Claims: 1 confirmed"
    text = page.read_text()
    assert f"| [Why?](findings/small.md) |  | {counts} |" in text
    assert f"| [Who, and: why?](findings/asked.md) | All of them. | {counts} |" in text
    assert (
        (folder / "asked.md").read_text().startswith("# Who?\n\nWho, and: why? More.")
    )
    text = (folder / "small.md").read_text()
    assert "| text | all | nll -0.300 |" in text and "**confirmed**" in text
    assert "![Small](small.svg)" in text and "[All findings](../findings.md)" in text
    assert "-0.150 [" in text and "`unlabeled.ratio` in [1.0, 2.0]" in text
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    store(tmp_path / "summary.json", folder, "asked")
    write_pages(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_packed_summary_counts_before_an_older_one(tmp_path):
    found = summary(study(), CELLS) | {"answer": "Old."}
    (tmp_path / "small.json").write_text(json.dumps(found))
    (tmp_path / "summary.json").write_text(json.dumps(found | {"answer": "New."}))
    store(tmp_path / "summary.json", tmp_path / "folder", "small")
    (tmp_path / "small.json").rename(tmp_path / "folder" / "small.json")
    assert "New." in write_pages(tmp_path / "folder").read_text()


def test_a_claim_that_was_not_measured_does_not_stop_the_page(tmp_path):
    asked = replace(claim(), metric="recognised-mrr", text="by the judge")
    done = [{**one, "recognition": {"apart": False}} for one in CELLS]
    given = replace(study(), claims=(claim(), asked))
    found = summary(given, [{**one, "recognition": {}} for one in done])
    text = markdown(found)
    assert "| text | all | nll -0.300 |" in text
    assert (
        "| by the judge | all | recognised-mrr |  | 0 |  | **not measured**: outputs were "
        "not judged here |" in text
    )
    (tmp_path / "s.json").write_text(json.dumps(found))
    page = write_pages(tmp_path).read_text()
    assert "Claims: 1 confirmed, 1 not measured |" in page


def test_the_clamp_by_what_the_plot_varies():
    done = [{**one, "run": dict(one["run"])} for one in CELLS]
    for one, rate in zip(done, (0.1, 0.3, 0.8, 0.9), strict=True):
        one["run"]["clamp_rate"] = {"c-bpo": rate}
    plot = {"x": "unlabeled.ratio", "metric": "nll"}
    text = markdown(summary(study(**plot), done))
    assert "The clamp of c-bpo was active on 10% to 90% of steps." in text
    text = markdown(summary(study(**plot, clamp=True), done))
    assert "| clamp of c-bpo, by unlabeled.ratio | 1.0 | 2.0 |" in text
    assert "| steps it acts on | 20% | 85% |" in text


def test_counts_of_verdicts_are_those_of_the_tables(tmp_path):
    study, done = worlds()
    compare = replace(study.compare[0], margin={"nll": 0.05})
    found = summary(replace(study, compare=(compare,)), done)
    (tmp_path / "s.json").write_text(json.dumps(found))
    page = write_pages(tmp_path).read_text()
    assert "Comparisons: 1 beats, 1 loses to, 1 equals |" in page


def test_a_study_without_plot_is_a_table_of_claims():
    found = summary(study(), CELLS)
    assert found["curve"] == []
    assert "verdict" in markdown(found)


def test_the_alpha_table_has_a_row_for_what_differs_in_its_seed_alone():
    cells = [(1.0, 0), (1.0, 1), (2.0, 0)]
    entries = [
        {
            "cell": {"unlabeled.ratio": ratio, "seed": seed},
            "n": 24,
            "rank_correlation": 0.5 + seed / 4,
            "error": 0.1 + seed / 10,
        }
        for ratio, seed in cells
    ]
    text = "\n".join(_alpha_table(entries))
    assert "| ratio 1.0 | 24 | 0.50, 0.75 | 0.15 |" in text
    assert "| ratio 2.0 | 24 | 0.50 | 0.10 |" in text
    assert _alpha_table([]) == []


def test_retrieval_without_room_is_not_measured():
    """At identical prompts RAG is the shared model: that is no result of RAG."""
    study, done = worlds()
    others: list[dict[str, Scalar]] = [{"method": "rag"}, {"method": "shared"}]
    compare = replace(study.compare[0], others=others, metrics=["nll"])
    plot = {"x": "unlabeled.ratio", "metric": "nll", "minus": "shared"}
    for level in done:
        room = level["cell"]["unlabeled.ratio"] > 1.0
        level["run"]["shortened"] = [0 if room else 9, 10]
        for number, metrics in enumerate(level["users"].values()):
            metrics["shared"] = {"nll": 2.0}
            # Rounding apart; and where there is room, for one user of all.
            other = 1.5 if room and number == 3 else 2.0 + 1e-8
            metrics["rag"] = {"nll": other}
    found = summary(replace(study, compare=(compare,), plot=plot), done)
    points = {(point["line"], point["x"]) for point in found["curve"]}
    assert ("rag", 2.0) in points and ("rag", 1.0) not in points
    assert ("c-bpo", 1.0) in points
    worlds_of = [e["x"] for e in found["compare"] if e["other"] == "rag"]
    assert worlds_of == ["2.0", "3.0"]
    text = markdown(found)
    assert "**`rag` is not measured** in 2 cells (" in text
    assert "to fit the context: 0% to 90% of a cell's" in text


def test_a_point_has_the_median_user():
    study, done = worlds()
    plot = {"x": "unlabeled.ratio", "metric": "nll", "minus": "sft"}
    (point,) = (
        point
        for point in summary(replace(study, plot=plot), done)["curve"]
        if point["x"] == 1.0
    )
    assert point["mean"] == pytest.approx(-0.15)
    assert point["median"] == pytest.approx(-0.15)
