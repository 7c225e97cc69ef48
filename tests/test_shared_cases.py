"""The small inputs beside this repository, each read as its README says is right.

Tests of the same kinds that need no such folder stand with what they test.
"""

import io
import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from idiolect.client.cli import main
from idiolect.client.imports.read import read
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.vault import Vault
from idiolect.common.config import parse
from idiolect.common.data import lamp
from idiolect.common.data.lamp import items
from idiolect.common.data.types import User
from idiolect.common.engine.adapters import zero_shared
from idiolect.common.engine.backbone import load_backbone
from idiolect.common.engine.fitting import encode_all, fitting
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import completion_tokens
from idiolect.common.files import file_name
from idiolect.common.text import make_encodable
from idiolect.common.unlabeled.samples import self_samples
from tests.common.engine.test_model_folders import loaded, tokenizer, write

CASES = Path(__file__).parents[2] / "shared" / "cases"
ONE_RATE = {"personalise.learning-rates": "1e-3"}
SECRET = "correct horse battery"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("IDIOLECT_PASSPHRASE_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))

    def command(*words, code=0):
        assert main([*map(str, words)]) == code
        return capsys.readouterr()

    command("vault", "init")
    return command


@pytest.fixture
def kept(run):
    """Import a file; return its pairs as (prompt, text, liked), and what was said."""

    def command(name, *words):
        said = " ".join(run("import", CASES / name, *words).out.split())
        found = json.loads(run("history", "list", "--json").out)
        return [(one["prompt"], one["target"], one["liked"]) for one in found], said

    return command


def users(name, task, **keys):
    """Users of a LaMP case."""
    rest = {"development-users": 0, **ONE_RATE, **keys}
    return lamp.read(parse({"task": task, "data": str(CASES / name), **rest}))


# --- imports ---------------------------------------------------------------------------


def test_01_a_label_that_is_false_is_a_known_negative(kept):
    found, said = kept("01-kto.jsonl")
    assert [liked for _, _, liked in found] == [True, False, True, False]
    assert found[1][:2] == (
        "Suggest a title for the cooking note",
        "10 AMAZING Tricks You Must Try",
    )
    assert "liked from 'label' ignored columns: none" in said


def test_02_an_instruction_comes_before_its_input(kept):
    found, _ = kept("02-alpaca.jsonl")
    meeting = (
        "The allotment meeting moved to Thursday because the hall is being painted."
    )
    assert [prompt for prompt, _, _ in found] == [
        f"Shorten this to one line.\n\n{meeting}",
        "Write a birthday wish for a colleague who likes trains.",
        "Write a packing list for a rainy hike.",
    ]
    assert found[0][1] == "Allotment meeting: Thursday now."


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        (
            "03-one-column.csv",
            [("", "first thought\nsecond thought", True), ("", "plain", True)],
        ),
        ("03-vtab.jsonl", [("slide", "Budget\nNext steps", True)]),
        ("04-mojibake.jsonl", [("chat", "It’s fine 😀 café", True)]),  # noqa: RUF001
        ("05-semicolon.csv", [("How was it?", "Fine, thanks", True)]),
        ("06-nulls.jsonl", [("", "hello there", True)]),
        ("08-conversations.json", [("", "hi", True)]),
        ("08-messages.jsonl", [("Title?", "Beans", True)]),
    ],
)
def test_03_to_08_what_is_kept(name, pairs, kept):
    assert kept(name)[0] == pairs


def test_04_a_repair_is_counted(kept):
    assert (
        "changed: repaired, after a wrong decoding (1)" in kept("04-mojibake.jsonl")[1]
    )


def test_05_two_columns_of_one_name_are_refused(run):
    said = run("import", CASES / "05-two-text-columns.csv", code=2).err
    assert "two columns of one name, 'text'" in said
    assert json.loads(run("history", "list", "--json").out) == []


def test_07_the_newest_come_last(kept):
    found, said = kept("07-newest-first.jsonl")
    assert [text for _, text, _ in found] == [f"post number {n}" for n in range(1, 13)]
    assert "2024-03-01 to 2024-03-12; the file has the newest first" in said


def test_09_what_cannot_be_seen_is_no_text(run, kept):
    assert (
        "line 1 has an empty text"
        in run("import", CASES / "09-invisible.jsonl", code=2).err
    )
    found, said = kept("09-invisible.jsonl", "--skip-bad-rows")
    assert [pair[:2] for pair in found] == [("r", "hi שלום"), ("s", "hello")]
    assert "left out: empty text (3)" in said


@pytest.mark.slow
def test_12_a_message_longer_than_the_context_is_left_out_and_counted(run, kept):
    found, _ = kept("12-one-long-message.jsonl")
    assert len(found) == 13
    new = json.loads(run("personalize", "--method", "sft", "--json").out)
    assert (new["trained"], new["held_out"], new["too_long"]) == (10, 2, 1)


def test_13_all_answered_questions_are_read(kept):
    found, _ = kept("13-many-queries_users.json", "--task", "LaMP-4", "--user", "7")
    assert [text for _, text, _ in found[6:]] == [
        f"Fresh headline {n}" for n in range(4)
    ]
    (user,) = users("13-many-queries_users.json", "LaMP-4", users=1).users
    asked = [item.target for item in user.held_out if "/query/" in item.id]
    assert asked == [f"Fresh headline {n}" for n in range(4)]


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_14_posts_without_prompts_get_their_unlabeled_items(tmp_path, bos):
    backbone = loaded(write(tmp_path, "phi", tokenizer("", bos=bos)))
    posts = [entry.item() for entry in read(CASES / "14-no-prompts.jsonl").entries]
    assert len(posts) == 12
    user = User("owner", tuple(posts), ())
    own = encode_all(backbone, posts)
    for entry in own:  # something precedes the first token, so every one is scored
        assert entry.prompt_length == 1 and completion_tokens(entry) > 20
    config = parse({"task": "text", "unlabeled.kind": "self", **ONE_RATE})
    shared = zero_shared(backbone, config.shared_shape, config.seed)
    assert len(self_samples(Reference(backbone, shared), user, own, 24, config)) == 24


def test_33_emoji_on_an_ascii_terminal(run, kept, monkeypatch):
    kept("33-emoji.jsonl")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", screen)
    make_encodable()
    assert main(["history", "list"]) == 0
    screen.flush()
    assert screen.buffer.getvalue().count(b"see you at the caf? ? ") == 6


def test_30_a_passphrase_opens_the_vault_however_it_was_typed(tmp_path):
    one, other = (
        (CASES / f"30-passphrase-{form}.txt").read_text("utf-8").strip()
        for form in ("nfc", "nfd")
    )
    assert one != other == unicodedata.normalize("NFD", one)
    for number, (first, second) in enumerate([(one, other), (other, one)]):
        path = tmp_path / f"{number}.db"
        Vault.create(path, Passphrase(first)).close()
        with Vault.open(path, Passphrase(second)) as vault:
            assert list(vault.records("pair")) == []


# --- LaMP ------------------------------------------------------------------------------


def test_10_tags_in_another_order_are_recognised(caplog):
    found = users("10-lamp2", "LaMP-2", users=16)
    assert len(found.users) == 16
    for user in found.users:
        asked = user.held_out[0].prompt
        assert asked.before.endswith("description: ") and asked.after == " tag:"
        assert asked.input not in [item.prompt.input for item in user.history]
    assert found.dropped[lamp.LEAKED] > 0 and lamp.UNKNOWN not in found.dropped


def test_11_an_item_longer_than_the_context_is_left_out():
    backbone = load_backbone("tiny", "float32", "cpu", 512)
    found = users("11-lamp1", "LaMP-1", users=8)
    counts = Counter()
    for user in found.users:
        short, count = fitting(backbone, user)
        counts[count] += 1
        assert len(short.history) == 12 - count and short.held_out
    assert counts == {0: 7, 1: 1}


def test_15_dates_with_slashes_are_understood():
    for user in users("15-slashes_users.json", "LaMP-4", users=2).users:
        assert [item.target for item in user.history] == [
            f"H{n}" for n in range(7, 1, -1)
        ]
        assert [item.target for item in user.held_out] == ["H1", "H0"]


def test_18_names_are_accepted_and_kept_apart():
    path = CASES / "18-ids_users.json"
    names = [record["user_id"] for record in json.loads(path.read_text("utf-8"))]
    found = users(path.name, "LaMP-4", users=len(names)).users
    assert [user.id for user in found] == names
    assert len({file_name(name) for name in names}) == len(names)
    for user in found:
        assert {item.prompt.input.rsplit(" ", 1)[0] for item in user.history} == {
            f"article {user.id}"
        }


def test_18_a_null_text_costs_its_item_alone():
    found = users("18-null-text_users.json", "LaMP-4", users=3)
    assert found.dropped == {items.EMPTY: 1}
    kept = {user.id: len(user.history) + len(user.held_out) for user in found.users}
    assert kept == {"a": 8, "b": 8, "c": 8}
