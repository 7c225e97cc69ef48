"""Hashed character n-grams."""

import subprocess
import sys

import numpy as np
import pytest

from idiolect.common.data.ngrams import grams, hashed


def test_grams_count_characters_three_to_five():
    counts = grams("abcd")  # padded: " abcd ", so 4 + 3 + 2 n-grams
    assert sum(counts.values()) == 9
    assert sum(grams("aaaa").values()) == 9
    assert max(grams("aaaa").values()) == 2  # "aaa" twice


@pytest.mark.process
def test_features_are_the_same_in_every_process():
    # Python's own hash differs between processes; votes over one bank must not.
    code = (
        "from idiolect.common.data.ngrams import *;print(sorted(grams('dawn').items()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(sorted(grams("dawn").items()))


def test_hashed_rows_are_square_roots_of_counts_of_length_one():
    texts = ["abcd", "seven goals in the derby", ""]
    rows = hashed(texts, 16)
    assert rows.shape == (3, 16)
    counts = np.zeros(16)
    for bucket, count in grams(texts[1]).items():
        counts[bucket % 16] += count
    np.testing.assert_allclose(rows[1], np.sqrt(counts / counts.sum()))
    assert np.linalg.norm(rows[0]) == pytest.approx(1)
    assert np.isfinite(rows).all()
