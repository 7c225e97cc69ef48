"""What the layers below the lowest trained one compute, once for a whole training.

Where only the upper layers are trained (``lora.layers``), the lower ones give the same
hidden states in every epoch. They are computed once per row, without gradients, and kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .adapters import Lora, Stack, attached
from .backbone import Backbone, Encoded, layer_of
from .layout import Layout
from .scoring import chunks, collate

SHARE = 1 / 4  # of the memory of a training; what does not fit is computed every time


@dataclass(frozen=True, eq=False)
class Lower:
    """What K users' rows are where the lowest trained layer begins.

    Attributes
    ----------
    depth
        Number of that layer.
    states
        For each user the hidden states [T, d] of every row, by its token ids.
    """

    depth: int
    states: list[dict[tuple[int, ...], Tensor]]

    @property
    def bytes(self) -> int:
        """Bytes of all states."""
        return sum(one.nbytes for user in self.states for one in user.values())

    def of(
        self, backbone: Backbone, layout: Layout, rows: Sequence[Encoded | None]
    ) -> Layout:
        """The layout of rows, user by user, with their states.

        A filler row has zeros: nothing of it is scored.
        """
        each, width = len(rows) // len(self.states), backbone.model.config.hidden_size
        filler = torch.zeros(1, width, dtype=backbone.dtype, device=backbone.device)
        parts = [
            self.states[i // each][row.ids] if row else filler
            for i, row in enumerate(rows)
        ]
        index = torch.zeros(
            layout.ids.numel(), dtype=torch.long, device=backbone.device
        )
        start = 0
        for part, places in zip(parts, layout.whole, strict=True):
            index[places] = start + torch.arange(len(part), device=backbone.device)
            start += len(part)
        known = torch.cat(parts)[index].view(*layout.ids.shape, width)
        return replace(layout, below=(self.depth, known))


def lowest_layer(lora: Lora | Stack) -> int:
    """Number of the lowest layer that an adapter changes."""
    return min(map(layer_of, lora.b))


def lower_states(
    backbone: Backbone,
    shared: Lora | None,
    depth: int,
    users: Sequence[Sequence[Encoded]],
) -> Lower:
    """What goes into layer `depth` for all rows of K users.

    Each user's rows are computed by themselves, so that a result does not depend on who
    else is trained in the same passes.
    """
    found = Lower(depth, [{} for _ in users])
    for rows, states in zip(users, found.states, strict=True):
        distinct = list({row.ids: row for row in rows}.values())
        for (chunk,) in chunks([distinct]):
            part = [distinct[i] for i in chunk if i is not None]
            layout = collate(backbone, part)
            with torch.no_grad(), attached(backbone, shared):
                hidden = backbone.hidden_below(layout, depth).flatten(0, 1)
            for row, places in zip(part, layout.whole, strict=True):
                states[row.ids] = hidden[places]
    return found


def lower_bytes(backbone: Backbone, users: Sequence[Sequence[Encoded]]) -> int:
    """Bytes of `lower_states`."""
    tokens = sum(len(ids) for rows in users for ids in {row.ids for row in rows})
    return tokens * backbone.model.config.hidden_size * backbone.dtype.itemsize
