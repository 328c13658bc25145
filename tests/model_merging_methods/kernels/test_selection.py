"""Arcee Fusion's compiled steps are its formula, bit for bit."""

import pytest
import torch

from model_merging_methods.methods.arcee_fusion import compiled_keep_exceptional, keep_exceptional


@pytest.mark.parametrize("shape", [(40, 300), (1, 77), (7, 2), (3, 1)])
@pytest.mark.parametrize("ties", [False, True], ids=["different", "many equal values"])
def test_the_same_values_are_exceptional(shape, ties):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator) / 1000
    if ties:
        values = (values * 2000).round() / 2000  # zeros of both signs
    divergences = torch.rand(shape[0], generator=generator, dtype=torch.float64) * 1e-12
    divergences[::3] = 0
    expected, found = values.clone(), values.clone()
    keep_exceptional(expected, divergences)
    compiled_keep_exceptional(found, divergences)
    assert found.numpy().tobytes() == expected.numpy().tobytes()
