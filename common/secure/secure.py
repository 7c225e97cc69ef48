r"""One release under secure aggregation, as pure functions: report, confirm, open, unmask.

Member i of the cohort sends

.. math::
    y_i = q_i + e_i + M(b_i) + \sum_{j > i} M(s_{ij}) - \sum_{j < i} M(s_{ij}) \mod 2^w

with its row of integers q, its noise e, a mask of its own seed b and one per mask
neighbour (Bonawitz et al. 2017, on the graph of Bell et al. 2020). In the same message go
shares of all seeds, sealed for its holders. Then members sign who is counted, U. Last,
holders open, for each i of U, its own seed and its seeds with neighbours that are not in
U. A pair's seed is opened only where one of the two is not counted, so never both secrets
of a row. All that remains is

.. math:: S = \sum_{i \in U} (q_i + e_i) \mod 2^w.

A state that forbids something a second time (a report with other noise, another U)
belongs to the device: functions here take what it has stored as an argument.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ..errors import IdiolectError, refuse_if, required
from ..privacy.noise import Source
from .grid import WORDS, lift, words
from .masks import NONCE, SEED, TAG, add_mask, agree, check, pair_seed, seal, unseal
from .neighbours import fewest_neighbours, threshold
from .plan import Plan
from .shares import combine, split

VIEW = b"idiolect secagg view 1\n"
SIGNATURE = 64  # bytes

Expand = Callable[[np.ndarray, bytes, int], None]  # `masks.add_mask`


class LeftOut(IdiolectError):
    """A release that gives no sum; it is paid for all the same."""


@dataclass(frozen=True)
class Party:
    """A member in one release.

    Attributes
    ----------
    plan
        Of the release.
    place
        The member's index in the cohort.
    agreed
        Holder's place -> the secret agreed with it, 32 bytes. Holders are mutual, and mask
        neighbours are among them.
    """

    plan: Plan
    place: int
    agreed: Mapping[int, bytes]

    @property
    def neighbours(self) -> tuple[int, ...]:
        """Whom this member shares a mask with."""
        return self.plan.graph.masks[self.place]

    @property
    def holders(self) -> tuple[int, ...]:
        """Who holds shares of this member's seeds; it holds shares of theirs."""
        return self.plan.graph.holders[self.place]


@dataclass(frozen=True)
class Report:
    """What a member sends.

    Attributes
    ----------
    masked
        y, words [length].
    bundles
        Holder -> its shares, sealed: of the own seed, then of those with each neighbour.
    checks
        A check of 16 bytes per seed, in the same order.
    """

    masked: np.ndarray
    bundles: Mapping[int, bytes]
    checks: bytes


def join(
    plan: Plan, node: int, private: X25519PrivateKey, publics: Mapping[int, bytes]
) -> Party:
    """Take part in a release: agree on a secret with each holder.

    Parameters
    ----------
    plan
        Checked before (`plan.refuse_other`).
    node
        The member's own number in the directory.
    private
        Its key of this run.
    publics
        Node number -> public key, from the directory; at least those of its holders.

    Raises
    ------
    IdiolectError
        The member is not asked, or two members, of whom one may be itself, have one key.
    """
    refuse_if(
        node not in plan.cohort,
        "this device is not of the members that the plan asks: ignore the request.",
    )
    place = plan.cohort.index(node)
    numbers = {j: plan.cohort[j] for j in plan.graph.holders[place]}
    keys = {
        j: required(
            publics.get(number),
            f"the directory has no key of member {number}: sit this release out.",
        )
        for j, number in numbers.items()
    }
    own = private.public_key().public_bytes_raw()
    refuse_if(
        len({own, *keys.values()}) <= len(keys),
        "two members of the directory have the same key: ask the operator who they are.",
    )
    return Party(plan, place, {j: agree(private, key) for j, key in keys.items()})


# --- report ------------------------------------------------------------------------------


def report(
    party: Party, row: np.ndarray, own: bytes, random: Source, expand: Expand = add_mask
) -> Report:
    """Mask a row, and share the seeds of its masks.

    Parameters
    ----------
    party
        Who reports.
    row
        q + e, int64 [length]: on the grid, with its share of the noise.
    own
        b, 16 fresh random bytes of the operating system.
    random
        Where the shares' coefficients come from; ``os.urandom`` in use.
    expand
        Adds the mask of a seed.

    Raises
    ------
    IdiolectError
        The row or the seed does not have the plan's length.
    """
    plan = party.plan
    refuse_if(
        row.shape != (plan.length,) or len(own) != SEED,
        f"a row of shape {row.shape} is not one of the {plan.length} numbers of the plan: "
        "make it again.",
    )
    pairs = [
        pair_seed(plan.hash, party.agreed[j], party.place, j) for j in party.neighbours
    ]
    masked = words(row, plan.word)
    expand(masked, own, 1)
    for j, seed in zip(party.neighbours, pairs, strict=True):
        expand(masked, seed, _sign(party.place, j))
    seeds = [own, *pairs]
    holders = party.holders
    table = split(b"".join(seeds), threshold(len(holders)), len(holders), random)
    bundles = {
        j: seal(plan.hash, party.agreed[j], party.place, j, share.tobytes())
        for j, share in zip(holders, table, strict=True)
    }
    return Report(masked, bundles, b"".join(map(check, seeds)))


def _sign(one: int, other: int) -> int:
    """A pair's mask is added to the row of the lower of the two, taken off the other's."""
    return 1 if one < other else -1


def refuse_report(plan: Plan, place: int, sent: Report) -> None:
    """Refuse a report whose parts do not have the shape that the plan says.

    Raises
    ------
    IdiolectError
        With the part that is wrong.
    """
    seeds = 1 + len(plan.graph.masks[place])
    sealed = NONCE + SEED * seeds + TAG
    shape = sent.masked.shape == (plan.length,)
    for wrong, what in (
        (not shape or sent.masked.dtype != WORDS[plan.word], "row"),
        (tuple(sent.bundles) != plan.graph.holders[place], "list of holders"),
        (any(len(b) != sealed for b in sent.bundles.values()), "bundle"),
        (len(sent.checks) != SEED * seeds, "list of checks"),
    ):
        refuse_if(
            wrong,
            f"the report of member {plan.cohort[place]} has a {what} of a wrong size: "
            "drop the report.",
        )


def check_of(plan: Plan, place: int, other: int, checks: bytes) -> bytes:
    """Return a member's check of its seed with a mask neighbour."""
    at = SEED * (1 + bisect_left(plan.graph.masks[place], other))
    return checks[at : at + SEED]


def disagrees(
    plan: Plan, place: int, checks: bytes, before: Mapping[int, bytes]
) -> int | None:
    """Return the first member of earlier reports with another seed for the pair, or None.

    Then the two have different plans or keys, and their masks would not cancel; the later
    report is dropped.

    Parameters
    ----------
    plan
        Of the release.
    place, checks
        Of the new report.
    before
        Place -> checks, of the reports that are kept.
    """
    for other in plan.graph.masks[place]:
        if other in before:
            mine = check_of(plan, place, other, checks)
            if mine != check_of(plan, other, place, before[other]):
                return other
    return None


# --- confirm -----------------------------------------------------------------------------


def view(plan: Plan, counted: Collection[int]) -> bytes:
    """Return the text that members sign: the plan, and who is counted (a bitmap)."""
    bits = np.zeros(plan.members, np.uint8)
    bits[sorted(counted)] = 1
    return VIEW + plan.hash + hashlib.sha256(np.packbits(bits).tobytes()).digest()


def count(plan: Plan, reported: Collection[int]) -> frozenset[int]:
    """Fix who is counted: all whose reports are kept. It is never made smaller afterwards.

    Raises
    ------
    LeftOut
        Fewer reports than the plan requires.
    """
    refuse_if(
        len(set(reported)) < plan.required,
        f"{len(set(reported))} of {plan.required} reports that the sum needs came: "
        "the release is left out.",
        LeftOut,
    )
    return frozenset(reported)


def confirm(
    party: Party,
    counted: Collection[int],
    signing: Ed25519PrivateKey,
    *,
    reported: bool,
    earlier: bytes | None = None,
) -> bytes:
    """Sign who is counted. The device stores the signed `view` before the signature leaves.

    Parameters
    ----------
    party
        Who signs. It may do so without having reported.
    counted
        U, places.
    signing
        Key of this run.
    reported
        Whether a report of this member for this plan has left.
    earlier
        The view that this member has signed for the release, if it has.

    Raises
    ------
    IdiolectError
        U is too small, has members that there are not, or this member against its will,
        or is a second one.
    """
    plan = party.plan
    refuse_if(
        not set(counted) <= set(range(plan.members)) or len(counted) < plan.required,
        f"a sum of {len(counted)} rows is not one of at least {plan.required} of the "
        f"{plan.members} members: refuse it.",
    )
    refuse_if(
        party.place in counted and not reported,
        "the server counts a report that this device never sent: refuse the sum.",
    )
    text = view(plan, counted)
    refuse_if(
        earlier not in (None, text),
        "this device has signed another list of members for this release: refuse it.",
    )
    return signing.sign(text)


def valid_signers(
    plan: Plan,
    counted: Collection[int],
    signatures: Mapping[int, bytes],
    publics: Mapping[int, bytes],
) -> frozenset[int]:
    """Return the places whose signatures of U are valid.

    Parameters
    ----------
    plan
        Of the release.
    counted
        U.
    signatures
        Place -> signature.
    publics
        Node number -> Ed25519 key, from the directory.
    """
    text = view(plan, counted)
    good = set()
    for place, signature in signatures.items():
        if not 0 <= place < plan.members or plan.cohort[place] not in publics:
            continue
        try:
            key = Ed25519PublicKey.from_public_bytes(publics[plan.cohort[place]])
            key.verify(signature, text)
        except (InvalidSignature, ValueError):
            continue
        good.add(place)
    return frozenset(good)


def enough_signed(plan: Plan, signed: Collection[int]) -> None:
    """Leave a release out whose U too few members have signed.

    Raises
    ------
    LeftOut
        Fewer than `Plan.signers`.
    """
    refuse_if(
        len(signed) < plan.signers,
        f"{len(signed)} of {plan.signers} signatures that the sum needs came: "
        "the release is left out.",
        LeftOut,
    )


# --- open --------------------------------------------------------------------------------


def opened_of(plan: Plan, row: int, counted: Collection[int]) -> tuple[int, ...]:
    """Return the positions among a row's seeds that are opened if U is counted.

    Its own (0), and those with neighbours that are not in U (1 + index).
    """
    gone = (1 + k for k, j in enumerate(plan.graph.masks[row]) if j not in counted)
    return (0, *gone)


def opening(
    party: Party,
    counted: Collection[int],
    bundles: Mapping[int, bytes],
    signed: Collection[int],
    own_view: bytes | None,
) -> dict[int, bytes]:
    """Open the seeds that the sum over U needs, as far as this member holds shares.

    Parameters
    ----------
    party
        Who opens.
    counted
        U.
    bundles
        Row's place -> the bundle for this member; rows of U.
    signed
        Places with a valid signature of U (`valid_signers`).
    own_view
        The `view` that this member itself has signed.

    Returns
    -------
    dict
        Row -> shares of its opened seeds. A row whose bundle is not its member's is left to
        the other holders.

    Raises
    ------
    IdiolectError
        U is not what this member signed, too few have signed it, a row is not of U or not
        of a member that this one holds shares of, or too few of its neighbours are
        counted.
    """
    plan = party.plan
    refuse_if(
        own_view != view(plan, counted),
        "the members to open are not those that this device signed: refuse them.",
    )
    refuse_if(
        len(signed) < plan.signers,
        f"{len(signed)} members have signed the list and {plan.signers} must: refuse it.",
    )
    found = {}
    for row, bundle in bundles.items():
        refuse_if(
            row not in counted or row not in party.holders,
            "a row to open is not counted, or not shared with this device: refuse it.",
        )
        neighbours = plan.graph.masks[row]
        least = fewest_neighbours(plan.members, len(neighbours))
        refuse_if(
            len(set(neighbours) & set(counted)) < least,
            f"a row to open has fewer than {least} counted neighbours: refuse it.",
        )
        try:
            text = unseal(plan.hash, party.agreed[row], row, party.place, bundle)
        except IdiolectError:
            continue
        if len(text) == SEED * (1 + len(neighbours)):
            places = opened_of(plan, row, counted)
            found[row] = b"".join(text[SEED * k : SEED * (k + 1)] for k in places)
    return found


# --- unmask ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unmasked:
    """What the server gets.

    Attributes
    ----------
    total
        S, int64 [length]: the sum of rows and noise over U, centred.
    wrong
        Holders who sent wrong shares.
    """

    total: np.ndarray
    wrong: frozenset[int]


def unmask(
    plan: Plan,
    counted: Collection[int],
    total: np.ndarray,
    checks: Mapping[int, bytes],
    openings: Mapping[int, Mapping[int, bytes]],
    expand: Expand = add_mask,
) -> Unmasked:
    """Take the opened masks off the sum of reports.

    Parameters
    ----------
    plan, counted
        P and U.
    total
        Sum of the reports of U, words [length].
    checks
        Row -> checks of its report.
    openings
        Holder -> row -> what it opened.
    expand
        Adds the mask of a seed.

    Raises
    ------
    LeftOut
        A row has too few right shares.
    """
    wrong: set[int] = set()
    total = total.copy()
    for row in sorted(counted):
        places = opened_of(plan, row, counted)
        seeds, bad = _seeds(plan, row, places, checks[row], openings)
        wrong |= bad
        neighbours = plan.graph.masks[row]
        for place, seed in zip(places, seeds, strict=True):
            # A pair's mask is taken off as the other's row, which is missing, would do it.
            sign = _sign(neighbours[place - 1], row) if place else -1
            expand(total, seed, sign)
    return Unmasked(lift(total), frozenset(wrong))


def opens(
    plan: Plan,
    row: int,
    counted: Collection[int],
    checks: bytes,
    openings: Mapping[int, Mapping[int, bytes]],
) -> bool:
    """Whether what was opened so far gives the seeds of a row; arguments as in `unmask`."""
    try:
        _seeds(plan, row, opened_of(plan, row, counted), checks, openings)
    except LeftOut:
        return False
    return True


def _seeds(
    plan: Plan,
    row: int,
    places: tuple[int, ...],
    checks: bytes,
    openings: Mapping[int, Mapping[int, bytes]],
) -> tuple[list[bytes], set[int]]:
    """Put the opened seeds of a row together: the seeds, and holders with wrong shares."""
    holders = plan.graph.holders[row]
    sent = {h: openings[h][row] for h in holders if row in openings.get(h, {})}
    shares = {
        1 + holders.index(h): share
        for h, share in sent.items()
        if len(share) == SEED * len(places)
    }
    bad = {h for h in sent if 1 + holders.index(h) not in shares}
    least = threshold(len(holders))
    refuse_if(
        len(shares) < least,
        f"{len(shares)} of {least} shares that the row of member {plan.cohort[row]} needs "
        "came: the release is left out.",
        LeftOut,
    )
    expected = [checks[SEED * k : SEED * (k + 1)] for k in places]
    few = dict(sorted(shares.items())[:least])
    for some in (few, shares):  # all of them only where a few give a wrong secret
        try:
            secret, odd = combine(some, least)
        except IdiolectError:
            break
        seeds = [secret[k : k + SEED] for k in range(0, len(secret), SEED)]
        if [check(seed) for seed in seeds] == expected:
            return seeds, bad | {holders[point - 1] for point in odd}
    raise LeftOut(
        f"too many shares of the row of member {plan.cohort[row]} are wrong: "
        "the release is left out."
    )
