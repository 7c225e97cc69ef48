"""A member of masked sums: what it keeps, and its answers in the three exchanges.

For each user, under ``secagg/<user>/`` of the run's store:

    keys       of this run, made at the first hello
    state      what the member agreed to, reported and signed (`Past`)
    report     its last report, as it was sent

A report is kept before it leaves. Asked again for the same release, a member sends the same
bytes; it never makes a second report, agrees to a second plan of a release, or signs a
second list of members.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ...common.data.types import User
from ...common.engine.adapters import metadata_of
from ...common.errors import IdiolectError, refuse_if
from ...common.files import file_name
from ...common.protocol.messages import (
    AdaptRequest,
    ConfirmReply,
    ConfirmRequest,
    EvaluateRequest,
    OpenReply,
    OpenRequest,
    Rows,
    Summing,
    VoteRequest,
)
from ...common.protocol.summing import (
    STAGES,
    bundles_of,
    content_of,
    from_hex,
    opening_arrays,
    places_of,
    plan_of,
    report_arrays,
    reports_of,
    terms_of,
)
from ...common.protocol.validation import flat_row, row_norms
from ...common.secure import directory as members
from ...common.secure import secure
from ...common.secure.directory import Entry, Keys, load_keys, make_keys
from ...common.secure.expected import expected, refuse_noise
from ...common.secure.masks import SEED
from ...common.secure.plan import Plan
from ...common.secure.rows import noisy, share_of
from ...common.secure.secure import Party, Report
from ..owner.consent import Refusal
from . import state
from .host import Node, each, each_alone, reply_head
from .state import RunStore

Rowed = AdaptRequest | VoteRequest | EvaluateRequest
Exchanged = ConfirmRequest | OpenRequest


@dataclass(frozen=True)
class Past:
    """What a member remembers of a run's masked sums.

    Attributes
    ----------
    plans
        Release -> hash of the plan that was agreed to.
    reported
        Releases of which a report has left, or is about to.
    views
        Release -> the list of members that was signed (`secure.view`), in hex digits.
    """

    plans: dict[str, str] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    views: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """One user in one release."""

    user: str
    keys: Keys
    party: Party
    past: Past


# --- what is kept ------------------------------------------------------------------------


def _place(user: str, name: str) -> str:
    return f"secagg/{file_name(user)}/{name}"


def _past(store: RunStore, user: str) -> Past:
    body = store.read(_place(user, "state"))
    return Past(**json.loads(body)) if body is not None else Past()


def _remember(store: RunStore, user: str, past: Past) -> None:
    store.write(_place(user, "state"), json.dumps(asdict(past)).encode())


def _keep_report(store: RunStore, member: Member, report: Report) -> None:
    """Keep a report, and that it may leave: from now on the release has no other."""
    plan, past = member.party.plan, member.past
    arrays = report_arrays(plan, {member.party.place: report})
    body = save_arrays(arrays, {"plan": plan.hash.hex()})
    store.write(_place(member.user, "report"), body)
    reported = [*past.reported, plan.release]
    _remember(store, member.user, replace(past, reported=reported))


def _kept_report(store: RunStore, member: Member) -> Report | None:
    """Return the report of a member's plan; None where it has made none yet.

    Raises
    ------
    Refusal
        It was made and is not kept any more.
    """
    plan, place = member.party.plan, member.party.place
    if plan.release not in member.past.reported:
        return None
    body = store.read(_place(member.user, "report")) or b""
    kept = body and metadata_of(body).get("plan") == plan.hash.hex()
    refuse_if(
        not kept,
        f"the report for '{plan.release}' was made and is not kept any more: a second one "
        "is not made.",
        Refusal,
    )
    return reports_of(plan, (place,), load_arrays(body))[place]


def offer(node: Node, user: str, run: str, server: str) -> Entry:
    """Return a user's entry for the directory of a run; its keys are made once.

    Parameters
    ----------
    node, user
        Where, and whose.
    run, server
        The run's id, and the public key of its requests.
    """
    name = _place(user, "keys")
    body = node.store.read(name)
    if body is None:
        body = make_keys().dump()
        node.store.write(name, body)
    identity = node.identity or ec.derive_private_key(_scalar(body), ec.SECP384R1())
    return members.make_entry(
        node.numbers[user], identity, load_keys(body), run, server, node.voucher
    )


def _scalar(body: bytes) -> int:
    """A simulated user's identity: a number made of its keys, which nobody else knows."""
    return int.from_bytes(body[:40], "big") + 1


# --- the checks of a request -------------------------------------------------------------


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Tell the server why a sum is refused: such sentences quote no text of the owner."""
    try:
        yield
    except IdiolectError as error:
        raise Refusal(str(error)) from error


def _plan(request: Rowed | Exchanged, summing: Summing, node: Node) -> Plan:
    """Make the plan of a request, and check what can be checked without keys.

    Raises
    ------
    Refusal
        The server's plan is another one, or not what the run's configuration says.
    """
    with _refusing():
        plan = plan_of(request.run, summing, request.directory, node.config)
        refuse_if(
            plan.hash.hex() != summing.plan,
            "the server's plan of a sum is not the one that this device makes of the same "
            "request: sit this release out and ask the operator.",
        )
        if not node.simulated:
            rows = expected(node.config, node.config.users, summing.stage)
            refuse_if(
                (summing.most, summing.required) != (rows.most, rows.required),
                f"a sum of at least {summing.required} of {summing.most} rows is not what "
                f"the run declares ({rows.required} of {rows.most}): sit it out.",
            )
            refuse_noise(node.config, summing.stage, summing.z, summing.bit_z)
    return plan


def _member(request: Rowed | Exchanged, plan: Plan, node: Node, user: str) -> Member:
    """Check a request for one user, and return its part in the release.

    Raises
    ------
    Refusal
        The directory or the plan is not one that this member can trust.
    """
    body = node.store.read(_place(user, "keys"))
    refuse_if(
        body is None,
        f"user '{user}' has no keys of this run any more: it sits masked sums out.",
        Refusal,
    )
    keys, past = load_keys(body or b""), _past(node.store, user)
    before = past.plans.get(plan.release)
    refuse_if(
        before not in (None, plan.hash.hex()),
        f"user '{user}' has agreed to another plan of '{plan.release}': it is asked for "
        "other rows or members than before.",
        Refusal,
    )
    if before is None:
        past = replace(past, plans={**past.plans, plan.release: plan.hash.hex()})
        _remember(node.store, user, past)
    publics = members.publics(request.directory, "agreement")
    with _refusing():
        party = secure.join(plan, node.numbers[user], keys.agreement, publics)
        _check_directory(request, party, keys, state.pinned_key(node.store, user))
        if node.pin:
            node.pin(request.directory)
    return Member(user, keys, party, past)


def _check_directory(
    request: Rowed | Exchanged, party: Party, keys: Keys, server: str
) -> None:
    """Refuse other keys of this member, and keys of its holders that they did not sign."""
    entries = {int(entry.number): entry for entry in request.directory}
    cohort = party.plan.cohort
    own = entries[cohort[party.place]]
    refuse_if(
        (from_hex(own.agreement), from_hex(own.signing)) != keys.publics,
        "the directory has other keys of this device than its own: sit this run out and "
        "ask the operator.",
    )
    for number in (cohort[place] for place in party.holders):
        refuse_if(
            not members.signed(entries[number], request.run, server),
            f"the keys of member {number} are not signed by it for this run: sit this run "
            "out and ask the operator.",
        )


# --- report ------------------------------------------------------------------------------


def masked(
    request: Rowed,
    node: Node,
    willing: Sequence[User],
    clip: float,
    update: Callable[[Sequence[User]], list[Rows]],
) -> tuple[tuple[str, ...], Rows, dict[str, str]]:
    """Return the masked rows of users who take part in a release.

    Parameters
    ----------
    request, node
        With the sum that the rows go into.
    willing
        Who takes part.
    clip
        C, as the request itself has it.
    update
        Computes their rows: name -> array, one dict per user.

    Returns
    -------
    tuple
        Who is in the arrays, the arrays of a reply (`summing.report_shapes`), and
        user -> sentence of those who are not.
    """
    summing, stage = request.summing, STAGES[type(request)]
    assert summing is not None
    refuse_if(
        (summing.stage, summing.clip) != (stage, clip)
        or summing.content != content_of(request)
        or request.release not in ("", summing.release),
        "the request and its masked sum are not about the same rows: sit it out.",
        Refusal,
    )
    plan = _plan(request, summing, node)
    parts, refused = each_alone(
        node, willing, lambda user: _member(request, plan, node, user.id)
    )
    able = [user for user in willing if user.id in parts]
    kept, gone = each_alone(
        node, able, lambda user: _kept_report(node.store, parts[user.id])
    )
    todo = [user for user in able if user.id in kept and kept[user.id] is None]
    # A group that a crash cut in two is computed again as a whole: a smaller one rounds
    # differently.
    rows, failed = each(node, able, update) if todo else ({}, {})

    def report(user: User) -> Report:
        made = _report(parts[user.id], rows[user.id], summing, node)
        _keep_report(node.store, parts[user.id], made)
        return made

    made, odd = each_alone(node, [user for user in todo if user.id in rows], report)
    reports = {user: one for user, one in {**kept, **made}.items() if one is not None}
    users = tuple(user.id for user in willing if user.id in reports)
    arrays = report_arrays(
        plan, {parts[user].party.place: reports[user] for user in users}
    )
    return users, arrays, refused | gone | failed | odd


def _report(member: Member, rows: Rows, summing: Summing, node: Node) -> Report:
    """Clip a row, put it on the grid, add this member's share of the noise, and mask it."""
    refuse_if(
        sum(array.size for array in rows.values()) != summing.length,
        f"the sum has {summing.length} numbers, and a row of this device has others: sit "
        "it out.",
        Refusal,
    )
    single = {name: array[None].astype(np.float32) for name, array in rows.items()}
    random = share_of(node.config, summing.release, member.user)
    with _refusing():
        norm = float(row_norms(single)[0])
        integers = noisy(flat_row(single, 0), norm, terms_of(summing), random)
        return secure.report(member.party, integers, os.urandom(SEED), os.urandom)


# --- confirm and open --------------------------------------------------------------------


def confirm(request: ConfirmRequest, node: Node) -> ConfirmReply:
    """Sign whose reports are in the sum, each user once per release."""
    plan = _plan(request, request.summing, node)
    counted = places_of(request.counted, plan.members)

    def sign(user: User) -> str:
        member = _member(request, plan, node, user.id)
        past, text = member.past, secure.view(plan, counted).hex()
        with _refusing():
            earlier = past.views.get(plan.release)
            signature = secure.confirm(
                member.party,
                counted,
                member.keys.signing,
                reported=plan.release in past.reported,
                earlier=None if earlier is None else bytes.fromhex(earlier),
            )
        past = replace(past, views={**past.views, plan.release: text})
        _remember(node.store, user.id, past)
        return signature.hex()

    done, errors = each_alone(node, node.users, sign)
    head = reply_head(request, node, tuple(done), errors)
    return ConfirmReply(**head, signatures=done)


def opened(request: OpenRequest, node: Node) -> OpenReply:
    """Open the seeds that the sum needs, as far as these users hold shares of them."""
    plan = _plan(request, request.summing, node)
    counted = places_of(request.counted, plan.members)
    numbers = {node.numbers[user.id]: user.id for user in node.users}
    places = {
        user: plan.cohort.index(n) for n, user in numbers.items() if n in plan.cohort
    }
    sealed = bundles_of(plan, tuple(places.values()), counted, request.bundles)
    signed = _signers(request, plan, node, counted)

    def answer(user: User) -> dict[int, bytes]:
        member = _member(request, plan, node, user.id)
        view = member.past.views.get(plan.release)
        with _refusing():
            return secure.opening(
                member.party,
                counted,
                sealed[member.party.place],
                signed,
                None if view is None else bytes.fromhex(view),
            )

    done, errors = each_alone(node, node.users, answer)
    openings = {places[user]: rows for user, rows in done.items()}
    return OpenReply(
        **reply_head(request, node, tuple(done), errors),
        opened={user: tuple(rows) for user, rows in done.items()},
        shares=opening_arrays(openings),
    )


def _signers(
    request: OpenRequest,
    plan: Plan,
    node: Node,
    counted: Sequence[int],
) -> frozenset[int]:
    """Places of members who have signed U with keys that they themselves have signed."""
    server = state.pinned_key(node.store, node.users[0].id)
    places, size = places_of(request.signed, plan.members), secure.SIGNATURE
    texts = [request.signatures[k * size : (k + 1) * size] for k in range(len(places))]
    asked = {str(plan.cohort[place]) for place in places}
    known = [
        entry
        for entry in request.directory
        if entry.number in asked and members.signed(entry, request.run, server)
    ]
    publics = members.publics(known, "signing")
    signatures = dict(zip(places, texts, strict=True))
    return secure.valid_signers(plan, counted, signatures, publics)
