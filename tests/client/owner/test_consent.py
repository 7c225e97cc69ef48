"""The owner's settings and ceilings, without a run."""

import json
import math

import pytest

from idiolect.client.owner import consent
from idiolect.client.owner.consent import Refusal, Sent, Spent
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import DEVICE, Record
from idiolect.client.owner.vault import Vault
from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError

DEVICES = {"task": "text", "personalise.learning-rates": "1e-3", "users": 200}
PRIVATE = DEVICES | {"privacy.mode": "central", "privacy.metrics": "noisy"}
CEILING = "the owner's ceiling for privacy does not allow this run."


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault.db", RandomKey(bytes(32))) as made:
        yield made


def agree(vault, run="1", **more):
    config = parse(PRIVATE | {key.replace("__", "."): v for key, v in more.items()})
    consent.agree(vault, run, f"run {run}", config)


def test_a_first_ordinary_run_passes_and_is_charged_once(vault):
    for _ in range(3):
        agree(vault)
    assert consent.spent(vault) == {"1": Spent("run 1", 8.0, 1e-6, 12, 150.0)}
    with pytest.raises(Refusal) as refused:
        agree(vault, "2")
    assert str(refused.value) == CEILING
    assert set(consent.spent(vault)) == {"1"}
    agree(vault)  # the first one goes on


def test_the_ceilings_are_for_all_runs_together(vault):
    for number in range(4):
        agree(vault, str(number), privacy__epsilon=2.0)
    assert consent.total(consent.spent(vault).values())[0] == 8.0
    with pytest.raises(Refusal):
        agree(vault, "4", privacy__epsilon=0.01)
    consent.choose(vault, most_epsilon="8.02")
    agree(vault, "4", privacy__epsilon=0.01)


@pytest.mark.parametrize(
    ("setting", "low", "high", "more"),
    [
        ("most-epsilon", "3.99", "4", {}),
        ("most-delta", "1.9e-6", "2e-6", {}),
        ("most-releases", "23", "24", {}),
        ("fewest-users", "151", "150", {}),
        ("fewest-users", "31", "30", {"privacy__sampling": 0.2}),
        ("fewest-users", "16", "15", {"privacy__cohort": 20}),
    ],
)
def test_each_ceiling_alone_refuses(vault, setting, low, high, more):
    wide = {"most-epsilon": "inf", "most-delta": "inf", "most-releases": "inf"}
    consent.choose(vault, **wide | {"fewest-users": "1"})
    agree(vault, "0", privacy__epsilon=2.0)
    consent.choose(vault, **{setting: low})
    with pytest.raises(Refusal, match="ceiling"):
        agree(vault, "1", privacy__epsilon=2.0, **more)
    consent.choose(vault, **{setting: high})
    agree(vault, "1", privacy__epsilon=2.0, **more)


def test_a_run_that_declares_more_than_before_is_charged_the_difference(vault):
    agree(vault, privacy__epsilon=1.0)
    agree(vault, privacy__epsilon=5.0)
    agree(vault, privacy__epsilon=1.0)
    assert consent.total(consent.spent(vault).values())[0] == 5.0
    with pytest.raises(Refusal):
        agree(vault, privacy__epsilon=9.0)
    with pytest.raises(Refusal):  # the same run, now with sums of two
        agree(vault, privacy__epsilon=1.0, privacy__cohort=2)
    assert consent.spent(vault)["1"].users == 150.0


def test_only_what_leaves_as_noisy_is_charged(vault):
    for outflow in ("update", "votes", "metrics"):
        consent.consent(vault, outflow, "clear")
    agree(vault, privacy__epsilon=19.0)
    assert consent.spent(vault) == {}
    assert consent.balance(vault)["clear"] == ["update", "votes", "metrics"]
    consent.consent(vault, "votes", "no")
    agree(vault, privacy__epsilon=19.0)
    consent.consent(vault, "metrics", "noisy")
    with pytest.raises(Refusal):
        agree(vault, privacy__epsilon=19.0)


def test_what_is_not_protected_is_refused_later_and_costs_nothing(vault):
    agree(vault, privacy__seeded=True)
    assert consent.spent(vault) == {}
    config = parse(PRIVATE | {"privacy.seeded": True})
    with pytest.raises(Refusal, match="only with noise .*seed"):
        consent.permit(consent.consents(vault), "votes", config)


def test_a_ceiling_of_zero_allows_nothing(vault):
    consent.choose(vault, most_epsilon="0")
    with pytest.raises(Refusal):
        agree(vault, privacy__epsilon=1e-3)


def test_a_hostile_name_is_kept_as_one_printable_line(vault):
    config = parse(PRIVATE)
    consent.agree(vault, "1", "\x1b[2Jrun\n\u202e" + "x" * 1000, config)
    (charged,) = consent.spent(vault).values()
    assert charged.name.isprintable() and len(charged.name) == 100


@pytest.mark.parametrize(
    ("kind", "more", "epsilon", "why"),
    [
        ("AdaptReply", {}, 8.0, ""),
        (
            "EvaluateReply",
            {"privacy.metrics": "clear"},
            None,
            "privacy.metrics is 'clear'",
        ),
        ("AdaptReply", {"privacy.seeded": True}, None, "who knows the seed"),
        ("VoteReply", {"privacy.epsilon": math.inf}, None, "infinite"),
        (
            "VoteReply",
            {"unlabeled.kind": "anonymised"},
            None,
            "no noise is added to text",
        ),
        ("OfferReply", {}, None, "no noise is added to text"),
        ("ShareReply", {}, None, "no noise is added to text"),
        ("HelloReply", {}, None, "nothing of the text"),
        ("PersonaliseReply", {}, None, "nothing of the text"),
        ("Failure", {}, None, "nothing of the text"),
    ],
)
def test_sent_says_what_protects_this_message(vault, kind, more, epsilon, why):
    covered = consent.cover(kind, parse(PRIVATE | more))
    assert covered[0] == epsilon and why in covered[1]
    consent.note_sent(vault, "r", kind, 3, covered)
    (noted,) = consent.sent(vault)
    assert (noted.epsilon, noted.why) == covered


def test_a_message_of_a_run_that_cannot_be_read_has_no_bound():
    assert consent.cover("AdaptReply", None) == (
        None,
        "the run's configuration could not be read",
    )


def test_what_an_older_version_noted_is_still_listed(vault):
    old = {"time": 1.0, "run": "r", "kind": "AdaptReply", "bytes": 3, "epsilon": 8.0}
    vault.put("sent", [Record("1", json.dumps(old).encode())], DEVICE)
    assert consent.sent(vault) == [Sent(1.0, "r", "AdaptReply", 3, 8.0, "")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", "9" * 400),
        ("threads", "\u00b2"),
        ("threads", "-1"),
        ("threads", "1.0"),
        ("memory-mb", str(2**40)),
        ("max-seconds", "inf"),
        ("max-seconds", "9" * 400),
        ("max-seconds", "nan"),
        ("max-seconds", "-1"),
        ("max-load", "1e300"),
        ("max-length", "15"),
        ("dtype", "float8"),
        ("device", "gpu"),
        ("most-epsilon", "nan"),
        ("most-epsilon", "-1"),
        ("most-delta", "\u0661"),
        ("most-delta", "2"),
        ("most-delta", "1"),
        ("most-releases", "many"),
        ("fewest-users", "0"),
        ("fewest-users", "inf"),
        ("on-battery", "\x1b[2J"),
        ("backbone", "\x1b[2J"),
        ("\x1b[2J", "1"),
    ],
)
def test_settings_are_numbers_that_can_be_used(vault, name, value):
    before = consent.settings(vault)
    with pytest.raises(IdiolectError) as refused:
        consent.choose(vault, **{name: value})
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400
    assert consent.settings(vault) == before


def test_there_is_a_time_limit_unless_the_owner_says_none(vault):
    assert float(consent.settings(vault)["max-seconds"]) == 3600
    consent.choose(vault, max_seconds="0")
    assert float(consent.settings(vault)["max-seconds"]) == 0
    # Only what was chosen is kept: other defaults may change.
    stored = json.loads(vault.get("state", "settings"))
    assert stored == {"schema": 2, "max-seconds": "0"}


def test_defaults_that_an_older_version_wrote_down_were_nobodys_choice(vault):
    old = {"backbone": "/a", "max-length": "512", "threads": "2", "memory-mb": "0"}
    old |= {"max-seconds": "0", "max-load": "0", "on-battery": "no"}
    vault.put("state", [Record("settings", json.dumps(old).encode())], DEVICE)
    found = consent.settings(vault)
    assert found == consent.SETTINGS | {
        "backbone": "/a",
        "threads": "2",
        "on-battery": "no",
    }
    assert (found["dtype"], found["device"]) == ("float32", "auto")
    consent.choose(vault, max_seconds="0")
    assert consent.settings(vault) == found | {"max-seconds": "0"}


def test_every_message_that_leaves_has_a_word_of_the_owners():
    """`sent` and `consent` name the same thing by the same word."""
    from idiolect.common.protocol import messages as protocol

    kinds = [
        name
        for name, one in vars(protocol).items()
        if isinstance(one, type)
        and issubclass(one, protocol.Message)
        and (name.endswith("Reply") or name in ("Failure", "Missing"))
        and name != "Reply"
    ]
    words = {kind: consent.word_of(kind) for kind in kinds}
    assert len(words) == 11
    for kind, word in words.items():
        assert word != kind and word.islower() and len(word) <= 8
        if kind in consent.OUTFLOW_OF and word != "text":
            assert word in consent.DEFAULTS
    assert words["AdaptReply"] == "update" and words["Failure"] == "refusal"
