"""Log-probabilities of completions, reference scores, embeddings, and generation.

The vocabulary projection is applied to the positions that predict completion tokens only,
in chunks, because prompt length x vocabulary size is what fills the memory of a device.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .adapters import Lora, Stack, attached, shadowed
from .backbone import Backbone, Encoded
from .frozen import product_back
from .layout import FILLER, Layout, lay_out
from .mapped import a_layer_at_a_time

Adapters = Sequence[Lora | Stack | None]

# Tokens in one forward pass without gradients: enough to keep two cores busy, little
# enough for a device.
TOKENS_PER_PASS = 8192
# Logits computed at once (64 MB of float32; on a GPU, where starting a chunk costs more
# than computing it, 256 MB).
LOGITS_PER_CHUNK = 1 << 24
LOGITS_PER_CHUNK_ON_GPU = 1 << 26
# Words from which on logits are more than a layer's activations.
WIDE = 1 << 15
# Contrastive decoding considers a token that has at least this share of the probability
# of the likeliest (the plausibility constraint of Li et al. 2023, and its value there).
PLAUSIBLE = 0.1


def collate(
    backbone: Backbone, rows: Sequence[Encoded | None], users: int = 1
) -> Layout:
    """Lay out rows, user by user and the same number of each.

    None is a filler row: one token, in which nothing is scored.
    """
    filler = (backbone.pad_id,)
    parts = [(row.ids, row.prompt_length) if row else (filler, 1) for row in rows]
    each = len(rows) // users
    lines = [parts[k * each : (k + 1) * each] for k in range(users)]
    layout = lay_out(lines, backbone.pad_id, backbone.device)
    if not any(row and row.weights for row in rows):
        return layout
    weights = [row.weights or (1.0,) * completion_tokens(row) for row in rows if row]
    flat = torch.tensor([weight for part in weights for weight in part])
    return replace(layout, weight=flat.to(backbone.device))


def completion_logp(backbone: Backbone, layout: Layout, logits: int = 0) -> Tensor:
    """Sum of log p(y | x) of every row [N] over its completion tokens, by their weights.

    `logits`: how many are in memory at once; 0: LOGITS_PER_CHUNK.
    """
    logp = token_logp(backbone, layout, logits)
    if layout.weight is not None:
        logp = logp * layout.weight
    total = torch.zeros(layout.rows, dtype=logp.dtype, device=logp.device)
    return total.index_add(0, layout.row[layout.labels != FILLER], logp)


def token_logp(backbone: Backbone, layout: Layout, logits: int = 0) -> Tensor:
    """Log-probability of every completion token of a layout, row after row, [M]."""
    real = layout.labels != FILLER
    hidden = backbone.hidden_at(layout, layout.predicting)[real]
    return _token_logp(backbone, hidden, layout.labels[real], logits)


def _token_logp(
    backbone: Backbone, states: Tensor, labels: Tensor, most: int
) -> Tensor:
    """Log-probability of the labels [M] that hidden states [M, d] predict."""

    def head(states: Tensor, labels: Tensor) -> Tensor:
        return -F.cross_entropy(backbone.logits(states), labels, reduction="none")

    most = most or (LOGITS_PER_CHUNK_ON_GPU if states.is_cuda else LOGITS_PER_CHUNK)
    rows = max(1, most // backbone.model.config.vocab_size)
    if backbone.model.config.vocab_size >= WIDE:
        return _Head.apply(backbone, rows, states, labels)
    if len(states) <= rows:
        return head(states, labels)
    # Recomputing a chunk's logits in the backward pass costs less than keeping them all.
    parts = [
        checkpoint(head, s, y, use_reentrant=False)
        for s, y in zip(states.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


class _Head(torch.autograd.Function):
    """Log-probabilities in chunks, each of which gives its gradient at once.

    Row i depends on state i alone. So d logp_i / d state_i [d] is all that is kept: a
    chunk's logits, of which there is one copy, are gone when the next one comes.
    """

    @staticmethod
    def forward(
        ctx: Any, backbone: Backbone, rows: int, states: Tensor, labels: Tensor
    ) -> Tensor:
        """Log-probabilities [M] for states [M, d], `rows` of them at once."""
        needed = ctx.needs_input_grad[2]
        logp = torch.empty(len(labels), device=states.device)
        slopes = torch.empty_like(states) if needed else None
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            share, bent = backbone.logits(states[part]), None
            cap = getattr(backbone.model.config, "final_logit_softcapping", None)
            if needed and cap is not None:
                bent = 1 - (share / cap).square()
            target = labels[part].unsqueeze(1)
            share -= share.amax(1, keepdim=True)
            chosen = share.gather(1, target)
            total = share.exp_().sum(1, keepdim=True)
            logp[part] = (chosen - total.log()).squeeze(1)
            if slopes is not None:
                # d log softmax / d logits = one-hot - softmax
                share /= -total
                share.scatter_add_(1, target, torch.ones_like(total))
                share = share if bent is None else share.mul_(bent)
                slopes[part] = product_back(backbone.model.lm_head, share)
        ctx.save_for_backward(slopes)
        return logp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the states."""
        (slopes,) = ctx.saved_tensors
        return None, None, slopes * grads[0].unsqueeze(1).to(slopes.dtype), None


def completion_tokens(row: Encoded) -> int:
    """Number of completion tokens, end of sequence included."""
    return len(row.ids) - row.prompt_length


def nll_per_token(
    logp: Sequence[float] | np.ndarray, items: Sequence[Encoded]
) -> float:
    """Negative log-likelihood per completion token of items with these sums, in nats."""
    return -float(np.sum(logp)) / sum(map(completion_tokens, items))


def score_users(
    backbone: Backbone, adapters: Adapters, users: Sequence[Sequence[Encoded]]
) -> list[list[float]]:
    """Log-probability of every item of every user, without gradients.

    Parameters
    ----------
    backbone, adapters
        The policy; a stack among the adapters must hold one adapter per user.
    users
        Items of K users; their numbers may differ.

    Returns
    -------
    list of list of float
        As `users`.
    """
    result = [[0.0] * len(items) for items in users]
    for chunk in chunks(users):
        rows = [
            users[k][i] if i is not None else None
            for k, items in enumerate(chunk)
            for i in items
        ]
        with (
            torch.no_grad(),
            attached(backbone, *adapters),
            a_layer_at_a_time(backbone.model, backbone.regions),
        ):
            layout = collate(backbone, rows, len(users))
            logp = completion_logp(backbone, layout).tolist()
        places = [(k, i) for k, items in enumerate(chunk) for i in items]
        for (k, i), value in zip(places, logp, strict=True):
            if i is not None:
                result[k][i] = value
    return result


def chunks(users: Sequence[Sequence[Encoded]]) -> list[list[list[int | None]]]:
    """Split items into passes of similar length, the same number of rows per user.

    Sorted by length, longest first, so that little is padded. A user with fewer items is
    filled up with None.
    """
    orders = [
        sorted(range(len(items)), key=lambda i, items=items: -len(items[i].ids))
        for items in users
    ]
    most = max(map(len, orders), default=0)
    found: list[list[list[int | None]]] = []
    start = 0
    while start < most:
        heads = [
            len(users[k][order[start]].ids)
            for k, order in enumerate(orders)
            if start < len(order)
        ]
        rows = max(1, TOKENS_PER_PASS // (len(users) * max(heads)))
        parts = [order[start : start + rows] for order in orders]
        width = max(map(len, parts))
        found.append([[*part, *[None] * (width - len(part))] for part in parts])
        start += rows
    return found


def embed(
    backbone: Backbone, shared: Lora | None, items: Sequence[Encoded], depth: int = 0
) -> np.ndarray:
    """Mean hidden state of each item over its completion tokens, float64 [n, d].

    The last one, or with `depth` the output of that layer, counted from 1.
    """
    means = np.zeros((len(items), backbone.model.config.hidden_size))
    for chunk in chunks([items]):
        places = [i for i in chunk[0] if i is not None]
        layout = collate(backbone, [items[i] for i in places])
        with torch.no_grad(), attached(backbone, shared):
            # A completion's token follows the one that predicts it.
            written = layout.predicting + 1
            hidden = (
                backbone.hidden_below(layout, depth).flatten(0, 1)[written[0]].float()
                if depth
                else backbone.hidden_at(layout, written)[0].float()
            )
        total = torch.zeros(len(places), hidden.shape[1], device=hidden.device)
        total.index_add_(0, layout.row[0], hidden)
        counts = layout.row[0].bincount(minlength=len(places)).unsqueeze(1)
        means[places] = (total / counts).double().cpu().numpy()
    return means


def generate(
    backbone: Backbone,
    adapters: Adapters,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    top_p: float | None = None,
    contrast: float = 0.0,
    repetition: float = 1.0,
) -> list[str]:
    """Continue prompts; the texts of what `continued` returns."""
    how = (max_new_tokens, top_p, contrast, repetition)
    return [
        backbone.decode(ids) for ids in continued(backbone, adapters, prompts, *how)
    ]


def continued(
    backbone: Backbone,
    adapters: Adapters,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    top_p: float | None = None,
    contrast: float = 0.0,
    repetition: float = 1.0,
) -> list[list[int]]:
    """Continue prompts: greedily, or sampled where `top_p` is given (temperature 1).

    Returns the new tokens. One of `Backbone.end_ids` is among them where a text has ended;
    what comes behind it is filling.

    With `contrast` greedily by `contrasted`: each prompt is continued a second time, by
    the same tokens, without the last of the adapters. That policy is the reference.

    Parameters
    ----------
    backbone, adapters
        The policy; with a stack of K, prompts are user-major and the same number each.
    prompts
        Token ids. An empty prompt is a filler and yields nothing.
    max_new_tokens
        Budget of one output.
    top_p
        Nucleus of the sampling, by torch's global generator, which the caller seeds.
    contrast
        lambda of `contrasted`; 0: none. The last of the adapters must be a stack.
    repetition
        The logit of a token that stands in the output already is divided by it if it is
        positive, multiplied if negative (Keskar et al. 2019, 4.1). Tokens of the prompt do
        not count: its names are to be repeated, and it has the token that ends a turn.
    """
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
    )

    if not any(map(len, prompts)):
        return [[] for _ in prompts]
    asked, processors = prompts, LogitsProcessorList()
    if contrast:
        *frozen, own = adapters
        if not isinstance(own, Stack):
            raise ValueError("only a stack has a reference to contrast with")
        adapters, prompts = [*frozen, shadowed(own)], [*prompts, *prompts]
        processors.append(lambda _ids, logits: contrasted(logits, contrast))
    longest = max(map(len, prompts))
    if repetition != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition, longest))
    filled = [list(p) if len(p) else [backbone.pad_id] for p in prompts]
    ids = torch.tensor([[backbone.pad_id] * (longest - len(p)) + p for p in filled])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in filled])
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=backbone.end_ids,
        pad_token_id=backbone.pad_id,
        repetition_penalty=1.0,
        do_sample=top_p is not None,
        **({} if top_p is None else {"top_p": top_p, "top_k": 0, "temperature": 1.0}),
    )
    with torch.no_grad(), attached(backbone, *adapters):
        output = backbone.model.generate(
            ids.to(backbone.device),
            attention_mask=mask.to(backbone.device),
            generation_config=config,
            logits_processor=processors,
        )
    new = zip(output[: len(asked), longest:].tolist(), asked, strict=True)
    return [row if len(p) else [] for row, p in new]


def contrasted(logits: Tensor, weight: float) -> Tensor:
    """Scores of the next token that favour what a policy adds to its reference.

        log pi_theta + weight (log pi_theta - log pi_ref)
            where pi_theta >= PLAUSIBLE max pi_theta, else -inf

    Contrastive decoding (Li et al. 2023) of a user's policy against the shared one, as in
    CoPe (Bu et al. 2025). Published code has log pi_theta - alpha log pi_ref, which ranks
    tokens in the same way with alpha = weight / (1 + weight).

    Parameters
    ----------
    logits
        Those of the policy's rows, then those of the reference's, [2N, V].
    weight
        lambda.

    Returns
    -------
    Tensor
        [2N, V], the same for both halves, so that they go on by the same tokens.
    """
    policy, reference = logits.log_softmax(-1).chunk(2)
    scores = policy + weight * (policy - reference)
    least = policy.max(-1, keepdim=True).values + math.log(PLAUSIBLE)
    return scores.masked_fill(policy < least, -math.inf).repeat(2, 1)
