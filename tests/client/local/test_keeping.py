"""What the process that keeps the model loaded streams, without the process."""

import json
import socket
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import Any

import pytest

from idiolect.client.owner import consent, keeper, limits, resident
from idiolect.client.owner.resident import Asked, asked_of
from idiolect.client.owner.writing import Writer
from idiolect.common.engine.adapters import zero_shared
from idiolect.common.engine.pieces import TooLong
from idiolect.common.errors import IdiolectError
from tests.common.engine.test_adapters import SHAPE, adapter
from tests.common.engine.test_model_folders import CHATML, loaded, tokenizer, write


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Writer:
    words = tokenizer("<|im_start|> <|im_end|>", CHATML)
    backbone = loaded(write(tmp_path_factory.mktemp("chat"), "qwen2", words), 128)
    shared = zero_shared(backbone, SHAPE, 0)
    return Writer(consent.SETTINGS, backbone, shared, adapter(backbone, "own", 1))


def messages(writer: Writer, asked: Asked) -> list[dict[str, Any]]:
    request = json.loads(json.dumps({"asked": asdict(asked)}))
    return list(keeper._messages(writer, request))


def text_of(found: list[dict[str, Any]]) -> str:
    return "".join(one["text"] for one in found[1:])


def test_a_stream_joined_is_the_whole_text(writer):
    whole = writer.write("the fox", 20, compare=True)
    assert whole["personal"] != whole["shared"]
    for policy, text in whole.items():
        found = messages(writer, Asked(("the fox",), budget=20, policy=policy))
        assert text_of(found) == text
        assert found[0]["chat"] and found[0]["dropped"] == 0
        assert [bool(one["end"]) for one in found[1:]] == [False] * (len(found) - 2) + [
            True
        ]


def test_stops_budget_and_sampling_reach_the_model(writer):
    greedy = messages(writer, Asked(("the fox",), budget=20))
    text = text_of(greedy)
    stop = text[3:6]
    found = messages(writer, Asked(("the fox",), budget=20, stops=(stop,)))
    assert text_of(found) == text[: text.index(stop)].rstrip()
    assert found[-1]["end"] == "stop" and len(found) < len(greedy)
    short = messages(writer, Asked(("the fox",), budget=3, shorten=False))
    assert short[-1]["end"] == "length" and short[-1]["tokens"] == 3
    hot = [
        text_of(messages(writer, Asked(("the fox",), "", 20, temperature=2.0, seed=s)))
        for s in (1, 1, 2)
    ]
    assert hot[0] == hot[1] != hot[2]


def fresh(writer: Writer) -> Writer:
    """One that has read nothing yet."""
    return replace(writer, kept={})


def test_each_turn_equals_a_fresh_run_of_the_same_history(writer):
    """What is kept of earlier turns changes no word, of whatever policy they were."""
    first = text_of(messages(writer, Asked(("one",), "S", 8)))
    history = Asked(("one", first, "two"), "S", 8)
    second = text_of(messages(writer, history))
    assert second == text_of(messages(fresh(writer), history))
    everyone = replace(history, policy="shared")
    assert text_of(messages(writer, everyone)) == text_of(
        messages(fresh(writer), everyone)
    )
    messages(writer, Asked(("something else",), "", 8))
    assert text_of(messages(writer, history)) == second


def test_a_turn_computes_what_is_new_only(writer):
    """Of one policy; a conversation that begins anew is computed anew."""
    writer, counted = fresh(writer), list[int]()
    hook = writer.backbone.model.register_forward_pre_hook(
        lambda _m, _a, named: counted.append(named["input_ids"].shape[1]),
        with_kwargs=True,
    )

    def computed(asked: Asked) -> tuple[int, int, str]:
        counted.clear()
        found = messages(writer, asked)
        return counted[0], found[0]["tokens"], text_of(found)

    try:
        opening = Asked(("one " * 20,), "S", 8)
        new, whole, answer = computed(opening)
        assert new == whole
        turn = Asked((*opening.texts, answer, "two"), "S", 8)
        new, whole, _ = computed(turn)
        assert new < whole / 2
        assert computed(replace(turn, policy="shared"))[0] == whole
        assert (
            computed(turn)[0] == whole
        )  # the other policy's is gone, and so is its own
        assert computed(turn)[0] < whole
        assert computed(opening)[0] == computed(opening)[1]
    finally:
        hook.remove()


def test_what_does_not_fit_is_said(writer):
    long = "long " * 60
    found = messages(writer, Asked(("one", long, "two"), budget=8))
    assert found[0]["dropped"] == 1
    with pytest.raises(TooLong):
        messages(writer, Asked(("one", long, "two"), budget=8, shorten=False))
    with pytest.raises(TooLong):
        messages(writer, Asked((long,), budget=8))
    with pytest.raises(IdiolectError, match="128 new tokens do not fit"):
        messages(writer, Asked(("one",), budget=128))
    # An endpoint's budget is no promise: as many as there is room for.
    found = messages(writer, Asked(("one",), budget=5000, shorten=False))
    assert 1 <= found[-1]["tokens"] < 128


RIGHT = json.loads(json.dumps(asdict(Asked(("a",)))))


@pytest.mark.parametrize(
    "change",
    [
        *({"texts": []}, {"texts": ["a", "b"]}, {"texts": "a"}, {"texts": [1]}),
        *({"budget": -1}, {"budget": True}, {"policy": "theirs"}, {"stops": [""]}),
        *({"temperature": -1}, {"temperature": "0"}, {"top_p": 0}, {"seed": 1 << 64}),
        *({"more": 1}, {"system": None}, {"shorten": 1}, {"temperature": float("nan")}),
    ],
)
def test_odd_requests_are_none(writer, change):
    with pytest.raises(ValueError):
        asked_of({**RIGHT, **change})
    with pytest.raises(ValueError):
        list(keeper._messages(writer, {"asked": {**RIGHT, **change}}))


# --- the line --------------------------------------------------------------------------


def told(line: socket.socket) -> list[dict[str, Any]]:
    return [json.loads(part) for part in resident.received(line).splitlines()]


def counted(found: list[int], most: int = 100) -> Generator[dict[str, Any], None, None]:
    for number in range(most):
        found.append(number)
        yield {"text": "x", "end": "", "tokens": number}


def test_nothing_more_is_written_for_who_has_left(tmp_path):
    ours, theirs = socket.socketpair()
    found: list[int] = []
    theirs.close()
    with ours, pytest.raises(OSError):
        keeper._answered(ours, counted(found), lambda: True, tmp_path)
    assert found == [0]


def test_nothing_more_is_said_when_what_it_holds_has_changed(monkeypatch, tmp_path):
    monkeypatch.setattr(keeper, "LOOK", 0.0)
    ours, theirs = socket.socketpair()
    found: list[int] = []
    with ours, theirs:
        changed = counted(found), lambda: len(found) < 4, tmp_path
        assert not keeper._answered(ours, *changed)
        ours.close()
        assert len(told(theirs)) == 3


@pytest.mark.parametrize(
    ("error", "said", "long"),
    [
        (TooLong("too long."), "too long.", True),
        (IdiolectError("this is so: do that."), "this is so: do that.", False),
        (RuntimeError("heron"), "idiolect has a defect (RuntimeError: heron)", False),
    ],
)
def test_an_error_is_said_also_in_the_middle(tmp_path, error, said, long):
    """And the process goes on: it answers the next request."""

    def failing() -> Generator[dict[str, Any], None, None]:
        yield {"text": "x", "end": "", "tokens": 1}
        raise error

    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert keeper._answered(ours, failing(), lambda: True, tmp_path)
        ours.close()
        found = told(theirs)[1]
        assert found["error"].startswith(said) and found["long"] == long


@pytest.mark.parametrize("policy", ["personal", "shared"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_adapter_that_gives_no_numbers_is_said(writer, policy, temperature):
    """Of greedy decoding too: the largest of no numbers would be a token like any other."""
    name = {"personal": "own", "shared": "shared"}[policy]
    lora = getattr(writer, name)
    broken = replace(lora, b={n: t + float("nan") for n, t in lora.b.items()})
    asked = Asked(("the fox",), "", 8, policy=policy, temperature=temperature)
    with pytest.raises(IdiolectError, match="gives no numbers"):
        messages(replace(writer, **{name: broken}), asked)
    messages(writer, asked)  # the model itself is as it was


def test_a_limit_of_time_ends_a_stream(writer, monkeypatch):
    slow = replace(writer, chosen={**writer.chosen, "max-seconds": "0.000001"})
    with pytest.raises(limits.Refusal, match="took longer"):
        messages(slow, Asked(("the fox",), budget=100))


def test_a_line_that_ends_in_the_middle_is_an_error():
    for raw in (b"", b'{"text"', b'{"text": "x"}'):
        with pytest.raises(resident.TooLate):
            resident.told(raw)
