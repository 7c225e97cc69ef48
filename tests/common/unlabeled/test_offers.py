"""Buckets of offered items."""

import numpy as np

from idiolect.common.data.types import Item, Prompt
from idiolect.common.unlabeled.votes import marks


def items(*texts: str) -> list[Item]:
    return [Item(f"i{k}", Prompt("", "p"), text) for k, text in enumerate(texts)]


BANK = items(
    "the harbour opens at dawn",
    "a recipe for plum cake",
    "seven goals in the derby",
    "the plum harvest is early",
    "rain over the northern hills",
)


def test_marks_count_a_bucket_once_per_user():
    found = marks(BANK, items(BANK[1].target, BANK[1].target, BANK[3].target))
    np.testing.assert_array_equal(found, [0, 1, 0, 1, 0])
    assert not marks(BANK, []).any()
