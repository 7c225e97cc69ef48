"""A release in memory: the exact sum or one sentence, and a server that learns no more."""

import os
from collections import deque
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.common.secure import neighbours, secure
from idiolect.common.secure.masks import add_mask, mask, pair_seed, seal, unseal
from idiolect.common.secure.neighbours import fewest_neighbours, threshold
from idiolect.common.secure.plan import Plan, Segment
from idiolect.common.secure.secure import LeftOut

from .world import (
    Transcript,
    a_plan,
    agreement_key,
    parties,
    release,
    seed_of,
    signing_key,
    signing_publics,
    unmasked,
)


def some_rows(plan: Plan, seed: int = 0) -> dict[int, np.ndarray]:
    rng, most = np.random.default_rng(seed), 2**20
    shape = (plan.members, plan.length)
    return dict(enumerate(rng.integers(-most, most, shape)))


def plain(rows: dict[int, np.ndarray], counted: Collection[int]) -> np.ndarray:
    return np.sum([rows[i] for i in counted], axis=0)


# --- the sum -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_sum_is_exact_or_the_release_is_left_out(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 9), "members")
    word = data.draw(st.sampled_from([32, 64]))
    plan = a_plan(n, data.draw(st.integers(1, 4)), word=word)
    top = 2 ** (word - 1) // n - 1
    rows = {
        i: np.array([data.draw(st.integers(-top, top)) for _ in range(plan.length)])
        for i in range(n)
    }
    members = st.permutations(range(n))

    def arrived(what: str) -> list[int]:  # in any order
        gone = data.draw(st.integers(0, n // 2), f"{what} gone")
        return data.draw(members, what)[gone:]

    reported, signing, opens = (arrived(w) for w in ("reported", "signing", "opens"))
    late = data.draw(st.sets(st.sampled_from(reported), max_size=1))
    counted = set(reported) - late
    least = threshold(n - 1)
    enough = (
        len(counted) >= plan.required
        and len(signing) >= plan.signers
        and all(len(set(opens) - {i}) >= least for i in counted)
    )
    if enough:
        seen = release(plan, rows, reported, signing, opens, late)
        assert seen.counted == counted and seen.wrong == frozenset()
        assert seen.total.tobytes() == plain(rows, counted).tobytes()
    else:
        with pytest.raises(LeftOut, match="the release is left out") as refusal:
            release(plan, rows, reported, signing, opens, late)
        assert "\n" not in str(refusal.value)


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few members on a graph like that of many: the same code, with smaller numbers."""
    monkeypatch.setattr(neighbours, "COMPLETE", 20)
    monkeypatch.setattr(neighbours, "ALL_HOLD", 25)
    monkeypatch.setattr(neighbours, "MASK_CYCLES", 4)
    monkeypatch.setattr(neighbours, "HOLDER_CYCLES", 8)


def test_the_sum_on_a_sparse_graph(sparse: None) -> None:
    plan = a_plan(30, 2)
    rows = some_rows(plan)
    assert len(plan.graph.masks[0]) < len(plan.graph.holders[0]) < 29
    reported = [i for i in range(30) if i % 5]
    opens = [i for i in range(30) if i % 7]
    seen = release(plan, rows, reported, range(25), opens, late=[1, 2])
    counted = set(reported) - {1, 2}
    assert seen.counted == counted
    assert (seen.total == plain(rows, counted)).all()


def test_members_join_by_the_directory() -> None:
    plan = a_plan(5)
    publics = {n: agreement_key(n).public_key().public_bytes_raw() for n in plan.cohort}
    joined = [secure.join(plan, n, agreement_key(n), publics) for n in plan.cohort]
    assert joined == parties(plan)
    with pytest.raises(IdiolectError, match="not of the members"):
        secure.join(plan, 7, agreement_key(7), publics)
    with pytest.raises(IdiolectError, match="no key of member 104"):
        few = {n: key for n, key in publics.items() if n != 104}
        secure.join(plan, 100, agreement_key(100), few)
    for twice in (101, 100):
        with pytest.raises(IdiolectError, match="the same key"):
            doubled = publics | {103: publics[twice]}
            secure.join(plan, 100, agreement_key(100), doubled)


def test_wrong_shares_are_corrected_and_their_holder_named() -> None:
    plan = a_plan(10)
    rows = some_rows(plan)
    seen = release(plan, rows, reported=range(9))
    for row in seen.openings[0]:
        seen.openings[0][row] = os.urandom(len(seen.openings[0][row]))
    seen.openings[9] = dict.fromkeys(seen.openings[9], b"short")
    found = unmasked(seen)
    assert (found.total == plain(rows, range(9))).all()
    assert found.wrong == {0, 9}
    for holder in range(5):
        for row in seen.openings[holder]:
            seen.openings[holder][row] = os.urandom(len(seen.openings[holder][row]))
    with pytest.raises(LeftOut, match="too many shares of the row of member 10"):
        unmasked(seen)


def test_shares_that_lie_together_are_caught_by_the_check() -> None:
    plan = a_plan(10)
    seen = release(plan, some_rows(plan))
    for holder in range(10):  # all shares of one wrong secret
        if 3 in seen.openings[holder]:
            other = bytes(b ^ 1 for b in seen.openings[holder][3])
            seen.openings[holder][3] = other
    with pytest.raises(LeftOut, match="shares of the row of member 103 are wrong"):
        unmasked(seen)


# --- what a server can learn -------------------------------------------------------------


def test_a_curious_server_cannot_tell_rows_of_the_same_sum_apart() -> None:
    plan = a_plan(12, 4)
    reported, late = range(11), [4]
    seen = release(plan, some_rows(plan), reported, late=late, opens=range(1, 12))
    rows = other_rows(plan, seen.counted)
    again = release(
        plan,
        rows,
        reported,
        late=late,
        opens=range(1, 12),
        expand=explaining(seen, some_rows(plan), rows),
    )
    assert again.seen() == seen.seen()
    assert not any((rows[i] == some_rows(plan)[i]).all() for i in reported)


def test_a_curious_server_on_a_sparse_graph(sparse: None) -> None:
    plan = a_plan(30, 2)
    reported = [i for i in range(30) if i % 9]
    seen = release(plan, some_rows(plan), reported, late=[1, 5])
    rows = other_rows(plan, seen.counted)
    expand = explaining(seen, some_rows(plan), rows)
    again = release(plan, rows, reported, late=[1, 5], expand=expand)
    assert again.seen() == seen.seen()


def test_where_open_masks_cut_the_members_apart_the_server_can_tell() -> None:
    """Control: the test above must notice a graph that does not connect the counted."""
    plan = cut_plan()
    before = some_rows(plan)
    seen = release(plan, before, late=[6])
    rows = other_rows(plan, seen.counted)
    with pytest.raises(Cut):
        explaining(seen, before, rows)
    # Rows with the same sum on each side of the cut do explain it.
    for half in (range(3), range(3, 6)):
        rows[half[0]] = rows[half[0]] + plain(before, half) - plain(rows, half)
    again = release(plan, rows, late=[6], expand=explaining(seen, before, rows))
    assert again.seen() == seen.seen()


def test_rows_of_another_sum_do_not_explain_a_transcript() -> None:
    plan = a_plan(6)
    before = some_rows(plan)
    seen = release(plan, before)
    rows = other_rows(plan, seen.counted)
    rows[2] = rows[2] + 1
    with pytest.raises(Cut):
        explaining(seen, before, rows)


class Cut(Exception):
    """No other masks explain the rows."""


def other_rows(plan: Plan, counted: Collection[int]) -> dict[int, np.ndarray]:
    """Rows that are all others, with the same sum over those who are counted."""
    before, rows = some_rows(plan), some_rows(plan, 1)
    last = max(counted)
    rows[last] = rows[last] + plain(before, counted) - plain(rows, counted)
    return rows


def cut_plan() -> Plan:
    """Seven members, the last late; no mask between the first three and the next."""
    plan = a_plan(7)
    halves = [{0, 1, 2, 6}, {3, 4, 5, 6}]
    masks = tuple(
        tuple(j for j in range(7) if j != i and any({i, j} <= half for half in halves))
        for i in range(7)
    )
    plan.__dict__["graph"] = replace(plan.graph, masks=masks)
    return plan


def explaining(seen: Transcript, before: dict, after: dict) -> secure.Expand:
    """Masks under which other rows give the same transcript; opened ones stay as they are.

    Who is not counted gets another mask for its own seed, which is never opened. What the
    counted lack is carried along pairs of counted members, whose seeds are not opened
    either, to the root of a tree of such pairs.
    """
    plan, members = seen.plan, parties(seen.plan)
    moved: dict[bytes, np.ndarray] = {}
    gap = {i: before[i] - after[i] for i in seen.reports}
    for i in set(seen.reports) - seen.counted:
        moved[seed_of(plan, i)] = gap[i]
    for child, parent in tree(plan, seen.counted):
        seed = pair_seed(plan.hash, members[child].agreed[parent], child, parent)
        moved[seed] = gap[child] if child < parent else -gap[child]
        gap[parent] = gap[parent] + gap[child]
        gap[child] = np.zeros_like(gap[child])
    if any(gap[i].any() for i in seen.counted) or moved.keys() & opened_seeds(seen):
        raise Cut

    def expand(row: np.ndarray, seed: bytes, sign: int) -> None:
        add_mask(row, seed, sign)
        if seed in moved:
            row += secure.words(sign * moved[seed], plan.word)

    return expand


def opened_seeds(seen: Transcript) -> set[bytes]:
    """What the server puts together from the shares that it gets."""
    found: set[bytes] = set()
    for row in seen.counted:
        opened = secure.opened_of(seen.plan, row, seen.counted)
        given = seen.plan, row, opened, seen.reports[row].checks, seen.openings
        found |= set(secure._seeds(*given)[0])
    return found


def tree(plan: Plan, counted: Collection[int]) -> list[tuple[int, int]]:
    """(child, parent) of a forest on pairs of counted members, leaves first."""
    found, known = [], set()
    for root in sorted(counted):
        if root in known:
            continue
        known.add(root)
        line = deque([root])
        while line:
            parent = line.popleft()
            for child in plan.graph.masks[parent]:
                if child in counted and child not in known:
                    known.add(child)
                    found.append((child, parent))
                    line.append(child)
    return found[::-1]


# --- negative controls: each would break the secrecy, or the sum --------------------------


def test_a_masked_row_is_uniform() -> None:
    plan = a_plan(3, 20_000)
    rows = {i: np.zeros(plan.length, np.int64) for i in range(3)}
    seen = release(plan, rows)
    for sent in seen.reports.values():
        counts = np.bincount(sent.masked >> np.uint32(24), minlength=256)
        expected = plan.length / 256
        assert (
            (counts - expected) ** 2 / expected
        ).sum() < 350  # 255 degrees of freedom
    assert not seen.total.any()


def test_masks_used_for_another_row_show_the_difference_of_the_rows() -> None:
    """Why a device stores its report: the same plan and seeds with another row tell."""
    plan = a_plan(5)
    party, rows = parties(plan)[2], some_rows(plan)
    one, other = (
        secure.report(party, rows[i], bytes(16), os.urandom).masked for i in (0, 1)
    )
    difference = secure.lift(one - other)
    assert (difference == rows[0] - rows[1]).all()
    # In another release, and with another own seed, there is no such relation.
    later = replace(party, plan=a_plan(5, release="2"))
    own = bytes([1]) * 16
    for who, seed in ((later, bytes(16)), (party, own)):
        row = secure.report(who, rows[1], seed, os.urandom).masked
        assert (secure.lift(one - row) != rows[0] - rows[1]).all()


def test_no_row_has_both_of_its_secrets_opened() -> None:
    """Own seeds of the counted only, pair seeds only with those who are not counted."""
    plan = a_plan(9)
    seen = release(plan, some_rows(plan), reported=range(8), late=[2])
    counted = seen.counted
    for opened in seen.openings.values():
        assert set(opened) <= counted
        for row, shares in opened.items():
            gone = [j for j in plan.graph.masks[row] if j not in counted]
            assert gone == [2, 8] and len(shares) == 16 * (1 + len(gone))
            assert secure.opened_of(plan, row, counted)[0] == 0


def test_if_both_secrets_of_a_row_were_opened_the_server_would_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: the sum is right all the same, and the curious server's test notices."""
    plan, row = a_plan(6), 2
    rows = some_rows(plan)
    monkeypatch.setattr(
        secure,
        "opened_of",
        lambda plan, row, _: tuple(range(1 + len(plan.graph.masks[row]))),
    )
    seen = release(plan, rows)
    assert (seen.total == plain(rows, range(6))).all()
    seeds = opened_seeds(seen)
    bare = seen.reports[row].masked.copy()
    party = parties(plan)[row]
    pairs = [pair_seed(plan.hash, party.agreed[j], row, j) for j in party.neighbours]
    assert {seed_of(plan, row), *pairs} <= seeds
    add_mask(bare, seed_of(plan, row), -1)
    for j, seed in zip(party.neighbours, pairs, strict=True):
        add_mask(bare, seed, -1 if row < j else 1)
    assert (secure.lift(bare) == rows[row]).all()
    with pytest.raises(Cut):
        explaining(seen, rows, other_rows(plan, seen.counted))


def test_noise_drawn_again_for_a_report_that_was_sent_would_show() -> None:
    """Control: with the same masks, what differs between two answers is the noise.

    So answers of a device that draws anew each time have the row as their mean.
    """
    plan = a_plan(4, 2000)
    party, row = parties(plan)[1], np.full(2000, 7)
    answers = [
        secure.report(party, row + noise, bytes(16), os.urandom).masked
        for noise in np.random.default_rng(0).integers(-50, 51, (200, 2000))
    ]
    apart = secure.lift(answers[0][None] - np.array(answers))
    assert np.abs(apart).max() <= 100
    centred = apart.mean(
        0
    )  # of the first answer: its noise, nearly without the others'
    known = np.random.default_rng(0).integers(-50, 51, (200, 2000))[0]
    assert np.abs(centred - known).mean() < 2 * 29.2 / 200**0.5


def test_a_second_report_of_a_released_row_would_stay_masked_without_own_seeds() -> (
    None
):
    """Control: without b, opening all pair seeds of a late row uncovers it."""
    plan = a_plan(5)
    rows = some_rows(plan)
    seen = release(plan, rows, late=[0])
    party = parties(plan)[0]
    bare = seen.reports[0].masked
    for j in party.neighbours:  # the server gets all of these from the others' shares
        stream = mask(pair_seed(plan.hash, party.agreed[j], 0, j), plan.length, 32)
        bare = bare - stream  # 0 is the lowest
    assert (secure.lift(bare) != rows[0]).all()
    without_own = bare - mask(seed_of(plan, 0), plan.length, 32)
    assert (secure.lift(without_own) == rows[0]).all()


def test_members_with_different_plans_get_no_sum_and_are_named() -> None:
    plan, other = a_plan(5), a_plan(5, content=bytes([9]) * 32)
    rows = some_rows(plan)
    reports = {
        i: secure.report(party, rows[i], seed_of(plan, i), os.urandom)
        for i, party in enumerate([*parties(plan)[:4], parties(other)[4]])
    }
    checks = {i: reports[i].checks for i in range(4)}
    assert secure.disagrees(plan, 4, reports[4].checks, checks) == 0
    assert secure.disagrees(plan, 0, reports[0].checks, checks) is None
    everybody = set(range(5))
    total = np.sum([r.masked for r in reports.values()], axis=0).astype("<u4")
    for own in range(5):
        total = total - mask(seed_of(plan, own), plan.length, 32)
    assert (secure.lift(total) != plain(rows, everybody)).all()


# --- what a device and a server refuse ---------------------------------------------------


def test_one_list_per_release_is_signed() -> None:
    plan = a_plan(6)
    party, key = parties(plan)[1], signing_key(101)
    counted = set(range(5))
    first = secure.confirm(party, counted, key, reported=True)
    text = secure.view(plan, counted)
    again = secure.confirm(party, counted, key, reported=True, earlier=text)
    assert again == first
    for wrong, reported, earlier, sentence in (
        (set(range(6)), True, text, "has signed another list"),
        (counted, False, None, "counts a report that this device never sent"),
        ({0, 1, 2}, True, None, "a sum of 3 rows is not one of at least 4 of the 6"),
        ({0, 1, 2, 9}, True, None, "a sum of 4 rows"),
    ):
        with pytest.raises(IdiolectError, match=sentence):
            secure.confirm(party, wrong, key, reported=reported, earlier=earlier)
    absent = secure.confirm(parties(plan)[5], counted, signing_key(105), reported=False)
    assert secure.valid_signers(
        plan, counted, {5: absent, 1: first, 2: first, 3: b"x", 99: first},
        signing_publics(plan),
    ) == {1, 5}  # fmt: skip
    later = a_plan(6, release="2")
    assert not secure.valid_signers(later, counted, {1: first}, signing_publics(plan))


def test_what_a_device_does_not_open() -> None:
    plan = a_plan(6)
    seen = release(plan, some_rows(plan), reported=range(5))
    party, counted = parties(plan)[0], seen.counted
    held = {row: seen.reports[row].bundles[0] for row in counted - {0}}
    signed, mine = frozenset(range(6)), secure.view(plan, counted)
    assert secure.opening(party, counted, held, signed, mine) == seen.openings[0]
    for bundles, who, own, sentence in (
        (held, signed, None, "not those that this device signed"),
        (
            held,
            signed,
            secure.view(plan, range(6)),
            "not those that this device signed",
        ),
        (held, {0, 1}, mine, "2 members have signed the list and 4 must"),
        (held | {5: held[1]}, signed, mine, "not counted, or not shared"),
        (held | {0: held[1]}, signed, mine, "not counted, or not shared"),
    ):
        with pytest.raises(IdiolectError, match=sentence):
            secure.opening(party, counted, bundles, who, own)
    # A bundle that is another member's, or of another length, is left to the others.
    z = party.agreed[2]
    short = seal(plan.hash, z, 2, 0, b"short")
    spoilt = held | {1: held[2], 2: short, 3: b""}
    assert set(secure.opening(party, counted, spoilt, signed, mine)) == {4}


def test_a_row_with_few_counted_neighbours_is_not_opened() -> None:
    """A lying server would single a row out among neighbours who are not counted."""
    plan = a_plan(140, 1)
    row = 0
    near = plan.graph.masks[row]
    least = fewest_neighbours(140, len(near))
    strangers = sorted(set(range(140)) - set(near))
    counted = {row, *strangers, *near[: least - 1]}
    plan = replace(plan, required=len(counted) - 40)
    plan.__dict__["graph"] = a_plan(140, 1).graph
    holder = near[0]
    party = parties(plan)[holder]
    text = bytes(16 * (1 + len(near)))
    bundle = seal(plan.hash, party.agreed[row], row, holder, text)
    for more, allowed in ((set(), False), ({near[least - 1]}, True)):
        some = counted | more
        args = {row: bundle}, frozenset(range(140)), secure.view(plan, some)
        if allowed:
            assert set(secure.opening(party, some, *args)) == {row}
        else:
            with pytest.raises(IdiolectError, match=f"fewer than {least} counted"):
                secure.opening(party, some, *args)


def test_a_report_of_a_wrong_size_is_refused() -> None:
    plan = a_plan(5)
    good = release(plan, some_rows(plan)).reports[1]
    secure.refuse_report(plan, 1, good)
    bundles = dict(good.bundles)
    for wrong, what in (
        (replace(good, masked=good.masked[:-1]), "row"),
        (replace(good, masked=good.masked.astype("<u8")), "row"),
        (
            replace(good, bundles={j: b for j, b in bundles.items() if j}),
            "list of holders",
        ),
        (replace(good, bundles=bundles | {0: b"x"}), "bundle"),
        (replace(good, checks=good.checks[:-1]), "list of checks"),
    ):
        with pytest.raises(IdiolectError, match=f"member 101 has a {what} of a wrong"):
            secure.refuse_report(plan, 1, wrong)
    party = parties(plan)[1]
    for row, own in ((np.zeros(2, np.int64), bytes(16)), (np.zeros(3, int), bytes(15))):
        with pytest.raises(IdiolectError, match="make it again"):
            secure.report(party, row, own, os.urandom)


def test_segments_of_a_row_are_one_row() -> None:
    plan = a_plan(4, segments=(Segment(3, -20, 5), Segment(1, -8, 2)))
    rows = some_rows(plan)
    assert plan.length == 4
    assert (release(plan, rows).total == plain(rows, range(4))).all()


def test_holders_have_shares_of_all_seeds_and_no_seed_lies_in_the_open() -> None:
    plan = a_plan(7)
    seen = release(plan, some_rows(plan))
    party = parties(plan)[3]
    seeds = [seed_of(plan, 3)] + [
        pair_seed(plan.hash, party.agreed[j], 3, j) for j in party.neighbours
    ]
    sent = seen.reports[3]
    wire = b"".join([sent.masked.tobytes(), sent.checks, *sent.bundles.values()])
    opened = b"".join(s for rows in seen.openings.values() for s in rows.values())
    shares = [
        unseal(plan.hash, party.agreed[j], 3, j, b) for j, b in sent.bundles.items()
    ]
    for seed in seeds:
        assert seed not in wire and seed not in opened
        assert not any(seed in share for share in shares)
