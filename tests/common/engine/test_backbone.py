import json

import pytest

from idiolect.common.data.types import Item, Prompt
from idiolect.common.engine.backbone import (
    FAMILIES,
    Encoded,
    load_backbone,
    locate,
    weights_hash,
)
from idiolect.common.errors import IdiolectError
from tests.common.conftest import write_model

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def item(text: str, target: str = "a headline") -> Item:
    return Item("x", Prompt("Headline for: ", text, "\nHeadline:"), target)


def test_encoding_is_prompt_then_completion_then_end(backbone):
    encoded = backbone.encode(item("the quick brown fox"))
    decode = backbone.tokenizer.decode
    prompt, completion = (
        encoded.ids[: encoded.prompt_length],
        encoded.ids[encoded.prompt_length :],
    )
    assert decode(prompt) == "Headline for: the quick brown fox\nHeadline:"
    assert decode(completion[:-1]) == " a headline"
    assert completion[-1] == backbone.tokenizer.eos_token_id
    assert not encoded.truncated


def test_long_inputs_lose_their_left_only(backbone):
    text = " ".join(f"word{k}" for k in range(60))
    encoded = backbone.encode(item(text))
    assert encoded.truncated
    assert backbone.context - 2 <= len(encoded.ids) <= backbone.context
    prompt = backbone.tokenizer.decode(encoded.ids[: encoded.prompt_length])
    assert prompt.startswith("Headline for: ")
    assert prompt.endswith("word58 word59\nHeadline:")
    assert backbone.decode(list(encoded.ids[encoded.prompt_length :])) == "a headline"


def test_instruction_and_target_are_never_cut(backbone):
    with pytest.raises(
        IdiolectError, match="item 'x' needs more than the context of 96"
    ):
        backbone.encode(item("short", target="quite " * 120))


def test_chat_template_is_used(tmp_path):
    folder = write_model(tmp_path, "qwen2", CHAT)
    backbone = load_backbone(str(folder), "float32", "cpu", 96)
    encoded = backbone.encode(item("the fox"))
    prompt = backbone.tokenizer.decode(encoded.ids[: encoded.prompt_length])
    expected = "<s>user\nHeadline for: the fox\nHeadline:\n<s>assistant\n"
    assert prompt == expected
    completion = encoded.ids[encoded.prompt_length : -1]
    assert backbone.tokenizer.decode(completion) == "a headline"
    long = backbone.encode(item(" ".join(f"word{k}" for k in range(60))))
    assert long.truncated and len(long.ids) <= 96


def test_decoding_stops_at_the_end_and_strips(backbone):
    ids = backbone.tokenizer(" a headline ")["input_ids"]
    end = backbone.tokenizer.eos_token_id
    assert backbone.decode([*ids, end, *ids]) == "a headline"


def test_one_backbone_per_process(model_folder):
    arguments = (str(model_folder("llama")), "float32", "cpu", 96)
    assert load_backbone(*arguments) is load_backbone(*arguments)
    model = load_backbone(*arguments).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_hash_follows_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    folder = write_model(tmp_path / "model", "llama")
    first = weights_hash(folder)
    assert weights_hash(folder) == first
    path = folder / "model.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(bytes(changed))
    assert weights_hash(folder) != first


def test_other_families_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(IdiolectError, match="family 'gpt2', which is not supported"):
        load_backbone(str(tmp_path), "float32", "cpu", 96)
    assert "gpt2" not in FAMILIES


def test_missing_backbones_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(IdiolectError, match="could not be fetched"):
        locate("nobody/no-such-model")
    with pytest.raises(IdiolectError, match="neither a folder nor a model id"):
        locate("no such model")
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def ask(*_args, **_more):
        raise AssertionError("the hub was asked for a path")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    for path in (
        "/no/such/folder",
        "./models",
        "../x",
        "~/none",
        "a/b/c",
        "models/",
        ".",
    ):
        if path != ".":
            with pytest.raises(
                IdiolectError, match="is neither a folder nor a GGUF file"
            ):
                locate(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert locate("models/mine") == tmp_path / "models" / "mine"
    with pytest.raises(IdiolectError, match=r"no config\.json"):
        load_backbone(str(tmp_path), "float32", "cpu", 96)


def test_pickled_weights_are_refused(tmp_path):
    import torch

    folder = write_model(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(IdiolectError, match="safetensors"):
        load_backbone(str(folder), "float32", "cpu", 96)


def test_encoded_is_plain_data():
    assert Encoded((1, 2, 3), 2) == Encoded((1, 2, 3), 2, False)
