"""Texts of 1,500 tokens and more: prompts, outputs and training within the context."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from idiolect.common.config import parse
from idiolect.common.data import lamp
from idiolect.common.data.lamp.forms import FORMS
from idiolect.common.data.load import task_of
from idiolect.common.engine.backbone import load_backbone
from idiolect.common.engine.fitting import asked, encode_all, output_budget
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import generate
from idiolect.common.methods import evaluation
from idiolect.common.methods.evaluation import evaluate
from idiolect.common.unlabeled.samples import sample_reference
from tests.common.conftest import write_model

pytestmark = pytest.mark.slow

TASK = FORMS["LongLaMP-review"].task
CONTEXT = 2048


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roomy")
    write_model(folder, "llama", max_position_embeddings=4096)
    return load_backbone(str(folder), "float32", "cpu", CONTEXT)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three users; u1 asks about a description of 3,000 tokens."""
    folder = tmp_path_factory.mktemp("data")
    long = "the quick brown fox writes a headline " * 120
    rows = [
        {
            "reviewerId": f"u{u}",
            "input": "Generate the review text written by a reviewer who has a given an "
            'overall rating of "5.0" for a product with description '
            f'"{u} {long * (3 if u == 1 else 1)}". The summary of the review text is "ok".',
            "output": f"fox {u}\n{long}",
            "profile": [
                {
                    "description": f"lamp {u}.{i}",
                    "overall": "4.0",
                    "reviewText": f"I like {u}.{i} {long * (i == 0)}",
                    "summary": "good",
                }
                for i in range(4)
            ],
        }
        for u in range(3)
    ]
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys: dict[str, Any] = {
        "task": TASK.name,
        "data": str(path),
        "users": 3,
        "development-users": 0,
        "held-out": 2,
        "personalise.learning-rates": "1e-3",
        "engine.max-length": CONTEXT,
    }
    return parse(keys)


@pytest.fixture(scope="module")
def users(settings):
    return lamp.read(settings).users


def test_a_target_of_a_thousand_tokens_is_kept_whole(roomy, users):
    for user in users:
        for item, entry in zip(
            user.held_out, encode_all(roomy, user.held_out), strict=True
        ):
            assert len(entry.ids) <= CONTEXT
            assert roomy.decode(list(entry.ids[entry.prompt_length :])) == item.target
    assert len(encode_all(roomy, users[1].held_out)[0].ids) == CONTEXT


def test_prompt_and_output_stay_within_the_context(roomy, settings, users, monkeypatch):
    seen: list[tuple[int, int, Any]] = []

    def watch(_backbone, _policy, prompts, budget, *_, **__):
        seen.append((max(map(len, prompts)), budget, prompts))
        return ["fox\nwrites"] * len(prompts)

    monkeypatch.setattr(evaluation, "generate", watch)
    monkeypatch.setattr("idiolect.common.unlabeled.samples.generate", watch)
    reference = Reference(roomy)
    for method in ("base", "rag"):
        evaluate(reference, [None] * 3, users, method, settings, True)
    sample_reference(reference, [user.held_out[0] for user in users], settings, 0)
    assert len(seen) >= 3
    for longest, budget, prompts in seen:
        assert budget == 1024 and longest + budget <= CONTEXT
        for prompt in filter(len, prompts):
            text = roomy.decode([*cast(Sequence[int], prompt)])
            assert "Generate the review text" in text and text.endswith("review:")


def test_half_of_a_short_context_is_for_the_output(roomy):
    assert output_budget(roomy, TASK) == 1024
    assert output_budget(roomy, replace(TASK, max_new_tokens=512)) == 512
    short = replace(roomy, context=300)
    assert output_budget(short, TASK) == 150
    assert output_budget(short, replace(TASK, kind="generation")) == 1024


def test_an_instruction_that_leaves_no_room_stays_whole(roomy, users):
    item = users[0].held_out[0]
    prompt = replace(item.prompt, before=item.prompt.input, input="x")
    (kept,) = asked(
        roomy,
        [item],
        encode_all(roomy, [replace(item, prompt=prompt, target="a")]),
        TASK,
    )
    assert len(kept) > 0


def test_parts_write_what_all_at_once_write(roomy, settings, users, monkeypatch):
    few = replace(TASK, max_new_tokens=12)
    monkeypatch.setattr(evaluation, "task_of", lambda _: few)
    calls = []

    def counted(*args, **more):
        calls.append(len(args[2]))
        return generate(*args, **more)

    monkeypatch.setattr(evaluation, "generate", counted)

    def outputs(at_once):
        monkeypatch.setattr(evaluation, "AT_ONCE", at_once)
        written: dict[str, list[str]] = {}
        evaluate(Reference(roomy), [None] * 3, users, "base", settings, True, written)
        return written

    whole, parts = outputs(2**20), outputs(1)
    assert whole == parts and calls == [6, 3, 3]
    assert [len(texts) for texts in whole.values()] == [
        len(user.held_out) for user in users
    ]


def test_the_whole_output_counts(roomy, settings, users, monkeypatch):
    monkeypatch.setattr(
        evaluation,
        "generate",
        lambda *args, **_: (
            [users[0].held_out[0].target.replace("0 the", "0\n\nthe")] * len(args[2])
        ),
    )
    one = replace(users[0], held_out=users[0].held_out[:1])
    (found,) = evaluate(Reference(roomy), [None], [one], "base", settings, True)
    assert found["rouge-l"] == 1 and found["meteor"] > 0.99
    assert task_of(settings.task).kind == "long"
