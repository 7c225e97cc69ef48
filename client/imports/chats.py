"""Chats: what the owner wrote, and what it answers, from the exports of five services."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .rows import Bad, Left, Owner, Row, TextError, wrong
from .tables import said

NO_MESSAGE = "notices, pictures, calls and deleted messages"
BEFORE = 5  # messages of others right before one's own that are its prompt

Found = Row | Left | Bad | Owner


def _at(value: Any, *keys: str) -> Any:
    """What lies at a path of keys in objects of JSON; None: nothing does."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


# --- assistants ------------------------------------------------------------------------


def read_chatgpt(records: Iterator[Any], name: str) -> Iterator[Found]:
    """The owner's messages in ``conversations.json`` of ChatGPT, with what they answer.

    A conversation is a tree, since questions can be edited: what is read is the branch
    that was shown last, from `current_node` up.
    """
    for number, record in enumerate(records, 1):
        place, nodes = f"{name}, conversation {number}", _at(record, "mapping")
        if not isinstance(nodes, dict):
            yield Bad(place, "has no messages ('mapping')", "no conversation")
            continue
        branch = _branch(nodes, record.get("current_node"))
        every, read = ([_role(n) for n in some] for some in (nodes.values(), branch))
        if left := every.count("user") - read.count("user"):
            yield Left("messages on branches that were edited away", left)
        yield from _answers(_turns(branch, record), place, _PARTS, joined=True)


def _answers(
    turns: Iterable[tuple[bool, Any, Any] | Bad],
    place: str,
    columns: tuple[tuple[str, str], ...],
    joined: bool,
) -> Iterator[Found]:
    """Rows of the owner's turns; the prompt is the answer before.

    Parameters
    ----------
    turns
        Whether it is the owner's, its content, and its date; or what is wrong with it.
    place, columns
        For the rows (`Row`).
    joined
        An answer may come in several turns, with calls of tools in between.
    """
    before = ""
    for turn in turns:
        if isinstance(turn, Bad):
            yield turn
            continue
        own, content, date = turn
        try:
            text = said(content, "a message")
        except TextError as error:
            yield wrong(place, error)
            continue
        if not own:
            before = f"{before}\n\n{text}".strip() if joined else text
            continue
        yield (
            Row(place, before, text, None, date, None, columns)
            if text.strip()
            else Left("messages without text")
        )
        before = ""


def _turns(
    branch: list[Any], record: Mapping[str, Any]
) -> Iterator[tuple[bool, Any, Any]]:
    for node in branch:
        content, metadata = (_at(node, "message", k) for k in ("content", "metadata"))
        # The service's own, such as the standing instructions.
        hidden = _at(metadata, "is_visually_hidden_from_conversation")
        kind = _at(content, "content_type")
        if hidden or kind in ("user_editable_context", "thoughts", "code"):
            continue
        if (role := _role(node)) in ("user", "assistant"):
            parts = _at(content, "parts")
            date = _at(node, "message", "create_time") or record.get("create_time")
            yield role == "user", _at(content, "text") if parts is None else parts, date


_PARTS = (("text", "parts"), ("prompt", "the answer before"), ("date", "create_time"))


def _branch(nodes: Mapping[str, Any], leaf: Any) -> list[Any]:
    """Nodes from the root to a leaf; without one, to the newest."""
    if not isinstance(leaf, str) or leaf not in nodes:
        leaf = max(nodes, key=lambda one: _time(nodes[one]), default=None)
    found, seen = [], set()
    while isinstance(leaf, str) and leaf in nodes and leaf not in seen:
        seen.add(leaf)
        node = nodes[leaf]
        if not isinstance(node, dict):
            break
        found.append(node)
        leaf = node.get("parent")
    return found[::-1]


def _time(node: Any) -> float:
    time = _at(node, "message", "create_time")
    return time if isinstance(time, int | float) else 0.0


def _role(node: Any) -> Any:
    return _at(node, "message", "author", "role")


def read_claude(records: Iterator[Any], name: str) -> Iterator[Found]:
    """The owner's messages in ``conversations.json`` of Claude, with what they answer."""
    for number, record in enumerate(records, 1):
        place = f"{name}, conversation {number}"
        turns = _at(record, "chat_messages")
        if isinstance(turns, list):
            given = (_claude_turn(turn, record, place) for turn in turns)
            yield from _answers(given, place, _TEXT, joined=False)
        else:
            yield Bad(place, "has no messages ('chat_messages')", "no conversation")


_TEXT = (("text", "text"), ("prompt", "the answer before"), ("date", "created_at"))


def _claude_turn(
    turn: Any, record: Mapping[str, Any], place: str
) -> tuple[bool, Any, Any] | Bad:
    if not isinstance(turn, dict):
        return Bad(place, "has a message that is not an object", "no message")
    # A message of files alone has null; newer exports repeat the text in parts.
    text = turn.get("content") if turn.get("text") is None else turn["text"]
    date = turn.get("created_at") or record.get("created_at")
    return turn.get("sender") == "human", text, date


# --- messengers ------------------------------------------------------------------------


Said = deque[tuple[str, str]]  # who, and what; the last `BEFORE` messages


def _prompt(last: Said, who: str) -> str:
    """What others said since this one last spoke: the prompt of the next message."""
    texts = deque[str]()
    for other, text in reversed(last):
        if other == who:
            break
        texts.appendleft(text)
    return "\n".join(texts)


# [31/12/2024, 21:15:03] Anna: hello    31/12/2024, 21:15 - Anna: hello
_DAY = r"(\d{1,4}[./-]\d{1,2}[./-]\d{1,4})\.?,?\s(?:[^\W\d]{1,4}\s)?"
_TIME = r"(\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\s?[ap]\.?\s?m\.?)?)"
_MESSAGE = re.compile(
    rf"[\u200e\u200f]?(\[)?{_DAY}{_TIME}(?(1)\]\s|\s[-–]\s)(.*)", re.I | re.S
)
# What the app writes in the place of a picture, a call or a message: on iPhones behind a
# left-to-right mark, elsewhere in brackets.
_DELETED = (
    *("this message was deleted", "you deleted this message"),
    *("diese nachricht wurde gelöscht", "du hast diese nachricht gelöscht"),
    *("ce message a été supprimé", "vous avez supprimé ce message"),
    *("se eliminó este mensaje", "eliminaste este mensaje"),
    *("questo messaggio è stato eliminato", "hai eliminato questo messaggio"),
    *("mensagem apagada", "essa mensagem foi apagada", "você apagou esta mensagem"),
    *("dit bericht is verwijderd", "je hebt dit bericht verwijderd"),
)
_ATTACHED = (
    *("file attached", "datei angehängt", "fichier joint", "archivo adjunto"),
    *("file allegato", "arquivo anexado", "bestand bijgevoegd"),
)
_APP = re.compile(
    f"\u200e.*|<[^<>\n]{{3,40}}>|(?:{'|'.join(_DELETED)})\\.?"
    "|null|missed (?:voice|video) call",
    re.I | re.S,
)
# What was written below a picture is the owner's.
_FILE = re.compile(f"[^\n]{{1,200}} \\((?:{'|'.join(_ATTACHED)})\\)(?:\n|$)", re.I)
_EDITED = re.compile("\\s*(?:\u200e<[^<>\n]{3,60}>|<This message was edited>)$")
_WHATSAPP = (
    ("text", "message"),
    ("prompt", "the messages of others before it"),
    ("date", "date"),
)


def is_whatsapp(start: str) -> bool:
    """Whether a text begins as a chat that WhatsApp exported does."""
    return any(_MESSAGE.match(line.lstrip("\ufeff")) for line in start.split("\n")[:5])


def read_whatsapp(lines: Iterator[str], name: str) -> Iterator[Found]:
    """Everybody's messages in a chat that WhatsApp exported as text.

    A line that does not begin with a date goes on with the message before it.
    """
    last = Said(maxlen=BEFORE)
    for number, date, rest in _messages(lines):
        who, colon, text = rest.partition(": ")
        text = _FILE.sub("", _EDITED.sub("", text.strip(" \r\n\t")), 1)
        if not date:
            yield Left("lines before the first message")
        elif not colon or "\n" in who or not text or _APP.fullmatch(text):
            yield Left(NO_MESSAGE)
        else:
            # Unsaved numbers stand between marks, and unsaved names behind a tilde.
            who = who.strip(" \u200e\u200f\u202a\u202c\u202f~")
            place, prompt = f"{name}, line {number}", _prompt(last, who)
            yield Row(place, prompt, text, None, date, who, _WHATSAPP)
            last.append((who, text))


def _messages(lines: Iterator[str]) -> Iterator[tuple[int, str, str]]:
    """Number of the first line, date, and the rest of each message."""
    start, date, parts = 1, "", list[str]()
    for number, line in enumerate(lines, 1):
        found = _MESSAGE.match(line.translate(_NARROW))
        if found is None:
            parts.append(line)
            continue
        if date or "".join(parts).strip():
            yield start, date, "".join(parts)
        start, date = number, f"{found[2]} {found[3]}"
        parts = [line[found.start(4) :]]
    if date or "".join(parts).strip():
        yield start, date, "".join(parts)


_NARROW = {0x202F: " ", 0xA0: " "}  # before "PM"


_TELEGRAM = (
    ("text", "text"),
    ("prompt", "the message that it answers, or those of others before it"),
    ("date", "date"),
)


def read_telegram(export: Any, name: str) -> Iterator[Found]:
    """Everybody's messages in ``result.json`` of Telegram: of one chat, or of all."""
    several = isinstance(export.get("chats"), dict)
    chats = export["chats"].get("list") if several else [export]
    if me := _at(export, "personal_information", "user_id"):
        yield Owner(f"user{me}")
    for number, chat in enumerate(chats if isinstance(chats, list) else [], 1):
        place, messages = f"{name}, chat {number}", _at(chat, "messages")
        if isinstance(messages, list):
            yield from _telegram_chat(messages, place)
        else:
            yield Bad(place, "has no list 'messages'", "no chat")


def _telegram_chat(messages: list[Any], chat: str) -> Iterator[Found]:
    last, texts = Said(maxlen=BEFORE), dict[str, str]()
    for number, message in enumerate(messages, 1):
        place = f"{chat}, message {number}"
        if not isinstance(message, dict):
            yield Bad(place, "is not a JSON object", "no JSON object")
            continue
        if message.get("type") != "message":
            yield Left(NO_MESSAGE)
            continue
        try:
            text = said(message.get("text"), "text", "")
        except TextError as error:
            yield wrong(place, error)
            continue
        who = str(message.get("from_id") or message.get("from") or "a deleted account")
        if not text.strip():
            yield Left(NO_MESSAGE)
        elif message.get("forwarded_from") or message.get("via_bot"):
            yield Left("forwarded messages")
        else:
            date = message.get("date_unixtime") or message.get("date")
            answered = texts.get(str(message.get("reply_to_message_id")))
            prompt = answered or _prompt(last, who)
            called = str(message.get("from") or who)
            yield Row(place, prompt, text, None, date, called, _TELEGRAM, key=who)
        last.append((who, text))
        texts[str(message.get("id"))] = text
