"""Every wrong config is one sentence that names the key and what is allowed."""

import math
import re
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common import config
from idiolect.common.config import (
    ALPHA_ESTIMATES,
    ALPHA_EXACT,
    Config,
    page,
    parse,
    parse_word,
    presets,
)
from idiolect.common.errors import IdiolectError


def test_nothing_given_is_the_default() -> None:
    assert parse({}) == Config()
    assert parse(config.defaults()) == Config()


def test_sections_and_dashes() -> None:
    parsed = parse({"adapt.learning-rate": 0.5, "skip-bad-users": True, "users": 3})
    assert parsed.adapt.learning_rate == 0.5
    assert parsed.skip_bad_users is True
    assert parsed.users == 3
    assert parsed.adapt.rounds == Config().adapt.rounds


def test_a_whole_number_may_stand_for_a_float() -> None:
    value = parse({"personalise.beta": 2}).personalise.beta
    assert value == 2.0
    assert type(value) is float


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"user": 3}, "unknown config key 'user': did you mean 'users'?"),
        ({"adapt.round": 3}, "did you mean 'adapt.rounds'?"),
        ({"zzzz": 1}, "see docs/configuration.md"),
        ({"users": "3"}, "'users' takes a whole number, not '3'"),
        ({"users": True}, "'users' takes a whole number, not True"),
        ({"users": 2.0}, "'users' takes a whole number"),
        ({"skip-bad-users": 1}, "'skip-bad-users' takes true or false"),
        ({"task": 3}, "'task' takes text"),
        ({"task": "LaMP-9"}, "use one of headline, tagging"),
        ({"users": 0}, "'users' is 0: it must lie in [1, 1e+07]"),
        ({"quorum": 1.5}, "[0, 1]"),
        ({"quorum": float("nan")}, "'quorum'"),
        ({"adapt.clip": float("inf")}, "'adapt.clip'"),
        ({"methods": "base,cbpo"}, "names 'cbpo'"),
        ({"methods": " , "}, "'methods' is empty"),
        ({"evaluate.contrasted": "sft,rag"}, "'evaluate.contrasted' names 'rag'"),
        ({"personalise.learning-rates": "1e-3,fast"}, "1e-3,3e-3"),
        ({"personalise.learning-rates": ""}, "positive numbers"),
        ({"personalise.learning-rates": "-1"}, "positive numbers"),
        ({"personalise.learning-rates": "nan"}, "positive numbers"),
        ({"engine.device": "cuda:N"}, "use one of auto, cpu, cuda, cuda:N"),
        ({"engine.device": "cuda:1\n"}, "use one of auto, cpu, cuda, cuda:N"),
        ({"unlabeled.alpha": "much"}, "`true-mean`, or a number in [0, 0.99]"),
        ({"unlabeled.alpha": "0.995"}, "[0, 0.99]"),
        (
            {"personalise.strength": "strong"},
            "`fitted`, `crossed` or a number in [0, 4]",
        ),
        ({"personalise.strength": "nan"}, "`fitted`, `crossed` or a number in [0, 4]"),
        ({"personalise.strength": "4.5"}, "[0, 4]"),
        (
            {"development-users": 0, "personalise.learning-rates": "1e-3,3e-3"},
            "one is chosen on development users; set one rate",
        ),
        (
            {
                "development-users": 0,
                "personalise.learning-rates": "1e-3",
                "adapt.users": "development",
            },
            "set development-users, or adapt.users=all",
        ),
    ],
)
def test_errors_name_the_key_and_the_cure(values: dict[str, Any], said: str) -> None:
    with pytest.raises(IdiolectError) as raised:
        parse(values)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("users", "7", 7),
        ("adapt.learning-rate", "1e-3", 1e-3),
        ("adapt.learning-rate", "1", 1.0),
        ("skip-bad-users", "True", True),
        ("skip-bad-users", "false", False),
        ("backbone", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("adapt.wire", "int8", "int8"),
        ("data", "a b='c'", "a b='c'"),
    ],
)
def test_words_need_no_quotes(name: str, text: str, value: object) -> None:
    typed = parse_word(name, text)
    assert typed == value
    assert type(typed) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("users", "many"), ("users", "1.5"), ("skip-bad-users", "yes"), ("usres", "1")],
)
def test_wrong_words(name: str, text: str) -> None:
    with pytest.raises(IdiolectError, match=name):
        parse_word(name, text)


def test_lists_inside_strings() -> None:
    parsed = parse(
        {"methods": "sft, c-bpo,", "personalise.learning-rates": "1e-3 , 2e-3"}
    )
    assert parsed.method_list == ("sft", "c-bpo")
    assert parsed.learning_rate_list == (1e-3, 2e-3)


def test_alpha_is_estimated_or_fixed() -> None:
    assert Config().fixed_alpha is None
    assert parse({"unlabeled.alpha": "0.25"}).fixed_alpha == 0.25


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(1e-300, 1e6),
    st.integers(0, 2**63 - 1),
    st.booleans(),
)
def test_toml_round_trip(text: str, number: float, count: int, flag: bool) -> None:
    values = {"data": text, "adapt.learning-rate": min(number, 1e4), "seed": count}
    values |= {"skip-bad-users": flag}
    original = parse(values)
    assert config.from_toml(config.to_toml(original)) == original


def test_flatten_is_the_inverse_of_parse() -> None:
    original = parse({"users": 5, "persona.overlap": 0.25})
    flat = config.flatten(original)
    assert list(flat) == list(config.FIELDS)
    assert flat["persona.overlap"] == 0.25
    assert parse(flat) == original


def test_differences_are_what_changes_the_run() -> None:
    two = parse({"users": 9, "adapt.rounds": 1})
    assert config.differences(Config(), two) == ["users", "adapt.rounds"]
    assert config.differences(two, two) == []


def test_the_app_table_is_what_flower_hands_back() -> None:
    table = tomllib.loads(page.app_table())["tool"]["flwr"]["app"]["config"]
    options = {"run.name": "", "run.resume": "", "run.folder": ""}
    assert table == options | config.defaults()


def test_markdown_says_what_is_allowed() -> None:
    text = page.markdown()
    assert "| `quorum` | `0.75` | 0 to 1 |" in text
    assert "| `users` | `40` | 1 to 1e+07 | evaluated users; with task=text" in text
    assert "| `skip-bad-users` | `false` | true or false |" in text
    assert "`votes`, `self`, `public`, `anonymised`, `others`" in text
    assert all(f"| `{name}` |" in text for name in config.FIELDS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unlabeled.kind", "others"),
        ("data", "/somewhere"),
        ("adapt.users", "development"),
        ("personalise.learning-rates", "1e-3,3e-3"),
    ],
)
def test_what_has_no_meaning_on_devices_is_refused(key, value) -> None:
    fine = {"task": "text", "personalise.learning-rates": "1e-3"}
    assert parse(fine).on_devices
    with pytest.raises(IdiolectError, match=rf"'task' is 'text'.*'{key}' is "):
        parse(fine | {key: value})


def test_a_budget_may_be_infinite_and_nothing_else() -> None:
    endless = parse({"privacy.epsilon": float("inf")})
    assert config.from_toml(config.to_toml(endless)) == endless
    with pytest.raises(IdiolectError, match=r"privacy\.epsilon.*must lie in"):
        parse({"privacy.epsilon": float("nan")})
    with pytest.raises(IdiolectError, match=r"adapt\.clip.*must lie in"):
        parse({"adapt.clip": float("inf")})


NUMBERS = [
    name
    for name, entry in config.FIELDS.items()
    if isinstance(entry.default, int | float) and not isinstance(entry.default, bool)
]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_largest_value(name: str) -> None:
    entry = config.FIELDS[name]
    low, high = entry.metadata["low"], entry.metadata["high"]
    assert math.isfinite(low) and math.isfinite(high) and low < high <= 2**63
    assert low <= entry.default <= high
    beyond = [10**400, -(10**400), 10**5000, 10**308, -(10**308)]
    beyond += [1e308, -1e308, math.nan, -math.inf]
    beyond += [type(entry.default)(v) for v in (high + max(1, high), low - 1)]
    if name != "privacy.epsilon":
        beyond.append(math.inf)
    for value in beyond:
        with pytest.raises(IdiolectError, match=f"'{name}'") as raised:
            parse({name: value})
        assert len(str(raised.value)) < 600 and str(raised.value).isprintable()


@pytest.mark.parametrize("name", sorted(set(config.FIELDS) - set(NUMBERS)))
def test_every_text_has_a_longest_length(name: str) -> None:
    for value in (
        "a," * 200_000,
        "\ud800",
        ["["] * 100_000,
        {"a": {}},
        None,
        "9" * 5000,
    ):
        with pytest.raises(IdiolectError, match=f"'{name}'") as raised:
            parse({name: value})
        assert len(str(raised.value)) < 600 and str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"personalise.epochs": 10**9}, "'personalise.epochs' is 1000000000"),
        ({"unlabeled.ratio": 1e9}, "'unlabeled.ratio' is 1000000000.0"),
        ({"personalise.epochs": 1000, "history": 10**6}, "passes over an item"),
        ({"history": 10**6, "unlabeled.ratio": 90.0}, "passes over an item"),
        ({"methods": ",".join(["base"] * 100)}, "names a method twice"),
        ({"evaluate.contrasted": "cope,sft,cope"}, "names a method twice"),
        ({"personalise.learning-rates": ",".join(["1e-3"] * 21)}, "at most 20"),
        ({"personalise.learning-rates": "1e300"}, "up to 10000"),
        ({"unlabeled.alpha": "1" * 4000}, "[0, 0.99]"),
        ({"\x1b[2J" * 50_000: 1}, "unknown config key"),
    ],
)
def test_no_numbers_add_up_to_endless_work(values: dict[str, Any], said: str) -> None:
    with pytest.raises(IdiolectError, match=re.escape(said)) as raised:
        parse(values)
    assert len(str(raised.value)) < 600 and str(raised.value).isprintable()


def test_the_whole_history_of_a_file_may_be_read() -> None:
    assert parse({"history": 10**6, "held-out": 1}).history == 10**6


@pytest.mark.parametrize("words", ["9" * 5000, "1e400", "-1e400", "nan", "1" * 400])
def test_words_of_endless_digits_are_refused(words: str) -> None:
    for name in ("users", "privacy.noise", "adapt.learning-rate"):
        with pytest.raises(IdiolectError, match=f"'{name}'") as raised:
            parse_word(name, words)
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "text", ["users = " + "9" * 5000, "x = " + "[" * 200_000, "x = " + "{a=" * 200_000]
)
def test_toml_of_any_depth_is_refused(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        config.from_toml(text)


@pytest.mark.parametrize(
    ("users", "more", "most"),
    [
        (20, {"development-users": 5}, 1 / 250),
        (50, {"task": "text", "personalise.learning-rates": "1e-3"}, 1 / 500),
    ],
)
def test_delta_is_at_most_a_tenth_of_a_user(users, more, most) -> None:
    private = {"privacy.mode": "central", "users": users} | more
    assert parse(private | {"privacy.delta": most * 0.999}).crowd == round(0.1 / most)
    with pytest.raises(IdiolectError, match=r"'privacy\.delta' is .*10 users\)"):
        parse(private | {"privacy.delta": most * 1.001})
    parse(private | {"privacy.mode": "off", "privacy.delta": most * 1.001})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            {"privacy.metrics": "noisy"},
            "'privacy.metrics' is 'noisy'.*needs the ledger",
        ),
        ({"adapt.clip-quantile": 0.5}, "'adapt.clip-quantile' is 0.5.*the ledger"),
        ({"privacy.mode": "central", "adapt.clip": 0.0}, "proportional to the clip"),
    ],
)
def test_settings_without_a_guarantee_are_refused(values, match) -> None:
    with pytest.raises(IdiolectError, match=match):
        parse(values)


CENTRAL = {"privacy.mode": "central"}
SEVERAL = {"personalise.learning-rates": "1e-3,3e-3"}


@pytest.mark.parametrize(
    ("values", "first", "other"),
    [
        (
            SEVERAL | {"development-users": 0},
            "development-users",
            "and 'personalise.learning-rates' is '1e-3,3e-3': ",
        ),
        (
            SEVERAL | CENTRAL | {"privacy.metrics": "noisy"},
            "privacy.metrics",
            "'personalise.learning-rates' is '1e-3,3e-3': ",
        ),
        (
            SEVERAL | {"task": "text"},
            "task",
            "'personalise.learning-rates' is '1e-3,3e-3': ",
        ),
        (CENTRAL | {"users": 200_000}, "users", "'privacy.delta' is 1e-06 by default"),
        (
            {"privacy.metrics": "noisy"},
            "privacy.metrics",
            "'privacy.mode' is 'off' by default",
        ),
        (
            {"adapt.users": "development", "development-users": 0}
            | {"personalise.learning-rates": "1e-3"},
            "adapt.users",
            "and 'development-users' is 0: ",
        ),
        (
            {"history": 10**6, "personalise.epochs": 900},
            "personalise.epochs",
            "'unlabeled.ratio' is 1.0 by default",
        ),
        (
            {"task": "LaMP-4", "data": "d", "unlabeled.alpha": "true"},
            "unlabeled.alpha",
            "'task' is 'LaMP-4': ",
        ),
    ],
)
def test_what_the_user_set_is_named_first_and_defaults_as_such(
    values: dict[str, Any], first: str, other: str
) -> None:
    with pytest.raises(IdiolectError) as raised:
        parse(values)
    said = str(raised.value)
    assert said.startswith(f"config key '{first}' is ")
    assert other in said
    assert ("by default" in said) == ("by default" in other)


def test_the_rates_and_delta_that_an_error_proposes_are_accepted() -> None:
    for values in (SEVERAL | {"development-users": 0}, CENTRAL | {"users": 200_000}):
        with pytest.raises(IdiolectError) as raised:
            parse(values)
        name, value = re.findall(r"([a-z.-]+)=([0-9.e-]*[0-9])", str(raised.value))[0]
        assert parse(values | {name: parse_word(name, value)})


def test_a_preset_sets_its_keys_and_nothing_else():
    paper = parse({"preset": "paper"})
    flat, preset = config.flatten(paper), presets.read("paper")
    assert preset and all(flat[key] == value for key, value in preset.items())
    assert all(config.defaults()[key] != value for key, value in preset.items())
    rest = set(config.FIELDS) - preset.keys() - {"preset"}
    assert all(flat[key] == config.defaults()[key] for key in rest)
    assert parse(flat) == paper == config.from_toml(config.to_toml(paper))
    assert parse({}) == parse({"preset": ""}) == Config()


def test_any_key_that_is_given_wins_over_a_preset_its_default_too():
    usual = config.defaults()
    given = parse(
        {"preset": "paper", "personalise.anchor": usual["personalise.anchor"]}
    )
    assert given.personalise.anchor == usual["personalise.anchor"]
    assert given.personalise.unlabeled_weight == 1.0 and given.preset == "paper"
    assert parse(config.flatten(given)) == given
    # Where nothing of it is left, its name would say what is not so.
    assert parse({**usual, "preset": "paper"}) == Config()


def test_a_preset_that_is_not_there_is_refused():
    with pytest.raises(IdiolectError, match="'preset' is 'papers': use one of paper"):
        parse({"preset": "papers"})
    with pytest.raises(IdiolectError, match="there is no preset '../x'"):
        presets.read("../x")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_a_file_that_flower_takes(name):
    table = tomllib.loads((presets.FOLDER / f"{name}.toml").read_text())
    assert table["preset"] == name
    assert config.flatten(parse(table)) == config.defaults() | table


def test_the_true_overlap_is_known_of_personas_only():
    assert parse({"unlabeled.alpha": "true"}).fixed_alpha is None
    with pytest.raises(IdiolectError, match="overlap of real users is not known"):
        parse({"unlabeled.alpha": "true", "task": "LaMP-4"})
    for rule in (*ALPHA_ESTIMATES, *ALPHA_EXACT):
        assert parse({"unlabeled.alpha": rule}).fixed_alpha is None
        if rule in ALPHA_EXACT:
            with pytest.raises(IdiolectError, match="overlap of real users"):
                parse({"unlabeled.alpha": rule, "task": "LaMP-4"})
