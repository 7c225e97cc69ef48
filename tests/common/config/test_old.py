"""Configurations of version 0.2 go on being read, and what was named by them is found."""

import hashlib
import json

import pytest

from idiolect.common.config import Config, flatten, from_toml, old, parse, parse_word
from idiolect.common.config.methods import ALIASES
from idiolect.common.engine.rates import with_rates
from idiolect.common.errors import IdiolectError


def test_old_names_read() -> None:
    given = {
        "dtype": "bfloat16",
        "device": "cpu",
        "max-length": 64,
        "personalise.stack": 2,
        "personalise.microbatch": 3,
        "recipe": "paper",
        "methods": "shared, oppu",
        "evaluate.contrasted": "oppu,cope",
    }
    config = parse(given)
    engine = config.engine
    assert (engine.dtype, engine.device, engine.max_length) == ("bfloat16", "cpu", 64)
    assert (engine.stack, engine.microbatch, config.preset) == (2, 3, "paper")
    assert config.method_list == ("shared", "sft")
    assert config.contrasted_list == ("sft", "cope")
    assert parse({"recipe": "default"}) == Config()


def test_old_words_of_a_command_line_are_typed() -> None:
    assert parse_word("max-length", "64") == 64
    assert parse_word("recipe", "default") == ""
    assert parse_word("privacy.clip-bit", "10") == 10.0
    with pytest.raises(IdiolectError, match="'engine.max-length' is 'x'|takes a whole"):
        parse_word("max-length", "x")


def test_a_key_is_given_once() -> None:
    assert parse({"dtype": "float16", "engine.dtype": "float16"}).engine.dtype
    with pytest.raises(IdiolectError, match=r"'engine\.dtype' is 'float32'.*old name"):
        parse({"dtype": "float16", "engine.dtype": "float32"})


@pytest.mark.parametrize("name", sorted(old.FIXED))
def test_a_fixed_key_reads_at_its_value_only(name: str) -> None:
    assert parse({name: old.FIXED[name]}) == Config()
    with pytest.raises(IdiolectError, match=f"'{name}' is 77.*always"):
        parse({name: 77})


def test_a_configuration_is_flattened_as_version_0_2_did() -> None:
    assert tuple(old.as_0_2(Config())) == old.ORDER
    # A run's configuration has numbers for its rates.
    body = json.dumps(old.as_0_2(with_rates(Config()))).encode()
    # Of `flatten(Config())` in version 0.2.0.
    assert hashlib.sha256(body).hexdigest() == DEFAULT_0_2
    paper = old.as_0_2(parse({"preset": "paper", "methods": "sft, kto"}))
    assert (paper["recipe"], paper["methods"]) == ("paper", "oppu, kto")


DEFAULT_0_2 = "bf7f7c8b8f97e0f52f97b3a4f84c2fd888636c752038257c4ff30f51bbad179c"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"preset": "paper", "methods": "base,sft"},
        {"engine.stack": 7, "engine.dtype": "float16", "evaluate.contrasted": "sft"},
    ],
)
def test_what_version_0_2_wrote_reads_as_the_same(values) -> None:
    config = parse(values)
    written = old.as_0_2(config)
    assert parse({k: v for k, v in written.items() if k not in old.PLACE}) == config


def test_a_saved_configuration_may_name_the_place_of_its_run() -> None:
    text = 'run-name = "a"\nresume = ""\noutput-dir = "/x"\nusers = 3\n'
    assert from_toml(text) == parse({"users": 3})
    with pytest.raises(IdiolectError, match="unknown config key 'run-name'"):
        parse({"run-name": "a"})


def test_results_are_told_by_the_names_of_today() -> None:
    written = {
        "methods": {"oppu": {"nll": 1.0}, "c-bpo": {}},
        "pairs": {"c-bpo - oppu": [1, None, True]},
        "curve": [{"line": "oppu, votes"}, {"text": "SFT (oppu)"}],
        "user": "oppus",
    }
    assert old.renamed(written) == {
        "methods": {"sft": {"nll": 1.0}, "c-bpo": {}},
        "pairs": {"c-bpo - sft": [1, None, True]},
        "curve": [{"line": "sft, votes"}, {"text": "SFT (sft)"}],
        "user": "oppus",
    }


def test_files_were_named_by_the_old_names() -> None:
    assert old.former("adapters/sft/u.safetensors") == "adapters/oppu/u.safetensors"
    assert {old.former(name) for name in ALIASES.values()} == set(ALIASES)


def test_what_a_stored_adapter_was_trained_from_is_as_in_version_0_2() -> None:
    found = old.trained_from(Config())
    left_out = {"run-name", "resume", "output-dir", "quorum", "deadline"}
    assert found.keys() == set(old.ORDER) - left_out
    assert {flatten(Config())["seed"]} == {found["seed"]}
