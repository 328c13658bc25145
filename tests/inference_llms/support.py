"""Paths of evaluation data, runs from the command line and evaluators, for the tests of `inference_llms`."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from inference_llms.__main__ import main
from inference_llms.engines.engine import Completion
from tests.commands import run_here

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
OWN_DATA = ROOT / "tests" / "data"
ZOO = ROOT / "scripts" / "tiny_zoo"
GOLDEN = ROOT.parent / "shared" / "golden" / "inference"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the evaluation sets are not in ../shared/data")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no expected results in ../shared/golden/inference")


def golden(task: str) -> dict:
    return json.loads((GOLDEN / f"{task}.json").read_text())


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class MadeUpEngine:
    """An engine that completes prompts by `answer(prompt)`, the last one first, and may fail after some of them."""

    def __init__(self, answer: Callable[[str], str], dies_after: int | None = None):
        self.answer, self.dies_after = answer, dies_after
        self.prompts, self.calls, self.closed = [], 0, 0

    def complete(self, prompts, sampling):
        self.calls, self.sampling = self.calls + 1, sampling
        for done, position in enumerate(reversed(range(len(prompts)))):
            if done == self.dies_after:
                raise RuntimeError("the engine died")
            self.prompts.append(prompts[position])
            answer = self.answer(prompts[position])
            yield position, answer if isinstance(answer, Completion) else Completion(answer, len(answer.split()))

    def close(self):
        self.closed += 1


def run_command(*options: object) -> subprocess.CompletedProcess:
    """Run `python -m inference_llms` as a user does."""
    command = [sys.executable, "-m", "inference_llms", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def run_command_here(*options: object) -> subprocess.CompletedProcess:
    return run_here(main, options)


def replay(tmp_path: Path, *options: object) -> dict:
    """Run from the command line on the rows in tmp_path/replay; returns the scores that the run wrote."""
    replay_options = ["--backend", "replay", "--replay_from", tmp_path / "replay"]
    finished = run_command_here(
        "--load_model_path", "some/model", "--output_dir", tmp_path / "out", *replay_options, *options
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads((tmp_path / "out/save_scores/single_model/model.json").read_text())


def pass_at_1(command: str) -> float:
    """The score that the real evaluator reports for the command in a scores file."""
    program, *arguments = command.split()
    assert program == "evaluate_functional_correctness"
    finished = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments, "--n_workers=2", "--timeout=30"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return float(re.search(r"'pass@1': (?:np\.float64\()?([0-9.]+)", finished.stdout)[1])
