"""Members with keys, and one release among them, in memory."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from idiolect.common.secure import secure
from idiolect.common.secure.masks import add_mask, keystream
from idiolect.common.secure.plan import Plan, Segment
from idiolect.common.secure.secure import Expand, Party, Report


def a_plan(members: int, length: int = 3, **changes) -> Plan:
    values = {
        "run": "run",
        "release": "1",
        "stage": "adapt",
        "directory": bytes(32),
        "cohort": tuple(range(100, 100 + members)),
        "content": bytes(32),
        "segments": (Segment(length, -20, 0),),
        "word": 32,
        "required": max(3, -(-members * 3 // 5)),
        "corrupt": members // 10,
    }
    return Plan(**(values | changes))


@lru_cache
def agreement_key(node: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(node.to_bytes(32, "big"))


@lru_cache
def signing_key(node: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(node.to_bytes(32, "big"))


@lru_cache(maxsize=100_000)
def _secret(low: int, high: int) -> bytes:
    return agreement_key(low).exchange(agreement_key(high).public_key())


def parties(plan: Plan) -> list[Party]:
    """Return what `secure.join` gives each member; a pair's agreement is computed once."""
    return [
        Party(
            plan,
            i,
            {
                j: _secret(*sorted((plan.cohort[i], plan.cohort[j])))
                for j in plan.graph.holders[i]
            },
        )
        for i in range(plan.members)
    ]


def signing_publics(plan: Plan) -> dict[int, bytes]:
    return {n: signing_key(n).public_key().public_bytes_raw() for n in plan.cohort}


@dataclass
class Transcript:
    """All that the server sees, and its sum."""

    plan: Plan
    reports: dict[int, Report] = field(default_factory=dict)
    counted: frozenset[int] = frozenset()
    signatures: dict[int, bytes] = field(default_factory=dict)
    openings: dict[int, dict[int, bytes]] = field(default_factory=dict)
    total: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    wrong: frozenset[int] = frozenset()

    def seen(self) -> dict[str, object]:
        """The parts that could depend on rows, as comparable bytes.

        A bundle is sealed under keys that the server does not have; what it sees of it
        that is not random is its length.
        """
        return {
            "masked": {i: r.masked.tobytes() for i, r in self.reports.items()},
            "checks": {i: r.checks for i, r in self.reports.items()},
            "bundles": {
                i: {j: len(b) for j, b in r.bundles.items()}
                for i, r in self.reports.items()
            },
            "counted": self.counted,
            "signatures": self.signatures,
            "openings": self.openings,
            "sum": self.total.tobytes(),
        }


def seed_of(plan: Plan, place: int) -> bytes:
    """Return a member's own seed: in tests the same whenever the release is run again."""
    return bytes([plan.cohort[place] % 251]) * 16


def release(
    plan: Plan,
    rows: Mapping[int, np.ndarray],
    reported: Collection[int] | None = None,
    signing: Collection[int] | None = None,
    opens: Collection[int] | None = None,
    late: Collection[int] = (),
    expand: Expand = add_mask,
) -> Transcript:
    """Run one release.

    Parameters
    ----------
    plan
        Agreed on.
    rows
        Place -> row.
    reported, signing, opens
        Whose messages arrive in each of the three exchanges; None: everybody's.
    late
        Of those that reported, whose reports came after U was fixed.
    expand
        As in `secure.report`.
    """
    everybody = range(plan.members)
    reported, signing, opens = (
        everybody if some is None else some for some in (reported, signing, opens)
    )
    members, seen = parties(plan), Transcript(plan)
    for i in reported:
        # The shares' coefficients, too, are the same when the release is run again.
        coefficients = keystream(i.to_bytes(32, "big"))
        seen.reports[i] = secure.report(
            members[i], rows[i], seed_of(plan, i), coefficients, expand
        )
        secure.refuse_report(plan, i, seen.reports[i])
        checks = {j: seen.reports[j].checks for j in seen.reports if j != i}
        assert secure.disagrees(plan, i, seen.reports[i].checks, checks) is None
    seen.counted = secure.count(plan, set(seen.reports) - set(late))
    for i in signing:
        seen.signatures[i] = secure.confirm(
            members[i],
            seen.counted,
            signing_key(plan.cohort[i]),
            reported=i in seen.reports,
        )
    signed = secure.valid_signers(
        plan, seen.counted, seen.signatures, signing_publics(plan)
    )
    secure.enough_signed(plan, signed)
    for i in opens:
        held = {
            row: seen.reports[row].bundles[i]
            for row in seen.counted
            if i in seen.reports[row].bundles
        }
        seen.openings[i] = secure.opening(
            members[i], seen.counted, held, signed, secure.view(plan, seen.counted)
        )
    return unmasked(seen, expand)


def unmasked(seen: Transcript, expand: Expand = add_mask) -> Transcript:
    """Let the server take the masks off."""
    plan = seen.plan
    total = np.sum([seen.reports[i].masked for i in sorted(seen.counted)], axis=0)
    total = total.astype(seen.reports[min(seen.counted)].masked.dtype)
    checks = {i: seen.reports[i].checks for i in seen.counted}
    found = secure.unmask(plan, seen.counted, total, checks, seen.openings, expand)
    seen.total, seen.wrong = found.total, found.wrong
    return seen
