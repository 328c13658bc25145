"""Progress without a terminal: one line per minute."""

import pytest

from model_merging_methods.kernels.block_passes import Block, for_every_block
from utils import progress
from utils.progress import progress_of


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_progress_is_one_line_per_minute(clock, capsys):
    with progress_of("gsm8k", 200, "prompts", done=50) as shown:
        for second in range(1, 151):
            clock[0] = float(second)
            shown.update()
    out, lines = capsys.readouterr()
    assert out == ""
    assert lines == "gsm8k: 110 of 200 prompts after 1 min\ngsm8k: 170 of 200 prompts after 2 min\n"


def test_a_pass_over_blocks_counts_every_block_once(clock, capsys):
    def new_worker():
        def work(block: Block) -> None:
            clock[0] += 61.0

        return work

    for_every_block([Block("a", i, i + 1) for i in range(3)], new_worker, threads=1, title="merging")
    assert capsys.readouterr().err == "merging: 2 of 3 blocks after 1 min\nmerging: 3 of 3 blocks after 2 min\n"
