"""What the kernels decode and encode is what torch's casts give, to the bit; the rest of them is held to the plain
formulas in test_torch_arithmetic."""

import numpy as np
import pytest
import torch

from model_merging_methods.kernels.block_kernels import all_finite, decode, encode
from model_merging_methods.kernels.block_passes import Block, for_every_block
from model_merging_methods.kernels.stored_dtypes import BF16, F16, F32, F64

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
def test_numbers_are_rounded_as_torch_rounds_them(dtype):
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
def test_one_value_that_is_no_number_is_found(wrong):
    values = np.full(5000, 3e38, np.float32)
    assert all_finite(values)
    values[4321] = wrong
    assert not all_finite(values)


BLOCKS = [Block("a", start, start + 1) for start in range(500)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_pass_takes_every_block_once_and_reads_ahead_of_it(threads):
    taken, ahead = [], []
    for_every_block(BLOCKS, lambda: taken.append, threads, ahead.append)
    assert sorted(taken, key=lambda block: block.start) == BLOCKS
    assert ahead == BLOCKS


def test_reading_ahead_keeps_within_sight():
    taken, furthest = [], []

    def work(block: Block) -> None:
        taken.append(block)

    def read_ahead(block: Block) -> None:
        furthest.append(block.start - len(taken))

    for_every_block(BLOCKS, lambda: work, 2, read_ahead)
    assert max(furthest) <= 100


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_pass_and_is_the_one_raised(error):
    taken = []

    def work(block: Block) -> None:
        taken.append(block)
        if block.start == 20:
            raise error("at 20")

    with pytest.raises(error, match="at 20"):
        for_every_block(BLOCKS, lambda: work, 2, lambda _: None)
    assert len(taken) < len(BLOCKS)
