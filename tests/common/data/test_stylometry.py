"""Features of how a text is written."""

import numpy as np
import pytest

from idiolect.common.data.stylometry import (
    FUNCTION_WORDS,
    content_similarity,
    content_words,
    distorted,
    features,
)


def test_what_a_text_is_about_is_masked_and_how_it_is_written_stays() -> None:
    assert distorted("The Senator's 12 cats — won't LEAVE!") == (
        "The Aaaaaaa'a 00 aaaa — won't AAAAA!"
    )
    assert distorted("Don’t ask Ånna") == "Don’t aaa Aaaa"


def test_shape_features_do_not_depend_on_the_topic() -> None:
    one, other = features(["A cat of the sea!"]), features(["A dog of the war!"])
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    third = features(["a cat of the sea"])
    assert not any(
        np.array_equal(a, b) for a, b in zip(one[::2], third[::2], strict=True)
    )


def test_function_words_are_shares_of_the_words() -> None:
    _, shares, _, lengths = features(["the cat and the dog", ""])
    assert shares[0, FUNCTION_WORDS.index("the")] == pytest.approx(0.4)
    assert shares[0, FUNCTION_WORDS.index("and")] == pytest.approx(0.2)
    assert not shares[1].any()
    assert lengths[0, 0] == pytest.approx(np.log(6)) and lengths[0, 1] == 3.0


def test_content_is_compared_without_function_words() -> None:
    assert content_words("The sea's end") == ["sea's", "end"]
    assert content_similarity("The sea and a cat", "sea cat") == pytest.approx(1)
    assert content_similarity("the sea", "a sea cat") == pytest.approx(0.5**0.5)
    assert content_similarity("the and", "of the") == 0.0
    assert content_similarity("", "sea") == 0.0
