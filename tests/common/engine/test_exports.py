"""What is exported computes what the policy computes, and says what it may reveal."""

import json
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from idiolect.common.config import LoraShape
from idiolect.common.engine import exports, modelfile
from idiolect.common.engine.adapters import Lora, attached, new_lora, scaled
from idiolect.common.engine.backbone import Backbone, load_backbone
from idiolect.common.engine.exports import REVEALS, export_gguf, export_merged
from idiolect.common.engine.wording import render
from idiolect.common.errors import IdiolectError
from tests.common.conftest import write_model
from tests.common.gguf.writing import gguf, made, tensors, write

IDS = torch.arange(3, 27).view(4, 6)
GQA = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
TEMPLATE = (
    "<s>{% if messages[0].role != 'system' %}[system]\nBe kind.</s>\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)


def loaded(folder: Path, dtype: str = "float32") -> Backbone:
    return load_backbone(str(folder), dtype, "cpu", 96)


def policy(backbone: Backbone, rank: int = 4) -> tuple[Lora, Lora]:
    """A shared and an own adapter, of different scalings."""
    found = []
    for seed, scaling in ((1, 0.5), (2, 1.5)):
        lora = new_lora(backbone, LoraShape(rank=rank, alpha=rank), 0, f"{seed}")
        draw = torch.Generator().manual_seed(seed)
        b = {n: 0.2 * torch.randn(t.shape, generator=draw) for n, t in lora.b.items()}
        found.append(Lora(lora.a, b, scaling))
    return found[0], found[1]


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits.float()


# --- merged ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "phi3"])
def test_a_merged_model_has_the_policys_logits(family, model_folder, tmp_path):
    backbone = loaded(model_folder(family))
    shared, own = policy(backbone)
    with attached(backbone, shared, own):
        wanted = logits(backbone.model)
    off, without = export_merged(tmp_path / "out", backbone, shared, own, "By sft.")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found = logits(again)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - logits(backbone.model)).abs().max() > 0.1
    assert 0 <= off < 1e-4
    assert bool(without) == (family != "llama")
    assert (tmp_path / "out" / "model.gguf").exists() == (family == "llama")


def test_it_is_rounded_once_and_the_difference_is_said(tmp_path):
    folder = write_model(tmp_path / "in", "llama", TEMPLATE, dtype="bfloat16")
    weights = {
        n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    backbone = loaded(folder)
    shared, own = policy(backbone)
    off, _ = export_merged(tmp_path / "out", backbone, shared, own)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == weights.keys()
    for name, weight in weights.items():
        projection = name.removesuffix(".weight")
        if projection in own.b:
            deltas = (
                x.scaling * x.b[projection] @ x.a[projection] for x in (shared, own)
            )
            exact = weight.float() + sum(deltas)
            # Half a unit in the last place of bfloat16, and float32's own rounding.
            bound = exact.abs() * 2.0**-8 * 1.001 + 1e-6
            assert ((merged[name].float() - exact).abs() <= bound).all()
            assert not torch.equal(merged[name], weight)
        else:
            assert torch.equal(merged[name], weight)
        assert merged[name].dtype == torch.bfloat16
    with attached(backbone, shared, own):
        wanted = logits(backbone.model)
    found = logits(loaded(tmp_path / "out").model)
    assert 1e-4 < off < 100 * (found - wanted).abs().max()
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.get_chat_template() == TEMPLATE
    for name in ("generation_config.json", "tokenizer.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_a_sum_that_the_type_cannot_hold_is_refused(tmp_path):
    folder = write_model(tmp_path / "in", "llama")
    weights = {n: t.half() for n, t in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    backbone = loaded(folder)
    shared, own = policy(backbone)
    with pytest.raises(IdiolectError, match="its type F16 cannot hold"):
        export_merged(tmp_path / "out", backbone, shared, scaled(own, 1e6))


def test_a_model_in_parts_stays_in_parts(tmp_path):
    folder = write_model(tmp_path / "in", "llama")
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    backbone = loaded(folder)
    off, _ = export_merged(tmp_path / "out", backbone, *policy(backbone))
    names = {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert (
        names == {file.name for file in folder.glob("*.safetensors")} and len(names) > 2
    )
    assert off < 1e-4


def test_a_gguf_backbone_is_merged_too(tmp_path):
    model = made("llama")
    backbone = loaded(write(tmp_path / "model.gguf", model, "Q8_0"))
    shared, own = policy(backbone)
    with attached(backbone, shared, own):
        wanted = logits(backbone.model)
    off, without = export_merged(tmp_path / "out", backbone, shared, own)
    assert off < 1e-4 and not without
    assert not (tmp_path / "out" / "gguf.json").exists()
    again: Any = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), wanted, atol=1e-4, rtol=1e-4)
    # model.gguf has the same weights in F16, in the order of llama.cpp.
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    found = {one.name: np.array(one.data) for one in reader.tensors}
    for name, values in tensors(again).items():
        kept = found[name].reshape(values.shape).astype(np.float32)
        assert np.allclose(kept, values, rtol=2.0**-11, atol=1e-7), name


# --- adapters for llama.cpp --------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 16])
def test_the_adapter_in_a_file_is_the_policys(rank, tmp_path):
    """8 heads and 2 of keys: a wrong order of rows, or a wrong scale, is another delta."""
    folder = write_model(tmp_path / "in", "llama", TEMPLATE, **GQA)
    backbone = loaded(folder)
    shared, own = policy(backbone, rank)
    assert not export_gguf(tmp_path / "out", backbone, shared, own)
    file = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    found = {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in file.tensors}
    alpha = file.fields["adapter.lora.alpha"].contents()
    bare = {t.name: t for t in gguf.GGUFReader(tmp_path / "out" / "base.gguf").tensors}
    model: Any = hf.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name in own.b:
            deltas = (x.scaling * x.b[name] @ x.a[name] for x in (shared, own))
            model.get_parameter(f"{name}.weight").copy_(sum(deltas))
    wanted = tensors(model)
    names = {name.rpartition(".")[0] for name in found}
    assert len(names) == 2 * 7 and names < bare.keys()
    for name in names:
        a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        scale = alpha / b.shape[1] if alpha else 1.0
        assert np.abs(scale * b @ a - wanted[name]).max() < 1e-6
        assert tuple(bare[name].shape[::-1]) == wanted[name].shape


def test_a_backbone_that_came_in_a_file_goes_along_as_it_is(tmp_path):
    file = write(tmp_path / "model.gguf", made("gemma2"), "Q8_0")
    file.chmod(0o644)
    backbone = loaded(file)
    assert not export_gguf(tmp_path / "out", backbone, *policy(backbone))
    base = tmp_path / "out" / "base.gguf"
    assert base.read_bytes() == file.read_bytes() and base.samefile(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644  # others may still read theirs


def test_a_file_on_another_disk_is_copied(tmp_path, monkeypatch):
    file = write(tmp_path / "model.gguf", made("llama"), "Q8_0")
    backbone = loaded(file)

    def refuse(*_args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    assert not export_gguf(tmp_path / "out", backbone, *policy(backbone))
    assert (tmp_path / "out" / "base.gguf").read_bytes() == file.read_bytes()


def test_a_family_without_names_is_refused_in_a_sentence(model_folder, tmp_path):
    backbone = loaded(model_folder("phi"))
    with pytest.raises(
        IdiolectError, match="'phi' has no names .*: take `--format peft`"
    ):
        export_gguf(tmp_path / "out", backbone, *policy(backbone))


def test_where_the_base_cannot_be_written_the_adapter_is(model_folder, tmp_path):
    backbone = loaded(model_folder("gemma"))
    without = export_gguf(tmp_path / "out", backbone, *policy(backbone))
    assert "a whole model of the family 'gemma' is not written" in without
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"adapter.gguf", "README.md"}


def test_a_card_says_what_is_in_the_folder_and_nothing_private(tmp_path):
    folder = write_model(tmp_path / "name of my home" / "model-7", "llama")
    backbone = loaded(folder)
    for number, export in enumerate((exports.export_peft, export_gguf, export_merged)):
        place = tmp_path / str(number)
        export(place, backbone, *policy(backbone), "Trained by sft on 9 pairs.")
        card = (place / "README.md").read_text()
        assert REVEALS in card and "base_model: model-7" in card
        assert "on top of `model-7`. Trained by sft on 9 pairs." in card
        assert "licence" in card and "home" not in card
        private = (place / "README.md", *place.glob("Modelfile"))
        assert all(file.stat().st_mode & 0o077 == 0 for file in private)
    assert "0.34.0" in (tmp_path / "1" / "README.md").read_text()
    assert "--format merged" in (tmp_path / "1" / "README.md").read_text()


# --- the Modelfile -----------------------------------------------------------------------


def said_by(text: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of a template, as far as ours go."""
    pieces = re.split(r"\{\{ (.*?) \}\}", text)
    known: dict[str, str] = {}

    def value(word: str) -> str:
        return word[1:-1] if word.startswith('"') else known[word]

    def run(place: int, on: bool) -> tuple[str, int]:
        """Text up to the `else` or `end` that closes a block, and where that is."""
        found = ""
        while place < len(pieces):
            if place % 2 == 0:
                found += pieces[place] if on else ""
                place += 1
                continue
            word = pieces[place]
            if word == "end" or word.startswith("else"):
                return found, place
            if word.startswith("if "):
                inner, place = branches(place, on)
                found += inner
            elif word == "range .Messages":
                end = place
                for message in messages:
                    known[".Role"], known[".Content"] = (
                        message["role"],
                        message["content"],
                    )
                    inner, end = run(place + 1, on)
                    found += inner
                place = end
            elif "=" in word:
                name, _, other = word.replace(":=", "=").partition(" = ")
                if on:
                    known[name] = value(other)
            elif on:
                found += value(word)
            place += 1
        return found, place

    def branches(place: int, on: bool) -> tuple[str, int]:
        found, taken = "", False
        while pieces[place] != "end":
            test = pieces[place].partition("if eq ")[2]
            true = not test or len({value(word) for word in test.split(" ")}) == 1
            inner, place = run(place + 1, on and true and not taken)
            found, taken = found + inner, taken or true
        return found, place

    return run(0, True)[0]


TALK = ("Hello?", 'Yes, "here" {}.', "And 🙂\n\nnow?", "Now.", "Bye")


@pytest.mark.parametrize("template", [TEMPLATE, NO_SYSTEM])
@pytest.mark.parametrize("turns", [1, 3, 5])
@pytest.mark.parametrize("system", [None, "Answer in rhymes."])
def test_ollamas_template_writes_what_the_chat_template_writes(
    template, turns, system, tmp_path
):
    if template == NO_SYSTEM and system:
        pytest.skip("it takes none")
    backbone = loaded(write_model(tmp_path / "in", "llama", template))
    roles = ("user", "assistant") * 3
    messages = [
        {"role": r, "content": t} for r, t in zip(roles, TALK[:turns], strict=False)
    ]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    found = said_by(modelfile.template(backbone.wording), messages)
    wanted = render("x", backbone.tokenizer, TALK[:turns], system)
    assert found == wanted and TALK[0] in wanted


def test_a_bos_that_the_tokenizer_writes_is_not_written_twice(tmp_path):
    backbone = loaded(write_model(tmp_path / "in", "llama", TEMPLATE))
    wording = backbone.wording
    assert modelfile.template(wording).count("<s>") == 2  # with and without a system's
    adding = replace(wording, prefix=[backbone.tokenizer.bos_token_id])
    assert "<s>" not in modelfile.template(adding)


def test_a_modelfile_names_files_beside_it_and_every_setting(tmp_path):
    folder = write_model(tmp_path / "in", "llama", TEMPLATE)
    backbone, place = loaded(folder), tmp_path / 'it\'s a "new" folder'
    assert not export_gguf(place, backbone, *policy(backbone))
    lines = (place / "Modelfile").read_text()
    assert re.findall(r"(?m)^(FROM|ADAPTER) (.*)$", lines) == [
        ("FROM", "./base.gguf"),
        ("ADAPTER", "./adapter.gguf"),
    ]
    assert all((place / name).is_file() for name in ("base.gguf", "adapter.gguf"))
    assert lines.count('"""') == 2 and 'TEMPLATE """' in lines
    assert 'PARAMETER stop "</s>"\n' in lines and "PARAMETER num_ctx 128\n" in lines
    _, without = export_merged(tmp_path / "out", backbone, *policy(backbone))
    assert not without
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\nTEMPLATE") and "ADAPTER" not in text


def test_a_modelfile_whose_model_is_missing_is_not_written(tmp_path, monkeypatch):
    backbone = loaded(write_model(tmp_path / "in", "llama"))
    monkeypatch.setattr(exports, "_put_base", lambda *_: None)
    without = export_gguf(tmp_path / "out", backbone, *policy(backbone))
    assert "base.gguf is missing" in without
    assert not (tmp_path / "out" / "Modelfile").exists()


def test_without_a_chat_template_the_prompt_stands_alone(model_folder):
    backbone = loaded(model_folder("llama"))
    assert modelfile.template(backbone.wording) == "{{ .Prompt }}"


@pytest.mark.parametrize("odd", ['"""', "}}", '"'])
def test_a_template_that_a_modelfile_cannot_hold_is_refused(odd, tmp_path):
    template = TEMPLATE.replace("<s>", odd, 1) if odd == '"' else TEMPLATE
    if odd != '"':
        template = f"{{{{ {odd!r} }}}}{TEMPLATE}"
    backbone = loaded(write_model(tmp_path / "in", "llama", template))
    without = export_gguf(tmp_path / "out", backbone, *policy(backbone))
    assert "which a Modelfile cannot say" in without
    assert not (tmp_path / "out" / "Modelfile").exists()
    assert (tmp_path / "out" / "adapter.gguf").exists()


def test_files_that_were_read_are_not_changed(tmp_path):
    folder = write_model(tmp_path / "in", "llama")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    backbone = loaded(folder)
    export_merged(tmp_path / "out", backbone, *policy(backbone))
    export_gguf(tmp_path / "gguf", backbone, *policy(backbone))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    shutil.rmtree(folder)
    assert json.loads((tmp_path / "out" / "config.json").read_text())
