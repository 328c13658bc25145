"""AlpacaEval: a stand-in for its program, and agreement with the references."""

import json
import os
import sys
from pathlib import Path

import pytest

from inference_llms.evaluators import results
from inference_llms.evaluators.alpaca_eval import Judge, result_folder
from inference_llms.evaluators.results import hashes_file
from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from tests.inference_llms.support import OWN_DATA, replay, write_rows
from utils.errors import UserError

TASK = TASKS["alpaca_eval"]
# Prefers every answer that is not empty, as annotations.json has it.
STAND_IN = """#!{python}
import json, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rows = json.load(open(options["--model_outputs"]))
folder = pathlib.Path(options["--output_path"], "judge")
folder.mkdir(parents=True)
for row in rows:
    row |= {{"output_2": row["output"], "preference": 1.0 + bool(row["output"])}}
(folder / "annotations.json").write_text(json.dumps(rows))
"""


def answer(tmp_path: Path, *completions: str) -> AnswerFiles:
    rows = [{"id": position, "completion": text} for position, text in enumerate(completions)]
    write_rows(tmp_path / "replay/alpaca_eval.jsonl", rows)
    score = replay(tmp_path, "--tasks", "alpaca_eval", "--data_dir", OWN_DATA, "--overwrite")["alpaca_eval"]
    return AnswerFiles(TASK, tuple(map(Path, score["files"])), score["evaluator_command"], OWN_DATA)


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(results, "EVALUATORS", tmp_path / "none")
    program = tmp_path / "bin/alpaca_eval"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere/python"))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_the_judges_preferences_are_read_answer_by_answer(stand_in, tmp_path):
    answers = answer(tmp_path, "Red.", "")
    assert TASK.evaluator.read(answers.files) is None
    TASK.evaluator.run(answers)
    found = TASK.evaluator.read(answers.files)
    assert (found.metric, found.score, found.values) == ("win_rate", 0.5, (1.0, 0.0))
    assert found.ids == ("Name a colour.", "Greet me in two lines.") and " --output_path " in found.command
    answers = answer(tmp_path, "Blue.", "Hi")
    with pytest.raises(UserError, match="belongs to another"):
        TASK.evaluator.read(answers.files)
    hashes_file(result_folder(answers.files)).unlink()
    with pytest.raises(UserError, match=r"lacks an answer's verdict, or belongs to other answers"):
        TASK.evaluator.read(answers.files)


@pytest.mark.parametrize(("preference", "share"), [(1, 0.0), (1.75, 0.75), (0, 0.5), (None, None), (2.5, None)])
def test_a_preference_is_a_number_from_1_to_2_or_a_draw(stand_in, tmp_path, preference, share):
    answers = answer(tmp_path, "Red.", "Hi")
    TASK.evaluator.run(answers)
    (annotations,) = tmp_path.rglob("annotations.json")
    annotations.write_text(
        json.dumps([{**row, "preference": preference} for row in json.loads(annotations.read_text())])
    )
    if share is not None:
        assert TASK.evaluator.read(answers.files).score == share
        return
    with pytest.raises(UserError, match="the judge gave no answer"):
        TASK.evaluator.read(answers.files)


def test_the_tiny_models_answers_are_compared_with_the_references(tmp_path):
    answers = answer(tmp_path, " Green.", "Hello!")
    TASK.evaluator.run(answers, without_model=True)
    found = TASK.evaluator.read(answers.files)
    assert (found.metric, found.score, found.values, found.command) == ("agreement", 0.5, (1.0, 0.0), "")


def test_a_program_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "EVALUATORS", tmp_path / "none")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere/python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UserError, match=r"^alpaca_eval is not installed; run `bash scripts/setup_eval"):
        TASK.evaluator.run(answer(tmp_path, "Red.", "Hi"))


def test_a_misspelt_annotator_gets_near_matches(stand_in, tmp_path):
    Judge("chatgpt_fm").check_annotator()  # not known to be wrong: the stand-in has no annotators
    folder = tmp_path / "lib/python3.11/site-packages/alpaca_eval/evaluators_configs/chatgpt_fn"
    folder.mkdir(parents=True)
    (folder / "configs.yaml").touch()
    for name in ("chatgpt_fn", "chatgpt_fn/configs.yaml", str(tmp_path)):
        Judge(name).check_annotator()
    with pytest.raises(UserError, match=r"--annotators_config chatgpt_fm: .* no such annotator; near: chatgpt_fn"):
        Judge("chatgpt_fm").check_annotator()
