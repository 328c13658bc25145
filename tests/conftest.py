"""Fixtures that tests of several rooms share."""

import signal
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_reaches_commands() -> None:
    """A shell script's background jobs ignore Ctrl-C, and so would the commands that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden_merges() -> Path:
    """Small checkpoints with the merges that the published scripts made of them."""
    return GOLDEN / "merge"
