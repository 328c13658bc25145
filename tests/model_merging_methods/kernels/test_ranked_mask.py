"""DELLA's compiled draw is that of its formula, bit for bit."""

import numpy as np
import pytest
import torch

from model_merging_methods.kernels.ranked_mask import draw_by_rank
from model_merging_methods.masks.della import draw
from model_merging_methods.merge_request import mask_key
from model_merging_methods.method import MaskPlace

KEYS = {name: mask_key(0, "math", name) for name in ("a", "b", "c")}


@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (40, 300), (2, 5000)])
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("ties", [False, True], ids=["different", "many equal magnitudes"])
def test_the_same_values_are_kept_with_the_same_probabilities(shape, key, ties):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 1000
    if ties:
        values = (values * 2000).round() / 2000  # zeros of both signs
    expected, probabilities = draw(values, MaskPlace(shape, 0, key), 0.6, 0.2)
    kept, found = np.empty(shape, bool), np.empty(shape, np.float32)
    draw_by_rank(values.numpy(), kept, found, np.uint64(key & (2**64 - 1)), 0, 0.6 - 0.2, 2 * 0.2 / (shape[1] - 1))
    assert np.array_equal(kept, expected.numpy())
    assert found.tobytes() == probabilities.numpy().tobytes()
