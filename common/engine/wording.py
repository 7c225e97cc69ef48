"""Text to tokens: what surrounds a prompt, what ends an answer, and what stays text.

A tokenizer and its chat template fix once, for all texts of a backbone:

* what stands before and behind a prompt,
* which token ends an answer: the first control token that the template writes behind an
  assistant's text, which often is not the tokenizer's end of sequence,
* that thinking is off and that the date is a fixed one, so that a prompt is the same on
  every device and every day.

Control tokens belong to the template. Where people write ``<|im_end|>``, it is text.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from ..errors import IdiolectError

# What stands for a person's text while a template is looked at.
ASKED, ANSWERED, TOLD = "Idiolect asks", "Idiolect answers", "Idiolect is told"
GAP = "\n\n"  # between messages where no template says it
# What to tokenise a text behind: nothing that a text may begin with merges with it.
LETTER = "a"
# 26 July 2024, which Llama's templates take where there is no clock.
DAY = {
    "%Y": "2024",
    "%y": "24",
    "%m": "07",
    "%-m": "7",
    "%B": "July",
    "%b": "Jul",
    "%h": "Jul",
    "%d": "26",
    "%-d": "26",
    "%e": "26",
    "%j": "208",
    "%A": "Friday",
    "%a": "Fri",
    "%H": "00",
    "%I": "12",
    "%p": "AM",
    "%M": "00",
    "%S": "00",
    "%F": "2024-07-26",
    "%T": "00:00:00",
    "%Z": "UTC",
    "%z": "+0000",
}
# Shadows the clock that templates are given. The line ends behind it: Jinja removes that
# line's end, and the template begins at the start of a line, as before.
CLOCK = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f'.replace("{code}", "{value}")' for code, value in DAY.items())
    + " -}}{%- endmacro %}\n"
)
THINKING = re.compile(r"<(think|thinking|reasoning)>(?!.*</\1>)", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """What a chat template writes around a user's message and the answer to it.

    Attributes
    ----------
    before, behind
        Text around the message, up to where the answer begins.
    opening
        Text that the template puts in front of every answer, beyond white space: the
        model is not asked to write it.
    gap
        White space between that and the answer.
    follow
        Text behind the answer.
    """

    before: str
    behind: str
    opening: str
    gap: str
    follow: str


@dataclass(frozen=True, eq=False)
class Wording:
    """How texts become tokens (see the module's text).

    Attributes
    ----------
    name
        Of the backbone, for messages.
    tokenizer
        The backbone's tokenizer, whose template is rendered.
    plain
        A copy of it in which control tokens have secret spellings.
    turn
        Of the chat template, if there is one.
    around
        Text around a message, control tokens in their secret spelling.
    prefix
        Token ids in front of a prompt without a template.
    start
        What an empty prompt consists of, so that the first token has a context.
    lead
        How a prompt ends (in secret spelling).
    gap, follow
        What stands between prompt and answer, and what ends the answer (likewise).
    end
        Id of the token that ends an answer.
    unused
        Control tokens that no prompt or answer has.
    spelling
        Control token -> its secret spelling.
    """

    name: str
    tokenizer: Any
    plain: Tokenizer
    turn: Turn | None
    around: tuple[str, str]
    prefix: list[int]
    start: int
    lead: str
    gap: str
    follow: str
    end: int
    unused: frozenset[str]
    spelling: Mapping[str, str]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text in which control tokens are text."""
        return self.plain.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str) -> list[int]:
        """Tokens of a prompt, with all that the model expects around it.

        Raises
        ------
        IdiolectError
            The chat template cannot be applied to this text.
        """
        if self.turn is None:
            return [*self.prefix, *self.ids(text)] or [self.start]
        before, behind = self.turn.before, self.turn.behind
        whole = render(self.name, self.tokenizer, [text])
        inner = whole[len(before) : len(whole) - len(behind)]
        if whole != before + inner + behind:
            raise _unfit(
                self.name, "writes other text around some messages than others"
            )
        return self.ids(inner.join(self.around))

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system's message."""
        try:
            return TOLD in render(self.name, self.tokenizer, [ASKED], TOLD)
        except IdiolectError:  # Gemma's refuses one
            return False

    def conversation(self, texts: Sequence[str], system: str = "") -> list[int]:
        """Tokens of a conversation, up to where the next answer begins.

        Parameters
        ----------
        texts
            Of the user and the assistant in turn; the last is the user's.
        system
            The system's message; empty: none. If the template takes none, it stands before
            the first text.

        Without a template all are one text, with empty lines between them.

        Raises
        ------
        IdiolectError
            The chat template cannot be applied to these texts.
        """
        if system and not self.takes_system:
            texts, system = [GAP.join((system, texts[0])), *texts[1:]], ""
        if self.turn is None:
            return self.prompt(GAP.join(texts))
        if len(texts) == 1 and not system:
            return self.prompt(texts[0])
        # The template must not see control tokens that people wrote: it may act on them.
        hidden = {token: f"({secret}" for token, secret in self.spelling.items()}
        told = [respelled(text, hidden) for text in (system, *texts)]
        whole = render(self.name, self.tokenizer, told[1:], told[0] or None)
        whole = respelled(whole + self.turn.opening, self.spelling)
        return self.ids(respelled(whole, {found: t for t, found in hidden.items()}))

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer as they follow a prompt, with the token that ends it.

        A text may begin with what would merge with the prompt's end, such as a second
        line end; the prompt's tokens are fixed, so it is then tokenised behind a letter.
        """
        text = self.gap + text + self.follow
        for lead in (self.lead, LETTER, ""):
            before, whole = self.ids(lead), self.ids(lead + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self.ids(text)

    def cut(self, text: str, tokens: int) -> str:
        """A text without some tokens on its left, and without one character at least."""
        spans = self.plain.encode(text, add_special_tokens=False).offsets
        return text[max(1, spans[min(tokens, len(spans)) - 1][1]) :] if spans else ""


def read_wording(name: str, tokenizer: Any) -> Wording:
    """Find out how a backbone's tokenizer and chat template are used.

    Raises
    ------
    IdiolectError
        The tokenizer has no end of sequence, or the chat template cannot be used: it
        fails, loses the message, ends an answer in text that is not a token of this
        tokenizer, or cannot be told to leave thinking out.
    """
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise IdiolectError(
            f"backbone '{name}' has no fast tokenizer with an end-of-sequence token: "
            "save it with its tokenizer.json."
        )
    turn = _turn(name, tokenizer) if tokenizer.chat_template else None
    # What a control token is spelled by is secret: no text has it.
    nonce, control = secrets.token_hex(16), control_tokens(tokenizer, turn)
    spelling = {token: f"<{nonce}.{i}>" for i, token in enumerate(control)}
    pattern = any_of(spelling)

    def spelled(text: str) -> str:
        return respelled(text, spelling)

    plain = _respelled(name, tokenizer.backend_tokenizer, spelling)
    around, lead, gap, follow = ("", ""), LETTER, " ", tokenizer.eos_token
    if turn:
        behind = turn.behind + turn.opening
        around, gap = (spelled(turn.before), spelled(behind)), turn.gap
        # The end of a prompt from its last control token on tokenises as in the whole.
        places = [found.start() for found in pattern.finditer(behind)]
        lead = behind[places[-1] :] if places else LETTER + behind
        follow = _ending(name, turn.follow, pattern) or follow
    ids = plain.encode(spelled(follow), add_special_tokens=False).ids
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start, prefix = eos if bos is None else bos, _prefix(tokenizer)
    written = [start, *prefix, *ids, *plain.encode("".join(around)).ids]
    return Wording(
        name=name,
        tokenizer=tokenizer,
        plain=plain,
        turn=turn,
        around=around,
        prefix=prefix,
        start=start,
        lead=spelled(lead),
        gap=gap,
        follow=spelled(follow),
        end=ids[-1],
        unused=frozenset(spelling) - set(tokenizer.convert_ids_to_tokens(written)),
        spelling=spelling,
    )


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern of some texts, the first before the others; none: it matches nowhere."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def respelled(text: str, spelling: Mapping[str, str]) -> str:
    """A text in which some parts are spelled otherwise."""
    return any_of(spelling).sub(lambda found: spelling[found[0]], text)


def control_tokens(tokenizer: Any, turn: Turn | None) -> list[str]:
    """Tokens that structure a text and must not come from a person's own; longest first.

    These are the special ones, and others that the chat template writes, such as
    ``<think>``. Runs of white space are text, although some tokenizers add them.
    """
    written = ""
    if turn:
        written = tokenizer.get_chat_template() + "".join(vars(turn).values())
    found = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if not token.content.isspace() and (token.special or token.content in written)
    ]
    return sorted(found, key=len, reverse=True)


def render(
    name: str, tokenizer: Any, texts: Sequence[str], system: str | None = None
) -> str:
    """A conversation in the chat template: a system's message, if any, then a user's.

    With an odd number of messages it goes on to where the answer begins. Thinking is off
    where the template knows how, and the date is fixed.
    """
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    try:
        return tokenizer.apply_chat_template(
            turns,
            chat_template=CLOCK + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=len(texts) % 2 == 1,
            enable_thinking=False,
            thinking=False,
        )
    except (
        TemplateError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise _unfit(name, f"fails ({reason})") from error


def _unfit(name: str, problem: str) -> IdiolectError:
    return IdiolectError(
        f"the chat template of backbone '{name}' {problem}: put the template that belongs "
        "to the model into the folder, or remove it for plain prompts."
    )


def _turn(name: str, tokenizer: Any) -> Turn:
    """Look at what the template makes of two known texts."""
    asking = render(name, tokenizer, [ASKED])
    if asking.count(ASKED) != 1:
        raise _unfit(name, f"writes a message {asking.count(ASKED)} times")
    before, behind = asking.split(ASKED)
    whole = render(name, tokenizer, [ASKED, ANSWERED])
    if whole.count(ANSWERED) != 1:
        raise _unfit(name, f"writes an answer {whole.count(ANSWERED)} times")
    between, follow = whole.split(ANSWERED)
    # A template may write something else in front of an answer that is there.
    between = between.removeprefix(asking) if between.startswith(asking) else ""
    opening, gap = (between, "") if between.strip() else ("", between)
    if found := THINKING.search(behind + opening):
        raise _unfit(name, f"opens {found[0]} and cannot be told to leave it out")
    return Turn(before, behind, opening, gap, follow)


def _ending(name: str, follow: str, control: re.Pattern[str]) -> str:
    """What ends an answer: up to the first control token behind it; empty if none does."""
    if found := control.search(follow):
        return follow[: found.end()]
    if rest := follow.strip()[:40]:
        raise _unfit(name, f"ends an answer in {rest!r}, no token of the tokenizer")
    return ""


def _prefix(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts in front of a text; what it appends is left out."""
    alone = tokenizer(LETTER, add_special_tokens=False)["input_ids"]
    whole = tokenizer(LETTER)["input_ids"]
    ends = range(len(whole) - len(alone) + 1)
    before = (list(whole[:n]) for n in ends if whole[n : n + len(alone)] == alone)
    return next(before, [])


def _respelled(name: str, tokenizer: Tokenizer, spelling: dict[str, str]) -> Tokenizer:
    """A tokenizer with the same ids, whose control tokens are spelled differently.

    So one pass over a whole prompt splits it at the template's control tokens, exactly as
    the original does, and at nothing that a person wrote.
    """
    spec = json.loads(tokenizer.to_str())
    spec |= {"truncation": None, "padding": None, "post_processor": None}
    for token in spec["added_tokens"]:
        token["content"] = spelling.get(token["content"], token["content"])
    model, vocabulary = spec["model"], spec["model"]["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {spelling.get(t, t): i for t, i in vocabulary.items()}
    else:  # a unigram model: pairs of piece and score
        model["vocab"] = [[spelling.get(t, t), score] for t, score in vocabulary]
    if model.get("unk_token"):
        model["unk_token"] = spelling.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # none may make a control token out of text
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [
            list(pair) for pair in pairs if not spelling.keys() & {*pair, "".join(pair)}
        ]
    plain = Tokenizer.from_str(json.dumps(spec))
    for token, number in tokenizer.get_vocab().items():
        if plain.token_to_id(spelling.get(token, token)) != number:
            raise IdiolectError(
                f"the tokenizer of backbone '{name}' has another number for {token!r} "
                "when it is read again: save it by transformers as a tokenizer.json."
            )
    return plain
