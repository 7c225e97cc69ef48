"""Small real models for the engine's tests, made on the spot and loaded from disk."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from idiolect.common.config import Config, parse
from idiolect.common.data import personas
from idiolect.common.data.types import Item, Prompt
from idiolect.common.engine.backbone import FAMILIES, Backbone, load_backbone
from idiolect.common.engine.reference import Reference
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet

torch.set_num_threads(1)  # small matrices: a second thread only waits

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": hf.LlamaConfig,
    "mistral": hf.MistralConfig,
    "qwen2": hf.Qwen2Config,
    "qwen3": hf.Qwen3Config,
    "gemma": hf.GemmaConfig,
    "gemma2": hf.Gemma2Config,
    "gemma3_text": hf.Gemma3TextConfig,
    "phi": hf.PhiConfig,
    "phi3": hf.Phi3Config,
}


def write_tokenizer(folder: Path, chat_template: str | None = None) -> None:
    """A byte-level BPE tokenizer with <pad>, <s> and </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        ["the quick brown fox writes a headline"] * 4, trainer
    )
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if chat_template:
        fast.chat_template = chat_template
    fast.save_pretrained(folder)


def write_model(
    folder: Path, family: str, chat_template: str | None = None, **changes: object
) -> Path:
    """A random model of a family, with weights large enough to have opinions."""
    torch.manual_seed(0)
    extra: dict[str, float | None] = (
        {"head_dim": 8} if "gemma" in family or family == "qwen3" else {}
    )
    if "gemma" in family:
        extra["final_logit_softcapping"] = 3.0 if family != "gemma" else None
    config = CONFIGS[family](**{**SIZES, **extra, **changes})
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    write_tokenizer(folder, chat_template)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return the folder of a random model of a family, written once."""
    written: dict[str, Path] = {}

    def get(family: str) -> Path:
        assert family in FAMILIES
        if family not in written:
            written[family] = write_model(tmp_path_factory.mktemp(family), family)
        return written[family]

    return get


@pytest.fixture(scope="session")
def backbone(model_folder) -> Backbone:
    """A random Llama."""
    return load_backbone(str(model_folder("llama")), "float32", "cpu", 96)


@pytest.fixture(scope="session")
def items() -> list[Item]:
    """Twelve items of different lengths."""
    text = "the quick brown fox writes a headline about twelve odd things"
    words = text.split(" ")
    return [
        Item(
            f"i{k}",
            Prompt("Headline for: ", " ".join(words[: 2 + k % 7]), "\nHeadline:"),
            " ".join(words[k % 5 : k % 5 + 1 + k % 3]),
        )
        for k in range(12)
    ]


# Three personas on a model that has room for their prompts.
SETTINGS = {
    "task": "rating",
    "users": 3,
    "development-users": 0,
    "history": 6,
    "held-out": 3,
    "personalise.learning-rates": "3e-3",
    "personalise.epochs": 2,
    "personalise.batch": 4,
    "unlabeled.kind": "others",
    "unlabeled.bank": 8,
    "evaluate.generate": False,
}


def config(**changes) -> Config:
    named = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    return parse({**SETTINGS, **named})


CONFIG = config()


@pytest.fixture(scope="module")
def users():
    return personas.make(CONFIG).users


@pytest.fixture(scope="module")
def wide(model_folder):
    return load_backbone(str(model_folder("llama")), "float32", "cpu", 400)


@pytest.fixture(scope="module")
def shared(wide):
    from .engine.test_adapters import adapter

    return adapter(wide, "s", 3)


@pytest.fixture(scope="module")
def reference(wide, shared) -> Reference:
    return Reference(wide, shared)


@pytest.fixture(scope="module")
def others(users) -> UnlabeledSet:
    return UnlabeledSet(
        tuple(Unlabeled(item, 1.0, user.id) for user in users for item in user.history)
    )
