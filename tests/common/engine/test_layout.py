"""Rows that share their beginning: every score and gradient is that of the row alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common.engine.adapters import attached, stack
from idiolect.common.engine.backbone import FAMILIES, Encoded, load_backbone
from idiolect.common.engine.layout import LEAST_SHARED, segments
from idiolect.common.engine.scoring import collate, completion_logp
from tests.common.conftest import write_model
from tests.common.engine.test_adapters import adapter
from tests.common.engine.test_scoring import obvious_logp

WINDOWED = {
    "mistral": {"sliding_window": 10},
    "qwen2": {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1},
    "gemma2": {"sliding_window": 10},
    "gemma3_text": {"sliding_window": 10, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": 10},
}
# Common beginnings of no token, one token, most tokens and the whole prompt, twice over.
START = tuple(range(40, 60))
MORE = tuple(range(200, 210))
ROWS = [
    Encoded((*START, *MORE, 80, 81, 2), 30),
    Encoded((*START, *MORE, 90, 2), 30),
    Encoded((*START, 75, 91, 92, 2), 21),
    Encoded((*START[:12], 100, 101, 2), 13),
    Encoded((*START, *MORE, 80, 2), 30),
    Encoded((40, 110, 111, 112, 2), 3),
    Encoded((120, 121, 2), 1),
    Encoded((*START, *MORE, 80, 81, 82, 83, 84, 85, 86, 87, 88, 130, 2), 39),
]


def alone(backbone, adapters, rows, weights) -> list[torch.Tensor]:
    """Scores and gradients, one row after the other through the whole model."""
    leaves = [*adapters.a.values(), *adapters.b.values()]
    with attached(backbone, adapters):
        scores = []
        for row in rows:
            ids = torch.tensor([row.ids])
            logp = backbone.logits(backbone.model.model(ids).last_hidden_state[0])
            logp = logp.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            scores.append(logp[row.prompt_length - 1 :].sum())
        total = torch.stack(scores)
        gradients = torch.autograd.grad((weights * total).sum(), leaves)
    return [total.detach(), *gradients]


def together(backbone, adapters, rows, weights) -> list[torch.Tensor]:
    leaves = [*adapters.a.values(), *adapters.b.values()]
    with attached(backbone, adapters):
        total = completion_logp(backbone, collate(backbone, rows))
        gradients = torch.autograd.grad((weights * total).sum(), leaves)
    return [total.detach(), *gradients]


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_rows_alone(
    family, windowed, model_folder, tmp_path
):
    if windowed and family not in WINDOWED:
        pytest.skip("this family has no sliding window")
    folder = (
        write_model(tmp_path, family, **WINDOWED[family])
        if windowed
        else model_folder(family)
    )
    backbone = load_backbone(str(folder), "float32", "cpu", 96)
    lora = adapter(backbone, "u", 1)
    for tensor in (*lora.a.values(), *lora.b.values()):
        tensor.requires_grad_()
    weights = torch.linspace(-1, 1, len(ROWS))
    expected = alone(backbone, lora, ROWS, weights)
    layout = collate(backbone, ROWS)
    assert layout.ids.numel() < sum(len(row.ids) for row in ROWS) - 3 * len(START)
    found = together(backbone, lora, ROWS, weights)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-5)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_users_of_a_stack_share_within_their_own_rows(backbone):
    loras = [adapter(backbone, f"u{k}", k) for k in range(3)]
    users = [ROWS[:4], [*ROWS[4:7], None], [None, ROWS[0], None, ROWS[0]]]
    layout = collate(backbone, [row for rows in users for row in rows], len(users))
    with torch.no_grad(), attached(backbone, stack(loras)):
        found = completion_logp(backbone, layout).view(3, 4)
    for lora, rows, scores in zip(loras, users, found.tolist(), strict=True):
        for row, score in zip(rows, scores, strict=True):
            with attached(backbone, lora):
                expected = obvious_logp(backbone, row) if row else 0.0
            assert score == pytest.approx(expected, abs=1e-4)


def test_a_layout_can_be_used_again_and_under_another_adapter(backbone):
    layout = collate(backbone, ROWS)
    loras = [adapter(backbone, "u", 1), adapter(backbone, "v", 2)]
    with torch.no_grad():
        scores = []
        for lora in (*loras, *loras):
            with attached(backbone, lora):
                scores.append(completion_logp(backbone, layout))
    assert torch.equal(scores[0], scores[2]) and torch.equal(scores[1], scores[3])
    assert not torch.allclose(scores[0], scores[1])


TOKENS = st.lists(st.integers(3, 5), min_size=2, max_size=40)


@settings(deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=12), st.data())
def test_segments_hold_every_row(lists, data):
    rows = [tuple(row) for row in lists]
    shareable = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    tree = segments(rows, shareable)
    leaves = [s for s in tree if s.leaf]
    assert sorted(s.row for s in leaves) == list(range(len(rows)))
    for s in leaves:
        path = [tree[i] for i in s.path]
        joined = [t for p in (*path, s) for t in rows[p.row][p.start : p.end]]
        assert tuple(joined) == rows[s.row]
        assert s.start <= shareable[s.row]
        assert not any(p.leaf or p.end - p.start < LEAST_SHARED for p in path)


def test_rows_that_each_begin_with_the_one_before():
    """Deep trees are built without recursion, and in a moment."""
    rows = [tuple(range(3, 5 + k)) for k in range(1500)]
    tree = segments(rows, [len(row) - 1 for row in rows])
    assert sum(s.leaf for s in tree) == len(rows)
