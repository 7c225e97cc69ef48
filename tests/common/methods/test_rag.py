import logging
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from idiolect.common.data.types import Item, Prompt, User
from idiolect.common.engine.adapters import attached
from idiolect.common.engine.backbone import load_backbone
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import completion_tokens
from idiolect.common.methods import pag
from idiolect.common.methods.pag import PROFILE_TOKENS, write_profile
from idiolect.common.methods.rag import (
    example,
    fitted,
    ranked,
    with_history,
)
from tests.common.engine.test_adapters import adapter

NOUNS = ("mayor", "road", "lake", "castle", "school", "garden", "river")


def item(name: str, text: str, target: str = "A Title") -> Item:
    return Item(name, Prompt("Headline for: ", text, "\nHeadline:"), target)


HISTORY = tuple(
    item(f"h{k}", f"the {NOUNS[k]} and the {NOUNS[k - 1]}", f"Title {k}")
    for k in range(6)
)
QUESTION = item("q", "the castle and the mayor and the castle", "What Was Written")


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny", "float32", "cpu", 512)


@pytest.fixture(scope="module")
def user():
    rivals = (
        replace(QUESTION, id="r0", target="Somebody Else"),
        item("r1", "a garden", "Another Garden"),
    )
    return User("u", HISTORY, (replace(QUESTION, rivals=rivals),))


def obvious_scores(question: Item, history) -> list[float]:
    """BM25 word by word (the form of Lucene: k1 1.5, b 0.75)."""

    def words(one):
        return re.findall(r"\w\w+", one.prompt.input.lower())

    texts = [Counter(words(one)) for one in history]
    sizes = [sum(text.values()) for text in texts]
    mean = sum(sizes) / len(sizes)
    scores = [0.0] * len(texts)
    for word in words(question):
        holding = sum(word in text for text in texts)
        rarity = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for i, text in enumerate(texts):
            length = 1.5 * (1 - 0.75 + 0.75 * sizes[i] / mean)
            scores[i] += rarity * text[word] / (text[word] + length)
    return scores


def test_the_order_is_that_of_bm25_word_by_word():
    questions = [
        QUESTION,
        item("q1", "River, school; GARDEN!"),
        item("q2", "the lake lake lake road and something unheard of"),
    ]
    history = (*HISTORY, item("long", "a river of many words that say very little"))
    for question, order in zip(questions, ranked(questions, history), strict=True):
        scores = obvious_scores(question, history)
        assert sorted(order) == list(range(7))
        assert [round(scores[i], 5) for i in order] == sorted(
            (round(score, 5) for score in scores), reverse=True
        )
        assert scores[order[0]] > scores[order[-1]]


def test_among_equals_the_newest_comes_first():
    nothing_alike = item("q", "zebra")
    empty = item("q", "")
    same = tuple(item(f"h{k}", "one text") for k in range(3))
    orders = ranked([nothing_alike, empty, item("q", "one")], same)
    assert orders == [[2, 1, 0]] * 3
    wordless = tuple(item(f"h{k}", "?") for k in range(3))
    assert ranked([QUESTION], wordless) == [[2, 1, 0]]
    assert ranked([item("q", "b c")], (item("h", ""), item("h", "bb"))) == [[1, 0]]


def test_a_search_is_quiet(caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        ranked([QUESTION], HISTORY)
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def test_the_most_similar_stands_next_to_the_question(tiny, user):
    (asked,) = with_history(tiny, user, 2, 8).held_out
    first, second = ranked([QUESTION], HISTORY)[0][:2]
    lines = [
        f"Headline for: {HISTORY[i].prompt.input}\nHeadline: Title {i}\n"
        for i in (second, first)
    ]
    assert asked.prompt.text == "".join(lines) + QUESTION.prompt.text
    assert (asked.target, asked.id) == (QUESTION.target, "q")
    (profiled,) = with_history(tiny, user, 2, 8, "Writes titles.").held_out
    assert profiled.prompt.text == f"Writes titles.\n{asked.prompt.text}"


def test_a_rival_of_the_same_prompt_stays_one(tiny, user):
    wordy = replace(user.held_out[0].rivals[0], target="Many Words " * 20)
    for rival in (*user.held_out[0].rivals[:1], wordy):
        held = replace(user.held_out[0], rivals=(rival, user.held_out[0].rivals[1]))
        for context in (100, 120, 140, 512):
            small = replace(tiny, context=context)
            changed = with_history(small, replace(user, held_out=(held,)), 6, 8)
            (asked,) = changed.held_out
            assert asked.rivals[0].prompt == asked.prompt
            assert (asked.rivals[0].id, asked.rivals[0].target) == ("r0", rival.target)
            assert asked.rivals[1].prompt.input == "a garden"
            if context == 512:  # room enough for all of them
                assert asked.rivals[1].prompt.before == asked.prompt.before


def test_no_addition_ever_shortens_a_question(tiny, user):
    """At every context length the prompt keeps all that it keeps alone."""
    counts = []
    for context in range(12, 160, 3):
        small = replace(tiny, context=context)
        alone = user.held_out[0]
        if not small.fits(alone):
            continue
        plain = small.encode(alone)
        (asked,) = with_history(small, user, 6, 8, "Likes titles.").held_out
        longer = small.encode(asked)
        assert longer.truncated == plain.truncated
        assert asked.prompt.text.endswith(alone.prompt.text)
        written = completion_tokens(plain)
        assert longer.ids[longer.prompt_length :] == plain.ids[plain.prompt_length :]
        if asked != alone:
            assert longer.prompt_length + max(8, written) <= context
        counts.append(asked.prompt.text.count("\nHeadline:") - 1)
    assert counts == sorted(counts)
    assert counts[0] == 0 and counts[-1] == 6


def test_the_budget_of_the_output_is_left_free(tiny, user):
    for budget in (8, 60):
        small = replace(tiny, context=120)
        (asked,) = with_history(small, user, 6, budget).held_out
        assert small.encode(asked).prompt_length + budget <= 120
    assert asked != user.held_out[0]


def test_what_does_not_fit_makes_room_for_the_next(tiny):
    long, short = "Long " * 60, "Short\n"
    room = replace(tiny, context=60)
    assert fitted(room, QUESTION, "", [long, short], 8).prompt.text == (
        short + QUESTION.prompt.text
    )
    assert fitted(room, QUESTION, long, [short], 8).prompt.text == (
        short + QUESTION.prompt.text
    )


def test_an_example_is_a_prompt_with_what_was_written():
    assert example(HISTORY[1]).endswith("\nHeadline: Title 1\n")


def test_a_profile_is_what_the_shared_policy_goes_on_to_say(tiny, user, monkeypatch):
    shared = adapter(tiny, "s", 3)
    seen: list[list[int]] = []
    real = pag.generate

    def watch(backbone, adapters, prompts, budget):
        assert adapters == [shared] and budget == PROFILE_TOKENS
        seen.extend(map(list, prompts))
        return real(backbone, adapters, prompts, budget)

    monkeypatch.setattr(pag, "generate", watch)
    profile = write_profile(Reference(tiny, shared), user)
    assert profile == write_profile(Reference(tiny, shared), user)
    prompt = tiny.tokenizer.decode(seen[0], skip_special_tokens=True)
    titles = "\n".join(f"Title {k}" for k in range(6))
    assert prompt == titles + pag.ASKED
    ids = list(seen[0])
    with torch.no_grad(), attached(tiny, shared):
        for _ in range(PROFILE_TOKENS):
            ids.append(int(tiny.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert profile == tiny.decode(ids[len(seen[0]) :])


def test_a_profile_reads_the_newest_texts(tiny, user, monkeypatch):
    many = tuple(item(f"h{k}", "x", f"Title number {k}") for k in range(40))
    prompts: list[str] = []

    def listen(backbone, _adapters, given, _budget):
        prompts.extend(map(backbone.tokenizer.decode, given))
        return ["A profile."]

    monkeypatch.setattr(pag, "generate", listen)
    shared = adapter(tiny, "s", 3)
    for context in (512, 130):
        small = replace(tiny, context=context)
        assert (
            write_profile(Reference(small, shared), replace(user, history=many))
            == "A profile."
        )
    assert all("number 39" in p and "number 23" not in p for p in prompts)
    assert all(p.endswith(pag.ASKED) for p in prompts)
    assert "number 24" in prompts[0] and "number 24" not in prompts[1]


@pytest.mark.process
def test_the_search_library_is_loaded_by_those_who_search():
    code = (
        "import sys, idiolect.common.methods.personalise, idiolect.client.node.handlers, "
        "idiolect.server.study.cells; sys.exit('bm25s' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
