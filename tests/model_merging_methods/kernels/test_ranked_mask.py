"""DELLA's compiled mask is its formula, bit for bit."""

import pytest
import torch

from model_merging_methods.masks.della import della, draw
from model_merging_methods.merge_request import mask_key
from model_merging_methods.method import MaskPlace
from model_merging_methods.survivors import keep

KEYS = {name: mask_key(0, "math", name) for name in ("a", "b", "c")}


@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (40, 300), (2, 5000)])
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("rescale", ["none", "inverse", "l1"])
@pytest.mark.parametrize("ties", [False, True], ids=["different", "many equal magnitudes"])
def test_the_same_values_are_kept_and_rescaled(shape, key, ties, rescale):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 1000
    if ties:
        values = (values * 2000).round() / 2000  # zeros of both signs
    place = MaskPlace(shape, 0, key)
    kept, probabilities = draw(values, place, 0.6, 0.2)
    expected = keep(values, kept, rescale, probabilities)
    found = della.formula(values, place, density=0.6, epsilon=0.2, rescale=rescale)
    if rescale == "l1":  # the sums are added up in another order
        assert torch.allclose(found, expected, rtol=1e-6, atol=0) and torch.equal(found == 0, expected == 0)
    else:
        assert found.numpy().tobytes() == expected.numpy().tobytes()
