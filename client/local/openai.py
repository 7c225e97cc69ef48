"""OpenAI's chat completions on the wire: what is asked, and what is answered.

Pure functions. What is not carried out is refused by its name, unless its value asks for
nothing. https://platform.openai.com/docs/api-reference/chat
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...common.engine.pieces import Piece
from ..owner.resident import PERSONAL, SHARED, Asked
from .guard import Refused

MODELS = (PERSONAL, SHARED)
GAP = "\n\n"  # between messages of one role in a row
STOPS, STOP_LENGTH, MESSAGES = 16, 1000, 4096  # at most
# Parameter -> values that ask for nothing. A null always does.
NOTHING: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
}
# Parameters that say who asks, not what for.
WHO = ("user", "metadata", "safety_identifier")
# Parameter -> in words what it may be, and whether it is.
TAKES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("a model's name", lambda v: isinstance(v, str)),
    "messages": ("a list of messages", lambda v: isinstance(v, list) and bool(v)),
    "stream": ("true or false", lambda v: isinstance(v, bool)),
    "stream_options": ("an object", lambda v: isinstance(v, dict)),
    "max_tokens": ("a whole number from 1", lambda v: _whole(v) and v > 0),
    "max_completion_tokens": ("a whole number from 1", lambda v: _whole(v) and v > 0),
    "temperature": ("a number from 0 to 2", lambda v: _number(v) and 0 <= v <= 2),
    "top_p": ("a number above 0, at most 1", lambda v: _number(v) and 0 < v <= 1),
    "seed": ("a whole number of 64 bits", lambda v: _whole(v) and abs(v) < 1 << 63),
    "stop": (f"a text, or a list of {STOPS} at most", lambda v: bool(stops_of(v))),
}


class BadRequest(Refused):
    """A request that is refused, and which of its parameters is why."""

    def __init__(
        self, sentence: str, param: str = "", code: str = "", status: int = 400
    ) -> None:
        super().__init__(status, sentence)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes
    ----------
    asked
        The conversation.
    stream
        The answer is to come piece by piece.
    usage
        With how many tokens there were, behind the last piece.
    """

    asked: Asked
    stream: bool
    usage: bool


def _whole(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    # An int may be too large for math.isfinite; every limit here refuses it.
    return type(value) is int or (type(value) is float and math.isfinite(value))


def stops_of(value: Any) -> tuple[str, ...]:
    """The texts that end an answer; empty: the value says none, or is wrong."""
    found = value if isinstance(value, list) else [value]
    right = len(found) <= STOPS and all(
        isinstance(one, str) and 0 < len(one) <= STOP_LENGTH for one in found
    )
    return tuple(found) if right else ()


def request_of(body: Any) -> Request:
    """Read a request.

    Raises
    ------
    BadRequest
        It is none, or asks for what is not carried out.
    """
    if not isinstance(body, dict):
        raise BadRequest("The body has to be a JSON object.")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        _check(name, value)
    for name in ("model", "messages"):
        if name not in given:
            raise BadRequest(f"'{name}' is missing.", name)
    if given["model"] not in MODELS:
        raise unknown_model(given["model"])
    most = {n: given[n] for n in ("max_tokens", "max_completion_tokens") if n in given}
    if len(set(most.values())) > 1:
        raise BadRequest("'max_tokens' is not 'max_completion_tokens'.", "max_tokens")
    stream = given.get("stream", False)
    system, texts = conversation(given["messages"])
    asked = Asked(
        texts=texts,
        system=system,
        budget=next(iter(most.values()), 0),
        policy=given["model"],
        stops=stops_of(given["stop"]) if "stop" in given else (),
        temperature=float(given.get("temperature", 0)),
        top_p=float(given.get("top_p", 1)),
        seed=given.get("seed"),
        shorten=False,
    )
    return Request(asked, stream, _usage(given.get("stream_options", {}), stream))


def _check(name: str, value: Any) -> None:
    """Refuse a parameter that is wrong, or is not carried out."""
    if name in TAKES:
        words, right = TAKES[name]
        if value == [] and name == "stop":
            return
        if not right(value):
            raise BadRequest(f"'{name}' has to be {words}.", name)
    elif name in NOTHING:
        # 1 == True, but true asks for something else.
        flag = isinstance(value, bool)
        if not any(v == value and isinstance(v, bool) == flag for v in NOTHING[name]):
            raise BadRequest(f"'{name}' is not carried out here: leave it out.", name)
    elif name not in WHO:
        raise BadRequest(f"'{name[:80]}' is not carried out here: leave it out.", name)


def unknown_model(name: str) -> BadRequest:
    """The error of a model that there is not."""
    return BadRequest(
        f"There is no model '{name[:80]}': take {' or '.join(MODELS)}.",
        *("model", "model_not_found", 404),
    )


def _usage(options: dict[str, Any], stream: bool) -> bool:
    """Whether tokens are to be counted behind a stream."""
    if options and not stream:
        raise BadRequest("'stream_options' needs 'stream'.", "stream_options")
    for name, value in options.items():
        param = f"stream_options.{name[:80]}"
        if name not in ("include_usage", "include_obfuscation"):
            raise BadRequest(f"'{param}' is not carried out here: leave it out.", param)
        if not isinstance(value, bool) or (value and name != "include_usage"):
            raise BadRequest(f"'{param}' has to be false.", param)
    return options.get("include_usage", False)


# --- messages --------------------------------------------------------------------------


def conversation(messages: list[Any]) -> tuple[str, tuple[str, ...]]:
    """The system's message, and the texts of user and assistant in turn.

    Messages of one role in a row are one; what the system says is one message, wherever it
    stands.

    Raises
    ------
    BadRequest
        A message is none, the first text is not the user's, or the last.
    """
    if len(messages) > MESSAGES:
        raise BadRequest(f"There are more than {MESSAGES} messages.", "messages")
    told: list[str] = []
    said: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        role, text = message_of(message, f"messages[{number}]")
        if role in ("system", "developer"):
            told.append(text)
        elif said and said[-1][0] == role:
            said[-1] = role, GAP.join((said[-1][1], text))
        else:
            said.append((role, text))
    if not said or said[0][0] != "user" or said[-1][0] != "user":
        raise BadRequest(
            "Behind the system's message, the first and the last message have to be the "
            "user's.",
            "messages",
        )
    if not said[-1][1].strip():
        raise BadRequest("The last message is empty.", "messages")
    return GAP.join(told), tuple(text for _, text in said)


def message_of(message: Any, where: str) -> tuple[str, str]:
    """Role and text of one message.

    Raises
    ------
    BadRequest
        It is none, or has more than text.
    """
    if not isinstance(message, dict):
        raise BadRequest(f"'{where}' is not a message.", where)
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise BadRequest(
            f"'{where}.role' has to be system, developer, user or assistant.",
            f"{where}.role",
        )
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, [], ""):
            param = f"{where}.{name[:80]}"
            raise BadRequest(f"'{param}' is not carried out here: leave it out.", param)
    if content is None and role == "assistant":
        content = ""
    return role, text_of(content, f"{where}.content")


def text_of(content: Any, where: str) -> str:
    """The text of a message's content: a text, or a list of parts that are texts.

    Raises
    ------
    BadRequest
        It is something else.
    """
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [None]
    for part in parts:
        known = isinstance(part, dict) and part.get("type") == "text"
        if not known or not isinstance(part.get("text"), str):
            raise BadRequest(f"'{where}' has to be text.", where)
    return "".join(part["text"] for part in parts)


# --- answers ---------------------------------------------------------------------------


def model_card(name: str, created: int) -> dict[str, Any]:
    """One model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "idiolect"}


def model_list(created: int) -> dict[str, Any]:
    """All models."""
    return {"object": "list", "data": [model_card(name, created) for name in MODELS]}


def usage(prompt: int, written: int) -> dict[str, int]:
    """How many tokens there were."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


@dataclass(frozen=True)
class Shape:
    """What all parts of one answer have in common."""

    id: str
    created: int
    model: str

    def whole(self, text: str, last: Piece, prompt: int) -> dict[str, Any]:
        """An answer in one piece; `prompt`: tokens of what was said."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": last.end,
                }
            ],
            "usage": usage(prompt, last.tokens),
        }

    def first(self, counted: bool) -> dict[str, Any]:
        """The beginning of a stream; `counted`: the tokens come behind it."""
        return self._chunk({"role": "assistant", "content": ""}, None, counted)

    def chunk(self, piece: Piece, counted: bool) -> list[dict[str, Any]]:
        """What a piece is in a stream: nothing, or its text, and at the end why."""
        found = []
        if piece.text:
            found.append(self._chunk({"content": piece.text}, None, counted))
        if piece.end:
            found.append(self._chunk({}, piece.end, counted))
        return found

    def count(self, prompt: int, written: int) -> dict[str, Any]:
        """What comes behind a stream where tokens are counted."""
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": usage(prompt, written)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _chunk(
        self, delta: dict[str, Any], end: str | None, counted: bool
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
        more = {"usage": None} if counted else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **more}
