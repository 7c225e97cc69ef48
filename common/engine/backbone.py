"""The frozen backbone: one per process, with its tokenizer and its prompts.

Any causal language model of the supported families can be the backbone; everything that
is trained lives beside it (`adapters`). The backbone itself is never written to.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config, LoraShape
from ..data.types import Item, Prompt
from ..errors import IdiolectError
from .frozen import NARROW, freeze
from .layout import Layout, install
from .mapped import Region, clean_regions, give_back
from .model_folder import FAMILIES as FAMILIES
from .model_folder import TINY as TINY
from .model_folder import check_folder, identity, locate, stored_in
from .model_folder import weights_hash as weights_hash
from .pieces import TooLong
from .wording import Wording, read_wording

# A layer of these parts is x + attention(norm(x)), and of that y + mlp(norm(y)). Others
# have more norms, or both branches side by side.
PLAIN_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}

# Bytes of weights; widening smaller ones each time costs more than it saves.
LARGE = 64 << 20

# A token that stands for one byte.
BYTE = re.compile("<0x[0-9A-F]{2}>")

# A mask of four dimensions is passed on as it is: attention takes that of the layout.
NO_MASK = torch.zeros(1, 1, 1, 1)


@dataclass(frozen=True)
class Encoded:
    """One item as tokens.

    Attributes
    ----------
    ids
        Prompt and completion, with the token that ends it.
    prompt_length
        Number of prompt tokens; the completion is ``ids[prompt_length:]``.
    truncated
        Whether the input lost tokens on its left.
    weights
        Of each completion token in the sum of log-probabilities; empty: 1.
    """

    ids: tuple[int, ...]
    prompt_length: int
    truncated: bool = False
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Backbone:
    """A resident frozen model.

    Attributes
    ----------
    name
        As configured.
    model
        A transformers causal LM in evaluation mode, no parameter of which has a gradient.
    tokenizer
        Its tokenizer.
    hash
        What decides its scores, part by part (`model_folder.identity`): server and devices
        compare it, and adapters are bound to it.
    context
        Longest sequence in tokens.
    dtype
        What it computes in; its matrices may lie in a narrower one (`frozen`).
    """

    name: str
    model: Any
    tokenizer: Any
    hash: str
    context: int
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @cached_property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(weight.numel() for weight in self.model.parameters())

    @cached_property
    def regions(self) -> list[Region]:
        """Where its weights lie in their files (`mapped.clean_regions`).

        Looked up once, which takes tens of milliseconds: nobody ever writes to a weight.
        """
        return clean_regions()

    @cached_property
    def wording(self) -> Wording:
        """How texts become tokens."""
        return read_wording(self.name, self.tokenizer)

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end a generated completion; the first ends those that we score."""
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        return list(
            dict.fromkeys([self.wording.end, self.tokenizer.eos_token_id, *ends])
        )

    @property
    def pad_id(self) -> int:
        """A token id to fill up with; it is always masked."""
        pad, rows = self.tokenizer.pad_token_id, self.model.config.vocab_size
        return self.wording.end if pad is None or pad >= rows else pad

    def hidden(self, layout: Layout) -> Tensor:
        """Last hidden states [K, L, d] of the tokens of a layout.

        The layers that `layout.below` has the output of are not computed.
        """
        depth, known = layout.below or (0, None)

        def skipped(hidden: Tensor, **_: Any) -> Tensor:
            return hidden if known is None else known

        with standing_in(dict.fromkeys(self.model.model.layers[:depth], skipped)):
            return self.model.model(
                input_ids=layout.ids,
                position_ids=layout.positions,
                attention_mask=NO_MASK,
                use_cache=False,
                layout=layout,
            ).last_hidden_state

    def hidden_below(self, layout: Layout, depth: int) -> Tensor:
        """Hidden states [K, L, d] that go into layer `depth`; those above stand still."""
        found: list[Tensor] = []

        def stop(hidden: Tensor, **_: Any) -> Tensor:
            found.append(hidden)
            return hidden

        with standing_in(dict.fromkeys(self.model.model.layers[depth:], stop)):
            self.hidden(layout)
        return found[0]

    def hidden_at(self, layout: Layout, places: Tensor) -> Tensor:
        """Last hidden states [K, P, d] at some places [K, P] of a layout.

        The last layer's feed-forward block is computed at these places only, since its
        output at the others is not used: with four layers that saves a tenth of a training
        step.
        """
        layer = self.model.model.layers[-1]
        if {name for name, _ in layer.named_children()} != PLAIN_LAYER:
            return _take(self.hidden(layout), places)

        def forward(hidden: Tensor, **arguments: Any) -> Tensor:
            seen, _ = layer.self_attn(
                hidden_states=layer.input_layernorm(hidden), **arguments
            )
            kept = _take(hidden + seen, places)
            return kept + layer.mlp(layer.post_attention_layernorm(kept))

        with standing_in({layer: forward}):
            return self.hidden(layout)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 vocabulary logits [M, V] of hidden states [M, d]."""
        logits = self.model.lm_head(hidden).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def encode(self, item: Item) -> Encoded:
        """Tokens of prompt, completion and its end, at most `context` of them.

        An item that is too long loses tokens from the left of the prompt's input. What
        the user wrote and the instruction around the input are never cut.

        Raises
        ------
        IdiolectError
            Instruction and target alone do not fit into the context.
        """
        completion = self.completion(item)
        prompt, truncated = self.encode_prompt(
            item.prompt, self.context - len(completion), item.id
        )
        return Encoded((*prompt, *completion), len(prompt), truncated)

    def fits(self, item: Item) -> bool:
        """Whether an item can be encoded without cutting its target or instruction."""
        try:
            self.encode(item)
        except IdiolectError:
            return False
        return True

    def encode_prompt(
        self, prompt: Prompt, budget: int, name: str
    ) -> tuple[list[int], bool]:
        """Tokens of a prompt within `budget`, and whether the input was shortened."""
        ids, truncated = self.wording.prompt(prompt.text), False
        while len(ids) > budget:
            if not prompt.input:
                raise IdiolectError(
                    f"item '{name}' needs more than the context of {self.context} tokens "
                    "for its instruction and target alone: raise 'max-length' or take a "
                    "backbone with a longer context."
                )
            kept = self.wording.cut(prompt.input, len(ids) - budget)
            prompt = Prompt(prompt.before, kept, prompt.after)
            ids, truncated = self.wording.prompt(prompt.text), True
        return ids, truncated

    def encode_conversation(
        self, texts: Sequence[str], system: str, budget: int, shorten: bool = True
    ) -> tuple[list[int], int]:
        """Tokens of a conversation within `budget`, and how many turns were left out.

        A turn is a message and its answer; the oldest go first. The system's message and
        the last one are never left out or cut.

        Parameters
        ----------
        texts, system
            As in `Wording.conversation`.
        shorten
            False: no turn is left out.

        Raises
        ------
        TooLong
            The last message alone does not fit, or nothing may be left out.
        """
        ids: list[int] = []
        for dropped in range(0, len(texts) if shorten else 1, 2):
            ids = self.wording.conversation(texts[dropped:], system)
            if len(ids) <= budget:
                return ids, dropped // 2
        what = "message" if shorten or len(texts) == 1 else "conversation"
        raise TooLong(
            f"the {what} has {len(ids)} tokens with what stands around it, and {budget} "
            f"fit into a context of {self.context} beside an answer: shorten it, ask for a "
            "shorter answer, or raise 'max-length'."
        )

    def completion(self, item: Item) -> list[int]:
        """Tokens of what was written, as they follow the prompt, and of its end."""
        return self.wording.answer(item.target)

    def decode(self, ids: list[int]) -> str:
        """Text of generated tokens, up to the first token that ends it."""
        ends = [i for i, token in enumerate(ids) if token in self.end_ids]
        return self.text(ids[: ends[0]] if ends else ids).strip()

    def text(self, ids: Sequence[int]) -> str:
        """Text of tokens, none of which ends it."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def is_byte(self, token: int) -> bool:
        """Whether a token is a byte of a character that the vocabulary lacks."""
        return (
            BYTE.fullmatch(self.tokenizer.convert_ids_to_tokens(token) or "")
            is not None
        )


@contextmanager
def standing_in(forwards: Mapping[Any, Callable[..., Tensor]]) -> Iterator[None]:
    """Let modules compute something else inside the ``with`` block."""
    # What an instance has is found before the method of its class.
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, other in before.items():
            if other is None:
                del module.forward
            else:
                module.forward = other


def _take(states: Tensor, places: Tensor) -> Tensor:
    """States [K, L, d] at places of the joined lines [K, P], [K, P, d]."""
    return F.embedding(places, states.flatten(0, 1))


@lru_cache(maxsize=1)
def load_backbone(name: str, dtype: str, device: str, max_length: int) -> Backbone:
    """Load a backbone and keep it: one per process.

    Parameters
    ----------
    name
        ``tiny`` (built in), a folder in Hugging Face format, or a model id.
    dtype, device, max_length
        As in `config.Config`; ``auto`` takes a GPU where there is one.

    Raises
    ------
    IdiolectError
        The model is not there, is of an unsupported family, lacks weights or has others
        than its configuration, or its tokenizer does not belong to it. Nothing is ever
        unpickled and no remote code is run.
    """
    folder = locate(name)
    family = check_folder(name, folder)
    place, computes = device_of(device), getattr(torch, dtype)
    kept = _kept_in(folder, computes, place)
    model, tokenizer = _loaded(name, folder, family, kept)
    model.requires_grad_(False).eval().to(place)
    freeze(model, computes)
    context = min(max_length, model.config.max_position_embeddings)
    _check_scale(name, model.config, context)
    backbone = Backbone(name, model, tokenizer, identity(folder), context, computes)
    _check_vocabulary(backbone)
    install(model)
    return backbone


def _kept_in(folder: Path, computes: torch.dtype, place: torch.device) -> torch.dtype:
    """The dtype of the weights in memory: that of their files where this saves much."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size < LARGE or place.type != "cpu" or computes != torch.float32:
        return computes
    return NARROW.get(stored_in(folder), computes)


def device_of(name: str) -> torch.device:
    """Where to compute, from the key ``engine.device``.

    Raises
    ------
    IdiolectError
        A GPU is asked for that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    found = torch.device(name)
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise IdiolectError(
            f"config key 'engine.device' is '{name}', but torch sees "
            f"{gpus or 'no'} GPU{'s' * (gpus > 1)}: set engine.device=cpu"
            + (f", or a GPU from cuda:0 to cuda:{gpus - 1}." if gpus else ".")
        )
    return found


def backbone_of(config: Config) -> Backbone:
    """The resident backbone of a configuration (see `load_backbone`)."""
    return load_backbone(
        config.backbone,
        config.engine.dtype,
        config.engine.device,
        config.engine.max_length,
    )


def _loaded(
    name: str, folder: Path, family: str, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, every weight of which was in its files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # readers of damaged files raise bare ones, too
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than config.json says"
        raise IdiolectError(
            f"backbone '{name}' ({family}) could not be loaded ({reason[:200]}): check "
            "that the folder holds config.json, safetensors weights and a tokenizer, all "
            "of one model."
        ) from error
    model, report = loaded
    for key, what in (
        ("missing_keys", "lacks {} weights that its config.json asks for"),
        ("unexpected_keys", "has {} weights that its config.json does not know"),
    ):
        if names := sorted(map(str, report[key])):
            raise IdiolectError(
                f"backbone '{name}' {what.format(len(names))} ({names[0]}): give the "
                "folder of one complete model with the configuration that belongs to it."
            )
    _check_finite(name, model)
    return model, tokenizer


def _check_finite(name: str, model: Any) -> None:
    """Refuse weights that are not finite: no score would be."""
    regions = clean_regions()
    for key, weight in model.named_parameters():
        if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
            raise IdiolectError(
                f"backbone '{name}' has weights that are not finite numbers ({key}): "
                "download it again, or take float32 if it was trained in another."
            )
        give_back(iter([weight]), regions)  # read for this only


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without its bars and its report: what it finds is said in a sentence."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # noise in the log of every process
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_scale(name: str, config: Any, context: int) -> None:
    """Refuse positions that are scaled by the longest row of a batch.

    Beyond its original length such a model takes other frequencies for every row, so a
    score would depend on what else is in the batch.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [entry for entry in (rope, *rope.values()) if isinstance(entry, dict)]
    for kind in kinds:
        longest = kind.get("original_max_position_embeddings") or context
        changing = kind.get("rope_type") in ("longrope", "dynamic")
        if changing and longest < context:
            raise IdiolectError(
                f"backbone '{name}' changes its positions beyond {longest} tokens, for all "
                f"texts of a batch together: set 'max-length' to {longest} at most."
            )


def _check_vocabulary(backbone: Backbone) -> None:
    """Refuse a tokenizer that can write what the model has no embedding for.

    A special token that no prompt has, such as a ``[PAD]`` that was added to the tokenizer
    alone, does not matter: people's text never becomes one.
    """
    wording, rows = backbone.wording, backbone.model.config.vocab_size
    beyond = {
        token: id
        for token, id in backbone.tokenizer.get_vocab().items()
        if id >= rows and token not in wording.unused
    }
    if beyond:
        token = min(beyond, key=lambda token: beyond[token])
        raise IdiolectError(
            f"backbone '{backbone.name}' has {rows} embeddings, but its tokenizer writes "
            f"{token!r} as token {beyond[token]}: give the tokenizer that belongs to it."
        )


def layer_of(name: str) -> int:
    """Number of the decoder layer that a projection is in, from 0 at the bottom."""
    return int(name.split(".layers.")[1].split(".")[0])


def lowest_adapted(layers: int, shape: LoraShape) -> int:
    """Number of the lowest of a model's layers that has adapters."""
    return layers - (shape.layers or layers)


def projections(model: nn.Module, shape: LoraShape) -> dict[str, nn.Linear]:
    """Linear projections inside the decoder layers that adapters attach to.

    Parameters
    ----------
    model
        The causal LM.
    shape
        Which projections (``q,v``: query and value only, as OPPU does) of which layers.

    Raises
    ------
    IdiolectError
        ``q,v`` on a model that computes query, key and value in one projection, or more
        layers than the model has.
    """
    layers = len(model.model.layers)  # type: ignore[reportAttributeAccessIssue]
    if shape.layers > layers:
        raise IdiolectError(
            f"lora.layers is {shape.layers}, but this backbone has {layers} layers: use "
            f"{layers // 2} for the upper half, or 0 for all."
        )
    lowest = lowest_adapted(layers, shape)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and ".layers." in name
        and layer_of(name) >= lowest
    }
    if shape.targets == "all":
        return found
    chosen = {n: m for n, m in found.items() if n.endswith((".q_proj", ".v_proj"))}
    if not chosen:
        raise IdiolectError(
            "lora.targets is 'q,v' but this backbone has no separate query and value "
            "projections: use lora.targets=all."
        )
    return chosen
