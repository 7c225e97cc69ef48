"""What is counted is what the engine then processes, token by token."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from idiolect.common.config import Config, Scalar, flatten, parse
from idiolect.common.data.load import load_dataset
from idiolect.common.engine import training
from idiolect.common.engine.backbone import Backbone, backbone_of
from idiolect.common.engine.memory import Saving
from idiolect.common.engine.reference import Reference
from idiolect.common.methods import evaluation
from idiolect.common.unlabeled.draws import draw_for
from idiolect.server.forecast import counts
from idiolect.server.forecast.counts import Counting, all_parts, sample
from idiolect.server.forecast.parts import Part, Work
from idiolect.server.run.adapt import adapt
from idiolect.server.run.local import Local, fitted, local_run
from idiolect.server.run.personalise import evaluate, personalise
from idiolect.server.run.pool import pool

METHODS = "base,shared,rag,sft,kto,bco,positives,c-bpo"
SHORT = {
    "users": 3,
    "development-users": 2,
    "history": 5,
    "held-out": 2,
    "methods": METHODS,
    "lora.rank": 2,
    "lora.targets": "q,v",
    "adapt.rounds": 2,
    "adapt.batch": 4,
    "adapt.learning-rate": 1e-3,
    "unlabeled.bank": 24,
    "personalise.epochs": 2,
    "personalise.batch": 4,
    "personalise.learning-rates": "1e-3,3e-3",
    "evaluate.rivals": 2,
    "evaluate.bootstrap": 100,
}


def processed(config: Config, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Run a job, and count what its model is asked for in each phase."""
    seen: Counter = Counter()
    phase = ["pool"]
    hidden_at, generate = Backbone.hidden_at, evaluation.generate

    def counted(self: Backbone, layout: Any, places: Any) -> Any:
        import torch

        kind = phase[0] if torch.is_grad_enabled() else "scored"
        seen[kind] += layout.ids.numel()
        return hidden_at(self, layout, places)

    def written(
        backbone: Any, policy: Any, prompts: Any, *rest: Any, **more: Any
    ) -> Any:
        twice = 2 if more.get("contrast") else 1  # with and without the own adapter
        seen["prompted"] += twice * len(prompts) * max(map(len, prompts))
        return generate(backbone, policy, prompts, *rest, **more)

    def during(name: str, kind: str) -> None:
        plain = getattr(Local, name)

        def inside(*given: Any) -> Any:
            phase[0] = kind
            return plain(*given)

        monkeypatch.setattr(Local, name, inside)

    monkeypatch.setattr(Backbone, "hidden_at", counted)
    monkeypatch.setattr(evaluation, "generate", written)
    during("update", "adapted")
    during("train", "trained")
    backbone = backbone_of(config)
    run = local_run(config, Reference(backbone), fitted(backbone, load_dataset(config)))
    for step in (adapt, pool, personalise, evaluate):
        step(run)
    return seen


def counted(config: Config, nodes: int = 1) -> Work:
    backbone = backbone_of(config)
    dataset = fitted(backbone, load_dataset(config))
    parts = list(Counting(config, backbone, dataset, nodes).parts())
    return sum((part.work for part in parts), Work())


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one rate, others' text": {
        "personalise.learning-rates": "1e-3",
        "unlabeled.kind": "others",
        "unlabeled.ratio": 1.5,
    },
    "alone, in small passes": {"engine.stack": 1, "engine.microbatch": 2},
    "the paper, public text": {
        "unlabeled.kind": "public",
        "adapt.users": "development",
        "evaluate.users": 1,
    },
    "contrast for all, shift": {
        "evaluate.contrasted": "sft,c-bpo",
        "evaluate.shift": True,
    },
    "a fitted strength": {"personalise.strength": "fitted"},
    "the newest items alone": {"personalise.items": 3},
}


@pytest.mark.parametrize("changed", CASES.values(), ids=CASES.keys())
def test_what_is_counted_is_what_is_processed(changed, small_model, monkeypatch):
    config = parse({**SHORT, "backbone": small_model, **changed})
    work = counted(config)
    seen = processed(config, monkeypatch)
    assert seen["adapted"] == work.adapted > 0
    assert seen["trained"] == work.trained > 0
    assert seen["scored"] == work.scored > 0
    assert seen["prompted"] == work.prompted > 0


def test_tokens_do_not_depend_on_the_number_of_nodes_where_none_are_shared(small_model):
    alone = {"engine.stack": 1, "backbone": small_model}
    config = parse({**SHORT, **alone})
    assert counted(config, 1) == counted(config, 3)


def test_samples_of_the_model_are_work_of_every_training(small_model):
    config = parse({**SHORT, "backbone": small_model, "unlabeled.kind": "self"})
    few = parse({**SHORT, "backbone": small_model})
    backbone = backbone_of(config)
    dataset = fitted(backbone, load_dataset(config))
    parts = list(Counting(config, backbone, dataset, 2).parts())
    asked = [p for p in parts if p.phase == "samples"]
    # Five methods with an adapter, at two rates for two users, then for three.
    assert sum(p.users for p in asked) == 5 * (2 * 2 + 3)
    rows = [p.work.written / max(1, p.work.steps) for p in asked]
    assert all(count >= 5 for count in rows)
    assert counted(config).written > counted(few).written


def test_inputs_that_hidden_states_compare_are_counted(small_model, monkeypatch):
    near = {"unlabeled.kind": "others", "unlabeled.nearness": "near"}
    plain = parse({**SHORT, "backbone": small_model, **near})
    config = parse(flatten(plain) | {"unlabeled.nearness-features": "backbone"})
    backbone, tokens = backbone_of(config), [0]
    dataset = fitted(backbone, load_dataset(config))
    reference, hidden_at = Reference(backbone), Backbone.hidden_at

    def asked(self: Backbone, layout: Any, places: Any) -> Any:
        tokens[0] += layout.ids.numel()
        return hidden_at(self, layout, places)

    monkeypatch.setattr(Backbone, "hidden_at", asked)
    handed = counts.handed_out(config, backbone, dataset)
    for user in (*dataset.users, *dataset.development):
        draw_for(reference, user, handed, config)
    assert counted(config).scored - counted(plain).scored == tokens[0] > 0


def test_samples_that_users_dislike_are_work_of_the_methods_that_use_them(small_model):
    near = {"unlabeled.kind": "others", "disliked": 3, "backbone": small_model}
    config = parse({**SHORT, **near})
    backbone = backbone_of(config)
    dataset = fitted(backbone, load_dataset(config))  # personas: their own dislikes
    assert not [
        p
        for p in Counting(config, backbone, dataset, 1).parts()
        if p.phase == "samples"
    ]
    files = replace(config, task="LaMP-4", data="of somebody")
    parts = list(Counting(files, backbone, dataset, 1).parts())
    assert {p.method for p in parts if p.phase == "samples"} == {"kto", "bco", "c-bpo"}


def test_a_step_in_two_passes_is_counted_forward_twice(small_model):
    from idiolect.server.forecast.counts import step_tokens

    config = parse({**SHORT, "backbone": small_model})
    backbone = backbone_of(config)
    user = load_dataset(config).users[0]
    rows = [training.Example(backbone.encode(item)) for item in user.history]
    step = [{"positive": rows}]
    whole, none = step_tokens(backbone, step, Saving())
    split, again = step_tokens(backbone, step, Saving(passes=2))
    assert none == 0 and again == split >= whole


def test_the_first_of_many_users_stand_for_all(small_model, monkeypatch):
    config = parse({**SHORT, "backbone": small_model, "methods": "shared,sft"})
    backbone = backbone_of(config)
    dataset = fitted(backbone, load_dataset(config))
    whole = all_parts(Counting(config, backbone, dataset, 1))
    monkeypatch.setattr(counts, "MOST_COUNTED", 3)
    taken, scale = sample(dataset)
    some = all_parts(Counting(config, backbone, taken, 1, scale=scale))
    for phase in ("adapt", "training", "scores"):
        both = [[p for p in parts if p.phase == phase] for parts in (whole, some)]
        for name in ("adapted", "trained", "scored"):
            all_of, part = (sum(getattr(p.work, name) for p in b) for b in both)
            assert part == pytest.approx(all_of, rel=0.35)
        assert sum(p.users for p in both[1]) == pytest.approx(
            sum(p.users for p in both[0]), abs=2
        )


def test_what_does_not_grow_with_the_users_is_not_multiplied(small_model, monkeypatch):
    """The bank is written once, and `evaluate.users` write, of however many users."""
    keys: dict[str, Scalar] = {"methods": "shared", "evaluate.users": 6}
    keys |= {"users": 10, "evaluate.generate": True, "unlabeled.bank-from": "shared"}
    config = parse({**SHORT, "backbone": small_model, **keys})
    backbone = backbone_of(config)
    dataset = fitted(backbone, load_dataset(config))
    whole = all_parts(Counting(config, backbone, dataset, 1))
    monkeypatch.setattr(counts, "MOST_COUNTED", 3)
    taken, scale = sample(dataset)
    assert scale > 1.5
    some = all_parts(Counting(config, backbone, taken, 1, scale=scale))

    def written(parts: list[Part], phase: str) -> int:
        return sum(part.work.written for part in parts if part.phase == phase)

    for phase in ("pool", "generation"):
        assert written(whole, phase)
        assert written(some, phase) == pytest.approx(written(whole, phase), rel=0.35)
