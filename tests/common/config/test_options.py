"""Name, folder and what is resumed are options of the command, not keys."""

import pytest

from idiolect.common.config import Config, RunOptions, defaults, parse, parse_run
from idiolect.common.config.parse import split
from idiolect.common.errors import IdiolectError


def test_options_are_taken_out_of_what_flower_hands_over() -> None:
    given = {"run.name": "12", "run.folder": "/x", "run.resume": "", "users": 3}
    config, options = parse_run(given)
    assert (config, options) == (parse({"users": 3}), RunOptions("12", "", "/x"))
    assert split(options.flat()) == (options, {})


def test_the_names_of_version_0_2_still_read() -> None:
    old = {"run-name": "a", "resume": "latest", "output-dir": "/x"}
    assert parse_run(old) == (Config(), RunOptions("a", "latest", "/x"))


@pytest.mark.parametrize("name", ["run.name", "run.resume", "run.folder"])
@pytest.mark.parametrize(
    "value", [3, None, ["["], "a," * 200_000, "\ud800", "a\nb", "\x1b[2J"]
)
def test_an_option_is_short_printable_text(name: str, value: object) -> None:
    if name == "run.folder" and value in ("a\nb", "\x1b[2J"):
        return  # a path may hold what it likes
    with pytest.raises(IdiolectError, match=f"'{name}'") as raised:
        parse_run({name: value})
    assert len(str(raised.value)) < 600 and str(raised.value).isprintable()


def test_options_are_not_keys() -> None:
    with pytest.raises(IdiolectError, match="unknown config key 'run.name'"):
        parse({"run.name": "a"})


def test_a_preset_whose_keys_flower_overrides_is_not_taken_silently() -> None:
    table = {**RunOptions().flat(), **defaults()}
    assert parse_run(table) == (Config(), RunOptions())
    with pytest.raises(IdiolectError, match="'preset' is 'paper'.*paper.toml"):
        parse_run({**table, "preset": "paper"})
    assert parse_run({"preset": "paper"})[0].preset == "paper"
