"""A witness vouches for members: what counts as its signature, and who is a stranger."""

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from idiolect.common.protocol.manifest import new_key, public_key
from idiolect.common.secure.directory import Entry, make_entry, make_keys, root
from idiolect.common.secure.witness import strangers, vouch, vouched

SEED, OTHER = new_key(), new_key()
WITNESS = public_key(SEED)
RUN, SERVER = "run", "ab" * 32


def member(number: int, seed: bytes = SEED, server: str = SERVER) -> Entry:
    """A device that a witness with this key vouches for, at this server."""
    identity = ec.generate_private_key(ec.SECP384R1())
    bare = make_entry(number, identity, make_keys(), RUN, SERVER)
    return dataclasses.replace(bare, voucher=vouch(seed, server, bare.identity))


def test_nobody_is_a_stranger_whom_the_witness_vouches_for():
    assert strangers([member(1), member(2)], WITNESS, RUN, SERVER) == []


def hijacked() -> Entry:
    """The server's own keys of the run under the name of a device that is vouched for."""
    ours = member(7)
    agreement, signing = (key.hex() for key in make_keys().publics)
    return dataclasses.replace(ours, agreement=agreement, signing=signing)


@pytest.mark.parametrize(
    "stranger",
    [
        member(7, OTHER),  # the operator plays witness
        member(7, server="cd" * 32),  # vouched for at another server
        dataclasses.replace(member(7), voucher=""),
        dataclasses.replace(member(7), voucher=member(8).voucher),
        dataclasses.replace(member(7), voucher="no digits"),
        dataclasses.replace(member(7), voucher="00" * 64),
        dataclasses.replace(member(7), identity=member(8).identity),
        dataclasses.replace(member(7), signature=member(8).signature),
        hijacked(),
    ],
    ids=[
        *(
            "another-witness",
            "another-server",
            "none",
            "of-another-device",
            "no-digits",
        ),
        *("zeros", "another-identity", "another-signature", "keys-of-the-server"),
    ],
)
def test_the_server_cannot_invent_a_member(stranger):
    assert strangers([member(1), stranger], WITNESS, RUN, SERVER) == ["7"]


def test_a_witness_that_is_no_key_vouches_for_nobody():
    known = member(1)
    for witness in ("", "xy", "00"):
        assert not vouched(known.voucher, witness, SERVER, known.identity)


def test_all_members_must_see_the_same_vouchers():
    known = member(1)
    assert root([known]) != root([dataclasses.replace(known, voucher="")])
