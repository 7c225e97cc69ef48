"""Checks of a message that need its values: who, which step, which numbers.

A user's row that is not finite, or a vote that is negative or too large, is dropped
(`finite_rows`, `valid_votes`); the other users of the reply count.
"""

import numpy as np

from .messages import Message, Reply, Rows, Shapes, array_type, refuse_if
from .packing import check_names


def check_step(message: Message, run: str, step: str) -> None:
    """Refuse a message that belongs to another run or another step.

    Raises
    ------
    ProtocolError
        The message is stale or misdirected.
    """
    refuse_if(
        (message.run, message.step) != (run, step),
        f"a message for step {message.step!r:.80} of run {message.run!r:.80} came where "
        f"step '{step}' of run '{run}' was expected; it is ignored.",
    )


def check_users(reply: Reply, asked: tuple[str, ...]) -> None:
    """Refuse a reply about a user who was not asked for, or twice about the same user.

    Raises
    ------
    ProtocolError
        The users of the reply are not among those asked, or one is repeated.
    """
    refuse_if(
        len(set(reply.users)) != len(reply.users),
        "a reply names the same user twice.",
    )
    strangers = {*reply.users, *reply.errors} - set(asked)
    one = min(strangers, default="")
    refuse_if(strangers, f"a reply is about the user {one!r:.80}, who was not asked.")


def check_rows(rows: Rows, shapes: Shapes) -> None:
    """Refuse arrays that are not finite, or of unexpected names, shapes or types.

    Raises
    ------
    ProtocolError
        The sentence names the first such array.
    """
    check_names(rows, shapes)
    for name, array in rows.items():
        dtype, shape = array_type(name), tuple(shapes[name])
        refuse_if(
            array.shape != shape or array.dtype != dtype,
            f"array '{name}' is {array.dtype} of the shape {array.shape!s:.80}: {dtype} of "
            f"{shape} is expected.",
        )
        refuse_if(not np.isfinite(array).all(), f"array '{name}' is not finite.")


def finite_rows(rows: Rows) -> np.ndarray:
    """Find the users whose rows are finite in every array.

    Parameters
    ----------
    rows
        Name -> [users, ...].

    Returns
    -------
    numpy.ndarray
        bool [users].
    """
    flags = [np.isfinite(a).all(axis=tuple(range(1, a.ndim))) for a in rows.values()]
    return np.logical_and.reduce(flags)


def row_norms(rows: Rows) -> np.ndarray:
    """L2 norm of each user's row over all arrays together, float64 [users]."""
    squares = [
        np.square(a, dtype=np.float64).sum(axis=tuple(range(1, a.ndim)))
        for a in rows.values()
    ]
    return np.sqrt(np.sum(squares, axis=0))


def flat_row(rows: Rows, place: int) -> np.ndarray:
    """One user's row as a vector: its arrays one after the other, by their names."""
    return np.concatenate([rows[name][place].ravel() for name in sorted(rows)])


def valid_votes(votes: np.ndarray) -> np.ndarray:
    """Find the rows [users, length] that are finite, not negative and at most 1 long (L2).

    Votes and rows of bounded metrics are. They were rounded to float32, so a norm slightly
    above 1 is accepted; the sum clips each row to slightly less than 1 (`run.sums`).

    Returns
    -------
    numpy.ndarray
        bool [users].
    """
    good = np.asarray(np.isfinite(votes).all(axis=1))
    safe = np.where(good[:, None], votes, 0.0)
    return good & (safe >= 0).all(axis=1) & (row_norms({"votes": safe}) <= 1 + 1e-5)
