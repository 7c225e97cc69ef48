"""What each key affects, declared beside it, and what that decides."""

from pathlib import Path

import pytest

from idiolect.common import methods
from idiolect.common.config import FIELDS
from idiolect.common.config.keys import (
    AFFECTS,
    POOL,
    SHARED,
    SOME,
    keys_of,
)
from idiolect.common.config.methods import BY_NAME, TABLE
from idiolect.common.config.old import RENAMED

# What version 0.2 said a stage does not depend on, by the names of today. A name that ends
# in a dot is a section.
UNUSED_0_2 = {
    "nothing trained": (
        *("disliked", "personalise.disliked-weight"),
        "methods",
        "preset",
        "evaluate.",
        "quorum",
        "deadline",
    ),
    "shared": (
        *("unlabeled.", "privacy.vote-sampling", "personalise.epochs"),
        *("personalise.batch", "personalise.learning-rates", "personalise.beta"),
        *("personalise.ema", "personalise.boundary", "personalise.reward"),
        "personalise.items",
        *("personalise.unlabeled-weight", "personalise.anchor", "personalise.strength"),
        "personalise.unlabeled-tokens",
    ),
    "pool": (
        *("adapt.", "personalise.", "engine.stack", "engine.microbatch", "lora."),
        *("unlabeled.ratio", "unlabeled.alpha", "unlabeled.alpha-features"),
        *("unlabeled.alpha-items", "unlabeled.nearness", "unlabeled.nearness-features"),
    ),
}
ALPHA = ("unlabeled.alpha", "unlabeled.alpha-features", "unlabeled.alpha-items")
MEANS = ("personalise.ema", "personalise.boundary")
DISLIKED = ("disliked", "personalise.disliked-weight")
TERM = ("personalise.unlabeled-weight", "personalise.unlabeled-tokens")
CBPO_ONLY = (
    "personalise.reward",
    *TERM,
    "personalise.anchor",
)
CONTRAST_ONLY = ("personalise.beta", *MEANS, *CBPO_ONLY)
TRAINING = (
    *DISLIKED,
    *("unlabeled.", "personalise.epochs", "personalise.batch"),
    *("personalise.learning-rates", "personalise.strength", *CONTRAST_ONLY),
)
PROMPTS, LEARNT = "evaluate.retrieved", "personalise.items"
DECODING = ("evaluate.contrast", "evaluate.contrasted")
METHODS_0_2 = {
    "base": (*TRAINING, LEARNT, PROMPTS, *DECODING),
    "shared": (*TRAINING, LEARNT, PROMPTS, *DECODING),
    "rag": (*TRAINING, *DECODING),
    "pag": (*TRAINING, *DECODING),
    "sft": (*DISLIKED, "unlabeled.", *CONTRAST_ONLY, PROMPTS),
    "cope": (*DISLIKED, "unlabeled.", *MEANS, *CBPO_ONLY, PROMPTS),
    "kto": (*ALPHA, *MEANS, *CBPO_ONLY, PROMPTS),
    "bco": (*ALPHA, "personalise.boundary", *CBPO_ONLY, PROMPTS),
    "positives": (*DISLIKED, *ALPHA, *TERM, PROMPTS),
    "c-bpo": (PROMPTS,),
}


def used(*unused: str) -> set[str]:
    """Every key but those that are named, and those of a method that came later."""
    return {
        key
        for key in FIELDS
        if not key.startswith("steer.")
        and not any(
            key == name or (name.endswith(".") and key.startswith(name))
            for name in unused
        )
    }


@pytest.mark.parametrize(("stage", "name"), [(SHARED, "shared"), (POOL, "pool")])
def test_stages_depend_on_what_they_did_in_version_0_2(stage: str, name: str) -> None:
    both = UNUSED_0_2["nothing trained"] + UNUSED_0_2[name]
    assert set(keys_of(stage)) == used(*both)


def test_every_method_of_version_0_2_is_there() -> None:
    assert BY_NAME.keys() >= METHODS_0_2.keys()


@pytest.mark.parametrize("method", METHODS_0_2)
def test_methods_depend_on_what_they_did_in_version_0_2(method: str) -> None:
    # How long a run waits never changed what a cell computes, and counts no more.
    unused = ("methods", "preset", "quorum", "deadline", *METHODS_0_2[method])
    assert set(keys_of(method)) == used(*unused)


def test_a_stored_adapter_depends_on_all_but_waiting() -> None:
    assert {name for name, affects in AFFECTS.items() if not affects} == {
        "quorum",
        "deadline",
    }


def test_a_row_reads_only_keys_that_some_methods_read() -> None:
    some = {name for name, affects in AFFECTS.items() if SOME in affects}
    read = {name for row in TABLE for name in row.reads}
    assert read == some


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_agrees_with_itself(row) -> None:
    assert len(set(row.reads)) == len(row.reads)
    code = Path(methods.__file__).parent / f"{row.name.replace('-', '_')}.py"
    assert (row.name != "shared" and code.is_file()) == (row.adapter or row.prompts)
    assert row.adapter or not row.unlabeled
    assert row.unlabeled == ("unlabeled.kind" in row.reads)
    assert row.prompts == ("evaluate.retrieved" in row.reads)


def test_no_section_holds_what_governs_another() -> None:
    """What `adapt` says affects the shared adapter, `personalise` no more than own ones."""
    for name, affects in AFFECTS.items():
        if name.startswith("adapt."):
            assert SHARED in affects
        if name.startswith("personalise."):
            assert affects == (SOME,)


def test_no_old_name_is_a_key_of_today() -> None:
    assert not RENAMED.keys() & FIELDS.keys()
    assert set(RENAMED.values()) <= FIELDS.keys()
