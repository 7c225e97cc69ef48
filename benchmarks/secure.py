"""What one masked sum costs a member and the server (``secagg.mode=on``).

    python benchmarks/secure.py [--cells 100-100000-0.05 ...] [--page]

One release of the shared adapter with noise, without a network: requests and replies are
packed and read as in use. CPU seconds, not wall seconds, so that a busy machine measures
the same. Each cell has a process of its own and is kept in
``benchmarks/results/secure.json``; the same command does what is missing. ``--page`` writes
the tables of docs/masked-sums.md.

What is real, in every cell:

- the server's whole work: plan, requests with their signatures and parts, reading and
  adding reports, the file of sealed shares, valid signatures, shares, masks;
- all that `SAMPLE` members do, as devices: reading a request, the checks of plan and
  directory, noise, masks, shares, sealing, signing, opening. The others' keys and
  signatures are real as well, since these members check them.

What the other members leave out, since the server's work is the same without it: their
noise; masks that cancel, of two of them who both report; sealed shares for members out of
the sample (zeros instead); and their polynomials have a secret alone, so every share of it
is the secret. The sum is compared with the rows.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from report import RESULTS, ROOT, between, origin, printed, save

from idiolect.client.node import secure as member
from idiolect.client.node import state
from idiolect.client.node.host import Node
from idiolect.common.config import Config, flatten, parse
from idiolect.common.data.types import User
from idiolect.common.protocol import summing as sums
from idiolect.common.protocol.manifest import public_key
from idiolect.common.protocol.messages import (
    AdaptReply,
    AdaptRequest,
    ConfirmReply,
    ConfirmRequest,
    OpenReply,
    OpenRequest,
    Reply,
    Request,
)
from idiolect.common.protocol.packing import pack, size
from idiolect.common.protocol.signed import (
    brought,
    complete,
    read_sealed,
    seal_request,
    verify,
)
from idiolect.common.secure import directory as members
from idiolect.common.secure import secure
from idiolect.common.secure.expected import expected
from idiolect.common.secure.grid import lift, words
from idiolect.common.secure.masks import SEED, add_mask, agree, check, pair_seed, seal
from idiolect.common.secure.masks import unseal as unsealed
from idiolect.common.secure.plan import Plan
from idiolect.common.secure.rows import Integers, terms
from idiolect.server.run import masked
from idiolect.server.run.exchange import Exchange, encoded
from idiolect.server.run.sums import SEALED

SAMPLE = 3  # members whose work is done in full and measured
CLIP, NOISE, BIT = 0.1, 8.0, 10.0
KEY = bytes(32)  # of the server's requests
# Members, coordinates, and the share of members that never answers.
THIRD = (1_000, 1_000_000, 1 / 3)
VOTES = (1_000, 400, 0.05)  # one vote for each of 400 items
CELLS = (
    *((n, d, 0.05) for n in (100, 1_000, 10_000) for d in (100_000, 1_000_000)),
    *(THIRD, VOTES),
)
EXCHANGES = {AdaptRequest: "report", ConfirmRequest: "confirm", OpenRequest: "open"}


# --- what a process uses -----------------------------------------------------------------


def memory(name: str) -> int:
    """A size of this process in bytes: VmRSS is now, VmHWM the largest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def forget_peak() -> int:
    """Let the largest size begin anew at what it is now, which is returned."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


@dataclass
class Clock:
    """CPU seconds and additional memory of what is done within `running`."""

    seconds: float = 0.0
    bytes: int = 0

    @contextmanager
    def running(self) -> Any:
        """Count what happens inside."""
        before, began = forget_peak(), time.process_time()
        yield
        self.seconds += time.process_time() - began
        self.bytes = max(self.bytes, memory("VmHWM") - before)


# --- the members -------------------------------------------------------------------------


@dataclass
class Memory:
    """A store in memory."""

    kept: dict[str, bytes] = field(default_factory=dict)

    def read(self, name: str) -> bytes | None:
        """See `state.RunStore`."""
        return self.kept.get(name)

    def write(self, name: str, body: bytes) -> None:
        """See `state.RunStore`."""
        self.kept[name] = body


class Crowd:
    """All members of one run, and what they answer.

    Parameters
    ----------
    count, length, lost
        A cell.
    config
        Of the run.
    """

    def __init__(self, count: int, length: int, lost: float, config: Config) -> None:
        self.config, self.length = config, length
        self.rng = random.Random(count + length)
        self.users = [f"member-{k:05}" for k in range(count)]
        self.keys = [members.make_keys() for _ in self.users]
        identities = [ec.generate_private_key(ec.SECP384R1()) for _ in self.users]
        made = [
            members.make_entry(k, identity, keys, "run", public_key(KEY))
            for k, (identity, keys) in enumerate(
                zip(identities, self.keys, strict=True)
            )
        ]
        self.directory = tuple(made)
        self.publics = members.publics(made, "agreement")
        some = self.rng.sample(range(count), SAMPLE + round(lost * count))
        self.sample, self.lost = some[:SAMPLE], set(some[SAMPLE:])
        self.nodes = {k: self._node(k, identities[k]) for k in self.sample}
        self.plan: Plan | None = None
        self.opened: dict[int, bytes] = {}  # row -> its opened seeds
        self.secrets: dict[tuple[int, int], bytes] = {}  # of pairs with the sample
        self.told: dict[int, np.ndarray] = {}  # integers of the sample's rows
        self.clocks = {name: Clock() for name in EXCHANGES.values()}
        self.bytes: dict[str, list[int]] = {name: [0, 0] for name in self.clocks}

    def _node(self, place: int, identity: ec.EllipticCurvePrivateKey) -> Node:
        user, store = User(self.users[place], (), ()), Memory()
        store.write(member._place(user.id, "keys"), self.keys[place].dump())
        state.pin(store, user.id, public_key(KEY), 0, "")
        return Node(
            self.config,
            (user,),
            (user,),
            frozenset(),
            store,
            0.0,
            numbers={user.id: place},
            identity=identity,
        )

    # --- a member of the sample ---

    def measured(self, place: int, record: Any, cls: Any, parts: dict) -> Any:
        """The reply of a member of the sample to a request that came over the wire."""
        name = EXCHANGES[cls]
        with self.clocks[name].running():
            sealed = read_sealed(cls, record)
            verify(sealed, public_key(KEY))
            request = complete(sealed, parts | brought(record, sealed.seal))
            reply = pack(self.answer(place, request))
        down, up = size(record), size(reply)
        before = self.bytes[name]
        self.bytes[name] = [max(before[0], down), max(before[1], up)]
        return reply

    def answer(self, place: int, request: Any) -> Reply:
        """What a device answers."""
        node = self.nodes[place]
        if isinstance(request, ConfirmRequest):
            return member.confirm(request, node)
        if isinstance(request, OpenRequest):
            return member.opened(request, node)
        noisy = member.noisy

        def noted(*given: Any) -> np.ndarray:
            self.told[place] = noisy(*given)
            return self.told[place]

        member.noisy = noted
        row = np.random.default_rng(place).normal(size=self.length).astype(np.float32)
        found = member.masked(request, node, node.users, CLIP, lambda _: [{"b": row}])
        member.noisy = noisy
        users, arrays, errors = found
        head = member.reply_head(request, node, users, errors)
        return AdaptReply(**head, rows=arrays)

    def kept(self) -> int:
        """Bytes that members of the sample keep, which are not the server's."""
        stores = (cast(Memory, one.store) for one in self.nodes.values())
        bodies = (one.kept.values() for one in stores)
        rows = sum(row.nbytes for row in self.told.values())
        return rows + sum(len(body) for some in bodies for body in some)

    # --- any other member ---

    def simulated(self, place: int, request: Any) -> Reply:
        """The reply of a member out of the sample."""
        user = self.users[place]
        head = {"run": request.run, "step": request.step, "users": (user,)}
        head |= {"errors": {}, "seconds": 0.0, "process": "", "peak_rss_mb": 0.0}
        plan = self.plan_of(request)
        if isinstance(request, AdaptRequest):
            return AdaptReply(
                **head, rows=sums.report_arrays(plan, {place: self.report(plan, place)})
            )
        counted = self.counted(request)
        if isinstance(request, ConfirmRequest):
            signature = self.keys[place].signing.sign(secure.view(plan, counted))
            return ConfirmReply(**head, signatures={user: signature.hex()})
        bundles = sums.bundles_of(plan, (place,), counted, request.bundles)[place]
        rows = {row: self.share(plan, row, place, bundles[row]) for row in bundles}
        shares = sums.opening_arrays({place: rows})
        return OpenReply(**head, opened={user: tuple(rows)}, shares=shares)

    def plan_of(self, request: Any) -> Plan:
        """The plan, made once."""
        if self.plan is None:
            self.plan = sums.plan_of(
                request.run, request.summing, self.directory, self.config
            )
        return self.plan

    def counted(self, request: Any) -> frozenset[int]:
        """U."""
        if not hasattr(self, "_counted"):
            places = sums.places_of(request.counted, len(self.users))
            self._counted = frozenset(places)
        return self._counted

    def secret(self, one: int, other: int) -> bytes:
        """What two members agreed on; without X25519 where none is of the sample."""
        pair = min(one, other), max(one, other)
        if not {one, other} & set(self.sample):
            return hashlib.sha256(b"%d %d" % pair).digest()
        if pair not in self.secrets:
            low, high = pair
            key = self.keys[low].agreement
            self.secrets[pair] = agree(key, self.publics[high])
        return self.secrets[pair]

    def seeds(self, plan: Plan, place: int) -> list[bytes]:
        """All seeds of a member: its own, and one per neighbour."""
        own = hashlib.sha256(b"own %d" % place).digest()[:SEED]
        near = plan.graph.masks[place]
        pairs = (pair_seed(plan.hash, self.secret(place, j), place, j) for j in near)
        return [own, *pairs]

    def row(self, place: int) -> int:
        """Every number of a simulated member's row, and its clip bit."""
        return place % 7 - 3

    def report(self, plan: Plan, place: int) -> secure.Report:
        """A masked row, of which masks that cancel are left out."""
        row = np.full(plan.length, self.row(place), np.int64)
        masked_row, seeds = words(row, plan.word), self.seeds(plan, place)
        add_mask(masked_row, seeds[0], 1)
        shown = self.lost | set(self.sample)
        for j, seed in zip(plan.graph.masks[place], seeds[1:], strict=True):
            if j in shown:
                add_mask(masked_row, seed, 1 if place < j else -1)
        nothing, text = bytes(sums.sealed_size(plan, place)), b"".join(seeds)
        bundles = dict.fromkeys(plan.graph.holders[place], nothing)
        for j in set(self.sample) & bundles.keys():
            bundles[j] = seal(plan.hash, self.secret(place, j), place, j, text)
        return secure.Report(masked_row, bundles, b"".join(map(check, seeds)))

    def share(self, plan: Plan, row: int, holder: int, bundle: bytes) -> bytes:
        """A share of the opened seeds of a row."""
        assert self._counted is not None
        opened = secure.opened_of(plan, row, self._counted)
        if row in self.sample:
            secret = self.secret(row, holder)
            text = unsealed(plan.hash, secret, row, holder, bundle)
            return b"".join(text[SEED * k : SEED * (k + 1)] for k in opened)
        if row not in self.opened:
            seeds = self.seeds(plan, row)
            self.opened[row] = b"".join(seeds[k] for k in opened)
        return self.opened[row]


# --- the server --------------------------------------------------------------------------


@dataclass
class Server:
    """The server of one masked sum, which asks the crowd without a network.

    Attributes
    ----------
    crowd
        Whom it asks.
    apart
        CPU seconds that members took.
    base, peak
        Bytes of the process when members are ready, and the most that the server added.
    sent
        Bytes of all requests.
    """

    crowd: Crowd
    apart: float = 0.0
    base: int = 0
    peak: int = 0
    sent: int = 0

    def ask(
        self,
        _run: Any,
        _exchange: Exchange,
        requests: Sequence[tuple[int, Request]],
        read: Callable,
        keep: Callable = lambda reply: reply,
        _row: Any = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """What `exchange.ask` does, with members in this process."""
        crowd, parts = self.crowd, encoded([request for _, request in requests])
        self._note()
        order = list(range(len(requests)))
        crowd.rng.shuffle(order)
        order.sort(key=lambda k: requests[k][0] not in crowd.sample)
        for k in order:
            place, request = requests[k]
            # The directory and the configuration came with the hello.
            had = {n: p for n, p in parts[k].items() if n in ("directory", "config")}
            known = {name: part.hash for name, part in had.items()}
            record = seal_request(request, place, k, parts[k], KEY, known, bytes(16))
            self.sent += size(record)
            if place in crowd.lost or enough():
                continue
            self._note()
            began = time.process_time()
            if place in crowd.sample:
                held = {name: part.data for name, part in had.items()}
                answer = crowd.measured(place, record, type(request), held)
            else:
                answer = pack(crowd.simulated(place, request))
            self.apart += time.process_time() - began
            forget_peak()
            keep(read(answer))
        self._note()

    def _note(self) -> None:
        self.base = self.base or forget_peak()
        more = memory("VmHWM") - self.base - self.crowd.kept()
        self.peak = max(self.peak, more)


def settings(count: int) -> Config:
    """The configuration of a run of devices with masked sums."""
    return parse(
        {
            "task": "text",
            "users": count,
            "secagg.mode": "on",
            "privacy.mode": "central",
            "privacy.metrics": "noisy",
            "privacy.noise": NOISE,
            "adapt.clip": CLIP,
            "adapt.wire": "float32",
            "quorum": 0.6,
        }
    )


def one_cell(count: int, length: int, lost: float) -> dict[str, Any]:
    """Measure one cell in this process."""
    config = settings(count)
    crowd = Crowd(count, length, lost, config)
    server = Server(crowd)
    places = {user: k for k, user in enumerate(crowd.users)}
    fields = {"round": 0, "release": "r", "clip": CLIP}
    fields["shared"] = {"b": np.zeros(length, np.float32)}
    head = {"run": "run", "config": flatten(config), "folder": ""}

    def make(cls: Any, place: str, users: Sequence[str], fields: Any) -> list:
        return [
            (places[user], cls(**head, step=f"{place}/{k}", users=(user,), **fields))
            for k, user in enumerate(users)
        ]

    asked = masked.Asked(
        "r", Exchange("adapt", "", "train.adapt", 1.0), "adapt/0", AdaptRequest,
        fields, length, make,
    )  # fmt: skip
    how = expected(config, count, "adapt")
    bit = BIT if config.adapt.clip_quantile else None
    known = terms(CLIP, NOISE, bit, how.most, how.required)
    with tempfile.TemporaryDirectory() as place:
        run: Any = SimpleNamespace(
            config=config,
            state=SimpleNamespace(
                id="run", members=dict(zip(crowd.users, crowd.directory, strict=True))
            ),
            sum_folder=lambda name: Path(place) / "secagg" / name,
            warn=lambda text: sys.exit(text),
        )
        (Path(place) / "secagg" / "r").mkdir(parents=True)
        masked.ask = server.ask  # pyright: ignore[reportAttributeAccessIssue]
        began = time.process_time()
        found, users = masked.masked_sum(
            run, asked, crowd.users, Integers(known, lambda _: lambda n: bytes(n))
        )
        seconds = time.process_time() - began - server.apart
        kept = (Path(place) / "secagg" / "r" / "bundles").stat().st_size
    plan, counted = crowd.plan, crowd._counted
    assert plan is not None and len(users) == count - len(crowd.lost)
    wanted = sum(crowd.told.values())
    wanted = wanted + sum(crowd.row(k) for k in counted if k not in crowd.told)
    if not (lift(found[SEALED]) == wanted).all():
        sys.exit("the sum is not that of the rows")
    opened = sum(len(secure.opened_of(plan, row, counted)) for row in counted)
    return {
        "members": count,
        "length": length,
        "lost": lost,
        "report": each(crowd, "report"),
        "confirm": each(crowd, "confirm"),
        "open": each(crowd, "open"),
        "server": {
            "seconds": seconds,
            "bytes": server.peak,
            "sent": server.sent,
            "kept": kept,
            "masks": opened,
        },
    }


def each(crowd: Crowd, name: str) -> dict[str, float]:
    """What one exchange cost a member of the sample: the mean; of bytes the most."""
    clock, (down, up) = crowd.clocks[name], crowd.bytes[name]
    seconds = clock.seconds / SAMPLE
    return {"seconds": seconds, "bytes": clock.bytes, "down": down, "up": up}


# --- results -----------------------------------------------------------------------------

FILE = RESULTS / "secure.json"
PAGE = ROOT / "docs" / "masked-sums.md"
BEGIN, END = "<!-- costs -->\n", "<!-- end of costs -->\n"


def kept() -> dict[str, Any]:
    """Cells that were measured."""
    return json.loads(FILE.read_text())["cells"] if FILE.exists() else {}


def name_of(count: int, length: int, lost: float) -> str:
    """Key of a cell."""
    return f"{count}-{length}-{lost:.2f}"


def mega(count: float) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:.{0 if count >= 1e7 else 2}f}"


def tables(cells: dict[str, Any]) -> str:
    """The part of the page."""
    found = [cells[name_of(*cell)] for cell in CELLS if name_of(*cell) in cells]
    lines = [
        "",
        "Members that are lost never answer. Of a member: CPU seconds, and MB that it",
        "sends (of the report: beyond the row).",
        "",
        (
            "| members | numbers | lost | report, s | MB up | memory, MB | confirm, s "
            "| open, s | MB down | MB up |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        report, sign, opening = one["report"], one["confirm"], one["open"]
        lines.append(
            f"| {one['members']:,} | {one['length']:,} | {one['lost']:.0%} "
            f"| {report['seconds']:.2f} | {mega(report['up'] - 4 * one['length'])} "
            f"| {mega(report['bytes'])} | {sign['seconds']:.2f} "
            f"| {opening['seconds']:.2f} | {mega(opening['down'])} "
            f"| {mega(opening['up'])} |"
        )
    missing = [cell for cell in CELLS if name_of(*cell) not in cells]
    if missing:
        named = ", ".join(f"{n:,} members with {d:,} numbers" for n, d, _ in missing)
        lines += ["", f"Not measured yet: {named}."]
    lines += [
        "",
        "Of the server, for the whole sum:",
        "",
        (
            "| members | numbers | lost | masks taken off | CPU s | memory, MB "
            "| sealed shares on disk, MB | MB sent |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        own = one["server"]
        lines.append(
            f"| {one['members']:,} | {one['length']:,} | {one['lost']:.0%} "
            f"| {own['masks']:,} | {own['seconds']:.1f} | {mega(own['bytes'])} "
            f"| {mega(own['kept'])} | {mega(own['sent'])} |"
        )
    return "\n".join([*lines, "", *targets(cells), ""])


def targets(cells: dict[str, Any]) -> list[str]:
    """What the design aimed at: 1,000 members with a million numbers, or with 400 votes."""
    one, votes = cells.get(name_of(*THIRD)), cells.get(name_of(*VOTES))
    if one is None or votes is None:
        return []
    before_opening = votes["report"]["up"] + votes["confirm"]["up"]
    rows = (
        ("report, CPU s", one["report"]["seconds"], 2.0),
        ("report, memory, MB", one["report"]["bytes"] / 1e6, 150.0),
        ("server, CPU s", one["server"]["seconds"], 60.0),
        ("400 votes, sent before the opening, MB", before_opening / 1e6, 0.5),
    )
    lines = [
        (
            f"Targets, at {one['members']:,} members; {one['length']:,} numbers and a "
            "third lost, where nothing else is said:"
        ),
        "",
        "| | measured | target | met |",
        "| --- | --- | --- | --- |",
    ]
    for what, value, most in rows:
        met = "yes" if value <= most else "**no**"
        lines.append(f"| {what} | {value:.2f} | ≤ {most:g} | {met} |")
    return [*lines, ""]


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description="What a masked sum costs.")
    parser.add_argument("--cells", nargs="*", help="only these, by their names")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="write the tables")
    given = parser.parse_args()
    if given.cell:
        count, length, lost = given.cell
        print(json.dumps(one_cell(int(count), int(length), float(lost))))
        return
    for cell in CELLS:
        name = name_of(*cell)
        if name in kept() or (given.cells is not None and name not in given.cells):
            continue
        found = printed(__file__, "--cell", *map(str, cell)) | {"origin": origin()}
        print(json.dumps(found), flush=True)
        save("secure", {"cells": kept() | {name: found}})
    if given.page:
        text = PAGE.read_text()
        PAGE.write_text(between(text, BEGIN, END, tables(kept())))


if __name__ == "__main__":
    main()
