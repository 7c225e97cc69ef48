"""The users of a run on Flower's nodes: messages out, checked replies in.

Each method of `Remote` is one exchange. What comes back is not believed: shapes, types and
sizes are checked before anything is made of a reply (`messages`, `inbox`), and its values
here. What fails costs the users it is about; a phase goes on while the quorum holds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from flwr.app import RecordDict

from ...common.data.load import task_of
from ...common.data.metrics import measured_metrics, possible, released_metrics
from ...common.data.types import Item, names_of
from ...common.privacy.scrub import OFFERED, scrub
from ...common.protocol.messages import (
    MAX_ITEMS,
    AdaptReply,
    AdaptRequest,
    EvaluateReply,
    EvaluateRequest,
    OfferReply,
    OfferRequest,
    Outcome,
    PersonaliseReply,
    PersonaliseRequest,
    Reply,
    Request,
    Shapes,
    ShareReply,
    ShareRequest,
    VoteReply,
    VoteRequest,
)
from ...common.protocol.packing import unpack
from ...common.protocol.quantization import coded_shapes, decode
from ...common.protocol.validation import valid_votes
from ...common.secure.rows import Integers
from ...common.unlabeled.sets import Unlabeled, fingerprint
from . import work
from .exchange import AnyReply, Exchange, ask, report, require
from .live import LiveRun
from .masked import Asked, masked_sum
from .signing import sign_next
from .sums import (
    SEALED,
    Sum,
    nothing,
    sum_of_marks,
    sum_of_unit,
    sum_rows,
    unit_unsealed,
    unsealed,
)

# From rows and whose they are to their sum.
Add = Callable[[np.ndarray, Sequence[str]], np.ndarray]
NAMES = 64  # numbers in a user's training log, and characters of the name of each


@dataclass(frozen=True)
class Contribution(AdaptReply):
    """A reply of which the sum of the valid rows is kept; `users` are those it counts."""

    found: Sum


class Remote:
    """The cohort of a run with Flower."""

    def __init__(self, run: LiveRun) -> None:
        self._run = run

    @property
    def users(self) -> tuple[str, ...]:
        """The evaluated users that can be reached, in the order of the data."""
        run = self._run
        return tuple(u for u in names_of(run.dataset.users) if u in run.nodes)

    @property
    def development(self) -> tuple[str, ...]:
        """The development users that can be reached."""
        run = self._run
        return tuple(u for u in names_of(run.dataset.development) if u in run.nodes)

    def update(
        self,
        users: Sequence[str],
        clip: float,
        release: str,
        integers: Integers | None = None,
    ) -> Sum:
        """See `Cohort.update`. Without privacy the quorum is of all who may take part."""
        run, config, number = self._run, self._run.config, self._run.state.rounds
        label = f"round {number + 1}/{config.adapt.rounds}"
        exchange = Exchange("adapt", label, "train.adapt", run.weights["adapt"])
        place = f"adapt/{number}" + (f"/{release}" if release else "")
        fields = {
            "round": number,
            "clip": clip,
            "release": release,
            "shared": run.shared_to_send,
        }
        if integers and config.secagg.mode == "on":
            length = sum(math.prod(shape) for shape in run.shapes.values())
            asked = Asked(
                release or place,
                exchange,
                place,
                AdaptRequest,
                fields,
                length,
                self._requests,
            )
            found = Sum(*masked_sum(run, asked, users, integers))
            return unsealed(found, run.shapes, integers)
        total = nothing(run.shapes, integers)

        def add(reply: Contribution) -> Contribution:
            """Keep one sum, however many reply: they need not wait for each other."""
            total.add(reply.found)
            return replace(reply, found=nothing({}))

        replies, errors = ask(
            run,
            exchange,
            self._requests(AdaptRequest, place, users, fields),
            contribution(run.shapes, clip, config.signed_bytes, integers),
            add,
            coded_shapes(run.shapes) if config.signed_bytes else run.shapes,
        )
        total.users = [user for reply in replies for user in reply.users]
        if not release:
            require(run, exchange, len(total.users), run.population.adapting, errors)
        return unsealed(total, run.shapes, integers)

    def vote(
        self,
        users: Sequence[str],
        bank: Sequence[Item],
        release: str,
        integers: Integers | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """See `Cohort.vote`; a vote is finite, not negative, and of norm 1 at most."""
        if integers and self._run.config.secagg.mode == "on":
            exchange, place, fields = self._polling(bank, release)
            asked = Asked(
                release or place,
                exchange,
                place,
                VoteRequest,
                fields,
                len(bank),
                self._requests,
            )
            return self._masked_unit(asked, users, integers)
        add = partial(sum_of_unit, integers=integers)
        total, counted = self._ballots(users, bank, release, valid_votes, add)
        return unit_unsealed(total, counted, integers), counted

    def mark(self, users: Sequence[str], bank: Sequence[Item]) -> np.ndarray:
        """See `Cohort.mark`; marks are 0 and 1."""

        def add(marks: np.ndarray, _users: Sequence[str]) -> np.ndarray:
            return sum_of_marks(marks)

        return self._ballots(users, bank, "", valid_marks, add)[0]

    def _ballots(
        self,
        users: Sequence[str],
        bank: Sequence[Item],
        release: str,
        valid: Callable[[np.ndarray], np.ndarray],
        add: Add,
    ) -> tuple[np.ndarray, list[str]]:
        """Let the users vote over the bank, and add up what is valid."""
        exchange, place, fields = self._polling(bank, release)
        requests = self._requests(VoteRequest, place, users, fields)
        if release and not users:  # coins may name nobody: then only noise is released
            return add(np.zeros((0, len(bank))), ()), []
        why = "the vote is not finite, negative, or longer than 1."
        return self._sum(
            exchange, requests, VoteReply, "votes", len(bank), why, valid, add
        )

    def _polling(
        self, bank: Sequence[Item], release: str
    ) -> tuple[Exchange, str, dict[str, Any]]:
        """Sign the bank; the exchange of a vote, its place, and its fields."""
        if sign_next(self._run, "bank", [Unlabeled(item) for item in bank]):
            self._run.save()
        exchange = Exchange("pool", "votes", "query.vote", self._run.weights["pool"])
        fields = self._manifest() | {"bank": tuple(bank), "release": release}
        return exchange, f"pool/{release}" if release else "pool", fields

    def _masked_unit(
        self, asked: Asked, users: Sequence[str], integers: Integers
    ) -> tuple[np.ndarray, list[str]]:
        """A masked sum of rows of norm 1 at most, as floats, and whose it is."""
        sealed, counted = masked_sum(self._run, asked, users, integers)
        return unit_unsealed(sealed[SEALED], counted, integers), counted

    def offer(
        self, users: Sequence[str], bank: Sequence[Item], supported: tuple[int, ...]
    ) -> Mapping[str, Sequence[Item]]:
        """See `Cohort.offer`; what was not scrubbed, and what is too much, is dropped."""
        exchange = Exchange(
            "pool", "scrubbed items", "query.offer", self._run.weights["pool"]
        )
        fields = self._manifest() | {"bank": tuple(bank), "supported": supported}
        requests = self._requests(OfferRequest, "pool/offer", users, fields)
        items = self._items(exchange, requests, OfferReply, OFFERED)
        return {
            user: [item for item in offered if is_scrubbed(item)][:OFFERED]
            for user, offered in items.items()
        }

    def share(self, users: Sequence[str]) -> Mapping[str, Sequence[Item]]:
        """See `Cohort.share`."""
        exchange = Exchange(
            "pool", "raw text of others", "query.share", self._run.weights["pool"]
        )
        requests = self._requests(ShareRequest, "pool", users, {})
        return self._items(exchange, requests, ShareReply, MAX_ITEMS)

    def hand_out(self, unlabeled: Sequence[Unlabeled], release: str) -> None:
        """Sign the unlabeled set."""
        sign_next(self._run, self._run.config.unlabeled.kind, unlabeled, release)

    def train(
        self, users: Sequence[str], method: str, rate: float, trial: bool
    ) -> dict[str, Outcome]:
        """See `Cohort.train`; in the order of `users`."""
        run, state = self._run, self._run.state
        label = f"{method} lr {rate:g}" + (", development" if trial else "")
        weight = run.weights[work.training(method, trial)]
        exchange = Exchange("personalise", label, "train.personalise", weight)
        fields = {
            "method": method,
            "learning_rate": rate,
            "trial": trial,
            "unlabeled": state.unlabeled or (),
            "shared": run.shared_to_send,
            **(self._manifest() if state.unlabeled else NO_MANIFEST),
        }
        voters = state.took_part.get("votes", {})
        requests = [
            (node, replace(one, voted=tuple(n for n in one.users if n in voters)))
            for node, one in self._requests(
                PersonaliseRequest,
                f"personalise/{label}",
                users,
                {**fields, "voted": ()},
            )
        ]
        replies, errors = self._ask(exchange, requests, PersonaliseReply)
        outcomes = {
            user: outcome
            for reply in replies
            for user, outcome in reply.outcomes.items()
            if user in reply.users
        }
        found = {u: outcomes[u] for u in users if u in outcomes and _sane(outcomes[u])}
        why = "what it says of its training has no meaning."
        bad = {user: why for user in outcomes if user not in found}
        self._report(exchange, requests, len(found), errors, bad, required=not trial)
        return found

    def measure(
        self, users: Sequence[str], method: str, rate: float, generate: bool
    ) -> dict[str, dict[str, float]]:
        """See `Cohort.measure`; metrics are finite, and no others than asked for."""
        exchange, requests = self._measuring(users, method, rate, generate)
        replies, errors = self._ask(exchange, requests, EvaluateReply)
        names = measured_metrics(task_of(self._run.config.task).kind, generate)
        found, bad = dict[str, dict[str, float]](), dict[str, str]()
        for reply in replies:
            for user in reply.users:
                metrics = reply.metrics.get(user, {})
                if not metrics.keys() <= names:  # each name would be a row of the table
                    bad[user] = "it has metrics that nobody asked for."
                elif "nll" in metrics and possible(metrics):
                    found[user] = metrics
                else:
                    bad[user] = "its metrics are missing, or values that none can have."
        self._report(exchange, requests, len(found), errors, bad)
        return found

    def sum_metrics(
        self,
        users: Sequence[str],
        method: str,
        rate: float,
        release: str,
        integers: Integers | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """See `Cohort.sum_metrics`; rows are checked as votes are."""
        run, generate = self._run, self._run.config.evaluate.generate
        width = len(released_metrics(task_of(run.config.task).kind, generate)) + 1
        if integers and run.config.secagg.mode == "on":
            exchange, place, fields = self._evaluating(method, rate, generate, release)
            asked = Asked(
                release,
                exchange,
                place,
                EvaluateRequest,
                fields,
                width,
                self._requests,
            )
            return self._masked_unit(asked, users, integers)
        exchange, requests = self._measuring(users, method, rate, generate, release)
        why = "its row of metrics is not finite, negative, or longer than 1."
        total, counted = self._sum(
            exchange,
            requests,
            EvaluateReply,
            "sums",
            width,
            why,
            valid_votes,
            partial(sum_of_unit, integers=integers),
        )
        return unit_unsealed(total, counted, integers), counted

    # --- what exchanges share --------------------------------------------------------

    def _measuring(
        self,
        users: Sequence[str],
        method: str,
        rate: float,
        generate: bool,
        release: str = "",
    ) -> tuple[Exchange, list[tuple[int, Request]]]:
        exchange, place, fields = self._evaluating(method, rate, generate, release)
        return exchange, self._requests(EvaluateRequest, place, users, fields)

    def _evaluating(
        self, method: str, rate: float, generate: bool, release: str
    ) -> tuple[Exchange, str, dict[str, Any]]:
        """The exchange of a method's metrics, its place, and its fields."""
        run = self._run
        fields = {
            "method": method,
            "learning_rate": rate,
            "unlabeled_hash": fingerprint(run.state.unlabeled or ()),
            "generate": generate,
            "release": release,
            "shared": run.shared_to_send,
        }
        weight = run.weights[work.measuring(method, generate)]
        exchange = Exchange("evaluate", method, "evaluate", weight)
        return exchange, f"evaluate/{release or f'{method}/{generate}'}", fields

    def _manifest(self) -> dict[str, Any]:
        state = self._run.state
        return {"manifest": state.manifest, "signature": state.signature}

    def _requests(
        self,
        cls: type[Request],
        place: str,
        users: Sequence[str],
        fields: Mapping[str, Any],
    ) -> list[tuple[int, Any]]:
        """A request for each stacking group: up to ``stack`` users of a node."""
        run, stack = self._run, self._run.config.engine.stack
        at: dict[int, list[str]] = {}
        for user in users:
            at.setdefault(run.nodes[user], []).append(user)
        groups = [
            (node, names[start : start + stack])
            for node, names in at.items()
            for start in range(0, len(names), stack)
        ]
        return [
            (node, cls(**run.head(f"{place}/{i}", names), **fields))
            for i, (node, names) in enumerate(groups)
        ]

    def _ask(
        self,
        exchange: Exchange,
        requests: Sequence[tuple[int, Request]],
        cls: type[AnyReply],
        row: Shapes = MappingProxyType({}),
        texts: int = 0,
    ) -> tuple[list[AnyReply], dict[str, str]]:
        """Ask for replies of a kind, with arrays of these shapes per user, if any."""
        read = partial(unpack, cls, shapes=partial(with_users, row))
        return ask(self._run, exchange, requests, read, row=row, texts=texts)

    def _report(
        self,
        exchange: Exchange,
        requests: Sequence[tuple[int, Request]],
        got: int,
        errors: Mapping[str, str],
        bad: Mapping[str, str] = MappingProxyType({}),
        required: bool = True,
    ) -> None:
        """Report what was refused of the replies, and go on only if the quorum holds."""
        report(self._run, exchange, bad)
        if required:
            asked = sum(len(request.users) for _, request in requests)
            require(self._run, exchange, got, asked, {**errors, **bad})

    def _items(
        self,
        exchange: Exchange,
        requests: Sequence[tuple[int, Request]],
        cls: type[Any],
        texts: int,
    ) -> dict[str, Sequence[Item]]:
        """User -> items, of all who answered."""
        replies, errors = self._ask(exchange, requests, cls, texts=texts)
        items = {
            user: found
            for reply in replies
            for user, found in reply.items.items()
            if user in reply.users
        }
        self._report(exchange, requests, len(items), errors)
        return items

    def _sum(  # eight parameters: what is asked, what of it is summed, and how
        self,
        exchange: Exchange,
        requests: Sequence[tuple[int, Request]],
        cls: type[Reply],
        name: str,
        width: int,
        why: str,
        valid: Callable[[np.ndarray], np.ndarray],
        add: Add,
    ) -> tuple[np.ndarray, list[str]]:
        """Add up the valid rows of an array [users, width]: the sum, and whose they are.

        `why` is what is said of those whose rows are not valid.
        """
        replies, errors = self._ask(exchange, requests, cls, {name: (width,)})
        total = add(np.zeros((0, width)), ())
        counted, bad = list[str](), dict[str, str]()
        for reply in replies:
            rows = getattr(reply, name)[name]
            good = valid(rows)
            users = [u for u, fine in zip(reply.users, good, strict=True) if fine]
            total += add(rows[good], users)
            counted += users
            bad |= {
                u: why for u, fine in zip(reply.users, good, strict=True) if not fine
            }
        self._report(exchange, requests, len(counted), errors, bad)
        return total, counted


NO_MANIFEST = {"manifest": "", "signature": ""}


def contribution(
    shapes: Shapes, clip: float, signed_bytes: bool, integers: Integers | None = None
) -> Callable[[RecordDict], Contribution]:
    """Return a reader of replies that keeps the sum of their valid rows."""
    sent = coded_shapes(shapes) if signed_bytes else shapes

    def read(record: RecordDict) -> Contribution:
        reply = unpack(AdaptReply, record, partial(with_users, sent))
        rows = decode(reply.rows, shapes) if signed_bytes else reply.rows
        found = sum_rows(reply.users, rows, clip, integers)
        bad = [user for user in reply.users if user not in found.users]
        errors = reply.errors | dict.fromkeys(bad, "the update is not finite.")
        kept = {"users": tuple(found.users), "errors": errors, "rows": {}}
        return Contribution(**vars(reply) | kept, found=found)

    return read


def with_users(shapes: Shapes, fields: Mapping[str, Any]) -> Shapes:
    """Shapes of a reply with one row per user it names."""
    return {name: (len(fields["users"]), *shape) for name, shape in shapes.items()}


def valid_marks(votes: np.ndarray) -> np.ndarray:
    """Which rows [users, bank] are marks: nothing but 0 and 1. bool [users]."""
    return ((votes == 0) | (votes == 1)).all(axis=1)


def is_scrubbed(item: Item) -> bool:
    """Whether a device did scrub what it sent: scrubbing again changes nothing."""
    return all(scrub(text) == text for text in (item.prompt.input, item.target))


def _sane(outcome: Outcome) -> bool:
    """Whether it is what a node of ours may say; ours log about fifteen numbers."""
    named = len(outcome.log) <= NAMES and all(len(n) <= NAMES for n in outcome.log)
    return named and (outcome.alpha is None or 0 <= outcome.alpha < 1)
