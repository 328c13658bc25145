"""Arcee Fusion in strips is its formula."""

import math

import numpy as np
import pytest
import torch

from model_merging_methods.kernels.divergences import row_divergences as compiled_divergences
from model_merging_methods.methods.arcee_fusion import in_strips, keep_exceptional, row_divergences


def pair(shape: tuple[int, int], change: float = 1e-3, scale: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator) * scale
    return base, base + torch.randn(shape, generator=generator) * change


@pytest.mark.parametrize("shape", [(40, 300), (1, 77), (7, 2), (3, 1), (300, 900)])
@pytest.mark.parametrize("ties", [False, True], ids=["different", "many equal values"])
@pytest.mark.parametrize("rows_at_once", [1, 2, 1000])
def test_the_same_values_are_exceptional(shape, ties, rows_at_once):
    base, theta = pair(shape)
    if ties:
        base, theta = ((values * 500).round() / 500 for values in (base, theta))  # most do not change
        theta[::3] = base[::3]

    def strips():
        parts = zip(base.split(rows_at_once), theta.split(rows_at_once), strict=True)
        return ([part.clone().numpy() for part in strip] for strip in parts)

    found = np.concatenate([strip.copy() for strip in in_strips(strips, math.prod(shape))])
    delta = theta - base
    keep_exceptional(delta, torch.from_numpy(compiled_divergences(theta.numpy(), base.numpy())))
    assert found.tobytes() == (base + delta).numpy().tobytes()


@pytest.mark.parametrize(("change", "scale"), [(1e-3, 0.02), (1e-6, 0.02), (1e-7, 1.0), (0.5, 1.0), (30.0, 30.0)])
def test_divergences_keep_their_digits_however_close_the_rows(change, scale):
    base, theta = pair((20, 333), change, scale)
    found = compiled_divergences(theta.numpy(), base.numpy())
    expected = []
    for row, base_row in zip(theta.tolist(), base.tolist(), strict=True):
        p, q = (softmax(values) for values in (row, base_row))
        expected.append(
            math.fsum(b * ((a / b) * math.log1p((a - b) / b) - (a - b) / b) for a, b in zip(p, q, strict=True))
        )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(row_divergences(theta, base), expected, rtol=1e-6)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / math.fsum(powers) + 1e-8 for power in powers]
