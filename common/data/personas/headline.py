"""Headlines: a short local news article in, a headline out.

The content of a headline (who, what, where, when, why, how long) is copied from the
article; its style is the author's. Every combination of values gives another text, so a
style can be read back from a headline.
"""

import re
from typing import Any

import numpy as np

from ..types import Prompt, Task
from .world import Event, Style, World, picks, words

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
COUNTS = {"digits": "{number}", "words": "{spelled}", "about": "about {number}"}
DETAILS = {
    "none": "",
    "place": " in {place}",
    "day": " on {day}",
    "reason": " {reason}",
}
# Value -> what is written at the end, and the pattern by which it is recognised there.
CLOSES = {
    "none": ("", r"\Z"),
    "exclaim": ("!", r"!$"),
    "dots": ("...", r"\.\.\.$"),
    "hashtag": (" #{topic}", r" #[a-z]+$"),
    "bracket": (" ({topic})", r" \([a-z]+\)$"),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "case": ("sentence", "title", "lower"),
    "tense": ("present", "past", "future"),
    "order": ("active", "passive"),
    "number": tuple(COUNTS),
    "detail": tuple(DETAILS),
    "tone": tuple(TONES),
    "lead": tuple(LEADS),
    "close": tuple(CLOSES),
}


PARTS: dict[str, tuple[Any, ...]] = {
    "place": PLACES,
    "agent": AGENTS,
    "verb": VERBS,
    "adjective": ADJECTIVES,
    "noun": NOUNS,
    "number": tuple(NUMBERS),
    "unit": UNITS,
    "day": DAYS,
    "reason": REASONS,
    "article": tuple(range(len(ARTICLES))),
    "spelled": (False, True),
}


def _past(verb: str) -> str:
    return verb + ("d" if verb.endswith("e") else "ed")


def draw(rng: np.random.Generator) -> Event:
    """Draw an event, all parts independent and uniform.

    ``article`` is a place in `ARTICLES`, and ``spelled`` whether the article spells its
    number out.
    """
    return picks(rng, PARTS)


def prompt(event: Event) -> Prompt:
    """Write the article and ask for its headline."""
    number = NUMBERS[event["number"]] if event["spelled"] else event["number"]
    thing = f"{event['adjective']} {event['noun']}"
    told = {**event, "verb": _past(event["verb"]), "thing": thing, "number": number}
    article = ARTICLES[event["article"]].format(**told)
    return Prompt("Write a headline: ", article, "\nHeadline:")


def _clause(event: Event, style: Style) -> str:
    """Who did what: six forms of the verb, with the tone in front of it."""
    passive = style["order"] == "passive"
    agent, thing = event["agent"], f"{event['adjective']} {event['noun']}"
    verb, past = event["verb"], _past(event["verb"])
    before, verb = {
        ("present", False): ("", verb + "s"),
        ("past", False): ("", past),
        ("future", False): ("will", verb),
        ("present", True): ("is", past),
        ("past", True): ("was", past),
        ("future", True): ("will be", past),
    }[style["tense"], passive]
    parts = [before, TONES[style["tone"]], verb]
    parts = [thing, *parts, "by", agent] if passive else [agent, *parts, thing]
    return " ".join(part for part in parts if part)


def write(event: Event, style: Style) -> str:
    """Write the headline of an event in a style."""
    topic = next(topic for topic, nouns in TOPICS.items() if event["noun"] in nouns)
    names = {**event, "spelled": NUMBERS[event["number"]], "topic": topic}
    count = COUNTS[style["number"]].format(**names)
    detail = DETAILS[style["detail"]].format(**names)
    text = f"{_clause(event, style)}{detail} in {count} {event['unit']}"
    sentence = text[0].upper() + text[1:]
    cased = {"sentence": sentence, "title": text.title(), "lower": text.lower()}
    close, _ = CLOSES[style["close"]]
    return LEADS[style["lead"]] + cased[style["case"]] + close.format(**names)


def read(text: str) -> Style:
    """Recognise the values of a headline, also of a badly generated one.

    What is missing counts as ``none`` where the attribute has that value; an attribute
    without a recognisable value is left out.
    """
    style: Style = {"lead": "none", "close": "none", "tone": "none", "detail": "none"}
    for value, mark in LEADS.items():
        if mark and text.startswith(mark):
            style["lead"], text = value, text[len(mark) :]
    for value, (_, mark) in CLOSES.items():
        if ending := re.search(mark, text):
            style["close"], text = value, text[: ending.start()]
    capital = [word[0].isupper() for word in text.split() if word[0].isalpha()]
    found = text.lower().split()
    passive, joined = "by" in found, " ".join(found)
    present = "is" in found if passive else any(f"{verb}s" in found for verb in VERBS)
    past = "was" in found if passive else any(_past(verb) in found for verb in VERBS)
    # Of several values of an attribute that are there, the last one counts.
    for attribute, value, there in (
        *(("tone", tone, tone in found) for tone in TONES),
        ("case", "sentence", capital[:1] == [True]),
        ("case", "lower", True not in capital and False in capital),
        ("case", "title", False not in capital and len(capital) > 1),
        ("tense", "present", present),
        ("tense", "past", past),
        ("tense", "future", "will" in found),
        ("detail", "reason", any(f" {reason} " in joined for reason in REASONS)),
        ("detail", "day", any(f" on {day.lower()} " in joined for day in DAYS)),
        ("detail", "place", any(f" in {p.lower()} " in joined for p in PLACES)),
        ("number", "words", any(word in found for word in NUMBERS.values())),
        ("number", "digits", any(word.isdigit() for word in found)),
        ("number", "about", "about" in found),
    ):
        if there:
            style[attribute] = value
    if "tense" in style:
        style["order"] = "passive" if passive else "active"
    return style


HEADLINE = World(
    task=Task("headline", "generation", max_new_tokens=40),
    attributes=ATTRIBUTES,
    draw=draw,
    prompt=prompt,
    write=write,
    # Every style gives another text, whatever the event: one situation stands for all.
    situations=(draw(np.random.Generator(np.random.Philox(0))),),
    relevant=lambda event: tuple(ATTRIBUTES),
)
