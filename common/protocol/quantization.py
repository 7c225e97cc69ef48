"""The shared adapter's B on the wire: one signed byte per coordinate.

A projection's B, or a user's change of it, travels as integers in [-127, 127] and one
scale, the largest magnitude over 127: a quarter of float32. What is sent upwards is
rounded at random, so that its expectation is the exact update (Alistarh et al. 2017,
QSGD): small coordinates are not lost round after round, and a device keeps no residual,
as error feedback would need, which grows stale where users take part now and then. What
is sent downwards is rounded to nearest; the server keeps the exact sum, so nothing of a
round is lost to the next.

Where ``privacy.mode`` is `central` the default is float32: rounding is one more thing to
argue about, and there the noise decides the quality.
"""

from collections.abc import Sequence

import numpy as np

from ..privacy.noise import Source, uniform
from ..seeds import numpy_generator
from .messages import CODES, Rows, Shapes

SCALES = "scales"
LEVELS = 127


def encode(rows: Rows, random: Source | None = None) -> Rows:
    """Round rows to signed bytes.

    Parameters
    ----------
    rows
        Projection -> float32 [out, r].
    random
        Where the random bits of stochastic rounding come from; None rounds to nearest.

    Returns
    -------
    dict
        ``codes`` int8 [sum of out * r], projection after projection in the order of their
        names, and ``scales`` float32 [projections]. What is not finite has a scale that is
        not finite either.
    """
    names = sorted(rows)
    scales = np.array([np.abs(rows[n]).max() / LEVELS for n in names], np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.concatenate(
            [
                np.ravel(rows[name]) / (scale or np.float32(1))
                for name, scale in zip(names, scales, strict=True)
            ]
        )
    steps = np.where(np.isfinite(steps), steps, 0.0)
    if random is None:
        codes = np.rint(steps)
    else:
        codes = np.floor(steps + 1 - uniform(steps.size, random))
    return {CODES: codes.clip(-LEVELS, LEVELS).astype(np.int8), SCALES: scales}


def decode(coded: Rows, shapes: Shapes) -> Rows:
    """Return what `encode` rounded, projection -> float32; leading axes are kept.

    Parameters
    ----------
    coded
        ``codes`` int8 [..., sum of sizes] and ``scales`` float32 [..., projections].
    shapes
        Projection -> shape of one B.
    """
    names = sorted(shapes)
    ends = np.cumsum([int(np.prod(shapes[name])) for name in names])
    parts = np.split(coded[CODES], ends[:-1], axis=-1)
    return {
        name: (part * coded[SCALES][..., i, None]).reshape(
            *part.shape[:-1], *shapes[name]
        )
        for i, (name, part) in enumerate(zip(names, parts, strict=True))
    }


def coded_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of `encode`'s arrays for a B of these shapes."""
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    return {CODES: (total,), SCALES: (len(shapes),)}


def update_codes(
    rows: Rows, seed: int, users: Sequence[str], round_number: int
) -> Rows:
    """Round the users' updates of a round at random, each by bits of its own.

    Asked again, a device answers the same bits.

    Parameters
    ----------
    rows
        Projection -> float32 [users, out, r].
    seed, users, round_number
        What the random bits are drawn from.

    Returns
    -------
    dict
        ``codes`` [users, sum of out * r] and ``scales`` [users, projections].
    """
    coded = [
        encode(
            {name: array[k] for name, array in rows.items()},
            numpy_generator(seed, "wire", user, round_number).bytes,
        )
        for k, user in enumerate(users)
    ]
    shapes = coded_shapes({name: array.shape[1:] for name, array in rows.items()})
    return {
        name: np.array([each[name] for each in coded]).reshape(-1, *shape)
        for name, shape in shapes.items()
    }


def as_received(rows: Rows, signed_bytes: bool) -> Rows:
    """What every device makes of the B that the server sends."""
    if not signed_bytes:
        return rows
    return decode(encode(rows), {name: array.shape for name, array in rows.items()})
