"""Generation token by token: what is written can be shown, and ended, at once."""

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import starmap, takewhile
from operator import eq
from typing import Any

import torch
from torch import Tensor

from ..errors import IdiolectError, refuse_if
from .adapters import hooked, hooks_of
from .backbone import Backbone
from .pieces import LENGTH, STOP, Piece, Tidy, sure
from .scoring import Adapters

Choose = Callable[[Tensor], int]


class NoNumbers(IdiolectError):
    """The model's scores of the next token are not numbers."""


COLDEST = 1e-6  # temperature
NOT_FINITE = "the model gives no numbers: use another adapter, or another model."


def likeliest(scores: Tensor) -> int:
    """The token of the highest score."""
    return int(scores.argmax())


def sampled(temperature: float, top_p: float = 1.0, seed: int | None = None) -> Choose:
    """A way to choose tokens: by chance, or at temperature 0 the likeliest.

    Parameters
    ----------
    temperature
        By which scores are divided. Below `COLDEST` the likeliest token is taken: divided
        by less they can overflow.
    top_p
        The least probable tokens beyond this share are left out (nucleus sampling,
        Holtzman et al. 2020).
    seed
        Of its own generator; None: another each time.
    """
    if temperature < COLDEST:
        return likeliest
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def choose(scores: Tensor) -> int:
        shares, tokens = (scores.cpu() / temperature).softmax(-1).sort(descending=True)
        beyond = shares.cumsum(-1) - shares >= top_p
        beyond[0] = False  # a share can be too small for float32
        shares[beyond] = 0.0
        return int(tokens[shares.multinomial(1, generator=generator)])

    return choose


@dataclass(eq=False)
class Kept:
    """Keys and values of what one policy has read and written last.

    A conversation begins with what was said before. What is kept of that beginning is not
    computed again; the scores of the next token differ by rounding.

    Attributes
    ----------
    ids
        The tokens that `cache` is of; none: nothing is kept.
    cache
        A `transformers.DynamicCache`.
    """

    ids: list[int] = field(default_factory=list)
    cache: Any = None

    def taken(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """Hand over the cache of a beginning of a prompt, and how long that is.

        None and 0 where nothing fits. At least one token is left to compute. A layer that
        attends to a window only has dropped what it would need to go back.
        """
        from transformers.cache_utils import DynamicLayer

        cache, ids = self.cache, self.ids
        self.cache, self.ids = None, []
        equal = starmap(eq, zip(ids, prompt[:-1], strict=False))
        same = sum(takewhile(bool, equal))
        if not same or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None, 0
        if more := len(ids) - same:
            cache.crop(-more)
        return cache, same


def tokens(
    backbone: Backbone,
    adapters: Adapters,
    prompt: Sequence[int],
    most: int,
    repetition: float = 1.0,
    choose: Choose = likeliest,
    kept: Kept | None = None,
) -> Generator[int, None, None]:
    """Continue one prompt as `scoring.generate` does, token by token.

    The adapters are attached while a token is computed, not between two: whoever takes
    the tokens may use the backbone.

    Parameters
    ----------
    backbone, adapters
        The policy.
    prompt
        Token ids, one at least.
    most
        Tokens of the output; the one that ends it is not among them.
    repetition
        As in `scoring.generate`.
    choose
        Takes the scores [V] of the next token.
    kept
        Of the same policy, for this text and those that follow; None: nothing is kept.

    Raises
    ------
    NoNumbers
        The largest of the scores is not finite: an adapter has diverged.
    """
    from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

    model = backbone.model
    named = inspect.signature(model.forward).parameters
    held = "cache" if "cache" in named else "past_key_values"  # newer and older
    cache, done = kept.taken(prompt) if kept else (None, 0)
    cache = cache or DynamicCache(config=model.config)
    penalised = RepetitionPenaltyLogitsProcessor(repetition, len(prompt))
    ids = torch.tensor([list(prompt)], device=backbone.device)
    new = ids[:, done:]
    hooks, _ = hooks_of(backbone, *adapters)
    fed = None  # the tokens that the cache is of, where no step was broken off
    try:
        for _ in range(most):
            fed = None
            with torch.no_grad(), hooked(hooks):
                more = {held: cache, "use_cache": True, "logits_to_keep": 1}
                logits = model(input_ids=new, **more).logits[:, -1].float()
            fed = ids
            scores = penalised(ids, logits)[0]
            refuse_if(not scores.max().isfinite(), NOT_FINITE, NoNumbers)
            token = choose(scores)
            if token in backbone.end_ids:
                return
            yield token
            new = torch.tensor([[token]], device=backbone.device)
            ids = torch.cat([ids, new], dim=1)
    finally:
        if kept and fed is not None:
            kept.ids, kept.cache = fed[0].tolist(), cache


def pieces(
    backbone: Backbone,
    written: Iterator[int],
    most: int,
    tidy: Tidy,
    clean: Tidy,
    stops: Sequence[str] = (),
) -> Generator[Piece, None, None]:
    """The text of tokens, as they come.

    Joined, the pieces are `clean` of what `Backbone.decode` returns, up to a stop. There
    is one piece for each token, so it can be ended between two of them: no more tokens
    are taken from `written`.

    Parameters
    ----------
    written
        The tokens, `most` at most.
    tidy, clean, stops
        As in `pieces.sure`.
    """
    ids: list[int] = []
    shown = ""
    for token in written:
        ids.append(token)
        text, stopped = sure(_decoded(backbone, ids), stops, False, tidy, clean)
        if stopped:
            yield Piece(text[len(shown) :], STOP, len(ids))
            return
        yield Piece(text[len(shown) :], tokens=len(ids))
        shown = text
    text, stopped = sure(backbone.text(ids), stops, True, tidy, clean)
    end = LENGTH if len(ids) == most and not stopped else STOP
    yield Piece(text[len(shown) :], end, len(ids))


def _decoded(backbone: Backbone, ids: Sequence[int]) -> str:
    """Text of tokens without single bytes at the end.

    A decoder of bytes takes all that stand side by side as one text: one more changes
    them all.
    """
    end = len(ids)
    while end and backbone.is_byte(ids[end - 1]):
        end -= 1
    return backbone.text(ids[:end])
