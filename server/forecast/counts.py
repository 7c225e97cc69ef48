"""What the engine will process in a job, counted without computing it.

The rows, batches and layouts are made by the functions that make them in the run
(`training.steps_of`, `scoring.chunks`, `draws.draw_for`, …); only the model is not asked. A
test compares the numbers with those of a run. What a model writes is not known before:
samples are taken to be as long as the user's own texts (`drawn`), outputs as long as the
held-out texts (`expected_steps`).
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from ...common.config import PERSONAS, UNTRAINED, Config, Privacy
from ...common.config.keys import CROSSED, FITTED
from ...common.config.methods import BY_NAME
from ...common.data.load import task_of
from ...common.data.types import Dataset, Item, User
from ...common.engine.backbone import (
    Backbone,
    Encoded,
    lowest_adapted,
    projections,
)
from ...common.engine.fitting import encode_all, fits, output_budget
from ...common.engine.memory import Saving, needed_bytes, products
from ...common.engine.reference import Reference
from ...common.engine.scoring import chunks, collate
from ...common.engine.training import (
    KINDS,
    Batch,
    Example,
    TrainingSet,
    TrainingSettings,
    divided,
    laid_out,
    largest,
    saving_of,
    steps_of,
)
from ...common.methods.evaluation import AT_ONCE, with_rivals
from ...common.methods.examples import newest
from ...common.methods.pag import PROFILE_TOKENS, PROFILED, with_history
from ...common.methods.personalise import training_settings
from ...common.methods.rag import prompted
from ...common.methods.shared import training_set, update_settings
from ...common.methods.strength import FOLDS, PASSES, kept_back
from ...common.methods.table import module_of
from ...common.unlabeled.alpha import alpha_of
from ...common.unlabeled.draws import Draw, draw_for
from ...common.unlabeled.nearness import inputs_of, readable
from ...common.unlabeled.samples import SAMPLED_AT_ONCE
from ...common.unlabeled.sets import UnlabeledSet, population_share
from ...common.unlabeled.votes import VOTES
from ..run.local import Local, local_run
from ..run.pool import pool, public_text
from .parts import Part, Work


@dataclass(eq=False)
class Counting:
    """Counts one job; `parts` does all of it.

    Attributes
    ----------
    config, backbone, dataset
        Of the job; learning rates are numbers, users have only what fits.
    nodes
        Processes that the users are dealt to.
    development
        Whether development users are measured in place of the others (studies).
    memory
        Bytes that the largest training step takes above the backbone.
    seconds
        Of one user's draw and alpha, as measured here.
    again
        What training repeats: share of a forward pass per trained token.
    cached
        The most tokens whose keys and values are kept while texts are written.
    scale
        How many users each counted one stands for (`sample`).
    """

    config: Config
    backbone: Backbone
    dataset: Dataset
    nodes: int
    development: bool = False
    memory: float = 0.0
    seconds: float = 0.0
    again: float = 0.0
    cached: int = 0
    scale: float = 1.0
    _scored: set[tuple[tuple[int, ...], ...]] = field(default_factory=set)
    _embedded_users: set[str] = field(default_factory=set)
    _near_users: set[str] = field(default_factory=set)
    _handed: UnlabeledSet = UnlabeledSet()
    _laid_out: dict[str, tuple[int, int]] = field(default_factory=dict)

    def parts(self) -> Iterator[Part]:
        """All parts, in the order of the run."""
        handed = handed_out(self.config, self.backbone, self.dataset)
        self._handed = handed
        yield from self._adapt()
        yield from self._pool()
        if self.development:
            users = self.dataset.development
            self.dataset = replace(self.dataset, users=users, development=())
        everybody = self.dataset.everybody
        began = time.perf_counter()
        reference = Reference(self.backbone)
        learners = {user.id: self._learning(user)[0] for user in everybody}
        draws = {
            user.id: drawn(
                reference, user, handed, self.config, learners[user.id].history
            )
            for user in everybody
        }
        if self.config.unlabeled.alpha_features == "ngrams":
            for user in everybody:
                alpha_of(reference, learners[user.id], draws[user.id], self.config)
        self.seconds = (time.perf_counter() - began) / len(everybody)
        trained = [m for m in self.config.method_list if m not in UNTRAINED]
        rates = self.config.learning_rate_list
        rated = [m for m in trained if BY_NAME[m].rated]
        for method in rated if len(rates) > 1 else ():
            for rate in rates:
                label = f"{method} lr {rate:g}, development"
                for node, group in self.groups(self.dataset.development):
                    made = self._trained(method, group, draws)
                    made["scores"] = self._held_out(group)
                    yield from _parts(made, label, node, group, method, True)
        for method in trained:
            for node, group in self.groups(self.dataset.users):
                made = self._trained(method, group, draws)
                yield from _parts(made, method, node, group, method)
        for method in self.config.method_list:
            yield from self._measured(method)

    def groups(self, users: Sequence[User]) -> Iterator[tuple[int, list[User]]]:
        """Stacking groups of some users, and the node of each.

        As `client.node.app.residents_of` deals everybody, and `remote` groups them.
        """
        everybody = self.dataset.everybody
        hosted = self.config.users_per_node or math.ceil(len(everybody) / self.nodes)
        needed = math.ceil(len(everybody) / hosted)
        home = {user.id: i % needed for i, user in enumerate(everybody)}
        size = self.config.engine.stack
        for node in range(needed):
            here = [user for user in users if home[user.id] == node]
            for start in range(0, len(here), size):
                yield node, here[start : start + size]

    # --- phases --------------------------------------------------------------------------

    def _adapt(self) -> Iterator[Part]:
        """The rounds; with privacy, the share of the users who take part on average."""
        config, users = self.config, self.dataset.development
        if config.adapt.users == "all":
            users = (*self.dataset.users, *users)
        share = config.privacy.sampling if config.privacy.mode != "off" else 1.0
        for number in range(config.adapt.rounds):
            for node, group in self.groups(users):
                sets = [training_set(self.backbone, user, number) for user in group]
                tokens, more = self._steps(sets, update_settings(config), shared=True)
                work = Work(adapted=tokens, scored=more).times(share)
                label = f"round {number + 1}"
                yield Part("adapt", label, node, len(group), work)

    def _pool(self) -> Iterator[Part]:
        """The bank: its embedding, or its writing by the shared adapter."""
        config, backbone = self.config, self.backbone
        if config.unlabeled.kind != "votes":
            return
        if config.unlabeled.features == "backbone":
            bank = encode_all(backbone, self._bank())
            tokens = round(scored_tokens(backbone, [bank]) / self.scale)  # once for all
            for node, group in self.groups(self.dataset.everybody):
                own = [encode_all(backbone, u.history[-VOTES:]) for u in group]
                more = sum(scored_tokens(backbone, [items]) for items in own)
                work = Work(scored=more + tokens)
                yield Part("pool", "votes", node, len(group), work)
                tokens = 0
        if config.unlabeled.bank_from == "shared":
            rows = encode_all(backbone, self._bank())
            work = self._sampled(rows).times(1 / self.scale)
            yield Part("pool", "bank", 0, 0, work)

    def _bank(self) -> list[Item]:
        bank = public_text(self.config, self.dataset, self.config.unlabeled.bank)
        return [item for item in bank if fits(self.backbone, item)]

    def _trained(
        self, method: str, group: Sequence[User], draws: dict[str, Draw]
    ) -> dict[str, Work]:
        """Phase -> work of training a group with one method at one rate."""
        config, backbone, module = self.config, self.backbone, module_of(method)
        reference = Scoring(backbone, self._scored)
        written = 0
        if BY_NAME[method].disliked and config.task not in PERSONAS:
            written = config.disliked
            group = [_as_if_disliked(user, written) for user in group]
        group, kept = zip(*map(self._learning, group), strict=True)
        settings = training_settings(config, 1.0)
        if BY_NAME[method].rated:
            sets = [module.training_set(reference, u, draws[u.id], 0.0) for u in group]
            tokens, more = self._steps(sets, settings)
        else:
            rows = [r for u in group for r in (*draws[u.id].own, *draws[u.id].aux)]
            tokens, more = 0, sum(len(row.ids) for row in rows)
        more += sum(self._embedded(user, draws[user.id]) for user in group)
        more += sum(self._near(user) for user in group)
        work = Work(trained=tokens, scored=more + reference.tokens)
        work += Work(prepared=len(group))
        texts = [encode_all(backbone, items) for items in kept if items]
        work += Work(scored=PASSES * scored_tokens(backbone, texts))
        if config.personalise.strength == CROSSED:  # FOLDS trials, of all but one part
            work += Work(trained=(FOLDS - 1) * tokens, scored=(FOLDS - 1) * more)
        samples = Work()
        if config.unlabeled.kind == "self":
            for user in group:
                own = draws[user.id].own
                count = len(draws[user.id].aux)
                asked = [own[i % len(own)] for i in range(count)]
                samples += self._generated([asked], SHORT)
        for user in group if written else ():
            rows = encode_all(backbone, user.disliked)
            samples += self._generated([rows], SHORT)
        if method == "cope":
            own = [draws[user.id].own for user in group]
            samples = sum((self._sampled(rows) for rows in own), samples)
            both = [[*rows, *rows] for rows in own]
            examples = [[Example(one) for one in rows] for rows in own]
            sets = [
                TrainingSet(user.id, rows, rejected=rows)
                for user, rows in zip(group, examples, strict=True)
            ]
            tokens, more = self._steps(sets, replace(settings, epochs=1))
            scored = more + scored_tokens(backbone, both)
            work += Work(trained=tokens, scored=scored)
        return {"training": work, "samples": samples}

    def _learning(self, user: User) -> tuple[User, tuple[Item, ...]]:
        """What a user trains on, and what the strength is fitted on, if it is."""
        rule, own = self.config.personalise.strength, newest(user, self.config)
        if rule == CROSSED:
            return replace(user, history=own), own
        own, kept = kept_back(own) if rule == FITTED else (own, ())
        return replace(user, history=own), kept

    def _embedded(self, user: User, draw: Draw) -> int:
        """Tokens of the hidden states that alpha is estimated from, once for each user."""
        config = self.config.unlabeled
        fixed = self.config.fixed_alpha is not None or not population_share(config)
        if (
            config.alpha_features == "ngrams"
            or fixed
            or user.id in self._embedded_users
        ):
            return 0
        self._embedded_users.add(user.id)
        entries = draw.others[: config.alpha_items] or draw.entries
        looked = encode_all(self.backbone, [entry.item for entry in entries])
        return sum(scored_tokens(self.backbone, [r]) for r in (draw.own, looked))

    def _near(self, user: User) -> int:
        """Tokens of the inputs that hidden states compare, once for each user."""
        settings = self.config.unlabeled
        if settings.nearness_features == "ngrams" or not settings.nearness_strength:
            return 0
        if user.id in self._near_users:
            return 0
        first = not self._near_users
        self._near_users.add(user.id)
        items = [entry.item for entry in self._handed.items] if first else []
        both = (sorted({*inputs_of(items)} - {""}), inputs_of(user.history))
        reference = Reference(self.backbone)
        rows = [encode_all(self.backbone, readable(reference, t)) for t in both]
        shared, own = (scored_tokens(self.backbone, [r]) if r else 0 for r in rows)
        return round(shared / self.scale) + own  # what was handed out: once for all

    def _held_out(self, group: Sequence[User]) -> Work:
        items = [encode_all(self.backbone, user.held_out) for user in group]
        return Work(scored=scored_tokens(self.backbone, items))

    def _measured(self, method: str) -> Iterator[Part]:
        """Scores and outputs of one method; as `personalise.measure` asks for them."""
        settings, users = self.config.evaluate, self.dataset.users
        writing = math.ceil(settings.users / self.scale) or len(users)
        first = writing if settings.generate else 0
        for some, generate in ((users[:first], True), (users[first:], False)):
            for node, group in self.groups(some):
                made = self._evaluated(method, group, generate)
                label = f"evaluate {method} {generate}"
                yield from _parts(made, label, node, group, method)

    def _evaluated(
        self, method: str, group: Sequence[User], generate: bool
    ) -> dict[str, Work]:
        backbone, config = self.backbone, self.config
        reference = Scoring(backbone, self._scored)
        both = [with_rivals(backbone, user) for user in group]
        for items in both:
            reference.scores(items)
        asked = both
        if BY_NAME[method].prompts:
            longer = [self._prompted(method, user) for user in group]
            asked = [with_rivals(backbone, user) for user in longer]
        tokens = reference.tokens
        if method != "shared":
            tokens += scored_tokens(backbone, asked)
        if config.fixed_strength != 1 and BY_NAME[method].adapter:  # nll_raw
            tokens += self._held_out(group).scored
        if config.evaluate.shift:
            rivals = [
                items[len(u.held_out) :] for u, items in zip(group, both, strict=True)
            ]
            twice = [rows for rows in rivals if rows for _ in range(2)]
            tokens += sum(scored_tokens(backbone, [rows]) for rows in twice)
        outputs = Work()
        if generate:
            own = [p[: len(u.held_out)] for u, p in zip(group, asked, strict=True)]
            outputs = self._generated(own, BY_NAME[method].name)
        if method == "pag":  # the profile, which one user's own texts ask for
            for user in group:
                texts = encode_all(backbone, user.history)
                tokens_asked = sum(
                    len(e.ids) - e.prompt_length for e in texts[-PROFILED:]
                )
                outputs += Work(prompted=tokens_asked, steps=PROFILE_TOKENS)
                outputs += Work(written=PROFILE_TOKENS)
        return {"scores": Work(scored=tokens), "generation": outputs}

    def _prompted(self, method: str, user: User) -> User:
        """The user with longer prompts; a profile is taken to have its full length."""
        reference, config = Reference(self.backbone), self.config
        user = replace(user, history=newest(user, config))
        if method == "rag":
            return prompted(reference, user, config)
        texts = "\n".join(item.target for item in user.history)
        ids = self.backbone.wording.ids(texts)[:PROFILE_TOKENS]
        profile = self.backbone.tokenizer.decode(ids)
        budget = output_budget(self.backbone, task_of(config.task))
        count = config.evaluate.retrieved
        return with_history(self.backbone, user, count, budget, profile)

    # --- what phases have in common ------------------------------------------------------

    def _steps(
        self,
        sets: Sequence[TrainingSet],
        settings: TrainingSettings,
        shared: bool = False,
    ) -> tuple[int, int]:
        """Tokens of a training forward and backward, and those forward alone.

        Methods and rates that train on the same rows are laid out once.
        """
        rows = [[len(getattr(one, kind)) for kind in KINDS] for one in sets]
        key = repr(([one.user for one in sets], rows, settings.epochs, shared))
        if key not in self._laid_out:
            self._laid_out[key] = self._laid(sets, settings, shared)
        return self._laid_out[key]

    def _laid(
        self, sets: Sequence[TrainingSet], settings: TrainingSettings, shared: bool
    ) -> tuple[int, int]:
        steps, _ = steps_of(sets, settings)
        layout = largest(self.backbone, steps)
        numbers = len(sets) * numbers_of(self.config, self.backbone, shared)
        layers = self.backbone.model.config.num_hidden_layers
        depth = lowest_adapted(layers, self.config.lora)
        saving = saving_of(self.backbone, layout, numbers, settings, depth)
        needed = needed_bytes(self.backbone, layout, numbers, saving)
        self.memory = max(self.memory, needed)
        self.again = max(self.again, _again(self.backbone, saving))
        tokens = more = 0
        for batch in steps:
            one, other = step_tokens(self.backbone, batch, saving)
            tokens, more = tokens + one, more + other
        return tokens, more

    def _sampled(self, rows: Sequence[Encoded]) -> Work:
        """Sampling one text at each prompt (`samples.sample_reference`)."""
        work = Work()
        for start in range(0, len(rows), SAMPLED_AT_ONCE):
            work += self._generated([rows[start : start + SAMPLED_AT_ONCE]], SHORT)
        return work

    def _generated(self, users: Sequence[Sequence[Encoded]], policy: str) -> Work:
        """Generating at the prompts of some rows, all at once."""
        most = max(map(len, users))
        rows = len(users) * most * (2 if self.config.contrast_of(policy) else 1)
        longest = max(e.prompt_length for items in users for e in items)
        steps = expected_steps(self.backbone, self.config, users, policy)
        self.cached = max(self.cached, self._kept(len(users), most, longest, policy))
        return Work(prompted=rows * longest, steps=steps, written=rows * steps)

    def _kept(self, users: int, most: int, longest: int, policy: str) -> int:
        """Tokens kept at once if outputs use their budget (`evaluation._outputs`)."""
        task = task_of(self.config.task)
        if task.kind == "long" and policy != SHORT:
            most = min(most, max(1, AT_ONCE // (self.backbone.context * users)))
        twice = 2 if self.config.contrast_of(policy) else 1
        return users * most * twice * (longest + output_budget(self.backbone, task))


def _again(backbone: Backbone, saving: Saving) -> float:
    """Share of a forward pass that is computed again."""
    layers = backbone.model.config.num_hidden_layers
    kept = saving.products / max(1, len(products(backbone, saving.layers)))
    return saving.recompute / layers * (1 - kept)


def _as_if_disliked(user: User, count: int) -> User:
    """The user with own texts in the place of what the model will write."""
    return replace(
        user, disliked=tuple(itertools.islice(itertools.cycle(user.history), count))
    )


MOST_COUNTED = 64  # users; of more, the first stand for all


def sample(dataset: Dataset) -> tuple[Dataset, float]:
    """The first of many users, and how many each of them stands for.

    Of evaluated and development users as many are taken as is their share.
    """
    both = len(dataset.users), len(dataset.development)
    if sum(both) <= MOST_COUNTED:
        return dataset, 1.0
    some = [math.ceil(MOST_COUNTED * count / sum(both)) for count in both]
    users = tuple(dataset.users[: some[0]])
    development = tuple(dataset.development[: some[1]])
    taken = replace(dataset, users=users, development=development)
    return taken, sum(both) / sum(some)


def all_parts(counting: Counting) -> list[Part]:
    """All parts of a job; each counted user stands for `Counting.scale` many."""
    scale = counting.scale
    if scale == 1:
        return list(counting.parts())
    return [
        replace(part, work=part.work.times(scale), users=round(part.users * scale))
        for part in counting.parts()
    ]


SHORT = "samples"  # in the place of a method: what is written is nobody's output


@dataclass(eq=False)
class Scoring:
    """Stands for a reference: counts what it is asked to score, once for each list.

    Attributes
    ----------
    backbone, known
        The backbone, and lists that the process has scored already.
    tokens
        How many were laid out.
    """

    backbone: Backbone
    known: set[tuple[tuple[int, ...], ...]]
    tokens: int = 0

    def scores(self, items: Sequence[Encoded]) -> list[float]:
        """As `Reference.scores`, with zeros."""
        key = tuple(item.ids for item in items)
        if key not in self.known and items:
            self.known.add(key)
            self.tokens += scored_tokens(self.backbone, [items])
        return [0.0] * len(items)


def _parts(
    made: dict[str, Work],
    label: str,
    node: int,
    group: Sequence[User],
    method: str,
    trial: bool = False,
) -> Iterator[Part]:
    for phase, work in made.items():
        if work != Work() or phase in ("training", "scores"):
            yield Part(phase, label, node, len(group), work, method, trial)


def step_tokens(
    backbone: Backbone, batch: Sequence[Batch], saving: Saving
) -> tuple[int, int]:
    """Tokens of one optimiser step, as `training._backward` takes them.

    Returns
    -------
    tuple
        Those forward and backward, and those forward alone.
    """
    _, *both = divided(batch, saving)
    tokens, more = (
        sum(laid_out(backbone, part).ids.numel() for part in passes) for passes in both
    )
    return tokens, more + (tokens if len(both[0]) > 1 else 0)


def scored_tokens(backbone: Backbone, users: Sequence[Sequence[Encoded]]) -> int:
    """Tokens that `scoring.score_users` lays out."""
    total = 0
    for chunk in chunks(users):
        rows = [
            users[k][i] if i is not None else None
            for k, items in enumerate(chunk)
            for i in items
        ]
        total += collate(backbone, rows, len(users)).ids.numel()
    return total


def numbers_of(config: Config, backbone: Backbone, shared: bool) -> int:
    """How many numbers one user trains."""
    shape = config.shared_shape if shared else config.lora
    found = projections(backbone.model, shape).values()
    # B alone, or both; no LoRA is made, which of a 7B model is large.
    sides = (m.out_features + (0 if shared else m.in_features) for m in found)
    return shape.rank * sum(sides)


def expected_steps(
    backbone: Backbone,
    config: Config,
    users: Sequence[Sequence[Encoded]],
    policy: str,
) -> int:
    """How many tokens are generated one after the other until the last row ends.

    As many as the longest of the texts that people wrote at these prompts. The frozen
    backbone does not know where people end: it goes on to the budget.
    """
    budget = output_budget(backbone, task_of(config.task))
    if policy == "base" and config.backbone != "tiny":
        return budget
    lengths = [len(e.ids) - e.prompt_length for items in users for e in items]
    return min(budget, max(lengths))


def handed_out(config: Config, backbone: Backbone, dataset: Dataset) -> UnlabeledSet:
    """The unlabeled set without noise and without the model.

    A bank that the shared adapter is to write stands with its public texts, and votes by
    hidden states with votes by n-grams.
    """
    plain = replace(config.unlabeled, bank_from="public", features="ngrams")
    config = replace(config, unlabeled=plain, privacy=Privacy())
    run = local_run(config, Reference(backbone), dataset)
    pool(run)
    return cast(Local, run.cohort).unlabeled


def drawn(
    reference: Reference,
    user: User,
    handed: UnlabeledSet,
    config: Config,
    learnt: Sequence[Item] | None = None,
) -> Draw:
    """What a user learns from; samples of the model stand as the user's own texts.

    What is near by hidden states stands as what is near by n-grams.
    """
    if config.unlabeled.kind != "self":
        plain = replace(config.unlabeled, nearness_features="ngrams")
        config = replace(config, unlabeled=plain)
        return draw_for(reference, user, handed, config, learnt)
    own = encode_all(reference.backbone, user.history if learnt is None else learnt)
    count = round(config.unlabeled.ratio * len(own))
    return Draw(own, [own[i % len(own)] for i in range(count)], [], 0.0, [])
