"""The privacy card as a section: what left, epsilon by event, what is not covered."""

from collections.abc import Mapping
from typing import Any

from ..privacy.accountant import Event, epsilons
from ..privacy.card import ADVERSARIES, describe, upper
from . import pictures
from .parts import ABSENT, Figure, Section, is_number, number, short, table

STAYS = "history, own texts", "own adapter"
OUTFLOWS = {
    "adapt": "shared update",
    "votes": "votes on items",
    "pool": "own items",
    "metrics": "metrics, alpha",
}
MOST_EVENTS = 6  # whose epsilons are computed; others are listed without


def privacy_section(card: Mapping[str, Any]) -> Section:
    """Return the section of a privacy card of any version."""
    lines = describe(card, whole=False) if card.get("mode") else ["There is no card."]
    # `describe` counts what is not covered in its last lines; the list is below.
    lines = [line for line in lines if not line.startswith("not covered by any")]
    events = _events(card)
    figures = [_left(card)]
    if bounds := _epsilons(card, events):
        figures.append(_bounds(bounds))
    return Section(
        "privacy",
        "Privacy",
        _lead(card),
        figures=figures,
        tables=[_event_table(card)] if card.get("events") else [],
        listed=[
            *lines,
            *(f"not covered: {what}" for what in card.get("not_covered", [])),
        ],
    )


def _lead(card: Mapping[str, Any]) -> str:
    epsilon = card.get("epsilon") or {}
    both = [epsilon.get(name) for name in ADVERSARIES]
    spent = [value for value in both if is_number(value)]
    if len(spent) == len(both):
        return (
            f"Epsilon {upper(spent[0])} against anybody who sees the releases, "
            f"{upper(spent[1])} against a server that knows who took part, at "
            f"delta {card['delta']:g}."
        )
    if card.get("mode") == "simulation":
        return "No privacy guarantee: this is a simulation, not fit for real users."
    return "No privacy guarantee for all that was released."


def _left(card: Mapping[str, Any]) -> Figure:
    """What left the devices and how, as a picture and a table."""
    open_ = {r["stage"]: r["what"] for r in card.get("open_releases", [])}
    noisy = {
        e["stage"]: e["z"] for e in card.get("events", []) if is_number(e.get("z"))
    }
    rows = [(name, "stays", "stays") for name in STAYS]
    for stage in dict.fromkeys([*OUTFLOWS, *open_, *noisy]):
        name = OUTFLOWS.get(stage, stage)
        if stage in open_:
            rows.append((name, "exact, no noise", "open"))
        elif noisy.get(stage):
            rows.append((name, f"sum, noise x {noisy[stage]:.3g}", "noisy"))
        elif stage in noisy:
            rows.append((name, "sum, no noise", "open"))
        elif stage != "pool":
            rows.append((name, "not sent", "stays"))
    title = "What left the devices"
    heights = 60 + 26 * len(rows)
    draw = pictures.flows([(short(a, 18), short(b, 24), c) for a, b, c in rows])
    says = "; ".join(f"{name}: {how}" for name, how, _ in rows)
    svg = pictures.drawn("left", title, says, heights, draw)
    heads = ("what", "how it left")
    cells = [(name, how) for name, how, _ in rows]
    return Figure(
        title, svg, table(title, heads, cells, folded=bool(svg), numbers=False)
    )


def _events(card: Mapping[str, Any]) -> list[tuple[Event, int]]:
    """Return the card's noisy events, as the accountant knows them."""
    found: list[tuple[Event, int]] = []
    population = (card.get("population") or {}).get("N") or 0
    for one in card.get("events", [])[:MOST_EVENTS]:
        numbers = (one.get("z"), one.get("q"), one.get("rounds"))
        if not all(map(is_number, numbers)) or not one["z"]:
            continue
        cohort = one.get("cohort") or 0
        if cohort and not population:
            continue
        seen, bit = (
            z if is_number(z := one.get(name)) else None
            for name in ("server_z", "server_clip_bit_z")
        )
        event = Event(
            str(one["stage"]), one["z"], one["q"], one.get("clip_bit_z") or 0.0, cohort,
            population if cohort else 0, seen, bit,
        )  # fmt: skip
        found.append((event, int(one["rounds"])))
    return found


def _epsilons(
    card: Mapping[str, Any], events: list[tuple[Event, int]]
) -> list[tuple[str, float | None, float | None]]:
    """(name, epsilon of both kinds) of each noisy event by itself, and of all together."""
    if not events:
        return []
    cap = (card.get("participation") or {}).get("cap") or 0
    rows: list[tuple[str, float | None, float | None]] = []
    for event, count in events:
        alone = epsilons({event: count}, card["delta"], cap)
        rows.append((f"{event.stage}, {count} x", alone.release, alone.participants))
    epsilon = card.get("epsilon") or {}
    known = epsilon.get("dp_events_only") or epsilon
    both = [known.get(name) for name in ADVERSARIES]
    return [*rows, ("all noisy together", both[0], both[1])]


def _bound(value: Any) -> str:
    return upper(value) if is_number(value) else ABSENT


def _bounds(rows: list[tuple[str, float | None, float | None]]) -> Figure:
    title = "Epsilon, by event and of all together"
    known = [
        (f"{short(name, 20)}{mark}", value)
        for name, *both in rows
        for mark, value in zip(("", " *"), both, strict=True)
        if is_number(value) and value is not None
    ]
    says = f"{title}. Bars with * are against a server that knows who took part."
    height = pictures.height_of(len(known)) - 16
    svg = pictures.drawn("epsilon", title, says, height, pictures.bars(known, upper))
    heads = ("event", "sees the releases", "* also knows who took part")
    cells = [(name, *(_bound(v) for v in both)) for name, *both in rows]
    note = "Epsilons of events do not add up: together they cost less than the sum."
    return Figure(title, svg, table(title, heads, cells, note=note))


def _event_table(card: Mapping[str, Any]) -> Any:
    rows = [
        (
            one.get("stage", "?"),
            one.get("mechanism", "?"),
            number(one.get("rounds"), "g"),
            number(one.get("z"), ".4g"),
            number(one.get("q"), ".4g"),
        )
        for one in card["events"]
    ]
    heads = ("event", "mechanism", "times", "noise multiplier", "sampling rate")
    return table("Charged releases", heads, rows, folded=True)
