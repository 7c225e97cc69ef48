"""What users agreed to, checked before a request is carried out for them."""

import time
from collections.abc import Sequence
from dataclasses import replace

from ...common.config import SETLESS
from ...common.data.types import User
from ...common.errors import refuse_if
from ...common.privacy.protected import charged, planned
from ...common.protocol.manifest import accept
from ...common.protocol.manifest import parse as parse_manifest
from ...common.protocol.messages import (
    AdaptRequest,
    EvaluateRequest,
    OfferRequest,
    PersonaliseRequest,
    VoteRequest,
)
from ...common.unlabeled.sets import UnlabeledSet
from ..owner.consent import Refusal
from . import state
from .host import Node, each_alone


def taking_part(
    request: AdaptRequest | VoteRequest | EvaluateRequest,
    node: Node,
    stage: str,
    outflow: str,
    content: str,
    refused: dict[str, str] | None = None,
) -> tuple[tuple[User, ...], dict[str, str]]:
    """Count a release as taken part in; return who takes part, and why others do not.

    `content` is a hash of what the rows depend on, beside the agreed configuration. Of a
    masked sum its plan counts too: other members would be another sum.
    """
    # A run's configuration is agreed to, and a request that is not of its kind would get
    # the row itself. A simulation's clear metrics are in no sum.
    masked, summed = node.config.secagg.mode == "on", request.summing is not None
    refuse_if(
        masked != summed and not node.simulated,
        f"the run {'has' if masked else 'has no'} masked sums, and the request asks for a "
        f"row {'without' if masked else 'with'} masks: it is not answered.",
        Refusal,
    )
    if request.summing:
        content = f"{content} {request.summing.plan}"
    node.permit(outflow, node.config)
    refuse_if(
        charged(node.config, outflow) and not request.release,
        "the request names no release of the ledger, though privacy.mode is 'central': "
        "it is not answered.",
    )

    most = planned(node.config).get(outflow, 0)
    asked = [user for user in node.users if user.id not in (refused or {})]

    def count(user: User) -> None:
        release = request.release
        state.take_part(node.store, user.id, stage, release, content, most)

    taking, errors = each_alone(node, asked, count)
    willing = tuple(user for user in asked if user.id in taking)
    return willing, errors | (refused or {})


def check_set(
    request: PersonaliseRequest, node: Node, user: User, content: str
) -> None:
    """Refuse an unlabeled set that the run did not sign, unless none is needed."""
    kind = node.config.unlabeled.kind
    if request.unlabeled or not (kind == "self" or request.method in SETLESS):
        check_manifest(request, node, user, content, kind)


def check_manifest(
    request: VoteRequest | OfferRequest | PersonaliseRequest,
    node: Node,
    user: User,
    content: str,
    kind: str,
) -> None:
    """Refuse what the run's key did not sign, or what is older than what was seen."""
    before = state.agreed(node.store, user.id)
    seen = accept(
        request.manifest,
        request.signature,
        request.run,
        content,
        before.seen,
        time.time(),
        kind,
    )
    if seen != before.seen:
        state.keep(node.store, user.id, replace(before, seen=seen))


def handed_out(
    request: PersonaliseRequest, node: Node, users: Sequence[User]
) -> UnlabeledSet:
    """Return the unlabeled set with its floor, and who of the users voted for it."""
    if not request.unlabeled:
        return UnlabeledSet()
    manifest = parse_manifest(request.manifest)
    if not manifest.vote:
        return UnlabeledSet(request.unlabeled, manifest.floor)

    def voted(user: User) -> bool:
        """Both sides say so: a vote that came too late is not in the sum."""
        took = state.agreed(node.store, user.id).took.get("votes", {})
        return manifest.vote in took and user.id in request.voted

    voters = frozenset(user.id for user in users if voted(user))
    return UnlabeledSet(request.unlabeled, manifest.floor, voters)
