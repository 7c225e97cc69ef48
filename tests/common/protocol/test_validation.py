"""What is checked in the values of a message."""

import dataclasses

import numpy as np
import pytest

from idiolect.common.protocol.messages import ProtocolError
from idiolect.common.protocol.validation import (
    check_step,
    check_users,
    finite_rows,
    row_norms,
    valid_votes,
)
from tests.common.protocol.test_packing import adapt_reply, rows


def test_stale_messages_are_refused():
    reply = adapt_reply()
    check_step(reply, "r", "adapt/0/0")
    with pytest.raises(ProtocolError, match="was expected"):
        check_step(reply, "r", "adapt/1/0")
    with pytest.raises(ProtocolError, match="was expected"):
        check_step(reply, "another run", "adapt/0/0")


def test_strangers_and_duplicates_are_refused():
    reply = adapt_reply(2)
    check_users(reply, ("u1", "u0", "u2"))
    with pytest.raises(ProtocolError, match="not asked"):
        check_users(reply, ("u0",))
    with pytest.raises(ProtocolError, match="twice"):
        check_users(dataclasses.replace(reply, users=("u0", "u0")), ("u0",))
    with pytest.raises(ProtocolError, match="not asked"):
        check_users(dataclasses.replace(reply, errors={"u7": "x"}), ("u0", "u1"))


def test_a_row_that_is_not_finite_costs_only_its_user():
    arrays = rows(4)
    arrays["layer.q"][1, 0, 0] = np.nan
    arrays["layer.v"][3, 1, 1] = np.inf
    assert finite_rows(arrays).tolist() == [True, False, True, False]


def test_row_norms_run_over_all_arrays():
    arrays = {"a": np.array([[3.0], [0.0]]), "b": np.array([[4.0], [1.0]])}
    np.testing.assert_allclose(row_norms(arrays), [5.0, 1.0])


def test_votes_are_finite_not_negative_and_of_norm_one_at_most():
    votes = np.array(
        [[0.6, 0.8], [1.0, 1.0], [-0.1, 0.1], [np.nan, 0], [0, 0], [1e30, 0]],
        np.float32,
    )
    assert valid_votes(votes).tolist() == [True, False, False, False, True, False]
