"""Studies: the grid, what cells share, resuming, and equality with a federated run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from idiolect.common.config import METHODS, UNTRAINED, parse_run
from idiolect.common.config.keys import AFFECTS, POOL, SHARED, SOME
from idiolect.common.data.load import load_dataset
from idiolect.common.errors import IdiolectError
from idiolect.common.unlabeled.sets import Unlabeled
from idiolect.server.findings.summary import summary
from idiolect.server.study import study
from idiolect.server.study.study import (
    cell_key,
    cells,
    read_study,
    run_cell,
    run_study,
    shuffled,
    stage_key,
)
from tests.server.conftest import short_run
from tests.server.federation import results, run


def parse(values):
    """The configuration of a cell; the settings of a run name its folder too."""
    return parse_run(values)[0]


EXPERIMENTS = Path(__file__).parents[3] / "simulations" / "lamp" / "experiments"
TEXT = """
title = "A study"
[config]
backbone = "MODEL"
users = 3
development-users = 2
history = 6
held-out = 2
methods = "shared,sft,c-bpo"
"lora.rank" = 2
"lora.targets" = "q,v"
"adapt.rounds" = 1
"unlabeled.bank" = 24
"personalise.epochs" = 1
"personalise.learning-rates" = "3e-3"
"evaluate.generate" = false
"evaluate.bootstrap" = 100
[grid]
seed = [0, 1]
"unlabeled.ratio" = [1.0, 2.0]
[[claims]]
text = "more is better"
metric = "nll"
expect = "lower"
one = { "unlabeled.ratio" = 2.0 }
other = { "unlabeled.ratio" = 1.0 }
"""


@pytest.fixture
def declared(tmp_path, small_model):
    path = tmp_path / "small.toml"
    path.write_text(TEXT.replace("MODEL", small_model))
    return read_study(path)


def test_cells_are_all_combinations(declared):
    assert cells(declared) == [
        {"seed": 0, "unlabeled.ratio": 1.0},
        {"seed": 0, "unlabeled.ratio": 2.0},
        {"seed": 1, "unlabeled.ratio": 1.0},
        {"seed": 1, "unlabeled.ratio": 2.0},
    ]


def test_what_cells_share_is_computed_once(declared, tmp_path, monkeypatch):
    made: list[str] = []
    for name in ("shared_adapter", "unlabeled_set", "run_method"):
        real = getattr(study, name)

        def counted(*arguments, real=real, name=name):
            detail = arguments[4] if name == "run_method" else ""
            made.append(f"{name} {detail}".strip())
            return real(*arguments)

        monkeypatch.setattr(study, name, counted)
    done = run_study(declared, tmp_path, lambda _: None)
    assert len(done) == 4
    assert made.count("shared_adapter") == 2  # one per seed
    assert made.count("unlabeled_set") == 2
    assert made.count("run_method sft") == 2  # does not use the unlabeled set
    assert made.count("run_method shared") == 2
    assert made.count("run_method c-bpo") == 4


def test_an_interrupted_study_does_only_what_is_missing(
    declared, tmp_path, monkeypatch
):
    tmp_path.chmod(0o755)  # as a version before left it
    first = run_study(declared, tmp_path, lambda _: None)
    for path in (tmp_path, *tmp_path.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0
    files = sorted((tmp_path / "cells").iterdir())
    assert len(files) == 4
    lost = files[1].read_text()
    files[1].unlink()
    said: list[str] = []
    again = run_study(declared, tmp_path, said.append)
    assert sum("(done)" in line for line in said) == 3
    assert files[1].read_text() == lost
    assert again == first
    monkeypatch.setattr(study, "run_cell", None)
    assert run_study(declared, tmp_path, lambda _: None) == first


def test_a_cell_equals_the_federated_run(tmp_path, small_model, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    settings = short_run(tmp_path, small_model)
    federated = results(run(settings))
    here = run_cell(parse(settings), {})
    for user, methods in federated["users"].items():
        for method, metrics in methods.items():
            assert here["users"][user][method] == pytest.approx(metrics, abs=2e-4)
    assert here["run"]["learning_rates"] == federated["run"]["learning_rates"]
    assert here["run"]["alpha"] == pytest.approx(federated["run"]["alpha"], abs=1e-4)


def test_further_baselines_equal_the_federated_run(tmp_path, small_model, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    settings = short_run(tmp_path, small_model) | {
        "task": "rating",
        "methods": "shared,rag,pag,cope",
        "backbone": "tiny",
        "evaluate.generate": True,
    }
    federated = results(run(settings))
    here = run_cell(parse(settings), {})
    for user, methods in federated["users"].items():
        assert len({metrics["nll"] for metrics in methods.values()}) == 4
        for method, metrics in methods.items():
            assert here["users"][user][method] == pytest.approx(metrics, abs=2e-4)
    rates = federated["run"]["learning_rates"]
    assert here["run"]["learning_rates"] == rates and list(rates) == ["cope"]


@pytest.mark.parametrize("kind", ["self", "public", "others"])
def test_other_kinds_equal_the_federated_run(kind, tmp_path, small_model, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    settings = short_run(tmp_path, small_model) | {
        "unlabeled.kind": kind,
        "methods": "c-bpo",
        "personalise.learning-rates": "3e-3",
    }
    federated = results(run(settings))
    here = run_cell(parse(settings), {})
    for user, methods in federated["users"].items():
        assert here["users"][user]["c-bpo"] == pytest.approx(methods["c-bpo"], abs=2e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy.sampling": 0.6, "privacy.vote-sampling": 0.6, "seed": 4},
        {"adapt.clip-quantile": 0.5, "privacy.epsilon": 40.0, "adapt.rank": 1},
        {
            "unlabeled.kind": "anonymised",
            "unlabeled.buckets": 3,
            "unlabeled.support": 4,
        },
        {"unlabeled.bank-from": "shared", "unlabeled.features": "backbone"},
    ],
    ids=["coins", "clip", "anonymised", "bank"],
)
def test_private_cells_equal_the_federated_run(
    settings, tmp_path, small_model, monkeypatch
):
    """Coins, noise and what is made of them are one code; seeded, they are one result."""
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    private = {"privacy.mode": "central", "privacy.seeded": True, "privacy.delta": 1e-3}
    asked = {"methods": "shared,c-bpo", "personalise.learning-rates": "1e-3"}
    given = short_run(tmp_path, small_model) | private | asked | settings
    federated = results(run({**given, "quorum": 0.0}))
    here = run_cell(parse({**given, "quorum": 0.0}), {})
    for user, methods in federated["users"].items():
        for method, metrics in methods.items():
            assert here["users"][user][method] == pytest.approx(metrics, abs=2e-3)
    assert here["privacy"]["epsilon"] == federated["privacy"]["epsilon"]
    events = [found["privacy"]["events"] for found in (here, federated)]
    assert [e["stage"] for e in events[0]] == [e["stage"] for e in events[1]]


def test_what_one_epsilon_shares_is_computed_once_for_all_kinds(
    tmp_path, small_model, monkeypatch
):
    calls: list[int] = []
    original = study.shared_adapter

    def counted(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(study, "shared_adapter", counted)
    private = {"privacy.mode": "central", "privacy.seeded": True, "privacy.delta": 1e-3}
    given = short_run(tmp_path, small_model) | private
    given |= {"methods": "shared", "personalise.learning-rates": "1e-3"}
    memory: study.Memory = {}
    for epsilon in (8.0, 2.0):
        for kind in ("votes", "self", "public"):
            changed = {"privacy.epsilon": epsilon, "unlabeled.kind": kind}
            run_cell(parse(given | changed), memory)
    assert len(calls) == 2


def test_what_noise_is_calibrated_from_is_not_shared(
    tmp_path, small_model, monkeypatch
):
    """The adapter's noise depends on how many users vote, though its rounds do not."""
    made: list[str] = []
    for name in ("shared_adapter", "unlabeled_set"):
        original = getattr(study, name)

        def counted(*arguments, name=name, original=original):
            made.append(name)
            return original(*arguments)

        monkeypatch.setattr(study, name, counted)
    private = {"privacy.mode": "central", "privacy.seeded": True, "privacy.delta": 1e-3}
    given = short_run(tmp_path, small_model) | private
    given |= {"methods": "shared", "personalise.learning-rates": "1e-3"}
    memory: study.Memory = {}
    run_cell(parse(given), memory)
    run_cell(parse(given | {"privacy.vote-sampling": 0.5}), memory)
    run_cell(parse(given | {"adapt.rounds": 3}), memory)
    assert made == ["shared_adapter", "unlabeled_set"] * 3


def test_an_infinite_budget_can_be_written_and_read(tmp_path, small_model):
    text = TEXT.replace("MODEL", small_model).partition("[grid]")[0]
    text += '"privacy.mode" = "central"\n[grid]\n"privacy.epsilon" = [inf, 8.0]\n'
    text += '[plot]\nx = "privacy.epsilon"\nmetric = "nll"\n'
    (tmp_path / "s.toml").write_text(text)
    declared = read_study(tmp_path / "s.toml")
    done = run_study(declared, tmp_path, lambda _: None)
    assert [cell["cell"]["privacy.epsilon"] for cell in done] == [math.inf, 8.0]
    found = summary(declared, run_study(declared, tmp_path, lambda _: None))
    assert {point["x"] for point in found["curve"]} == {"inf", 8.0}
    json.dumps(found, allow_nan=False)


def test_keys_without_effect_do_not_make_another_stage():
    plain = parse({})
    other = parse({"methods": "base", "unlabeled.alpha": "0.2"})
    assert stage_key(plain, SHARED) == stage_key(other, SHARED)
    assert cell_key(plain) != cell_key(other)
    for changed in ({"seed": 1}, {"adapt.rounds": 1}, {"lora.rank": 2}, {"users": 9}):
        assert stage_key(parse(changed), SHARED) != stage_key(plain, SHARED)
    assert stage_key(parse({"unlabeled.bank": 9}), POOL) != stage_key(plain, POOL)


def matters(method, key, value):
    return stage_key(parse({key: value}), method) != stage_key(parse({}), method)


def test_each_method_depends_on_its_own_keys():
    """A key that a method uses and its row leaves out would share too much."""

    def users_of(key, value):
        return {method for method in METHODS if matters(method, key, value)}

    asked = {"rag", "pag"}
    trained = set(METHODS) - set(UNTRAINED)
    assert users_of("evaluate.retrieved", 2) == asked
    assert users_of("evaluate.contrast", 0.1) == trained
    assert users_of("personalise.epochs", 1) == trained
    assert users_of("personalise.beta", 0.1) == trained - {"sft"}
    assert users_of("unlabeled.kind", "public") == trained - {"sft", "cope"}
    assert users_of("history", 4) == set(METHODS)


# Every key that some method does not use, at another value than usual.
OTHERWISE = {
    "unlabeled.kind": "others",
    "unlabeled.ratio": 2.0,
    "unlabeled.alpha": "0.2",
    "unlabeled.alpha-features": "backbone",
    "unlabeled.alpha-items": 0,
    "personalise.epochs": 2,
    "personalise.batch": 3,
    "personalise.learning-rates": "1e-2",
    "personalise.beta": 0.3,
    "personalise.ema": 0.5,
    "personalise.boundary": "pooled",
    "personalise.reward": "token",
    "personalise.unlabeled-weight": 0.7,
    "personalise.anchor": 0.3,
    "evaluate.retrieved": 1,
    "evaluate.contrast": 2.0,
    "evaluate.contrasted": "sft,cope,kto,bco,positives,c-bpo",
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_not_use_changes_nothing(settings, method):
    def measured(changes):
        keys = {**settings, "methods": method, "evaluate.generate": True, **changes}
        return run_cell(parse(keys), {})["users"]

    unused = {
        key: value
        for key, value in OTHERWISE.items()
        if not matters(method, key, value)
    }
    assert unused
    assert measured(unused) == measured({})


def test_every_key_that_is_unused_somewhere_is_tried():
    some = {name for name, affects in AFFECTS.items() if SOME in affects}
    set_of = {name for name in some if name.startswith("unlabeled.")}
    assert some - set_of <= OTHERWISE.keys()


def test_shuffling_deals_every_item_once(settings):
    dataset = load_dataset(parse(settings))
    dealt = shuffled(dataset, 0)

    def ids(users):
        return [[item.id for item in user.history] for user in users]

    before, after = ids(dataset.users), ids(dealt.users)
    assert sorted(sum(before, [])) == sorted(sum(after, []))
    assert list(map(len, before)) == list(map(len, after))
    assert all(one != two for one, two in zip(before, after, strict=True))
    assert [u.held_out for u in dealt.users] == [u.held_out for u in dataset.users]


def test_controls_change_what_they_should(settings):
    config = parse({**settings, "methods": "shared,sft"})
    memory: dict = {}
    plain, swapped, dealt = (
        run_cell(config, memory, control)["users"]
        for control in ("none", "swapped", "shuffled")
    )
    for user, methods in plain.items():
        assert swapped[user]["shared"] == dealt[user]["shared"] == methods["shared"]
        assert swapped[user]["sft"] != methods["sft"]
        assert dealt[user]["sft"] != methods["sft"]


def test_a_user_without_neighbour_cannot_be_swapped(settings):
    config = parse({**settings, "methods": "shared", "engine.stack": 2})
    with pytest.raises(IdiolectError, match="so that none is left over"):
        run_cell(config, {}, "swapped")  # three users


def test_words_of_the_unlabeled_set_are_dealt_out_anew(settings):
    config = parse({**settings, "methods": "c-bpo", "unlabeled.kind": "public"})
    dataset = load_dataset(config)
    plain = tuple(Unlabeled(item) for item in dataset.public)
    random = study.of_random_words(plain, 0)
    known = {word for entry in plain for word in entry.item.target.split()}
    for one, two in zip(plain, random, strict=True):
        before, after = one.item.target.split(), two.item.target.split()
        assert len(before) == len(after) and set(after) <= known
        assert one.item.prompt == two.item.prompt
    assert random != plain and random == study.of_random_words(plain, 0)
    other = run_cell(config, {}, "random")["users"]
    assert all(run_cell(config, {})["users"][user] != other[user] for user in other)
    with pytest.raises(IdiolectError, match="not votes"):
        run_cell(
            replace(config, unlabeled=replace(config.unlabeled, kind="votes")),
            {},
            "random",
        )


def test_a_name_of_the_study_stands_for_config_keys(declared):
    named = {"world": {"few": {"history": 2}, "many": {"history": 5, "seed": 3}}}
    grid = {"world": ["few", "many"], "seed": [0]}
    worlds = replace(declared, named=named, grid=grid)
    found = [study.cell_config(worlds, cell) for cell in cells(worlds)]
    assert [config.history for config in found] == [2, 5]
    assert found[0].lora.rank == 2
    # The grid's own keys come later and win over what a name before them says.
    assert [config.seed for config in found] == [0, 0]


def test_a_recipe_is_chosen_on_development_users(declared, tmp_path):
    chosen = replace(declared, measured="development", grid={"seed": [0]}, claims=())
    (cell,) = run_study(chosen, tmp_path, lambda _: None)
    assert sorted(cell["users"]) == ["dev-000", "dev-001"]
    assert sorted(cell["run"]["alpha"]) == ["dev-000", "dev-001"]
    (other,) = run_study(
        replace(chosen, measured="confirmation"), tmp_path, lambda _: None
    )
    assert sorted(other["users"]) == ["persona-000", "persona-001", "persona-002"]


def test_paths_of_a_study_may_name_a_variable(monkeypatch):
    config = parse({"task": "LaMP-4", "data": "$PLACE/set", "backbone": "$PLACE/lm"})
    with pytest.raises(IdiolectError, match="set the environment variable"):
        study.located(config)
    monkeypatch.setenv("PLACE", "here")
    found = study.located(config)
    assert (found.data, found.backbone) == ("here/set", "here/lm")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('title = "A study"', "", "needs title"),
        ("[grid]", "[surplus]\n[grid]", "surplus"),
        ("history = 6", "histori = 6", "did you mean 'history'"),
        ('expect = "lower"', 'expect = "better"', "'lower' or 'higher'"),
        (
            'one = { "unlabeled.ratio" = 2.0 }',
            "one = { users = 2 }",
            "no key of the grid",
        ),
        ('ratio" = 2.0 }', 'ratio" = 7.0 }', "no cell has"),
        ("one = {", 'one = { method = "bco",', "no cell has"),
        ('metric = "nll"', "", "malformed"),
        ("seed = [0, 1]", 'control = ["swopped"]', "use any of none, swapped"),
        ("[grid]", "[grid", "is no TOML"),
        ("[grid]", "[compare]\nx = 'seed'\n[grid]", "table is malformed"),
        ("[grid]", "[[compare]]\nx = 'seed'\n[grid]", "table is malformed"),
        (
            "[grid]",
            "[[compare]]\nx='far'\none={}\nothers=[]\nmetrics=['nll']\n[grid]",
            "use one of seed, unlabeled.ratio",
        ),
        ("[grid]", '[named.world.far]\n[grid]\nworld = ["near"]', "named.world.near"),
        ("[config]", 'measured = "everybody"\n[config]', "'confirmation' or"),
        (
            "[grid]",
            """[[compare]]\nx="seed"\none={method="kto"}\nothers=[{method="sft"}]
            metrics=["nll"]\n[grid]""",
            "no cell has",
        ),
        (
            "[grid]",
            """[[compare]]\nx="seed"\none={}\nothers=[]\nmetrics=["nll"]
            margin={ nil = 0.1 }\n[grid]""",
            "margin for 'nil', which is not among its metrics: nll",
        ),
        (
            "[grid]",
            '[plot]\nx="far"\n[grid]',
            r"\[plot\] has x = 'far', which is no key",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, old, new, sentence):
    path = tmp_path / "bad.toml"
    path.write_text(TEXT.replace("MODEL", "tiny").replace(old, new))
    with pytest.raises(IdiolectError, match=sentence):
        read_study(path)


def test_those_who_are_measured_do_not_choose_the_rate(tmp_path):
    path = tmp_path / "bad.toml"
    text = TEXT.replace("MODEL", "tiny").replace('"3e-3"', '"1e-3,3e-3"')
    path.write_text(text)
    read_study(path)
    path.write_text(text.replace("[config]", 'measured = "development"\n[config]'))
    with pytest.raises(IdiolectError, match=r"give one in personalise\.learning-rates"):
        read_study(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(IdiolectError, match="cannot be read"):
        read_study(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_experiments_are_well_formed(path):
    declared = read_study(path)
    assert declared.question and declared.reading
    if declared.audit is None:
        chosen = declared.measured == "development"  # to choose, not to claim
        assert chosen or declared.claims or declared.compare
        assert declared.plot["x"] in declared.grid
    assert json.dumps(cells(declared))
