"""What is forgotten while something learns from it, and which adapter is used."""

import json
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from idiolect.client.commands import status
from idiolect.client.node import membership
from idiolect.client.node.device import VaultStore
from idiolect.client.owner import (
    adapters,
    consent,
    elsewhere,
    forgetting,
    history,
    judging,
    learning,
    loading,
    training,
    writing,
)
from idiolect.client.owner.consent import Refusal
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import Record, Source
from idiolect.client.owner.vault import Vault
from idiolect.common.data.types import Prompt
from idiolect.common.engine.adapters import (
    Lora,
    attached,
    dump_lora,
    hash_lora,
    import_peft,
)
from idiolect.common.engine.memory import TooLittleMemory
from idiolect.common.engine.reference import Reference, load_reference
from idiolect.common.engine.scoring import score_users
from idiolect.common.errors import IdiolectError
from idiolect.common.methods import strength
from idiolect.common.methods.personalise import Personal
from tests.common.conftest import write_model

KEY = RandomKey(bytes(32))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vault.db"


def pairs(name: str, count: int) -> list[Entry]:
    return [
        Entry(Prompt("", f"{name} {i}?"), f"answer {name} {i}") for i in range(count)
    ]


@pytest.fixture
def vault(path, model) -> Iterator[Vault]:
    with Vault.create(path, KEY) as made:
        consent.choose(made, backbone=model)
        history.add(made, pairs("mail", 8), "mail")
        history.add(made, pairs("notes", 3), "notes")
        yield made


def moved(zero: Lora, by: float) -> Lora:
    return replace(zero, b={name: b + by for name, b in zero.b.items()})


@pytest.fixture
def meanwhile(monkeypatch, path):
    """Training that another process uses to do something to the vault."""
    works = []

    def train(reference, users, *_rest):
        with Vault.open(path, KEY) as other:
            for work in works:
                work(other)
        (user,), shared = users, reference.adapter
        return [Personal(user.id, moved(replace(shared, b=zeros(shared)), -1e-4))]

    monkeypatch.setattr(training, "personalise", train)
    return works


def zeros(lora: Lora) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(b) for name, b in lora.b.items()}


def forget_a_pair(vault: Vault) -> None:
    first = history.entries(vault)[0]
    forgetting.forget(vault, ids=[first.id])


def forget_and_import_again(vault: Vault) -> None:
    forgetting.forget(vault, ["mail"])
    history.add(vault, pairs("mail", 8), "mail")


@pytest.mark.parametrize(
    "work",
    [
        lambda vault: forgetting.forget(vault, ["mail"]),
        lambda vault: forgetting.forget(vault, ["mail", "notes"]),
        forget_a_pair,
        forget_and_import_again,
    ],
    ids=["a source", "everything", "a pair", "and imported again"],
)
def test_what_is_forgotten_while_it_is_learnt_stays_forgotten(vault, meanwhile, work):
    before = training.train(vault)
    meanwhile.append(work)
    with pytest.raises(Refusal, match="forgotten text that this was made of"):
        training.train(vault)
    assert adapters.versions(vault) == [] and adapters.active(vault) == 0
    assert before.number == 1 and len(list(vault.records("adapter"))) == 0
    meanwhile.clear()
    if len(list(vault.records(history.KIND))) < learning.FEWEST:
        with pytest.raises(IdiolectError, match="needs 4"):
            training.train(vault)
    else:  # what is there now can be learnt
        found = training.train(vault)
        now = [vault.generation(Source("import", name)) for name in found.sources]
        assert list(found.generations) == now and "mail" in found.sources


@pytest.mark.parametrize("method", ["c-bpo", "sft"])
@pytest.mark.parametrize("how", ["a pair", "a source"])
def test_after_forgetting_the_adapter_is_that_of_someone_who_never_wrote_it(
    tmp_path, model, method, how
):
    """The attack: the text is scored by the adapter that is trained after `forget`."""
    secret = Entry(Prompt("", "the code?"), "4711 is the code")

    def kept(name: str, *others: Entry) -> tuple[str, list[float]]:
        with Vault.create(tmp_path / name, KEY) as made:
            consent.choose(made, backbone=model)
            history.add(made, pairs("mail", 8), "mail")
            history.add(made, others, "mail" if how == "a pair" else "notes")
            history.add(made, pairs("late", 3), "late")
            if others:
                training.train(made, method)
                ids = [others[0].id] if how == "a pair" else []
                forgetting.forget(made, [] if ids else ["notes"], ids)
            lora, _ = required_of(made, training.train(made, method).number)
        found = load_reference(loading.config_of({**CHOSEN, "backbone": model}))
        encoded = [found.backbone.encode(secret.item())]
        scores = score_users(found.backbone, [found.shared, lora], [encoded])
        return hash_lora(lora), scores[0]

    assert kept("forgot", secret) == kept("never")


def required_of(vault: Vault, number: int):
    found = adapters.read(vault, number)
    assert found is not None
    return found


CHOSEN = {"max-length": "96", "dtype": "float32", "device": "cpu"}


def test_forgetting_what_is_not_learnt_from_costs_nothing(vault, meanwhile):
    history.add(vault, pairs("more", 2), "more")  # the newest: they only judge
    meanwhile.append(lambda other: forgetting.forget(other, ["more"]))
    version = training.train(vault)
    assert (
        version.sources == ("mail", "notes")
        and len(list(vault.records("adapter"))) == 1
    )


def test_a_run_that_trains_while_text_is_forgotten_leaves_nothing(vault):
    _, learnt = learning.split(history.entries(vault))
    store = VaultStore(vault, "spring", learnt)
    store.write("adapters/sft/device-1.safetensors", b"trained before")
    forgetting.forget(vault, ["mail"])
    assert store.read("adapters/sft/device-1.safetensors") is None
    with pytest.raises(Refusal, match="forgotten text"):
        store.write("adapters/sft/device-1.safetensors", b"trained after")
    assert len(list(vault.records("run"))) == 0
    store.write("round", b"1")  # what it agreed to is not made of text
    assert store.read("round") == b"1"


def test_nothing_gets_in_between_two_halves_of_forgetting(vault, path, meanwhile):
    """An adapter is stored by another process while `forget` is at work."""
    training.train(vault)
    refused = []
    original = Vault.forget

    def slow(self: Vault, source: Source) -> int:
        found = original(self, source)
        if source == Source("adapter", "1"):  # its adapters are gone, its text is not
            thread.start()
            thread.join(0.5)
        return found

    def adopt() -> None:
        with Vault.open(path, KEY) as other:
            try:
                other.put("kept", [Record("x", b"")], Source("adapter", "2"))
                learning.check_learnt(other, learnt)
            except Refusal as refusal:
                refused.append(refusal)

    _, learnt = learning.split(history.entries(vault))
    thread = threading.Thread(target=adopt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vault, "forget", slow)
        forgetting.forget(vault, ["mail"])
    thread.join()
    assert len(refused) == 1


def test_two_forget_at_once(vault, path, meanwhile):
    training.train(vault)
    said: list[object] = []

    def forget() -> None:
        with Vault.open(path, KEY) as other:
            try:
                said.append(forgetting.forget(other, ["mail"])[0])
            except IdiolectError as error:
                said.append(str(error))

    both = [threading.Thread(target=forget) for _ in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(map(str, said))[0] == "8"
    assert "there is no source 'mail'" in sorted(map(str, said))[1]
    assert adapters.versions(vault) == []
    assert {entry.source for entry in history.entries(vault)} == {"notes"}
    vault.check()


def test_a_verdict_does_not_bring_a_forgotten_pair_back(
    vault, path, capsys, monkeypatch
):
    from idiolect.client import cli

    first = history.entries(vault)[0]
    original = history.find

    def found(*arguments):
        entries = original(*arguments)
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=forget)
            thread.start()
            thread.join(0.3)
        return entries

    def forget() -> None:
        with Vault.open(path, KEY) as other:
            forgetting.forget(other, ids=[first.id])
        done.set()

    done = threading.Event()
    monkeypatch.setattr(history, "find", found)
    monkeypatch.setattr("idiolect.client.owner.unlock.unlock", lambda *_: KEY)
    assert cli.main(["feedback", "down", first.id, "--vault", str(path)]) == 0
    assert done.wait(30)
    monkeypatch.undo()
    assert first.id not in [entry.id for entry in history.entries(vault)]


# --- which adapter is used --------------------------------------------------------------


def judged(
    vault: Vault, shared_by: float, own_by: float, origin: str
) -> adapters.Version:
    """Adopt an adapter as a run would."""
    found = load_reference(loading.config_of(consent.settings(vault)))
    backbone, zero = found.backbone, found.adapter
    fits = consent.settings(vault)["fit-strength"] == "yes"
    user, learnt = learning.split(history.entries(vault), fits_strength=fits)
    shared, own = moved(zero, shared_by), moved(zero, own_by)
    reference = Reference(backbone, shared)
    return judging.adopt(vault, reference, own, "sft", (user, learnt), origin)


@pytest.fixture
def scores(monkeypatch):
    """Likelihoods that say how far both adapters together are from 1."""

    def nll(reference, personals, users, method):
        def at(lora):
            return 0.0 if lora is None else float(next(iter(lora.b.values()))[0, 0])

        if method == "base":
            return [1.0]
        return [abs(1 - at(reference.shared) - at(personals[0])) for _ in users]

    def write(backbone, _policy, prompts, _most, **_more):
        return [[*backbone.tokenizer.encode("fine"), *backbone.end_ids[:1]]] * len(
            prompts
        )

    monkeypatch.setattr(judging, "held_out_nll", nll)
    monkeypatch.setattr(judging, "continued", write)


def test_a_ruined_shared_adapter_does_not_take_the_place_of_a_better_one(vault, scores):
    good = judged(vault, 0.0, 0.75, "")
    assert (good.nll, good.nll_in_use, good.accepted) == (0.25, None, True)
    # It beats the shared adapter that it came with, and the bare backbone.
    poor = judged(vault, -0.5, 1.0, "a run")
    assert (poor.nll, poor.nll_before, poor.nll_bare) == (0.5, 1.5, 1.0)
    assert (poor.nll_in_use, poor.nll_against) == (0.25, 0.5)
    assert not poor.accepted and adapters.active(vault) == good.number
    found = load_reference(loading.config_of(consent.settings(vault)))
    backbone, zero = found.backbone, found.adapter
    assert (
        adapters.latest_shared(vault, backbone, zero) is zero
    )  # nor do we start from it
    better = judged(vault, 0.5, 0.5, "another run")
    assert better.accepted and adapters.active(vault) == better.number
    assert adapters.rollback(vault) == good.number  # not the refused one
    # A task that is sent again brings neither back.
    assert judged(vault, 0.5, 0.5, "another run") == better
    assert adapters.active(vault) == good.number


@pytest.mark.parametrize(("allowed", "left"), [(0, 300), (3000, 1000), (1070, 35)])
def test_a_training_is_planned_to_fit_into_the_memory_that_the_owner_allows(
    vault, monkeypatch, allowed, left
):
    def train(_reference, _users, _unlabeled, _method, _rate, config, _watch):
        raise IdiolectError(f"{config.engine.memory} MB")

    monkeypatch.setattr(training, "personalise", train)
    monkeypatch.setattr(training.limits, "memory", lambda: 1000)
    monkeypatch.setattr(training.limits, "hold_process", lambda _settings: None)
    consent.choose(vault, memory_mb=str(allowed))
    with pytest.raises(IdiolectError, match=f"^{left} MB$"):
        training.train(vault)
    # Where less is free, it plans for less; a GPU's memory is another.
    monkeypatch.setattr(training, "free_bytes", lambda _device: 90.5 * 2**20)
    config = loading.config_of(consent.settings(vault))
    cpu, gpu = (
        training._planned(
            config, consent.settings(vault), torch.device(name)
        ).engine.memory
        for name in ("cpu", "cuda:0")
    )
    assert (cpu, gpu) == (left if allowed else 90, 0)


def test_a_plan_that_is_too_small_is_given_what_a_training_needs(vault, monkeypatch):
    """The plan leaves room for what no shape tells; the owner's limit is another."""
    seen, held = [], []

    def train(_reference, _users, _unlabeled, _method, _rate, config, _watch):
        seen.append(config.engine.memory)
        if len(seen) == 1:
            moments = torch.zeros(8)
            held.append(weakref.ref(moments))
            raise TooLittleMemory(35 << 20, 77 << 20)
        assert held[0]() is None  # what the first try had in memory is free
        raise IdiolectError("enough")

    monkeypatch.setattr(training, "personalise", train)
    monkeypatch.setattr(training.limits, "memory", lambda: 1000)
    monkeypatch.setattr(training.limits, "hold_process", lambda _settings: None)
    consent.choose(vault, memory_mb="1070")
    with pytest.raises(IdiolectError, match="^enough$"):
        training.train(vault)
    assert seen == [35, 77]


def test_an_adapter_that_writes_in_loops_is_kept_and_not_used(
    vault, scores, monkeypatch
):
    good = judged(vault, 0.0, 0.75, "")
    said = ["I see. " * 8, "fine"]  # the new adapter's texts, and those before it

    monkeypatch.setattr(judging, "continued", saying(said))
    better = judged(vault, 0.0, 1.0, "a run")  # a run's adapter is tried as well
    assert better.nll < good.nll and better.fault == "loops" and not better.accepted
    assert adapters.active(vault) == good.number and said == []
    kept = [(one.number, one.fault) for one in adapters.versions(vault)]
    assert kept == [(good.number, ""), (better.number, "loops")]
    assert adapters.use(vault, better.number) == better  # if its owner wants it
    said += ["fine", "I see. " * 8]  # the one in use is what "before" is
    assert judged(vault, 0.0, 1.0, "").fault == ""


def test_an_adapter_that_goes_on_with_blanks_has_not_ended(vault, scores, monkeypatch):
    good = judged(vault, 0.0, 0.75, "")
    monkeypatch.setattr(
        judging, "continued", saying(["fine" + 44 * "\n", "fine"], False)
    )
    better = judged(vault, 0.0, 1.0, "")
    assert better.nll < good.nll and better.fault == "endless"


def saying(said: list[str], ends: bool = True):
    """What generates: the new adapter's text, then that of before, to every prompt."""

    def written(backbone, _policies, prompts, _room, repetition):
        assert repetition > 1
        each, found = len(prompts) // 2, list[list[int]]()
        for end in (ends, True):
            ids = backbone.tokenizer.encode(said.pop(0))
            found += [[*ids, *backbone.end_ids[:end]]] * each
        return found

    return written


def test_the_texts_that_an_adapter_was_judged_by_are_not_kept_with_it(vault, scores):
    new = judged(vault, 0.0, 0.75, "")
    changed = [(one.asked, one.before, one.after, one.own) for one in new.changes]
    assert changed == [
        (f"notes {i}?", "fine", "fine", f"answer notes {i}") for i in (1, 2)
    ]
    body = vault.get("adapter", str(new.number))
    assert body is not None and b"answer notes" not in body and b"fine" not in body
    assert adapters.versions(vault)[0].changes == ()


def test_a_prompt_that_leaves_no_room_for_an_answer_is_not_tried(vault, scores):
    backbone = load_reference(loading.config_of(consent.settings(vault))).backbone
    tries = (Entry(Prompt("so " * n, "a question"), "yes") for n in range(999, 0, -1))
    entry = next(one for one in tries if backbone.fits(one.item()))
    history.add(vault, [entry], "letters")
    new = judged(vault, 0.0, 0.75, "")
    assert new.held_out == 2 and [one.own for one in new.changes] == ["answer notes 2"]


def test_what_does_not_fit_into_the_context_is_left_out_and_counted(vault, meanwhile):
    long = [Entry(Prompt("", "long?"), "word " * 700)]
    history.add(vault, long, "letters")  # the newest, so it would judge
    version = training.train(vault)
    assert (version.trained, version.held_out, version.too_long) == (9, 2, 1)
    assert version.sources == ("mail", "notes")
    line = status.judged(status.shown(version))
    assert line.endswith("; 1 pair is longer than the context, left out")


def test_what_a_run_trained_is_judged_by_what_fits(vault, scores):
    history.add(vault, [Entry(Prompt("", "long?"), "word " * 700)], "letters")
    version = judged(vault, 0.0, 0.5, "spring")
    assert (version.trained, version.held_out, version.too_long) == (10, 1, 1)


def test_too_little_that_fits_is_a_sentence(vault):
    forgetting.forget(vault, ["mail"])
    long = [Entry(Prompt("", f"{i}?"), f"{i} " * 700) for i in range(5)]
    history.add(vault, long, "letters")
    with pytest.raises(IdiolectError, match="3 of the 8 liked pairs in the vault fit"):
        training.train(vault)


def test_what_the_one_in_use_knows_by_heart_does_not_judge(vault, scores):
    good = judged(vault, 0.0, 1.0, "")
    assert good.pairs and len(good.pairs) == good.trained == 9
    forgetting.forget(vault, ["notes"])  # now what it had learnt is among the newest
    assert adapters.versions(vault) == []
    history.add(vault, pairs("notes", 3), "notes")
    known = judged(vault, 0.0, 1.0, "")
    ids = tuple(entry.id for entry in history.entries(vault))
    body = vault.get("adapter", str(known.number))
    assert body is not None
    lora, version = adapters._parsed(body)
    everything = json.dumps(vars(replace(version, pairs=ids)))
    body = dump_lora(lora, {"version": everything})
    record = Record(str(known.number), body)
    vault.put("adapter", [record], Source("adapter", str(known.number)))
    found = judged(vault, 0.0, 0.5, "")
    assert found.nll_in_use is None and found.accepted


@pytest.fixture
def fitted(vault, monkeypatch):
    """Strengths to be found, and the ids of the texts that they are fitted on."""
    consent.choose(vault, fit_strength="yes")
    ids: list[str] = []
    strengths: list[float] = []

    def fit(reference, trials):
        ((_, texts),) = trials[0]
        ids[:] = [item.id for item in texts]
        return [strengths.pop(0) if ids and strengths else 1.0]

    monkeypatch.setattr(strength, "fit", fit)
    return ids, strengths


def test_what_judges_an_adapter_did_not_fit_its_strength(
    vault, scores, fitted, monkeypatch
):
    history.add(vault, pairs("letters", 11), "letters")  # 22 in all: 4 are held out
    newest = [entry.id for entry in history.entries(vault)][-4:]
    seen: list[str] = []
    nll = judging.held_out_nll

    def watched(reference, personals, users, method):
        seen.extend(item.id for item in users[0].held_out)
        return nll(reference, personals, users, method)

    monkeypatch.setattr(judging, "held_out_nll", watched)
    ids, strengths = fitted
    strengths.append(2.0)
    found = judged(vault, 0.0, 0.5, "")
    assert ids == newest[:2] and set(seen) == set(newest[2:])
    assert found.held_out == 2 and found.fitted_on == tuple(newest[:2])
    assert (found.strength, found.fitted, found.accepted) == (2.0, 2.0, True)
    # What it was fitted on says as little about it as what it was trained on.
    history.add(vault, pairs("more", 2), "more")
    seen.clear()
    judged(vault, 0.0, 0.75, "")
    assert set(seen).isdisjoint(found.fitted_on)
    # It is made of these texts, too.
    last = history.entries(vault)[-1]
    assert all(name in found.sources for name in ("mail", "notes", "letters"))
    assert last.source not in found.sources


def test_the_source_of_what_a_strength_is_fitted_on_erases_the_adapter(vault, scores):
    consent.choose(vault, fit_strength="yes")
    history.add(
        vault, pairs("letters", 7), "letters"
    )  # 18; then 22, of which 4 held out
    history.add(vault, pairs("fits", 2), "fits")
    history.add(vault, pairs("judges", 2), "judges")
    found = judged(vault, 0.0, 0.5, "")
    assert "fits" in found.sources and "judges" not in found.sources
    assert forgetting.forget(vault, ["judges"])[1] == []
    assert forgetting.forget(vault, ["fits"])[1] == [found]


def test_an_adapter_that_no_strength_makes_useful_is_refused(vault, scores, fitted):
    history.add(vault, pairs("letters", 11), "letters")
    fitted[1].append(0.0)
    found = judged(vault, 0.0, 1.0, "")
    assert found.nll < found.nll_before and (found.fitted, found.strength) == (0.0, 1.0)
    assert not found.accepted and adapters.active(vault) == 0
    assert "at whatever strength" in status.why_not(status.shown(found))


def test_all_held_out_pairs_judge_unless_the_strength_is_fitted(vault, scores):
    history.add(vault, pairs("letters", 11), "letters")  # 22 in all: 4 are held out
    found = judged(vault, 0.0, 0.5, "")
    assert found.held_out == 4 and (found.strength, found.fitted_on) == (1.0, ())


def test_few_held_out_pairs_fit_no_strength(vault, scores):
    consent.choose(vault, fit_strength="yes")
    found = judged(vault, 0.0, 0.5, "")
    assert found.held_out == 2 and (found.strength, found.fitted_on) == (1.0, ())


def test_the_owner_turns_the_strength_and_everything_that_writes_follows(
    vault, scores, tmp_path
):
    found = judged(vault, 0.0, 0.5, "")
    loaded = load_reference(loading.config_of(consent.settings(vault)))
    backbone, ids = loaded.backbone, torch.arange(3, 27).view(4, 6)

    def own() -> Lora:
        return writing.writer(vault).own

    def logits(*loras: Lora) -> torch.Tensor:
        with torch.no_grad(), attached(backbone, *loras):
            return backbone.model(ids).logits

    raw = own()
    assert adapters.use(vault, found.number, 1.5) == found
    turned = own()
    assert turned.scaling == 1.5 * raw.scaling
    assert adapters.versions(vault) == [replace(found, strength=1.5)]
    elsewhere.export(vault, tmp_path / "peft")
    exported = logits(import_peft(tmp_path / "peft"))
    torch.testing.assert_close(exported, logits(turned), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(exported, logits(raw), atol=1e-2)
    adapters.use(vault, found.number)  # without a strength it stays
    assert own().scaling == turned.scaling
    adapters.use(vault, found.number, 1.0)
    assert own().scaling == raw.scaling
    for wrong in (-0.1, 4.1, float("nan"), float("inf")):
        with pytest.raises(IdiolectError, match="give a number from 0"):
            adapters.use(vault, found.number, wrong)
    with pytest.raises(IdiolectError, match="give the number of an adapter"):
        adapters.use(vault, 0, 1.0)


def test_learning_to_avoid_something_may_cost_a_little(vault, scores):
    judged(vault, 0.0, 1.0, "")
    history.judge(vault, Entry(Prompt("", "no?"), "never"), False)
    reference = load_reference(loading.config_of(consent.settings(vault)))
    user, learnt = learning.split(history.entries(vault))
    for by, accepted in ((0.94, False), (0.96, True), (0.95, False)):
        lora = moved(reference.adapter, by)
        found = judging.adopt(vault, reference, lora, "c-bpo", (user, learnt))
        assert found.accepted == accepted, by


def test_reset_goes_back_to_the_bare_model(vault, scores):
    one = judged(vault, 0.5, 0.25, "a run")
    assert (
        adapters.active(vault) == one.number and len(list(vault.records("shared"))) == 1
    )
    adapters.reset(vault)
    found = load_reference(loading.config_of(consent.settings(vault)))
    backbone, zero = found.backbone, found.adapter
    assert (
        adapters.active(vault) == 0
        and adapters.latest_shared(vault, backbone, zero) is zero
    )
    with pytest.raises(IdiolectError, match="no adapter is in use"):
        adapters.adapter(vault, backbone, zero)
    adapters.activate(vault, one.number)  # it is kept, with what is below it
    shared, _ = adapters.adapter(vault, backbone, zero)
    assert float(next(iter(shared.b.values()))[0, 0]) == 0.5


def test_leaving_drops_the_shared_adapter_and_what_runs_left(vault, scores):
    poor = judged(vault, 0.5, -1.0, "a run")
    assert not poor.accepted and len(list(vault.records("shared"))) == 1
    store = VaultStore(vault, "spring")
    store.write("adapters/sft/device-1.safetensors", b"x")
    store.write("devices/device-1.json", b"{}")
    membership.join(vault, membership.Server("one.example:1", "pem", "00" * 32))
    membership.leave(vault)
    found = load_reference(loading.config_of(consent.settings(vault)))
    backbone, zero = found.backbone, found.adapter
    assert adapters.latest_shared(vault, backbone, zero) is zero
    assert len(list(vault.records("shared"))) == 0
    assert [s.kind for s in vault.sources() if s.kind == "run"] == []
    assert store.read("devices/device-1.json") == b"{}"  # what it took part in counts
    assert len(adapters.versions(vault)) == 1


def test_an_adapter_that_may_be_used_keeps_what_is_below_it(vault, scores):
    one = judged(vault, 0.5, 0.25, "a run")
    membership.leave(vault)
    found = load_reference(loading.config_of(consent.settings(vault)))
    backbone, zero = found.backbone, found.adapter
    shared, _ = adapters.adapter(vault, backbone, zero)
    assert one.accepted and any(b.any() for b in shared.b.values())
    assert adapters.latest_shared(vault, backbone, zero) is zero
