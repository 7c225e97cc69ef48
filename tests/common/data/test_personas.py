"""Personas: what is said about them is true of the text they write."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from idiolect.common.config import Config, Persona, parse
from idiolect.common.config.page import markdown
from idiolect.common.data import personas
from idiolect.common.data.personas import WORLDS, authors, make, score_style
from idiolect.common.data.personas.headline import HEADLINE, read
from idiolect.common.data.types import Truth, User
from idiolect.common.errors import IdiolectError

pytestmark = pytest.mark.slow  # `make quick` leaves these files out

TASKS = ("headline", "tagging", "rating")


def small(task: str = "headline", **changes: int) -> Config:
    values: dict[str, object] = {
        "task": task,
        "users": 6,
        "development-users": 2,
        "unlabeled.bank": 20,
    }
    values |= {"history": 12, "held-out": 4, "personalise.learning-rates": "1e-3"}
    return parse(values | {key.replace("_", "-"): v for key, v in changes.items()})


@pytest.mark.parametrize("task", TASKS)
def test_shape(task: str) -> None:
    data = make(small(task))
    assert [user.id for user in data.users] == [f"persona-00{i}" for i in range(6)]
    assert [user.id for user in data.development] == ["dev-000", "dev-001"]
    assert len(data.public) == 20
    assert data.task.name == task
    everyone = data.everybody
    assert {len(user.history) for user in everyone} == {12}
    assert {len(user.held_out) for user in everyone} == {4}
    items = [i for user in everyone for i in user.history + user.held_out]
    items += data.public
    assert len({item.id for item in items}) == len(items)
    if data.task.labels:
        assert {item.target for item in items} <= set(data.task.labels)


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_text_other_seed_other_text(task: str) -> None:
    assert make(small(task)) == make(small(task))
    assert (
        make(small(task)).users[0].history != make(small(task, seed=1)).users[0].history
    )


@pytest.mark.parametrize("task", TASKS)
def test_text_depends_on_neither_the_other_users_nor_the_lengths(task: str) -> None:
    few = make(small(task))
    changed = small(task, users=9, development_users=0, history=20, held_out=7)
    many = make(changed)
    for one, two in zip(few.users, many.users, strict=False):
        assert one.history == two.history[:12]
        for item, same in zip(one.held_out, two.held_out, strict=False):
            assert dataclasses.replace(item, rivals=()) == dataclasses.replace(
                same, rivals=()
            )
    assert few.public == many.public


@pytest.mark.parametrize("task", TASKS)
def test_held_out_prompts_are_nobodys_history(task: str) -> None:
    data = make(small(task, users=20, history=30, held_out=10))
    everyone = data.everybody
    history = {item.prompt.text for user in everyone for item in user.history}
    held_out = {item.prompt.text for user in everyone for item in user.held_out}
    public = {item.prompt.text for item in data.public}
    assert not history & held_out
    assert not history & public
    assert not held_out & public
    for user in everyone:
        own = [item.prompt.text for item in user.history + user.held_out]
        assert len(set(own)) == len(own)


def test_no_prompt_comes_twice_even_in_a_small_world(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = WORLDS["tagging"]
    films = world.situations[:70]
    assert sum(personas.purpose(world, film) == "history" for film in films) > 40
    few = dataclasses.replace(world, draw=lambda rng: films[rng.integers(70)])
    monkeypatch.setitem(WORLDS, "tagging", few)
    user = make(small("tagging", history=40)).users[0]
    assert len({item.prompt.text for item in user.history}) == 40


@pytest.mark.parametrize("task", TASKS)
def test_rivals_are_other_peoples_texts(task: str) -> None:
    data = make(small(task, users=20, held_out=10))
    same_prompt = 0
    for item in (item for user in data.users for item in user.held_out):
        (rival,) = item.rivals
        assert rival != item
        assert rival.rivals == ()
        if rival.prompt == item.prompt:
            same_prompt += 1
            assert rival.target != item.target
    assert same_prompt >= 0.95 * 200


def test_several_rivals_begin_with_the_one_alone() -> None:
    one, many = small(users=20), small(users=20)
    many = dataclasses.replace(
        many, evaluate=dataclasses.replace(many.evaluate, rivals=7)
    )
    for alone, user in zip(make(one).users, make(many).users, strict=True):
        for item, same in zip(alone.held_out, user.held_out, strict=True):
            assert same.rivals[:1] == item.rivals
            assert len(same.rivals) == 7
            assert all(rival.target != item.target for rival in same.rivals)


def test_rival_is_written_by_the_named_user() -> None:
    # Hard rules: a rival's headline shows its author's own values and nobody else's.
    persona = Persona(strength=1.0)
    data = make(dataclasses.replace(small(users=20), persona=persona))
    by_name = {user.id: user for user in data.everybody}
    for user in data.users:
        for item in user.held_out:
            (rival,) = item.rivals
            writer = rival.id.split("/by-")[1]
            style = read(rival.target)
            truth = by_name[writer].truth
            assert truth is not None
            assert writer != user.id
            assert truth.own.items() <= style.items()


def test_one_user_without_company_still_has_rivals_and_overlap() -> None:
    data = make(small(users=1, development_users=0))
    truth = data.users[0].truth
    assert truth is not None
    assert 0 < truth.overlap < 1
    assert all(item.rivals for item in data.users[0].held_out)


@pytest.mark.parametrize("task", TASKS)
def test_truth_names_every_attribute_once(task: str) -> None:
    world = WORLDS[task]
    data = make(small(task))
    usual = authors.population(world, 0)
    for user in data.users:
        assert user.truth is not None
        both = user.truth.own | user.truth.shared
        assert both.keys() == world.attributes.keys()
        assert len(both) == len(user.truth.own) + len(user.truth.shared)
        assert all(both[name] in world.attributes[name] for name in both)
        assert all(user.truth.own[name] != usual[name] for name in user.truth.own)
        assert user.truth.shared.items() <= usual.items()


def test_headline_style_can_be_read_back_from_every_style() -> None:
    event = HEADLINE.draw(np.random.default_rng(1))
    seen = set()
    for values in itertools.product(*HEADLINE.attributes.values()):
        style = dict(zip(HEADLINE.attributes, values, strict=True))
        text = HEADLINE.write(event, style)
        assert read(text) == style
        seen.add(text)
    assert len(seen) == 3 * 3 * 2 * 3 * 4 * 4 * 4 * 5


def test_headline_style_can_be_read_back_for_every_event() -> None:
    rng = np.random.default_rng(2)
    for _ in range(2000):
        event = HEADLINE.draw(rng)
        style = {k: str(rng.choice(v)) for k, v in HEADLINE.attributes.items()}
        assert read(HEADLINE.write(event, style)) == style


def test_headline_says_what_the_article_says() -> None:
    event = HEADLINE.draw(np.random.default_rng(3))
    event = dict(
        event,
        agent="council",
        verb="move",
        adjective="old",
        noun="statue",
        number=12,
        unit="days",
        place="Arden",
        day="Monday",
        article=0,
        spelled=False,
        reason="after a fire",
    )
    assert HEADLINE.prompt(event).text == (
        "Write a headline: On Monday the council in Arden moved the old statue "
        "after a fire. It took 12 days.\nHeadline:"
    )
    style = {"case": "sentence", "tense": "past", "order": "active", "number": "words"}
    style |= {"detail": "place", "tone": "finally", "lead": "news", "close": "hashtag"}
    assert HEADLINE.write(event, style) == (
        "News: Council finally moved old statue in Arden in twelve days #culture"
    )
    style |= {"case": "title", "tense": "future", "order": "passive", "number": "about"}
    style |= {"detail": "day", "tone": "none", "lead": "none", "close": "exclaim"}
    assert HEADLINE.write(event, style) == (
        "Old Statue Will Be Moved By Council On Monday In About 12 Days!"
    )


def test_tag_is_the_first_genre_that_counts() -> None:
    world = WORLDS["tagging"]
    event = world.situations[0]
    assert event["genres"] == ("sci-fi", "comedy", "action")
    style = dict.fromkeys(world.attributes, "passes over")
    assert world.write(event, style) == "sci-fi"
    assert world.write(event, style | {"comedy": "renames"}) == "satire"
    assert world.write(event, style | {"action": "tags"}) == "action"
    both = style | {"comedy": "tags", "action": "renames"}
    assert world.write(event, both) == "comedy"


def test_stars_add_up() -> None:
    world = WORLDS["rating"]
    event = dict(
        world.situations[0],
        aspects=("price", "quality", "design"),
        good=(True, False, True),
    )
    style = dict.fromkeys(world.attributes, "minds") | {"bias": "fair"}
    assert world.write(event, style) == "4"
    assert world.write(event, style | {"quality": "insists"}) == "3"
    assert world.write(event, style | {"bias": "harsh"}) == "3"
    assert world.write(event, style | {"price": "insists"}) == "5"
    generous = style | {"price": "insists", "bias": "generous"}
    assert world.write(event, generous) == "5"


def test_preferences_are_followed_as_often_as_stated() -> None:
    """Each frequency lies within 4.5 standard deviations; 96 checks, so a false alarm
    has a chance below 1e-3 over all of them (and the seed is fixed)."""
    config = small(users=12, development_users=0, history=800, held_out=1)
    usual = authors.population(HEADLINE, 0)
    for user in make(config).users:
        styles = [read(item.target) for item in user.history]
        truth = user.truth
        assert truth is not None
        for name in HEADLINE.attributes:
            wanted = truth.own.get(name, usual[name])
            chance = authors.FOLLOWED
            if name in truth.own:
                width = len(HEADLINE.attributes[name])
                by_accident = (1 - authors.FOLLOWED) / (width - 1)
                chance = truth.strength + (1 - truth.strength) * by_accident
            hits = sum(style[name] == wanted for style in styles)
            deviation = np.sqrt(800 * chance * (1 - chance))
            assert abs(hits - 800 * chance) < 4.5 * deviation + 0.5, (user.id, name)


def test_strength_has_the_configured_mean_and_range() -> None:
    config = small(users=200, history=1, held_out=1)
    config = dataclasses.replace(config, persona=Persona(strength=0.7))
    strengths = [u.truth.strength for u in make(config).users if u.truth]
    # Uniform on [.55, .85]: the mean's standard deviation is .0061, allowed are 4.5.
    assert np.mean(strengths) == pytest.approx(0.7, abs=0.0275)
    assert min(strengths) >= 0.55
    assert max(strengths) <= 0.85


@pytest.mark.parametrize("task", TASKS)
def test_overlap_equals_a_direct_sum_for_two_users(task: str) -> None:
    world = WORLDS[task]
    data = make(small(task, users=2, development_users=0))
    pair = [authors.draw_author(world, 0, user.id, Persona()) for user in data.users]
    expected = 0.0
    for event in world.situations:
        chances: list[dict[str, float]] = [{}, {}]
        relevant = world.relevant(event)
        for values in itertools.product(*(world.attributes[a] for a in relevant)):
            style = dict(zip(relevant, values, strict=True))
            text = world.write(event, style)
            for author, table in zip(pair, chances, strict=True):
                factor = 1.0
                for name, value in style.items():
                    row = list(world.attributes).index(name)
                    column = world.attributes[name].index(value)
                    factor *= author.chances[row, column]
                table[text] = table.get(text, 0.0) + factor
        one, two = chances
        assert sum(one.values()) == pytest.approx(1)
        expected += sum(min(one[text], two[text]) for text in one)
    expected /= len(world.situations)
    for user in data.users:
        assert user.truth is not None
        assert user.truth.overlap == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_overlap_grows_with_the_knob_and_falls_with_own_attributes(task: str) -> None:
    means = []
    for knob in (0.2, 0.5, 0.8, 1.0):
        config = small(task, users=100, history=1, held_out=1)
        config = dataclasses.replace(config, persona=Persona(overlap=knob))
        users = make(config).users
        truths = [user.truth for user in users if user.truth]
        share = np.mean([len(t.shared) / len(t.own | t.shared) for t in truths])
        # 4.5 standard deviations of the mean of 100 shares (arcsine law, rounding).
        assert share == pytest.approx(knob, abs=4.5 * 0.04)
        overlaps = np.array([truth.overlap for truth in truths])
        means.append(overlaps.mean())
        if knob == 0.5:
            own = np.array([len(truth.own) for truth in truths])
            assert overlaps[own <= 1].mean() > overlaps[own >= 5].mean() + 0.05
    assert means[0] < means[1] < means[2] < means[3]
    assert means[3] == pytest.approx(1.0)


def user_with(own: dict[str, str], shared: dict[str, str]) -> User:
    return User("u", (), (), Truth(0.5, own, shared, 0.8))


def test_style_scores_of_known_headlines() -> None:
    own = {"case": "lower", "tense": "past", "close": "hashtag", "tone": "none"}
    shared = {"order": "active", "number": "digits", "detail": "day", "lead": "none"}
    user = user_with(own, shared)
    texts = [
        "council moved old statue on monday in 12 days #culture",  # 4 of 4, 4 of 4
        "Council moves old statue on Monday in 12 days",  # 1 of 4, 4 of 4
        "News: old statue was finally moved by council in twelve days!",  # 2 of 4, 0
    ]
    scores = score_style(user, texts)
    assert scores == {
        "own-style": pytest.approx(7 / 12),
        "shared-style": pytest.approx(8 / 12),
    }
    garbage = score_style(user, ["#", ""])
    assert garbage["own-style"] <= 0.25


def test_style_scores_are_left_out_where_they_mean_nothing() -> None:
    everything = {name: values[0] for name, values in HEADLINE.attributes.items()}
    alike = score_style(user_with({}, everything), ["Council moves statue"])
    assert alike.keys() == {"shared-style"}
    assert score_style(user_with({}, everything), []) == {}
    tagger = make(small("tagging")).users[0]
    assert score_style(tagger, ["comedy"]) == {}
    assert score_style(User("u", (), ()), ["Council moves statue"]) == {}


def test_default_run_is_made_quickly() -> None:
    start = time.process_time()
    personas.make(parse({}))
    assert time.process_time() - start < 5


def test_more_prompts_than_there_are_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(personas, "MISSES", 50)
    event = HEADLINE.draw(np.random.default_rng(0))
    monkeypatch.setattr(personas, "draw_event", lambda *_: event)
    with pytest.raises(
        IdiolectError, match="'headline' .* 1 different .* 12 are wanted"
    ):
        make(small(history=12))


def test_more_items_than_can_be_made_are_refused() -> None:
    with pytest.raises(
        IdiolectError, match="'history' is 200000 .* 8 users .* 1600032 "
    ):
        make(small(history=200_000, users=6))
    with pytest.raises(IdiolectError, match="'held-out' 200000: .* lower one of them"):
        make(small(held_out=200_000, users=6))
    assert f"at most {1_000_000:,} items" in markdown()


@pytest.mark.parametrize("task", TASKS)
def test_what_is_disliked_is_not_what_the_author_would_write(task: str) -> None:
    plain, data = make(small(task)), make(small(task, disliked=8))
    world = WORLDS[task]
    for before, user in zip(plain.users, data.users, strict=True):
        assert before.disliked == () and user.truth
        assert dataclasses.replace(user, disliked=()) == before
        written = {item.prompt.text: item.target for item in user.history}
        wanted = {**user.truth.shared, **user.truth.own}
        events = personas._events(world, small(task), user.id, "history", 8)
        best = {world.prompt(e).text: world.write(e, wanted) for e in events}
        assert 4 <= len(user.disliked) <= 8
        for item in user.disliked:
            text = item.prompt.text
            assert item.target not in (written[text], best[text])
    names = [i.id for u in data.users for i in (*u.history, *u.held_out, *u.disliked)]
    assert len(set(names)) == len(names)


def test_fewer_dislikes_are_the_first_of_more_whoever_else_is_there() -> None:
    few, many = make(small(disliked=2, users=4)), make(small(disliked=8, history=20))
    for one, two in zip(few.users, many.users, strict=False):
        assert one.disliked == two.disliked[:2] != ()


def test_the_population_writes_what_is_disliked() -> None:
    """Own preferences are violated far more often than in the author's own texts."""
    made = make(small(users=30, disliked=8, development_users=0))
    users = [u for u in made.users if u.truth and len(u.truth.own) > 3]
    for name, low, high in (("history", 0.5, 1.0), ("disliked", 0.0, 0.2)):
        rates = [
            score_style(user, [item.target for item in getattr(user, name)])
            for user in users
        ]
        assert low < np.mean([rate["own-style"] for rate in rates]) < high
    shared = [score_style(u, [i.target for i in u.disliked]) for u in users]
    rates = [rate["shared-style"] for rate in shared if "shared-style" in rate]
    assert 0.8 < np.mean(rates) < 1.0


def test_dislikes_count_among_the_items_that_are_made() -> None:
    with pytest.raises(IdiolectError, match="and 'disliked' 200000: 8 users"):
        make(small(disliked=200000))


def test_owners_say_themselves_what_they_dislike() -> None:
    with pytest.raises(IdiolectError, match="idiolect feedback down"):
        parse({"task": "text", "disliked": 2, "development-users": 0})
