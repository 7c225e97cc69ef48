"""Chat completions on the wire: what is taken, what is refused and how, what comes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.client.local.openai import BadRequest, Shape, request_of
from idiolect.client.owner.resident import Asked, asked_of
from idiolect.common.engine.pieces import Piece

HI = {"role": "user", "content": "Hi"}
LEAST = {"model": "personal", "messages": [HI]}


def test_the_least_request_is_greedy_and_whole() -> None:
    request = request_of(LEAST)
    assert request.asked == Asked(("Hi",), shorten=False)
    assert not request.stream and not request.usage


def test_all_that_is_carried_out() -> None:
    given = {
        **{"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3},
        **{"stop": ["a", "bc"], "stream": True, "model": "shared"},
        "stream_options": {"include_usage": True},
    }
    request = request_of(LEAST | given)
    assert request.stream and request.usage
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 3}
    assert request.asked == Asked(
        ("Hi",),
        budget=9,
        policy="shared",
        stops=("a", "bc"),
        shorten=False,
        **sampling,
    )
    assert request_of(LEAST | {"max_completion_tokens": 7}).asked.budget == 7
    both = {"max_completion_tokens": 7, "max_tokens": 7}
    assert request_of(LEAST | both).asked.budget == 7
    assert request_of(LEAST | {"stop": "x"}).asked.stops == ("x",)
    assert request_of(LEAST | {"stop": []}).asked.stops == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("n", 2),
            ("n", True),
            ("tools", [{}]),
            ("logprobs", True),
            ("top_logprobs", 3),
        ),
        *(("tool_choice", "auto"), ("response_format", {"type": "json_object"})),
        *(("logit_bias", {"50256": -100}), ("logit_bias", 1.5), ("store", True)),
        *(
            ("presence_penalty", 0.1),
            ("frequency_penalty", 1),
            ("modalities", ["audio"]),
        ),
        *(("temperature", 2.1), ("temperature", -1), ("temperature", "0")),
        *(("temperature", True), ("temperature", float("nan")), ("top_p", 0)),
        *(("temperature", 10**400), ("top_p", 10**400), ("seed", -(10**400))),
        *(("top_p", 1.1), ("seed", 1.5), ("seed", 1 << 63), ("max_tokens", 0)),
        *(("max_tokens", "5"), ("max_tokens", True), ("max_completion_tokens", -1)),
        *(("stop", ""), ("stop", ["a", ""]), ("stop", 3), ("stop", ["a"] * 17)),
        *(("stream", "yes"), ("stream_options", []), ("messages", []), ("model", 3)),
        *(("top_k", 5), ("min_p", 0.1), ("grammar", ""), ("reasoning_effort", "low")),
    ],
)
def test_what_is_not_carried_out_is_named(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"'{name}'") as refused:
        request_of(LEAST | {name: value})
    assert (refused.value.status, refused.value.param) == (400, name)


def test_what_asks_for_nothing_is_taken() -> None:
    given = {
        **{"n": 1, "tools": [], "tool_choice": "none", "logprobs": False, "stop": None},
        **{"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        **{"response_format": {"type": "text"}, "user": "me", "max_tokens": None},
        **{"temperature": 0, "top_p": 1, "stream": False, "stream_options": None},
    }
    assert request_of(LEAST | given) == request_of(LEAST)


def test_other_errors() -> None:
    for body, param in (
        ({"messages": [HI]}, "model"),
        ({"model": "personal"}, "messages"),
        (LEAST | {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        (LEAST | {"stream_options": {"include_usage": True}}, "stream_options"),
        (
            LEAST | {"stream": True, "stream_options": {"a": 1}},
            "stream_options.a",
        ),
    ):
        with pytest.raises(BadRequest) as refused:
            request_of(body)
        assert (refused.value.status, refused.value.param) == (400, param)
    with pytest.raises(BadRequest, match="There is no model 'gpt-4o'") as refused:
        request_of(LEAST | {"model": "gpt-4o"})
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    for odd in ([], "x", None, 3):
        with pytest.raises(BadRequest):
            request_of(odd)


# --- messages --------------------------------------------------------------------------


def said(*messages: Any) -> tuple[str, tuple[str, ...]]:
    asked = request_of({"model": "personal", "messages": list(messages)}).asked
    return asked.system, asked.texts


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_roles_and_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert said(message("system", "S"), message("user", parts)) == ("S", ("ab",))
    assert said(
        message("developer", "S"),
        message("user", "1"),
        {**message("assistant", "2"), "refusal": None, "tool_calls": []},
        message("system", "T"),
        message("user", "3"),
        message("user", "4"),
    ) == ("S\n\nT", ("1", "2", "3\n\n4"))
    assert said(HI, message("assistant", None), HI) == ("", ("Hi", "", "Hi"))


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([message("assistant", "a")], "messages"),
        ([HI, message("assistant", "a")], "messages"),
        ([message("assistant", "a"), HI], "messages"),
        ([message("system", "a")], "messages"),
        ([message("user", " \n")], "messages"),
        ([message("user", None)], "messages[0].content"),
        (
            [message("user", [{"type": "image_url", "text": "x"}])],
            "messages[0].content",
        ),
        ([HI, message("tool", "a")], "messages[1].role"),
        ([{**HI, "name": "ann"}], "messages[0].name"),
        ([{**HI, "tool_calls": [{}]}], "messages[0].tool_calls"),
        (["Hi"], "messages[0]"),
        ([HI] * 4097, "messages"),
    ],
)
def test_messages_that_are_refused(messages: list[Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        said(*messages)
    assert (refused.value.status, refused.value.param) == (400, param)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a", "text", "user"]),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(["", "a", "text", "user"]), v)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["model", "messages", "n", "stop", "stream", "stream_options", "logit_bias", "seed"]
    + ["temperature", "max_tokens", "top_p", "x", "tools", "user"]
)


@given(st.dictionaries(NAMES, JSON), st.lists(st.dictionaries(st.just("role"), JSON)))
def test_any_json_is_answered_or_refused(body: dict[str, Any], messages: Any) -> None:
    for one in (body, LEAST | body, {**LEAST, "messages": messages}):
        try:
            asked = request_of(one).asked
        except BadRequest:
            continue
        # What passes is what the process that keeps the model takes.
        assert asked_of(json.loads(json.dumps(vars(asked)))) == asked


# --- answers ---------------------------------------------------------------------------


def test_the_shapes_of_answers() -> None:
    shape = Shape("chatcmpl-1", 7, "personal")
    whole = shape.whole("Hi!", Piece("", "length", 2), 5)
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["content"] == "Hi!"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {
        **{"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    }
    first = shape.first(True)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert first["choices"][0]["finish_reason"] is None and first["usage"] is None
    assert shape.chunk(Piece("", tokens=1), False) == []
    text, end = shape.chunk(Piece("!", "stop", 3), False)
    assert text["choices"][0]["delta"] == {"content": "!"}
    assert (text["choices"][0]["finish_reason"], "usage" in text) == (None, False)
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == (
        {},
        "stop",
    )
    assert shape.count(5, 3)["choices"] == []
