"""The results that several modules here spoil copies of."""

import shutil
from pathlib import Path

import pytest

from tests.paper.results_by_hand import leave_results


@pytest.fixture(scope="session")
def typed_by_hand(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("by_hand") / "results"
    leave_results(results)
    return results


@pytest.fixture
def results(typed_by_hand, tmp_path) -> Path:
    """A copy, to be spoilt."""
    copy = tmp_path / "copy"
    shutil.copytree(typed_by_hand, copy, ignore=shutil.ignore_patterns("*.safetensors", "tables"))
    return copy
