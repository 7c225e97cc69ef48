"""Text that is shown while it is written: the same text, token by token."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from idiolect.client.owner.history import clean, tidy
from idiolect.common.engine.adapters import attached
from idiolect.common.engine.backbone import FAMILIES, load_backbone
from idiolect.common.engine.scoring import generate
from idiolect.common.engine.streaming import (
    LENGTH,
    STOP,
    Kept,
    Piece,
    likeliest,
    pieces,
    sampled,
    tokens,
)
from tests.common.conftest import write_model
from tests.common.engine.test_adapters import adapter
from tests.common.engine.test_scoring import prompts_of


def written(backbone, adapters, prompt, most=12, **more) -> list[Piece]:
    made = tokens(backbone, adapters, prompt, most, **more)
    return list(pieces(backbone, made, most, tidy, clean))


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_text_equals_the_unstreamed(family, model_folder, items):
    backbone = load_backbone(str(model_folder(family)), "float32", "cpu", 96)
    lora = adapter(backbone, "own", 1)
    for prompt in prompts_of(backbone, items)[:4]:
        for repetition in (1.0, 1.3):
            (whole,) = generate(backbone, [lora], [prompt], 12, repetition=repetition)
            found = written(backbone, [lora], prompt, repetition=repetition)
            assert "".join(piece.text for piece in found) == clean(whole)
            assert [bool(piece.end) for piece in found[:-1]] == [False] * (
                len(found) - 1
            )
            assert found[-1].end in (STOP, LENGTH)
            assert (found[-1].end == LENGTH) == (found[-1].tokens == 12)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_streamed_text_goes_on_beyond_a_window(family, tmp_path, items):
    folder = write_model(tmp_path, family, sliding_window=8)
    backbone = load_backbone(str(folder), "float32", "cpu", 96)
    prompt = prompts_of(backbone, items)[3]
    assert len(prompt) > 16
    (whole,) = generate(backbone, [], [prompt], 24)
    assert "".join(p.text for p in written(backbone, [], prompt, 24)) == clean(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_goes_on_from_what_is_kept(family, model_folder, items):
    """The same tokens, and only new ones are computed, whatever of the beginning stays."""
    backbone = load_backbone(str(model_folder(family)), "float32", "cpu", 96)
    lora, kept = adapter(backbone, "own", 1), Kept()
    first, other = prompts_of(backbone, items)[:2]
    answer = list(tokens(backbone, [lora], first, 8, kept=kept))
    longer = [*first, *answer, *other]
    for prompt in (longer, [*longer, 5], longer[:-3], longer[:-3], other, first):
        known, counted = list(kept.ids), []
        hook = backbone.model.register_forward_pre_hook(
            lambda _m, _a, named, to=counted: to.append(named["input_ids"].shape[1]),
            with_kwargs=True,
        )
        found = list(tokens(backbone, [lora], prompt, 8, kept=kept))
        hook.remove()
        same = 0
        while same < min(len(known), len(prompt) - 1) and known[same] == prompt[same]:
            same += 1
        windowed = any(is_window(layer) for layer in kept.cache.layers)
        assert counted[0] == len(prompt) - (0 if windowed else same)
        assert found == list(tokens(backbone, [lora], prompt, 8))


def is_window(layer: Any) -> bool:
    return type(layer) is not DynamicLayer


def test_a_broken_step_leaves_nothing_kept(backbone, items):
    """Its keys are in some layers only."""
    lora, (prompt, *_), kept = (
        adapter(backbone, "own", 1),
        prompts_of(backbone, items),
        Kept(),
    )
    whole = list(tokens(backbone, [lora], prompt, 8))
    last = backbone.model.model.layers[-1]
    made = tokens(backbone, [lora], prompt, 8, kept=kept)
    next(made)

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    hook = last.register_forward_pre_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        next(made)
    hook.remove()
    assert kept.cache is None and kept.ids == []
    made = tokens(backbone, [lora], prompt, 8, kept=kept)
    next(made)
    next(made)
    made.close()  # between two tokens: what was computed is whole
    assert kept.ids == [*prompt, whole[0]]
    assert list(tokens(backbone, [lora], prompt, 8, kept=kept)) == whole


def test_two_streams_do_not_share_what_is_kept(backbone, items):
    lora, (prompt, other, *_), kept = (
        adapter(backbone, "own", 1),
        prompts_of(backbone, items),
        Kept(),
    )
    alone = [list(tokens(backbone, [lora], one, 8)) for one in (prompt, other)]
    list(tokens(backbone, [lora], prompt, 8, kept=kept))
    both = [tokens(backbone, [lora], one, 8, kept=kept) for one in (prompt, other)]
    pairs = list(zip(*both, strict=False))
    assert pairs == list(zip(*alone, strict=False))


def test_streams_can_be_interleaved_and_leave_the_backbone_as_it_was(backbone, items):
    lora, (prompt, *_) = adapter(backbone, "own", 1), prompts_of(backbone, items)
    alone = [list(tokens(backbone, [a], prompt, 8)) for a in (lora, None)]
    both = [tokens(backbone, [a], prompt, 8) for a in (lora, None)]
    pairs = list(zip(*both, strict=False))
    assert pairs == list(zip(*alone, strict=False))
    assert alone[0] != alone[1]
    one = tokens(backbone, [lora], prompt, 8)
    next(one)
    with torch.no_grad(), attached(backbone):
        ids = torch.tensor([list(prompt)])
        assert int(backbone.model(ids).logits[0, -1].argmax()) == alone[1][0]
    one.close()


def test_no_token_is_computed_after_the_stream_was_closed(backbone):
    taken = []

    def counted() -> Iterator[int]:
        for token in backbone.wording.ids("one two three"):
            taken.append(token)
            yield token

    stream = pieces(backbone, counted(), 99, tidy, clean)
    next(stream)
    next(stream)
    stream.close()
    assert len(taken) == 2


def test_a_stop_over_several_tokens_ends_it(backbone):
    text = "the fox writes STOP and more"
    ids = backbone.wording.ids(text)
    assert len(backbone.wording.ids("STOP")) > 2
    found = list(pieces(backbone, iter(ids), 99, tidy, clean, ["STOP"]))
    assert "".join(piece.text for piece in found) == "the fox writes"
    assert found[-1].end == STOP
    assert len(found) < len(ids)
    assert not any("S" in piece.text for piece in found)
    short = ids[: len(backbone.wording.ids("the fox writes ST"))]
    found = list(pieces(backbone, iter(short), 99, tidy, clean, ["STOP"]))
    assert "".join(piece.text for piece in found) == "the fox writes ST"


TEXTS = [
    "naïve 👍🏽 e\u0301a",
    "漢字かな",
    "👨\u200d👩\u200d👧 🇩🇪",
    "  two  spaces \n\n",
    "각",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_a_character_are_shown_together(backbone, text):
    ids = backbone.wording.ids(text)
    assert len(ids) >= len(text) - 1  # cut into bytes
    found = [p.text for p in pieces(backbone, iter(ids), 99, tidy, clean)]
    assert "".join(found) == clean(text)
    assert "\ufffd" not in "".join(found)


def test_characters_that_are_none_are_shown_in_the_end(backbone):
    ids = backbone.wording.ids("a👍")[:-1]
    found = [p.text for p in pieces(backbone, iter(ids), 99, tidy, clean)]
    assert "".join(found) == "a\ufffd"


class Bytes:
    """A backbone's part that makes text: a SentencePiece vocabulary without most."""

    def __init__(self) -> None:
        known = [f"<0x{n:02X}>" for n in range(256)] + ["▁", "a", "▁the", "b", "."]
        model = models.BPE({t: i for i, t in enumerate(known)}, [], byte_fallback=True)
        plain = Tokenizer(model)
        plain.normalizer = normalizers.Replace(" ", "▁")
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        plain.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        self.tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=plain)

    def text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def is_byte(self, token):
        from idiolect.common.engine.backbone import Backbone

        return Backbone.is_byte(self, token)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ids",
    [
        [258, *"漢字".encode(), 257],
        [257, *"👍".encode()],
        # A byte that belongs to nothing changes what all beside it decode to.
        [257, *"漢字".encode(), 0xF0, 257],
        [257, *"漢字".encode(), 0xF0],
        [0xF0, 257, 256, 256],
        [256, 256, 257],
    ],
)
def test_bytes_side_by_side_are_one_text(ids):
    backbone = Bytes()
    found = [p.text for p in pieces(backbone, iter(ids), 99, tidy, clean)]  # type: ignore[arg-type]
    assert "".join(found) == clean(backbone.text(ids))


def test_sampling_follows_temperature_nucleus_and_seed():
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    choose = sampled(1.0, seed=1)
    many = torch.tensor([choose(scores) for _ in range(2000)]).bincount(minlength=4)
    assert torch.allclose(many / 2000, scores.exp(), atol=0.04)
    narrow = sampled(1.0, 0.7, seed=1)
    assert {narrow(scores) for _ in range(100)} == {0, 1}
    cold = sampled(0.01, seed=1)
    assert {cold(scores) for _ in range(50)} == {0}
    assert sampled(0.0) is likeliest
    twice = [sampled(1.0, seed=7) for _ in range(2)]
    first, second = ([choose(scores) for _ in range(20)] for choose in twice)
    assert first == second
    assert sampled(1.0, 1e-9, seed=1)(scores) == 0


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [(1e-38, 1.0), (5e-324, 1.0), (1.0, 1e-300), (2.0, 5e-324)],
)
def test_no_temperature_or_nucleus_is_too_small(temperature, top_p):
    scores = torch.tensor([-90.0, 40.0, 39.0])
    assert sampled(temperature, top_p, seed=1)(scores) == 1
