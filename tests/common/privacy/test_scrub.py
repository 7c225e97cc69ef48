"""What leaves a device in the kind `anonymised`: nothing of what is planted here."""

import json
import random
import string
import time
import unicodedata
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common.data.types import Item, Prompt
from idiolect.common.privacy.scrub import (
    PLACEHOLDERS,
    classify,
    entropy,
    luhn,
    normalise,
    offered,
    scrub,
    secret_like,
)

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAzq8\nuvQ3w==\n"
    "-----END RSA PRIVATE KEY-----"
)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1g"
# Placeholder -> what must not survive. None of it is anybody's.
PLANTED = {
    "<email>": [
        "john.doe@example.com",
        "JOHN_DOE+news@mail.example.co.uk",
        "jörg@müller.example",
        "o'neil@example.org",
        "{john,mary}@cs.example.edu",
        '"john doe"@example.com',
        "root@192.168.7.9",
        "root@[192.168.7.9]",
        "a@b.xn--p1ai",
        "john.doe＠example.com",
        "john\u200b.doe@exam\u00adple.com",
        "john.doe(at)example(dot)com",
        "john (dot) doe [at] example.com",
        "x@sub.sub.sub.example.com_",
    ],
    "<phone>": [
        "+49 30 901820",
        "+4930901820",
        "+1 (555) 123-4567",
        "(+44) 20 7946 0958",
        "+44 (0)20 7946 0958",
        "0049 30 901820",
        "(555) 123-4567",
        "555-123-4567",
        "555.123.4567",
        "555 123 4567",
        "1-800-555-0199",
        "555-0199",
        "5551234567",
        "15551234567",
        "020 7946 0958",
        "07700 900123",
        "01 23 45 67 89",
        "01.23.45.67.89",
        "030/1234567",
        "0171-1234567",
        "(030) 123 456",
        "12 34 56 78",
        "612 345 678",
        "9123 4567",
        "+91 98765 43210",
        "138-0013-8000",
        "555–123–4567",
        "５５５-１２３-４５６７",
        "٠١٢٣٤٥٦٧٨٩",
        "555\u00a0123\u00a04567",
        "555-123-4567 ext. 89",
        "555-123-4567 x89",
    ],
    "<card>": [
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "4111111111111111",
        "3782 822463 10005",
        "5555.5555.5555.4444",
        "6304000000000000000",  # 19 digits
        "4222222222222",  # 13
    ],
    "<iban>": [
        "DE89 3704 0044 0532 0130 00",
        "DE89370400440532013000",
        "de89 3704 0044 0532 0130 00",
        "GB29 NWBK 6016 1331 9268 19",
        "MT84MALT011000012345MTLCAST001S",
        "NO93-8601-1117-947",
        "DE88 3704 0044 0532 0130 00",  # mistyped
    ],
    "<url>": [
        "https://example.com/a?user=john&id=7#x",
        "http://john:secret@example.com:8080/",
        "HTTPS://EXAMPLE.COM",
        "ftp://example.com/file.txt",
        "www.example.com",
        "bit.ly/3xYz",
        "example.com:8080/john",
        "example.com?user=john",
        "ssh+git://example.com/john",
    ],
    "<ip>": [
        "192.168.17.254",
        "10.0.0.1:8080",
        "10.0.0.0/24",
        "2001:db8:85a3::8a2e:370:7334",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
        "fe80::1%eth0",
        "::1",
        "::ffff:192.168.17.254",
        "dead:beef::cafe",
    ],
    "<id>": [
        "123-45-6789",
        "123 45 6789",
        "87654321",
        "12345678901234567890123",
        "4111111111111112",  # a card number with a wrong check digit
        "A1234567",
        "12345678Z",
        "user_12345678",
        "AB123456C",
        "RSSMRA85T10A562S",
        "1HGCM82633A004352",
        "978-3-16-148410-0-12345",
        "123e4567-e89b-12d3-a456-426614174000",
        "123E4567-E89B-12D3-A456-426614174000",
        "00:1A:2b:3C:4D:5E",
        "00-1A-2B-3C-4D-5E",
        "001A.2B3C.4D5E",
        "001a2b3c4d5e",
        "d41d8cd98f00b204e9800998ecf8427e",
        "0xd41d8cd98f00b204e9800998ecf8427e",
    ],
    "<secret>": [
        PEM,
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0_abcdefghijklmnop",
        "glpat-ABCdef123456-7890xyz",
        "xoxb-123456789012-abcdefABCDEF",
        "sk-proj-abcDEF123456ghiJKL789",
        "sk-ant-api03-abcDEF123456ghiJKL789",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "sk_live_abcdefgh12345678",
        "hf_abcdefghijklmnopqrst",
        "SG.abcdefghijklmnop1234.qrstuvwxyz123456",
        JWT,
    ],
}
CASES = [(kind, secret) for kind, secrets in PLANTED.items() for secret in secrets]


@pytest.mark.parametrize(("kind", "secret"), CASES)
@pytest.mark.parametrize(
    "sentence",
    ["{}", "Ask {} about it.", "Well,\n{}, as I said", "see ({})", "It was {}"],
)
def test_nothing_planted_survives(sentence, kind, secret):
    text = sentence.format(secret)
    found = scrub(text)
    if sentence == "{}":
        assert found is None  # nothing is left
        return
    assert found is not None
    # Only punctuation next to it may go or stay, so all else is exactly as before.
    before, _, after = (part.strip(" \n,.()") for part in sentence.partition("{}"))
    assert found.count(kind) == 1
    kept_before, kept_after = found.split(kind)
    assert kept_before.strip(" ,.(") == before
    assert kept_after.strip(' ,.)_"') == after


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("password: hunter2", "password: <secret>"),
        ("my Password : correcthorse ok", "my Password : <secret> ok"),
        ('{"password": "correct horse", "a": 1}', '{"password": <secret>, "a": 1}'),
        ("DB_PASSWORD=letmein next", "DB_PASSWORD=<secret> next"),
        ("set token=abcdef then", "set token=<secret> then"),
        ("the token: abc123def4 then", "the token: <secret> then"),
        ("my password is hunter2 ok", "my password is <secret> ok"),
        ("PIN = 1234 ok", "PIN = <secret> ok"),
        ("api_key='abc def' ok", "api_key=<secret> ok"),
        ("client-secret => xyz ok", "client-secret => <secret> ok"),
        ("Passwort: geheim ok", "Passwort: <secret> ok"),
        ("aws_secret_access_key = wJalr/K7 ok", "aws_secret_access_key = <secret> ok"),
        ("Authorization: Bearer abc ok", "Authorization: Bearer <secret> ok"),
        ("password: P@ss.word1! ok", "password: <secret> ok"),
        ("password: https://example.com/x ok", "password: <secret> ok"),
        ("password: a@example.com ok", "password: <secret> ok"),
    ],
)
def test_announced_secrets(text, wanted):
    assert scrub(text) == wanted


def test_several_in_one_text():
    text = (
        "Mail a@example.com or b@example.org, call 555-123-4567 or +49 30 901820; the "
        "cards 4111 1111 1111 1111, 5555 5555 5555 4444 and DE89 3704 0044 0532 0130 00 "
        "GB29 NWBK 6016 1331 9268 19 are at https://example.com/x, 10.0.0.1."
    )
    assert scrub(text) == (
        "Mail <email> or <email>, call <phone> or <phone>; the cards <card>, <card> and "
        "<iban> <iban> are at <url>, <ip>."
    )


@pytest.mark.parametrize(
    "text",
    [
        "In 2014 we won 3-2 in front of 12,500 people.",
        "From 2014-2015 to 2016/2017 it grew by 3.5 % to 1,234,567 in 24/7 work.",
        "2013 2014 2015 were good years",
        "Since 2012 1000 users came; in 2010 350 left.",
        "21-19 21-15 21-18, then 6-4 3-6 7-5 4-6 6-3",
        "We went from 85.3 90 78.21 to 15.05/4.29 points at 10:30:45.",
        "500-1000 people and 1000-2500 others, about 1/3 or 50%",
        "On 2014-03-05 and 05/03/2014 10:30 and 5.3.14 we met.",
        "GPT-4 2015 100 and BERT4 2016, CoNLL2003, ISO27001, WMT2014, COVID-19",
        "version 3.11.7 scored 0.53 0.61 0.72 at recall@10.5 and P@5",
        "Call me at 9, room 12, apartment 4711, code 90210.",
        "The password was wrong; a token is a unit; the key: patience.",
        "Token: a study of secrets and keys",
        "e.g. and/or i.e. U.S./Mexico, Data.gov and Amazon.com are here.",
        "std::vector, a::b and 10:30 are no addresses",
        "The human-in-the-loop, state-of-the-art Knowledge-Enhanced approach",
        "Internationalization of PolicyOpsDataAnalytics with antidisestablishmentarianism",
        "Straßenbahnhaltestelle, naïve café — “quoted” … 中文也可以。",
        "我们在2019年使用BERT模型进行了实验并取得了很好的结果而且没有任何问题",
        "¿Qué tal? 😀 5 € for 3 kg & more; a < b > c [1] {2}",
        "The basic misunderstandings of task-oriented-dialogue-systems",
        "He asked (at) the office. Risk-averse-people-everywhere do.",
        "Human-in-the-loop on BackToTheFutureDay",
        "IN FR15 BUDGET REQUEST HIGHLIGHTS ARE OUT",
        "<email> in a template",
    ],
)
def test_ordinary_sentences_stay(text):
    assert scrub(text) == text


def test_numbers_change_class_at_seven_digits():
    assert scrub("order 123456 came") == "order 123456 came"
    assert scrub("order 1234567 came") == "order <id> came"


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        ("4111 1111 1111 1111", "<card>"),
        ("4111 1111 1111 1112", "<id>"),
        ("123-45-6789", "<id>"),
        ("(555) 123-4567", "<phone>"),
        ("2014-2015", ""),
        ("1815-1789", "<phone>"),  # no range of years
        ("500-1000", ""),
        ("1000-500", "<phone>"),
        ("555-1234", "<phone>"),
        ("+49.301234567", "<phone>"),
        ("0.12345678", "<phone>"),  # long decimals are taken for numbers of somebody
        ("21-19 21-15", ""),
        ("06-12 34-56", "<phone>"),
        ("2012 1000", ""),
        ("2012 3456", "<phone>"),
        ("555 2010", "<phone>"),
        ("2014-350", "<phone>"),
        ("25 (2014) 350", ""),
        ("2015 2014 2013", ""),
        ("12345678901234567890", "<id>"),
    ],
)
def test_classes_of_numbers(number, wanted):
    assert classify(number) == wanted


def test_luhn():
    for card in ("4111111111111111", "378282246310005", "6011111111111117"):
        assert luhn(card)
        assert sum(luhn(card[:-1] + digit) for digit in string.digits) == 1
    # Neighbouring digits swapped: noticed unless they are 0 and 9.
    assert luhn("79927398713") and not luhn("79927398731")


# --- characters ------------------------------------------------------------------------


def test_normalising():
    text = (
        " a\u0301\t\r\n b\u202e\u2066c\u200d\x00\x1b\ufeff d\ue000\u2028e\ud800\u3164 "
    )
    assert normalise(text) == "á bc d e"
    assert normalise("❤\ufe0f") == "❤"
    assert normalise("x" + "\u0316" * 99 + "y") == "x" + "\u0316" * 30 + "y"


def test_hidden_characters_do_not_hide_a_number():
    for hidden in "\u200b\u00ad\u2060\u202c\ufe0f\u034f\x00":
        assert scrub(f"call 555{hidden}-12{hidden}3-4567 now") == "call <phone> now"


anything = st.text(max_size=200) | st.lists(
    st.sampled_from(
        [secret for _, secret in CASES]
        + list(PLACEHOLDERS)
        + ["password: ", "token=", "key", "is", " ", ".", "-", "@", "(", "/", ":", "\n"]
        + ["word", "2014", "12", "0", "+", "x", "é", "\u0301", "\u200b", "中", "\u0958"]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(anything)
def test_scrubbing_twice_changes_nothing(text):
    once = scrub(text)
    if once is not None:
        assert scrub(once) == once
        assert unicodedata.is_normalized("NFC", once)
        assert "  " not in once and once == once.strip()
        assert all(
            unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") for c in once
        )
        assert not secret_like(once)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([s for _, s in CASES if s.isascii() and "\n" not in s]),
    st.lists(
        st.sampled_from(["we", "met", "him,", "then", "and", "left."]), max_size=6
    ),
    st.lists(
        st.sampled_from(["we", "met", "him,", "then", "and", "left."]), max_size=6
    ),
)
def test_nothing_planted_survives_among_words(secret, before, after):
    found = scrub(" ".join([*before, secret, *after])) or ""
    assert not any(char.isdigit() for char in found)
    assert secret not in found


@pytest.mark.parametrize(
    "text", ["", " \n\t", "\u200b", "...", "<email>", "(<id>), <url>."]
)
def test_nothing_left(text):
    assert scrub(text) is None


def test_a_rating_or_a_face_is_a_text():
    assert scrub("5") == "5"
    assert scrub("😀") == "😀"


# --- secrets without a form ------------------------------------------------------------


def token(generator: random.Random, alphabet: str, length: int) -> str:
    return "".join(generator.choice(alphabet) for _ in range(length))


BASE62 = string.ascii_letters + string.digits


@pytest.mark.parametrize(
    ("alphabet", "length", "least"),
    [
        (BASE62, 16, 0.9),
        (BASE62, 20, 0.93),
        (BASE62, 32, 0.99),
        (BASE62, 64, 0.99),
        (BASE62 + "+/", 40, 0.99),
        (BASE62 + "-_", 22, 0.95),
        (BASE62 + "!#$%&*^", 16, 0.9),
        (string.ascii_uppercase + "234567", 32, 0.9),
        (string.ascii_lowercase + string.digits, 20, 0.9),
    ],
)
def test_unknown_secrets_drop_the_text(alphabet, length, least):
    # With a fixed seed nothing is left to chance.
    generator = random.Random(length)
    texts = [f"the one {token(generator, alphabet, length)} here" for _ in range(400)]
    dropped = [scrub(text) for text in texts].count(None)
    changed = sum(scrub(text) not in (None, text) for text in texts)
    assert (dropped + changed) / len(texts) >= least


def test_entropy():
    assert entropy("abcd") == 2.0
    assert entropy("aaab") == pytest.approx(0.8112781)
    assert entropy("aaaa") == 0.0
    assert not secret_like("aB3" * 20)  # mixed, but not random
    assert not secret_like("qwertzuiopasdfghjklyxcvbnm")  # one class
    assert secret_like("abcd5efgh6jklmnn")  # letters and digits change often
    assert not secret_like("abcdefgh6jklmnnn")
    assert secret_like("see:x7Kp2mQ9vR4tW8zB.")
    assert not secret_like("see:x7Kp2m Q9vR4tW8zB.")  # too short


@pytest.mark.parametrize("folder", ["acl_titles", "gov_headlines"])
def test_false_alarms_on_real_text(folder):
    path = SHARED / folder / "oppu_users.json"
    if not path.exists():
        pytest.skip("../shared is not here")
    texts = sorted(
        {
            entry[name]
            for user in json.loads(path.read_text())
            for entry in user["profile"]
            for name in ("abstract", "text", "title")
            if name in entry
        }
    )
    some = texts[::15]
    assert len(some) > 100
    # Of all texts 0.07 % are dropped. The sample is fixed.
    assert [scrub(text) for text in some].count(None) <= 0.01 * len(some)
    # Titles and abstracts: a phone number is nearly always a table of numbers.
    count = sum((scrub(text) or "").count("<id>") for text in some)
    assert count <= 0.01 * len(some)


# --- time ------------------------------------------------------------------------------

SIZE = 100_000
ADVERSARIAL = [
    "a",
    "a.",
    "a@",
    "a@a",
    "@",
    "a-",
    "1",
    "1 ",
    "1.",
    "1-",
    "1,111",
    "111,",
    "(1",
    "+1(",
    "00-",
    "00:",
    "::",
    "a:",
    "f",
    "f:",
    "1.1.1.",
    "DE89 ",
    "DE89",
    "A0 ",
    "www.",
    "www.!",
    "http://",
    "a://",
    "http",
    "token:",
    "token=",
    "password",
    'password="',
    "password:'",
    "password is ",
    "key: a1",
    "-----BEGIN A-----",
    "-----BEGIN ",
    "eyJ",
    "eyJaaaaaaaa.",
    "sk-",
    "ghp_",
    "AKIA",
    "SG.",
    "a(dot)",
    "a(at)",
    "a (at) b(dot)",
    "{",
    "{a,",
    '"',
    "<",
    "<email>",
    "(",
    "?a=",
    "a.com?",
    "a.bc/",
    " ",
    "\n",
    "\u0301",
    "\u0301\u0316",
    "\u0345\u0316\u0334",
    "é",
    "\u200b",
    "５",
    "中",
    "\ud800",
    "2014-03-05 ",
    "2014-03-0",
    "aB3",
    "Aa",
    "_",
    "1a",
    "1111111a ",
    "ext. 1",
    "555-0199 ext. ",
]


# So that no pattern is skipped because the text lacks what every match of it has.
EVERYTHING = " @ at) :// - . key pass is authorization -----begin "


@pytest.mark.slow
def test_the_time_is_linear():
    # About 0.3 s each; a quadratic pattern takes minutes, quadratic sorting 20 s.
    texts = [(piece * SIZE)[:SIZE] + "!" for piece in ADVERSARIAL]
    for text in [*texts, "111," * (SIZE // 4) + "1111"]:
        start = time.process_time()
        scrub(text + EVERYTHING)
        assert time.process_time() - start < 10, text[:20]


# --- what is offered -------------------------------------------------------------------


def item(number: int, asked: str, target: str) -> Item:
    rival = Item("rival", Prompt("", "x"), "y")
    return Item(
        f"anna/{number}", Prompt("Title: ", asked, "\nAnswer:"), target, (rival,)
    )


def test_the_latest_distinct_items_that_survive_are_offered():
    history = [
        item(0, "the oldest", "one"),
        item(1, "write to a@example.com", "two"),
        item(2, "x7Kp2mQ9vR4tW8zBc", "a secret in the prompt"),
        item(3, "three", "x7Kp2mQ9vR4tW8zBc"),
        item(4, "four", "555-123-4567"),
        item(5, "", "nothing asked"),
        item(6, "write to b@example.com", "two"),
        item(7, "seven", "seven  goals"),
    ]
    found = offered(history, 3, 100)
    prompts = ["the oldest", "write to <email>", "seven"]
    assert found == [
        Item(f"offered/{index}", Prompt("Title: ", asked, "\nAnswer:"), target)
        for index, (asked, target) in enumerate(
            zip(prompts, ["one", "two", "seven goals"], strict=True)
        )
    ]
    assert "anna" not in repr(found) and "rivals=()" in repr(found[0])
    assert [entry.target for entry in offered(history, 2, 100)] == [
        "two",
        "seven goals",
    ]
    assert offered(history, 0, 100) == [] == offered([], 5, 100)


def test_texts_are_cut_after_scrubbing():
    history = [item(0, "mail to john.doe@example.com today", "ab cd ef")]
    for longest in range(1, 40):
        for found in offered(history, 1, longest):
            asked, target = found.prompt.input, found.target
            assert len(asked) <= longest and len(target) <= longest
            assert "mail to <email> today".startswith(asked)
            assert scrub(asked) == asked and scrub(target) == target
            assert not asked.endswith(("<", "<e", "<emai"))
    (found,) = offered(history, 1, 13)
    assert (found.prompt.input, found.target) == ("mail to", "ab cd ef")
    (found,) = offered(history, 1, 15)
    assert found.prompt.input == "mail to <email>"
    assert offered(history, 1, 0) == []


@settings(max_examples=150, deadline=None)
@given(anything, st.integers(0, 60))
def test_what_is_offered_is_scrubbed_and_short(text, longest):
    for found in offered([item(0, text, "word")], 3, longest):
        assert len(found.prompt.input) <= longest
        assert scrub(found.prompt.input) == found.prompt.input


def test_random_identifiers_of_the_system_go():
    for _ in range(50):
        assert scrub(f"run {uuid.uuid4()} now") == "run <id> now"
