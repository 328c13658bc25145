"""The recorded attacks in ../shared/golden/attacks, and the prompts that the tests of this room attack."""

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "attacks"
RELEASE = "0.3.7"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no recorded attacks in ../shared/golden/attacks")

# A prompt in the form of the tasks', short enough to work through by hand.
PROMPT = "Judge 'good' or 'bad'.\nText:{content}\nPlease say 'good' or 'bad'."
PROTECTED = frozenset({"good", "good'", "bad", "bad'", "content"})


def golden(name: str, part: str) -> list[dict]:
    """The records of a part of a file that hold for the release whose words are ours."""
    records = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))[part]
    return [record for record in records if RELEASE in record["releases"]]
