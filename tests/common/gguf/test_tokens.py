"""Token ids of a GGUF file are those of the tokenizer that it was made of."""

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Tokenizer, pre_tokenizers, trainers
from transformers import AutoTokenizer, GemmaTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_base import generate_merges

from idiolect.common.engine.backbone import load_backbone
from idiolect.common.errors import IdiolectError
from idiolect.common.gguf import tokens
from idiolect.common.gguf.convert import converted
from idiolect.common.gguf.header import Header

from .writing import made, vocabulary, write

TEXTS = (
    "Tea at 12345 o'clock, they'll say: 3.14159 or 007?",
    "日本語のテキスト、中文和한국어",
    "emoji 🙂👩‍👩‍👧 and e\u0301 against é",
    "a  b   c    d\t\te     ",
    "x\r\ny\r\n\r\nz\n\n\n  w",
    "DON'T don't can't  '  ''",
    "def f(x):\n    return x**2  # ½ ① ²",
    " leading and trailing ",
    "",
    "<|end|> and <think>inside</think><|stop|>",
)
# As the tokenizer.json of Llama 3, Qwen 2 and SmolLM2 have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**BYTES, "use_regex": True}],
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {**BYTES, "use_regex": True},
    ],
    "llama-bpe": [
        {
            "type": "Split",
            "pattern": {"Regex": LLAMA3},
            "behavior": "Isolated",
            "invert": False,
        },
        {**BYTES, "use_regex": False},
    ],
}
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS["tekken"] = [
    {**SPLITS["llama-bpe"][0], "pattern": {"Regex": TEKKEN}},
    {**BYTES, "use_regex": False},
]
CORPUS = [*TEXTS[:-2] * 20, "the tea that they like, 12 34 567 8900 12345"] * 3


def byte_level(rule: str) -> Tokenizer:
    """The original of a byte-level file, trained on a few texts."""
    if rule == "qwen2":
        model = byte_level("gpt-2")
        spec = json.loads(model.to_str())["model"]
        pairs: Any = [tuple(pair) for pair in spec["merges"]]
        named = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|end|>")
        made = Qwen2Tokenizer(vocab=spec["vocab"], merges=pairs, **named)
        return made.backend_tokenizer
    plain = Tokenizer(tokenizers.models.BPE())
    spec = json.loads(plain.to_str())
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": SPLITS[rule]}
    spec["model"]["ignore_merges"] = rule in ("llama-bpe", "tekken")
    found = Tokenizer.from_str(json.dumps(spec))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|stop|>", "<|begin|>"],
    )
    found.train_from_iterator(CORPUS, trainer)
    return found


def words_of(rule: str, original: Tokenizer) -> dict[str, Any]:
    """A vocabulary as llama.cpp's converter writes it."""
    spec = json.loads(original.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].__getitem__)
    tokens += [t for t in ("<think>", "</think>") if t not in tokens]
    kinds = [3 if t.startswith("<|") else 4 if "think>" in t else 1 for t in tokens]
    return {
        "model": "gpt2",
        "pre": rule,
        "tokens": tokens,
        "token_type": kinds,
        "merges": [" ".join(pair) for pair in spec["merges"]],
        "eos_token_id": tokens.index("<|end|>"),
        "bos_token_id": tokens.index("<|begin|>"),
    }


def model(words: dict[str, Any]) -> Any:
    """A model with an embedding for each token."""
    return made("llama", vocab_size=len(words["tokens"]))


def read(folder: Path, words: dict[str, Any], case: Any = None) -> Any:
    file = write(folder / "model.gguf", case or model(words), words=words)
    return AutoTokenizer.from_pretrained(converted(file))


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"])
def test_ids_are_those_of_the_original(rule, tmp_path):
    original = byte_level(rule)
    words = words_of(rule, original)
    found = read(tmp_path, words)
    for token, kind in zip(words["tokens"], words["token_type"], strict=True):
        if kind != 1:
            added = tokenizers.AddedToken(token, special=kind == 3, normalized=False)
            (original.add_special_tokens if kind == 3 else original.add_tokens)([added])
    for text in TEXTS:
        wanted = original.encode(text, add_special_tokens=False).ids
        assert found(text, add_special_tokens=False)["input_ids"] == wanted, text
        if rule != "qwen2":  # which writes one form of Unicode
            assert found.decode(wanted) == text
    begins = found("tea")["input_ids"][0] == words["bos_token_id"]
    assert begins == (rule in ("llama-bpe", "tekken"))


def test_the_rules_differ_where_the_test_says():
    """Digits and line ends tell the rules apart, so a wrong rule would show above."""
    ids = {}
    words = words_of("gpt-2", byte_level("gpt-2"))
    for rule in ("gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"):
        said = {f"tokenizer.ggml.{k}": v for k, v in {**words, "pre": rule}.items()}
        header = Header(Path("x"), {"general.architecture": "llama", **said}, {})
        found = tokens.tokenizer(header)[0]
        ids[rule] = tuple(tuple(found.encode(t).ids) for t in TEXTS)
    assert len(set(ids.values())) == 5


def pieces() -> tuple[list[str], list[float]]:
    """Tokens and scores of a SentencePiece model."""
    trained = Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=380, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    learnt = sorted(trained.get_vocab().items(), key=lambda one: one[1])
    whole = [token for token, _ in learnt if len(token) > 1]
    single = [token for token, _ in learnt if len(token) == 1 and token not in "日本語"]
    control = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*control, *bytes_, *whole, *single]
    scores = [0.0] * 259 + [-float(n) for n in range(len(whole) + len(single))]
    return tokens, scores


def sentencepiece(**more: Any) -> dict[str, Any]:
    tokens, scores = pieces()
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **more,
    }


def llama2(words: dict[str, Any], prefix: bool) -> Tokenizer:
    """As the tokenizer.json of Llama 2 and Mistral, with transformers' merges."""
    scores = dict(zip(words["tokens"], words["scores"], strict=True))
    vocab = {token: number for number, token in enumerate(words["tokens"])}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    first = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    added = [
        {
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "id": number,
            "content": words["tokens"][number],
            "special": True,
        }
        for number in range(3)
    ]
    spec = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*first, spaces]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [list(m) for m in generate_merges(vocab, scores)],
        },
    }
    return Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_has_the_ids_of_the_original(prefix, tmp_path):
    words = sentencepiece(add_space_prefix=prefix)
    found, original = read(tmp_path, words), llama2(words, prefix)
    for text in (*TEXTS, "a</s>b"):
        wanted = original.encode(text).ids
        assert found(text)["input_ids"] == [1, *wanted], text
        if "</s>" not in text:  # a mark is put behind a control token, too
            assert found.decode(wanted) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct*.model.v3"])
def test_mistrals_own_tokenizers_have_the_ids_of_sentencepiece(name):
    """Real vocabularies, where `pip install sentencepiece mistral-common` was run."""
    library = pytest.importorskip("sentencepiece")
    package = importlib.util.find_spec("mistral_common")
    if package is None or package.origin is None:
        pytest.skip("needs mistral-common")
    (file,) = (Path(package.origin).parent / "data").glob(name)
    original = library.SentencePieceProcessor(model_file=str(file))
    numbers = range(original.get_piece_size())
    special = {0: 2, 1: 3, 2: 3}
    words = {
        "model": "llama",
        "tokens": [original.id_to_piece(n) for n in numbers],
        "scores": [original.get_score(n) for n in numbers],
        "token_type": [
            6
            if original.is_byte(n)
            else 3
            if original.is_control(n)
            else special.get(n, 1)
            for n in numbers
        ],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    said = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    header = Header(Path("x"), {"general.architecture": "llama", **said}, {})
    found, _, special_ids = tokens.tokenizer(header)
    for text in (*TEXTS[:-1], *pages()):
        wanted = [1, *original.encode(text)]
        assert found.encode(text).ids == wanted, text
    assert special_ids["eos_token_id"] == [2]


def pages() -> list[str]:
    """The paragraphs of the documentation."""
    docs = Path(__file__).parents[3] / "docs"
    return [
        text for page in docs.glob("*.md") for text in page.read_text().split("\n\n")
    ]


@pytest.mark.slow
def test_mistrals_byte_level_tokenizer_has_the_ids_of_tiktoken():
    """A real vocabulary, where `pip install tiktoken mistral-common` was run."""
    library = pytest.importorskip("tiktoken")
    package = importlib.util.find_spec("mistral_common")
    if package is None or package.origin is None:
        pytest.skip("needs mistral-common")
    file = Path(package.origin).parent / "data" / "tekken_240911.json"
    said = json.loads(file.read_text())
    count = said["config"]["default_vocab_size"] - 1000  # behind the special tokens
    ranks = {
        base64.b64decode(one["token_bytes"]): one["rank"]
        for one in said["vocab"][:count]
    }
    original = library.Encoding(
        "tekken",
        pat_str=said["config"]["pattern"],
        mergeable_ranks=ranks,
        special_tokens={},
    )
    spelling = bytes_to_unicode()
    spelt = {token: "".join(spelling[byte] for byte in token) for token in ranks}
    merges = [
        f"{spelt[token[:cut]]} {spelt[token[cut:]]}"
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    special = [f"<SPECIAL_{number}>" for number in range(1000)]
    words = {
        "model": "gpt2",
        "pre": "tekken",
        "tokens": [*special, *spelt.values()],
        "token_type": [3] * 1000 + [1] * count,
        "merges": merges,
        "bos_token_id": 1,
    }
    header_said = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    header = Header(Path("x"), {"general.architecture": "llama", **header_said}, {})
    found = tokens.tokenizer(header)[0]
    for text in (*TEXTS[:-1], *pages()):
        wanted = [1, *(1000 + number for number in original.encode_ordinary(text))]
        assert found.encode(text).ids == wanted, text


def test_gemma_has_the_ids_of_the_original(tmp_path):
    words = sentencepiece()
    words["tokens"] += ["  ", "    "]
    words["token_type"] += [4, 4]
    words["scores"] += [-500.0, -501.0]
    found = read(tmp_path, words, made("gemma", vocab_size=len(words["tokens"])))
    tokens = [t if t.strip(" ") else "▁" * len(t) for t in words["tokens"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    places: dict[str, float] = {token: -number for number, token in enumerate(tokens)}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    merges: Any = generate_merges(vocab, places)
    original = GemmaTokenizer(vocab=vocab, merges=merges, mask_token="<s>", **names)
    for text in TEXTS:
        wanted = original.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert found(text)["input_ids"] == [1, *wanted], text


def test_bos_eos_and_all_ends_are_kept(tmp_path):
    words = {**vocabulary(), "add_bos_token": True, "add_eos_token": True}
    file = write(tmp_path / "model.gguf", made("llama"), words=words)
    folder = converted(file)
    ids = AutoTokenizer.from_pretrained(folder)("tea")["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (2, 0, 3)
    config = json.loads((folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == [0, 1]
    assert load_backbone(str(file), "float32", "cpu", 64).end_ids == [0, 1]


TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|stop|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


def test_the_template_of_the_file_decides_where_a_turn_ends(tmp_path):
    file = write(tmp_path / "model.gguf", made("llama"), template=TEMPLATE)
    backbone = load_backbone(str(file), "float32", "cpu", 64)
    assert backbone.end_ids == [1, 0]
    assert backbone.wording.prompt("tea")[0] == 2


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
        "{{ messages.__class__ }}{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
    ],
)
def test_a_template_runs_only_in_the_sandbox(attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "model.gguf", made("llama"), template=TEMPLATE + attack)
    with pytest.raises(IdiolectError, match="chat template"):
        load_backbone(str(file), "float32", "cpu", 64)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pre", "default", "'default' is not one of"),
        ("pre", None, "'None' is not one of"),
        ("pre", "dbrx", "'dbrx' is not one of"),
        ("model", "bert", "tokenizer is 'bert'"),
        ("tokens", None, "no tokenizer.ggml.tokens"),
        ("tokens", ["a", "a"], "twice"),
        ("token_type", [1], "token_type does not fit"),
        ("merges", None, "no tokenizer.ggml.merges"),
        ("merges", ["t zz"], "merges do not fit"),
        ("eos_token_id", 99999, "eos_token_id is no token"),
        ("remove_extra_whitespaces", True, "changes texts"),
        ("escape_whitespaces", True, "escape_whitespaces is not supported"),
    ],
)
def test_an_unknown_tokenizer_is_refused(key, value, words, tmp_path):
    changed = {**vocabulary(), key: value}
    file = write(tmp_path / "model.gguf", made("llama"), words=changed)
    with pytest.raises(IdiolectError, match=words):
        converted(file)
