"""LaMP readers: pairs of all seven tasks, splits, leaks, and every error sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from idiolect.common.config import parse
from idiolect.common.data import lamp
from idiolect.common.data.cleaning import clean
from idiolect.common.data.lamp import forms, items
from idiolect.common.data.load import check
from idiolect.common.errors import IdiolectError

pytestmark = pytest.mark.slow  # `make quick` leaves these files out

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

ARTICLE = "Generate a headline for the following article: "

# task -> (profile item, question, gold), numbered by user u and item i
SAMPLES = {
    "LaMP-1": (
        lambda u, i: {"title": f"Paper {u}.{i}", "abstract": f"We study {u}.{i}."},
        (
            'For an author who has written the paper with the title "Asked {u}", which '
            "reference is related? Just answer with [1] or [2] without explanation. "
            '[1]: "One {u}" [2]: "Two {u}"'
        ),
        "[2]",
    ),
    "LaMP-2": (
        lambda u, i: {"description": f"Film {u}.{i}", "tag": "dark comedy"},
        forms.FORMS["LaMP-2"].question + "Asked film {u}",
        "true story",
    ),
    "LaMP-2N": (
        lambda u, i: {
            "text": f"Article {u}.{i}",
            "title": f"Head {u}.{i}",
            "category": "style & beauty",
        },
        forms.FORMS["LaMP-2N"].question + "Asked {u}",
        "food & drink",
    ),
    "LaMP-3": (
        lambda u, i: {"text": f"Review {u}.{i}", "score": str(1 + i % 5)},
        (
            "What is the score of the following review on a scale of 1 to 5? just "
            "answer with 1, 2, 3, 4, or 5 without further explanation. review: "
            "Asked {u}"
        ),
        "4",
    ),
    "LaMP-4": (
        lambda u, i: {"text": f"Article {u}.{i}", "title": f"Head {u}.{i}"},
        ARTICLE + "Asked {u}",
        "Gold {u}",
    ),
    "LaMP-5": (
        lambda u, i: {"abstract": f"Abstract {u}.{i}", "title": f"Title {u}.{i}"},
        "Generate a title for the following abstract of a paper: Asked {u}",
        "Gold {u}",
    ),
    "LaMP-6": (
        lambda u, i: {"text": f"Mail {u}.{i}", "title": f"Subject {u}.{i}"},
        "Generate a subject for the following email: Asked {u}",
        "Gold {u}",
    ),
    "LaMP-7": (
        lambda u, i: {"text": f"so tweet {u}.{i} is just a line of many words here"},
        (
            "Paraphrase the following tweet without any explanation before or after "
            "it: Asked {u}"
        ),
        "Gold {u}",
    ),
}


def official(folder, task="LaMP-4", users=6, items=8, part="dev", date=None):
    """Write official files and return them as Python objects."""
    item, question, gold = SAMPLES[task]
    questions = [
        {
            "id": f"{u}0",
            "input": question.replace("{u}", str(u)),
            "profile": [
                {"id": str(i), **item(u, i), **({"date": date(i)} if date else {})}
                for i in range(items)
            ],
        }
        for u in range(users)
    ]
    golds = [{"id": f"{u}0", "output": gold.format(u=u)} for u in range(users)]
    outputs = {"task": task.replace("-", "_"), "golds": golds}
    save(folder / f"{part}_questions.json", questions)
    save(folder / f"{part}_outputs.json", outputs)
    return questions, outputs


def save(path, content):
    path.write_text(json.dumps(content))


def read(data, task="LaMP-4", users=3, development=2, **more):
    keys = {key.replace("_", "-"): value for key, value in more.items()}
    config = {"task": task, "data": str(data), "users": users}
    return lamp.read(parse({**config, "development-users": development, **keys}))


# --- pairs ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", SAMPLES)
def test_every_task_is_read(tmp_path, task):
    official(tmp_path, task)
    dataset = read(tmp_path, task)
    assert dataset.task.name == task
    assert [user.id for user in dataset.users] == ["00", "10", "20"]
    assert [user.id for user in dataset.development] == ["30", "40"]
    asked = dataset.users[1].held_out[0]
    assert asked.target == SAMPLES[task][2].format(u=1)
    # The published question, whole and unchanged, and a word that asks for the answer.
    question = SAMPLES[task][1].replace("{u}", "1")
    assert asked.prompt.text == question + forms.FORMS[task].cue
    # Only the user's own text may be cut.
    assert asked.prompt.input in ("Asked 1", "Asked film 1")
    assert dataset.dropped == {}


def growing(folder) -> None:
    """Users 00, 10, … with 3, 6, 9, … items."""
    questions, _ = official(folder, users=6, items=18)
    for number, one in enumerate(questions):
        one["profile"] = one["profile"][: 3 * (number + 1)]
    save(folder / "dev_questions.json", questions)


def test_evaluated_users_have_a_least_history_and_development_users_need_none(tmp_path):
    growing(tmp_path)
    found = read(tmp_path, users=2, development=3, held_out=1, least_history=9)
    assert [user.id for user in found.users] == ["20", "30"]
    assert [user.id for user in found.development] == ["00", "10", "40"]
    assert len(found.public) == 18  # of the last one
    plain = read(tmp_path, users=2, development=3, held_out=1)
    assert [user.id for user in (*plain.users, *plain.development)] == [
        *("00", "10"),
        *("20", "30", "40"),
    ]


def test_too_few_users_with_a_least_history_are_counted(tmp_path):
    growing(tmp_path)
    with pytest.raises(
        IdiolectError, match="holds 2 users with least-history=15 items"
    ):
        read(tmp_path, users=3, held_out=1, least_history=15)
    with pytest.raises(IdiolectError, match="lower least-history"):
        read(tmp_path, users=1, history=4, least_history=5)


def test_the_length_of_the_history_changes_nothing_that_is_held_out(tmp_path):
    official(tmp_path, items=16)
    long, *rest = (read(tmp_path, history=n, held_out=4) for n in (12, 8, 4, 2, 1))
    for short in rest:
        for one, other in zip(long.users, short.users, strict=True):
            assert one.held_out == other.held_out
            assert other.history == one.history[-len(other.history) :]


@pytest.mark.parametrize(
    ("task", "prompt", "target"),
    [
        (
            "LaMP-1",
            "Write an abstract for this title: Paper 0.7 abstract:",
            "We study 0.7.",
        ),
        (
            "LaMP-2",
            (
                "Which tag does this movie relate to among the following tags? Just "
                "answer with the tag name without further explanation. tags: [sci-fi, "
                "based on a book, comedy, action, twist ending, dystopia, dark comedy, "
                "classic, psychology, fantasy, romance, thought-provoking, social "
                "commentary, violence, true story] description: Film 0.7 tag:"
            ),
            "dark comedy",
        ),
        (
            "LaMP-3",
            (
                "What is the score of the following review on a scale of 1 to 5? just "
                "answer with 1, 2, 3, 4, or 5 without further explanation. review: "
                "Review 0.7 score:"
            ),
            "3",
        ),
        (
            "LaMP-2N",
            (
                "Which category does this article relate to among the following "
                "categories? Just answer with the category name without further "
                "explanation. categories: [women, religion, politics, style & beauty, "
                "entertainment, culture & arts, sports, science & technology, travel, "
                "business, crime, education, healthy living, parents, food & drink] "
                "article: Article 0.7 category:"
            ),
            "style & beauty",
        ),
        ("LaMP-4", ARTICLE + "Article 0.7 headline:", "Head 0.7"),
        (
            "LaMP-5",
            forms.FORMS["LaMP-5"].question + "Abstract 0.7 title:",
            "Title 0.7",
        ),
        (
            "LaMP-6",
            "Generate a subject for the following email: Mail 0.7 subject:",
            "Subject 0.7",
        ),
        (
            "LaMP-7",
            "Complete the following tweet: so",
            "tweet 0.7 is just a line of many words here",
        ),
    ],
)
def test_history_pair(tmp_path, task, prompt, target):
    official(tmp_path, task)
    last = read(tmp_path, task, held_out=1).users[0].history[-1]
    assert (last.prompt.text, last.target) == (prompt, target)


def test_kind_and_labels():
    kinds = {name: form.task.kind for name, form in forms.FORMS.items()}
    assert kinds["LaMP-1"] == kinds["LaMP-2"] == "classification"
    assert kinds["LaMP-3"] == "rating"
    assert {kinds[f"LaMP-{n}"] for n in (4, 5, 6, 7)} == {"generation"}
    assert len(forms.TAGS) == 15
    assert forms.FORMS["LaMP-1"].task.labels == ("[1]", "[2]")


def test_citation_keeps_its_options_and_quotes(tmp_path):
    questions, _ = official(tmp_path, "LaMP-1")
    questions[0]["input"] = questions[0]["input"].replace("Asked 0", 'On "x" and y')
    save(tmp_path / "dev_questions.json", questions)
    prompt = read(tmp_path, "LaMP-1").users[0].held_out[0].prompt
    assert prompt.input == 'On "x" and y'
    assert prompt.after.endswith('[1]: "One 0" [2]: "Two 0" reference:')


# task -> the same question in other words, about TEXT
REWORDED = {
    "LaMP-1": [
        (
            "For an author who wrote the paper titled \u201cTEXT,\u201d which reference is "
            'related? [1]: "One" [2]: "Two"'
        ),
        (
            "For an author who has written the paper with the title \u00abTEXT\u00bb which "
            "reference is related?  Answer with [1] or [2]. [1]: One [2]: Two"
        ),
    ],
    "LaMP-2": [
        (
            f"Which tag does this movie relate to among the following tags? Just answer "
            "with the tag name. "
            f"tags: [{', '.join(reversed(forms.TAGS))}] description: TEXT"
        ),
        (
            f"Which TAG does this movie relate to? Tags : [{', '.join(sorted(forms.TAGS))}]"
            "\n\nDescription :\tTEXT"
        ),
        "Which tag does this movie relate to? description: TEXT tags: [comedy, action]",
    ],
    "LaMP-2N": [
        (
            "Which category does this article relate to among the following categories? "
            f"categories: [{', '.join(sorted(forms.CATEGORIES))}] article: TEXT"
        ),
        "Which category is this of? article: TEXT categories: [sports, travel]",
    ],
    "LaMP-3": [
        "What is the rating of the following review on a scale of 1-5? Review:TEXT"
    ],
    "LaMP-4": ["Write a headline for this article: TEXT"],
    "LaMP-5": ["Generate a title for the abstract of the following paper: TEXT"],
    "LaMP-6": ["generate a subject line for the following e-mail :  TEXT"],
    "LaMP-7": ["Please paraphrase this tweet: TEXT"],
}
REWORDED_ALL = [(task, text) for task, texts in REWORDED.items() for text in texts]


def asked_again(folder, task, wording, text):
    """Official files in which user 0 asks about the profile's item 3, in other words."""
    questions, _ = official(folder, task, date=lambda i: f"2015-01-{i + 1:02}")
    form = forms.FORMS[task]
    item = questions[0]["profile"][3]
    questions[0]["input"] = wording.replace("TEXT", text(item[form.source]))
    save(folder / "dev_questions.json", questions)
    return item[form.source]


def curly(text: str) -> str:
    return f" {text.upper()}\u2026 ".replace(" ", "  ")


@pytest.mark.parametrize("text", [str, curly])
@pytest.mark.parametrize(("task", "wording"), REWORDED_ALL)
def test_a_question_in_other_words_is_recognised(tmp_path, task, wording, text):
    source = asked_again(tmp_path, task, wording, text)
    dataset = read(tmp_path, task, held_out=1)
    (asked,) = dataset.users[0].held_out
    form = forms.FORMS[task]
    wanted = clean(text(source))
    assert asked.prompt.input.strip(", ") == wanted.strip()
    whole = clean(wording.replace("TEXT", text(source)))
    assert asked.prompt.text == whole + form.cue
    assert lamp.UNKNOWN not in dataset.dropped
    # The item that is asked about is not learnt from.
    assert len(dataset.users[0].history) == 7
    assert dataset.dropped[lamp.LEAKED] == 1
    assert source not in [item.prompt.input for item in dataset.users[0].history]


@pytest.mark.parametrize(
    "wording",
    [
        "Please: TEXT",
        "Hum about \u201cTEXT\u201d and be brief",
        "TEXT is what it says, so?",
    ],
)
@pytest.mark.parametrize("task", SAMPLES)
def test_an_unknown_wording_is_counted_and_leaks_nothing(
    tmp_path, task, wording, caplog
):
    source = asked_again(tmp_path, task, wording, str)
    if task == "LaMP-7":
        assert len(source.split()) >= 4
    elif "so?" in wording:  # four words or more are found anywhere
        source = lengthen(tmp_path, task)
    dataset = read(tmp_path, task, held_out=1)
    (asked,) = dataset.users[0].held_out
    assert (asked.prompt.before, asked.prompt.after) == ("", forms.FORMS[task].cue)
    assert dataset.dropped == {lamp.UNKNOWN: 1, lamp.LEAKED: 1}
    assert len(dataset.users[0].history) == 7
    assert source not in [item.prompt.input for item in dataset.users[0].history]
    assert f"{lamp.UNKNOWN}: 1" in caplog.text


def lengthen(folder, task):
    """Make the item that user 0 asks about longer, in profile and question."""
    questions = json.loads((folder / "dev_questions.json").read_text())
    source = forms.FORMS[task].source
    item = questions[0]["profile"][3]
    longer = f"{item[source]} of many words"
    questions[0]["input"] = questions[0]["input"].replace(item[source], longer)
    item[source] = longer
    save(folder / "dev_questions.json", questions)
    return longer


def test_an_innocent_item_stays(tmp_path):
    questions, _ = official(tmp_path)
    questions[0]["input"] = "Do what you like with this: Article 0.3 is long and old"
    questions[0]["profile"][3]["text"] = "is long"  # stands in it by accident
    save(tmp_path / "dev_questions.json", questions)
    dataset = read(tmp_path, held_out=1)
    assert len(dataset.users[0].history) == 8
    assert dataset.dropped == {lamp.UNKNOWN: 1}


def test_scores_may_be_numbers(tmp_path):
    questions, _ = official(tmp_path, "LaMP-3")
    questions[0]["profile"][-1]["score"] = 2
    questions[0]["profile"][-2]["score"] = 4.0
    save(tmp_path / "dev_questions.json", questions)
    history = read(tmp_path, "LaMP-3", held_out=1).users[0].history
    assert [item.target for item in history[-2:]] == ["4", "2"]


def test_control_characters_and_white_space_are_normalised(tmp_path):
    questions, _ = official(tmp_path)
    questions[0]["profile"][-1]["title"] = " \ufeffA\x00 t\x07i\ud800tle\n\ttoo\u00a0 "
    save(tmp_path / "dev_questions.json", questions)
    assert read(tmp_path, held_out=1).users[0].history[-1].target == "A title too"


# --- splits ---------------------------------------------------------------------------


def test_held_out_grows_by_the_most_recent_quarter_of_the_profile(tmp_path):
    official(tmp_path, items=9)
    user = read(tmp_path, held_out=8).users[0]
    # One question, and 9 // 4 = 2 of the nine profile items.
    assert [item.target for item in user.held_out] == ["Gold 0", "Head 0.7", "Head 0.8"]
    assert [item.target for item in user.history] == [f"Head 0.{i}" for i in range(7)]
    user = read(tmp_path, held_out=2).users[0]
    assert [item.target for item in user.held_out] == ["Gold 0", "Head 0.8"]
    assert len(read(tmp_path, held_out=1).users[0].history) == 9


@pytest.mark.parametrize("task", ["LaMP-1", "LaMP-7"])
def test_nothing_is_added_where_history_has_another_form(tmp_path, task):
    official(tmp_path, task)
    user = read(tmp_path, task).users[0]
    assert len(user.held_out) == 1
    assert len(user.history) == 8


def test_history_is_the_most_recent_in_file_order(tmp_path):
    official(tmp_path)
    history = read(tmp_path, history=3, held_out=1).users[0].history
    assert [item.target for item in history] == ["Head 0.5", "Head 0.6", "Head 0.7"]


@pytest.mark.parametrize(
    "date",
    [
        lambda i: 2020 - i,
        lambda i: f"{2020 - i}-12-01",
        lambda i: f"2010-{12 - i:02d}-05 10:00",
        lambda i: f"2010/{12 - i:02d}/05",
        lambda i: f"{12 - i}/25/2010",
        lambda i: 1_700_000_000 - i,
    ],
)
def test_history_is_the_most_recent_by_date(tmp_path, date):
    official(tmp_path, date=date)  # the file is newest first
    history = read(tmp_path, history=3, held_out=1).users[0].history
    assert [item.target for item in history] == ["Head 0.2", "Head 0.1", "Head 0.0"]


@pytest.mark.parametrize(
    "date",
    [
        lambda i: f"2020/0{8 - i}/01",
        lambda i: f"2020.0{8 - i}",
        lambda i: f"2020-01-01T1{8 - i}:00:00Z",
        lambda i: f"2020-01-01 10:0{8 - i}",
        lambda i: 1_500_000_000 - i,
        lambda i: float(2020 - i),
    ],
)
def test_other_dates_are_understood(tmp_path, date):
    official(tmp_path, date=date)  # the file is newest first
    history = read(tmp_path, history=3, held_out=1).users[0].history
    assert [item.target for item in history] == ["Head 0.2", "Head 0.1", "Head 0.0"]


@pytest.mark.parametrize(
    "date", ["yesterday", "11/08/2020", "2020-13-01", "2020/02/31", "2020-1/5", True]
)
def test_an_unreadable_date_is_refused_by_its_field(tmp_path, date):
    official(tmp_path, date=lambda i: date if i == 4 else 2020 - i)
    message = refused(tmp_path)
    assert "user '00'" in message and "field 'profile[4].date'" in message
    assert repr(str(date)) in message
    with pytest.raises(IdiolectError, match=r"unreadable date: 6"):
        read(tmp_path, skip_bad_users=True)


@pytest.mark.parametrize(
    ("date", "sentence"),
    [
        (lambda i: f"0{9 - i}/04/2010", "has the day or the month first"),
        (lambda i: "25/04/2010" if i == 4 else "04/25/2010", "the day first and"),
    ],
)
def test_a_day_and_a_month_are_not_guessed(tmp_path, date, sentence):
    official(tmp_path, date=date)
    assert sentence in refused(tmp_path)


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_one_missing_date_means_file_order_and_is_said(tmp_path, missing, caplog):
    official(tmp_path, date=lambda i: missing if i == 4 else 2020 - i)
    dataset = read(tmp_path, history=2, held_out=1)
    history = dataset.users[0].history
    assert [item.target for item in history] == ["Head 0.6", "Head 0.7"]
    assert dataset.dropped == {items.UNDATED: 5}
    assert f"{items.UNDATED}: 5" in caplog.text


def test_wrongly_decoded_text_is_repaired_before_anything_is_removed():
    assert clean("It\u00e2\u0080\u0099s caf\u00c3\u00a9") == "It\u2019s caf\u00e9"


def test_remaining_users_history_is_public(tmp_path):
    official(tmp_path, users=7)
    dataset = read(tmp_path, users=3, development=2)
    assert {item.id.split("/")[0] for item in dataset.public} == {"50", "60"}
    assert len(dataset.public) == 2 * 6
    assert read(tmp_path, users=4, development=3).public == ()


def test_reading_stops_when_the_public_text_suffices(tmp_path, monkeypatch):
    monkeypatch.setattr(lamp, "PUBLIC", 5)
    questions, _ = official(tmp_path, users=8)
    save(tmp_path / "dev_questions.json", [*questions[:7], "never looked at"])
    assert len(read(tmp_path, users=3, development=2).public) == 5


def test_item_ids_are_unique(tmp_path):
    official(tmp_path)
    dataset = read(tmp_path)
    everyone = (*dataset.users, *dataset.development)
    items = [item.id for user in everyone for item in (*user.history, *user.held_out)]
    items += [item.id for item in dataset.public]
    assert len(set(items)) == len(items)


# --- leakage --------------------------------------------------------------------------


def test_history_equal_to_a_held_out_item_is_removed_and_counted(tmp_path):
    questions, _ = official(tmp_path)
    profile = questions[0]["profile"]
    profile[0]["title"] = "GOLD 0"  # the question's answer
    profile[1]["text"] = " asked  0"  # the question's input
    profile[2]["title"] = "Head 0.7"  # the answer of an item that will be held out
    save(tmp_path / "dev_questions.json", questions)
    dataset = read(tmp_path, held_out=2)
    user = dataset.users[0]
    assert [item.target for item in user.held_out] == ["Gold 0", "Head 0.7"]
    assert [item.target for item in user.history] == [
        f"Head 0.{i}" for i in (3, 4, 5, 6)
    ]
    assert dataset.dropped == {lamp.LEAKED: 3}


def test_a_question_is_not_held_out_a_second_time_from_the_profile(tmp_path):
    questions, _ = official(tmp_path)
    questions[0]["profile"][-1]["title"] = "Gold 0"
    save(tmp_path / "dev_questions.json", questions)
    dataset = read(tmp_path, held_out=2)
    held = [item.target for item in dataset.users[0].held_out]
    assert held == ["Gold 0", "Head 0.6"]
    assert dataset.dropped == {lamp.LEAKED: 1}


def test_a_shared_label_is_no_leak_but_a_shared_input_is(tmp_path):
    questions, _ = official(tmp_path, "LaMP-2")
    questions[0]["profile"][0]["tag"] = "true story"
    questions[0]["profile"][1]["description"] = "Asked film 0"
    save(tmp_path / "dev_questions.json", questions)
    dataset = read(tmp_path, "LaMP-2", held_out=1)
    assert dataset.dropped == {lamp.LEAKED: 1}
    assert dataset.users[0].history[0].target == "true story"


def test_the_original_of_a_paraphrased_tweet_is_removed(tmp_path):
    questions, outputs = official(tmp_path, "LaMP-7")
    outputs["golds"][0]["output"] = questions[0]["profile"][3]["text"]
    save(tmp_path / "dev_outputs.json", outputs)
    dataset = read(tmp_path, "LaMP-7")
    assert dataset.dropped == {lamp.LEAKED: 1}
    assert "/profile/3" not in " ".join(item.id for item in dataset.users[0].history)


def test_nothing_held_out_is_public(tmp_path):
    questions, _ = official(tmp_path)
    questions[5]["profile"][0]["title"] = "Gold 1"
    questions[5]["profile"][1]["title"] = "Gold 3"  # a development user's
    save(tmp_path / "dev_questions.json", questions)
    public = read(tmp_path).public
    assert [item.target for item in public] == [f"Head 5.{i}" for i in range(2, 6)]


def test_items_without_text_are_left_out_and_counted(tmp_path):
    questions, _ = official(tmp_path)
    questions[0]["profile"][0]["title"] = " \x00 "
    questions[0]["profile"][1]["text"] = ""
    save(tmp_path / "dev_questions.json", questions)
    dataset = read(tmp_path, held_out=1)
    assert dataset.dropped == {items.EMPTY: 2}
    assert len(dataset.users[0].history) == 6


@pytest.mark.parametrize("missing", [None, float("nan"), "", " \u200b\u200b "])
@pytest.mark.parametrize("task", SAMPLES)
def test_one_missing_value_costs_one_item(tmp_path, task, missing, caplog):
    questions, _ = official(tmp_path, task)
    form = forms.FORMS[task]
    questions[0]["profile"][2][form.source] = missing
    if form.answer:
        questions[1]["profile"][2][form.answer] = missing
    if missing is None:
        questions[2]["profile"][2] = None
    save(tmp_path / "dev_questions.json", questions)
    dataset = read(tmp_path, task, held_out=1)
    assert [user.id for user in dataset.users] == ["00", "10", "20"]
    damaged = 1 + bool(form.answer) + (missing is None)
    lengths = [len(user.history) for user in dataset.users]
    assert sum(lengths) == 3 * 8 - damaged and lengths[0] == 7
    assert dataset.dropped == {items.EMPTY: damaged}
    assert f"{items.EMPTY}: {damaged}" in caplog.text


@pytest.mark.parametrize("part", ["input", "gold"])
@pytest.mark.parametrize("missing", [None, float("nan"), "", " \u200b "])
def test_one_hollow_question_of_several_costs_itself_alone(tmp_path, part, missing):
    form = forms.FORMS["LaMP-4"]
    profile = [
        {"id": f"p{i}", "text": f"article {i}", "title": f"t{i}"} for i in range(8)
    ]
    queries = [
        {"id": f"q{i}", "input": f"{form.question}news {i}", "gold": f"g{i}"}
        for i in range(3)
    ]
    queries[1][part] = missing
    save(
        tmp_path / "users.json",
        [{"user_id": "a", "profile": profile, "query": queries}],
    )
    one_rate = {"personalise.learning-rates": "1e-3"}
    dataset = read(tmp_path, users=1, development=0, held_out=2, **one_rate)
    (user,) = dataset.users
    assert [item.target for item in user.held_out] == ["g0", "g2"]
    assert dataset.dropped == {lamp.HOLLOW: 1}


# --- rivals and determinism -----------------------------------------------------------


def test_rivals_are_other_users_held_out_items_of_the_same_group(tmp_path):
    official(tmp_path, users=9)
    dataset = read(tmp_path, users=5, development=3)
    for group in (dataset.users, dataset.development):
        held = {item.id for user in group for item in user.held_out}
        for user in group:
            for item in user.held_out:
                assert len(item.rivals) == 1
                assert item.rivals[0].id in held
                assert item.rivals[0].id.split("/")[0] != user.id
                assert item.rivals[0].rivals == ()


def test_several_rivals_are_different_items_and_no_more_than_there_are(tmp_path):
    official(tmp_path, users=9)
    few: dict[str, Any] = {"evaluate.rivals": 3}
    several = read(tmp_path, users=5, development=3, **few)
    for item in (item for user in several.users for item in user.held_out):
        assert len({rival.id for rival in item.rivals}) == 3
    more: dict[str, Any] = {"evaluate.rivals": 63}
    many = read(tmp_path, users=5, development=3, **more)
    held = sum(len(user.held_out) for user in many.users)
    for user in many.users:
        for item in user.held_out:
            assert len(item.rivals) <= held - len(user.held_out)


def test_a_rival_never_has_the_same_text(tmp_path):
    questions, outputs = official(tmp_path, users=2, items=3)
    questions[1]["input"] = questions[0]["input"]
    outputs["golds"][1]["output"] = outputs["golds"][0]["output"]
    save(tmp_path / "dev_questions.json", questions)
    save(tmp_path / "dev_outputs.json", outputs)
    dataset = read(tmp_path, users=1, development=1)
    assert dataset.users[0].held_out[0].rivals == ()


def test_a_rival_is_no_text_of_the_own_history(tmp_path):
    """A paper with two authors: what one learns from, the other is measured on."""
    questions, outputs = official(tmp_path, task="LaMP-5", users=2, items=3)
    dataset = read(tmp_path, task="LaMP-5", users=2, development=0)
    mine = dataset.users[0].history[0]
    (theirs,) = dataset.users[1].held_out
    (rival,) = dataset.users[0].held_out[0].rivals
    assert rival.id == theirs.id
    abstract = questions[0]["profile"][0]["abstract"]
    questions[1]["input"] = questions[1]["input"].replace(theirs.prompt.input, abstract)
    outputs["golds"][1]["output"] = mine.target
    save(tmp_path / "dev_questions.json", questions)
    save(tmp_path / "dev_outputs.json", outputs)
    dataset = read(tmp_path, task="LaMP-5", users=2, development=0)
    assert dataset.users[0].held_out[0].rivals == ()


def test_a_lone_user_takes_rivals_from_development(tmp_path):
    official(tmp_path)
    dataset = read(tmp_path, users=1, development=1)
    (rival,) = dataset.users[0].held_out[0].rivals
    assert rival.id.startswith("10/")


def test_reading_is_deterministic_and_rivals_follow_the_seed(tmp_path):
    official(tmp_path, users=9)
    first = read(tmp_path, users=7, development=1, seed=3)
    assert first == read(tmp_path, users=7, development=1, seed=3)
    other = read(tmp_path, users=7, development=1, seed=4)
    assert first != other
    assert [u.history for u in first.users] == [u.history for u in other.users]


# --- files ----------------------------------------------------------------------------


def oppu(users=6, items=8, queries=3):
    item = SAMPLES["LaMP-4"][0]
    return [
        {
            "user_id": u,
            "profile": [item(u, i) for i in range(items)],
            "query": [
                {
                    "id": f"{u}{q}",
                    "input": f"{ARTICLE}Asked {u}.{q}",
                    "gold": f"Gold {u}.{q}",
                }
                for q in range(queries)
            ],
        }
        for u in range(users)
    ]


def test_oppu_file_and_folder(tmp_path):
    save(tmp_path / "my_users.json", oppu())
    dataset = read(tmp_path, held_out=4)
    assert dataset == read(tmp_path / "my_users.json", held_out=4)
    user = dataset.users[2]
    assert user.id == "2"
    assert [item.target for item in user.held_out] == [
        "Gold 2.0",
        "Gold 2.1",
        "Gold 2.2",
        "Head 2.7",
    ]
    assert len(read(tmp_path, held_out=2).users[0].held_out) == 2


def test_oppu_golds_in_their_own_label_file(tmp_path):
    records = oppu()
    golds = [
        {"id": query["id"], "output": query.pop("gold")}
        for record in records
        for query in record["query"]
    ]
    save(tmp_path / "user_top_100_history.json", records)
    labels = {"task": "LaMP_4", "golds": golds}
    save(tmp_path / "user_top_100_history_label.json", labels)
    assert read(tmp_path).users[1].held_out[2].target == "Gold 1.2"


def test_official_is_preferred_unless_the_file_is_named(tmp_path):
    official(tmp_path)
    save(tmp_path / "oppu_users.json", oppu())
    assert read(tmp_path).users[0].id == "00"
    assert read(tmp_path / "oppu_users.json").users[0].id == "0"


def test_dev_is_preferred_and_any_questions_file_can_be_named(tmp_path):
    official(tmp_path, items=8, part="train")
    assert len(read(tmp_path, held_out=1).users[0].history) == 8
    official(tmp_path, items=5, part="dev")
    assert len(read(tmp_path, held_out=1).users[0].history) == 5
    train = tmp_path / "train_questions.json"
    assert len(read(train, held_out=1).users[0].history) == 8
    (tmp_path / "dev_outputs.json").unlink()  # a pair is needed
    assert len(read(tmp_path, held_out=1).users[0].history) == 8


def test_the_file_read_is_logged(tmp_path, caplog):
    official(tmp_path)
    with caplog.at_level("INFO", logger=lamp.__name__):
        read(tmp_path)
    assert "dev_questions.json" in caplog.text


def test_questions_of_one_user_are_grouped(tmp_path):
    questions, _ = official(tmp_path)
    for question, name in zip(questions, (7, 7, 8, 8, 9, 9), strict=True):
        question["user_id"] = name
    save(tmp_path / "dev_questions.json", questions)
    dataset = read(tmp_path, users=2, development=1, held_out=2)
    assert [user.id for user in dataset.users] == ["7", "8"]
    assert [item.target for item in dataset.users[1].held_out] == ["Gold 2", "Gold 3"]
    assert dataset.users[1].history[0].target == "Head 2.0"


# --- errors ---------------------------------------------------------------------------


def refused(*arguments, **keys):
    with pytest.raises(IdiolectError) as caught:
        read(*arguments, **keys)
    return str(caught.value)


def test_missing_files_are_named(tmp_path):
    assert "there is no file or folder" in refused(tmp_path / "nowhere")
    message = refused(tmp_path)
    assert "dev_questions.json" in message and "docs/data.md" in message
    official(tmp_path, part="test")
    (tmp_path / "test_outputs.json").unlink()
    message = refused(tmp_path)
    assert "test_questions.json" in message and "no test_outputs.json" in message
    assert "cannot read" in refused(tmp_path / "test_questions.json")


def test_several_oppu_files_are_refused(tmp_path):
    save(tmp_path / "a_users.json", oppu())
    save(tmp_path / "b_users.json", oppu())
    assert "a_users.json and b_users.json" in refused(tmp_path)


def test_broken_json_names_line_and_column(tmp_path):
    official(tmp_path)
    (tmp_path / "dev_questions.json").write_text('[\n {"id": 1,\n  oops}\n]')
    message = refused(tmp_path)
    assert "dev_questions.json is not JSON: line 3, column 3" in message
    assert "download it again" in message


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 10_000])
def test_json_that_breaks_the_parser(tmp_path, content):
    (tmp_path / "my_users.json").write_text(content)
    assert "cannot be read as JSON" in refused(tmp_path)


def test_not_text(tmp_path):
    (tmp_path / "my_users.json").write_bytes(b'["\xff"]')
    assert "is not UTF-8 text (byte 2)" in refused(tmp_path)


def test_wrong_top_level(tmp_path):
    questions, outputs = official(tmp_path)
    save(tmp_path / "dev_questions.json", {"questions": questions})
    assert "not a list of users" in refused(tmp_path)
    save(tmp_path / "dev_questions.json", questions)
    save(tmp_path / "dev_outputs.json", outputs["golds"])
    assert "no list 'golds'" in refused(tmp_path)
    save(tmp_path / "dev_outputs.json", {"golds": [{"output": "x"}]})
    assert "golds[0] has no field 'id'" in refused(tmp_path)


def test_files_of_another_task(tmp_path):
    official(tmp_path, "LaMP-5")
    assert "set task=LaMP-5" in refused(tmp_path)
    _, outputs = official(tmp_path)
    save(tmp_path / "dev_outputs.json", {**outputs, "task": "LongLaMP"})
    assert "set 'data' to other files" in refused(tmp_path)


@pytest.mark.parametrize("name", ["LaMP_2", "LaMP_2N"])
def test_the_news_form_has_two_names(tmp_path, name):
    _, outputs = official(tmp_path, "LaMP-2N")
    save(tmp_path / "dev_outputs.json", {**outputs, "task": name})
    assert len(read(tmp_path, "LaMP-2N").users) == 3
    if name == "LaMP_2N":
        assert "set task=LaMP-2N" in refused(tmp_path, "LaMP-2")
    else:
        assert "field 'query[0].gold' is 'food & drink', not one of" in refused(
            tmp_path, "LaMP-2"
        )
    _, outputs = official(tmp_path, "LaMP-2")
    save(tmp_path / "dev_outputs.json", {**outputs, "task": "LaMP_2M"})
    assert len(read(tmp_path, "LaMP-2").users) == 3
    assert "holds LaMP-2" not in refused(tmp_path, "LaMP-2N")


def damage(key, value=None):
    """Return a function that spoils one place of the second record."""

    def spoil(records):
        *path, last = key
        node = records[1]
        for step in path:
            node = node[step]
        if value is None:
            del node[last]
        else:
            node[last] = value

    return spoil


BROKEN = [
    (["user_id"], None, "missing field", "field 'user_id' is missing"),
    (["user_id"], [1], "wrong type", "field 'user_id' is not a text or number"),
    (["profile"], None, "missing field", "field 'profile' is missing"),
    (["profile"], "none", "wrong type", "field 'profile' is not a list"),
    (["profile"], [], "empty history", "no history item to learn from"),
    (["profile", 2], "text", "wrong type", "profile[2] is not a JSON object"),
    (["profile", 2, "title"], None, "missing field", "'profile[2].title' is missing"),
    (["profile", 2, "text"], 5, "wrong type", "'profile[2].text' is not a text"),
    (["query"], None, "missing field", "field 'query' is missing"),
    (["query", 1], 3, "wrong type", "query[1] is not a JSON object"),
    (["query", 1, "id"], None, "missing field", "'query[1].id' is missing"),
    (["query", 1, "id"], "10", "duplicate id", "same id"),
    (["user_id"], 0, "duplicate user", "earlier record has this user"),
]


@pytest.mark.parametrize(("key", "value", "reason", "sentence"), BROKEN)
def test_malformed_users_are_named_or_counted(tmp_path, key, value, reason, sentence):
    records = oppu()
    damage(key, value)(records)
    save(tmp_path / "my_users.json", records)
    message = refused(tmp_path)
    assert message.startswith("my_users.json: record 1")
    assert sentence in message
    assert "skip-bad-users=true" in message
    if key != ["user_id"]:
        assert "(user '1')" in message
    dataset = read(tmp_path, skip_bad_users=True)
    assert dataset.dropped == {reason: 1}
    assert [user.id for user in dataset.users] == ["0", "2", "3"]


def test_a_record_that_is_no_object(tmp_path):
    questions, _ = official(tmp_path)
    save(tmp_path / "dev_questions.json", ["text", *questions])
    message = refused(tmp_path)
    assert "dev_questions.json with dev_outputs.json: record 0:" in message
    assert "not a JSON object" in message
    assert read(tmp_path, skip_bad_users=True).dropped == {"wrong type": 1}


def test_official_question_without_gold_or_id(tmp_path):
    questions, outputs = official(tmp_path)
    gone = outputs["golds"].pop(2)
    save(tmp_path / "dev_outputs.json", outputs)
    assert "record 2 (user '20'): query[0] (id '20') has no gold" in refused(tmp_path)
    outputs["golds"].append(gone)
    save(tmp_path / "dev_outputs.json", outputs)
    del questions[2]["id"]
    save(tmp_path / "dev_questions.json", questions)
    assert "record 2: field 'user_id' is missing" in refused(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "reason", "sentence"),
    [
        ("input", None, "missing field", "'query[0].input' is missing"),
        ("input", " ", "empty text", "'query[0].input' is empty"),
        ("gold", None, "missing gold", "query[0] (id '10') has no gold"),
        ("gold", " ", "empty text", "'query[0].gold' is empty"),
    ],
)
def test_a_user_without_a_whole_question_is_named_or_counted(
    tmp_path, part, value, reason, sentence
):
    records = oppu()
    for query in records[1]["query"]:
        query[part] = value
    save(tmp_path / "my_users.json", records)
    assert sentence in refused(tmp_path)
    assert read(tmp_path, skip_bad_users=True).dropped[reason] == 1


@pytest.mark.parametrize("value", ["six", 6, 4.5])
def test_unknown_labels(tmp_path, value):
    questions, outputs = official(tmp_path, "LaMP-3")
    questions[1]["profile"][4]["score"] = value
    save(tmp_path / "dev_questions.json", questions)
    message = refused(tmp_path, "LaMP-3")
    assert "'profile[4].score'" in message and "not one of 1, 2, 3, 4, 5" in message
    questions[1]["profile"][4]["score"] = True
    save(tmp_path / "dev_questions.json", questions)
    assert "'profile[4].score' is not a label" in refused(tmp_path, "LaMP-3")


def test_nothing_held_out(tmp_path):
    save(tmp_path / "my_users.json", oppu(items=3, queries=0))
    assert "no item to be measured on" in refused(tmp_path)
    save(tmp_path / "my_users.json", oppu(items=4, queries=0))
    assert len(read(tmp_path).users[0].held_out) == 1


def test_history_that_is_only_a_leak_is_empty(tmp_path):
    records = oppu()
    records[1]["profile"] = [{"text": "Asked 1.0", "title": "Gold 1.0"}]
    save(tmp_path / "my_users.json", records)
    assert "no history item to learn from" in refused(tmp_path)


def test_fewer_users_than_asked(tmp_path):
    official(tmp_path, users=4)
    message = refused(tmp_path, users=3, development=2)
    assert "holds 4 usable users" in message and "ask for 5" in message
    assert "lower 'users' or 'development-users'" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "holds 0 usable users"),
        ([None], "record 0: the record is not a JSON object"),
        ([{"user_id": "7"}], "record 0 (user '7'): field 'query' is missing"),
        ([{"user_id": " "}], "record 0 (user ' '): field 'user_id' has 0 characters"),
        (
            [{"user_id": "7", "profile": [], "query": []}],
            "no history item to learn from",
        ),
    ],
)
def test_files_without_users_say_why(tmp_path, content, said):
    save(tmp_path / "my_users.json", content)
    message = refused(tmp_path)
    assert said in message and "my_users.json" in message
    assert message.endswith(".") and "(," not in message


NAMES = [
    "J\u00fcrgen M.",
    "j\u00fcrgen m.",
    "a b",
    "-a",
    "..",
    "a/b",
    "\u674e",
    "Anna",
    "anna",
]


def test_names_are_accepted_and_kept_apart(tmp_path):
    records = [{**oppu()[0], "user_id": name} for name in [*NAMES, 7.0, 8]]
    save(tmp_path / "my_users.json", records)
    dataset = read(tmp_path, users=len(records) - 1, development=1, held_out=1)
    assert [user.id for user in dataset.users] == [*NAMES, "7"]
    check(dataset)


@pytest.mark.parametrize("name", ["x" * 101, " ", "\x00", True, 1.5])
def test_what_is_no_name_is_refused(tmp_path, name):
    records = oppu()
    records[1]["user_id"] = name
    save(tmp_path / "my_users.json", records)
    assert "field 'user_id'" in refused(tmp_path)


# --- real files -----------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("folder", "task", "users", "public"),
    [("acl_titles", "LaMP-5", 152, 96), ("gov_headlines", "LaMP-4", 80, 24)],
)
@pytest.mark.parametrize("file", ["", "oppu_users.json"])
def test_real_files(folder, task, users, public, file):
    dataset = read(SHARED / folder / file, task, users=48, development=8)
    everyone = (*dataset.users, *dataset.development)
    assert len(everyone) == 56
    assert len({item.id.split("/")[0] for item in dataset.public}) == public
    question = forms.FORMS[task].question
    for user in everyone:
        assert 1 <= len(user.history) <= 32 and 1 <= len(user.held_out) <= 8
        held = {item.target.casefold() for item in user.held_out}
        assert not held & {item.target.casefold() for item in user.history}
        for item in (*user.history, *user.held_out):
            assert item.prompt.before == question and item.prompt.input
    assert f"holds {users} usable users" in refused(
        SHARED / folder / file, task, users=users, development=1
    )
