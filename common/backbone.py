"""The frozen backbone: one per process, with its tokenizer and its identity.

Any causal language model of the supported families can be the backbone; everything that
is trained lives beside it (`adapters`). The backbone itself is never written to.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import absolute_backbone
from .errors import IdiolectError
from .files import home, write_atomically
from .tasks.types import Item, Prompt
from .text import printable

# Families on whose module layout and logits the engine is tested. Another family may
# scale, cap or route its logits in a way that silently changes every log-probability.
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
)
TINY = Path(__file__).parent / "tiny"
# A layer of these parts is x + attention(norm(x)), and of that y + mlp(norm(y)). Others
# have more norms, or both branches side by side.
PLAIN_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@dataclass(frozen=True)
class Encoded:
    """One item as tokens.

    Attributes
    ----------
    ids
        Prompt and completion, with the end-of-sequence token.
    prompt_length
        Number of prompt tokens; the completion is ``ids[prompt_length:]``.
    truncated
        Whether the input lost tokens on its left.
    """

    ids: tuple[int, ...]
    prompt_length: int
    truncated: bool = False


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
        SHA-256 of the weight files, the identity that server and devices compare.
    context
        Longest sequence in tokens.
    """

    name: str
    model: Any
    tokenizer: Any
    hash: str
    context: int

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's compute dtype."""
        return self.model.dtype

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end a generated completion."""
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *ends]))

    @property
    def pad_id(self) -> int:
        """A token id to fill up with; it is always masked."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def hidden(self, ids: Tensor) -> Tensor:
        """Last hidden states [N, T, d] of right-padded ids [N, T].

        There is no mask: a causal model never looks at the padding on the right, and what
        it says there nobody reads. Attention without a mask is faster.
        """
        return self.model.model(input_ids=ids, use_cache=False).last_hidden_state

    def hidden_at(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states [N, P, d] at some positions [N, P] of right-padded ids.

        What the last layer's feed-forward block says at the other positions nobody reads,
        so it is left out: with four layers that is a tenth of a training step.
        """
        layer = self.model.model.layers[-1]
        if {name for name, _ in layer.named_children()} != PLAIN_LAYER:
            return _take(self.hidden(ids), positions)

        def forward(hidden: Tensor, **arguments: Any) -> Tensor:
            seen, _ = layer.self_attn(
                hidden_states=layer.input_layernorm(hidden), **arguments
            )
            kept = _take(hidden + seen, positions)
            return kept + layer.mlp(layer.post_attention_layernorm(kept))

        layer.forward = forward  # shadows the method of its class for this one pass
        try:
            return self.hidden(ids)
        finally:
            del layer.forward

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 vocabulary logits [M, V] of hidden states [M, d]."""
        logits = self.model.lm_head(hidden).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as the model reads it: in the chat template where there is one."""
        if not self.tokenizer.chat_template:
            return prompt.text
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.text}],
            tokenize=False,
            add_generation_prompt=True,
        )

    def encode(self, item: Item) -> Encoded:
        """Tokens of prompt, completion and end of sequence, at most `context` of them.

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
        ids, truncated = self._tokens(self.prompt_text(prompt)), False
        while len(ids) > budget:
            spans = self.tokenizer(
                prompt.input, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            if not spans:
                raise IdiolectError(
                    f"item '{name}' needs more than the context of {self.context} tokens "
                    "for its instruction and target alone: raise 'max-length' or take a "
                    "backbone with a longer context."
                )
            cut = spans[min(len(ids) - budget, len(spans)) - 1][1]
            prompt = Prompt(prompt.before, prompt.input[max(cut, 1) :], prompt.after)
            ids, truncated = self._tokens(self.prompt_text(prompt)), True
        return ids, truncated

    def _tokens(self, text: str) -> list[int]:
        # A chat template writes its own special tokens into the text.
        special = not self.tokenizer.chat_template
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def completion(self, item: Item) -> list[int]:
        """Tokens of what was written, as they follow the prompt, and end of sequence."""
        # Tokenised behind the prompt's last characters, because a tokenizer may treat
        # the start of a text differently from its middle.
        chat = bool(self.tokenizer.chat_template)
        head = self.prompt_text(item.prompt)[-16:] if chat else item.prompt.text[-16:]
        text = head + ("" if chat else " ") + item.target
        before = self.tokenizer(head, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        shared = 0
        while shared < len(before) and before[shared] == whole[shared]:
            shared += 1
        return [*whole[shared:], self.end_ids[0]]

    def decode(self, ids: list[int]) -> str:
        """Text of generated tokens, up to the first end of sequence."""
        ends = [i for i, token in enumerate(ids) if token in self.end_ids]
        text = self.tokenizer.decode(
            ids[: ends[0]] if ends else ids, skip_special_tokens=True
        )
        return text.strip()


def _take(states: Tensor, positions: Tensor) -> Tensor:
    """States [N, T, d] at positions [N, P], [N, P, d]."""
    return states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


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
        The model is not there, is of an unsupported family, or has no safetensors
        weights. Nothing is ever unpickled and no remote code is run.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar per file is noise in the log of every process
    folder = locate(name)
    family = check_family(name, folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise IdiolectError("device is 'cuda' but torch sees no GPU: use device=cpu.")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise IdiolectError(
            f"backbone '{name}' ({family}) could not be loaded: {reason} Check that the "
            "folder holds config.json, safetensors weights and a tokenizer."
        ) from error
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise IdiolectError(
            f"backbone '{name}' has no fast tokenizer with an end-of-sequence token: "
            "save it with its tokenizer.json."
        )
    model.requires_grad_(False).eval().to(device)
    context = min(max_length, model.config.max_position_embeddings)
    return Backbone(name, model, tokenizer, weights_hash(folder), context)


def locate(name: str) -> Path:
    """Return the folder of a backbone, fetched from the model hub if need be.

    Raises
    ------
    IdiolectError
        There is no such folder and no such model, or no network to fetch it.
    """
    if name == "tiny":
        return TINY
    name = absolute_backbone(name)
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise IdiolectError(
            f"backbone '{printable(name, 300)}' is no folder and no model id: give "
            "`tiny`, an existing folder, or ORGANISATION/NAME."
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise IdiolectError(
            f"backbone '{name}' is not on this machine and could not be fetched "
            f"({type(error).__name__}): give the path of a local folder, or fetch it "
            "while online."
        ) from error


def check_family(name: str, folder: Path) -> str:
    """Return the model family of a folder, or refuse it with a sentence."""
    try:
        family = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise IdiolectError(
            f"backbone '{name}': no config.json with a model_type in the folder; give a "
            "model in Hugging Face format."
        ) from error
    if family not in FAMILIES:
        raise IdiolectError(
            f"backbone '{name}' is of the family '{family}', which is not supported: "
            f"use one of {', '.join(FAMILIES)}."
        )
    return family


def weights_hash(folder: Path) -> str:
    """SHA-256 over the safetensors files of a folder, in order of their names.

    Reading gigabytes at every start would cost more than training a user, so the result
    is kept by path, size and time of change in ``$IDIOLECT_HOME/cache``.
    """
    files = sorted(folder.glob("*.safetensors"))
    stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    token = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    cached = home() / "cache" / "weights" / token
    if cached.exists():
        return cached.read_text()
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    write_atomically(cached, digest.hexdigest().encode())
    return digest.hexdigest()


def projections(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """Linear projections inside the decoder layers that adapters attach to.

    Parameters
    ----------
    model
        The causal LM.
    targets
        ``all``, or ``q,v`` (query and value only, as OPPU does).

    Raises
    ------
    IdiolectError
        ``q,v`` on a model that computes query, key and value in one projection.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }
    if targets == "all":
        return found
    chosen = {n: m for n, m in found.items() if n.endswith((".q_proj", ".v_proj"))}
    if not chosen:
        raise IdiolectError(
            "lora.targets is 'q,v' but this backbone has no separate query and value "
            "projections: use lora.targets=all."
        )
    return chosen
