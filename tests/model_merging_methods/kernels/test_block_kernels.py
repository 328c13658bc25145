"""Decoding and encoding of stored values, bit for bit as torch's casts. test_arithmetic.py tests the other kernels."""

import numpy as np
import pytest
import torch

from model_merging_methods.kernels.stored_dtypes import BF16, F16, F32, F64
from model_merging_methods.kernels.stored_values import all_finite, decode, encode

TORCH = {F16: torch.float16, BF16: torch.bfloat16, F32: torch.float32, F64: torch.float64}


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_all_16_bit_numbers_are_decoded_exactly(dtype):
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16)
    expected = patterns.view(TORCH[dtype]).float()
    values = np.empty(len(patterns), np.float32)
    decode(patterns.view(torch.uint8).numpy(), dtype, 0, values)
    numbers = ~expected.isnan()
    assert torch.equal(torch.from_numpy(values).view(torch.int32)[numbers], expected.view(torch.int32)[numbers])
    assert np.isnan(values[~numbers.numpy()]).all()


@pytest.mark.parametrize("dtype", TORCH)
def test_numbers_are_rounded_as_by_torch(dtype):
    patterns = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32)
    halfway = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000  # half-way between two bfloat16 numbers
    values = np.concatenate([patterns, halfway, halfway + 1, halfway - 1]).view(np.float32)
    for part in np.array_split(values[np.isfinite(values)], 50):
        expected = torch.from_numpy(part).to(TORCH[dtype])
        raw = np.empty(expected.numel() * expected.element_size(), np.uint8)
        fits = encode(part, dtype, 0, raw)
        assert raw.tobytes() == expected.view(torch.uint8).numpy().tobytes()
        assert fits == bool(expected.isfinite().all())


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_a_single_value_that_is_not_finite_is_found(wrong):
    values = np.full(5000, 3e38, np.float32)
    assert all_finite(values)
    values[4321] = wrong
    assert not all_finite(values)
