"""The library: what it trains is what a device and a run train, and what it refuses."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import idiolect
from idiolect import api
from idiolect.client.owner import adapters, elsewhere, history, learning, training
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import Prompt
from idiolect.common.engine.adapters import Lora
from idiolect.common.engine.reference import load_reference
from idiolect.common.methods.personalise import Personal, personalise
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet

pytestmark = pytest.mark.slow  # `make quick` leaves these files out

MINE = [("Write a title.", f"The Sea, Again: part {n}!") for n in range(8)]
THEIRS = [("Write a title.", f"sea levels rise by {n} cm") for n in range(8)]

SFT = "sft"

ALONE = """
import sys, time

class NoFlower:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flwr", "ray"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, NoFlower())
began = time.process_time()
import idiolect
seconds = time.process_time() - began
assert "torch" not in sys.modules and "idiolect.api" not in sys.modules
assert sorted(idiolect.__all__) == dir(idiolect)
model = idiolect.load("tiny")
me = model.personalise([("Hello.", "hi there")], epochs=1)
assert me.log["steps"] == 1
assert "flwr" not in sys.modules
print(seconds)
"""


@pytest.fixture(scope="module")
def model() -> idiolect.Model:
    return idiolect.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def me(model: idiolect.Model) -> idiolect.PersonalModel:
    return model.personalise(MINE, against=THEIRS, epochs=1)


def same(one: Lora | None, other: Lora | None) -> bool:
    assert one is not None and other is not None
    pairs = [(one.a, other.a), (one.b, other.b)]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a | b)


@pytest.mark.slow
def test_it_is_imported_fast_and_needs_no_flower() -> None:
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        idiolect.nothing  # noqa: B018


def test_it_trains_what_a_device_trains(tmp_path: Path) -> None:
    asked = [f"question {n}?" for n in range(6)]
    with Vault.create(tmp_path / "vault.db", RandomKey(bytes(32))) as vault:
        entries = [Entry(Prompt("", q), f"answer to {q}") for q in asked]
        history.add(vault, entries, "mail")
        learnt = learning.split(history.entries(vault))[0].history
        adapters.use(vault, training.train(vault).number)
        elsewhere.export(vault, tmp_path / "device")
    pairs = [(item.prompt.text, item.target) for item in learnt]
    idiolect.load("tiny").personalise(pairs).save_pretrained(tmp_path / "library")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        device, library = (tmp_path / who / name for who in ("device", "library"))
        assert device.read_bytes() == library.read_bytes()


@pytest.mark.parametrize("method", ["c-bpo", "cope"])
def test_it_trains_what_a_run_trains(model: idiolect.Model, method: str) -> None:
    config = parse(
        {
            "users": 2,
            "development-users": 0,
            "history": 4,
            "engine.device": "cpu",
            "unlabeled.kind": "others",
            "personalise.learning-rates": "1e-3",
            "personalise.epochs": 1,
            "personalise.batch": 2,
        }
    )
    users = load_dataset(config).users
    everybody = [
        Unlabeled(replace(item, rivals=()), 1.0, user.id)
        for user in users
        for item in user.history
    ]
    unlabeled = UnlabeledSet(tuple(everybody))
    run = personalise(load_reference(config), users, unlabeled, method, 1e-3, config)
    found = model.personalise_all(
        {u.id: [(i.prompt.text, i.target) for i in u.history] for u in users},
        "others",
        method,
        epochs=1,
        learning_rate=1e-3,
        config={"personalise.batch": 2},
    )
    assert list(found) == [user.id for user in users]
    for one in run:
        assert same(found[one.user].own, one.lora)
        assert found[one.user].log == one.log
        assert found[one.user].alpha == one.alpha


def test_scores_and_comparisons(
    model: idiolect.Model, me: idiolect.PersonalModel
) -> None:
    assert len(me.score(MINE)) == len(MINE)
    found = me.compare(MINE)
    assert found["personal"] == me.nll(MINE) < found["base"]
    assert found["shared"] == model.nll(MINE) == pytest.approx(found["base"])
    tokens = [len(model.reference.backbone.wording.answer(text)) for _, text in MINE]
    assert me.nll(MINE) == pytest.approx(-sum(me.score(MINE)) / sum(tokens))


def test_generation(model: idiolect.Model, me: idiolect.PersonalModel) -> None:
    assert me.generate("Write a title.", 8) == me.generate("Write a title.", 8)
    torch.manual_seed(0)
    rarely = me.generate("Write a title.", 8, repetition=1e9).split()
    assert len(set(rarely)) == len(rarely)
    one = model.generate("Write a title.", 8, top_p=0.95)
    torch.manual_seed(0)
    assert model.generate("Write a title.", 8, top_p=0.95) == one


def test_a_saved_adapter_is_the_next_shared_one(
    me: idiolect.PersonalModel, tmp_path: Path
) -> None:
    me.save_pretrained(tmp_path / "mine")
    again = idiolect.load("tiny", shared=tmp_path / "mine", device="cpu")
    assert again.nll(MINE) == pytest.approx(me.nll(MINE))
    more = again.personalise(MINE, method=SFT, epochs=1)
    assert more.compare(MINE)["personal"] < again.nll(MINE)
    assert more.compare(MINE)["shared"] == again.nll(MINE)


def test_peft_reads_what_is_saved(me: idiolect.PersonalModel, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from idiolect.common.engine.backbone import TINY

    me.save_pretrained(tmp_path / "mine")
    bare = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    peft = PeftModel.from_pretrained(bare, str(tmp_path / "mine"))
    backbone = me.reference.backbone
    entry = backbone.encode(api._user("x", MINE[:1]).history[0])
    ids = torch.tensor([entry.ids])
    with torch.no_grad():
        logp = peft(ids).logits[0].log_softmax(-1)
    own = range(entry.prompt_length, len(entry.ids))
    total = sum(float(logp[t - 1, entry.ids[t]]) for t in own)
    assert me.score(MINE[:1])[0] == pytest.approx(total, rel=1e-4)


def test_what_was_turned_down_is_avoided(model: idiolect.Model) -> None:
    rows = [{"prompt": p, "completion": t, "label": True} for p, t in MINE]
    refused = [{"prompt": p, "completion": t, "label": False} for p, t in THEIRS]
    with_them = model.personalise([*rows, *refused], epochs=1)
    assert with_them.nll(THEIRS) > model.personalise(rows, epochs=1).nll(THEIRS)
    sft = model.personalise([*rows, *refused], method=SFT, epochs=1)
    assert same(sft.own, model.personalise(MINE, method=SFT, epochs=1).own)


def test_what_was_computed_is_dropped() -> None:
    model = idiolect.load("tiny")
    model.personalise(MINE[:2], against=THEIRS, epochs=1)
    assert model.reference._store.results
    model.forget()
    assert not model.reference._store.results


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no pairs": (lambda m: m.personalise([]), "there are no pairs"),
    "no people": (lambda m: m.personalise_all({}), "people is empty"),
    "a word": (lambda m: m.personalise(["ab"]), "pair 1: give"),
    "half a pair": (lambda m: m.personalise([("a",)]), "pair 1: give"),
    "an empty text": (lambda m: m.personalise([("a", "")]), "pair 1: give"),
    "no completion": (lambda m: m.personalise([{"prompt": "a"}]), "pair 1: give"),
    "nothing to score": (lambda m: m.nll([]), "there are no pairs"),
    "an empty list": (lambda m: m.personalise(MINE, against=[]), "against: there are"),
    "a word for a list": (lambda m: m.personalise(MINE, "x"), "give a list of pairs"),
    "an untrained method": (
        lambda m: m.personalise(MINE, method="rag"),
        "'rag' trains no adapter",
    ),
    "no method": (lambda m: m.personalise(MINE, method="x"), "use any of"),
    "a key": (lambda m: m.personalise(MINE, config={"x": 1}), "unknown config key"),
    "a rate": (lambda m: m.personalise(MINE, learning_rate=-1.0), "learning-rates"),
    "too long": (
        lambda m: m.personalise([("a", "b" * 9999)]),
        "raise 'max-length'",
    ),
    "too many tokens": (lambda m: m.generate("a", 512), "larger max_length"),
    "a device": (lambda _: idiolect.load(device="tpu"), "use one of auto, cpu, cuda"),
    "no adapter": (lambda _: idiolect.load(shared="nothing"), "adapter_config.json"),
    "no GGUF": (lambda _: idiolect.load("nothing.gguf"), "nor a GGUF file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_in_a_sentence(case: str, model: idiolect.Model) -> None:
    act, said = REFUSED[case]
    with pytest.raises(idiolect.IdiolectError, match=said) as error:
        act(model)
    assert str(error.value).endswith(".")


def test_a_training_that_overflows_is_refused(
    model: idiolect.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Personal("owner", None, error="training overflowed: lower the rate.")
    monkeypatch.setattr(api, "personalise", lambda *_: [failed])
    with pytest.raises(idiolect.IdiolectError, match="lower the rate"):
        model.personalise(MINE)


def test_a_strength_changes_the_model_and_is_saved(model, tmp_path):
    me = model.personalise(MINE, method=SFT, epochs=1)
    twice, none = me.at_strength(2), me.at_strength(0)
    assert (me.strength, twice.strength, none.strength) == (1, 2, 0)
    assert none.score(MINE) == pytest.approx(model.score(MINE), abs=1e-3)
    assert none.at_strength(1).score(MINE) == me.score(MINE) != twice.score(MINE)
    twice.save_pretrained(tmp_path / "twice")
    again = idiolect.load("tiny", shared=tmp_path / "twice")
    assert again.score(MINE) == pytest.approx(twice.score(MINE), abs=1e-3)
    for wrong in (-1, 4.5, float("nan")):
        with pytest.raises(idiolect.IdiolectError, match="give a number"):
            me.at_strength(wrong)


def test_a_fitted_strength_is_found_on_pairs_that_were_kept_back(model):
    fitted = {"personalise.strength": "fitted"}
    me = model.personalise(MINE, method=SFT, epochs=1, config=fitted)
    held = me.at_strength(me.strength).nll(MINE[-2:])
    assert all(held <= me.at_strength(s).nll(MINE[-2:]) + 1e-6 for s in (0, 1, 2, 4))
    assert me.own is not None and me.own.scaling == 2 * me.strength
