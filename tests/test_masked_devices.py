"""Masked sums of devices with vaults: what they check, and what they never do twice."""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from idiolect.client.commands import server as commands
from idiolect.client.commands.answer import Answer
from idiolect.client.node import membership
from idiolect.client.owner import consent
from idiolect.client.owner.records import Source
from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.manifest import public_key
from idiolect.common.protocol.messages import (
    AdaptRequest,
    ConfirmRequest,
    EvaluateRequest,
    Failure,
    VoteRequest,
)
from idiolect.common.protocol.packing import pack
from idiolect.common.protocol.signed import read_sealed
from idiolect.common.protocol.summing import bitmap
from idiolect.common.secure import directory as members
from idiolect.common.secure.directory import Entry
from idiolect.common.secure.witness import vouch
from idiolect.server.privacy.card import CONSPIRING, INVENTED
from idiolect.server.run import exchange, masked
from idiolect.server.run.live import WITNESS

from .server.federation import events, results, run
from .test_devices import (  # noqa: F401
    PRIVATE,
    DeviceGrid,
    agree,
    allow,
    model,
    public,
    settings,
    vaults,
)

pytestmark = pytest.mark.slow

MASKED = PRIVATE | {
    "secagg.mode": "on",
    "privacy.noise": 30.0,
    "methods": "shared",
    "users": 4,
    "quorum": 0.7,
}
ONCE = MASKED | {"adapt.rounds": 1, "unlabeled.kind": "self"}


@pytest.fixture(scope="session")
def people():
    """Four users: where all but one must answer, there are still two lists of them."""
    return load_dataset(parse({"users": 4, "history": 6, "held-out": 2})).users


@pytest.fixture(autouse=True)
def _owners(vaults):  # noqa: F811
    allow(vaults)
    agree(vaults, update="summed", votes="summed", metrics="summed")


def failures(folder) -> str:
    return str([event["message"] for event in events(folder, "warning")])


def test_a_run_of_devices_sums_masked_rows(vaults, settings):  # noqa: F811
    grid = DeviceGrid(vaults)
    folder = run(settings | MASKED, grid)
    assert {"query.confirm", "query.open"} <= set(grid.kinds)
    found = results(folder)
    assert set(found["methods"]) == {"shared"} and not found["users"]
    kinds = {one.kind for one in consent.sent(vaults[0])}
    assert {"ConfirmReply", "OpenReply"} <= kinds


def test_who_wants_to_be_summed_takes_no_part_without_masks(vaults, settings):  # noqa: F811
    with pytest.raises(IdiolectError, match="only masked and with noise"):
        run(settings | ONCE | {"secagg.mode": "off"}, DeviceGrid(vaults))


def test_noise_of_a_seed_that_the_server_knows_is_none(vaults, settings):  # noqa: F811
    grid = DeviceGrid(vaults)
    folder = run(settings | ONCE | {"privacy.seeded": True}, grid)
    assert "privacy.seeded is true: who knows the seed" in failures(folder)
    assert "query.confirm" not in grid.kinds  # nobody reported


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"z": 1.0}, "not what the run declares"),
        ({"required": 4}, "not what the run declares"),
        ({"most": 300}, "not what the run declares"),
        ({"clip": 1.0}, "not about the same rows"),
        ({"content": "00" * 32}, "not about the same rows"),
        ({"length": 7}, "a row of this device has others"),
        ({"bit_z": 0.5}, "not what the run declares"),
        ({"stage": "votes"}, "not about the same rows|not what the run declares"),
        ({"release": "other"}, "not about the same rows"),
    ],
)
def test_a_sum_that_is_not_what_was_agreed_to_gets_no_row(
    vaults,  # noqa: F811
    settings,  # noqa: F811
    monkeypatch,
    change,
    said,
):
    original = masked.with_plan

    def lying(run, summing, directory, config):
        return original(run, dataclasses.replace(summing, **change), directory, config)

    monkeypatch.setattr(masked, "with_plan", lying)
    folder = run(settings | ONCE, DeviceGrid(vaults))
    assert re.search(said, failures(folder)), failures(folder)


def altered(
    monkeypatch, alter: Callable[[Any], Any], kind: type = AdaptRequest
) -> None:
    """Let the server send other requests of a kind than it makes."""
    original = exchange.Asking.add

    def add(self, requests):
        changed = [
            (node, alter(one) if isinstance(one, kind) else one)
            for node, one in requests
        ]
        return original(self, changed)

    monkeypatch.setattr(exchange.Asking, "add", add)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (AdaptRequest, "train.adapt"),
        (VoteRequest, "query.vote"),
        (EvaluateRequest, "evaluate"),
    ],
)
def test_a_request_without_masks_gets_no_row_of_a_masked_run(
    vaults,  # noqa: F811
    settings,  # noqa: F811
    monkeypatch,
    kind,
    name,
):
    """A server that says in its hello that rows are masked, and then asks for them bare."""
    replies: list[RecordDict] = []

    def note(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == name:
            replies.append(reply.content)
        return reply

    def bare(task):
        return dataclasses.replace(task, summing=None, directory=())

    altered(monkeypatch, bare, kind)
    folder = run(settings | MASKED | {"adapt.rounds": 1}, DeviceGrid(vaults, note))
    assert replies and not any(reply.array_records for reply in replies)
    assert "a row without masks: it is not answered" in failures(folder)


def test_members_that_share_a_key_are_noticed(vaults, settings, monkeypatch):  # noqa: F811
    def twice(task):
        one, two, *more = task.directory
        same = dataclasses.replace(two, agreement=one.agreement)
        return dataclasses.replace(task, directory=(one, same, *more))

    altered(monkeypatch, twice)
    folder = run(settings | ONCE, DeviceGrid(vaults))
    assert "have the same agreement key" in failures(folder)


def test_keys_that_a_member_has_not_signed_are_noticed(vaults, settings, monkeypatch):  # noqa: F811
    """A server that puts keys of its own in the place of a device's."""

    def replaced(task):
        changed = [
            dataclasses.replace(e, signing="11" * 32) for e in task.directory[:1]
        ]
        directory = (*changed, *task.directory[1:])
        summing, _ = masked.with_plan(task.run, task.summing, directory, CONFIG[0])
        return dataclasses.replace(task, directory=directory, summing=summing)

    original = masked.begin

    def noting(run, *rest):
        CONFIG.append(run.config)
        return original(run, *rest)

    CONFIG: list = []
    monkeypatch.setattr(masked, "begin", noting)
    altered(monkeypatch, replaced)
    folder = run(settings | ONCE, DeviceGrid(vaults))
    assert "are not signed by it for this run" in failures(folder)
    assert "has other keys of this device than its own" in failures(folder)


def test_a_member_with_another_key_than_before_is_noticed(vaults, settings):  # noqa: F811
    run(settings | ONCE | {"run.name": "one"}, DeviceGrid(vaults))
    for vault in vaults:
        consent.choose(vault, most_epsilon="1000")
    vaults[2].delete("state", ["node-key"])  # set up again under the old number
    folder = run(settings | ONCE | {"run.name": "two"}, DeviceGrid(vaults))
    assert "has another key than in an earlier run" in failures(folder)


def test_after_forgetting_a_device_sits_the_rest_out(vaults, settings):  # noqa: F811
    seen: list[str] = []

    def forget(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train.adapt" and not seen:
            seen.append("forgot")
            for source in vaults[0].sources():
                if source.kind == "run":
                    vaults[0].forget(Source("run", source.name))
        return reply

    folder = run(settings | MASKED, DeviceGrid(vaults, forget))
    assert seen and "has no keys of this run any more" in failures(folder)


def test_a_second_plan_of_a_release_is_refused(vaults, settings, monkeypatch):  # noqa: F811
    """The same release over fewer members: together they would show one row."""
    made: list = []
    original = masked.begin
    monkeypatch.setattr(
        masked, "begin", lambda *given: made.append(original(*given)) or made[-1]
    )

    def fewer(task):
        one = made[-1]
        summing = dataclasses.replace(task.summing, cohort=bitmap([0, 1, 2], 4))
        summing, _ = masked.with_plan(task.run, summing, one.directory, one.run.config)
        return dataclasses.replace(task, summing=summing, counted=bitmap([0, 1, 2], 3))

    altered(monkeypatch, fewer, ConfirmRequest)
    folder = run(settings | ONCE, DeviceGrid(vaults))
    assert "has agreed to another plan" in failures(folder)


def test_a_second_list_of_members_is_not_signed(vaults, settings, monkeypatch):  # noqa: F811
    """Two sums that differ by one member would show that member's row."""
    asked: list[str] = []
    original = masked.signatures_of

    def twice(made, counted):
        signatures = original(made, counted)
        (made.place / "signatures.json").unlink()
        with pytest.raises(masked.LeftOut, match="0 of 3 signatures"):
            original(made, frozenset(sorted(counted)[:-1]))
        asked.append("again")
        (made.place / "signatures.json").write_text(
            json.dumps({str(p): s.hex() for p, s in signatures.items()})
        )
        return signatures

    monkeypatch.setattr(masked, "signatures_of", twice)
    folder = run(settings | ONCE, DeviceGrid(vaults))
    assert asked and "has signed another list of members" in failures(folder)


def test_a_member_that_never_reported_is_not_counted(vaults, settings, monkeypatch):  # noqa: F811
    """Its row would be opened as what the server made up in its name."""
    original, told = masked.signatures_of, []

    def more(made, counted):
        told.append(len(counted))
        return original(made, frozenset(made.users))

    monkeypatch.setattr(masked, "signatures_of", more)
    grid = DeviceGrid(vaults)
    answer = grid.devices[103].answer

    def silent(message: Message):
        """A device that is off while the others train."""
        if message.metadata.message_type != "train.adapt":
            return answer(message)
        body = json.loads(str(message.content.config_records["message"]["body"]))
        return pack(Failure(body["run"], body["step"], "off"))

    monkeypatch.setattr(grid.devices[103], "answer", silent)
    folder = run(settings | ONCE, grid)
    assert told[0] == 3
    assert "counts a report that this device never sent" in failures(folder)


def test_a_request_is_read_as_it_was_written(vaults, settings):  # noqa: F811
    tasks: list[AdaptRequest] = []

    def note(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train.adapt":
            sealed = read_sealed(AdaptRequest, task.content)
            assert sealed.fields["summing"].release == "adapt/0"
            tasks.append(sealed.fields["summing"])
        return reply

    run(settings | ONCE, DeviceGrid(vaults, note))
    assert len(set(tasks)) == 1


def directory(vault) -> Answer:
    return commands.directory(vault, argparse.Namespace())


def test_owners_compare_the_members_that_their_devices_saw(vaults, settings):  # noqa: F811
    assert directory(vaults[0]).found == {"members": []}
    assert "has taken part in no masked sum" in directory(vaults[0]).text
    run(settings | ONCE | {"run.name": "one"}, DeviceGrid(vaults))
    told = [directory(vault) for vault in vaults]
    assert len({one.found["digits"] for one in told}) == 1
    assert re.fullmatch(r"\d{5}( \d{5}){7}", told[0].found["digits"])
    for number, one in enumerate(told):
        listed = one.found["members"]
        assert [member["own"] for member in listed] == [k == number for k in range(4)]
        assert not any(member["new"] for member in listed)
        assert [m["fingerprint"] for m in listed] == [
            m["fingerprint"] for m in told[0].found["members"]
        ]
        assert one.found["digits"] in one.text and "4 members" in one.text
        assert "the first run" in one.text
        assert (
            one.text.count("this device\n") == 1
            and max(map(len, one.text.splitlines())) <= 100
        )


def test_a_member_that_the_run_before_did_not_have_is_shown(vaults):  # noqa: F811
    def entry(number: int, identity: str) -> Entry:
        return Entry(str(number), identity, "00" * 32, "00" * 32, "")

    vault = vaults[0]
    own = entry(100, membership.public_der(vault).hex())
    few, more = [own, entry(101, "aa")], [own, entry(101, "aa"), entry(102, "bb")]
    for run_id, entries, new in (
        ("1", few, None),
        ("2", more, ["102"]),
        ("2", more, ["102"]),  # the same run goes on
        ("3", more, []),
        ("4", few, []),
        ("4", more, ["102"]),  # a resumed run with another device
    ):
        membership.pin_members(vault, run_id, "name", entries)
        seen = membership.members_of(vault)
        assert seen is not None and seen.new == (None if new is None else tuple(new))
        shown = directory(vault)
        marked = [one["device"] for one in shown.found["members"] if one["new"]]
        assert marked == [f"device-{number}" for number in new or ()]
        assert shown.text.count(" new\n") == len(new or ())
    digits = {members.digits(members.root(some).hex()) for some in (few, more, [])}
    assert len(digits) == 3
    membership.leave(vault)
    assert membership.members_of(vault) is None


# --- a witness ---------------------------------------------------------------------------

WITNESS_SEED, OPERATOR_SEED = b"w" * 32, b"o" * 32


def vouch_for(vault, seed: bytes) -> None:
    """Name the witness in a device's invitation, and keep what `seed` signs for it."""
    server = dataclasses.replace(
        membership.joined(vault), witness=public_key(WITNESS_SEED)
    )
    membership.join(vault, server)
    own = membership.public_der(vault).hex()
    vault.note("voucher", vouch(seed, server.signing_key, own))


def test_a_run_whose_devices_a_witness_knows(vaults, settings, monkeypatch):  # noqa: F811
    monkeypatch.setenv(WITNESS, public_key(WITNESS_SEED))
    for vault in vaults:
        vouch_for(vault, WITNESS_SEED)
    folder = run(settings | ONCE, DeviceGrid(vaults))
    card = results(folder)["privacy"]
    assert CONSPIRING in card["not_covered"] and INVENTED not in card["not_covered"]
    assert any("The witness vouched only" in one for one in card["claims"]["assumed"])


def test_who_is_not_vouched_for_is_left_out_by_an_honest_server(
    vaults,  # noqa: F811
    settings,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setenv(WITNESS, public_key(WITNESS_SEED))
    for vault in vaults[:-1]:
        vouch_for(vault, WITNESS_SEED)
    folder = run(settings | ONCE, DeviceGrid(vaults))
    assert "the witness does not vouch for this device" in failures(folder)
    seen = membership.members_of(vaults[0])
    assert seen is not None and seen.numbers == ("100", "101", "102")
    assert membership.members_of(vaults[-1]) is None


def test_a_server_that_invents_a_member_gets_no_row(vaults, settings):  # noqa: F811
    """It does not check, and signs as a witness itself for the member that it invents."""
    for vault in vaults[:-1]:
        vouch_for(vault, WITNESS_SEED)
    vouch_for(vaults[-1], OPERATOR_SEED)
    grid = DeviceGrid(vaults)
    folder = run(settings | ONCE, grid)
    said = "the witness does not vouch for member 103"
    assert said in failures(folder)
    assert "query.confirm" not in grid.kinds  # nobody reported
    replies = grid.bodies("AdaptReply")
    assert len(replies) == 4 and not any(body["users"] for body in replies)


def test_a_run_keeps_the_witness_that_it_began_with(vaults, settings, monkeypatch):  # noqa: F811
    monkeypatch.setenv(WITNESS, public_key(WITNESS_SEED))
    for vault in vaults:
        vouch_for(vault, WITNESS_SEED)
    named = settings | ONCE | {"run.name": "mine"}
    run(named, DeviceGrid(vaults))
    monkeypatch.delenv(WITNESS)
    with pytest.raises(IdiolectError, match="another witness vouches"):
        run(named | {"run.resume": "mine"}, DeviceGrid(vaults))


def test_an_owner_keeps_only_what_the_witness_of_the_invitation_signed(vaults):  # noqa: F811
    vault = vaults[0]
    server, own = membership.joined(vault), membership.public_der(vault).hex()
    good = vouch(WITNESS_SEED, server.signing_key, own)
    with pytest.raises(IdiolectError, match="names no witness"):
        membership.keep_voucher(vault, good)
    named = dataclasses.replace(server, witness=public_key(WITNESS_SEED))
    membership.join(vault, named)
    for bad in (vouch(OPERATOR_SEED, server.signing_key, own), good[:-2], "x", ""):
        with pytest.raises(IdiolectError, match="did not sign that"):
            membership.keep_voucher(vault, bad)
    membership.keep_voucher(vault, good)
    assert vault.noted("voucher") == good
    for other in ("", public_key(OPERATOR_SEED)):  # an operator who drops the witness
        with pytest.raises(IdiolectError, match="does not name the witness"):
            membership.join(vault, dataclasses.replace(named, witness=other))
    membership.leave(vault)
    assert vault.noted("voucher") is None
