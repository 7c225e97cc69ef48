"""Readers for LaMP-1 … LaMP-7: the official files and the shape used by OPPU.

Sources: Salemi et al. 2024, "LaMP: When Large Language Models Meet Personalization"
(files, questions, labels); Salemi and Zamani 2024 (how a profile item becomes a pair);
Tan et al. 2024, OPPU (the one-word cue behind the input). What each task looks like,
and how users are split, is written out in docs/data.md.
"""

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import LONGEST_NAME, Config
from ..errors import IdiolectError, words_of
from ..seeds import numpy_generator
from ..text import printable
from .dates import oldest_first, order_of, seconds
from .repair import DAMAGED, missing, repaired
from .types import Dataset, Item, Prompt, Task, User

logger = logging.getLogger(__name__)

# Stand-in for a public corpus: enough for a bank of `votes`, and reading stops here.
PUBLIC = 4000

# What is left out of the users who stay, or not done for them; counted in
# `Dataset.dropped`.
LEAKED = "history items equal to a held-out item"
EMPTY = "history items without text"
HOLLOW = "questions without text or answer"
UNASKED = "questions behind the first `held-out`"
UNKNOWN = "questions of unknown wording, taken whole"
UNDATED = "histories in file order, since an item has no date"

# Control characters that are not white space, byte order marks, lone surrogates (which
# JSON can spell and no tokenizer can encode).
_NOISE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff\ud800-\udfff]")


# Letters and symbols that show nothing, for all their category: Hangul fillers, the empty
# pattern of Braille.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"


@dataclass(frozen=True)
class Form:
    """What a question of one LaMP task looks like, and how history gets the same shape.

    Attributes
    ----------
    question
        The published instruction in front of the user's text.
    wording
        Pattern of such a question in other words: groups ``before`` and ``input``, what is
        behind them is `Prompt.after`.
    source, answer
        Fields of a profile item: x and y of a history pair. No answer field: the text
        itself is split (`_pair`).
    cue
        Word that asks for the answer. A causal model without chat template would
        otherwise continue the input; OPPU adds the same.
    stop
        Where the user's text ends inside the question; empty: at its end.
    history
        Instruction of a history pair where profiles hold no answers to such questions.
    """

    task: Task
    question: str
    source: str
    answer: str
    cue: str
    wording: str
    stop: str = ""
    history: str = ""


_QUOTE = "[\"\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019']"


TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia",
    "dark comedy", "classic", "psychology", "fantasy", "romance", "thought-provoking",
    "social commentary", "violence", "true story",
)  # fmt: skip

FORMS: dict[str, Form] = {
    "LaMP-1": Form(
        Task("LaMP-1", "classification", ("[1]", "[2]"), max_new_tokens=8),
        question='For an author who has written the paper with the title "',
        stop='", which reference is related?',
        source="title",
        answer="abstract",
        cue=" reference:",
        wording=rf"(?P<before>.{{0,200}}?\bpaper\b.{{0,60}}?\btitled?\b\s*:?\s*{_QUOTE}?)"
        rf"(?P<input>.+?){_QUOTE}?\s*,?\s*which reference is related\b",
        history="Write an abstract for this title: ",
    ),
    "LaMP-2": Form(
        Task("LaMP-2", "classification", TAGS, max_new_tokens=16),
        question="Which tag does this movie relate to among the following tags? Just "
        "answer with the tag name without further explanation. tags: "
        f"[{', '.join(TAGS)}] description: ",
        source="description",
        answer="tag",
        cue=" tag:",
        wording=r"(?=.*\btags?\b)(?P<before>.{0,2000}?\bdescription\s*:\s*)"
        r"(?P<input>.+?)(?:\s*\btags\s*:\s*\[[^\]]*\]\W*)?$",
    ),
    "LaMP-3": Form(
        Task("LaMP-3", "rating", ("1", "2", "3", "4", "5"), max_new_tokens=8),
        question="What is the score of the following review on a scale of 1 to 5? just "
        "answer with 1, 2, 3, 4, or 5 without further explanation. review: ",
        source="text",
        answer="score",
        cue=" score:",
        wording=r"(?P<before>.{0,300}?\b(?:score|rate|rating)\b.{0,300}?\breview\s*:\s*)"
        r"(?P<input>.+)",
    ),
    "LaMP-4": Form(
        Task("LaMP-4", "generation"),
        question="Generate a headline for the following article: ",
        source="text",
        answer="title",
        cue=" headline:",
        wording=r"(?P<before>.{0,200}?\bheadline\b.{0,100}?\barticle\s*:\s*)(?P<input>.+)",
    ),
    "LaMP-5": Form(
        Task("LaMP-5", "generation", max_new_tokens=48),
        question="Generate a title for the following abstract of a paper: ",
        source="abstract",
        answer="title",
        cue=" title:",
        wording=r"(?P<before>.{0,200}?\btitle\b.{0,100}?\babstract\b[^:]{0,40}:\s*)"
        r"(?P<input>.+)",
    ),
    "LaMP-6": Form(
        Task("LaMP-6", "generation"),
        question="Generate a subject for the following email: ",
        source="text",
        answer="title",
        cue=" subject:",
        wording=r"(?P<before>.{0,200}?\bsubject\b.{0,100}?\be-?mail\s*:\s*)(?P<input>.+)",
    ),
    "LaMP-7": Form(
        Task("LaMP-7", "generation", max_new_tokens=64),
        question="Paraphrase the following tweet without any explanation before or "
        "after it: ",
        source="text",
        answer="",
        cue=" tweet:",
        wording=r"(?P<before>.{0,200}?\bparaphrase\b[^:]{0,200}:\s*)(?P<input>.+)",
        history="Complete the following tweet: ",
    ),
}


class _BadUserError(Exception):
    """One user's record cannot be used: a reason to count by, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read(config: Config) -> Dataset:
    """Read the users of a LaMP task.

    The first ``config.users`` in file order are evaluated, the next
    ``config.development_users`` are development users, and the history of those behind
    them, without anything that is somebody's held-out item, is `Dataset.public`. What
    `Dataset.dropped` counts is also logged, in one line.

    Raises
    ------
    IdiolectError
        The file is missing, no JSON, or of another task; a user's record is malformed
        (and ``skip-bad-users`` is off); there are fewer users than asked for.
    """
    form = FORMS[config.task]
    name, records = _records(Path(config.data).expanduser(), form.task.name)
    wanted = config.users + config.development_users
    dropped: Counter[str] = Counter()
    names: set[str] = set()
    users: list[User] = []
    public: list[Item] = []
    for index, record in enumerate(records):
        try:
            user, removed = _user(record, form, config)
            if user.id in names:
                raise _BadUserError("duplicate user", "an earlier record has this user")
        except _BadUserError as bad:
            if not config.skip_bad_users:
                raise _bad_record(name, index, record, bad) from None
            dropped[bad.reason] += 1
            continue
        names.add(user.id)
        if len(users) < wanted:
            users.append(user)
            dropped += removed
        else:
            public.extend(user.history)
        if len(users) == wanted and len(public) >= PUBLIC:
            break
    if len(users) < wanted:
        raise _too_few(name, len(users), config, dropped)
    _say_dropped(name, dropped)
    held = _Held([item for user in users for item in user.held_out], form)
    evaluated, development = users[: config.users], users[config.users :]
    return Dataset(
        task=form.task,
        users=_with_rivals(evaluated, development, config),
        development=_with_rivals(development, evaluated, config),
        public=tuple(item for item in public if not held.has(item, form))[:PUBLIC],
        dropped=dict(dropped),
        source=name,
    )


@dataclass(frozen=True)
class Kept:
    """One item of somebody's files, as an owner imports it.

    Attributes
    ----------
    user, place
        Whose it is, and where in the record.
    item
        None: it cannot be used, for the reason that `problem` names.
    date
        As the file has it; a question is of the time of the newest profile item.
    problem
        What is wrong, and the reason to count it by.
    """

    user: str
    place: str
    item: Item | None
    date: Any = None
    problem: tuple[str, str] = ("", "")


def everything(path: Path, task: str) -> Iterator[Kept]:
    """All that the files hold: of each user the profile, then the answered questions.

    Raises
    ------
    IdiolectError
        The file is missing, no JSON, or of another task.
    """
    form = FORMS[task]
    _, records = _records(path, form.task.name)
    for index, record in enumerate(records):
        try:
            name = _name(record)
            parts = [(part, _entries(record, part)) for part in ("profile", "query")]
        except _BadUserError as bad:
            yield Kept(f"record {index}", "", None, None, (str(bad), bad.reason))
            continue
        for part, entries in parts:
            for number, entry in enumerate(entries):
                yield _kept(entry, f"{part}[{number}]", name, form, parts[0][1])


def _kept(entry: Any, place: str, user: str, form: Form, profile: list[Any]) -> Kept:
    try:
        if place.startswith("query"):
            dates = [one.get("date") for one in profile if isinstance(one, dict)]
            return Kept(user, place, _query(entry, place, user, form), _latest(dates))
        prompt, target = _pair(entry, place, form)
    except _BadUserError as bad:
        return Kept(user, place, None, None, (str(bad), bad.reason))
    if not prompt.input or not target:
        return Kept(user, place, None, None, (f"{place} has no text", EMPTY))
    return Kept(user, place, Item(f"{user}/{place}", prompt, target), entry.get("date"))


def _latest(dates: list[Any]) -> Any:
    """The latest of a profile's dates; None: it has none, or they cannot be compared."""
    try:
        order = order_of(dates)
        return max(dates, key=lambda date: seconds(date, order), default=None)
    except ValueError:
        return next((date for date in reversed(dates) if date is not None), None)


def _say_dropped(name: str, dropped: Mapping[str, int]) -> None:
    if dropped:
        listed = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
        logger.warning("warning: %s: %s", printable(name), listed)


def clean(text: str) -> str:
    """Text without control characters, every run of white space one blank.

    A text of nothing but characters that show nothing is empty.
    """
    if DAMAGED.search(text):  # what is removed cannot be repaired any more
        text = repaired(text)
    text = " ".join(_NOISE.sub("", text).split())
    return "" if not text.isascii() and all(map(_is_invisible, text)) else text


def _is_invisible(character: str) -> bool:
    return character in _BLANK or unicodedata.category(character) in ("Cf", "Mn", "Zs")


def read_text(path: Path, key: str) -> str:
    """Read a UTF-8 file that a config key names.

    Raises
    ------
    IdiolectError
        There is no such file, or it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise IdiolectError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from None
    except OSError as error:
        raise IdiolectError(
            f"cannot read {path}: {error.strerror}; check the config key '{key}'."
        ) from None


# --- files ----------------------------------------------------------------------------


def _records(path: Path, task: str) -> tuple[str, list[Any]]:
    """One record per user in OPPU's shape, not yet checked, and where they are from."""
    path = _find(path)
    if path.name.endswith("_questions.json"):
        outputs = _outputs(path)
        name = f"{path.name} with {outputs.name}"
        records = _grouped(_list(path), _golds(outputs, task))
    else:
        labels = path.with_name(f"{path.stem}_label.json")
        name = path.name
        records = _list(path)
        if labels.is_file():
            name = f"{path.name} with {labels.name}"
            records = _labelled(records, _golds(labels, None))
    logger.info("%s: %d users from %s", task, len(records), path)
    return name, records


def _find(path: Path) -> Path:
    """Return the questions or OPPU file that `path` is, or that the folder holds."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise IdiolectError(
            f"there is no file or folder {path}: set 'data' to the folder with the "
            "LaMP files (docs/data.md says where to get them)."
        )
    official = [path / f"{part}_questions.json" for part in ("dev", "train", "test")]
    official = [questions for questions in official if questions.is_file()]
    for questions in official:
        if _outputs(questions).is_file():
            return questions
    shaped = sorted({*path.glob("*users.json"), *path.glob("user_*_history.json")})
    if len(shaped) == 1:
        return shaped[0]
    if shaped:
        raise IdiolectError(
            f"{path} holds {' and '.join(p.name for p in shaped)}: set 'data' to one "
            "of these files."
        )
    if official:
        raise IdiolectError(
            f"{official[0].name} in {path} has no "
            f"{_outputs(official[0]).name} beside it: put the file with the outputs "
            "there (LaMP keeps those of its test split to itself)."
        )
    raise IdiolectError(
        f"{path} holds neither dev_questions.json with dev_outputs.json nor a file "
        "*users.json: set 'data' to the folder of one LaMP task (see docs/data.md)."
    )


def _outputs(questions: Path) -> Path:
    return questions.with_name(questions.name.replace("_questions", "_outputs"))


def _json(path: Path) -> Any:
    text = read_text(path, "data")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise IdiolectError(
            f"{path} is not JSON: line {error.lineno}, column {error.colno}: "
            f"{error.msg}; repair the file or download it again."
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deep, endless digits
        raise IdiolectError(
            f"{path} cannot be read as JSON ({words_of(error)}): download it again."
        ) from None


def _list(path: Path) -> list[Any]:
    records = _json(path)
    if not isinstance(records, list):
        raise IdiolectError(
            f"{path} holds no list of users: see docs/data.md for the two shapes."
        )
    return records


def _golds(path: Path, task: str | None) -> dict[str, Any]:
    """Question id -> output, from ``{"task", "golds": [{"id", "output"}]}``."""
    content = _json(path)
    golds = content.get("golds") if isinstance(content, dict) else None
    if not isinstance(golds, list):
        raise IdiolectError(
            f"{path} has no list 'golds': see docs/data.md for the official shape."
        )
    named = str(content.get("task", "")).replace("_", "-")
    if task and named and named != task:
        raise IdiolectError(
            f"{path} holds {named}, but the config says {task}: set task={named}."
            if named in FORMS
            else f"{path} holds '{named}', not {task}: set 'data' to other files."
        )
    for index, gold in enumerate(golds):
        if not isinstance(gold, dict) or "id" not in gold:
            raise IdiolectError(
                f"{path}: golds[{index}] has no field 'id': repair the file or "
                "download it again."
            )
    return {str(gold["id"]): gold.get("output") for gold in golds}


def _grouped(questions: Sequence[Any], golds: dict[str, Any]) -> list[Any]:
    """Official questions as one record per user.

    In the user-based files a question is a user; the time-based ones name the user, who
    may have several questions: the profile of the first one is taken, as LaMP's own
    per-user training does.
    """
    users: dict[str, Any] = {}
    for index, question in enumerate(questions):
        if not isinstance(question, dict):
            users[f"\0{index}"] = question
            continue
        name = question.get("user_id", question.get("id"))
        record = users.setdefault(
            f"\0{index}" if name is None else str(name),
            {"user_id": name, "profile": question.get("profile"), "query": []},
        )
        query = {key: question.get(key) for key in ("id", "input")}
        record["query"].append({**query, "gold": golds.get(str(query["id"]))})
    return list(users.values())


def _labelled(records: Sequence[Any], golds: dict[str, Any]) -> list[Any]:
    """OPPU's evaluation file, with the golds of the label file beside it filled in."""

    def fill(query: Any) -> Any:
        if not isinstance(query, dict) or "gold" in query:
            return query
        return {**query, "gold": golds.get(str(query.get("id")))}

    return [
        {**record, "query": [fill(query) for query in record["query"]]}
        if isinstance(record, dict) and isinstance(record.get("query"), list)
        else record
        for record in records
    ]


# --- one user -------------------------------------------------------------------------


def _user(record: Any, form: Form, config: Config) -> tuple[User, Counter[str]]:
    """Check one record and split it into history and held-out items."""
    name = _name(record)
    entries = _entries(record, "query")
    # Of none that is whole, the first one's fault is named.
    whole = [n for n, entry in enumerate(entries) if not _is_hollow(entry)]
    queries = [
        _query(entries[index], f"query[{index}]", name, form)
        for index in whole or range(len(entries))
    ]
    if len({item.id for item in queries}) < len(queries):
        raise _BadUserError("duplicate id", "two entries of 'query' have the same id")
    found, removed = _profile(record, name, form)
    held = queries[: config.held_out]
    removed[HOLLOW] = len(entries) - len(queries)
    removed[UNASKED] = len(queries) - len(held)
    removed[UNKNOWN] = sum(not item.prompt.before for item in held)
    profile = _without(found, held, form)
    # More held-out items where a user has few questions: means over one item are noise.
    # Not where history pairs are of another form than the questions.
    more = 0
    if not form.history:
        more = min(config.held_out - len(held), len(profile) // 4)
    older = profile[: len(profile) - more]
    held += profile[len(profile) - more :]
    history = _without(older, held, form)
    removed[LEAKED] = len(found) - len(profile) + len(older) - len(history)
    if not history:
        raise _BadUserError("empty history", "there is no history item to learn from")
    if not held:
        raise _BadUserError("nothing held out", "there is no item to be measured on")
    return User(name, tuple(history[-config.history :]), tuple(held)), +removed


def _name(record: Any) -> str:
    if not isinstance(record, dict):
        raise _BadUserError("wrong type", "the record is no JSON object")
    name = _field(record, "user_id", "user_id")
    if isinstance(name, float) and name.is_integer():  # as a data frame writes them
        name = int(name)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise _BadUserError("wrong type", "field 'user_id' is no text or number")
    name = clean(str(name))
    if not 0 < len(name) <= LONGEST_NAME:
        raise _BadUserError(
            "unusable id",
            f"field 'user_id' has {len(name)} characters, and 1 to {LONGEST_NAME} are "
            "possible",
        )
    return name


def _entries(record: dict[str, Any], name: str) -> list[Any]:
    entries = _field(record, name, name)
    if not isinstance(entries, list):
        raise _BadUserError("wrong type", f"field '{name}' is no list")
    return entries


def _query(entry: Any, place: str, user: str, form: Form) -> Item:
    """One question and its gold output."""
    name = _field(entry, "id", f"{place}.id")
    question = _text(entry, "input", place)
    if entry.get("gold") is None:
        raise _BadUserError("missing gold", f"{place} (id '{name}') has no gold output")
    gold = _answer(entry, "gold", place, form)
    if not question or not gold:
        field = "gold" if question else "input"
        raise _BadUserError("empty text", f"field '{place}.{field}' is empty")
    return Item(f"{user}/query/{name}", _split(question, form), gold)


def _profile(
    record: dict[str, Any], user: str, form: Form
) -> tuple[list[Item], Counter[str]]:
    """History pairs, oldest first, and what was left out or not done."""
    entries = _entries(record, "profile")
    pairs: list[Item] = []
    dates: dict[str, Any] = {}
    for index, entry in enumerate(entries):
        place = f"profile[{index}]"
        if _is_missing(entry):
            continue
        prompt, target = _pair(_filled(entry), place, form)
        if prompt.input and target:
            pairs.append(Item(f"{user}/profile/{index}", prompt, target))
            dates[f"{place}.date"] = entry.get("date")
    given = {place: date for place, date in dates.items() if not _is_missing(date)}
    found = _seconds(given)
    if len(found) == len(pairs):
        pairs = [pairs[place] for place in oldest_first(found)]
    undated = 0 < len(found) < len(pairs)
    return pairs, Counter({EMPTY: len(entries) - len(pairs), UNDATED: undated})


def _is_missing(value: Any) -> bool:
    """Whether a value is none: null, empty, or NaN, as a data frame writes it."""
    return missing(value) or value == ""


def _is_hollow(question: Any) -> bool:
    """Whether a question has no text, or no answer."""
    if not isinstance(question, dict):
        return _is_missing(question)
    both = (question.get("input"), question.get("gold"))
    return any(_is_missing(v) or (isinstance(v, str) and not clean(v)) for v in both)


def _filled(entry: Any) -> Any:
    """An item with empty text where a value is missing: such an item is left out."""
    if not isinstance(entry, dict):
        return entry
    return {name: "" if _is_missing(value) else value for name, value in entry.items()}


def _pair(entry: Any, place: str, form: Form) -> tuple[Prompt, str]:
    """Prompt and target of a profile item, in the form of the task's questions."""
    text = _text(entry, form.source, place)
    if form.answer:
        answer = _answer(entry, form.answer, place, form)
        if form.history:
            return Prompt(form.history, text, f" {form.answer}:"), answer
        return Prompt(form.question, text, form.cue), answer
    # A tweet has no counterpart: its first sixth asks for the rest. The authors of LaMP
    # draw a tenth to a quarter at random; a sixth is about their mean, without a draw.
    words = text.split()
    start = max(1, len(words) // 6)
    return Prompt(form.history, " ".join(words[:start])), " ".join(words[start:])


def _split(question: str, form: Form) -> Prompt:
    """Part a question into instruction and text; of an unknown wording all is text."""
    end = question.rfind(form.stop) if form.stop else len(question)
    start = len(form.question)
    if not question.startswith(form.question) or end <= start:
        found = re.match(form.wording, question, re.IGNORECASE)
        if found is None:
            return Prompt("", question, form.cue)
        start, end = found.span("input")
        end = start + len(question[start:end].rstrip())
    return Prompt(question[:start], question[start:end], question[end:] + form.cue)


def _field(entry: Any, name: str, place: str) -> Any:
    if not isinstance(entry, dict):
        owner = place.rpartition(".")[0]
        raise _BadUserError("wrong type", f"{owner} is no JSON object")
    if entry.get(name) is None:
        raise _BadUserError("missing field", f"field '{place}' is missing")
    return entry[name]


def _text(entry: Any, name: str, place: str) -> str:
    value = _field(entry, name, f"{place}.{name}")
    if not isinstance(value, str):
        raise _BadUserError("wrong type", f"field '{place}.{name}' is no text")
    return clean(value)


def _answer(entry: Any, name: str, place: str, form: Form) -> str:
    """Return y: text, or one of the task's labels (where 4 and 4.0 mean "4")."""
    # History pairs of LaMP-1 are text although its questions have labels.
    if not form.task.labels or (form.history and name == form.answer):
        return _text(entry, name, place)
    value = _field(entry, name, f"{place}.{name}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
        raise _BadUserError("wrong type", f"field '{place}.{name}' is no label")
    label = clean(value)
    if label and label not in form.task.labels:
        raise _BadUserError(
            "unknown label",
            f"field '{place}.{name}' is {label!r}, not one of "
            f"{', '.join(form.task.labels)}",
        )
    return label


def _seconds(dates: Mapping[str, Any]) -> list[float]:
    """Dates of a profile by field, as numbers; nothing that cannot be read is guessed."""
    try:
        order = order_of(dates.values())
    except ValueError as error:
        raise _BadUserError(
            "unreadable date", f"'date' of 'profile': {error}"
        ) from None
    found: list[float] = []
    for field, date in dates.items():
        try:
            found.append(seconds(date, order))
        except ValueError as error:
            raise _BadUserError(
                "unreadable date", f"field '{field}' is {str(date)!r:.40}: {error}"
            ) from None
    return found


# --- leakage and rivals ---------------------------------------------------------------


_SOME = 4  # words of a text that stands inside a question by no accident
_PARTS = re.compile('["\u201c\u201d\u201e\u00ab\u00bb:]')  # what a text is set apart by


def _words(text: str) -> str:
    """Text by which copies are found: its words alone, whatever case, quotes and stops."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain)) or plain


class _Held:
    """Texts of held-out items, to find the same text elsewhere."""

    def __init__(self, items: Sequence[Item], form: Form) -> None:
        self.inputs = {_words(item.prompt.input) for item in items}
        self.targets = {_words(item.target) for item in items}
        # Questions in other words than the published ones: whatever was taken for the
        # text that they ask about, it stands in them.
        other = [
            i.prompt.text.removesuffix(form.cue)
            for i in items
            if i.prompt.before != form.question
        ]
        self.questions = "".join(f" {_words(question)} |" for question in other)
        parts = (part for question in other for part in _PARTS.split(question))
        self.inputs |= {_words(part) for part in parts if part.strip()}

    def has(self, item: Item, form: Form) -> bool:
        """Whether `item` has a held-out item's input or, if free text, its target.

        A label is shared by many items and gives nothing away. A tweet's pair is put
        together again first.
        """
        source, target = _words(item.prompt.input), _words(item.target)
        whole = _words(f"{item.prompt.input} {item.target}")
        if source in self.inputs or self._asks(source if form.answer else whole):
            return True
        if form.task.labels:
            return False
        return target in self.targets or whole in self.targets

    def _asks(self, words: str) -> bool:
        enough = words.count(" ") + 1 >= _SOME
        return enough and f" {words} " in self.questions


def _without(items: Sequence[Item], held: Sequence[Item], form: Form) -> list[Item]:
    known = _Held(held, form)
    return [item for item in items if not known.has(item, form)]


def _with_rivals(
    users: Sequence[User], others: Sequence[User], config: Config
) -> tuple[User, ...]:
    """Give every held-out item held-out items of other users, drawn from the seed.

    Rivals come from the same group, so that evaluated users are compared among
    themselves; from `others` where the group has only one user.
    """

    def text(item: Item) -> tuple[str, str]:
        return item.prompt.input, item.target

    result: list[User] = []
    for user in users:
        own = {text(item) for item in user.held_out}
        group = [other for other in users if other.id != user.id] or others
        pool = [i for other in group for i in other.held_out if text(i) not in own]
        draw = numpy_generator(config.seed, "rivals", user.id)
        picks = draw.integers(len(pool), size=len(user.held_out)) if pool else []
        picks = [[pick] for pick in picks] or [[] for _ in user.held_out]
        if config.evaluate.rivals > 1:
            most = min(config.evaluate.rivals, len(pool))
            picks = [draw.choice(len(pool), most, replace=False) for _ in picks]
        held = (
            replace(item, rivals=tuple(pool[i] for i in chosen))
            for item, chosen in zip(user.held_out, picks, strict=True)
        )
        result.append(replace(user, held_out=tuple(held)))
    return tuple(result)


# --- errors ---------------------------------------------------------------------------


def _bad_record(
    name: str, index: int, record: Any, bad: _BadUserError
) -> IdiolectError:
    return IdiolectError(
        f"{name}: {_who(index, record)}: {bad}: repair the file, or set "
        "skip-bad-users=true to leave such users out."
    )


def _who(index: int, record: Any) -> str:
    user = record.get("user_id") if isinstance(record, dict) else None
    return (
        f"record {index}"
        if user is None
        else f"record {index} (user '{str(user):.100}')"
    )


def _too_few(
    name: str, count: int, config: Config, dropped: Mapping[str, int]
) -> IdiolectError:
    listed = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
    why = f" (left out: {listed})" if listed else ""
    return IdiolectError(
        f"{name} holds {count} usable users{why}, but users={config.users} and "
        f"development-users={config.development_users} ask for "
        f"{config.users + config.development_users}: lower 'users' or "
        "'development-users', or take another file."
    )
