"""A training that is interrupted, and what becomes of what it left."""

from collections.abc import Iterator

import pytest
import torch

from idiolect.client.owner import (
    adapters,
    consent,
    forgetting,
    history,
    interrupted,
    training,
)
from idiolect.client.owner.consent import Refusal
from idiolect.client.owner.vault import Vault
from idiolect.common.engine import reference as references
from idiolect.common.engine.training import Standing, Watch
from idiolect.common.errors import IdiolectError
from idiolect.common.unlabeled import samples
from tests.client.owner.test_owner import KEY, model, pairs

__all__ = ["model"]


@pytest.fixture
def vault(tmp_path, model, monkeypatch) -> Iterator[Vault]:
    monkeypatch.setattr(interrupted, "OFTEN", 0.0)  # keep after every step
    monkeypatch.setattr(interrupted, "SHARE", 1e9)
    with Vault.create(tmp_path / "vault.db", KEY) as made:
        consent.choose(made, backbone=model)
        history.add(made, pairs("mail", 24), "mail")
        history.add(made, pairs("notes", 3), "notes")
        yield made


def until(last: int, steps: list[int]) -> Watch:
    """A watch that notes the steps, and ends the training after the last."""

    def step(at: Standing, _of: int) -> None:
        steps.append(at.step)
        if at.step > last:  # what is kept is what was there a step before
            raise KeyboardInterrupt

    return Watch(step=step)


def ended_after(vault: Vault, last: int, **how) -> list[int]:
    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        training.train(vault, **how, watch=until(last, steps))
    return steps


def trained(vault: Vault, **how) -> tuple[dict[str, torch.Tensor], list[int]]:
    steps: list[int] = []
    new = training.train(vault, **how, watch=until(999, steps))
    found = adapters.read(vault, new.number)
    assert found is not None
    return {**found[0].a, **{f"b {n}": t for n, t in found[0].b.items()}}, steps


def kept(vault: Vault) -> set[str]:
    return {record.name for record in vault.records(interrupted.KIND)}


@pytest.mark.parametrize("method", ["c-bpo", "sft"])
def test_a_repeated_training_goes_on_and_ends_with_the_same_bits(
    vault, method, monkeypatch
):
    whole, steps = trained(vault, method=method)
    assert steps == list(range(1, 10)) and kept(vault) == set()
    made = []
    sampled, scored = samples._sampled, references.score_users
    monkeypatch.setattr(
        samples, "_sampled", lambda *a: made.append("samples") or sampled(*a)
    )
    monkeypatch.setattr(
        references, "score_users", lambda *a: made.append("scores") or scored(*a)
    )
    assert ended_after(vault, 4, method=method)[-1] == 5
    assert ("samples" in made) == (method == "c-bpo")
    assert len(adapters.versions(vault)) == 1
    assert ended_after(vault, 6, method=method) == [5, 6, 7]
    made.clear()
    resumed, steps = trained(vault, method=method)
    assert steps == [7, 8, 9] and made == [] and kept(vault) == set()
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_training_of_something_else_starts_anew(vault):
    ended_after(vault, 4)
    history.judge(vault, history.entries(vault)[0], liked=False)
    assert ended_after(vault, 4)[0] == 1
    assert ended_after(vault, 4, method="sft")[0] == 1
    assert ended_after(vault, 4, method="sft", given=1e-3)[0] == 1
    consent.choose(vault, max_length="256")
    assert ended_after(vault, 4, method="sft", given=1e-3)[0] == 1
    assert ended_after(vault, 5, method="sft", given=1e-3)[0] == 5  # and that goes on


def test_forgetting_erases_what_a_training_left(vault):
    ended_after(vault, 4)
    assert kept(vault) == {"name", "results", *interrupted.STANDING}
    assert interrupted.SOURCE in vault.sources()
    forgetting.forget(vault, ids=[history.entries(vault)[-1].id])  # only judged by it
    assert kept(vault) == set() and interrupted.SOURCE not in vault.sources()
    assert ended_after(vault, 4)[0] == 1


def test_nothing_is_kept_of_what_is_forgotten_meanwhile(vault, tmp_path):
    def step(at: Standing, _of: int) -> None:
        if at.step == 3:
            with Vault.open(tmp_path / "vault.db", KEY) as other:
                forgetting.forget(other, ["mail"])

    with pytest.raises(Refusal, match="forgotten text"):
        training.train(vault, watch=Watch(step=step))
    assert kept(vault) == set() and adapters.versions(vault) == []


def test_what_overflowed_is_not_gone_on_with(vault):
    with pytest.raises(IdiolectError, match="overflowed"):
        training.train(vault, given=1e4 * 0.999)
    assert kept(vault) == set()


def test_a_standing_is_read_as_it_was_written(vault):
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    adam = interrupted.Adam(some(2, 5), some(2, 5), some(2))
    means = interrupted.Means(some(2), some(2), some(2), some(2))
    at = Standing(7, some(2, 5), adam, means, some(2), some(2))
    assert interrupted.standing(vault) is None
    vault.put(interrupted.KIND, interrupted.records_of(at), interrupted.SOURCE)
    read = interrupted.standing(vault)
    assert read is not None and read.step == 7
    for one, other in ((at, read), (at.adam, read.adam), (at.means, read.means)):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, vars(other)[name]), name


def test_it_is_kept_seldom_enough(vault, monkeypatch):
    """A slow disk does not make the training slow."""
    now, kept_at = [0.0], []
    monkeypatch.setattr(interrupted, "monotonic", lambda: now[0])
    monkeypatch.setattr(interrupted, "OFTEN", 5.0)
    monkeypatch.setattr(interrupted, "SHARE", 0.1)

    def slow(_at: Standing) -> list:
        kept_at.append(now[0])
        now[0] += 2
        return []

    monkeypatch.setattr(interrupted, "records_of", slow)

    def step(_at: Standing, _of: int) -> None:
        now[0] += 3

    training.train(vault, watch=Watch(step=step))
    # After 5 s, and 20 s after the 2 s that this took: steps end at 3, 6, 11, ...
    assert kept_at == [6.0]
