"""Where the evaluation data and the expected results of the published scripts lie, for tests."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
GOLDEN = ROOT.parent / "shared" / "golden" / "inference"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the evaluation sets are not in ../shared/data")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no expected results in ../shared/golden/inference")


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
