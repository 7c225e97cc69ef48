"""The adapter in use for other programs, and somebody else's as one of the owner's."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from idiolect.client.commands import status
from idiolect.client.owner import (
    adapters,
    consent,
    elsewhere,
    forgetting,
    history,
    judging,
    writing,
)
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.common.config import LoraShape
from idiolect.common.data.types import Prompt
from idiolect.common.engine import exports
from idiolect.common.engine.adapters import Lora, attached, import_peft, new_lora
from idiolect.common.engine.backbone import Backbone, load_backbone
from idiolect.common.engine.exports import export_peft
from idiolect.common.errors import IdiolectError
from tests.common.conftest import write_model

IDS = torch.arange(3, 27).view(4, 6)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model"), "llama"))


def fill(vault: Vault, count: int) -> None:
    found = [Entry(Prompt("", f"mail {i}?"), f"answer {i}") for i in range(count)]
    history.add(vault, found, "mail")


@pytest.fixture
def vault(tmp_path, model) -> Iterator[Vault]:
    with Vault.create(tmp_path / "vault.db", RandomKey(bytes(32))) as made:
        consent.choose(made, backbone=model)
        yield made


def backbone_of(vault: Vault) -> Backbone:
    return load_backbone(consent.settings(vault)["backbone"], "float32", "cpu", 512)


@pytest.fixture
def theirs(vault, tmp_path) -> Path:
    """Somebody's PEFT folder."""
    backbone, folder = backbone_of(vault), tmp_path / "theirs"
    zero = new_lora(backbone, LoraShape(rank=2, alpha=2.0), 0, "x")
    draw = torch.Generator().manual_seed(1)
    b = {n: 0.2 * torch.randn(t.shape, generator=draw) for n, t in zero.b.items()}
    export_peft(folder, backbone, zero, Lora(zero.a, b, 1.0))
    return folder


def logits(vault: Vault) -> torch.Tensor:
    one = writing.writer(vault)
    with torch.no_grad(), attached(one.backbone, one.shared, one.own):
        return one.backbone.model(IDS).logits


def test_it_is_used_rolled_back_exported_and_survives_forgetting(
    vault, theirs, tmp_path
):
    version, base = elsewhere.bring(vault, theirs)
    assert base == consent.settings(vault)["backbone"]
    assert version.imported and version.accepted and adapters.active(vault) == 1
    backbone = backbone_of(vault)
    with torch.no_grad(), attached(backbone, import_peft(theirs)):
        wanted = backbone.model(IDS).logits
    torch.testing.assert_close(logits(vault), wanted, atol=1e-5, rtol=1e-5)
    (listed,) = status.adapters(vault)["adapters"]
    assert status.judged(listed) == status.judged(listed, numbers=True) == "imported"
    adapters.use(vault, 1, 2.0)
    elsewhere.export(vault, tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert "Made by somebody else, and imported; strength 2." in card
    adapters.use(vault, 1, 1.0)
    torch.testing.assert_close(logits(vault), wanted, atol=1e-5, rtol=1e-5)
    assert adapters.rollback(vault) == 0
    again, _ = elsewhere.bring(vault, theirs)  # known: used again, not kept twice
    assert again.number == 1 and adapters.active(vault) == 1
    fill(vault, 8)
    forgetting.forget(vault, ["mail"])
    assert [one.number for one in adapters.versions(vault)] == [1]


def test_with_a_history_it_is_judged_by_it(vault, theirs, monkeypatch):
    fill(vault, 8)
    version, _ = elsewhere.bring(vault, theirs)
    assert version.held_out == 1 and version.trained == 0 and version.pairs == ()
    assert version.nll != version.nll_before == version.nll_bare
    assert version.accepted == (adapters.active(vault) == 1)
    assert version.accepted == (version.nll <= version.nll_bare and not version.fault)
    assert version.sources == ()


def test_a_source_that_fitted_its_strength_is_noted(vault, theirs, monkeypatch):
    fill(vault, 24)
    chosen = consent.settings(vault) | {"fit-strength": "yes"}
    monkeypatch.setattr(elsewhere, "settings", lambda _: chosen)
    monkeypatch.setattr(judging, "settings", lambda _: chosen)
    version, _ = elsewhere.bring(vault, theirs)
    assert version.fitted_on and version.sources == ("mail",)
    forgetting.forget(vault, ["mail"])
    assert adapters.versions(vault) == []


def test_pairs_that_are_too_long_judge_nothing(vault, theirs):
    long = [Entry(Prompt("", f"mail {i}?"), "answer " * 200) for i in range(8)]
    history.add(vault, long, "mail")
    version, _ = elsewhere.bring(vault, theirs)
    assert version.accepted and version.held_out == 0


def test_one_that_was_kept_on_another_model_is_kept_again(vault, theirs, tmp_path):
    elsewhere.bring(vault, theirs)
    other = write_model(tmp_path / "other", "llama", rms_norm_eps=1e-3)
    consent.choose(vault, backbone=str(other))
    again, _ = elsewhere.bring(vault, theirs)
    assert again.number == 2 == adapters.active(vault)
    assert logits(vault).isfinite().all()


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    path = folder / "adapter_model.safetensors"
    return path, load_file(path)


KEY = "base_model.model.model.layers.{}.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"r": 3}, "no pair of matrices of rank 3"),
        ({"rank_pattern": {"q_proj": 3}}, "q_proj' has no pair of matrices of rank 3"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern has 'q_proj': 0"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern has"),
    ],
    ids=str,
)
def test_what_cannot_be_taken_over_is_named(vault, theirs, change, words):
    edited(theirs, **change)
    refused(vault, theirs, words)


def test_every_tensor_is_used_or_named(vault, theirs):
    path, whole = tensors(theirs)
    a, b = (KEY.format("0.self_attn.q_proj", part) for part in "AB")
    more = KEY.format("7.self_attn.q_proj", "A"), KEY.format("7.self_attn.q_proj", "B")
    narrow = {a: whole[a][:, :-1].contiguous(), b: whole[b]}
    head = "base_model.model.lm_head.lora_A.weight"
    dora = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    cases = {
        "layers.7.self_attn.q_proj' does not fit": whole
        | {more[0]: whole[a].clone(), more[1]: whole[b].clone()},
        "q_proj' has no pair": {k: v for k, v in whole.items() if k != b},
        "layers.0.self_attn.q_proj' does not fit": whole | narrow,
        "it holds base_model.model.lm_head": whole | {head: whole[a].clone()},
        "it holds .*magnitude": whole | {dora: torch.ones(3)},
        "is of type int8": whole | {a: whole[a].to(torch.int8)},
    }
    for words, changed in cases.items():
        save_file(changed, path, {"format": "pt"})
        refused(vault, theirs, words)


def refused(vault: Vault, folder: Path, words: str) -> None:
    with pytest.raises(IdiolectError, match=words) as error:
        elsewhere.bring(vault, folder)
    assert "\n" not in str(error.value)
    assert adapters.versions(vault) == [] and adapters.active(vault) == 0


def test_a_folder_that_holds_none_is_named(vault, tmp_path):
    refused(vault, tmp_path / "nothing", "needs adapter_config.json")


@pytest.mark.parametrize("kind", elsewhere.FORMATS)
def test_nothing_is_left_of_an_export_that_fails(
    vault, theirs, tmp_path, kind, monkeypatch
):
    elsewhere.bring(vault, theirs)
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def full(*_args: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(exports, "_write_card", full)
        with pytest.raises((IdiolectError, KeyboardInterrupt)):
            elsewhere.export(vault, tmp_path / "out", kind)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", elsewhere.FORMATS)
def test_an_export_is_for_its_owner_alone(vault, theirs, tmp_path, kind):
    elsewhere.bring(vault, theirs)
    found = elsewhere.export(vault, tmp_path / "out", kind)
    assert not found.get("without") and found.get("difference", 0) < 1e-4
    for file in ((tmp_path / "out"), *(tmp_path / "out").iterdir()):
        assert file.stat().st_mode & 0o077 == 0, file
    with pytest.raises(IdiolectError, match="is not empty"):
        elsewhere.export(vault, tmp_path / "out", kind)
    shutil.rmtree(tmp_path / "out")
