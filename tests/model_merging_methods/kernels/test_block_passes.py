"""Passes take every block once, read ahead, and stop at errors."""

import pytest

from model_merging_methods.kernels.block_passes import Block, for_every_block

BLOCKS = [Block("a", start, start + 1) for start in range(500)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_block_is_taken_once_and_read_a_little_ahead(threads):
    taken, ahead, distances = [], [], []

    def read_ahead(block: Block) -> None:
        ahead.append(block)
        distances.append(block.start - len(taken))

    for_every_block(BLOCKS, lambda: taken.append, threads, read_ahead)
    assert sorted(taken, key=lambda block: block.start) == ahead == BLOCKS
    assert max(distances) <= 100


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_pass_and_is_raised(error):
    taken = []

    def work(block: Block) -> None:
        taken.append(block)
        if block.start == 20:
            raise error("at 20")

    with pytest.raises(error, match="at 20"):
        for_every_block(BLOCKS, lambda: work, 2, lambda _: None)
    assert len(taken) < len(BLOCKS)
