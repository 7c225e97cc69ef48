"""Masked sums on the server's side: report, confirm, open (``secagg.mode=on``).

The mathematics is `common.secure.secure`, and what is in which message
`common.protocol.summing`. Here stands who is asked, what is kept of the answers, and in
which order. What must survive a crash lies in the checkpoint, one folder per sum:

    plan.json        who is asked for what; before anybody is
    bundles          sealed shares, as the reports come; useless without the next file
    counted.*        the sum of the reports and whose they are; before anybody signs
    signatures.json  who signed; before anything is opened

A run that is resumed goes on with the last of them. Devices answer the same request again
with the same bytes, so nothing is asked of them that they have not agreed to.
"""

import json
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ...common.errors import refuse_if
from ...common.files import private, write_atomically
from ...common.protocol.manifest import public_key
from ...common.protocol.messages import (
    AdaptReply,
    AdaptRequest,
    ConfirmReply,
    ConfirmRequest,
    EvaluateReply,
    EvaluateRequest,
    HelloReply,
    OpenReply,
    OpenRequest,
    Reply,
    Request,
    Rows,
    Shapes,
    Summing,
    VoteReply,
    VoteRequest,
)
from ...common.protocol.messages import refuse_if as refuse_message
from ...common.protocol.packing import unpack
from ...common.protocol.summing import (
    STAGES,
    bitmap,
    content_of,
    from_hex,
    opening_shapes,
    openings_of,
    plan_of,
    report_shapes,
    reports_of,
    rows_held,
    sealed_size,
    share_sizes,
    with_plan,
)
from ...common.secure import directory as members
from ...common.secure import secure
from ...common.secure.directory import Entry
from ...common.secure.grid import WORDS, words
from ...common.secure.masks import agrees
from ...common.secure.neighbours import threshold
from ...common.secure.plan import Plan
from ...common.secure.rows import Integers
from ...common.secure.secure import LeftOut, Report
from ...common.secure.witness import vouched
from .exchange import Exchange, ask
from .live import LiveRun, witness_of
from .sums import SEALED

Requests = list[tuple[int, Any]]
UNVOUCHED = (
    "the witness does not vouch for this device: its owner joins by the present "
    "invitation, and sends the witness the line that `idiolect node join` prints."
)
SEALED_BYTES = 1 << 28  # of the sealed shares that are asked about at once


# Kind of a request for rows -> class of the answers, and the field of their arrays.
REPLIES: dict[type[Request], tuple[type[Reply], str]] = {
    AdaptRequest: (AdaptReply, "rows"),
    VoteRequest: (VoteReply, "votes"),
    EvaluateRequest: (EvaluateReply, "sums"),
}


@dataclass(frozen=True)
class Asked:
    """What a masked sum is of.

    Attributes
    ----------
    name
        Of the sum, within the run.
    exchange, place
        In which the rows are asked for, and the beginning of its steps.
    request, fields
        Class of the requests (`REPLIES`), and their fields but for how rows are masked.
    length
        Coordinates of a row.
    make
        From a class, a place, users and fields to requests, (node, request) each.
    """

    name: str
    exchange: Exchange
    place: str
    request: type[Request]
    fields: Mapping[str, Any]
    length: int
    make: Callable[[type[Any], str, Sequence[str], Mapping[str, Any]], Requests]

    def requests(self, users: Sequence[str], how: Mapping[str, Any]) -> Requests:
        """The requests for rows of these users, masked so."""
        return self.make(self.request, self.place, users, {**self.fields, **how})


# --- the directory -----------------------------------------------------------------------


def register(run: LiveRun, reply: HelloReply) -> dict[str, str]:
    """Take the keys of a node's users into the directory; user -> why not, of the others.

    A member has one entry per run, also after the run was resumed.
    """
    if run.config.secagg.mode != "on":
        return {}
    known, server = run.state.members, public_key(run.signing_key)
    if not run.keys:  # of an earlier life of the run
        run.keys.update(key for one in known.values() for key in members.keys_of(one))
    witness = witness_of(run.config)
    numbers = run.nodes if run.config.on_devices else run.dataset.numbers
    problems: dict[str, str] = {}
    for user in reply.users:
        entry = reply.keys.get(user)
        if entry is None or not members.signed(entry, run.state.id, server):
            problems[user] = "its keys for masked sums are missing or not signed."
        elif entry.number != str(numbers.get(user)):
            problems[user] = "its keys for masked sums are those of another number."
        # A signature may differ: ECDSA has a new one each time.
        elif astuple(entry)[:4] != astuple(known.get(user, entry))[:4]:
            problems[user] = "its keys for masked sums are not those it began with."
        elif user not in known and not run.keys.isdisjoint(members.keys_of(entry)):
            problems[user] = "its keys for masked sums are those of another member."
        elif not agrees(bytes.fromhex(entry.agreement)):
            problems[user] = "its key for masked sums agrees on no secret."
        elif witness and not vouched(entry.voucher, witness, server, entry.identity):
            problems[user] = UNVOUCHED
        else:
            known.setdefault(user, entry)
            run.keys.update(members.keys_of(entry))
    return problems


def directory_of(run: LiveRun) -> tuple[Entry, ...]:
    """The directory: everybody's entry, by number."""
    return tuple(sorted(run.state.members.values(), key=lambda one: int(one.number)))


# --- one sum -----------------------------------------------------------------------------


@dataclass
class Masked:
    """A masked sum while it is made.

    Attributes
    ----------
    run, asked, summing, plan, directory, place
        The run, what the sum is of, and what all members agree on; its folder.
    users
        Place in the cohort -> user.
    total
        Sum of the reports so far, words.
    checks
        Place -> checks of its report; of those whose reports are kept.
    bundles
        Place -> where its bundles lie in the file.
    """

    run: LiveRun
    asked: Asked
    summing: Summing
    plan: Plan
    directory: tuple[Entry, ...]
    place: Path
    users: dict[int, str]
    total: np.ndarray
    checks: dict[int, bytes] = field(default_factory=dict)
    bundles: dict[int, int] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[str, int]:
        """User -> place in the cohort."""
        return {user: place for place, user in self.users.items()}

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The fields of every request that say what is summed."""
        return {"summing": self.summing, "directory": self.directory}

    def known(self, users: Sequence[str]) -> list[int]:
        """Places of the users of a reply."""
        refuse_message(
            not set(users) <= self.places.keys(),
            "a reply is about a user who was not asked.",
        )
        return [self.places[user] for user in users]


def masked_sum(
    run: LiveRun, asked: Asked, users: Sequence[str], integers: Integers
) -> tuple[Rows, list[str]]:
    """Ask users for masked rows, and return their sum and whose rows it holds.

    Parameters
    ----------
    run, asked
        The run, and what is asked for.
    users
        Who. Where the sum was begun before a crash, those who were asked then.
    integers
        On which terms.

    Returns
    -------
    tuple
        `sums.SEALED` -> words [length, and one of a clip bit], without masks; and users.

    Raises
    ------
    LeftOut
        Too few reported, signed or opened. The sum is paid for all the same.
    """
    made = begin(run, asked, users, integers)
    if not (made.place / "counted.json").exists():
        collect(made)
    counted = read_counted(made)
    opened = open_all(made, counted, signatures_of(made, counted))
    found = secure.unmask(made.plan, counted, made.total, made.checks, opened)
    if found.wrong:
        run.warn(f"{asked.exchange.name}: {len(found.wrong)} members sent wrong shares")
    total = words(found.total, made.plan.word)
    return {SEALED: total}, [made.users[place] for place in sorted(counted)]


def begin(
    run: LiveRun, asked: Asked, users: Sequence[str], integers: Integers
) -> Masked:
    """Make the plan of a sum, or take it from the checkpoint."""
    place, directory = run.sum_folder(asked.name), directory_of(run)
    if not (place / "plan.json").exists():
        forget_sums(run, but=place)
        stored = planned(run, asked, users, integers, directory)
        write_atomically(place / "plan.json", json.dumps(stored).encode())
    stored = json.loads((place / "plan.json").read_text())
    summing = Summing(**stored["summing"])
    plan = plan_of(run.state.id, summing, directory, run.config)
    refuse_if(
        plan.hash.hex() != summing.plan,
        f"the plan of '{asked.name}' in the checkpoint is not of this run: restore the "
        "run's folder from a backup.",
    )
    total = np.zeros(plan.length, WORDS[plan.word])
    by_place = dict(enumerate(stored["users"]))
    return Masked(run, asked, summing, plan, directory, place, by_place, total)


def planned(
    run: LiveRun,
    asked: Asked,
    users: Sequence[str],
    integers: Integers,
    directory: tuple[Entry, ...],
) -> dict[str, Any]:
    """What ``plan.json`` holds: the sum, and its users in the order of their places.

    Raises
    ------
    LeftOut
        Fewer users than the sum needs.
    """
    known = integers.terms
    refuse_if(
        len(users) < known.required,
        f"{len(users)} of {known.required} members that the sum needs can be asked: "
        "the release is left out.",
        LeftOut,
    )
    places = {entry.number: place for place, entry in enumerate(directory)}
    cohort = {user: places[run.state.members[user].number] for user in users}
    summing = Summing(
        stage=STAGES[asked.request],
        release=asked.name,
        cohort=bitmap(cohort.values(), len(directory)),
        content=content_of(asked.requests(users, {})[0][1]),
        clip=known.grid.clip,
        z=known.z,
        bit_z=known.bit_z,
        most=known.most,
        required=known.required,
        length=asked.length,
        plan="",
    )
    summing, _ = with_plan(run.state.id, summing, directory, run.config)
    return {"summing": vars(summing), "users": sorted(cohort, key=cohort.__getitem__)}


def forget_sums(run: LiveRun, but: Path | None = None) -> None:
    """Erase the folders of all (other) sums: they are over, and say who took part."""
    for old in run.sums.glob("*"):
        if old != but:
            shutil.rmtree(old)


# --- report ------------------------------------------------------------------------------


def collect(made: Masked) -> None:
    """Ask for reports, add up those that fit together, and fix whose they are.

    Raises
    ------
    LeftOut
        Too few came.
    """
    run, asked, plan = made.run, made.asked, made.plan
    cls, group = REPLIES[asked.request]
    # Those of a life of the run that did not get so far.
    (made.place / "bundles").unlink(missing_ok=True)

    def read(record: RecordDict) -> Reply:
        return unpack(
            cls, record, lambda f: report_shapes(plan, made.known(f["users"]))
        )

    def keep(reply: Reply) -> Reply:
        places = made.known(reply.users)
        reports = reports_of(plan, places, getattr(reply, group))
        errors = {
            made.users[i]: why
            for i, one in reports.items()
            if (why := _add(made, i, one))
        }
        kept = tuple(user for user in reply.users if user not in errors)
        left = {"users": kept, "errors": reply.errors | errors, group: {}}
        return replace(reply, **left)

    requests = asked.requests(list(made.users.values()), made.fields)
    ask(run, asked.exchange, requests, read, keep, _most(made))
    counted = secure.count(plan, made.checks)
    state = {str(i): made.checks[i].hex() for i in sorted(counted)}
    body = {"checks": state, "bundles": {str(i): made.bundles[i] for i in counted}}
    write_atomically(made.place / "total", save_arrays({"total": made.total}))
    write_atomically(made.place / "counted.json", json.dumps(body).encode())


def _add(made: Masked, place: int, report: Report) -> str:
    """Add one report to the sum, or say why it cannot be."""
    plan = made.plan
    secure.refuse_report(plan, place, report)
    other = secure.disagrees(plan, place, report.checks, made.checks)
    if other is not None:
        user = made.users[other]
        return f"its masks do not fit those of {user}: their plans or keys differ."
    path = made.place / "bundles"
    with open(path, "ab", opener=private) as stream:
        made.bundles[place] = stream.tell()
        stream.write(b"".join(report.bundles.values()))
    made.total = made.total + report.masked
    made.checks[place] = report.checks
    return ""


def _most(made: Masked) -> Shapes:
    """How many numbers of four bytes the arrays of one user's report have at most."""
    shapes = [report_shapes(made.plan, [place]) for place in made.users]
    name = f"masked{made.plan.word}"
    return {
        name: (made.plan.length * made.plan.word // 32,),
        "bundles": (max(-(-one["bundles"][0] // 4) for one in shapes),),
        "checks": (max(-(-one["checks"][0] // 4) for one in shapes),),
    }


def read_counted(made: Masked) -> frozenset[int]:
    """Read whose reports are in the sum, and the sum: they do not change any more."""
    body = json.loads((made.place / "counted.json").read_text())
    made.checks = {int(i): bytes.fromhex(text) for i, text in body["checks"].items()}
    made.bundles = {int(i): int(at) for i, at in body["bundles"].items()}
    made.total = load_arrays((made.place / "total").read_bytes())["total"]
    return frozenset(made.checks)


# --- confirm -----------------------------------------------------------------------------


def signatures_of(made: Masked, counted: frozenset[int]) -> dict[int, bytes]:
    """Let members sign whose reports are in the sum: place -> signature.

    Raises
    ------
    LeftOut
        Too few signed.
    """
    run, asked, plan = made.run, made.asked, made.plan
    file = made.place / "signatures.json"
    if file.exists():
        stored = json.loads(file.read_text())
        return {int(place): bytes.fromhex(text) for place, text in stored.items()}
    publics = members.publics(made.directory, "signing")
    valid: dict[int, bytes] = {}

    def keep(reply: ConfirmReply) -> ConfirmReply:
        made.known(reply.users)
        for user in reply.users:
            place = made.places[user]
            signature = from_hex(reply.signatures.get(user, ""))
            if secure.valid_signers(plan, counted, {place: signature}, publics):
                valid[place] = signature
        return reply

    fields = made.fields | {"counted": bitmap(counted, plan.members)}
    users = list(made.users.values())
    ask(
        run,
        Exchange(asked.exchange.phase, "confirm", "query.confirm", 0.0),
        asked.make(ConfirmRequest, f"confirm/{asked.name}", users, fields),
        lambda record: unpack(ConfirmReply, record),
        keep,
        enough=lambda: len(valid) >= plan.signers,
    )
    secure.enough_signed(plan, valid)
    some = dict(sorted(valid.items())[: plan.signers])
    body = json.dumps({str(place): one.hex() for place, one in some.items()})
    write_atomically(file, body.encode())
    return some


# --- open --------------------------------------------------------------------------------


def open_all(
    made: Masked, counted: frozenset[int], signatures: Mapping[int, bytes]
) -> dict[int, dict[int, bytes]]:
    """Let members open the seeds that the sum needs: holder -> row -> shares."""
    run, asked, plan = made.run, made.asked, made.plan
    found: dict[int, dict[int, bytes]] = {}
    sizes = share_sizes(plan, counted)
    left = set(counted)  # rows whose seeds do not come together yet
    came: Counter[int] = Counter()  # row -> how many have opened it
    least = {row: threshold(len(plan.graph.holders[row])) for row in counted}

    def rows(fields: Mapping[str, Any]) -> dict[int, Sequence[int]]:
        refuse_message(
            set(fields["opened"]) != set(fields["users"]),
            "a reply opens shares of users whom it is not about.",
        )
        made.known(fields["users"])
        return {made.places[user]: opened for user, opened in fields["opened"].items()}

    def read(record: RecordDict) -> OpenReply:
        return unpack(OpenReply, record, lambda f: opening_shapes(plan, sizes, rows(f)))

    def keep(reply: OpenReply) -> OpenReply:
        places = rows({"opened": reply.opened, "users": reply.users})
        some = openings_of(sizes, places, reply.shares)
        found.update(some)
        for opened in some.values():
            came.update(opened.keys())
        touched = {row for opened in some.values() for row in opened}
        left.difference_update(
            row
            for row in touched & left
            if came[row] >= least[row]
            and secure.opens(plan, row, counted, made.checks[row], found)
        )
        return replace(reply, shares={})

    most = {"shares": (_most_shares(made, sizes),)}
    for requests in _opening_requests(made, counted, signatures):
        ask(
            run,
            Exchange(asked.exchange.phase, "open", "query.open", 0.0),
            requests,
            read,
            keep,
            most,
            enough=lambda: not left,
        )
        if not left:
            break
    return found


def _opening_requests(
    made: Masked, counted: frozenset[int], signatures: Mapping[int, bytes]
) -> Iterator[Requests]:
    """Requests to open, each with the sealed shares of its own users.

    In groups of at most `SEALED_BYTES`, so that they need no more memory than that. Half of
    the members are often enough, and which of them are asked first does not matter.
    """
    asked = made.asked
    fields = made.fields | {
        "counted": bitmap(counted, made.plan.members),
        "signed": bitmap(signatures, made.plan.members),
        "signatures": b"".join(one for _, one in sorted(signatures.items())),
        "bundles": b"",
    }
    users, group, size = list(made.users.values()), Requests(), 0
    for node, one in asked.make(OpenRequest, f"open/{asked.name}", users, fields):
        sealed = _bundles_for(made, counted, one.users)
        if size + len(sealed) > SEALED_BYTES and group:
            yield group
            group, size = [], 0
        group.append((node, replace(one, bundles=sealed)))
        size += len(sealed)
    yield group


def _most_shares(made: Masked, sizes: Mapping[int, int]) -> int:
    """How many numbers of four bytes the shares of one member have at most."""
    held = (rows_held(made.plan, place, sizes) for place in made.users)
    return max(sum(sizes[row] for row in rows) for rows in held) // 4


def _bundles_for(made: Masked, counted: frozenset[int], users: Sequence[str]) -> bytes:
    """Sealed shares for these members, of the rows of U, as `OpenRequest.bundles`."""
    found = []
    with (
        open(made.place / "bundles", "rb") as stream,
        mmap(stream.fileno(), 0, access=ACCESS_READ) as sealed,
    ):
        for place in made.known(users):
            for row in rows_held(made.plan, place, counted):
                size = sealed_size(made.plan, row)
                at = bisect_left(made.plan.graph.holders[row], place)
                begin = made.bundles[row] + size * at
                found.append(sealed[begin : begin + size])
    return b"".join(found)
