"""Runs compared user by user, and what is refused."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from idiolect.common.config import Config, parse
from idiolect.common.data import personas
from idiolect.common.data.load import TEXT
from idiolect.common.data.types import TOO_LONG, Dataset
from idiolect.common.errors import IdiolectError
from idiolect.server.run import compare, entry, results

from .test_results import make, make_users

SETTINGS = {"users": 12, "development-users": 2, "history": 4, "held-out": 2}
MODEL = "weights:aaaa config:bbbb"
EPOCHS = Config().personalise.epochs


def identity(model: str = MODEL, **changes: Any) -> dict[str, Any]:
    named = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    config = parse({**SETTINGS, **named})
    return entry.identity_of(config, personas.make(config), model, {})


def run(shift: float = 0.0, identity_: Any = None, **changes: Any) -> dict[str, Any]:
    """User i has nll i + 10 in `base`; all values of a run are shifted."""
    users = {
        user: {m: {"nll": v["nll"] + shift, "contrast": 0.5} for m, v in rows.items()}
        for user, rows in make_users().items()
    }
    found = make(users=users, **changes)
    return found | {"identity": identity_ or identity()}


def refused(**runs: dict[str, Any]) -> str:
    with pytest.raises(IdiolectError) as caught:
        compare.compare(runs)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said
    return said


def test_differences_are_paired_by_user():
    """Users differ by up to 11, runs by exactly 0.25: the interval is a point."""
    found = compare.compare({"a": run(), "b": run(-0.25), "c": run(1.0)})
    assert found["runs"] == ["a", "b", "c"]
    for rows in found["differences"].values():
        assert rows["b"]["nll"]["ci95"] == pytest.approx([-0.25, -0.25])
        assert rows["c"]["nll"]["mean"] == pytest.approx(1.0)
        assert rows["b"]["nll"]["n"] == 12
    means = found["means"]["base"]
    assert means["a"]["nll"]["mean"] == pytest.approx(15.5)
    rows = [{"nll": 10.0 + i} for i in range(12)]
    assert means["a"]["nll"] == results.summarise(rows, 0, compare.RESAMPLES)["nll"]
    assert found["differ"] == found["left_out"] == {}


def test_only_users_and_methods_that_both_have():
    one, two = run(), run(-1.0)
    del two["methods"]["sft"]
    del two["users"]["u03"]["base"]
    two["users"]["u04"]["base"]["nll"] = None
    found = compare.compare({"a": one, "b": two})
    assert list(found["means"]) == ["base", "shared", "bco", "c-bpo"]
    assert found["differences"]["base"]["b"]["nll"]["n"] == 10
    two["methods"] = {}
    assert "runs 'a' and 'b' have no method in common" in refused(a=one, b=two)


def test_what_differs_is_said_and_another_measure_is_not_compared():
    other = identity(
        personalise__epochs=6, evaluate__rivals=3, evaluate__rouge_tokens="unicode"
    )
    found = compare.compare({"a": run(), "b": run(-1.0, other)})
    assert found["differ"]["personalise.epochs"] == [EPOCHS, 6]
    assert "hash of data" not in found["differ"]
    assert set(found["left_out"]) == {"contrast", "mrr", "rouge-1", "rouge-l"}
    assert set(found["differences"]["base"]["b"]) == {"nll"}


def test_the_likelihood_of_another_model_is_not_compared():
    other = identity("weights:cccc config:bbbb")
    found = compare.compare({"a": run(), "b": run(0, other)})
    assert found["differ"] == {"model's weights": ["aaaa", "cccc"]}
    assert set(found["differences"]["base"]["b"]) == {"contrast"}


def test_other_histories_are_compared():
    found = compare.compare({"a": run(), "b": run(0, identity(history=2))})
    assert list(found["differ"]) == ["history", "hash of data"]


def test_other_users_or_texts_are_refused():
    for other in (identity(held_out=1), identity(seed=1)):
        said = refused(a=run(), b=run(0, other))
        assert "did not measure what run 'a' did, but other texts of the same" in said
    strangers = {f"v{i}": rows for i, rows in enumerate(make_users().values())}
    others = make(users=strangers) | {"identity": identity(users=11)}
    assert "but other users:" in refused(a=run(), b=others)
    tags = run(0, run={"task": "tagging"})
    assert "but another task:" in refused(a=run(), b=tags)
    long = identity() | {"too_long": 3}
    assert "not as many fit" in refused(a=run(), b=run(0, long))


def test_a_run_that_does_not_say_enough_is_refused_by_name():
    noisy, early = run() | {"users": {}}, run()
    del early["identity"]
    assert "run 'b' has no values per user" in refused(a=run(), b=noisy)
    assert "run 'a' does not say" in refused(a=early, b=run())
    nobody = Dataset(TEXT, ())
    device = entry.identity_of(parse(SETTINGS), nobody, MODEL, {TOO_LONG: 2})
    assert device["measured"] is None and device["too_long"] == 2
    assert "on devices" in refused(a=run(0, device), b=run())


def test_an_entry_names_nobody_and_no_folder(tmp_path):
    file = tmp_path / "public.jsonl"
    file.write_text('{"prompt": "a", "target": "b"}\n')
    config = parse(
        {**SETTINGS, "unlabeled.kind": "public", "unlabeled.file": str(file)}
    )
    made = entry.identity_of(config, personas.make(config), MODEL, {})
    assert made["config"]["unlabeled.file"] == "public.jsonl"
    assert len(made["public"]) == 64
    file.write_text('{"prompt": "a", "target": "c"}\n')
    assert entry.identity_of(config, personas.make(config), MODEL, {}) != made
    found = make(users={"Ann Author": {"base": {"nll": 1.0}}}) | {"identity": made}
    written = json.dumps(entry.entry(found))
    assert "Ann Author" not in written and str(tmp_path) not in written
    assert json.loads(written)["methods"]["base"]["nll"]["mean"] == 1.0


def test_the_table():
    console = Console(file=io.StringIO(), width=100)
    other = identity(personalise__epochs=6)
    found = compare.compare({"first": run(), "second": run(-0.25, other)})
    compare.render(found, console)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "c-bpo: differences to first; * interval clear of zero" in said
    assert "-0.250*" in said and "what differs, in the order first, second:" in said
    assert f"personalise.epochs: {EPOCHS} | 6" in said
    assert "fewer than 20 users: intervals are too narrow" in said
