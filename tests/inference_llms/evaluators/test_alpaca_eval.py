"""AlpacaEval: a stand-in for its program, agreement with the references, and the real program if it is installed."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inference_llms.evaluators.alpaca_eval import result_folder
from inference_llms.evaluators.results import hashes_file
from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from tests.inference_llms.support import OWN_DATA, ROOT, replay, write_rows
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
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere/python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UserError, match=r"^alpaca_eval is not installed$"):
        TASK.evaluator.run(answer(tmp_path, "Red.", "Hi"))


class Judge(BaseHTTPRequestHandler):
    """A server with OpenAI's interface. Prefers the first answer that it is shown."""

    def log_message(self, *words):
        pass

    def do_POST(self):
        model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        tops = [{"token": token, "logprob": value, "bytes": None} for token, value in (("m", -0.2), ("M", -1.7))]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "m"}}
        choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [choice],
            "usage": usage,
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())


@pytest.mark.skipif(shutil.which("alpaca_eval") is None, reason="alpaca_eval is not installed")
def test_the_printed_command_judges_a_slice(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_rows(tmp_path / "replay/alpaca_eval.jsonl", [{"id": n, "completion": f"answer {n}"} for n in range(2, 7)])
    options = ["--tasks", "alpaca_eval", "--data_dir", ROOT / "scripts/tiny_zoo/data", "--start_index", 2]
    score = replay(tmp_path, *options, "--end_index", 7)["alpaca_eval"]
    answers = tmp_path / "out/save_gen_instruct_responses_results/single_model/alpaca_eval/model.json"
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    variables = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "x",
        "OPENAI_BASE_URL": address,
    }
    command = TASK.evaluator.full_command([answers], score["evaluator_command"])
    done = subprocess.run(command, shell=True, env=os.environ | variables, capture_output=True, text=True, check=False)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    found = TASK.evaluator.read([answers])
    assert found.examples == 5 and f"{100 * found.score:.2f}" in done.stdout
    assert all(0.18 < value < 0.82 for value in found.values)
