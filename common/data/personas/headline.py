"""Headlines: a short local news article in, a headline out.

The content of a headline (who, what, where, when, why, how long) is copied from the
article; its style is the author's. Every combination of values gives another text, so a
style can be read back from a headline.
"""

import re
from dataclasses import dataclass

import numpy as np

from ..types import Prompt, Task
from .world import Style, World, pick, words

PLACES = words(
    "Arden Bexley Corby Dalton Elmton Fenwick Garton Harlow Ilford Jarrow Kelso Linton "
    "Marlow Norton Oakham Preston Quorn Ripley Selby Thorne Upton Verwood Walton Yarm "
    "Alston Barton Carlow Denby Easton Felton Grafton Hexham"
)
AGENTS = words(
    "council mayor club church bank union museum library hospital company ministry school "
    "choir team firm court governor college hotel bakery"
)
VERBS = words(
    "repair open close paint move clean inspect expand replace restore rename present "
    "test block protect heat rent design film reject"
)
ADJECTIVES = words(
    "old new small large red white wooden stone public famous empty modern"
)
TOPICS = {
    "traffic": words("bridge road station tunnel harbour"),
    "culture": words("theatre statue cinema castle gallery"),
    "nature": words("park lake garden forest beach"),
    "sport": words("stadium pool gym track arena"),
    "trade": words("market shop mill factory farm"),
}
NOUNS = tuple(noun for nouns in TOPICS.values() for noun in nouns)
NUMBERS = dict(
    enumerate(
        words(
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen twenty"
        ),
        start=2,
    )
)
UNITS = ("days", "weeks", "months", "years")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
REASONS = (
    "after heavy rain",
    "after a fire",
    "after a storm",
    "after long talks",
    "after a vote",
    "before the elections",
    "before the summer",
    "before the festival",
    "despite protests",
    "despite high costs",
    "despite the cold",
    "to save money",
    "to save energy",
    "to help tourists",
    "to help children",
    "to honour a poet",
)
ARTICLES = (
    "On {day} the {agent} in {place} {verb} the {thing} {reason}. It took {number} {unit}.",
    (
        "The {thing} in {place} was {verb} by the {agent} on {day} {reason}, "
        "in only {number} {unit}."
    ),
    (
        "People in {place} talk about the {thing}: the {agent} {verb} it on {day} "
        "{reason}, within {number} {unit}."
    ),
    (
        "It took the {agent} in {place} {number} {unit}: on {day} they {verb} the "
        "{thing} {reason}."
    ),
)

LEADS = {"none": "", "news": "News: ", "update": "Update: ", "watch": "Watch: "}
TONES = {"none": "", "finally": "finally", "quietly": "quietly", "proudly": "proudly"}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "case": ("sentence", "title", "lower"),
    "tense": ("present", "past", "future"),
    "order": ("active", "passive"),
    "number": ("digits", "words", "about"),
    "detail": ("none", "place", "day", "reason"),
    "tone": tuple(TONES),
    "lead": tuple(LEADS),
    "close": ("none", "exclaim", "dots", "hashtag", "bracket"),
}


@dataclass(frozen=True)
class Event:
    """What happened."""

    place: str
    agent: str
    verb: str
    adjective: str
    noun: str
    number: int
    unit: str
    day: str
    reason: str
    article: int
    spelled: bool  # whether the article spells its number out

    @property
    def topic(self) -> str:
        """The section of the newspaper."""
        return next(topic for topic, nouns in TOPICS.items() if self.noun in nouns)


def _past(verb: str) -> str:
    return verb + ("d" if verb.endswith("e") else "ed")


def draw(rng: np.random.Generator) -> Event:
    """Draw an event, all parts independent and uniform."""
    return Event(
        place=pick(rng, PLACES),
        agent=pick(rng, AGENTS),
        verb=pick(rng, VERBS),
        adjective=pick(rng, ADJECTIVES),
        noun=pick(rng, NOUNS),
        number=pick(rng, tuple(NUMBERS)),
        unit=pick(rng, UNITS),
        day=pick(rng, DAYS),
        reason=pick(rng, REASONS),
        article=int(rng.integers(len(ARTICLES))),
        spelled=bool(rng.integers(2)),
    )


def prompt(event: Event) -> Prompt:
    """Write the article and ask for its headline."""
    article = ARTICLES[event.article].format(
        day=event.day,
        agent=event.agent,
        place=event.place,
        verb=_past(event.verb),
        thing=f"{event.adjective} {event.noun}",
        reason=event.reason,
        number=NUMBERS[event.number] if event.spelled else event.number,
        unit=event.unit,
    )
    return Prompt("Write a headline: ", article, "\nHeadline:")


def _clause(event: Event, style: Style) -> str:
    """Who did what: six forms of the verb, with the tone in front of it."""
    passive = style["order"] == "passive"
    agent, thing = event.agent, f"{event.adjective} {event.noun}"
    tone = TONES[style["tone"]]
    before, verb = {
        ("present", False): ("", event.verb + "s"),
        ("past", False): ("", _past(event.verb)),
        ("future", False): ("will", event.verb),
        ("present", True): ("is", _past(event.verb)),
        ("past", True): ("was", _past(event.verb)),
        ("future", True): ("will be", _past(event.verb)),
    }[style["tense"], passive]
    parts = [before, tone, verb]
    parts = [thing, *parts, "by", agent] if passive else [agent, *parts, thing]
    return " ".join(part for part in parts if part)


def write(event: Event, style: Style) -> str:
    """Write the headline of an event in a style."""
    number = {
        "digits": str(event.number),
        "words": NUMBERS[event.number],
        "about": f"about {event.number}",
    }[style["number"]]
    detail = {
        "none": "",
        "place": f" in {event.place}",
        "day": f" on {event.day}",
        "reason": f" {event.reason}",
    }[style["detail"]]
    text = f"{_clause(event, style)}{detail} in {number} {event.unit}"
    if style["case"] == "title":
        text = text.title()
    elif style["case"] == "lower":
        text = text.lower()
    else:
        text = text[0].upper() + text[1:]
    close = {
        "none": "",
        "exclaim": "!",
        "dots": "...",
        "hashtag": f" #{event.topic}",
        "bracket": f" ({event.topic})",
    }[style["close"]]
    return LEADS[style["lead"]] + text + close


def read(text: str) -> Style:
    """Recognise the values of a headline, also of a badly generated one.

    What is missing counts as ``none`` where the attribute has that value; an attribute
    without a recognisable value is left out.
    """
    style: Style = {"lead": "none", "close": "none", "tone": "none", "detail": "none"}
    for value, mark in LEADS.items():
        if mark and text.startswith(mark):
            style["lead"], text = value, text[len(mark) :]
    for value, mark in (
        ("exclaim", r"!$"),
        ("dots", r"\.\.\.$"),
        ("hashtag", r" #[a-z]+$"),
        ("bracket", r" \([a-z]+\)$"),
    ):
        if ending := re.search(mark, text):
            style["close"], text = value, text[: ending.start()]
    found = text.lower().split()
    for value in TONES:
        if value in found:
            style["tone"] = value
    return style | _read_case(text) | _read_clause(found) | _read_rest(found)


def _read_case(text: str) -> Style:
    found = [word for word in text.split() if word[0].isalpha()]
    if not found:
        return {}
    capital = [word[0].isupper() for word in found]
    if all(capital) and len(found) > 1:
        return {"case": "title"}
    if not any(capital):
        return {"case": "lower"}
    return {"case": "sentence"} if capital[0] else {}


def _read_clause(found: list[str]) -> Style:
    passive = "by" in found
    style = {"order": "passive" if passive else "active"}
    past = any(_past(verb) in found for verb in VERBS)
    if "will" in found:
        style["tense"] = "future"
    elif "was" in found if passive else past:
        style["tense"] = "past"
    elif "is" in found if passive else any(f"{verb}s" in found for verb in VERBS):
        style["tense"] = "present"
    else:
        del style["order"]
    return style


def _read_rest(found: list[str]) -> Style:
    style: Style = {}
    text = " ".join(found)
    if any(f" in {place.lower()} " in text for place in PLACES):
        style["detail"] = "place"
    elif any(f" on {day.lower()} " in text for day in DAYS):
        style["detail"] = "day"
    elif any(f" {reason} " in text for reason in REASONS):
        style["detail"] = "reason"
    if "about" in found:
        style["number"] = "about"
    elif any(word.isdigit() for word in found):
        style["number"] = "digits"
    elif any(word in found for word in NUMBERS.values()):
        style["number"] = "words"
    return style


def _relevant(event: Event) -> tuple[str, ...]:
    return tuple(ATTRIBUTES)


HEADLINE = World(
    task=Task("headline", "generation", max_new_tokens=40),
    attributes=ATTRIBUTES,
    draw=draw,
    prompt=prompt,
    write=write,
    read=read,
    # Every style gives another text, whatever the event: one situation stands for all.
    situations=(draw(np.random.Generator(np.random.Philox(0))),),
    relevant=_relevant,
)
