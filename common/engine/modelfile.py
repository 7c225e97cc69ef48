"""A Modelfile for Ollama: the prompt as the chat template writes it, and how texts end.

Ollama's templates are those of Go, chat templates are Jinja. What a template writes around
the messages of a conversation is looked at, and said in Go. The result is compared with
nothing but that: a template that treats some messages otherwise is not followed there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import IdiolectError, refuse_if
from ..text import printable
from .backbone import Backbone
from .wording import ANSWERED, ASKED, Turn, Wording, render

SYSTEM, AGAIN = "Idiolect is told", "Idiolect asks again"
# Tokens; Ollama's own default is below what most of these models read.
LONGEST = 8192
# As `idiolect generate` writes, as near as Ollama comes: it counts the prompt, too.
SETTINGS = {"temperature": "0", "repeat_penalty": "1.1"}
QUOTES = '"""'


@dataclass(frozen=True)
class Turns:
    """What a chat template writes between the messages of a conversation.

    Attributes
    ----------
    first
        In front of a user's first message, where nothing is before it.
    answered
        Between a user's message and an answer that is there.
    again
        Between an answer and the next message.
    end
        Behind the last message, up to where the answer begins.
    system
        In front of a system's message, and between it and the user's; None: the template
        takes none.
    """

    first: str
    answered: str
    again: str
    end: str
    system: tuple[str, str] | None


def modelfile(backbone: Backbone, model: str, adapter: str = "") -> str:
    """Return the Modelfile of a model and an adapter beside it.

    Parameters
    ----------
    backbone
        Whose prompts it has.
    model, adapter
        Names of files in the Modelfile's folder; an empty one: none.

    Raises
    ------
    IdiolectError
        The chat template has what a Modelfile cannot: three double quotes, or braces that
        Go would read.
    """
    context = min(LONGEST, backbone.model.config.max_position_embeddings)
    parameters = {**SETTINGS, "num_ctx": str(context)}
    lines = [
        f"FROM ./{model}",
        *([f"ADAPTER ./{adapter}"] if adapter else []),
        f"TEMPLATE {QUOTES}{template(backbone.wording)}{QUOTES}",
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        *(f'PARAMETER stop "{stop}"' for stop in stops(backbone)),
    ]
    return "\n".join(lines) + "\n"


def stops(backbone: Backbone) -> list[str]:
    """Return the tokens that end an answer, as texts."""
    ends = [backbone.tokenizer.convert_ids_to_tokens(end) for end in backbone.end_ids]
    for end in ends:
        _check(backbone.name, "end token", end, '"', "\n")
    return ends


def template(wording: Wording) -> str:
    """Return Ollama's template: the chat template's text around the same messages."""
    if wording.turn is None:
        return "{{ .Prompt }}"
    turns = turns_of(wording, wording.turn)
    texts = turns.first, turns.answered, turns.again, turns.end, *(turns.system or ())
    for text in texts:
        _check(wording.name, "chat template", text)
    return "".join(_parts(turns))


def _parts(turns: Turns) -> Iterator[str]:
    yield '{{ $last := "" }}{{ range .Messages }}'
    first, told = "{{ if ", ""
    if turns.system:
        start, between = turns.system
        yield f'{{{{ if eq .Role "system" }}}}{start}{{{{ .Content }}}}'
        first, told = "{{ else if ", f'eq $last "system" }}}}{between}{{{{ else if '
    yield f'{first}eq .Role "user" }}}}'
    yield f'{{{{ if {told}eq $last "assistant" }}}}{turns.again}'
    yield f"{{{{ else }}}}{turns.first}{{{{ end }}}}{{{{ .Content }}}}"
    yield f'{{{{ else if eq .Role "assistant" }}}}{turns.answered}{{{{ .Content }}}}'
    yield "{{ end }}{{ $last = .Role }}{{ end }}"
    yield f'{{{{ if eq $last "user" }}}}{turns.end}{{{{ end }}}}'


def turns_of(wording: Wording, turn: Turn) -> Turns:
    """Look at what the chat template makes of known messages.

    A BOS that the tokenizer puts in front of every text is left out: llama.cpp does so too.

    Raises
    ------
    IdiolectError
        The second question is not written as the first one was.
    """
    name, tokenizer = wording.name, wording.tokenizer
    whole = render(name, tokenizer, [ASKED, ANSWERED, AGAIN])
    _, _, rest = whole.partition(ASKED)
    answered, _, rest = rest.partition(ANSWERED)
    again, found, last = rest.partition(AGAIN)
    refuse_if(
        not found or last != turn.behind,
        f"the chat template of backbone '{name}' writes a second message otherwise than "
        "the first, which a Modelfile cannot say: take `--format peft`.",
    )
    system = None
    try:
        told = render(name, tokenizer, [ASKED], SYSTEM)
    except IdiolectError:  # Gemma's template refuses one
        told = ""
    start, found, rest = told.partition(SYSTEM)
    between, asked, rest = rest.partition(ASKED)
    if found and asked and rest == turn.behind:
        system = _without_bos(wording, start), between
    first, end = _without_bos(wording, turn.before), turn.behind + turn.opening
    return Turns(first, answered, again, end, system)


def _without_bos(wording: Wording, text: str) -> str:
    first = wording.prefix[:1]
    bos = wording.tokenizer.bos_token
    doubled = bos and first == [wording.tokenizer.bos_token_id]
    return text.removeprefix(bos) if doubled else text


def _check(name: str, what: str, text: str, *others: str) -> None:
    odd = next((one for one in (QUOTES, "{{", "}}", *others) if one in text), "")
    # A quotation mark at an end would join the three that are there.
    odd = odd or ('"' if text.startswith('"') or text.endswith('"') else "")
    refuse_if(
        odd,
        f"the {what} of backbone '{printable(name, 200)}' has {odd!r}, which a Modelfile "
        "cannot say: take `--format peft`.",
    )
