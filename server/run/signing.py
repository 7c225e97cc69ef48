"""Signed manifests: how devices know a bank or an unlabeled set for the run's own."""

import math
import time
from collections.abc import Sequence

from ...common.protocol.manifest import Manifest, canonical, digest, parse, sign
from ...common.unlabeled.sets import Unlabeled, fingerprint
from .live import LiveRun

VALID_DAYS = 30.0  # for which what was signed is valid; renewed on resume


def sign_next(
    run: LiveRun, kind: str, items: Sequence[Unlabeled], vote: str = ""
) -> bool:
    """Sign the next manifest of the run's chain, for the checkpoint to keep.

    What was signed already, before a crash, is not signed again while it is valid; the
    result says whether there is something new to save.

    Parameters
    ----------
    run, kind
        The run, and ``bank`` or the kind of unlabeled set.
    items
        What it is about.
    vote
        The ledger's id of the vote that the weights are; empty without privacy.
    """
    config, state, now = run.config, run.state, time.time()
    content = fingerprint(items)
    last = parse(state.manifest) if state.manifest else None
    same = last and (last.kind, last.content, last.vote) == (kind, content, vote)
    if last and same and last.expires > now:
        return False
    guaranteed = config.privacy.mode == "central" and not run.ledger.open_releases
    spent = run.ledger.spent().release if guaranteed else math.inf
    manifest = Manifest(
        run=state.id,
        kind=kind,
        version=state.version + 1,
        previous=digest(last) if last else "",
        content=content,
        count=len(items),
        features=config.unlabeled.features,
        vote=vote,
        floor=state.floor if kind != "bank" else 0.0,
        epsilon=spent if math.isfinite(spent) else None,
        created=now,
        expires=now + 86_400 * VALID_DAYS,
    )
    state.version += 1
    state.manifest = canonical(manifest).decode()
    state.signature = sign(manifest, run.signing_key)
    return True


def renew(run: LiveRun) -> None:
    """Sign the unlabeled set again where its manifest has expired, as in a long pause."""
    items, kind = run.state.unlabeled, run.config.unlabeled.kind
    if items and sign_next(run, kind, items, parse(run.state.manifest).vote):
        run.save()
