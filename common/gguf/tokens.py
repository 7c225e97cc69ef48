"""The tokenizer of a GGUF file, as the ``tokenizer.json`` that its model had.

A file has the vocabulary and the name of a rule that splits text. The rest is what the
tokenizers of these models have in common, and llama.cpp knows by the rule's name. A name
that is not here is refused: another rule gives other tokens for digits or line ends, and
nothing would show it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from .header import OTHER, Header, unusable

MODEL, RULE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TEMPLATE = "tokenizer.chat_template"
# Kinds of tokens.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5
LONGEST = 1024  # of a token; all its parts are looked up
MARK = "\u2581"  # SentencePiece writes a space so

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


# Rule -> how a text is split into words; the names are llama.cpp's.
RULES = {
    "gpt-2": [_GPT2],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2],
    "qwen2": [_split(_QWEN2), _BYTES],
    "tekken": [_split(_TEKKEN), _BYTES],
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), [_split(_LLAMA3), _BYTES]),
}
# Of these a word that is in the vocabulary stays whole, and a text begins with BOS.
WHOLE = ("llama-bpe", "llama3", "llama-v3", "tekken")
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# What else a file may say. Tokens for gaps, classes and masks are in the vocabulary, and no
# text is written with them.
READ = {
    *(MODEL, RULE, TEMPLATE, "tokenizer.chat_templates"),
    *(
        f"tokenizer.ggml.{name}"
        for name in (
            *("tokens", "token_type", "scores", "merges", "token_type_count"),
            *("add_bos_token", "add_eos_token", "add_space_prefix", "add_sep_token"),
            *("remove_extra_whitespaces", "precompiled_charsmap"),
            *(*NAMED.values(), *ENDS),
            *("seperator_token_id", "separator_token_id", "cls_token_id"),
            *("mask_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id"),
            *(f"fim_{part}_token_id" for part in ("pre", "suf", "mid")),
            *(f"fim_{part}_token_id" for part in ("pad", "rep", "sep")),
        )
    ),
}
# Lists of the whole tokenizer in other formats, and templates for other uses.
BESIDE = ("tokenizer.huggingface.", "tokenizer.rwkv.", "tokenizer.chat_template.")


class _Vocabulary:
    """The settings of a file's tokenizer."""

    def __init__(self, header: Header) -> None:
        self.header = header
        for key in header.settings:
            if key.startswith("tokenizer.") and not key.startswith(BESIDE):
                self.refuse_if(key not in READ, f"its setting {key} is not supported")
        self.model, self.rule = str(self.find("model")), str(self.find("pre"))
        self.tokens = self.strings("tokens")
        self.refuse_if(
            len(set(self.tokens)) < len(self.tokens), "its vocabulary has a token twice"
        )
        longest = max(map(len, self.tokens))
        self.refuse_if(
            longest > LONGEST, f"its vocabulary has a token of {longest} bytes"
        )
        self.kinds = self.find("token_type") or [1] * len(self.tokens)
        fits = isinstance(self.kinds, list) and len(self.kinds) == len(self.tokens)
        self.refuse_if(
            not fits, "its tokenizer.ggml.token_type does not fit its tokens"
        )
        self.refuse_if(
            self.find("remove_extra_whitespaces") or self.find("precompiled_charsmap"),
            "its tokenizer changes texts by a rule that is not supported",
        )

    def find(self, name: str, usual: Any = None) -> Any:
        return self.header.settings.get(f"tokenizer.ggml.{name}", usual)

    def strings(self, name: str) -> list[str]:
        """Return a list of texts that must be there."""
        found = self.find(name)
        fine = isinstance(found, list) and found and isinstance(found[0], str)
        self.refuse_if(not fine, f"it has no tokenizer.ggml.{name}")
        return found or []

    def id(self, name: str) -> int | None:
        """Return the number of a token that a setting names; None where none is."""
        number = self.find(name)
        fine = number is None or (
            type(number) is int and 0 <= number < len(self.tokens)
        )
        self.refuse_if(not fine, f"its tokenizer.ggml.{name} is no token of it")
        return number

    def token(self, name: str) -> str | None:
        """Return the token itself."""
        number = self.id(name)
        return None if number is None else self.tokens[number]

    def refuse_if(self, wrong: object, problem: str) -> None:
        if wrong:
            raise unusable(self.header.file, problem, OTHER)


def tokenizer(header: Header) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    """Return the tokenizer of a file.

    Returns
    -------
    Tokenizer, dict, dict
        The tokenizer, what ``tokenizer_config.json`` says of it, and what the model's
        configuration says: the ids of its special tokens, with all that end a turn.

    Raises
    ------
    IdiolectError
        A kind of tokenizer, a rule or a setting that is not supported.
    """
    vocabulary = _Vocabulary(header)
    if vocabulary.model == "gpt2":
        made = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        made = _sentencepiece(vocabulary)
    else:
        raise unusable(header.file, f"its tokenizer is '{vocabulary.model}'", OTHER)
    for token in _added(vocabulary):
        made.add_tokens([token])
    if made.get_vocab_size(with_added_tokens=True) > len(vocabulary.tokens):
        raise unusable(
            header.file, "its special tokens are not in its vocabulary", OTHER
        )
    named = {name: vocabulary.token(key) for name, key in NAMED.items()}
    _frame(vocabulary, made, named)
    template = header.settings.get(TEMPLATE)
    vocabulary.refuse_if(
        template is not None and not isinstance(template, str),
        f"its {TEMPLATE} is no text",
    )
    found = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in named.items() if token is not None},
        **({"chat_template": template} if template else {}),
    }
    ids = {name: vocabulary.id(name) for name in ("bos_token_id", *ENDS)}
    ids |= {"pad_token_id": vocabulary.id("padding_token_id")}
    special = {name: ids[name] for name in ("bos_token_id", "pad_token_id")}
    all_ends = list(dict.fromkeys(ids[end] for end in ENDS if ids[end] is not None))
    return made, found, {**special, "eos_token_id": all_ends or None}


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    """Byte pairs, as in GPT-2, with the rule that the file names."""
    rule = vocabulary.rule
    vocabulary.refuse_if(
        rule not in RULES,
        f"its tokenizer.ggml.pre '{rule}' is not one of {', '.join(RULES)}",
    )
    pairs = [tuple(pair.split(" ")) for pair in vocabulary.strings("merges")]
    known = set(vocabulary.tokens)
    fine = all(len(pair) == 2 and {*pair, "".join(pair)} <= known for pair in pairs)
    vocabulary.refuse_if(not fine, "its tokenizer.ggml.merges do not fit its tokens")
    # Unused entries only fill up the embedding: the tokenizer never had them.
    numbers = {
        token: number
        for number, token in enumerate(vocabulary.tokens)
        if vocabulary.kinds[number] != UNUSED
    }
    merges = [(left, right) for left, right in pairs]
    made = Tokenizer(models.BPE(numbers, merges, ignore_merges=rule in WHOLE))
    if rule == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(RULES[rule])
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    """Byte pairs of SentencePiece: of Llama 1 and 2, Mistral, Gemma and Phi-3.

    The file has no merges. A pair is merged where the result is a token, best one first: by
    its score, and for Gemma by its place.
    """
    tokens = vocabulary.tokens
    gemma = str(vocabulary.header.settings["general.architecture"]).startswith("gemma")
    if gemma:  # runs of spaces lie there as spaces, and are looked up as marks
        tokens = [
            MARK * len(t) if t.isspace() and set(t) == {" "} else t for t in tokens
        ]
        vocabulary.refuse_if(len(set(tokens)) < len(tokens), "it has a token twice")
        vocabulary.tokens = tokens
        ranks: Sequence[float] = range(len(tokens))
    else:
        scores = vocabulary.find("scores")
        fits = isinstance(scores, list) and len(scores) == len(tokens)
        fits = fits and not isinstance(scores[0], str)
        vocabulary.refuse_if(
            not fits, "its tokenizer.ggml.scores do not fit its tokens"
        )
        ranks = [-score for score in scores]
    numbers = {token: number for number, token in enumerate(tokens)}
    unknown = vocabulary.token("unknown_token_id") or next(
        (
            t
            for t, kind in zip(tokens, vocabulary.kinds, strict=True)
            if kind == UNKNOWN
        ),
        None,
    )
    vocabulary.refuse_if(unknown is None, "its tokenizer has no unknown token")
    bpe = models.BPE(
        numbers,
        _merges(numbers, ranks),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(bpe)
    spaces, whole = normalizers.Replace(" ", MARK), decoders.Replace(MARK, " ")
    back = [whole, decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        made.normalizer = spaces
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif vocabulary.find("add_space_prefix", True):
        made.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), spaces])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        made.normalizer = spaces
    made.decoder = decoders.Sequence(back)
    return made


def _merges(
    numbers: Mapping[str, int], ranks: Sequence[float]
) -> list[tuple[str, str]]:
    """Return all pairs whose join is a token, best first.

    Of equal ones the longest left part is first, as transformers has it where it converts a
    SentencePiece model.
    """
    found = [
        (rank, -left, left - len(token), token[:left], token[left:])
        for (token, _), rank in zip(numbers.items(), ranks, strict=True)
        for left in range(1, len(token))
        if token[:left] in numbers and token[left:] in numbers
    ]
    found.sort(key=lambda one: one[:3])
    return [(left, right) for *_, left, right in found]


def _added(vocabulary: _Vocabulary) -> list[AddedToken]:
    """Return the tokens that are found in a text before it is split."""
    phi = vocabulary.header.settings["general.architecture"] == "phi3"
    # Phi-3's control tokens take the white space behind them, except for these.
    plain = ("<unk>", "<s>", "<|endoftext|>")
    found = []
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        special = kind in (CONTROL, UNKNOWN)
        if special or kind == USER_DEFINED:
            strips = phi and special and token not in plain
            found.append(
                AddedToken(token, special=special, normalized=False, rstrip=strips)
            )
    return found


def _frame(
    vocabulary: _Vocabulary, made: Tokenizer, named: Mapping[str, str | None]
) -> None:
    """Let the tokenizer put BOS before a text and EOS behind it, where the file says so."""
    first = vocabulary.model == "llama" or vocabulary.rule in WHOLE
    pieces, special = ["$A"], []
    wanted = (
        ("bos_token", vocabulary.find("add_bos_token", first), 0),
        ("eos_token", vocabulary.find("add_eos_token", False), 2),
    )
    for name, on, place in wanted:
        if not on:
            continue
        token = named[name]
        vocabulary.refuse_if(token is None, f"it adds a {name} and has none")
        pieces.insert(place, str(token))
        special.append((str(token), vocabulary.tokens.index(str(token))))
    if special:
        made.post_processor = processors.TemplateProcessing(
            single=" ".join(pieces), special_tokens=special
        )
