"""The table "our numbers beside the published ones", from made-up cells."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest

from idiolect.common.config import flatten, parse
from idiolect.server.findings.page import markdown
from idiolect.server.findings.published import same
from idiolect.server.findings.summary import summary
from idiolect.server.report import study as report
from idiolect.server.report.page import html
from idiolect.server.study.published import Numbers, Published, depends_on

from .cells import CELLS, study

CONFIG = {"task": "LaMP-4", "data": "x", "backbone": "$M/Large-7B"}


def whole(**changes) -> Published:
    """A source that states all that the first cell of sft depends on."""
    config = parse(CONFIG)
    known = {**flatten(config), "parameters": 7, "texts": "abc"}
    setting = {name: known[name] for name in depends_on("sft", config)} | changes
    numbers = (Numbers({"unlabeled.ratio": 1.0}, "nll", {"sft": 1.25, "kto": 1.5}),)
    return Published("A paper, second-hand.", numbers, setting)


def found(source: Published, changed=(), **run) -> dict:
    """The summary of the made-up study, of one seed, beside a source."""
    declared = replace(study(), config=CONFIG, published=source, claims=())
    declared = replace(declared, changed=dict.fromkeys(changed, 1))
    declared = replace(declared, grid={**declared.grid, "seed": [0]})
    done = deepcopy([cell for cell in CELLS if cell["cell"]["seed"] == 0])
    for cell in done:
        cell["run"] |= {"task": "LaMP-4", "parameters": 7, "texts": "abc", **run}
        cell["methods"] = {"sft": {}, "c-bpo": {}}
    return summary(declared, done)


def rows(text: str) -> list[str]:
    """The lines of the table under the heading."""
    part = text.partition("beside the published")[2].partition("| setting of")[0]
    return [line for line in part.splitlines() if line.startswith("| ")][2:]


def test_a_row_has_both_numbers_and_says_yes_only_where_all_agrees():
    sft, bpo, kto = rows(markdown(found(whole())))
    mean = sum(u["sft"]["nll"] for u in CELLS[0]["users"].values()) / 12
    assert sft.startswith(f"| sft | {mean:.3f} [")
    assert sft.endswith(", 12 users | 1.250 | yes |")
    # Nobody published this one, so there is nothing to agree with.
    assert bpo.startswith("| c-bpo | ") and bpo.endswith(" | none |  |")
    assert kto.startswith("| kto | not measured | 1.500 | ") and "yes" not in kto


@pytest.mark.parametrize(
    ("changes", "run", "said"),
    [
        ({"users": 100}, {}, "no: `users`"),
        ({"lora.rank": 4, "seed": 3}, {}, "no: `seed`, `lora.rank`"),
        ({"users": "not stated"}, {}, "not stated: `users`"),
        ({}, {"parameters": 8}, "no: `parameters`"),
        ({}, {"texts": None}, "not stated: `texts`"),
        ({"backbone": "Small-1B", "history": "not stated"}, {}, None),
    ],
)
def test_the_last_column_names_what_differs_and_what_is_not_stated(changes, run, said):
    said = said or "no: `backbone`; not stated: `history`"
    assert rows(markdown(found(whole(**changes), **run)))[0].endswith(f" | {said} |")


def test_what_nobody_states_is_counted_and_listed():
    source = whole()
    some = dict(list(source.setting.items())[:-2])
    silent = [name for name in source.setting if name not in some]
    text = markdown(found(replace(source, setting=some)))
    assert "not stated: 2 keys |" in rows(text)[0]
    assert f"Not stated either: `{silent[0]}`, `{silent[1]}`" in text
    # One that a command line changed has its name in every row.
    text = markdown(found(replace(source, setting=some), changed=silent[:1]))
    assert f"not stated: `{silent[0]}` and 1 more |" in rows(text)[0]


def test_the_page_says_whose_numbers_they_are_and_that_stand_ins_are_no_match():
    made = found(whole())
    text = markdown(made)
    assert "Published: A paper, second-hand." in text and "Stand-in" not in text
    for row in made["published"]["tables"][0]["rows"]:
        row["invented"] = True
    made["published"]["invented"] = True
    text = markdown(made)
    # Before any number.
    head, _, rest = text.partition("**Stand-in data.**")
    assert head == "# Small\n\n" and "Setting:" in rest
    assert "Stand-in data." in html(report.page(made)).partition("<table")[0]
    assert rows(text)[0].endswith(" | no: stand-in data |")


def test_invented_users_are_found_in_the_cells():
    declared = replace(study(), config=CONFIG, published=whole(), claims=())
    declared = replace(declared, grid={**declared.grid, "seed": [0]})
    done = deepcopy([cell for cell in CELLS if cell["cell"]["seed"] == 0])
    for cell in done:
        cell["run"] |= {"task": "LaMP-4", "parameters": 7, "texts": "abc"}
        cell["methods"] = {"sft": {}}
        cell["users"] = {f"stand-in-{u}": found for u, found in cell["users"].items()}
        cell["run"]["overlap"] = {}
    made = summary(declared, done)
    row = made["published"]["tables"][0]["rows"][0]
    assert same(row) == "no: stand-in data"
    assert "**Stand-in data.**" in markdown(made)


def test_seeds_of_real_users_count_once():
    declared = replace(study(), config=CONFIG, published=whole(), claims=())
    done = deepcopy(CELLS)
    for cell in done:
        cell["run"] |= {"task": "LaMP-4", "parameters": 7, "texts": "abc"}
    row = summary(declared, done)["published"]["tables"][0]["rows"][0]
    assert row["ours"]["nll"]["n"] == 12
    assert row["differ"] == ["seed"]  # one of them has another


def test_the_report_has_the_table_and_what_was_changed():
    made = json.loads(json.dumps(found(whole(users=100))))
    made |= {"changed": {"users": 40}, "declared": "small", "name": "small-changed"}
    text = html(report.page(made))
    assert "Our numbers beside the published ones" in text and "no: users" in text
    assert "experiments/small.toml -c users=40" in text
    assert "`users=40`, by `-c`" in markdown(made)
    # A result file of an earlier version has neither.
    for name in ("changed", "declared", "published"):
        del made[name]
    assert "beside the published" not in markdown(made) + html(report.page(made))
