"""Runs with masked rows (``secagg.mode=on``): the same sums, and no row is seen."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message

from idiolect.client.node import host
from idiolect.client.node import secure as member
from idiolect.client.node.app import app as client_app
from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.manifest import new_key, public_key
from idiolect.common.secure import directory as members
from idiolect.server.run import checkpoint, masked
from tests.server.federation import FakeGrid, events, node_error, results, run

pytestmark = pytest.mark.slow

# Each user is asked by a message of its own, so that a test can lose one of them.
EXACT = {
    "adapt.wire": "float32",
    "adapt.rounds": 1,
    "methods": "shared",
    "engine.stack": 1,
    "quorum": 0.6,
}
PRIVATE = EXACT | {
    "privacy.mode": "central",
    "privacy.epsilon": 1e6,
    "privacy.metrics": "noisy",
    "privacy.seeded": True,
    "personalise.learning-rates": "1e-3",
}
EVERYBODY = ("persona-000", "persona-001", "persona-002", "dev-000", "dev-001")
ROWED = ("train.adapt", "query.vote", "evaluate")


def shared(folder: Path) -> dict[str, np.ndarray]:
    return checkpoint.load(folder, {}).shared


def fresh(settings: dict, **more) -> Path:
    """A run of a process that has computed nothing before: what it keeps rounds alike."""
    host.forget()
    return run(settings, **more)


def same(one: Path, other: Path) -> None:
    left, right = shared(one), shared(other)
    assert left.keys() == right.keys() and any(array.any() for array in left.values())
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name])
    assert results(one)["methods"] == results(other)["methods"]


def body_of(task: Message) -> dict:
    return json.loads(str(task.content.config_records["message"]["body"]))


def losing(gone: Mapping[str, Collection[str]]) -> Callable:
    """A change of `FakeGrid`: kind -> users whose answers never come."""

    def change(task: Message, reply: Message) -> Message:
        lost = gone.get(task.metadata.message_type, ())
        if set(body_of(task)["users"]) & set(lost):
            return node_error(task, "it is gone")
        return reply

    return change


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("extra", [EXACT, PRIVATE], ids=["exact", "private"])
def test_masked_sums_are_those_without_masks_bit_for_bit(settings, extra, nodes):
    settings |= extra | {
        "adapt.rounds": 2,
        "engine.stack": 2,
        "methods": "shared,c-bpo",
    }
    plain = run(
        {**settings, "secagg.mode": "sum", "run.name": "plain"}, FakeGrid(nodes)
    )
    grid = FakeGrid(nodes)
    masked = run({**settings, "secagg.mode": "on", "run.name": "masked"}, grid)
    same(plain, masked)
    assert {"query.confirm", "query.open"} <= set(grid.kinds)


SEED, RUN = new_key(), "one run"


def entry(number: int, keys: members.Keys, identity=None) -> members.Entry:
    identity = identity or ec.generate_private_key(ec.SECP384R1())
    return members.make_entry(number, identity, keys, RUN, public_key(SEED))


def registered(known: Mapping[str, members.Entry], **said: members.Entry) -> dict:
    """What the server says of entries; users are called as u1, u2 and so on."""
    run = SimpleNamespace(
        config=parse({"secagg.mode": "on", "adapt.wire": "float32"}),
        state=SimpleNamespace(id=RUN, members=dict(known)),
        signing_key=SEED,
        dataset=SimpleNamespace(numbers={f"u{k}": k for k in range(9)}),
        keys=set(),
    )
    reply = SimpleNamespace(users=tuple(said), keys=said)
    problems = masked.register(cast(Any, run), cast(Any, reply))
    assert set(run.state.members) == {*known, *(set(said) - set(problems))}
    return problems


def test_a_member_comes_back_with_the_keys_it_began_with():
    one, two = entry(1, members.make_keys()), entry(2, members.make_keys())
    assert registered({}, u1=one, u2=two) == {}
    assert registered({"u1": one}, u1=one, u2=two) == {}
    other = entry(1, members.make_keys())
    assert "not those it began with" in registered({"u1": one}, u1=other)["u1"]


@pytest.mark.parametrize("known", [False, True])
def test_a_key_of_another_member_is_not_taken_into_the_directory(known):
    """Every device would refuse the directory, and the run would end."""
    keys = members.make_keys()
    mine = entry(1, keys)
    same = members.Keys(keys.agreement, members.make_keys().signing)
    before = {"u1": mine} if known else {}
    found = registered(before, **({} if known else {"u1": mine}), u2=entry(2, same))
    assert list(found) == ["u2"] and "another member" in found["u2"]


def test_keys_that_no_pair_can_use_are_not_taken_into_the_directory(monkeypatch):
    """Neighbours would refuse the sum, and none could say whose key it is."""
    keys = members.make_keys()
    for agreement in (bytes(32), bytes([1]) + bytes(31)):  # points of small order
        publics = agreement, keys.publics[1]
        monkeypatch.setattr(members.Keys, "publics", publics)
        found = registered({}, u1=entry(1, keys))
        assert "agrees on no secret" in found["u1"]
    monkeypatch.setattr(members.Keys, "publics", (b"1" * 31, b"2" * 33))
    assert "not signed" in registered({}, u1=entry(1, keys))["u1"]
    monkeypatch.undo()
    identity = ec.generate_private_key(ec.SECP384R1())
    mine = entry(1, keys, identity)
    # The same key in other letters, and as a compressed point.
    point = identity.public_key().public_bytes(
        Encoding.X962, PublicFormat.CompressedPoint
    )
    algorithm = bytes.fromhex(mine.identity)[2:20]
    bits = b"\x03" + bytes([1 + len(point), 0]) + point
    short = b"\x30" + bytes([len(algorithm + bits)]) + algorithm + bits
    for other in (
        replace(mine, agreement=mine.agreement.upper()),
        replace(mine, identity=short.hex()),
        # Blanks and words by which a directory could be made too large for everybody.
        replace(mine, signature=mine.signature + " " * 100_000),
        replace(mine, signature=mine.signature.upper()),
        replace(mine, voucher="ab" * 500),
        replace(mine, voucher="no digits"),
    ):
        assert "not signed" in registered({}, u1=other)["u1"]


def test_what_a_sum_has_kept_is_gone_when_the_run_has_ended(settings):
    """It says who took part, which only the checkpoint's state may."""
    folder = run({**settings, **PRIVATE, "secagg.mode": "on"}, FakeGrid(2))
    assert not any((folder / "checkpoint" / "secagg").iterdir())


def test_no_row_of_a_single_user_reaches_the_server(settings):
    arrays: list[tuple[str, str]] = []

    def watch(task: Message, reply: Message) -> Message:
        kind = task.metadata.message_type
        for group in reply.content.array_records.values():
            arrays.extend((kind, name) for name in group)
        return reply

    run({**settings, **PRIVATE, "secagg.mode": "on"}, FakeGrid(2, watch))
    names = {(kind, name.rpartition("/")[2]) for kind, name in arrays}
    assert names == {
        *((kind, part) for kind in ROWED for part in ("masked32", "bundles", "checks")),
        ("query.open", "shares"),
    }


@pytest.mark.parametrize(
    ("reporting", "signing", "opening"),
    [
        ((), ("persona-001", "dev-001"), ("persona-000", "persona-002")),
        (("dev-000",), ("dev-000",), ("dev-000",)),
        (("persona-000", "persona-001"), (), ("persona-002", "dev-000")),
        (("dev-001",), ("persona-000",), ("persona-001",)),
    ],
)
def test_the_sum_is_that_of_who_reported_whoever_dies_later(
    settings, reporting, signing, opening
):
    settings |= EXACT
    lost = {"train.adapt": reporting}
    plain = run(
        {**settings, "secagg.mode": "sum", "run.name": "plain"},
        FakeGrid(2, losing(lost)),
    )
    lost |= {"query.confirm": signing, "query.open": opening}
    masked = run(
        {**settings, "secagg.mode": "on", "run.name": "masked"},
        FakeGrid(2, losing(lost)),
    )
    same(plain, masked)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("train.adapt", "2 of 3 reports"),
        ("query.confirm", "2 of 3 signatures"),
        ("query.open", "1 of 2 shares"),
    ],
)
def test_a_sum_that_too_few_answer_for_is_left_out_and_paid(settings, kind, sentence):
    few = {"query.open": 4}.get(kind, 3)
    lost = {kind: EVERYBODY[:few]}
    settings |= PRIVATE | {"unlabeled.kind": "self", "privacy.metrics": "clear"}
    folder = run({**settings, "secagg.mode": "on"}, FakeGrid(2, losing(lost)))
    warned = [event["message"] for event in events(folder, "warning")]
    assert any(sentence in text and "left out" in text for text in warned), warned
    assert not any(array.any() for array in shared(folder).values())
    paid = results(folder)["privacy"]["events"]
    assert [(event["stage"], event["rounds"]) for event in paid] == [("adapt", 1)]


def test_without_privacy_a_sum_that_is_left_out_ends_the_run(settings):
    lost = {"train.adapt": ["persona-000", "persona-001", "persona-002"]}
    with pytest.raises(IdiolectError, match="2 of 3 reports that the sum needs came"):
        run({**settings, **EXACT, "secagg.mode": "on"}, FakeGrid(2, losing(lost)))


class Killed(BaseException):
    """The server dies; nothing between may catch it."""


@pytest.mark.parametrize("extra", [EXACT, PRIVATE], ids=["exact", "private"])
@pytest.mark.parametrize("kind", [*ROWED[:2], "query.confirm", "query.open"])
def test_a_server_killed_in_any_exchange_goes_on_with_the_same_sum(
    settings, extra, kind
):
    settings |= extra | {"secagg.mode": "on", "adapt.rounds": 2}
    whole = fresh({**settings, "run.name": "whole"})
    at, seen = {0, 2, 7}, []

    def dying(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == kind:
            seen.append(task)
            if len(seen) - 1 in at:
                raise Killed
        return reply

    lives = 0
    while True:
        resume = {"run.resume": "broken"} if lives else {"run.name": "broken"}
        try:
            broken = fresh({**settings, **resume}, grid=FakeGrid(2, dying))
            break
        except Killed:
            lives += 1
    assert lives == sum(place < len(seen) for place in at)
    same(whole, broken)
    one, other = (results(folder)["privacy"] for folder in (whole, broken))
    assert one["events"] == other["events"]
    assert one["epsilon"] == other["epsilon"]


def asked_twice(settings: dict) -> list[tuple[str, dict, dict]]:
    """Kind, arrays of the first answer, arrays of the second, of all messages of a run."""
    pairs: list[tuple[str, dict, dict]] = []

    def twice(task: Message, reply: Message) -> Message:
        again = client_app(task, grid.context(task))
        both = (
            {
                n: a.data
                for g in one.content.array_records.values()
                for n, a in g.items()
            }
            for one in (reply, again)
        )
        one, other = both
        pairs.append((task.metadata.message_type, one, other))
        if task.metadata.message_type == "query.confirm":
            told = [body_of(one)["signatures"] for one in (reply, again)]
            assert told[0] == told[1] and told[0]
        return reply

    grid = FakeGrid(1, twice)
    run({**settings, "secagg.mode": "on"}, grid)
    return pairs


# Shares of the noise are drawn of the system's bytes, as on devices.
DRAWN = PRIVATE | {"privacy.seeded": False}


@pytest.mark.parametrize("extra", [EXACT, DRAWN], ids=["exact", "noisy"])
def test_a_member_that_is_asked_again_sends_the_same_bytes(settings, extra):
    pairs = asked_twice(settings | extra)
    for kind in ("train.adapt", "query.open"):
        found = [(one, again) for k, one, again in pairs if k == kind]
        assert found and all(one == again and one for one, again in found)


def test_a_member_that_forgot_its_report_would_send_others(settings, monkeypatch):
    """Control: noise and masks drawn again for the same release are noticed above."""
    monkeypatch.setattr(member, "_kept_report", lambda *_: None)
    pairs = asked_twice(settings | DRAWN)
    found = [(one, again) for kind, one, again in pairs if kind == "train.adapt"]
    assert found and all(one != again for one, again in found)


def test_nothing_of_the_server_holds_a_key_a_seed_or_a_row(settings, monkeypatch):
    secrets: list[bytes] = []
    masking = member.secure.report

    def watched(party, row, own, random, *more):
        wide = row.astype(np.int64).tobytes()
        secrets.extend([own, wide[:64], row.astype("<u4").tobytes()[:32]])
        secrets.extend(secret for secret in party.agreed.values())
        return masking(party, row, own, random, *more)

    monkeypatch.setattr(member.secure, "report", watched)
    folder = run({**settings, **PRIVATE, "secagg.mode": "on"})
    own = folder / "secagg"  # what simulated users keep: their keys, and their reports
    assert any(own.rglob("keys"))
    secrets.extend(path.read_bytes()[:32] for path in own.rglob("keys"))
    files = [p for p in folder.rglob("*") if p.is_file() and own not in p.parents]
    assert any("bundles" in str(path) for path in files)
    for path in files:
        body = path.read_bytes()
        for secret in secrets:
            assert secret not in body and secret.hex().encode() not in body, path


def test_a_report_that_was_made_with_another_plan_is_dropped(settings, monkeypatch):
    masking = member.secure.report

    def odd(party, row, own, random, *more):
        sent = masking(party, row, own, random, *more)
        if party.place == 4:  # its masks are those of other keys
            broken = bytes(len(sent.checks))
            return member.Report(sent.masked, sent.bundles, broken)
        return sent

    monkeypatch.setattr(member.secure, "report", odd)
    folder = run({**settings, **EXACT, "secagg.mode": "on"}, FakeGrid(1))
    warned = str([event["message"] for event in events(folder, "warning")])
    assert "its masks do not fit those of" in warned
    lost = {"train.adapt": ["dev-001"]}
    plain = run(
        {**settings, **EXACT, "secagg.mode": "sum", "run.name": "plain"},
        FakeGrid(1, losing(lost)),
    )
    same(plain, folder)


def test_wrong_shares_of_a_quick_member_cost_nothing(settings, monkeypatch):
    """Its shares are corrected once others have sent theirs, and it is named."""
    opening = member.secure.opening

    def wrong(party, *more):
        found = opening(party, *more)
        return (
            {r: bytes(len(s)) for r, s in found.items()} if party.place == 0 else found
        )

    monkeypatch.setattr(member.secure, "opening", wrong)
    settings |= EXACT
    plain = run({**settings, "secagg.mode": "sum", "run.name": "plain"})
    masked = run({**settings, "secagg.mode": "on", "run.name": "masked"})
    same(plain, masked)
    warned = str([event["message"] for event in events(masked, "warning")])
    assert "1 members sent wrong shares" in warned


def test_openings_are_asked_in_groups_until_every_row_opens(settings, monkeypatch):
    """So that the server needs no memory for the sealed shares of all members at once."""
    monkeypatch.setattr(masked, "SEALED_BYTES", 1)  # each request is a group of its own
    settings |= EXACT
    plain = run({**settings, "secagg.mode": "sum", "run.name": "plain"})
    grid = FakeGrid(2)
    folder = run({**settings, "secagg.mode": "on", "run.name": "masked"}, grid)
    same(plain, folder)
    # Two of the four holders of each row must open it: three members do for all rows.
    sums = grid.kinds.count("train.adapt") // len(EVERYBODY)
    sums += grid.kinds.count("query.vote") // len(EVERYBODY)
    assert 0 < grid.kinds.count("query.open") <= 3 * sums
