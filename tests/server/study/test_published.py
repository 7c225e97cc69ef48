"""Published numbers of a study: what is read, and when two settings are the same."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from idiolect.common.config import flatten, parse
from idiolect.common.data.types import STAND_IN
from idiolect.common.errors import IdiolectError
from idiolect.server.study.declaration import cell_config, cells, read_study, with_keys
from idiolect.server.study.published import (
    Published,
    agreement,
    depends_on,
    read_published,
)

from .conftest import TEXT
from .test_declaration import EXPERIMENTS

NUMBERS = [{"cell": {"seed": 0}, "metric": "nll", "values": {"sft": 1.5}}]
WHOLE = {"source": "A paper.", "numbers": NUMBERS}
CONFIG = parse({"task": "LaMP-4", "data": "x/data", "backbone": "/models/Large-7B"})
CELL = {"parameters": 7, "texts": "abc", "users": ["ann", "bob"]}


def everything(method: str) -> Published:
    """A source that states all that a method's numbers depend on, as `CONFIG` has it."""
    known = {**flatten(CONFIG), "parameters": 7, "texts": "abc"}
    setting = {name: known[name] for name in depends_on(method, CONFIG)}
    return Published("", (), setting | {"backbone": "Large-7B"})


@pytest.mark.parametrize("method", ["base", "sft", "c-bpo"])
def test_only_what_is_stated_and_equal_is_the_same(method):
    source = everything(method)
    assert agreement(source, method, CONFIG, CELL).same
    for name in source.setting:
        less = {k: v for k, v in source.setting.items() if k != name}
        found = agreement(replace(source, setting=less), method, CONFIG, CELL)
        assert not found.same and found.silent == (name,)
        unsaid = {**source.setting, name: "not stated"}
        found = agreement(replace(source, setting=unsaid), method, CONFIG, CELL)
        assert not found.same and found.open == (name,)
        other = {**source.setting, name: "something else"}
        found = agreement(replace(source, setting=other), method, CONFIG, CELL)
        assert not found.same and found.differ == (name,)


def test_a_random_model_under_the_right_name_is_told_by_its_size():
    found = agreement(everything("sft"), "sft", CONFIG, {**CELL, "parameters": 6})
    assert found.differ == ("parameters",)


def test_a_cell_that_did_not_record_its_model_is_not_the_same():
    old = {"users": ["ann"]}
    found = agreement(everything("sft"), "sft", CONFIG, old)
    assert not found.same and found.open == ("parameters", "texts")


def test_invented_users_are_never_in_the_same_setting():
    """Even where every key, the size of the model and the hash of the texts agree."""
    invented = {**CELL, "users": ["ann", f"{STAND_IN}001"]}
    found = agreement(everything("sft"), "sft", CONFIG, invented)
    assert found.invented and not found.same and not found.differ


def test_what_does_nothing_is_not_asked_for():
    base, own = (depends_on(method, CONFIG) for method in ("base", "sft"))
    assert "lora.rank" in own and "lora.rank" not in base
    assert "history" in own and "personalise.epochs" in own
    assert not [name for name in own if name.startswith(("persona.", "privacy.eps"))]
    personas = depends_on("sft", parse({"privacy.mode": "central"}))
    assert {"persona.overlap", "privacy.epsilon"} <= {*personas}


def test_rates_are_compared_as_numbers_and_may_be_stated_for_one_method():
    source = everything("sft")
    config = parse({**flatten(CONFIG), "personalise.learning-rates": "0.000001"})
    own = {"sft": {"personalise.learning-rates": "1e-6"}}
    assert agreement(replace(source, own=own), "sft", config, CELL).same
    other = replace(source, own={"bco": own["sft"]})
    found = agreement(other, "sft", config, CELL)
    assert found.differ == ("personalise.learning-rates",)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"numbers": None}, "needs source and"),
        ({"page": 3}, "needs source and"),
        ({"setting": 3}, "needs source and"),
        ({"numbers": [{"cell": {}}]}, "table is malformed"),
        ({"numbers": [{**NUMBERS[0], "values": {"sfd": 1}}]}, "the method 'sfd'"),
        ({"numbers": [{**NUMBERS[0], "values": {"sft": "1"}}]}, "write a number"),
        ({"setting": {"usres": 3}}, "did you mean 'users'"),
        ({"setting": {"users": 0}}, "must lie in"),
        ({"setting": {"lora": {"rank": 8}}}, "quotes around a key that has a dot"),
        ({"setting": {"data": "LaMP-4"}}, "does not say which texts"),
        ({"setting": {"sft": {"data": "LaMP-4"}}}, "does not say which texts"),
    ],
)
def test_mistakes_in_what_was_published_are_one_sentence(changed, sentence):
    with pytest.raises(IdiolectError, match=sentence):
        read_published({**WHOLE, **changed})


@pytest.mark.parametrize("cell", ["{ users = 3 }", "{ seed = 7 }"])
def test_published_numbers_are_for_cells_that_there_are(tmp_path, cell):
    text = TEXT.replace("MODEL", "tiny") + '[published]\nsource = "x"\n'
    text += (
        f'[[published.numbers]]\ncell = {cell}\nmetric = "nll"\nvalues = {{sft = 1}}'
    )
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(
        IdiolectError, match="name a key of the grid and one of its val"
    ):
        read_study(tmp_path / "s.toml")


# --- keys of the command line -----------------------------------------------------------


def test_a_key_of_the_command_line_is_in_all_cells_and_wins_over_names():
    study = read_study(EXPERIMENTS / "paper.toml")
    given = ["users=2", "backbone=tiny", "max-length=512", "engine.dtype=float32"]
    changed = with_keys(study, given)
    for cell in cells(changed):
        config = cell_config(changed, cell)
        assert (config.users, config.backbone, config.engine.max_length) == (
            2,
            "tiny",
            512,
        )
    assert changed.name == "paper-changed"
    assert changed.changed["engine.max-length"] == 512
    assert with_keys(study, []) is study


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("users", "-c takes key=value, not 'users'"),
        ("usres=2", "did you mean 'users'"),
        ("users=none", "takes a whole number"),
        ("seed=1", "-c seed is a key of its grid"),
        ("dataset=LaMP-4", "-c dataset is a key of its grid"),
        ("personalise.learning-rates=1e-3", "rates=chosen are the same"),
    ],
)
def test_a_key_that_cannot_be_changed_is_one_sentence(word, sentence):
    study = read_study(EXPERIMENTS / "paper.toml")
    with pytest.raises(IdiolectError, match=sentence):
        with_keys(study, [word])


def test_an_audit_has_no_keys():
    with pytest.raises(IdiolectError, match="leave out -c"):
        with_keys(read_study(EXPERIMENTS / "audit.toml"), ["users=2"])


# --- the study of the paper's table ------------------------------------------------------


def test_the_papers_table_is_as_the_notes_on_it_have_it():
    """Against the table of the notes, where they are."""
    notes = Path(__file__).parents[4] / "shared" / "reference" / "method.md"
    if not notes.is_file():
        pytest.skip("the notes are not here")
    rows = re.findall(r"^\| (?:LaMP|LongLaMP).*\|$", notes.read_text(), re.MULTILINE)
    methods = ("base", "sft", "cope", "bco", "c-bpo")
    study = read_study(EXPERIMENTS / "paper.toml")
    assert study.published and len(rows) == 5
    found = {
        (one.cell["dataset"], one.metric): one.values for one in study.published.numbers
    }
    for row in rows:
        name, *values = [part.strip() for part in row.strip("|").split("|")]
        first, *_, last = name.split()
        task = first if first.startswith("LaMP-") else last
        for method, value in zip(methods, values, strict=True):
            both = [float(part) for part in re.findall(r"\.\d+", value)]
            for metric, number in zip(("rouge-1", "rouge-l"), both, strict=True):
                assert found[task, metric][method] == number


def test_no_real_run_of_the_papers_table_is_called_the_same():
    """The notes do not say who was measured, on which texts and with what seed."""
    study = read_study(EXPERIMENTS / "paper.toml")
    measured = {"parameters": 7248023552, "texts": "abc", "users": ["ann"]}
    assert study.published
    for cell in cells(study):
        config = cell_config(study, cell)
        for method in config.method_list:
            found = agreement(study.published, method, config, measured)
            assert not found.same and not found.invented
            assert {"texts", "users", "history"} <= {*found.open}
            rated = method in ("bco", "c-bpo") and cell["rates"] == "chosen"
            assert found.differ == ("personalise.learning-rates",) * rated
