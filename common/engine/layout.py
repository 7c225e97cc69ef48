"""Rows of tokens side by side: what they begin with stands, and is computed, once.

Half of a user's row is often the same in all of them: system prompt, template and
instruction. Rows become a tree of segments. A token attends to the segments on the path
to its own and to its own, exactly as in the plain row: positions are the same, and the
gradients of all rows add up in the keys and values of what they share.

Between attentions a layer treats each token for itself, so the segments of a user lie in
one line, without padding. Around attention they are gathered, one row per segment. For
pairs under one prompt this is prefix sharing (arXiv 2410.20305); here all rows share.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from os.path import commonprefix
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens that rows must share before they get a segment of their own: attention pads
# segments to one length, so a short one costs more than it saves.
LEAST_SHARED = 8
FILLER = -1  # label where there is no completion token
ENDED = -1  # in place of a token that a row could share: its prompt ends here


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `end` of a row, after those of the segments on its path.

    Attributes
    ----------
    row
        The row whose tokens these are; in a shared segment one of the rows.
    start, end
        Places in the row.
    path
        Indices of the segments before it, from the beginning of the row.
    leaf
        Whether the row ends here.
    """

    row: int
    start: int
    end: int
    path: tuple[int, ...]
    leaf: bool


def segments(
    rows: Sequence[tuple[int, ...]], shareable: Sequence[int]
) -> list[Segment]:
    """Split rows into a tree of segments, parents first.

    Parameters
    ----------
    rows
        Token ids.
    shareable
        How many of a row's first tokens may be shared: its prompt without the last token,
        whose state predicts the completion.
    """
    found: list[Segment] = []
    # Rows with the same first `at` tokens, of which `path` holds the first `start`.
    todo = [(list(range(len(rows))), 0, 0, ())]
    while todo:
        group, start, at, path = todo.pop()
        leaves = group
        if len(group) > 1:
            most = min(shareable[i] for i in group)
            end = at + len(commonprefix([rows[i][at:most] for i in group]))
            if end - start >= LEAST_SHARED:
                found.append(Segment(group[0], start, end, path, False))
                start, path = end, (*path, len(found) - 1)
            branches: dict[int, list[int]] = {}
            for i in group:
                token = rows[i][end] if end < shareable[i] else ENDED
                branches.setdefault(token, []).append(i)
            leaves = branches.pop(ENDED, [])
            todo += [(part, start, end, path) for part in branches.values()]
        found += [Segment(i, start, len(rows[i]), path, True) for i in leaves]
    return found


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of K users in K lines of L tokens, and what attention sees of them.

    Places are those in the joined lines, of which user k's begins at k L.

    Attributes
    ----------
    ids, positions
        Tokens, and their positions in their rows, [K, L]; filled up on the right.
    query, key
        Places of each segment's tokens [G, Q], and of those of its row up to its end
        [G, C]; filled up on the right.
    before
        Number of tokens before each segment [G].
    back
        Where in the flattened `query` each place stands, [K L].
    predicting, labels, row
        Per completion token the place whose state predicts it, its id and its row, [K, P];
        filled up on the right with the label FILLER.
    whole
        Of every row, fillers included, the places of all its tokens.
    below
        Number of layers that need not be computed, and what comes out of them [K, L, d].
    weight
        Of each completion token in its row's sum, row after row [M]; None: 1.
    """

    ids: Tensor
    positions: Tensor
    query: Tensor
    key: Tensor
    before: Tensor
    back: Tensor
    predicting: Tensor
    labels: Tensor
    row: Tensor
    whole: tuple[Tensor, ...]
    below: tuple[int, Tensor] | None = None
    weight: Tensor | None = None
    _masks: dict[tuple[int | None, torch.dtype], Tensor] = field(
        default_factory=dict, init=False
    )

    @property
    def rows(self) -> int:
        """Number of rows, fillers included."""
        return len(self.whole)

    @cached_property
    def plain(self) -> bool:
        """Whether nothing is shared: each segment is a whole row."""
        return not self.before.any().item()

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to scores of attention, [G, 1, Q, C].

        Keys stand in the order of their row, so a key's place there is its position.
        `window`: how many tokens, itself included, a token sees; None: all before it.
        """
        if (window, dtype) not in self._masks:
            device = self.query.device
            own = self.before[:, None] + torch.arange(
                self.query.shape[1], device=device
            )
            distance = own[:, :, None] - torch.arange(self.key.shape[1], device=device)
            seen = (distance >= 0) & (distance < (window or distance.shape[2]))
            mask = torch.zeros(seen.shape, dtype=dtype, device=device)
            mask.masked_fill_(~seen, torch.finfo(dtype).min)
            self._masks[window, dtype] = mask.unsqueeze(1)
        return self._masks[window, dtype]


Row = tuple[tuple[int, ...], int]
"""Token ids, at least one, and the prompt's length."""


def lay_out(
    users: Sequence[Sequence[Row]], filler: int, device: torch.device
) -> Layout:
    """Lay out rows of K users; `filler` is a token id to fill lines up with."""
    lines = [_line(rows) for rows in users]
    width = max(len(line.ids) for line in lines)
    query: list[np.ndarray] = []
    key: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    whole: list[np.ndarray] = []
    first = 0
    for k, (line, rows) in enumerate(zip(lines, users, strict=True)):
        query += [np.array(part) + k * width for part in line.query]
        key += [np.array(part) + k * width for part in line.key]
        found = np.array(line.targets, dtype=np.int64).reshape(-1, 3)
        targets.append(found + [first, 0, k * width])
        whole += [np.array(line.whole[i]) + k * width for i in range(len(rows))]
        first += len(rows)
    # What fills a user's line up is the user's own: another's may have overflowed.
    starts = np.arange(len(lines)) * width
    places = _filled(query, [part[0] for part in query])
    back = np.repeat(
        [int(np.flatnonzero(places == start)[0]) for start in starts], width
    )
    for segment, part in enumerate(query):
        back[part] = segment * places.shape[1] + np.arange(len(part))
    row, labels, predicting = (
        _filled([found[:, part] for found in targets], fill)
        for part, fill in enumerate((0 * starts, 0 * starts + FILLER, starts))
    )
    arrays = {
        "ids": _filled([line.ids for line in lines], 0 * starts + filler),
        "positions": _filled([line.positions for line in lines], 0 * starts),
        "query": places,
        "key": _filled(key, [part[0] for part in key]),
        "before": np.array([len(k) - len(q) for q, k in zip(query, key, strict=True)]),
        "back": back,
        "predicting": predicting,
        "labels": labels,
        "row": row,
    }
    tensors = {name: torch.from_numpy(a).to(device) for name, a in arrays.items()}
    rows = tuple(torch.from_numpy(places).to(device) for places in whole)
    return Layout(**tensors, whole=rows, below=None)


def _filled(parts: Sequence[Sequence[int] | np.ndarray], fill: Any) -> np.ndarray:
    """Rows of different lengths as one array, each filled up on the right with its own."""
    width = max(map(len, parts), default=0)
    array = np.repeat(np.asarray(fill, dtype=np.int64)[:, None], width, axis=1)
    for i, part in enumerate(parts):
        array[i, : len(part)] = part
    return array


@dataclass(frozen=True, eq=False)
class _Line:
    """One user's part of a layout: places are those in the line."""

    ids: list[int]
    positions: list[int]
    query: list[list[int]]
    key: list[list[int]]
    targets: list[tuple[int, int, int]]
    whole: dict[int, list[int]]


def _line(rows: Sequence[Row]) -> _Line:
    """One user's rows in a line."""
    line = _Line([], [], [], [], [], {})
    for s in segments([ids for ids, _ in rows], [length - 1 for _, length in rows]):
        (tokens, prompt), begin = rows[s.row], len(line.ids)
        line.ids.extend(tokens[s.start : s.end])
        line.positions.extend(range(s.start, s.end))
        line.query.append(list(range(begin, len(line.ids))))
        path = [line.query[i] for i in s.path]
        line.key.append([*chain.from_iterable(path), *line.query[-1]])
        if s.leaf:
            line.whole[s.row] = line.key[-1]
            shift = begin - s.start - 1
            line.targets.extend(
                (s.row, tokens[i], shift + i) for i in range(prompt, s.end)
            )
    line.targets.sort(key=lambda target: target[0])
    return line


EAGER, SDPA = "idiolect-eager", "idiolect-sdpa"


def install(model: Any) -> None:
    """Let a transformers model compute its attention by `attend`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    for name, masks in ((EAGER, eager_mask), (SDPA, sdpa_mask)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, masks)
    eager = model.config._attn_implementation == "eager"  # softcapped scores: Gemma 2
    model.config._attn_implementation = EAGER if eager else SDPA


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
):
    """Attention of one layer, as transformers calls it: segment by segment in a layout.

    Parameters
    ----------
    module
        The layer's attention.
    query, key, value
        [K, heads, L, width] with a layout, which is in ``rest["layout"]``.
    mask
        Only without a layout, as in generation.

    Returns
    -------
    tuple
        The output [K, L, heads, width], and None.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout: Layout | None = rest.pop("layout", None)
    eager = module.config._attn_implementation == EAGER
    family = sys.modules[type(module).__module__]
    inner = family.eager_attention_forward if eager else sdpa_attention_forward
    if layout is None:
        return inner(module, query, key, value, mask, **rest)
    window = rest.get("sliding_window")

    def gather(states: Tensor, places: Tensor) -> Tensor:
        """[K, heads, L, width] -> [G, heads, Q, width]."""
        users, heads, length, width = states.shape
        table = states.transpose(1, 2).reshape(users * length, heads * width)
        found = F.embedding(places, table)
        return found.view(*places.shape, heads, width).transpose(1, 2)

    # Without a mask this attention is causal, and faster.
    near = window is not None and window < layout.key.shape[1]
    free = layout.plain and not near and not eager
    mask = None if free else layout.mask(window, query.dtype)
    parts = (
        gather(query, layout.query),
        gather(key, layout.key),
        gather(value, layout.key),
    )
    output, _ = inner(module, *parts, mask, **rest)
    heads, width = output.shape[2:]
    joined = F.embedding(layout.back, output.reshape(-1, heads * width))
    return joined.view(len(layout.ids), -1, heads, width), None
