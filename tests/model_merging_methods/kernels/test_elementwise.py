"""Compiled elementwise steps are their formulas, bit for bit."""

import pytest
import torch

from model_merging_methods.methods.sce import compiled_mean_of_elected, erase, mean_of_elected


@pytest.mark.parametrize("models", [1, 2, 3, 5])
@pytest.mark.parametrize("ties", [False, True], ids=["different", "zeros and equal values"])
def test_the_same_means_of_elected_values(models, ties):
    values = torch.randn((models, 7000), generator=torch.Generator().manual_seed(models)) / 1000
    if ties:
        values = (values * 1000).round() / 1000  # zeros of both signs
    weights = [1 / (2 + i) for i in range(models)]
    expected, found = (mean(list(values), weights) for mean in (mean_of_elected, compiled_mean_of_elected))
    assert found.numpy().tobytes() == expected.numpy().tobytes()


def test_the_dropped_values_are_erased():
    values = torch.tensor([[1.0, -2.0, -0.0], [3.0, 4.0, 5.0]])
    dropped = torch.tensor([[False, True, True], [True, False, False]])
    expected = values.masked_fill(dropped, 0)
    erase(values, dropped)
    assert values.numpy().tobytes() == expected.numpy().tobytes()
