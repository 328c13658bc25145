"""What tests of several rooms share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def golden_merges() -> Path:
    """Small checkpoints with the merges that the published scripts made of them."""
    folder = SHARED / "golden" / "merge"
    if not folder.is_dir():
        pytest.skip(f"the published scripts' merges are not at {folder}")
    return folder
